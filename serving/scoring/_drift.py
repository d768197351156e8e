"""How far the answers of a run lie from those of another, or from what a model was trained on. docs/scoring_report.md explains it.

Everything here is numpy: SciPy is not among what scoring needs.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import ScoringError, UsageError
from convoy.contract.figures import figure, percent
from convoy.serving.scoring._amounts import AMOUNTS_SCHEMA_VERSION
from convoy.serving.scoring._arrow import import_arrow
from convoy.serving.scoring._dataset import MANIFEST_FILE
from convoy.serving.scoring._identity import RUN_FILE, RunIdentity, parse_identity
from convoy.serving.scoring._statistics import N_SAMPLED, Sample, Statistics
from convoy.serving.scoring._store import Store, open_store
from convoy.serving.scoring._table import from_file, make_schema
from convoy.serving.scoring.source import printable
from convoy.serving.scoring.source._filesystem import protocol_of

LITTLE: Final = 0.1
MUCH: Final = 0.25
"""The usual rules of thumb for the PSI: below 0.1 little has changed, above 0.25 much. Used for the KS statistic too."""
SMOOTHING: Final = 0.5
"""What is added to each class's count for the PSI, on both sides, so that an empty class has a logarithm."""
SIGNIFICANT: Final = 0.05
LEAST_EXPECTED: Final = 5.0
"""The G-test needs so many expected inputs in each cell (Cochran); rarer classes are put together."""
_N_SHIFTS: Final = 5

Verdict = Literal["little", "some", "much", "undecided"]
_ORDER: Final[tuple[Verdict, ...]] = ("little", "undecided", "some", "much")


@dataclass(frozen=True)
class Basis:
    """A distribution of classes to compare with.

    Attributes:
        what: What was counted ("answers of lenet5 version 3 to 10,000 inputs").
        counts: By class, in the order of the model's labels.
    """

    what: str
    counts: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Reference:
    """What a run is compared with.

    Attributes:
        place: Where it lies.
        bases: Distributions of classes; the first decides.
        confidences: The probabilities of the answers, or a sample of them; None where nothing tells them.
        n_confidences: How many there were.
        remark: What a reader should know.
    """

    place: str
    bases: tuple[Basis, ...]
    confidences: npt.NDArray[np.float32] | None
    n_confidences: int
    remark: str


@dataclass(frozen=True)
class Shift:
    """A class whose share has changed: it was ``before`` in the reference, and is ``now``."""

    label: str
    before: float
    now: float


@dataclass(frozen=True)
class LabelDrift:
    """The classes of the answers, compared with those of a basis.

    Attributes:
        basis: With what.
        n_reference: How many were counted there.
        n: Answers of this run.
        psi: Population stability index, with ``SMOOTHING``, over the classes that either side has; None without answers.
        psi_by_chance: About what it would be in the mean, were both drawn from one distribution: (classes - 1)(1/n + 1/m).
        js_distance: Jensen-Shannon distance: the root of the divergence in bits; from 0 to 1.
        g: Of the G-test (likelihood ratio) that both are drawn from one distribution; None where counts do not allow it.
        degrees: Its degrees of freedom.
        p_value: Its p-value.
        no_p_value: Why there is none.
        shifts: The classes that add most to the PSI.
        verdict: By the PSI; ``undecided`` where chance alone could explain as much.
    """

    basis: str
    n_reference: int
    n: int
    psi: float | None
    psi_by_chance: float | None
    js_distance: float | None
    g: float | None
    degrees: int | None
    p_value: float | None
    no_p_value: str
    shifts: tuple[Shift, ...]
    verdict: Verdict


@dataclass(frozen=True)
class ConfidenceDrift:
    """The probabilities of the answers, compared.

    Attributes:
        n_reference: How many there were.
        n: Answers of this run.
        sampled: Of more than this on a side, a sample of so many was compared.
        mean_reference: The mean there.
        mean: The mean here.
        ks: The two-sample Kolmogorov-Smirnov statistic: the largest distance of the two cumulative shares.
        p_value: Its asymptotic p-value.
        verdict: By the KS statistic.
    """

    n_reference: int
    n: int
    sampled: int
    mean_reference: float
    mean: float
    ks: float
    p_value: float
    verdict: Verdict


