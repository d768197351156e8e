"""The rows of a model that reads amounts: how they are answered, made and summed up.

Schema, version ``amounts-1`` (``convoy.schema_version`` in each Parquet file's metadata). One row an input, in the source's order:

================  ===============================  ===================================================================
column            Arrow type                       meaning
================  ===============================  ===================================================================
``row``           int64                            the input's place in the source, from 0
``source``        string                           its name: the path relative to the source, FILE#ROW, SHARD:KEY, index
``label``         string                           the amount as written; empty where nothing was read
``amount``        string                           the number that it says, exactly, such as 1234.50; null without a digit
``probability``   float32                          the confidence: how likely the amount is right, in [0, 1]
``accepted``      bool                             whether the confidence reaches the model's threshold
``top_k``         list<struct<label, probability>> the amounts that come next, ``label`` first, with their posteriors
``model_name``    string                           the model that answered
``model_version`` string                           the one version that the whole run was scored with
``model_sha256``  string                           the digest of its ONNX file, where the server tells it
``latency_ms``    float32                          how long the request took in which the image travelled
``error``         string                           why the input has no answer; null where it was scored
``true_label``    string                           the amount that the source names; null where it names none
================  ===============================  ===================================================================

A row has either ``error`` or ``label``, ``probability``, ``accepted`` and ``top_k``; the others of these are null. In CSV ``top_k``
is JSON text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from convoy.contract.field import FieldPixels, to_field
from convoy.contract.figures import interval95
from convoy.contract.manifest import INPUT_NAME
from convoy.contract.reading import OUTPUT_NAMES, WIDTH_NAME, OperatingPoint
from convoy.contract.reject import ERRORS, choose_threshold
from convoy.serving.client import Amount, InferResult
from convoy.serving.client._reading import alike, to_amounts, to_tensors
from convoy.serving.scoring._arrow import import_arrow
from convoy.serving.scoring._scorer import Scorer
from convoy.serving.scoring._statistics import N_BINS, Sample, Statistics
from convoy.serving.scoring._table import Answered, RowMaker, schema_of
from convoy.serving.scoring.source import Entry

AMOUNTS_SCHEMA_VERSION: Final = "amounts-1"

_REQUESTS: Final = 4
_ITS_OWN: Final = ("label", "amount", "probability", "accepted", "top_k")


def is_right(text: str, true_label: str) -> bool:
    """Whether an amount is the true one: by its digits where the truth has nothing but digits, else as written."""
    if true_label.isdecimal():
        return "".join(character for character in text if character.isdecimal()) == true_label
    return text == true_label


@dataclass(frozen=True)
class AmountScorer(Scorer):
    """Scores batches with a model that reads amounts; see ``Scorer``.

    Attributes:
        box: Where the field lies on each image; None: all of it is the field.
    """

    box: tuple[int, int, int, int] | None = None

    @property
    def batch_rows(self) -> int:
        """The inputs that are scored together: of several requests, so that there are more of each width."""
        return _REQUESTS * self.backend.batch_rows

    def _read(self, start: int, entries: Sequence[Entry]) -> tuple[list[FieldPixels], list[int], dict[int, str]]:
        """The fields that can be read, their places in the batch, and the errors of the others."""
        spec = self.backend.interface.image
        block = self.source.block(start, start + len(entries))
        errors: dict[int, str] = {}
        read = list(self._each(block, entries, errors, lambda image: to_field(image, spec, self.box)))
        return [field for _, field in read], [place for place, _ in read], errors

    def _infer(self, images: Sequence[FieldPixels]) -> tuple[list[Amount], list[float]]:
        """Requests for the fields of each width."""
        backend = self.backend
        amounts: dict[int, tuple[Amount, float]] = {}
        most = backend.batch_rows
        for group in [some[i : i + most] for some in alike(images) for i in range(0, len(some), most)]:
            fields = [images[place] for place in group]
            pixels, widths = to_tensors(fields)
            outputs, latency_ms = backend.infer({INPUT_NAME: pixels, WIDTH_NAME: widths}, OUTPUT_NAMES)
            result = InferResult(backend.model_name, backend.version, outputs)
            for place, amount in zip(group, to_amounts(result, backend.interface, fields), strict=True):
                amounts[place] = (amount, latency_ms)
        ordered = [amounts[place] for place in range(len(images))]
        return [amount for amount, _ in ordered], [latency_ms for _, latency_ms in ordered]


class AmountRowMaker(RowMaker):
    """Makes rows of amounts; see ``RowMaker``."""

    schema_version: ClassVar[str] = AMOUNTS_SCHEMA_VERSION

    @staticmethod
    def make_schema(metadata: Mapping[str, str]) -> Any:
        """The ``pyarrow.Schema`` of the table."""
        arrow = import_arrow()
        said = [
            arrow.field("amount", arrow.string()),
            arrow.field("probability", arrow.float32()),
            arrow.field("accepted", arrow.bool_()),
        ]
        return schema_of(said, metadata)

    def _answers(self, n: int, answered: Answered) -> list[Any]:
        """What the model says, of each of ``n`` inputs: label, amount, probability, accepted, top_k."""
        arrow = import_arrow()
        rows: list[tuple[Any, ...]] = [(None,) * len(_ITS_OWN)] * n
        for place, amount in zip(answered.places, () if answered.answers is None else answered.answers, strict=True):
            top_k = [{"label": other.text, "probability": other.posterior} for other in amount.alternatives[: self.top_k]]
            value = None if amount.value is None else format(amount.value, "f")
            rows[place] = (amount.text, value, amount.confidence, amount.accepted, top_k)
        columns = zip(*rows, strict=True)
        return [arrow.array(column, self.schema.field(name).type) for name, column in zip(_ITS_OWN, columns, strict=True)]


@dataclass
class AmountStatistics(Statistics):
    """What a data set of amounts says as a whole; see ``Statistics``. There are no classes.

    Attributes:
        n_accepted: Answers that are accepted.
        n_accepted_labelled: Those among them whose true amount is known.
        n_accepted_wrong: Those among these that are wrong.
        lengths: Answers by their number of digits.
        threshold: From which confidence on the model accepts; None: never.
    """

    labels: tuple[str, ...] = ()
    n_accepted: int = 0
    n_accepted_labelled: int = 0
    n_accepted_wrong: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    threshold: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._judged = Sample()  # confidences of labelled answers, those of wrong ones negative

    @property
    def accepted_error_interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % confidence interval of the share of wrong ones among what is accepted and labelled."""
        n = self.n_accepted_labelled
        return interval95(self.n_accepted_wrong / n, n) if n else None

    def operating_points(self) -> dict[float, OperatingPoint | None]:
        """For each of ``ERRORS`` the threshold that accepts the most labelled fields; None where none does.

        Of all labelled fields, or of a sample where there are more than ``N_SAMPLED``.
        """
        signed = self._judged.values()
        confidence, right = np.abs(signed).tolist(), (~np.signbit(signed)).tolist()
        return {error: choose_threshold(confidence, right, error) for error in ERRORS}

    def is_right(self, label: str, true_label: str) -> bool:
        """Whether an amount is the true one: see the function of this name."""
        return is_right(label, true_label)

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON's values."""
        document = super().to_dict()
        for of_classes in ("labels", "n_foreign_labels", "classes", "most_confused", "confusion"):
            document.pop(of_classes, None)
        n, n_wrong = self.n_accepted_labelled, self.n_accepted_wrong
        document.update(
            threshold=self.threshold,
            n_accepted=self.n_accepted,
            coverage=self.n_accepted / self.n_scored if self.n_scored else None,
            n_accepted_labelled=n,
            n_accepted_wrong=n_wrong,
            accepted_error=n_wrong / n if n else None,
            accepted_error_interval_95=None if self.accepted_error_interval is None else list(self.accepted_error_interval),
            digits={str(length): count for length, count in sorted(self.lengths.items())},
        )
        if self.n_labelled:
            points = self.operating_points().items()
            document["operating_points"] = [{"at_most": e, "point": p and p.model_dump(mode="json")} for e, p in points]
        return document

    def _count(self, table: Any, answered: npt.NDArray[np.bool_]) -> None:
        """Count what is accepted, and how many digits there are."""
        self.n_accepted += int(_accepted(table)[answered].sum())
        texts = table.column("label").to_pylist()
        self.lengths.update(sum(map(str.isdecimal, texts[row])) for row in np.flatnonzero(answered).tolist())

    def _add_labelled(
        self,
        table: Any,
        answered: npt.NDArray[np.bool_],
        probability: npt.NDArray[np.float64],
        bins: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.bool_]:
        """Count the labelled among answered rows; says which of them were answered wrongly."""
        pairs = zip(table.column("label").to_pylist(), table.column("true_label").to_pylist(), answered.tolist(), strict=True)
        of_answers = [(text, truth) for text, truth, is_answered in pairs if is_answered]
        known = np.array([truth is not None for _, truth in of_answers], bool)
        right = np.array([truth is not None and is_right(text, truth) for text, truth in of_answers], bool)
        wrong: npt.NDArray[np.bool_] = known & ~right
        accepted = _accepted(table)[answered]
        rows = table.column("row").to_numpy(zero_copy_only=False)[answered]
        self._judged.add(rows[known], np.where(right, probability, -probability)[known].astype(np.float32))
        self.n_labelled += int(known.sum())
        self.n_accepted_labelled += int((known & accepted).sum())
        self.n_accepted_wrong += int((wrong & accepted).sum())
        self.right += np.bincount(bins[right], minlength=N_BINS)
        self.labelled += np.bincount(bins[known], minlength=N_BINS)
        self.probability_sums += np.bincount(bins[known], weights=probability[known], minlength=N_BINS)
        return wrong


def _accepted(table: Any) -> npt.NDArray[np.bool_]:
    return np.array([bool(accepted) for accepted in table.column("accepted").to_pylist()], bool)
