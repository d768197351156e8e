"""What a data set says as a whole: counts, histograms, accuracy, calibration, the inputs that stand out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from convoy.contract.figures import interval95

N_BINS: Final = 20
"""Of the histogram of confidences, and of the calibration, from 0 to 1."""
N_EXAMPLES: Final = 24
"""Inputs of each kind that stand out and are kept."""
N_SAMPLED: Final = 65_536
"""Confidences that are kept as they are; of more inputs a sample."""
N_CONFUSED: Final = 30
"""Pairs of classes that are told."""
_MOST_MATRIX: Final = 100
_MOST_REASONS: Final = 50
_OTHERS: Final = "others"
_NUMBER: Final = re.compile(r"\d[\d,.]*\d|\d")
_FASTEST_MS: Final = 1e-3
_STEP: Final = 1.02
_N_STEPS: Final = 1164
"""Latencies are counted in steps of 2 %, from a microsecond to ten thousand seconds."""


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


@dataclass(frozen=True)
class ClassCounts:
    """What became of the labelled inputs of one class; shares of nothing are None.

    Attributes:
        label: The class.
        n: Labelled inputs that show it.
        n_answered: Labelled inputs that were taken for it.
        n_right: Labelled inputs that show it and were taken for it.
    """

    label: str
    n: int
    n_answered: int
    n_right: int

    @property
    def recall(self) -> float | None:
        """The share of those that show it that were taken for it."""
        return self.n_right / self.n if self.n else None

    @property
    def precision(self) -> float | None:
        """The share of those that were taken for it that show it."""
        return self.n_right / self.n_answered if self.n_answered else None


@dataclass(frozen=True)
class Confused:
    """A mistake, and how often it was made."""

    true_label: str
    answer: str
    n: int


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
        right: Labelled inputs that were answered rightly, by probability, in ``N_BINS`` bins.
        labelled: Labelled inputs, in the same bins.
        probability_sums: The sums of their probabilities, in the same bins.
        slowest: The slowest answers, the slowest first.
        least_confident: The least confident, the least first.
        surest_wrong: Wrong answers to labelled inputs, the most confident first.
    """

    labels: tuple[str, ...]
    n: int = 0
    n_scored: int = 0
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    confidences: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(N_BINS, np.int64))
    n_labelled: int = 0
    n_foreign: int = 0
    right: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(N_BINS, np.int64))
    labelled: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(N_BINS, np.int64))
    probability_sums: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(N_BINS))
    slowest: list[Example] = field(default_factory=list)
    least_confident: list[Example] = field(default_factory=list)
    surest_wrong: list[Example] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = np.zeros(len(self.labels), np.int64)
        self._places = {label: i for i, label in enumerate(self.labels)}
        self._pairs: dict[int, int] = {}  # sparse: of ten thousand classes a matrix would have a hundred million cells
        self._latencies = np.zeros(_N_STEPS, np.int64)
        self._sample = Sample()
        self._reasons: dict[str, _Reason] = {}

    @property
    def first_errors(self) -> dict[str, str]:
        """By reason as in ``errors``, the whole message of the first such input."""
        ordered = sorted(self._reasons.items(), key=lambda item: -item[1].n)
        return {reason.text or words: reason.first for words, reason in ordered}

    @property
    def n_failed(self) -> int:
        """Inputs without an answer."""
        return self.n - self.n_scored

    @property
    def n_right(self) -> int:
        """Labelled inputs that were answered rightly."""
        return int(self.right.sum())

    @property
    def accuracy(self) -> float | None:
        """The fraction of labelled inputs that were answered rightly; a label that the model does not know is answered wrongly."""
        n = self.n_labelled + self.n_foreign
        return self.n_right / n if n else None

    @property
    def accuracy_interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % confidence interval of the accuracy."""
        accuracy = self.accuracy
        return None if accuracy is None else interval95(accuracy, self.n_labelled + self.n_foreign)

    @property
    def calibration_error(self) -> float | None:
        """The expected calibration error: the mean distance of a bin's accuracy from its mean probability, by the bin's size."""
        if not self.n_labelled:
            return None
        return float(np.abs(self.right - self.probability_sums).sum() / self.n_labelled)

    @property
    def errors(self) -> dict[str, int]:
        """Inputs without an answer by reason, the most frequent first; numbers that differ within a reason are left out of it."""
        reasons = sorted(self._reasons.items(), key=lambda item: (item[0] == _OTHERS, -item[1].n))
        return {reason.text or words: reason.n for words, reason in reasons}

    @property
    def sampled_confidences(self) -> npt.NDArray[np.float32]:
        """The answers' probabilities, in no order: all of them, or a sample of ``N_SAMPLED`` where there are more."""
        return self._sample.values()

    def classes(self) -> list[ClassCounts]:
        """What became of the labelled inputs, by class, in the order of ``labels``."""
        n = len(self.labels)
        shown, answered, right = (np.zeros(n, np.int64) for _ in range(3))
        for code, count in self._pairs.items():
            true, answer = divmod(code, n)
            shown[true] += count
            answered[answer] += count
            if true == answer:
                right[true] += count
        columns = zip(self.labels, shown.tolist(), answered.tolist(), right.tolist(), strict=True)
        return [ClassCounts(*values) for values in columns]

    def confusion(self) -> npt.NDArray[np.int64]:
        """Labelled inputs, by true class (rows) and answer (columns), both in the order of ``labels``."""
        n = len(self.labels)
        matrix = np.zeros(n * n, np.int64)
        matrix[list(self._pairs)] = list(self._pairs.values())
        return matrix.reshape(n, n)

    def most_confused(self, n: int = N_CONFUSED) -> list[Confused]:
        """The most frequent mistakes, the most frequent first."""
        n_labels = len(self.labels)
        wrong = [(-count, code) for code, count in self._pairs.items() if code // n_labels != code % n_labels]
        return [Confused(self.labels[code // n_labels], self.labels[code % n_labels], -count) for count, code in sorted(wrong)[:n]]

    def latency_ms(self, share: float) -> float | None:
        """How long the fastest ``share`` of the answers took at most, within 1 %; None where there are none."""
        total = int(self._latencies.sum())
        if not total:
            return None
        step = int(np.searchsorted(np.cumsum(self._latencies), max(1, int(np.ceil(share * total)))))
        return min(float(_FASTEST_MS * _STEP ** (step + 0.5)), self.slowest[0].latency_ms)

    def is_right(self, label: str, true_label: str) -> bool:
        """Whether an answer is what the source says."""
        return label == true_label

    def add(self, table: Any) -> None:
        """Take in rows (a ``pyarrow.Table`` or ``RecordBatch`` of the data set's schema)."""
        self.n += table.num_rows
        answered = ~table.column("label").is_null().to_numpy(zero_copy_only=False)
        for reason, source in _failures(table) if not answered.all() else ():
            self._note(reason, source)
        if not answered.any():
            return
        rows = np.flatnonzero(answered)
        probability = table.column("probability").to_numpy(zero_copy_only=False)[answered]
        self._sample.add(table.column("row").to_numpy(zero_copy_only=False)[answered], probability)
        probability = probability.astype(np.float64)
        latency = table.column("latency_ms").to_numpy(zero_copy_only=False)[answered].astype(np.float64)
        self.n_scored += len(rows)
        self._count(table, answered)
        bins = np.minimum((probability * N_BINS).astype(np.int64), N_BINS - 1)
        self.confidences += np.bincount(bins, minlength=N_BINS)
        steps = np.log(np.maximum(latency, _FASTEST_MS) / _FASTEST_MS) / np.log(_STEP)
        self._latencies += np.bincount(np.minimum(steps.astype(np.int64), _N_STEPS - 1), minlength=_N_STEPS)

        def example(place: int) -> Example:
            row = int(rows[place])
            cell = {name: table.column(name)[row].as_py() for name in ("row", "source", "label", "true_label")}
            likely, took = float(probability[place]), float(latency[place])
            return Example(cell["row"], cell["source"], cell["label"], likely, took, cell["true_label"])

        self.least_confident = _merge(self.least_confident, _by_confidence, probability, example)
        self.slowest = _merge(self.slowest, _by_slowness, -latency, example)
        if table.column("true_label").null_count < table.num_rows:
            wrong = self._add_labelled(table, answered, probability, bins)
            self.surest_wrong = _merge(self.surest_wrong, _by_sureness, np.where(wrong, -probability, np.inf), example)

    def _count(self, table: Any, answered: npt.NDArray[np.bool_]) -> None:
        """Count answers."""
        self.counts += np.bincount(_indices(table, answered), minlength=len(self.labels))

    def _add_labelled(
        self,
        table: Any,
        answered: npt.NDArray[np.bool_],
        probability: npt.NDArray[np.float64],
        bins: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.bool_]:
        """Count the labelled among answered rows; says which of them were answered wrongly."""
        index = _indices(table, answered)
        truths = table.column("true_label").take(np.flatnonzero(answered).tolist()).to_pylist()
        true = np.array([-2 if truth is None else self._places.get(truth, -1) for truth in truths], np.int64)
        self.n_foreign += int((true == -1).sum())
        known = true >= 0
        self.n_labelled += int(known.sum())
        codes, counts = np.unique(true[known] * len(self.labels) + index[known], return_counts=True)
        for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
            self._pairs[code] = self._pairs.get(code, 0) + count
        self.right += np.bincount(bins[known & (true == index)], minlength=N_BINS)
        self.labelled += np.bincount(bins[known], minlength=N_BINS)
        self.probability_sums += np.bincount(bins[known], weights=probability[known], minlength=N_BINS)
        wrong: npt.NDArray[np.bool_] = (true != -2) & (true != index)
        return wrong

    def _note(self, reason: str, source: str) -> None:
        """Count a reason by what is the same in many: what stands behind the input's name, without numbers."""
        text = (reason.partition(f"{source}: ")[2] or reason.rpartition(": ")[2] or reason)[:200]
        words = _NUMBER.sub("…", text)
        if words not in self._reasons and len(self._reasons) >= _MOST_REASONS:
            words = text = _OTHERS
        noted = self._reasons.setdefault(words, _Reason(text, reason[:300]))
        noted.n += 1
        if noted.text != text:
            noted.text = ""

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON's values."""
        latency = {name: self.latency_ms(share) for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))}
        document: dict[str, Any] = {
            "n": self.n,
            "n_scored": self.n_scored,
            "n_failed": self.n_failed,
            "labels": dict(zip(self.labels, self.counts.tolist(), strict=True)),
            "confidence_histogram": self.confidences.tolist(),
            "latency_ms": {**latency, "max": self.slowest[0].latency_ms if self.slowest else None},
            "n_labelled": self.n_labelled + self.n_foreign,
            "n_foreign_labels": self.n_foreign,
            "accuracy": self.accuracy,
            "accuracy_interval_95": None if self.accuracy_interval is None else list(self.accuracy_interval),
            "calibration_error": self.calibration_error,
            "errors": self.errors,
            "first_errors": self.first_errors,
            "least_confident": [asdict(example) for example in self.least_confident],
            "slowest": [asdict(example) for example in self.slowest],
        }
        if self.n_labelled:
            document["classes"] = [
                {**asdict(counts), "recall": counts.recall, "precision": counts.precision} for counts in self.classes()
            ]
            document["most_confused"] = [asdict(pair) for pair in self.most_confused()]
            if len(self.labels) <= _MOST_MATRIX:
                document["confusion"] = self.confusion().tolist()
            document["calibration"] = {
                "n": self.labelled.tolist(),
                "n_right": self.right.tolist(),
                "probability_sums": self.probability_sums.tolist(),
            }
        if self.n_labelled or self.n_foreign:
            document["surest_wrong"] = [asdict(example) for example in self.surest_wrong]
        return document


class Sample:
    """A uniform sample of values by row: those of the rows whose hashes are smallest, whatever order they come in."""

    def __init__(self, most: int = N_SAMPLED) -> None:
        self._most = most
        self._hashes = np.zeros(0, np.uint64)
        self._values = np.zeros(0, np.float32)
        self._bound = np.uint64(0xFFFFFFFFFFFFFFFF)

    def add(self, rows: npt.NDArray[np.int64], values: npt.NDArray[np.float32]) -> None:
        """Take in the values of rows."""
        hashes = _mixed(rows)
        taken = hashes <= self._bound
        if not taken.any():
            return
        self._hashes = np.concatenate([self._hashes, hashes[taken]])
        self._values = np.concatenate([self._values, values[taken].astype(np.float32)])
        if len(self._hashes) > self._most:
            kept = np.argpartition(self._hashes, self._most - 1)[: self._most]
            self._hashes, self._values = self._hashes[kept], self._values[kept]
            self._bound = self._hashes.max()

    def values(self) -> npt.NDArray[np.float32]:
        """What is in it."""
        return self._values


@dataclass
class _Reason:
    text: str
    first: str
    n: int = 0


def name_of_first(reason: str, first: str) -> str:
    """The name of an input in front of its error, where what stands behind it is the reason; else the whole error.

    Args:
        reason: As in ``Statistics.errors``.
        first: As in ``Statistics.first_errors``.
    """
    for mark in re.finditer(": ", first):
        behind, without_numbers = first[mark.end() :], _NUMBER.sub("…", first[mark.end() :])
        if any(one.startswith(reason) or reason.startswith(one) for one in (behind, without_numbers) if one):
            return first[: mark.start()]
    return first


def _indices(table: Any, answered: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    indices: npt.NDArray[np.int64] = table.column("index").to_numpy(zero_copy_only=False)[answered].astype(np.int64)
    return indices


def _failures(table: Any) -> list[tuple[str, str]]:
    pairs = zip(table.column("error").to_pylist(), table.column("source").to_pylist(), strict=True)
    return [(reason, source) for reason, source in pairs if reason is not None]


def _by_confidence(example: Example) -> float:
    return example.probability


def _by_slowness(example: Example) -> float:
    return -example.latency_ms


def _by_sureness(example: Example) -> float:
    return -example.probability


def _merge(
    kept: list[Example], key: Callable[[Example], float], values: npt.NDArray[np.float64], example: Callable[[int], Example]
) -> list[Example]:
    """The ``N_EXAMPLES`` smallest of those that are kept and of new ones, whose keys are ``values``; infinite ones do not count."""
    bound = key(kept[-1]) if len(kept) == N_EXAMPLES else np.inf
    some = np.flatnonzero(values < bound)
    if not len(some):
        return kept
    order = some[np.argsort(values[some], kind="stable")[:N_EXAMPLES]]
    return sorted([*kept, *map(example, order.tolist())], key=key)[:N_EXAMPLES]


def _mixed(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """SplitMix64: numbers that look like chance, and are the same each time."""
    with np.errstate(over="ignore"):
        z = rows.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