@dataclass(frozen=True)
class Drift:
    """How far a run lies from its reference.

    Attributes:
        reference: Its place.
        verdict: The worse one of the first label drift's and the confidences'.
        sentence: The verdict in words.
        labels: A comparison for each basis; the first decides.
        confidence: None where the reference does not tell confidences, or nothing was scored.
        remark: What a reader should know; may be empty.
        reference_shares: By class, the share in the first basis.
    """

    reference: str
    verdict: Verdict
    sentence: str
    labels: tuple[LabelDrift, ...]
    confidence: ConfidenceDrift | None
    remark: str
    reference_shares: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON's values; each statistic is named in full."""
        return {
            "reference": self.reference,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "remark": self.remark,
            "labels": [
                {
                    "basis": drift.basis,
                    "n_reference": drift.n_reference,
                    "n": drift.n,
                    "population_stability_index": drift.psi,
                    "population_stability_index_by_chance": drift.psi_by_chance,
                    "jensen_shannon_distance": drift.js_distance,
                    "g_test": {
                        "statistic": drift.g,
                        "degrees_of_freedom": drift.degrees,
                        "p_value": drift.p_value,
                        "reason_for_none": drift.no_p_value,
                    },
                    "shifts": [{"label": shift.label, "before": shift.before, "now": shift.now} for shift in drift.shifts],
                    "verdict": drift.verdict,
                }
                for drift in self.labels
            ],
            "confidence": None
            if self.confidence is None
            else {
                "n_reference": self.confidence.n_reference,
                "n": self.confidence.n,
                "sampled_at_most": self.confidence.sampled,
                "mean_reference": self.confidence.mean_reference,
                "mean": self.confidence.mean,
                "kolmogorov_smirnov": {"statistic": self.confidence.ks, "p_value": self.confidence.p_value},
                "verdict": self.confidence.verdict,
            },
        }


def read_reference(
    place: str | os.PathLike[str],
    labels: Sequence[str],
    *,
    model: tuple[str, str, str | None],
    storage_options: Mapping[str, Any] | None = None,
) -> Reference:
    """What a run is to be compared with: an earlier run of ``convoy score``, or a run of ``convoy train``.

    Args:
        place: A data set that ``convoy score`` finished (a folder or a URL), or a run folder of ``convoy train``.
        labels: The class names of the model that scores.
        model: Its name, version and digest.
        storage_options: What fsspec is given.

    Raises:
        UsageError: It is neither, or is not finished, or has other classes.
        ScoringError: It is damaged.
    """
    text = os.fspath(place)
    if protocol_of(text) is None and not Path(text).is_dir():
        raise UsageError(
            f"{printable(text)}: expected {_EXPECTED} as reference, found {'a file' if Path(text).exists() else 'nothing'}."
        )
    store = open_store(text, storage_options)
    if (data := _read(store, RUN_FILE)) is not None:
        identity = parse_identity(data, store.shown)
        if identity.table_version == AMOUNTS_SCHEMA_VERSION:
            raise UsageError(f"{store.shown}: expected {_EXPECTED} with classes as reference, found a data set of amounts.")
        return _of_data_set(store, identity, tuple(labels), model)
    run, metrics = _read(store, "run.json"), _read(store, "metrics.json")
    if run is not None and metrics is not None:
        return _of_training(store, run, metrics, tuple(labels))
    if _read(store, "manifest.json") is not None:
        raise UsageError(
            f"{store.shown}: expected {_EXPECTED} as reference, found an exported or deployed model. It does not hold how often "
            "its data had each class (its goldens are some images of every class): name the run that it was exported from."
        )
    raise UsageError(f"{store.shown}: expected {_EXPECTED} as reference, found neither {RUN_FILE} nor run.json with metrics.json.")


_EXPECTED: Final = "a data set that `convoy score` wrote, or a run folder of `convoy train`,"


def _read(store: Store, name: str) -> bytes | None:
    try:
        return store.read(name)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ScoringError(f"{store.shown}/{name}: cannot be read: {error.strerror or error}.") from error


