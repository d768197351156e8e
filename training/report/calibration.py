"""Whether probabilities mean what they say, and the temperature that mends them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from convoy.training.report.predictions import Predictions

N_BINS: Final = 15
MIN_TEMPERATURE: Final = 1 / 16
MAX_TEMPERATURE: Final = 16.0
_GRAIN: Final = 1024  # temperatures are multiples of 1/1024: float32 holds them exactly, whoever divides by them
_SIGNIFICANT: Final = 3.841458820694124  # the 95 % point of chi-squared with one degree of freedom
_ROWS: Final = 8192  # at a time, so that a thousand classes fit into memory as float64


class CalibrationErrors(BaseModel):
    """A split with the network's own probabilities and with those at the temperature.

    Attributes:
        n: Images.
        ece_before: Expected calibration error of softmax(logits), a fraction.
        ece_after: Of softmax(logits / temperature).
        nll_before: Mean negative log likelihood of the true class under softmax(logits), nats.
        nll_after: Under softmax(logits / temperature).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = Field(ge=1)
    ece_before: float = Field(ge=0, le=1)
    ece_after: float = Field(ge=0, le=1)
    nll_before: float = Field(ge=0)
    nll_after: float = Field(ge=0)


class Calibration(BaseModel):
    """How far probabilities can be believed.

    Attributes:
        temperature: What logits are divided by before the softmax on export; fitted on the validation split, 1 leaves them alone.
        reason: Why it is 1 where the validation split could not tell; empty where it was fitted.
        validation: The split on which it was fitted (and by which the epoch was chosen: it flatters).
        test: The split that neither saw.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(gt=0)
    reason: str = ""
    validation: CalibrationErrors
    test: CalibrationErrors


@dataclass(frozen=True)
class Reliability:
    """Images by confidence, in ``N_BINS`` bins of equal width: bin b holds confidences above b / 15 up to (b + 1) / 15.

    Attributes:
        counts: Images in each bin.
        confidence: Their mean confidence; 0 where there is none.
        accuracy: The share of them that was recognised; 0 where there is none.
    """

    counts: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]

    @classmethod
    def of(cls, predictions: Predictions, temperature: float = 1.0) -> Reliability:
        """Sort the images of a split by the probability of the class that each was taken for."""
        confidence = predictions.confidence(temperature)
        bins = np.clip(np.ceil(confidence * N_BINS).astype(np.int64) - 1, 0, N_BINS - 1)
        counts = np.bincount(bins, minlength=N_BINS)
        divisor = np.maximum(counts, 1)
        right = predictions.predicted == predictions.labels
        return cls(
            counts,
            np.bincount(bins, weights=confidence, minlength=N_BINS) / divisor,
            np.bincount(bins, weights=right, minlength=N_BINS) / divisor,
        )

    @property
    def ece(self) -> float:
        """The expected calibration error: the sum over the bins of n_b / n * |accuracy_b - confidence_b| (Guo and others 2017)."""
        return float((self.counts / self.counts.sum() * np.abs(self.accuracy - self.confidence)).sum())


def calibrate(validation: Predictions, test: Predictions) -> Calibration:
    """Fit the temperature on the validation split and see what it does there and on the test split."""
    temperature, reason = fit_temperature(validation)
    return Calibration(
        temperature=temperature,
        reason=reason,
        validation=_errors(validation, temperature),
        test=_errors(test, temperature),
    )


def fit_temperature(predictions: Predictions) -> tuple[float, str]:
    """The temperature T under which softmax(logits / T) makes the labels likeliest (Guo and others 2017, section 4.2).

    The mean negative log likelihood is convex in 1 / T, so its slope, the mean over the images of E[logit] - logit of the true
    class, has one root; Newton's steps find it, and halving the bracket where they would leave it.

    T stays 1 where the split cannot tell: where the likelihood has no maximum from 1/16 to 16 (every image is recognised, and any
    smaller T would fit better still), or where the fitted T is not significantly better than 1 (likelihood ratio, 95 %).

    Returns:
        The temperature, a multiple of 1/1024, and why it is 1 where it could not be fitted.
    """
    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    if _slope(predictions, high)[0] <= 0:
        return 1.0, f"the {len(predictions):,} validation images hold too few mistakes to fit one"
    if _slope(predictions, low)[0] >= 0:
        return 1.0, "on the validation images the network is no better than chance"
    inverse = 1.0
    while high - low > 1e-6 * low:
        slope, curvature = _slope(predictions, inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0 else low
        if abs(step - inverse) <= 1e-7 * inverse:
            break
        inverse = step if low < step < high else (low + high) / 2
    temperature = round(_GRAIN / inverse) / _GRAIN
    gain = 2 * len(predictions) * (negative_log_likelihood(predictions) - negative_log_likelihood(predictions, temperature))
    if gain < _SIGNIFICANT:
        return 1.0, f"on {len(predictions):,} validation images {temperature:.3f} is not significantly better than 1"
    return temperature, ""


def negative_log_likelihood(predictions: Predictions, temperature: float = 1.0) -> float:
    """The mean of -log softmax(logits / temperature) at the true class, nats."""
    total = 0.0
    for logits, labels in _parts(predictions):
        scaled = logits / temperature
        true = np.take_along_axis(scaled, labels[:, None], axis=1)[:, 0]
        largest = scaled.max(axis=1)
        total += float((np.log(np.exp(scaled - largest[:, None]).sum(axis=1)) + largest - true).sum())
    return max(0.0, total / len(predictions))


def _slope(predictions: Predictions, inverse: float) -> tuple[float, float]:
    """First and second derivative of the mean negative log likelihood by 1 / T."""
    slope = curvature = 0.0
    for logits, labels in _parts(predictions):
        centred = logits - np.take_along_axis(logits, labels[:, None], axis=1)  # the true class's logit is 0
        scaled = inverse * centred
        weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        mean = (weights * centred).sum(axis=1)
        slope += float(mean.sum())
        curvature += float((weights * np.square(centred - mean[:, None])).sum())
    return slope / len(predictions), curvature / len(predictions)


def _parts(predictions: Predictions) -> Iterator[tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]]:
    for start in range(0, len(predictions), _ROWS):
        rows = slice(start, start + _ROWS)
        yield predictions.logits[rows].astype(np.float64), predictions.labels[rows]


def _errors(predictions: Predictions, temperature: float) -> CalibrationErrors:
    return CalibrationErrors(
        n=len(predictions),
        ece_before=Reliability.of(predictions).ece,
        ece_after=Reliability.of(predictions, temperature).ece,
        nll_before=negative_log_likelihood(predictions),
        nll_after=negative_log_likelihood(predictions, temperature),
    )
