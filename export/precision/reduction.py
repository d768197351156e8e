"""From a float32 file to one in reduced precision, with what that costs and brings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from convoy.contract.agreement import FloatArray, Tolerance, compare
from convoy.contract.errors import ExportError, UsageError
from convoy.contract.image import ImageSpec
from convoy.contract.manifest import INPUT_NAME, LOGITS_NAME, Precision
from convoy.contract.validation import Check, PrecisionFacts, Speed
from convoy.export.gate.evidence import EvaluationSet, edge_images
from convoy.export.gate.runtime import CPU, CUDA, open_session, run_session, usable_providers
from convoy.export.gate.trial import try_out
from convoy.export.precision.converted import Converted
from convoy.export.precision.emulation import emulate_float16
from convoy.export.precision.half import to_fp16
from convoy.export.precision.integer import to_int8
from convoy.export.precision.judgement import Decisions, check_budget, check_labels, judge
from convoy.export.precision.speed import compare_speed

MAX_ACCURACY_DROP: Final = 0.01
TOLERANCE_FACTOR: Final = {"fp16": 4.0, "int8": 2.0}
"""How many times the measured difference a live server may be off: float16 may be summed in float16 there, where this machine sums
in float32; sums of 8-bit products are exact, and only their rounding to the next step may differ."""
TOLERANCE_FLOOR: Final = {"fp16": 2.0**-10, "int8": 2.0**-8}
"""The least tolerance, as a share of the largest expected value: a step of float16's mantissa, a step of 256."""
_N_MEASURED: Final = 256
_N_BATCH_IMAGES: Final = 64
_MAX_SHARED: Final = 0.1
_LARGEST_BATCH: Final = 64

_Outputs = dict[str, npt.NDArray[np.float32]]
_Found = dict[str, tuple[_Outputs, npt.NDArray[np.int64]]]  # by how it was run: answers, and for which images


@dataclass(frozen=True)
class Reduced:
    """A file in reduced precision, judged.

    Attributes:
        model: The file.
        facts: What the precision costs and brings.
        checks: What was checked; a fault is a failed check.
        tolerances: By output name, how far from PyTorch's float32 goldens a live server's answers may lie.
    """

    model: bytes
    facts: PrecisionFacts
    checks: tuple[Check, ...]
    tolerances: dict[str, Tolerance]


def reduce_precision(
    precision: Precision,
    float32_model: bytes,
    *,
    calibration: npt.NDArray[np.uint8] | None,
    evaluation: EvaluationSet,
    max_accuracy_drop: float = MAX_ACCURACY_DROP,
    max_batch_size: int,
    labels: tuple[str, ...],
    on_progress: Callable[[str], None] = lambda _: None,
) -> Reduced:
    """Convert a float32 file, judge its decisions beside float32's, and measure both.

    Decisions are taken on the fastest execution provider of this machine. Where that is the CPU, which computes float16 in float32,
    they are those of a file that rounds every value between operators to float16 (``emulate_float16``); the verdict on the true
    arithmetic is left to the live server, as an uncovered check.

    The tolerances: for each output, atol = factor * d, at least floor * (the largest float32 value), and rtol = 0; d is the
    largest difference from the float32 file on the evaluation images (goldens are among them; edge images lie outside the ranges
    of int8), with graph optimisations and without (they round at other places), and, for fp16 on the CPU, with every value
    rounded. Factor and floor are ``TOLERANCE_FACTOR`` and ``TOLERANCE_FLOOR``. A decision can change only where two classes lie
    closer than 2 d, so ``compare`` takes every flip of the converted file for a tie inside the tolerance; whether there are too
    many of them is judged by the accuracy drop, not here.

    Args:
        precision: ``fp16`` or ``int8``.
        float32_model: The exported file, validated against its source.
        calibration: Training images, uint8, shape (n, H, W, C): for int8, and to measure how large values become for fp16 (the
            evaluation images where None: no decision depends on their labels there).
        evaluation: Labelled images that neither training nor calibration saw.
        max_accuracy_drop: The budget, as a fraction.
        max_batch_size: The largest batch that the server may form.
        labels: Class names, in the order of the outputs.
        on_progress: Told what is being done.

    Raises:
        UsageError: The evaluation images have no labels, the calibration images are missing, too few or the evaluation images
            themselves, or the budget is no fraction.
        ExportError: The file cannot be converted, or ONNX Runtime cannot run one of the two, or crashes on the converted one.
    """
    check_budget(max_accuracy_drop)
    check_labels(evaluation.labels)
    converted = _convert(precision, float32_model, calibration, evaluation, max_accuracy_drop, on_progress)
    try:
        try_out(converted.model, {INPUT_NAME: _edges(evaluation)}, (1, min(max_batch_size, _LARGEST_BATCH)))
    except ExportError as error:
        raise ExportError(
            f"the {precision} file cannot be served: {error} Export in another precision; float32 of the same network is not "
            "touched by it."
        ) from error
    provider = CUDA if CUDA in usable_providers()[0] else CPU

    on_progress(f"{precision}: decisions on {len(evaluation)} images of {evaluation.split}")
    images = np.concatenate([evaluation.images, _edges(evaluation)])
    batch_size = min(max_batch_size, _LARGEST_BATCH)
    expected = run_session(open_session(float32_model, provider), images, batch_size)
    some = _sample(len(images), _N_MEASURED)
    served = run_session(open_session(converted.model, provider), images, batch_size)
    unoptimised = run_session(open_session(converted.model, provider, "disabled"), images[some], batch_size)
    found = {"as served": (served, np.arange(len(images))), "without graph optimisations": (unoptimised, some)}
    actual = served
    if precision == "fp16" and provider == CPU:
        emulated = emulate_float16(converted.model)
        actual = run_session(open_session(emulated, provider, "disabled"), images, batch_size)
        found["with every value rounded to float16"] = (actual, np.arange(len(images)))

    n = len(evaluation)
    decisions = Decisions(evaluation.labels, _answers(expected)[:n], _answers(actual)[:n])
    tolerances = _tolerances(precision, expected, found, n)
    checks = [
        _check_finite(precision, found, provider),
        *_check_batches(precision, converted.model, evaluation.images, expected, tolerances, max_batch_size, provider),
        judge(decisions, max_accuracy_drop, precision=precision, split=evaluation.split),
        *_check_arithmetic(precision, provider),
    ]
    on_progress(f"{precision}: speed beside float32")
    float32_speed, speed = compare_speed(float32_model, converted.model, evaluation.images, max_batch_size, provider)
    facts = PrecisionFacts(
        precision=precision,
        split=evaluation.split,
        n=n,
        float32_accuracy=decisions.float32_accuracy,
        accuracy=decisions.accuracy,
        accuracy_drop=decisions.drop,
        accuracy_drop_upper=decisions.drop_upper,
        max_accuracy_drop=max_accuracy_drop,
        flips=decisions.flips(labels),
        kept_float32=dict(converted.kept_float32),
        calibration=converted.calibration,
        float32_speed=float32_speed,
        speed=speed,
        remarks=(
            *converted.remarks,
            *_near_ties(expected[LOGITS_NAME][:n], tolerances),
            *_remarks(precision, float32_speed, speed),
        ),
    )
    return Reduced(converted.model, facts, tuple(checks), tolerances)