def _of_data_set(store: Store, identity: RunIdentity, labels: tuple[str, ...], model: tuple[str, str, str | None]) -> Reference:
    data = _read(store, MANIFEST_FILE)
    if data is None:
        raise UsageError(
            f"{store.shown}: this run has not ended: run its own command again, which goes on with it, and compare then."
        )
    try:
        document = json.loads(data)
        counts = {str(label): int(count) for label, count in document["summary"]["labels"].items()}
        names = [str(file["name"]) for file in document["files"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScoringError(
            f"{store.shown}/{MANIFEST_FILE}: cannot be read ({error!r}): it is damaged, or another version of Convoy wrote it. "
            "Score the reference anew."
        ) from error
    ordered = _in_order(store.shown, counts, labels)
    if not ordered.sum():
        raise UsageError(f"{store.shown}: none of its {identity.n:,} inputs was scored: there is nothing to compare with.")
    theirs = (identity.model_name, identity.model_version, identity.model_sha256)
    same = theirs[2] == model[2] if theirs[2] and model[2] else theirs[:2] == model[:2]
    remark = (
        ""
        if same
        else (f"Another model answered there ({theirs[0]} version {theirs[1]}): what differs may be the models, not the inputs.")
    )
    what = (
        f"answers of {identity.model_name} version {identity.model_version} to {int(ordered.sum()):,} inputs of {identity.source}"
    )
    sample, n = Sample(), 0
    for name in names:
        table = _confidences(store, name, identity)
        probability = table.column("probability").to_numpy(zero_copy_only=False)
        there = ~np.isnan(probability)
        n += int(there.sum())
        sample.add(table.column("row").to_numpy(zero_copy_only=False)[there], probability[there])
    return Reference(store.shown, (Basis(what, ordered),), sample.values(), n, remark)


def _confidences(store: Store, name: str, identity: RunIdentity) -> Any:
    """The rows and probabilities of one file."""
    arrow = import_arrow()
    try:
        data = store.read(name)
        if identity.format == "parquet":
            return arrow.parquet.read_table(arrow.BufferReader(data), columns=["row", "probability"])
        return from_file(data, identity.format, make_schema({}))
    except (OSError, ValueError, arrow.ArrowException) as error:
        raise ScoringError(f"{store.shown}/{name}: cannot be read: {error}. Score the reference anew, or name another.") from error


def _of_training(store: Store, run: bytes, metrics: bytes, labels: tuple[str, ...]) -> Reference:
    """Of a run folder. Its test split stands for what the model shall see; it says nothing of confidences."""
    try:
        record, measured = json.loads(run), json.loads(metrics)
        names = [str(label) for label in record["labels"]]
        data = str(record["dataset"]["name"])
        trained = [int(count) for count in (record["dataset"].get("counts") or {}).get("train", ())]
        confusion = np.array(measured.get("test_confusion") or np.zeros((0, len(names))), np.int64)
        if confusion.shape[1:] != (len(names),) or len(trained) not in (0, len(names)):
            raise ValueError("its counts are not those of its labels")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScoringError(
            f"{store.shown}: run.json or metrics.json cannot be read ({error!r}): they are damaged, or another version of Convoy "
            "wrote them."
        ) from error
    answered = confusion.sum(axis=0)
    bases = []
    if answered.sum():
        ordered = _in_order(store.shown, dict(zip(names, answered.tolist(), strict=True)), labels)
        bases.append(Basis(f"answers to the {int(ordered.sum()):,} test images of {data}", ordered))
    if sum(trained):
        ordered = _in_order(store.shown, dict(zip(names, trained, strict=True)), labels)
        bases.append(Basis(f"labels of the {int(ordered.sum()):,} training images of {data}", ordered))
    if not bases:
        raise UsageError(
            f"{store.shown}: this run was made by an older Convoy and does not hold how often its data had each class. "
            "Train again, or score the test images with `convoy score` and name that data set."
        )
    remark = (
        "A run folder does not hold the confidences of its test images: score them with `convoy score`, and name that data set, "
    )
    return Reference(store.shown, tuple(bases), None, 0, remark + "to compare confidences too.")


def _in_order(where: str, counts: Mapping[str, int], labels: tuple[str, ...]) -> npt.NDArray[np.int64]:
    if set(counts) != set(labels):
        theirs, ours = sorted(set(counts) - set(labels)), sorted(set(labels) - set(counts))
        only = [f"only there {_some(theirs)}"] * bool(theirs) + [f"only here {_some(ours)}"] * bool(ours)
        raise UsageError(
            f"{where}: expected a reference with the {len(labels)} classes of the model that scores, found {len(counts)}: "
            f"{'; '.join(only)}. Only answers of the same classes can be compared."
        )
    return np.array([counts[label] for label in labels], np.int64)


def _some(labels: list[str]) -> str:
    shown = ", ".join(map(repr, labels[:5]))
    return f"{shown} and {len(labels) - 5} more" if len(labels) > 5 else shown


def measure_drift(reference: Reference, statistics: Statistics) -> Drift:
    """Compare what was scored with the reference."""
    labels = tuple(_label_drift(basis, statistics) for basis in reference.bases)
    confidence = _confidence_drift(reference, statistics)
    verdicts = [labels[0].verdict] + ([] if confidence is None else [confidence.verdict])
    first = reference.bases[0].counts
    return Drift(
        reference=reference.place,
        verdict=max(verdicts, key=_ORDER.index),
        sentence=_sentence(labels[0], confidence),
        labels=labels,
        confidence=confidence,
        remark=reference.remark,
        reference_shares=tuple((first / max(1, first.sum())).tolist()),
    )


def _label_drift(basis: Basis, statistics: Statistics) -> LabelDrift:
    before, now = basis.counts, statistics.counts
    n_before, n = int(before.sum()), int(now.sum())
    if not n:
        why = "nothing was scored"
        return LabelDrift(basis.what, n_before, 0, None, None, None, None, None, None, why, (), "undecided")
    parts = psi_parts(before, now)
    psi = float(parts.sum())
    by_chance = (int(np.count_nonzero(before + now)) - 1) * (1 / n + 1 / n_before)
    tested, why = g_test(before, now)
    g, degrees, p = tested or (None, None, None)
    verdict: Verdict = "little" if psi < LITTLE else "some" if psi <= MUCH else "much"
    if psi >= LITTLE and (p is None or p >= SIGNIFICANT):
        verdict = "undecided"
    shifted = [int(i) for i in np.argsort(-parts, kind="stable")[:_N_SHIFTS] if before[i] * n != now[i] * n_before]
    shifts = tuple(Shift(statistics.labels[i], before[i] / n_before, now[i] / n) for i in shifted)
    js = jensen_shannon_distance(before, now)
    return LabelDrift(basis.what, n_before, n, psi, by_chance, js, g, degrees, p, why, shifts, verdict)


def _confidence_drift(reference: Reference, statistics: Statistics) -> ConfidenceDrift | None:
    before, now = reference.confidences, statistics.sampled_confidences
    if before is None or not len(before) or not len(now):
        return None
    d, p = ks_test(before, now)
    verdict: Verdict = "little" if d < LITTLE else "undecided" if p >= SIGNIFICANT else "some" if d <= MUCH else "much"
    means = float(before.mean(dtype=np.float64)), float(now.mean(dtype=np.float64))
    return ConfidenceDrift(reference.n_confidences, statistics.n_scored, N_SAMPLED, *means, d, p, verdict)


def _sentence(labels: LabelDrift, confidence: ConfidenceDrift | None) -> str:
    if labels.psi is None:
        return "Nothing was scored, so nothing can be compared."
    shown = f"PSI {figure(labels.psi)}"
    words = {
        "little": f"The classes of the answers have changed little ({shown}).",
        "some": f"The classes of the answers have changed somewhat ({shown}).",
        "much": f"The classes of the answers have changed much ({shown}).",
        "undecided": f"Whether the classes of the answers have changed cannot be told from so few inputs ({shown}, of which chance "
        f"alone gives about {figure(labels.psi_by_chance)}).",
    }[labels.verdict]
    if labels.verdict in ("some", "much") and labels.shifts:
        most = labels.shifts[0]
        words += f" Most of all {most.label!r}: {percent(most.now, 1)} instead of {percent(most.before, 1)}."
    if confidence is not None:
        shown = f"mean {percent(confidence.mean, 1)} instead of {percent(confidence.mean_reference, 1)}, KS {figure(confidence.ks)}"
        words += {
            "little": f" Confidences have changed little ({shown}).",
            "some": f" Confidences have changed somewhat ({shown}).",
            "much": f" Confidences have changed much ({shown}).",
            "undecided": f" Whether confidences have changed cannot be told from so few inputs ({shown}).",
        }[confidence.verdict]
    return words


def psi_parts(before: npt.NDArray[np.int64], now: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """What each class adds to the population stability index: (q - p) ln(q / p).

    p and q are the shares in the reference and now, of counts with ``SMOOTHING``. Classes that neither side has add nothing.
    """
    there = before + now > 0
    p, q = (np.where(there, counts + SMOOTHING, 0.0) for counts in (before, now))
    p, q = p / p.sum(), q / q.sum()
    parts = np.zeros(len(before))
    parts[there] = (q[there] - p[there]) * np.log(q[there] / p[there])
    return parts


def jensen_shannon_distance(before: npt.NDArray[np.int64], now: npt.NDArray[np.int64]) -> float:
    """The root of the Jensen-Shannon divergence in bits: 0 of equal distributions, 1 of those that have no class in common."""
    p, q = before / before.sum(), now / now.sum()
    m = (p + q) / 2
    divergence = sum(float(np.sum(x[x > 0] * np.log2(x[x > 0] / m[x > 0]))) for x in (p, q)) / 2
    return math.sqrt(min(1.0, max(0.0, divergence)))


def g_test(before: npt.NDArray[np.int64], now: npt.NDArray[np.int64]) -> tuple[tuple[float, int, float] | None, str]:
    """The G-test that two rows of counts are drawn from one distribution.

    Classes that would have fewer than ``LEAST_EXPECTED`` inputs on a side are put together.

    Returns:
        The statistic, its degrees of freedom and its p-value; else None and why.
    """
    if np.count_nonzero(before + now) < 2:
        return None, "there is one class only"
    table = np.stack([before, now]).astype(np.float64)[:, before + now > 0]
    smaller = table.sum(axis=1).min() / table.sum()
    table = table[:, np.argsort(-table.sum(axis=0), kind="stable")]
    n_kept = int(np.count_nonzero(table.sum(axis=0) * smaller >= LEAST_EXPECTED))
    if n_kept < table.shape[1]:
        rest = table[:, n_kept:].sum(axis=1, keepdims=True)
        table = np.concatenate([table[:, :n_kept], rest], axis=1)
        if n_kept and rest.sum() * smaller < LEAST_EXPECTED:
            table = np.concatenate([table[:, : n_kept - 1], table[:, n_kept - 1 :].sum(axis=1, keepdims=True)], axis=1)
    if table.shape[1] < 2:
        return None, f"too few inputs: fewer than two groups of classes with {LEAST_EXPECTED:g} expected on each side"
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / table.sum()
    there = table > 0
    g = max(0.0, 2 * float(np.sum(table[there] * np.log(table[there] / expected[there]))))
    degrees = table.shape[1] - 1
    return (g, degrees, upper_gamma(degrees / 2, g / 2)), ""


def ks_test(before: npt.NDArray[np.float32], now: npt.NDArray[np.float32]) -> tuple[float, float]:
    """The two-sample Kolmogorov-Smirnov statistic and its asymptotic p-value; of tied values it is on the safe side.

    p = 2 sum_k (-1)^(k-1) exp(-2 k² x²), x = (s + 0.12 + 0.11 / s) D, s = sqrt(nm / (n + m)) (Stephens 1970).
    """
    before, now = np.sort(before), np.sort(now)
    both = np.concatenate([before, now])
    n, m = len(before), len(now)
    d = float(np.abs(np.searchsorted(before, both, "right") / n - np.searchsorted(now, both, "right") / m).max())
    s = math.sqrt(n * m / (n + m))
    x = (s + 0.12 + 0.11 / s) * d
    if x < 0.2:  # the sum converges slowly there, and is 1 to twelve digits
        return d, 1.0
    return d, min(1.0, max(0.0, 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 101))))


def upper_gamma(a: float, x: float) -> float:
    """The regularised upper incomplete gamma function Q(a, x): what a chi-square of 2a degrees exceeds 2x with."""
    if x <= 0:
        return 1.0
    scale = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1:
        term = total = 1 / a
        k = a
        while term > total * 1e-16:
            k += 1
            term *= x / k
            total += term
        return max(0.0, 1 - total * scale)
    # Lentz's continued fraction
    b = x + 1 - a
    c, d = 1e300, 1 / b
    h = d
    for i in range(1, 100_000):
        factor = -i * (i - a)
        b += 2
        d = 1 / (factor * d + b)
        c = b + factor / c
        h *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return min(1.0, scale * h)
