"""Single checks: each looks at one thing and says what it expected and what it found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx

from convoy.contract.agreement import Agreement, FloatArray, Tolerance, compare
from convoy.contract.errors import ExportError
from convoy.contract.manifest import LOGITS_NAME, Accuracy, TensorSpec
from convoy.contract.validation import Check
from convoy.export.gate.bounds import Bound, rms
from convoy.export.gate.evidence import MIN_IMAGES
from convoy.export.gate.source import Outputs
from convoy.export.graph.targets import MAX_IR_VERSION, MAX_OPSET_VERSION, check_targets

if TYPE_CHECKING:
    import onnxruntime


_Tensor = tuple[str, str, tuple[int | str, ...]]
_TYPES: Final = {"UINT8": "tensor(uint8)", "INT64": "tensor(int64)", "FP32": "tensor(float)"}
"""ONNX Runtime's names of the datatypes at the borders of Convoy's exports."""


def check_file(model: bytes) -> Check:
    """Whether every target server can load the file, as far as reading it tells."""
    name = "file loads everywhere"
    expected = f"ONNX's full check passes, opset <= {MAX_OPSET_VERSION}, IR <= {MAX_IR_VERSION}, standard operators"
    try:
        proto = onnx.load_model_from_string(model)
        check_targets(proto)
    except ExportError as error:
        return Check(name=name, verdict="failed", expected=expected, found=str(error))
    except Exception as error:  # noqa: BLE001 protobuf's parser and onnx raise several kinds for a damaged file
        return Check(name=name, verdict="failed", expected=expected, found=f"not an ONNX file: {error}")
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    found = f"opset {opset}, IR {proto.ir_version}, {len(proto.graph.node)} nodes"
    return Check(name=name, verdict="passed", expected=expected, found=found)


def check_evidence(n: int, what: str = "images") -> Check:
    """Whether there are images (or fields) enough to decide on."""
    enough = n >= MIN_IMAGES
    return Check(
        name="enough evidence",
        verdict="passed" if enough else "undecided",
        expected=f"at least {MIN_IMAGES} real {what}",
        found=f"{n} {what}",
        detail="" if enough else f"undecided: needs {MIN_IMAGES} {what} that the network was not trained on",
    )


def check_scores(title: str, expected: Outputs) -> Check:
    """Whether the source gives finite logits: with a softmax of its own it would be served with the softmax of a softmax."""
    logits = expected[LOGITS_NAME]
    name = f"{title} gives finite logits"
    if n_broken := int((~np.isfinite(logits)).any(axis=1).sum()):
        found = f"NaN or infinity on {n_broken} of {len(logits)} images"
        return Check(name=name, verdict="failed", expected="finite scores before the softmax", found=found)
    probabilities = bool((logits >= 0).all() and np.allclose(logits.sum(axis=1), 1, atol=1e-3))
    return Check(
        name=name,
        verdict="failed" if probabilities else "passed",
        expected="finite scores before the softmax",
        found="probabilities: each row is positive and sums to 1" if probabilities else f"finite on all {len(logits)} images",
        detail="leave the network's last softmax out: the exported graph has one" if probabilities else "",
    )


def check_border(session: onnxruntime.InferenceSession, tensors: Sequence[TensorSpec], provider: str) -> Check:
    """Whether names, datatypes and dims are those of the manifest, with a batch axis that is free.

    Args:
        session: The file.
        tensors: The manifest's, the inputs first. An axis of any size is to be a free one.
        provider: What runs the file.
    """
    expected: list[_Tensor] = [(one.name, _TYPES[one.datatype], ("batch", *one.dims)) for one in tensors]
    found: list[_Tensor] = [
        (value.name, value.type, tuple(_dim(axis, size) for axis, size in enumerate(value.shape)))
        for value in (*session.get_inputs(), *session.get_outputs())
    ]
    return Check(
        name=f"names, datatypes, dims, dynamic batch on {provider}",
        verdict="passed" if found == expected else "failed",
        expected=_describe(expected),
        found=_describe(found),
    )


def _dim(axis: int, size: int | str | None) -> int | str:
    if isinstance(size, int):
        return size
    return -1 if axis else "batch"


def _describe(tensors: Sequence[_Tensor]) -> str:
    return "; ".join(f"{name} {datatype} [{', '.join(map(str, shape))}]" for name, datatype, shape in tensors)


def name_row(row: int) -> str:
    """What an image is called where nothing but its place is known."""
    return f"row {row}"


def check_outputs(
    where: str, expected: Outputs, actual: Outputs, tolerances: dict[str, Tolerance], name_image: Callable[[int], str] = name_row
) -> list[Check]:
    """Compare all outputs of one run, a check for each.

    Args:
        where: Which images, on what.
        expected: The source's answers.
        actual: The file's.
        tolerances: By output name.
        name_image: What the image of a row is called.
    """
    checks = []
    for name, tolerance in tolerances.items():
        try:
            checks.append(check_agreement(name, where, compare(expected[name], actual[name], tolerance), tolerance, name_image))
        except (KeyError, ValueError) as error:
            found = f"no such output: {error}" if isinstance(error, KeyError) else str(error)
            checks.append(Check(name=f"{name}, {where}", verdict="failed", expected="one row of scores an image", found=found))
    return checks


def check_agreement(
    name: str, where: str, agreement: Agreement, tolerance: Tolerance, name_image: Callable[[int], str] = name_row
) -> Check:
    """What a comparison of one output says as a check.

    Args:
        name: The output.
        where: Which images, on what.
        agreement: What was found.
        tolerance: What passes.
        name_image: What the image of a row is called.
    """
    ties = f"; top-1 ties inside the tolerance: {', '.join(map(name_image, agreement.ties))}" if agreement.ties else ""
    worst = "" if agreement.passed or agreement.worst_row is None else f"worst: {name_image(agreement.worst_row)}"
    return Check(
        name=f"{name}, {where}",
        verdict="passed" if agreement.passed else "failed",
        expected=f"finite, |actual - expected| <= {tolerance.atol:.3g} + {tolerance.rtol:.3g} |expected|, top-1 equal",
        found=(
            f"{agreement.n} images, max_abs_diff {agreement.max_abs_diff:.3g}, {agreement.n_nonfinite} not finite, "
            f"{agreement.n_outside} outside, top-1 differs on {agreement.n_top1_differs}{ties}"
        ),
        detail=worst,
        limit=tolerance.atol,
        measured=agreement.max_abs_diff if agreement.n_nonfinite == 0 else None,
    )


def check_values(
    name: str, where: str, agreement: Agreement, tolerance: Tolerance, name_image: Callable[[int], str] = name_row
) -> Check:
    """What a comparison of one output says as a check where its elements are no scores of classes.

    Args:
        name: The output.
        where: Which images, on what.
        agreement: What was found.
        tolerance: What passes; 0 of whole numbers.
        name_image: What the image of a row is called.
    """
    exact = tolerance.atol == tolerance.rtol == 0
    worst = "" if agreement.passed or agreement.worst_row is None else f"worst: {name_image(agreement.worst_row)}"
    return Check(
        name=f"{name}, {where}",
        verdict="passed" if agreement.passed else "failed",
        expected="equal" if exact else f"finite, |actual - expected| <= {tolerance.atol:.3g} + {tolerance.rtol:.3g} |expected|",
        found=(
            f"{agreement.n} answers, max_abs_diff {agreement.max_abs_diff:.3g}, {agreement.n_nonfinite} not finite, "
            f"{agreement.n_outside} outside"
        ),
        detail=worst,
        limit=None if exact else tolerance.atol,
        measured=None if exact or agreement.n_nonfinite else agreement.max_abs_diff,
    )


def check_distance(name: str, provider: str, actual: FloatArray, truth: FloatArray, bound: Bound) -> Check:
    """Whether the file is about as near to the float64 truth as the source's own float32.

    Args:
        name: The output.
        provider: What ran the file.
        actual: The file's answers, shape (n, K).
        truth: The float64 answers, the same shape.
        bound: Derived from the source's own distance; it has an ``rms_limit``.
    """
    limit, own = bound.rms_limit, bound.own_rms_error
    error = rms(actual.astype(np.float64) - truth)
    near = limit is not None and error <= limit  # NaN is not
    return Check(
        name=f"{name} beside float64, {provider}",
        verdict="passed" if near else "failed",
        expected=f"a root mean square distance from float64 of {limit:.3g} at most; the source's own float32 has {own:.3g}",
        found=f"{error:.3g} over {len(truth)} images",
        limit=limit,
        measured=error if np.isfinite(error) else None,
    )


def check_accuracy(accuracy: Accuracy, title: str, n_ties: int, what: str = "images") -> Check:
    """Whether as many images (or fields) are read rightly, but for ties."""
    moved = round(abs(accuracy.pytorch - accuracy.onnxruntime) * accuracy.n)
    return Check(
        name=f"accuracy on {accuracy.split}",
        verdict="passed" if moved <= n_ties else "failed",
        expected=f"{title}'s {accuracy.pytorch:.4%}" + (f", but for {n_ties} ties" if n_ties else ""),
        found=f"{accuracy.onnxruntime:.4%} of {accuracy.n} {what}",
    )


def not_executed(provider: str, reason: str) -> Check:
    """An execution provider that servers have and this machine lacks."""
    return Check(
        name=f"execution on {provider}",
        verdict="uncovered",
        expected="the same answers",
        found=reason,
        detail="`convoy probe` replays the goldens on a server that has it",
    )


def count_ties(expected: FloatArray, actual: FloatArray, tolerance: Tolerance) -> int:
    """How many images decide another way because the source itself lies between two classes."""
    return len(compare(expected, actual, tolerance).ties)