def _convert(
    precision: Precision,
    model: bytes,
    calibration: npt.NDArray[np.uint8] | None,
    evaluation: EvaluationSet,
    max_accuracy_drop: float,
    on_progress: Callable[[str], None],
) -> Converted:
    if precision == "fp16":
        on_progress("fp16: how large the values become")
        source = evaluation.images if calibration is None or len(calibration) == 0 else calibration
        return to_fp16(model, np.concatenate([source[_sample(len(source), _N_MEASURED)], _edges(evaluation)]))
    if precision != "int8":
        raise UsageError(f"precision: expected fp16 or int8 to convert to, found {precision!r}.")
    if calibration is None:
        raise UsageError(
            "int8 needs training images to measure the ranges on, and there are none: export a run folder whose data set is "
            "at hand, name its folder, or export in fp16 or fp32."
        )
    _check_apart(calibration, evaluation)
    # half the budget: training images are answered with more confidence than others, and the rest is for the confidence bound
    return to_int8(model, calibration, max_disagreement=max_accuracy_drop / 2, on_progress=on_progress)


def _check_apart(calibration: npt.NDArray[np.uint8], evaluation: EvaluationSet) -> None:
    """Evaluation images must not be what the ranges were fitted to; a few doubles are in many data sets."""
    seen = {image.tobytes() for image in calibration}
    shared = sum(image.tobytes() in seen for image in evaluation.images)
    if shared > _MAX_SHARED * len(evaluation):
        raise UsageError(
            f"calibration: expected training images, found {shared} of the {len(evaluation)} images of {evaluation.split} "
            "among them, by which the result is to be judged. Give images that are not in that split."
        )


def _edges(evaluation: EvaluationSet) -> npt.NDArray[np.uint8]:
    height, width, channels = evaluation.images.shape[1:]
    return edge_images(ImageSpec(height_px=height, width_px=width, channels=channels))


def _sample(n: int, count: int) -> npt.NDArray[np.int64]:
    """At most ``count`` indices, spread evenly over ``n``, the last one among them."""
    indices: npt.NDArray[np.int64] = np.unique(np.linspace(0, n - 1, min(n, count)).round().astype(np.int64))
    return indices


def _answers(outputs: _Outputs) -> npt.NDArray[np.int64]:
    answers: npt.NDArray[np.int64] = outputs[LOGITS_NAME].argmax(axis=1).astype(np.int64)
    return answers


