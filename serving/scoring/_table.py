"""The rows of a data set: their schema, how they are made of answers, and how they become files.

Schema, version 2 (``convoy.schema_version`` in each Parquet file's metadata). One row an input, in the source's order:

================  ===============================  ===================================================================
column            Arrow type                       meaning
================  ===============================  ===================================================================
``row``           int64                            the input's place in the source, from 0
``source``        string                           its name: the path relative to the source, FILE#ROW, SHARD:KEY, index
``label``         string                           the most likely class
``index``         int32                            its place in the model's outputs
``probability``   float32                          in [0, 1]
``top_k``         list<struct<label, probability>> the likeliest classes, ``label`` included, the likeliest first
``model_name``    string                           the model that answered
``model_version`` string                           the one version that the whole run was scored with
``model_sha256``  string                           the digest of its ONNX file, where the server tells it
``latency_ms``    float32                          how long the request took in which the image travelled
``error``         string                           why the input has no answer; null where it was scored
``true_label``    string                           the class that the source names; null where it names none
================  ===============================  ===================================================================

A row has either ``error`` or ``label``, ``index``, ``probability`` and ``top_k``; the others of these are null. In CSV ``top_k`` is
JSON text.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from convoy.serving.client import Amount
from convoy.serving.client._classification import check_probabilities, likeliest_classes
from convoy.serving.scoring._arrow import import_arrow
from convoy.serving.scoring._listing import InputRows

SCHEMA_VERSION: Final = "2"

Format: TypeAlias = Literal["parquet", "csv", "jsonl"]
FORMATS: Final[tuple[Format, ...]] = ("parquet", "csv", "jsonl")


@dataclass(frozen=True)
class Answered:
    """What became of the inputs of one batch, whose places are 0 to n.

    Attributes:
        n: Its inputs.
        places: Those that were answered.
        answers: Of these, in their order: probabilities, float (len(places), classes); or a list of amounts. None where there are
            none.
        latency_ms: How long the request took; of several requests an array of the time of each input, float (n,).
        errors: The others, each with its reason.
    """

    n: int
    places: Sequence[int]
    answers: npt.NDArray[Any] | list[Amount] | None
    latency_ms: float | npt.NDArray[np.float32]
    errors: Mapping[int, str]


class RowMaker:
    """Makes rows.

    Args:
        labels: The model's class names.
        top_k: How many candidates a row lists; at most all classes.
        model_name: The model.
        model_version: The version that answers.
        model_sha256: The digest of its ONNX file; None where nobody knows.
        run: The identity of the run, for the metadata.

    Attributes:
        top_k: How many candidates a row lists.
        schema: The ``pyarrow.Schema`` of the rows.
        schema_version: Its version.
    """

    schema_version: ClassVar[str] = SCHEMA_VERSION

    def __init__(
        self, labels: tuple[str, ...], top_k: int, model_name: str, model_version: str, model_sha256: str | None, run: str
    ) -> None:
        arrow = import_arrow()
        self._labels = arrow.array(labels, arrow.string())
        self._n_classes = len(labels)
        self._k = min(top_k, len(labels))
        self.top_k = top_k
        self._model = (model_name, model_version, model_sha256)
        metadata = {"convoy.schema_version": self.schema_version, "convoy.run": run}
        self.schema = self.make_schema({**metadata, "convoy.model_name": model_name, "convoy.model_version": model_version})

    def check(self, probabilities: npt.NDArray[Any], n: int) -> None:
        """See ``check_probabilities``."""
        check_probabilities(probabilities, n, self._n_classes)

    @staticmethod
    def make_schema(metadata: Mapping[str, str]) -> Any:
        """The ``pyarrow.Schema`` of the table."""
        return make_schema(metadata)

    def table(self, start: int, inputs: InputRows, batches: Sequence[Answered]) -> Any:
        """The ``pyarrow.Table`` of a chunk. Of a chunk, and not of each batch: Arrow takes as long for few rows as for many.

        Args:
            start: The place of its first input in the source.
            inputs: Its inputs.
            batches: What became of them, one batch after the other.
        """
        arrow = import_arrow()
        n = len(inputs)
        answered, latencies = _joined(batches)
        columns: list[Any] = [
            arrow.array(np.arange(start, start + n, dtype=np.int64)),
            inputs.batch.column("key"),
        ]
        columns += self._answers(n, answered)
        columns += [_constant(value, n) for value in self._model]
        scored = np.zeros(n, bool)
        scored[np.asarray(answered.places, np.int64)] = True
        columns.append(arrow.array(latencies, mask=~scored))
        columns.append(arrow.array([answered.errors.get(place) for place in range(n)], arrow.string()))
        columns.append(inputs.batch.column("true_label"))
        return arrow.Table.from_arrays(columns, schema=self.schema)

    def _answers(self, n: int, answered: Answered) -> list[Any]:
        """What the model says, of each of ``n`` inputs: label, index, probability, top_k."""
        arrow = import_arrow()
        k, m = self._k, len(answered.places)
        if m == 0 or answered.answers is None:
            return [arrow.nulls(n, self.schema.field(name).type) for name in ("label", "index", "probability", "top_k")]
        probabilities = np.asarray(answered.answers, np.float32)
        places, likeliest = likeliest_classes(probabilities, k)
        order = places.astype(np.int32)
        at = np.full(n, -1, np.int64)
        at[np.asarray(answered.places, np.int64)] = np.arange(m)
        missing = at < 0
        take = arrow.array(at, mask=missing)
        candidates = arrow.StructArray.from_arrays(
            [self._labels.take(arrow.array(order.reshape(-1))), arrow.array(likeliest.reshape(-1))],
            fields=list(self.schema.field("top_k").type.value_type),
        )
        offsets = arrow.array(np.arange(0, (m + 1) * k, k, dtype=np.int32))
        top_k = arrow.ListArray.from_arrays(offsets, candidates, type=self.schema.field("top_k").type)
        first = arrow.array(np.ascontiguousarray(order[:, 0])).take(take)
        return [self._labels.take(first), first, arrow.array(np.ascontiguousarray(likeliest[:, 0])).take(take), top_k.take(take)]


def _joined(batches: Sequence[Answered]) -> tuple[Answered, npt.NDArray[np.float32]]:
    """Batches as one, and the latency of each of their inputs."""
    places: list[npt.NDArray[np.int64]] = []
    answers: list[Any] = []
    errors: dict[int, str] = {}
    start = 0
    for batch in batches:
        places.append(np.asarray(batch.places, np.int64) + start)
        if batch.answers is not None:
            answers.append(batch.answers)
        errors.update((place + start, error) for place, error in batch.errors.items())
        start += batch.n
    latencies = np.concatenate([np.broadcast_to(np.asarray(batch.latency_ms, np.float32), batch.n) for batch in batches])
    return Answered(start, np.concatenate(places).tolist(), join(answers), 0.0, errors), latencies


def join(answers: Sequence[Any]) -> Any:
    """The answers to several requests as one; None where there are none."""
    if not answers or isinstance(answers[0], np.ndarray):
        return np.concatenate(answers) if answers else None
    return [answer for some in answers for answer in some]


def make_schema(metadata: Mapping[str, str]) -> Any:
    """The ``pyarrow.Schema`` of the table."""
    arrow = import_arrow()
    return schema_of([arrow.field("index", arrow.int32()), arrow.field("probability", arrow.float32())], metadata)


def schema_of(answers: Sequence[Any], metadata: Mapping[str, str]) -> Any:
    """The ``pyarrow.Schema`` of a table.

    Args:
        answers: The columns between ``label`` and ``top_k``: what a task's model says of each input besides.
        metadata: Of the schema.
    """
    arrow = import_arrow()
    candidate = arrow.struct([arrow.field("label", arrow.string(), False), arrow.field("probability", arrow.float32(), False)])
    fields = [
        arrow.field("row", arrow.int64(), False),
        arrow.field("source", arrow.string(), False),
        arrow.field("label", arrow.string()),
        *answers,
        arrow.field("top_k", arrow.list_(arrow.field("item", candidate, False))),
        arrow.field("model_name", arrow.string(), False),
        arrow.field("model_version", arrow.string(), False),
        arrow.field("model_sha256", arrow.string()),
        arrow.field("latency_ms", arrow.float32()),
        arrow.field("error", arrow.string()),
        arrow.field("true_label", arrow.string()),
    ]
    return arrow.schema(fields, dict(metadata))


def to_staged(table: Any) -> bytes:
    """A chunk's rows as the bytes that are kept until its file is full: Arrow's own format."""
    arrow = import_arrow()
    sink = io.BytesIO()
    with arrow.ipc.new_file(sink, table.schema, options=arrow.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return sink.getvalue()


def from_staged(data: bytes) -> Any:
    """The rows behind ``to_staged``; raises ``pyarrow.ArrowInvalid`` where there are none."""
    return import_arrow().ipc.open_file(import_arrow().BufferReader(data)).read_all()


def to_file(table: Any, form: Format) -> bytes:
    """Rows as a file of a data set."""
    arrow = import_arrow()
    sink = io.BytesIO()
    if form == "parquet":
        arrow.parquet.write_table(table, sink, compression="zstd")
    elif form == "csv":
        column = table.schema.get_field_index("top_k")
        texts = [None if value is None else json.dumps(value, ensure_ascii=False) for value in table.column(column).to_pylist()]
        arrow.csv.write_csv(table.set_column(column, "top_k", arrow.array(texts, arrow.string())), sink)
    else:
        sink.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()).encode())
    return sink.getvalue()


def from_file(data: bytes, form: Format, schema: Any) -> Any:
    """The rows behind ``to_file``; raises ``pyarrow.ArrowInvalid`` or ValueError where there are none."""
    arrow = import_arrow()
    if form == "parquet":
        return arrow.parquet.read_table(arrow.BufferReader(data))
    if form == "csv":
        types = {field.name: arrow.string() if field.name == "top_k" else field.type for field in schema}
        options = arrow.csv.ConvertOptions(column_types=types, strings_can_be_null=True, quoted_strings_can_be_null=False)
        parsed = arrow.csv.ParseOptions(newlines_in_values=True)
        whole = arrow.csv.ReadOptions(
            block_size=min(max(len(data), 1 << 20), (1 << 31) - 1)
        )  # a row may not be longer than a block
        table = arrow.csv.read_csv(arrow.BufferReader(data), whole, parsed, options)
        column = table.schema.get_field_index("top_k")
        values = [None if text is None else json.loads(text) for text in table.column(column).to_pylist()]
        return table.set_column(column, schema.field("top_k"), arrow.array(values, schema.field("top_k").type)).cast(schema)
    return arrow.Table.from_pylist([json.loads(line) for line in data.decode().split("\n") if line], schema)


def _constant(value: str | None, n: int) -> Any:
    arrow = import_arrow()
    return arrow.nulls(n, arrow.string()) if value is None else arrow.repeat(arrow.scalar(value), n)
