"""Single checks of a reader: its amounts, and how sure it is of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from convoy.contract.reading import CHARACTERS_NAME, CONFIDENCE_NAME, N_CHARACTERS_NAME, OUTPUT_NAMES, POSTERIORS_NAME
from convoy.contract.validation import Check
from convoy.export.reading.source import Answers

_EPS: Final = float(np.finfo(np.float32).eps)


def check_answers(title: str, expected: Answers) -> Check:
    """Whether the source gives amounts and finite figures: the likeliest amount has a posterior above 0 on some field."""
    broken = sum(int((~np.isfinite(values.astype(np.float64))).sum()) for values in expected.values())
    posteriors = expected[POSTERIORS_NAME]
    outside = int((~((posteriors >= 0) & (posteriors <= 1))).sum())
    n_read = int((posteriors[:, 0] > 0).sum())
    return Check(
        name=f"{title} gives amounts",
        verdict="passed" if broken == outside == 0 and n_read else "failed",
        expected="finite figures, posteriors from 0 to 1, an amount on some field at least",
        found=f"{broken} figures not finite, {outside} posteriors outside, amounts on {n_read} of {len(posteriors)} fields",
    )


def check_amounts(
    where: str, n: int, differs: Sequence[int], ties: Sequence[int], name_field: Callable[[int], str], worst: str = ""
) -> Check:
    """Whether the amounts, and the places of their characters, are the source's.

    Args:
        where: Which fields, on what.
        n: How many were compared.
        differs: Rows of the fields whose amounts are others.
        ties: Rows of those whose amounts are others too, but as good in float64 as far as float32 can tell.
        name_field: What the field of a row is called.
        worst: What stands on the first field that differs, on either side.
    """
    tied = f"; ties in float64: {', '.join(map(name_field, ties))}" if ties else ""
    return Check(
        name=f"amounts, {where}",
        verdict="failed" if differs or not n else "passed",
        expected="the same characters in the same places, of every amount and in the same order, but for ties",
        found=f"{n} fields, other amounts on {len(differs)}{tied}",
        detail=f"first: {name_field(differs[0])}{': ' if worst else ''}{worst}" if differs else "",
    )


def check_calibration(
    provider: str,
    actual: Answers,
    calibrated: Callable[[npt.NDArray[np.int64], npt.NDArray[np.float64]], npt.NDArray[np.float64]],
    name_field: Callable[[int], str],
) -> Check:
    """Whether each confidence is what the reader's calibration makes of the file's own posteriors.

    A posterior near 1 says little of how far from 1 it is: what float32 cannot tell apart there is allowed, and no more.

    Args:
        provider: What ran the file.
        actual: The file's answers.
        calibrated: From characters and log-posteriors to confidences.
        name_field: What the field of a row is called.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(actual[POSTERIORS_NAME].astype(np.float64))
    characters = actual[CHARACTERS_NAME]
    ends = np.stack([calibrated(characters, np.minimum(logs + shift, 0.0))[:, 0] for shift in (-4 * _EPS, 4 * _EPS)])
    there = actual[N_CHARACTERS_NAME][:, 0] > 0
    low, high = np.where(there, ends.min(axis=0), 0.0), np.where(there, ends.max(axis=0), 0.0)
    confidence = actual[CONFIDENCE_NAME][:, 0].astype(np.float64)
    inside = (confidence >= low - 16 * _EPS) & (confidence <= high + 16 * _EPS)  # NaN is not
    wrong = np.flatnonzero(~inside)
    return Check(
        name=f"calibration, {provider}",
        verdict="failed" if len(wrong) else "passed",
        expected="the confidence that the reader's calibration makes of the file's own posteriors, as far as float32 can tell",
        found=f"{len(inside)} fields, another confidence on {len(wrong)}",
        detail=f"first: {name_field(int(wrong[0]))}: {confidence[wrong[0]]:.6g}, not {low[wrong[0]]:.6g}" if len(wrong) else "",
    )


def check_form(where: str, expected: Answers, actual: Answers) -> Check | None:
    """A failed check where an output is missing or of another shape or dtype; None where all are as they should be."""
    want = {name: (values.dtype.name, values.shape) for name, values in expected.items()}
    have = {name: (actual[name].dtype.name, actual[name].shape) for name in OUTPUT_NAMES if name in actual}
    if want == have:
        return None
    return Check(name=f"answers, {where}", verdict="failed", expected=_describe(want), found=_describe(have))


def _describe(forms: dict[str, tuple[str, tuple[int, ...]]]) -> str:
    return "; ".join(f"{name} {dtype} {list(shape)}" for name, (dtype, shape) in forms.items()) or "none"