def _tolerances(precision: Precision, expected: _Outputs, found: _Found, n: int) -> dict[str, Tolerance]:
    """From the first n images, the evaluation set's."""
    tolerances = {}
    for name, reference in expected.items():
        differences = [_largest((outputs[name].astype(np.float64) - reference[rows])[rows < n]) for outputs, rows in found.values()]
        floor = TOLERANCE_FLOOR[precision] * _largest(reference[:n])
        tolerances[name] = Tolerance(atol=max(TOLERANCE_FACTOR[precision] * max(differences), floor), rtol=0.0)
    return tolerances


def _near_ties(logits: npt.NDArray[np.float32], tolerances: dict[str, Tolerance]) -> list[str]:
    """On how many images a live server may give the second class without leaving the tolerance."""
    ordered = np.sort(logits.astype(np.float64), axis=1)
    near = float((ordered[:, -1] - ordered[:, -2] <= 2 * tolerances[LOGITS_NAME].atol).mean())
    return [f"on {near:.1%} of the images the two likeliest classes lie so close that a live server may swap them"] if near else []


def _largest(values: FloatArray) -> float:
    """The largest finite absolute value: what is not finite fails by itself, and must not make the tolerance infinite."""
    size = np.abs(values[np.isfinite(values)])
    return float(size.max()) if size.size else 0.0


def _check_finite(precision: Precision, found: _Found, provider: str) -> Check:
    counts = {way: sum(int((~np.isfinite(values)).sum()) for values in outputs.values()) for way, (outputs, _) in found.items()}
    return Check(
        name=f"{precision} answers are finite on {provider}",
        verdict="failed" if any(counts.values()) else "passed",
        expected="no NaN, no infinity, on real and on edge images",
        found=", ".join(f"{count} {way}" for way, count in counts.items()),
    )


def _check_batches(
    precision: Precision,
    model: bytes,
    images: npt.NDArray[np.uint8],
    expected: _Outputs,
    tolerances: dict[str, Tolerance],
    max_batch_size: int,
    provider: str,
) -> list[Check]:
    """The same images in batches of other sizes."""
    session = open_session(model, provider)
    rows = _sample(len(images), _N_BATCH_IMAGES)
    checks = []
    for batch_size in sorted({size for size in (1, 7) if size <= max_batch_size}):
        name = f"{precision} in batches of {batch_size} on {provider}"
        wanted = "answers within the tolerances, decisions as in float32 but for ties inside them"
        try:
            actual = run_session(session, images[rows], batch_size)
        except ExportError as error:
            checks.append(Check(name=name, verdict="failed", expected=wanted, found=str(error)))
            continue
        found = {output: compare(expected[output][rows], actual[output], tolerances[output]) for output in tolerances}
        checks.append(
            Check(
                name=name,
                verdict="passed" if all(agreement.passed for agreement in found.values()) else "failed",
                expected=wanted,
                found="; ".join(
                    f"{output}: {agreement.n} images, max_abs_diff {agreement.max_abs_diff:.3g} of {tolerances[output].atol:.3g}, "
                    f"{agreement.n_outside} outside, top-1 differs on {agreement.n_top1_differs}, {len(agreement.ties)} ties"
                    for output, agreement in found.items()
                ),
            )
        )
    return checks


def _check_arithmetic(precision: Precision, provider: str) -> list[Check]:
    if precision != "fp16" or provider != CPU:
        return []
    return [
        Check(
            name="fp16 arithmetic",
            verdict="uncovered",
            expected="decisions as good in the arithmetic of the server",
            found=(
                f"{CPU} computes in float32: the decisions above are those with every value between operators rounded to float16, "
                "and sums in float32; no proof for a GPU"
            ),
            detail="the live server decides: `convoy probe` replays the goldens there, within this report's tolerances",
        )
    ]


def _remarks(precision: Precision, float32_speed: Speed, speed: Speed) -> list[str]:
    throughput = speed.throughput_ips / float32_speed.throughput_ips
    latency = speed.latency_ms / float32_speed.latency_ms
    where = f"{speed.provider}, batches of {speed.batch_size}"
    remarks = []
    if throughput < 1:
        remarks.append(f"{precision} is slower here: {throughput:.2f} times float32's throughput ({where})")
    if latency > 1:
        remarks.append(f"{precision} is slower here on single images: {latency:.2f} times float32's latency ({speed.provider})")
    if precision == "fp16" and speed.provider == CPU:
        remarks.append(f"{CPU} computes fp16 in float32: its speed says nothing about a GPU")
    if precision == "int8" and speed.provider != CPU:
        remarks.append(f"{speed.provider} has few 8-bit kernels: most layers are computed in float32 after DequantizeLinear")
    if precision == "int8":
        remarks.append(
            "x86 CPUs without VNNI instructions can saturate sums of 8-bit products, which this machine need not show: "
            "`convoy probe` compares the live server"
        )
    return remarks
