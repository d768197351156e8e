"""The gate itself: run both sides, check everything, write down what was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from convoy.contract.agreement import FloatArray, Tolerance
from convoy.contract.errors import ExportError
from convoy.contract.image import ImageSpec
from convoy.contract.manifest import INPUT_NAME, LOGITS_NAME, PROBABILITIES_NAME, Accuracy, TensorSpec
from convoy.contract.validation import Check, ClassScore, OutputErrors, WorstImage
from convoy.export.gate import checks
from convoy.export.gate.bounds import Bound, derive_bound, follow_logits
from convoy.export.gate.errors import finite_or_none, output_errors
from convoy.export.gate.evidence import EvaluationSet, Exhibits
from convoy.export.gate.provider_runs import ODD_BATCH_SIZE, ProviderRuns, shuffled
from convoy.export.gate.runtime import run_session
from convoy.export.gate.source import Outputs, Source, Truth

if TYPE_CHECKING:
    import onnxruntime

Progress = Callable[[str], None]

N_SAMPLE = 32
"""Real images that are run, with all edge images, in float64 and once more in each batch size, company and optimisation level."""
_N_SCORES = 10


@dataclass(frozen=True)
class Border:
    """What the manifest says of a model's border.

    Attributes:
        image: The model's image.
        labels: Class names in the order of the logits.
        max_batch_size: The largest batch that the server may form.
        temperature: The probabilities are softmax(logits / temperature).
    """

    image: ImageSpec
    labels: tuple[str, ...]
    max_batch_size: int
    temperature: float = 1.0

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """1, 2, an odd one, and the largest: all that is run."""
        return batch_sizes(self.max_batch_size)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The input of pixels, as the manifest says it."""
        return (TensorSpec(name=INPUT_NAME, datatype="UINT8", dims=self.image.dims, value_range=(0, 255)),)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Logits and probabilities, as the manifest says them."""
        n_classes = len(self.labels)
        return (
            TensorSpec(name=LOGITS_NAME, datatype="FP32", dims=(n_classes,)),
            TensorSpec(name=PROBABILITIES_NAME, datatype="FP32", dims=(n_classes,), value_range=(0, 1)),
        )


def batch_sizes(largest: int) -> tuple[int, ...]:
    """1, 2, an odd one, and the largest that the server may form."""
    return tuple(sorted({size for size in (1, 2, ODD_BATCH_SIZE) if size < largest} | {largest}))


@dataclass(frozen=True)
class Failure:
    """Where the answers were wrong, so that the fault can be looked for there.

    Attributes:
        indices: Of the images that show it, the worst first.
        batch_size: The batch size that shows it.
    """

    indices: tuple[int, ...]
    batch_size: int


@dataclass(frozen=True)
class Findings:
    """What the gate found.

    Attributes:
        checks: All checks in the order in which they ran.
        tolerances: By output name.
        accuracy: Of both sides on the evaluation set; None where ONNX Runtime gave no answers, or nobody knows the labels.
        expected: The source's answers for the evaluation set.
        outputs: The errors of each output.
        worst: The image with the largest difference, in words; None where ONNX Runtime gave no answers.
        worst_index: Its index among the exhibits.
        failure: Where to look for the fault; None where all answers were right, or there were none.
    """

    checks: tuple[Check, ...]
    tolerances: dict[str, Tolerance]
    accuracy: Accuracy | None
    expected: Outputs
    outputs: tuple[OutputErrors, ...] = ()
    worst: WorstImage | None = None
    worst_index: int | None = None
    failure: Failure | None = None


def run_gate(
    model: bytes,
    source: Source,
    evaluation: EvaluationSet,
    border: Border,
    *,
    tolerances: dict[str, Tolerance] | None = None,
    on_progress: Progress = lambda _: None,
) -> Findings:
    """Compare an ONNX file with what it came from.

    Args:
        model: The file's bytes.
        source: Where the expected answers come from.
        evaluation: Real images, with labels where they are known.
        border: What the manifest says of the file's border.
        tolerances: By output name, for a file of a reduced precision, which then meets real images alone; derived from float64, and
            edge images met too, where None.
        on_progress: Told what is being done.

    Returns:
        The checks with what they found. A fault is a failed check, not an exception.

    Raises:
        ExportError: The source cannot answer.
    """
    # Edge images lie outside the ranges that int8 was calibrated for: whoever gives tolerances has measured them on real ones.
    exhibits = Exhibits.of(evaluation, border.image) if tolerances is None else Exhibits(evaluation, evaluation.images)
    return _Gate(model, source, exhibits, border, tolerances, on_progress).run()


class _Gate(ProviderRuns):
    """One run of the gate: the source is asked at the start, then checks pile up."""

    noun = "images"
    in_company = "in other company"

    def __init__(
        self,
        model: bytes,
        source: Source,
        exhibits: Exhibits,
        border: Border,
        tolerances: dict[str, Tolerance] | None,
        say: Progress,
    ) -> None:
        super().__init__(model, border, say)
        self.source, self.exhibits, self.border = source, exhibits, border
        self.given = tolerances is not None
        self.accuracy: Accuracy | None = None
        self.outputs: tuple[OutputErrors, ...] = ()
        self.actual: Outputs | None = None
        self.worst: int | None = None
        self.failure: Failure | None = None

        say(f"{source.title} on {len(exhibits.evaluation)} images")
        self.expected = source.float32(exhibits.images, border.max_batch_size)
        self.truth_indices = exhibits.sample(N_SAMPLE)
        self.truth = Truth({}, 0)
        if tolerances is None:
            self.bounds = self._derive_bounds()
        else:
            self.bounds = {name: Bound(tolerance) for name, tolerance in tolerances.items()}
        self.tolerances = {name: bound.tolerance for name, bound in self.bounds.items()}

    def _derive_bounds(self) -> dict[str, Bound]:
        """float32 and float64 in the same batches: what is left between them is rounding, not company."""
        images, batch_size = self.exhibits.images[self.truth_indices], self.border.max_batch_size
        self.say(f"{self.source.title} in float64 on {len(images)} images, for the tolerances")
        self.truth = self.source.float64(images, batch_size)
        n = self.truth.n_images
        beside = self.expected
        if n:
            self.truth_indices = self.truth_indices[:n]
            beside = self.source.float32(images[:n], batch_size)
        bounds = {name: derive_bound(values, self.truth.outputs.get(name)) for name, values in beside.items()}
        largest = float(np.abs(beside[LOGITS_NAME]).max())
        temperature = self.border.temperature
        bounds[PROBABILITIES_NAME] = follow_logits(bounds[PROBABILITIES_NAME], bounds[LOGITS_NAME], largest, temperature)
        return bounds

    def run(self) -> Findings:
        n = len(self.exhibits.evaluation)
        self.checks += [
            checks.check_file(self.model),
            checks.check_evidence(n),
            checks.check_scores(self.source.title, self.expected),
        ]
        if not self.given:
            self._check_source()
        self.run_providers(len(self.exhibits), self.exhibits.sample(N_SAMPLE))
        return Findings(
            tuple(self.checks),
            self.tolerances,
            self.accuracy,
            {name: values[:n] for name, values in self.expected.items()},
            self.outputs,
            self._describe_worst(),
            self.worst,
            self.failure,
        )

    def _check_source(self) -> None:
        """A network whose answers depend on chance, or on the other images of a batch, cannot be served as one that was trained."""
        if self.truth.uncovered:
            expected = "the source's answers in float64, which float32 is measured by"
            found = f"{self.truth.n_images} of {len(self.exhibits.sample(N_SAMPLE))} images: {'; '.join(self.truth.uncovered)}"
            self.checks.append(Check(name="float64 truth", verdict="uncovered", expected=expected, found=found))
        title, size = self.source.title, min(ODD_BATCH_SIZE, self.border.max_batch_size)
        indices = shuffled(self.exhibits.sample(N_SAMPLE))
        moved = self.source.float32(self.exhibits.images[indices], size)
        where = f"{title} in other company"
        self.checks += checks.check_outputs(where, _take(self.expected, indices), moved, self.tolerances, self._namer(indices))
        first = {name: values[:size] for name, values in moved.items()}
        again = self.source.float32(self.exhibits.images[indices[:size]], size)
        floors = {name: derive_bound(values, values.astype(np.float64)).tolerance for name, values in first.items()}
        self.checks += checks.check_outputs(f"{title} a second time", first, again, floors, self._namer(indices))

    def compare(
        self,
        session: onnxruntime.InferenceSession,
        indices: npt.NDArray[np.int64],
        batch_size: int,
        where: str,
        *,
        company: bool,  # noqa: ARG002  other company is another order, which the indices have
    ) -> Outputs | None:
        """Run some images, check the answers; None where there are none for all of them."""
        expected = _take(self.expected, indices)
        try:
            actual = run_session(session, self.exhibits.images[indices], batch_size)
        except ExportError as error:
            found = str(error)
            self.checks.append(Check(name=f"answers, {where}", verdict="failed", expected="one for every image", found=found))
            self._note_failure(indices[:batch_size], batch_size)
            return None
        made = checks.check_outputs(where, expected, actual, self.tolerances, self._namer(indices))
        self.checks += made
        complete = all(name in actual and actual[name].shape == values.shape for name, values in expected.items())
        if any(check.verdict == "failed" for check in made):
            order = np.argsort(-_largest_diff(expected, actual)) if complete else np.arange(len(indices))
            self._note_failure(indices[order], batch_size)
        return actual if complete else None

    def _namer(self, indices: npt.NDArray[np.int64]) -> Callable[[int], str]:
        return lambda row: self.exhibits.name(int(indices[row]))

    def _note_failure(self, indices: npt.NDArray[np.int64], batch_size: int) -> None:
        if self.failure is None:
            self.failure = Failure(tuple(int(index) for index in indices[: max(batch_size, 2)]), batch_size)

    def look_closer(self, actual: Outputs, provider: str) -> None:
        """Beside the truth, and on the first provider accuracy and the errors that the report shows."""
        truth, indices = self.truth, self.truth_indices
        if truth.n_images:
            self.checks += [
                checks.check_distance(name, provider, actual[name][indices], truth.outputs[name], bound)
                for name, bound in self.bounds.items()
            ]
        if self.actual is not None:
            return
        self.actual = actual
        self.outputs = tuple(self._errors(name, actual[name]) for name in self.tolerances)
        self.worst = int(_largest_diff(self.expected, actual).argmax())
        evaluation = self.exhibits.evaluation
        if evaluation.labelled:
            n = len(evaluation)
            logits, answers = self.expected[LOGITS_NAME][:n], actual[LOGITS_NAME][:n]
            self.accuracy = Accuracy(
                split=evaluation.split,
                n=n,
                pytorch=float((logits.argmax(axis=1) == evaluation.labels).mean()),
                onnxruntime=float((answers.argmax(axis=1) == evaluation.labels).mean()),
            )
            ties = checks.count_ties(logits, answers, self.tolerances[LOGITS_NAME])
            self.checks.append(checks.check_accuracy(self.accuracy, self.source.title, ties))

    def _errors(self, name: str, actual: npt.NDArray[np.float32]) -> OutputErrors:
        beside = (actual[self.truth_indices], self.truth.outputs[name]) if self.truth.n_images else None
        return output_errors(name, self.expected[name], actual, self.bounds[name], beside)

    def _describe_worst(self) -> WorstImage | None:
        if self.worst is None or self.actual is None:
            return None
        index, evaluation = self.worst, self.exhibits.evaluation
        expected, actual = (_softmax(side[LOGITS_NAME][index] / self.border.temperature) for side in (self.expected, self.actual))
        likely = list(dict.fromkeys([*np.argsort(-expected)[:_N_SCORES], *np.argsort(-actual)[:_N_SCORES]]))[:_N_SCORES]
        diff = np.abs(self.actual[LOGITS_NAME][index].astype(np.float64) - self.expected[LOGITS_NAME][index]).max()
        known = evaluation.labelled and index < len(evaluation)
        return WorstImage(
            name=self.exhibits.name(index),
            true_label=self.border.labels[evaluation.labels[index]] if known else None,
            max_abs_diff=finite_or_none(diff),
            scores=tuple(
                ClassScore(label=self.border.labels[i], expected=float(expected[i]), actual=float(actual[i])) for i in likely
            ),
        )


def _take(outputs: Outputs, indices: npt.NDArray[np.int64]) -> Outputs:
    return {name: values[indices] for name, values in outputs.items()}


def _largest_diff(expected: Outputs, actual: Outputs) -> npt.NDArray[np.float64]:
    """Of each image, the largest difference of its logits; infinite where one is not finite."""
    diff = np.abs(actual[LOGITS_NAME].astype(np.float64) - expected[LOGITS_NAME]).max(axis=1)
    return np.where(np.isfinite(diff), diff, np.inf)


def _softmax(logits: FloatArray) -> npt.NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        exponentials = np.exp(logits.astype(np.float64) - logits.max())
    probabilities: npt.NDArray[np.float64] = np.nan_to_num(exponentials / exponentials.sum())
    return probabilities
