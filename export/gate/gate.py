"""The gate itself: run both sides, check everything, write down what was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx

from convoy.contract.agreement import Agreement, Tolerance, compare
from convoy.contract.errors import ExportError
from convoy.contract.image import ImageSpec
from convoy.contract.manifest import INPUT_NAME, LOGITS_NAME, PROBABILITIES_NAME, Accuracy
from convoy.contract.validation import Check
from convoy.export.gate.evidence import MIN_IMAGES, N_SMALL_BATCH_IMAGES, EvaluationSet, edge_images
from convoy.export.gate.reference import Reference, derive_tolerances, run_pytorch
from convoy.export.gate.runtime import open_session, run_session, usable_providers
from convoy.export.graph.targets import MAX_IR_VERSION, MAX_OPSET_VERSION, check_targets

if TYPE_CHECKING:
    import onnxruntime
    from torch import nn

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Findings:
    """What the gate found.

    Attributes:
        checks: All checks in the order in which they ran.
        tolerances: By output name.
        accuracy: Of both sides on the evaluation set; None where ONNX Runtime gave no answers.
        reference: PyTorch's answers for the evaluation set.
    """

    checks: tuple[Check, ...]
    tolerances: dict[str, Tolerance]
    accuracy: Accuracy | None
    reference: Reference


def run_gate(
    model: bytes,
    classifier: nn.Module,
    evaluation: EvaluationSet,
    *,
    image: ImageSpec,
    n_classes: int,
    max_batch_size: int,
    on_progress: Progress = lambda _: None,
) -> Findings:
    """Compare an ONNX file with the network it came from.

    Args:
        model: The file's bytes.
        classifier: The network, on the CPU, in evaluation mode; uint8 (N, H, W, C) to logits (N, K).
        evaluation: Real images with labels.
        image: The model's image.
        n_classes: K.
        max_batch_size: The largest batch that the server may form.
        on_progress: Told what is being done.

    Returns:
        The checks with what they found. A fault is a failed check, not an exception.
    """
    on_progress(f"PyTorch on {len(evaluation)} images")
    images = np.concatenate([evaluation.images, edge_images(image)])
    reference = run_pytorch(classifier, images, max_batch_size)
    on_progress("PyTorch in float64, for the tolerances")
    tolerances = derive_tolerances(classifier, images, reference, max_batch_size)
    n = len(evaluation)
    of_split = Reference(reference.logits[:n], reference.probabilities[:n])

    checks = [_check_file(model), _check_evidence(n), _check_logits(reference.logits)]
    accuracy = None
    for provider in usable_providers():
        try:
            session = open_session(model, provider)
        except ExportError as error:
            checks.append(Check(name=f"loads on {provider}", verdict="failed", expected="a session", found=str(error)))
            continue
        checks.append(_check_border(session, image, n_classes, provider))
        if checks[-1].verdict == "failed":
            continue
        for batch_size in _batch_sizes(max_batch_size):
            on_progress(f"ONNX Runtime on {provider}, batches of {batch_size}")
            subset = slice(None) if batch_size == max_batch_size else _spread(len(images), N_SMALL_BATCH_IMAGES)
            found = _compare_batches(session, images[subset], reference, subset, tolerances, batch_size, provider)
            checks.extend(found.checks)
            if batch_size == max_batch_size and found.actual is not None and accuracy is None:
                accuracy = _accuracy(evaluation, of_split, found.actual[LOGITS_NAME][:n])
    if accuracy is not None:
        checks.append(_check_accuracy(accuracy))
    return Findings(tuple(checks), tolerances, accuracy, of_split)


def _batch_sizes(max_batch_size: int) -> list[int]:
    return sorted({size for size in (1, 7) if size < max_batch_size} | {max_batch_size})


def _spread(n: int, count: int) -> npt.NDArray[np.int64]:
    """At most ``count`` indices, spread evenly over ``n``, the last one (an edge image) among them."""
    return np.unique(np.linspace(0, n - 1, min(n, count)).round().astype(np.int64))


def _check_file(model: bytes) -> Check:
    expected = f"ONNX's full check passes, opset <= {MAX_OPSET_VERSION}, IR <= {MAX_IR_VERSION}, standard operators"
    try:
        proto = onnx.load_model_from_string(model)
        check_targets(proto)
    except ExportError as error:
        return Check(name="file loads everywhere", verdict="failed", expected=expected, found=str(error))
    except Exception as error:  # noqa: BLE001 protobuf's parser and onnx raise several kinds for a damaged file
        return Check(name="file loads everywhere", verdict="failed", expected=expected, found=f"not an ONNX file: {error}")
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    found = f"opset {opset}, IR {proto.ir_version}, {len(proto.graph.node)} nodes"
    return Check(name="file loads everywhere", verdict="passed", expected=expected, found=found)


def _check_evidence(n: int) -> Check:
    enough = n >= MIN_IMAGES
    return Check(
        name="enough evidence",
        verdict="passed" if enough else "undecided",
        expected=f"at least {MIN_IMAGES} real images",
        found=f"{n} images",
        detail="" if enough else f"undecided: needs {MIN_IMAGES} images of the test split.",
    )


def _check_logits(logits: npt.NDArray[np.float32]) -> Check:
    """A network that ends in a softmax of its own would be served with the softmax of a softmax."""
    probabilities = bool((logits >= 0).all() and np.allclose(logits.sum(axis=1), 1, atol=1e-3))
    return Check(
        name="logits are logits",
        verdict="failed" if probabilities else "passed",
        expected="scores before the softmax",
        found="probabilities: each row is positive and sums to 1" if probabilities else "scores",
        detail="leave the network's last softmax out: the exported graph has one" if probabilities else "",
    )


def _check_border(session: onnxruntime.InferenceSession, image: ImageSpec, n_classes: int, provider: str) -> Check:
    expected: list[tuple[str, str, list[int | str]]] = [
        (INPUT_NAME, "tensor(uint8)", ["batch", *image.dims]),
        (LOGITS_NAME, "tensor(float)", ["batch", n_classes]),
        (PROBABILITIES_NAME, "tensor(float)", ["batch", n_classes]),
    ]
    found: list[tuple[str, str, list[int | str]]] = [
        (value.name, value.type, ["batch" if not isinstance(value.shape[0], int) else value.shape[0], *value.shape[1:]])
        for value in (*session.get_inputs(), *session.get_outputs())
    ]
    return Check(
        name=f"names, datatypes, dims, dynamic batch on {provider}",
        verdict="passed" if found == expected else "failed",
        expected=_describe(expected),
        found=_describe(found),
    )


def _describe(tensors: list[tuple[str, str, list[int | str]]]) -> str:
    return "; ".join(f"{name} {datatype} [{', '.join(map(str, shape))}]" for name, datatype, shape in tensors)


@dataclass(frozen=True)
class _BatchFindings:
    checks: list[Check]
    actual: dict[str, npt.NDArray[np.float32]] | None


def _compare_batches(
    session: onnxruntime.InferenceSession,
    images: npt.NDArray[np.uint8],
    reference: Reference,
    subset: slice | npt.NDArray[np.int64],
    tolerances: dict[str, Tolerance],
    batch_size: int,
    provider: str,
) -> _BatchFindings:
    where = f"batches of {batch_size}, {provider}"
    try:
        actual = run_session(session, images, batch_size)
    except ExportError as error:
        check = Check(name=f"answers, {where}", verdict="failed", expected="an answer for every image", found=str(error))
        return _BatchFindings([check], None)
    checks = []
    for name, expected in reference.outputs().items():
        try:
            agreement = compare(expected[subset], actual[name], tolerances[name])
        except ValueError as error:
            checks.append(Check(name=f"{name}, {where}", verdict="failed", expected="one row an image", found=str(error)))
            continue
        checks.append(check_agreement(name, where, agreement, tolerances[name]))
    return _BatchFindings(checks, actual if all(check.verdict == "passed" for check in checks) else None)


def check_agreement(name: str, where: str, agreement: Agreement, tolerance: Tolerance) -> Check:
    """What a comparison of one output says as a check.

    Args:
        name: The output.
        where: Which batches, on what.
        agreement: What was found.
        tolerance: What passes.
    """
    ties = f"; top-1 ties inside the tolerance at rows {list(agreement.ties)}" if agreement.ties else ""
    return Check(
        name=f"{name}, {where}",
        verdict="passed" if agreement.passed else "failed",
        expected=f"finite, |actual - expected| <= {tolerance.atol:.3g} + {tolerance.rtol:.3g} |expected|, top-1 equal",
        found=(
            f"{agreement.n} images, max_abs_diff {agreement.max_abs_diff:.3g}, {agreement.n_nonfinite} not finite, "
            f"{agreement.n_outside} outside, top-1 differs on {agreement.n_top1_differs}{ties}"
        ),
        detail="" if agreement.passed else f"worst at row {agreement.worst_row}",
    )


def _accuracy(evaluation: EvaluationSet, reference: Reference, actual: npt.NDArray[np.float32]) -> Accuracy:
    return Accuracy(
        split=evaluation.split,
        n=len(evaluation),
        pytorch=float((reference.logits.argmax(axis=1) == evaluation.labels).mean()),
        onnxruntime=float((actual.argmax(axis=1) == evaluation.labels).mean()),
    )


def _check_accuracy(accuracy: Accuracy) -> Check:
    # Top-1 agrees on every image but ties, which the agreement checks list; a tie may change accuracy by one image each.
    return Check(
        name=f"accuracy on {accuracy.split}",
        verdict="passed" if abs(accuracy.pytorch - accuracy.onnxruntime) * accuracy.n < 1.5 else "failed",
        expected=f"PyTorch's {accuracy.pytorch:.4%}, but for ties",
        found=f"{accuracy.onnxruntime:.4%} of {accuracy.n} images",
    )
