from __future__ import annotations

import numpy as np
import pytest

from convoy.training.report import calibration
from convoy.training.report.calibration import N_BINS, Reliability, calibrate, fit_temperature, negative_log_likelihood
from convoy.training.report.predictions import Predictions


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def drawn(n: int, temperature: float, n_classes: int = 10, seed: int = 0) -> Predictions:
    """Answers of which softmax(logits / temperature) is the truth: labels are drawn from it."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (n, n_classes)).astype(np.float32)
    edges = softmax(logits.astype(np.float64) / temperature).cumsum(axis=1)
    labels = (rng.random((n, 1)) > edges[:, :-1]).sum(axis=1)
    return Predictions(logits, labels)


@pytest.mark.parametrize("truth", [0.4, 0.8, 1.5, 4.0])
def test_the_temperature_that_labels_were_drawn_with_is_found(truth: float) -> None:
    predictions = drawn(20_000, truth)
    temperature, reason = fit_temperature(predictions)
    assert reason == ""
    assert temperature == pytest.approx(truth, rel=0.04)
    here = negative_log_likelihood(predictions, temperature)
    assert all(here < negative_log_likelihood(predictions, factor * temperature) for factor in (0.5, 0.97, 1.03, 2.0))


@pytest.mark.parametrize("truth", [0.5, 3.0])
def test_it_mends_the_calibration_of_images_that_it_has_not_seen(truth: float) -> None:
    found = calibrate(drawn(5_000, truth), drawn(5_000, truth, seed=1))
    for errors in (found.validation, found.test):
        assert errors.ece_after < 0.02 < 0.05 < errors.ece_before
        assert errors.nll_after < errors.nll_before
    assert found.temperature * 1024 == int(found.temperature * 1024)  # float32 holds it exactly


def test_what_is_calibrated_is_left_alone() -> None:
    temperature, reason = fit_temperature(drawn(3_000, 1.0))
    assert temperature == 1.0
    assert "is not significantly better than 1" in reason


def test_chance_moves_it_in_one_split_of_twenty() -> None:
    moved = sum(fit_temperature(drawn(200, 1.0, seed=seed))[0] != 1 for seed in range(200))
    assert 2 <= moved <= 20


def test_where_every_image_is_right_no_temperature_is_best() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (500, 10)).astype(np.float32)
    assert fit_temperature(Predictions(logits, logits.argmax(axis=1))) == (
        1.0,
        "the 500 validation images hold too few mistakes to fit one",
    )


def test_a_network_that_is_worse_than_chance_is_left_alone() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (500, 10)).astype(np.float32)
    temperature, reason = fit_temperature(Predictions(logits, logits.argmin(axis=1)))
    assert temperature == 1.0
    assert "no better than chance" in reason


def test_huge_logits_neither_overflow_nor_lose_the_minimum() -> None:
    small = drawn(2_000, 2.0)
    large = Predictions(small.logits * np.float32(4), small.labels)
    assert fit_temperature(large)[0] == pytest.approx(4 * fit_temperature(small)[0], rel=1e-3)
    beyond = Predictions(small.logits * np.float32(1e4), small.labels)
    assert fit_temperature(beyond)[0] >= 1
    assert np.isfinite(negative_log_likelihood(beyond))


def test_the_error_is_the_sum_over_bins_of_share_times_gap() -> None:
    predictions = drawn(700, 2.0, n_classes=3)
    probabilities = softmax(predictions.logits.astype(np.float64))
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == predictions.labels
    expected = 0.0
    for b in range(N_BINS):
        inside = (confidence > b / N_BINS) & (confidence <= (b + 1) / N_BINS)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert Reliability.of(predictions).ece == pytest.approx(expected)
    assert expected > 0.1


def test_two_bins_by_hand() -> None:
    """Four images of 60 % of which 1 is right, one of 90 % that is right: 4/5 * |25 - 60| % + 1/5 * |100 - 90| % = 30 %."""
    sixty, ninety = np.log([0.6, 0.4]), np.log([0.9, 0.1])
    logits = np.array([sixty] * 4 + [ninety], dtype=np.float32)
    assert Reliability.of(Predictions(logits, np.array([0, 1, 1, 1, 0]))).ece == pytest.approx(0.30, abs=1e-6)


def test_certainty_falls_into_the_last_bin() -> None:
    logits = np.array([[1000.0, 0.0]], dtype=np.float32)
    reliability = Reliability.of(Predictions(logits, np.array([0])))
    assert reliability.counts[-1] == 1
    assert reliability.ece == 0


def test_the_negative_log_likelihood_is_that_of_the_softmax() -> None:
    predictions = drawn(300, 1.0)
    rows = np.arange(300)
    for temperature in (1.0, 0.3, 5.0):
        probabilities = softmax(predictions.logits.astype(np.float64) / temperature)
        expected = -np.log(probabilities[rows, predictions.labels]).mean()
        assert negative_log_likelihood(predictions, temperature) == pytest.approx(expected)
        np.testing.assert_allclose(predictions.confidence(temperature), probabilities.max(axis=1))


def test_the_split_is_gone_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = drawn(1_000, 2.0)
    whole = fit_temperature(predictions), negative_log_likelihood(predictions)
    monkeypatch.setattr(calibration, "_ROWS", 7)
    assert fit_temperature(predictions) == whole[0]
    assert negative_log_likelihood(predictions) == pytest.approx(whole[1])
