"""The gate of a reader: run both sides on fields of all widths, check everything, write down what was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from convoy.contract.agreement import Tolerance, compare_values
from convoy.contract.errors import ExportError
from convoy.contract.goldens import Arrays
from convoy.contract.manifest import Accuracy
from convoy.contract.reading import (
    CHARACTERS_NAME,
    CONFIDENCE_NAME,
    N_CHARACTERS_NAME,
    POSITIONS_NAME,
    POSTERIORS_NAME,
)
from convoy.contract.validation import Check, ClassScore, OutputErrors, WorstImage
from convoy.export.gate import checks
from convoy.export.gate.bounds import Bound, derive_bound, follow_log_posteriors, follow_sigmoid
from convoy.export.gate.errors import finite_or_none, output_errors
from convoy.export.gate.gate import N_SAMPLE, Findings, Progress
from convoy.export.gate.provider_runs import ODD_BATCH_SIZE, ProviderRuns, shuffled
from convoy.export.gate.runtime import run_session
from convoy.export.reading.border import ReadingBorder
from convoy.export.reading.checks import check_amounts, check_answers, check_calibration, check_form
from convoy.export.reading.evidence import FieldExhibits, FieldSet
from convoy.export.reading.source import Answers, ReaderSource, same_amounts

if TYPE_CHECKING:
    import onnxruntime

_FIGURES: Final = (POSTERIORS_NAME, CONFIDENCE_NAME)
_WHOLE: Final = (CHARACTERS_NAME, N_CHARACTERS_NAME, POSITIONS_NAME)
_MAX_WRONG: Final = 2
"""Of so many fields with wrong amounts the rest is not looked at in float64: that is no rounding."""

Answering = Callable[[Arrays], Answers]


def run_reading_gate(
    model: bytes, source: ReaderSource, evidence: FieldSet, border: ReadingBorder, *, on_progress: Progress = lambda _: None
) -> Findings:
    """Compare an ONNX file with the reader that it came from.

    Args:
        model: The file's bytes.
        source: Where the expected answers come from.
        evidence: Real fields, with amounts where they are known.
        border: What the manifest says of the file's border.
        on_progress: Told what is being done.

    Returns:
        The checks with what they found. A fault is a failed check, not an exception.

    Raises:
        ExportError: The source cannot answer.
    """
    return _Gate(model, source, FieldExhibits.of(evidence, border.image), border, on_progress).run()


class _Gate(ProviderRuns):
    """One run of the gate: the source is asked at the start, then checks pile up."""

    noun = "fields"
    in_company = "mixed widths, on wider images"

    def __init__(self, model: bytes, source: ReaderSource, exhibits: FieldExhibits, border: ReadingBorder, say: Progress) -> None:
        super().__init__(model, border, say)
        self.source, self.exhibits, self.border = source, exhibits, border
        self.accuracy: Accuracy | None = None
        self.outputs: tuple[OutputErrors, ...] = ()
        self.actual: Answers | None = None
        self.worst: int | None = None
        self.best: dict[int, npt.NDArray[np.float64]] = {}  # of fields that were judged: what the float64 answers score

        say(f"{source.title} on {len(exhibits.evidence)} fields")
        self.expected = self._ask(source.float32, np.arange(len(exhibits)), border.max_batch_size)
        self.indices = exhibits.sample(N_SAMPLE)
        self.truth = self._derive_bounds()
        whole = dict.fromkeys(_WHOLE, Tolerance(atol=0, rtol=0))
        self.tolerances = {**whole, **{name: bound.tolerance for name, bound in self.bounds.items()}}

    def _ask(self, answer: Answering, indices: npt.NDArray[np.int64], batch_size: int, *, mixed: bool = False) -> Answers:
        """All answers to some fields, in the order of ``indices``."""
        found: dict[str, npt.NDArray[np.generic]] = {}
        for rows, inputs in self.exhibits.batches(indices, batch_size, mixed=mixed):
            for name, values in answer(inputs).items():
                if values.shape[:1] != rows.shape:
                    raise ExportError(f"expected {name} with a row for each of {len(rows)} fields, found shape {values.shape}.")
                everything = found.setdefault(name, np.zeros((len(indices), *values.shape[1:]), values.dtype))
                if everything.shape[1:] != values.shape[1:]:
                    raise ExportError(f"expected {name} of one shape for all fields, found {values.shape} too.")
                everything[rows] = values
        return found

    def _derive_bounds(self) -> Answers:
        """The truth in float64 for a sample of the fields, and what float32 may miss it by."""
        self.say(f"{self.source.title} in float64 on {len(self.indices)} fields, for the tolerances")
        truth = self._ask(self.source.float64, self.indices, self.border.max_batch_size)
        beside = _take(self.expected, self.indices)
        self.alike = same_amounts(truth, beside)  # figures of other amounts say nothing of rounding
        self.bounds: dict[str, Bound] = {}
        rows = self.alike if self.alike.any() else np.ones_like(self.alike)
        for name in _FIGURES:
            self.bounds[name] = derive_bound(beside[name][rows], truth[name][rows] if self.alike.any() else None)
        posteriors = self.bounds[POSTERIORS_NAME], beside[POSTERIORS_NAME][rows], truth[POSTERIORS_NAME][rows]
        self.bounds[POSTERIORS_NAME] = follow_log_posteriors(*posteriors)
        self.bounds[CONFIDENCE_NAME] = follow_sigmoid(self.bounds[CONFIDENCE_NAME])
        # the scores of one and the same paths, those of the float32 answers, by either precision
        single, double = (self._path_scores(self.indices, beside, double=double) for double in (False, True))
        real = np.isfinite(single) & np.isfinite(double)
        exact = Tolerance(atol=0, rtol=0)
        self.path_tolerance = derive_bound(single[real].astype(np.float32), double[real]).tolerance if real.any() else exact
        return truth

    def _path_scores(self, indices: npt.NDArray[np.int64], answers: Answers, *, double: bool = True) -> npt.NDArray[np.float64]:
        scores = np.zeros(answers[POSTERIORS_NAME].shape)
        for rows, inputs in self.exhibits.batches(indices, self.border.max_batch_size):
            scores[rows] = self.source.path_scores(inputs, _take(answers, rows), double=double)
        return scores

    def run(self) -> Findings:
        n = len(self.exhibits.evidence)
        self.checks += [
            checks.check_file(self.model),
            checks.check_evidence(n, "fields"),
            check_answers(self.source.title, self.expected),
        ]
        self._check_source()
        self.run_providers(len(self.exhibits), self.indices)
        return Findings(
            tuple(self.checks),
            self.tolerances,
            self.accuracy,
            {name: values[:n] for name, values in self.expected.items()},
            self.outputs,
            self._describe_worst(),
            self.worst,
        )

    def _check_source(self) -> None:
        """A reader whose answers depend on chance, on its company or on what stands right of a field cannot be served."""
        title, size = self.source.title, min(ODD_BATCH_SIZE, self.border.max_batch_size)
        some = shuffled(self.indices)
        moved = self._ask(self.source.float32, some, size, mixed=True)
        self._compare_answers(f"{title} in other company, on wider images", some, moved)
        first = some[:size]
        once, again = (self._ask(self.source.float32, first, size) for _ in range(2))
        where = f"{title} a second time"
        differs = np.flatnonzero(~same_amounts(once, again)).tolist()
        self.checks.append(check_amounts(where, len(first), differs, (), self._namer(first)))
        for name in _FIGURES:
            floor = derive_bound(once[name], once[name].astype(np.float64)).tolerance
            agreement = compare_values(once[name], again[name], floor)
            self.checks.append(checks.check_values(name, where, agreement, floor, self._namer(first)))

    def compare(
        self,
        session: onnxruntime.InferenceSession,
        indices: npt.NDArray[np.int64],
        batch_size: int,
        where: str,
        *,
        company: bool,
    ) -> Answers | None:
        """Run some fields, check the answers; None where there are none for all of them."""
        try:
            actual = self._ask(lambda inputs: run_session(session, inputs, batch_size), indices, batch_size, mixed=company)
        except ExportError as error:
            found = str(error)
            self.checks.append(Check(name=f"answers, {where}", verdict="failed", expected="one for every field", found=found))
            return None
        if malformed := check_form(where, _take(self.expected, indices), actual):
            self.checks.append(malformed)
            return None
        self._compare_answers(where, indices, actual)
        return actual

    def _compare_answers(self, where: str, indices: npt.NDArray[np.int64], actual: Answers) -> None:
        """Check amounts and figures."""
        expected = dict(_take(self.expected, indices))
        name_row = self._namer(indices)
        others = np.flatnonzero(~same_amounts(expected, actual))
        ties = self._ties(indices, actual, others)
        differs = [int(row) for row in others if row not in ties]
        told = self._told(_take(expected, others[:1]), _take(actual, others[:1])) if differs and differs[0] == others[0] else ""
        self.checks.append(check_amounts(where, len(indices), differs, ties, name_row, told))
        for row in ties:  # of the amounts that the file gives, the source's figures are known from float64
            figures = self.source.worth(self.exhibits.inputs(indices[[row]]), _take(actual, np.array([row])))
            for name in _FIGURES:
                expected[name] = expected[name].copy()
                expected[name][row] = figures[name][0]
        for name in _FIGURES:
            agreement = compare_values(expected[name], actual[name], self.tolerances[name])
            self.checks.append(checks.check_values(name, where, agreement, self.tolerances[name], name_row))

    def _ties(self, indices: npt.NDArray[np.int64], actual: Answers, others: npt.NDArray[np.int64]) -> list[int]:
        """Rows whose amounts are others than the source's, but score in float64 what the best of that rank do."""
        ties: list[int] = []
        for place, row in enumerate(others.tolist()):
            if place - len(ties) >= _MAX_WRONG:
                break
            index = int(indices[row])
            inputs, answer = self.exhibits.inputs([index]), _take(actual, np.array([row]))
            if index not in self.best:
                self.best[index] = self.source.path_scores(inputs, self.source.float64(inputs), double=True)[0]
            best, found = self.best[index], self.source.path_scores(inputs, answer, double=True)[0]
            texts = self.source.texts(answer)[0]
            there = np.isfinite(best)
            if (np.isfinite(found) != there).any() or len(set(texts)) < there.sum():
                continue  # not amounts of the grammar, each once, as many as there are
            if (np.abs(found - best)[there] <= 2 * self.path_tolerance.allowed(best[there])).all():
                ties.append(row)
        return ties

    def _told(self, expected: Answers, actual: Answers) -> str:
        """The likeliest amounts of one field, on either side."""
        sides = [self.source.texts(side)[0][0] for side in (expected, actual)]
        if sides[0] != sides[1]:
            return f"{sides[1]!r} instead of {sides[0]!r}"
        return f"{sides[0]!r} on both sides, but in other places, or other amounts behind it"

    def _namer(self, indices: npt.NDArray[np.int64]) -> Callable[[int], str]:
        return lambda row: self.exhibits.name(int(indices[row]))

    def look_closer(self, actual: Answers, provider: str) -> None:
        """Beside the truth, and on the first provider accuracy and the errors that the report shows."""
        rows = self.alike & same_amounts(self.truth, _take(actual, self.indices))
        beside = {name: (actual[name][self.indices][rows], self.truth[name][rows]) for name in _FIGURES}
        self.checks.append(check_calibration(provider, actual, self.source.calibrated, self.exhibits.name))
        if rows.any():
            self.checks += [checks.check_distance(name, provider, *beside[name], self.bounds[name]) for name in _FIGURES]
        if self.actual is not None:
            return
        self.actual = actual
        self.outputs = tuple(
            output_errors(
                name, self.expected[name], actual[name], self.bounds[name],
                beside[name] if rows.any() and self.bounds[name].rms_limit is not None else None,
            )
            for name in _FIGURES
        )  # fmt: skip
        self.worst = self._worst(actual)
        known = self.exhibits.evidence.labelled
        if len(known):
            right = [self._right(side, known) for side in (self.expected, actual)]
            self.accuracy = Accuracy(
                split=self.exhibits.evidence.split, n=len(known), pytorch=right[0].mean(), onnxruntime=right[1].mean()
            )
            others = np.flatnonzero(~same_amounts(self.expected, actual))
            n_ties = len(set(self._ties(np.arange(len(self.exhibits)), actual, others)) & set(known.tolist()))
            self.checks.append(checks.check_accuracy(self.accuracy, self.source.title, n_ties, "fields"))

    def _right(self, answers: Answers, known: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        texts = self.source.texts(_take(answers, known))
        return np.array([self.exhibits.evidence.right(int(i), row[0]) for i, row in zip(known, texts, strict=True)])

    def _worst(self, actual: Answers) -> int:
        """The field with other amounts, else the one with the largest difference of its figures; what is not finite first."""
        diff = np.max([np.abs(actual[name].astype(np.float64) - self.expected[name]).max(axis=1) for name in _FIGURES], axis=0)
        diff = np.where(np.isfinite(diff), diff, np.inf)
        return int(np.where(same_amounts(self.expected, actual), diff, np.inf).argmax())

    def _describe_worst(self) -> WorstImage | None:
        if self.worst is None or self.actual is None:
            return None
        index, evidence = self.worst, self.exhibits.evidence
        sides = [_take(side, np.array([index])) for side in (self.expected, self.actual)]
        posteriors = [
            dict(zip(self.source.texts(side)[0], np.nan_to_num(side[POSTERIORS_NAME][0]).tolist(), strict=True)) for side in sides
        ]
        diff = max(float(np.abs(sides[1][name].astype(np.float64) - sides[0][name]).max()) for name in _FIGURES)
        return WorstImage(
            name=self.exhibits.name(index),
            true_label=(evidence.texts[index] or None) if index < len(evidence) else None,
            max_abs_diff=finite_or_none(diff),
            scores=tuple(
                ClassScore(label=text or "(none)", expected=posteriors[0].get(text, 0.0), actual=posteriors[1].get(text, 0.0))
                for text in {**posteriors[0], **posteriors[1]}
            ),
        )


def _take(answers: Answers, rows: npt.NDArray[np.int64]) -> Answers:
    return {name: values[rows] for name, values in answers.items()}
