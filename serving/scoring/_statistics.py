"""What a data set says as a whole: counts, histograms, accuracy, calibration, the inputs that stand out."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

N_BINS: Final = 20
"""Of the histogram of confidences, and of the calibration, from 0 to 1."""
N_EXAMPLES: Final = 24
"""Slowest and least confident inputs that are kept."""
_MOST_REASONS: Final = 50


@dataclass(frozen=True)
class Example:
    """An input that stands out.

    Attributes:
        row: Its place in the source.
        source: Its name.
        label: The most likely class.
        probability: How likely.
        latency_ms: How long its request took.
        true_label: Its class, where the source says so.
    """

    row: int
    source: str
    label: str
    probability: float
    latency_ms: float
    true_label: str | None


@dataclass
class Statistics:
    """Grows with each table of rows; its size does not depend on how many there are.

    Attributes:
        labels: The model's class names.
        n: Inputs.
        n_scored: Those with an answer.
        counts: Answers by class, in the order of ``labels``.
        confidences: Answers by probability, in ``N_BINS`` bins from 0 to 1.
        n_labelled: Answered inputs whose true label is known and is one of the model's.
        n_foreign: Answered inputs whose true label is none of the model's.
        confusion: Labelled inputs, by true class (rows) and answer (columns).
        right: Labelled inputs that were answered rightly, by probability, in ``N_BINS`` bins.
        labelled: Labelled inputs, in the same bins.
        probability_sums: The sums of their probabilities, in the same bins.
        errors: Inputs without an answer, by the reason's first words.
        slowest: The slowest answers, the slowest first.
        least_confident: The least confident, the least first.
    """

    labels: tuple[str, ...]
    n: int = 0
    n_scored: int = 0
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    confidences: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(N_BINS, np.int64))
    n_labelled: int = 0
    n_foreign: int = 0
    confusion: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    right: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(N_BINS, np.int64))
    labelled: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(N_BINS, np.int64))
    probability_sums: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(N_BINS))
    errors: dict[str, int] = field(default_factory=dict)
    slowest: list[Example] = field(default_factory=list)
    least_confident: list[Example] = field(default_factory=list)

    def __post_init__(self) -> None:
        n = len(self.labels)
        self.counts = np.zeros(n, np.int64)
        self.confusion = np.zeros((n, n), np.int64)
        self._places = {label: i for i, label in enumerate(self.labels)}

    @property
    def n_failed(self) -> int:
        """Inputs without an answer."""
        return self.n - self.n_scored

    @property
    def accuracy(self) -> float | None:
        """The fraction of labelled inputs that were answered rightly; a label that the model does not know is answered wrongly."""
        n = self.n_labelled + self.n_foreign
        return int(np.trace(self.confusion)) / n if n else None

    @property
    def calibration_error(self) -> float | None:
        """The expected calibration error: the mean distance of a bin's accuracy from its mean probability, by the bin's size."""
        if not self.n_labelled:
            return None
        return float(np.abs(self.right - self.probability_sums).sum() / self.n_labelled)

    def add(self, table: Any) -> None:
        """Take in rows (a ``pyarrow.Table`` or ``RecordBatch`` of the data set's schema)."""
        self.n += table.num_rows
        index = table.column("index").to_numpy(zero_copy_only=False)
        answered = ~np.isnan(index.astype(np.float64)) if index.dtype.kind == "f" else np.ones(len(index), bool)
        for reason in table.column("error").to_pylist() if not answered.all() else ():
            if reason is not None:
                self._note(reason)
        if not answered.any():
            return
        rows = np.flatnonzero(answered)
        index = index[answered].astype(np.int64)
        probability = table.column("probability").to_numpy(zero_copy_only=False)[answered].astype(np.float64)
        latency = table.column("latency_ms").to_numpy(zero_copy_only=False)[answered].astype(np.float64)
        self.n_scored += len(index)
        self.counts += np.bincount(index, minlength=len(self.labels))
        bins = np.minimum((probability * N_BINS).astype(np.int64), N_BINS - 1)
        self.confidences += np.bincount(bins, minlength=N_BINS)
        if table.column("true_label").null_count < table.num_rows:
            self._add_labelled(table, rows, index, probability, bins)
        self._keep(table, rows, latency, probability)

    def _add_labelled(
        self,
        table: Any,
        rows: npt.NDArray[np.int64],
        index: npt.NDArray[np.int64],
        probability: npt.NDArray[np.float64],
        bins: npt.NDArray[np.int64],
    ) -> None:
        truths = table.column("true_label").take(rows.tolist()).to_pylist()
        true = np.array([-2 if truth is None else self._places.get(truth, -1) for truth in truths], np.int64)
        self.n_foreign += int((true == -1).sum())
        known = true >= 0
        self.n_labelled += int(known.sum())
        np.add.at(self.confusion, (true[known], index[known]), 1)
        hit = known & (true == index)
        self.right += np.bincount(bins[hit], minlength=N_BINS)
        self.labelled += np.bincount(bins[known], minlength=N_BINS)
        self.probability_sums += np.bincount(bins[known], weights=probability[known], minlength=N_BINS)

    def _keep(
        self, table: Any, rows: npt.NDArray[np.int64], latency: npt.NDArray[np.float64], probability: npt.NDArray[np.float64]
    ) -> None:
        def examples(order: npt.NDArray[np.int64]) -> list[Example]:
            kept = []
            for i in order[:N_EXAMPLES].tolist():
                row = int(rows[i])
                cell = {name: table.column(name)[row].as_py() for name in ("row", "source", "label", "true_label")}
                kept.append(
                    Example(
                        cell["row"], cell["source"], cell["label"], float(probability[i]), float(latency[i]), cell["true_label"]
                    )
                )
            return kept

        def cut(values: npt.NDArray[np.float64], than: float) -> npt.NDArray[np.int64]:
            some = np.flatnonzero(values < than)
            return some[np.argsort(values[some], kind="stable")]

        bound = self.least_confident[-1].probability if len(self.least_confident) == N_EXAMPLES else np.inf
        if len(order := cut(probability, bound)):
            merged = heapq.merge(self.least_confident, examples(order), key=lambda example: example.probability)
            self.least_confident = list(merged)[:N_EXAMPLES]
        bound = -self.slowest[-1].latency_ms if len(self.slowest) == N_EXAMPLES else np.inf
        if len(order := cut(-latency, bound)):
            merged = heapq.merge(self.slowest, examples(order), key=lambda example: -example.latency_ms)
            self.slowest = list(merged)[:N_EXAMPLES]

    def _note(self, reason: str) -> None:
        """Count a reason, by what is the same in many: what stands behind the input's name."""
        words = reason.rpartition(": ")[2][:120]
        if words in self.errors or len(self.errors) < _MOST_REASONS:
            self.errors[words] = self.errors.get(words, 0) + 1
        else:
            self.errors["others"] = self.errors.get("others", 0) + 1

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON's values."""
        return {
            "n": self.n,
            "n_scored": self.n_scored,
            "n_failed": self.n_failed,
            "labels": dict(zip(self.labels, self.counts.tolist(), strict=True)),
            "confidence_histogram": self.confidences.tolist(),
            "n_labelled": self.n_labelled + self.n_foreign,
            "n_foreign_labels": self.n_foreign,
            "accuracy": self.accuracy,
            "calibration_error": self.calibration_error,
            "errors": self.errors,
        }
