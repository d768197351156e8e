"""How far one output lies from the truth: what the report shows."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from convoy.contract.agreement import FloatArray
from convoy.contract.validation import OutputErrors
from convoy.export.gate.bounds import Bound, rms

_HISTOGRAM_LOG10_EDGES: Final = tuple(np.arange(-12, 4.5, 0.5).tolist())


def output_errors(
    name: str, expected: FloatArray, actual: FloatArray, bound: Bound, beside_truth: tuple[FloatArray, npt.NDArray[Any]] | None
) -> OutputErrors:
    """The errors of one output.

    Args:
        name: Its name.
        expected: The source's float32 answers, a row for each image.
        actual: The file's, the same shape.
        bound: What it is held to.
        beside_truth: Some of the file's answers, and the float64 truth of the same; None without a truth.
    """
    diff = np.abs(actual.astype(np.float64) - expected)
    finite = diff[np.isfinite(diff)]
    edges = _HISTOGRAM_LOG10_EDGES
    counts = np.histogram(np.clip(np.log10(np.maximum(finite, 1e-300)), edges[0], edges[-1]), edges)[0]
    errors = OutputErrors(
        name=name,
        n_images=len(actual),
        max_abs_diff=float(finite.max(initial=0)),
        histogram_log10_edges=edges,
        histogram_counts=tuple(int(count) for count in counts),
    )
    if beside_truth is None:
        return errors
    answers, truth = beside_truth
    error = np.abs(answers - truth)
    return errors.model_copy(
        update={
            "n_truth_images": len(truth),
            "max_error": finite_or_none(error.max()),
            "rms_error": finite_or_none(rms(error)),
            "own_max_error": bound.own_max_error,
            "own_rms_error": bound.own_rms_error,
        }
    )


def finite_or_none(value: float) -> float | None:
    """The value for JSON, which has no NaN and no infinity."""
    return float(value) if np.isfinite(value) else None
