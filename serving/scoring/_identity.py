"""What makes two runs the same one: ``_convoy/run.json``, written before anything is scored."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import SerializerFunctionWrapHandler, ValidationError, model_serializer

from convoy.contract.errors import ScoringError, UsageError
from convoy.contract.files import Document, sha256_bytes
from convoy.serving.scoring._table import SCHEMA_VERSION, Format
from convoy.serving.scoring.source._filesystem import protocol_of

RUN_FILE: Final = "_convoy/run.json"


class RunIdentity(Document):
    """A scoring run.

    Attributes:
        schema_version: The version of this document's form.
        table_version: The version of the rows' schema.
        source: What was scored, as it was named.
        source_kind: folder, list, parquet, array, tar, or paths.
        n: Its inputs.
        chunk_rows: Inputs that are committed together.
        rows_per_file: Rows of each file of the data set; the last has what is left.
        listing: The digest of each chunk's listing.
        skipped: What in the source is no input, counted by reason.
        model_name: The model.
        model_version: The one version.
        model_sha256: The digest of its ONNX file; None where the server does not tell.
        interface_sha256: The digest of its labels, its image rule and its tensors: the preprocessing that is the client's.
        top_k: Candidates a row.
        labels: Where true labels come from: nowhere, folders, or the name of a column.
        column: Which column of the source has the images.
        box: Where the field lies on each image: left, top, width, height in pixels; None: all of it is the field.
        format: Of the files.
    """

    schema_version: Literal[1] = 1
    table_version: str = SCHEMA_VERSION
    source: str
    source_kind: str
    n: int
    chunk_rows: int
    rows_per_file: int
    listing: tuple[str, ...]
    skipped: dict[str, int]
    model_name: str
    model_version: str
    model_sha256: str | None
    interface_sha256: str
    top_k: int
    labels: str
    column: str | None
    box: tuple[int, int, int, int] | None = None
    format: Format

    @model_serializer(mode="wrap")
    def _serialize(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a box where there is none: the digests of runs from before there were any stay as they are."""
        fields: dict[str, Any] = handler(self)
        if self.box is None:
            fields.pop("box", None)
        return fields

    @property
    def digest(self) -> str:
        """Names the run in each of its files."""
        return sha256_bytes(self.to_bytes())[:32]

    def check_resumes(self, earlier: RunIdentity, where: str) -> None:
        """Make sure that this run goes on with what an earlier one began.

        Raises:
            UsageError: It is another run; the message says in what.
        """
        names = {
            "source": "the source",
            "source_kind": "the kind of the source",
            "model_name": "the model",
            "model_version": "the model's version",
            "model_sha256": "the model's file (its digest)",
            "interface_sha256": "the model's labels or image rule (their digest)",
            "top_k": "--top-k",
            "labels": "the source of labels (--labels-from-folders, --label-column)",
            "column": "--column",
            "box": "--box",
            "chunk_rows": "--chunk-rows",
            "rows_per_file": "--rows-per-file",
            "format": "--format",
            "table_version": "the version of the table",
        }
        found = [
            f"{said} was {_shown(getattr(earlier, name))} and is {_shown(getattr(self, name))}"
            for name, said in names.items()
            if _compared(name, getattr(earlier, name)) != _compared(name, getattr(self, name))
        ]
        if not found and earlier.listing != self.listing:
            found.append(self._what_changed(earlier))
        if not found and earlier.skipped != self.skipped:
            return  # what is no input does not matter
        if found:
            raise UsageError(
                f"{where}: another run was begun here: {'; '.join(found)}. To go on with that one, run it as it was begun; to "
                "score anew, name another place, or remove this one."
            )

    def _what_changed(self, earlier: RunIdentity) -> str:
        if earlier.n != self.n:
            return f"the source had {earlier.n:,} inputs and has {self.n:,}"
        first = next(i for i, pair in enumerate(zip(earlier.listing, self.listing, strict=True)) if pair[0] != pair[1])
        start, stop = first * self.chunk_rows, min(self.n, (first + 1) * self.chunk_rows)
        n = sum(one != other for one, other in zip(earlier.listing, self.listing, strict=True))
        return (
            f"inputs of the source have changed (another name, size, time or label), the first of them among rows {start:,} to "
            f"{stop - 1:,} ({n} of {len(self.listing)} chunks differ)"
        )


def _compared(name: str, value: object) -> object:
    """A field's value, of a source on this machine its whole path: however it is spelled, it is the same one."""
    if name != "source" or not isinstance(value, str) or value == "-" or protocol_of(value) is not None:
        return value
    return os.path.normpath(Path(value).absolute())


def _shown(value: object) -> str:
    return "not given" if value in (None, "") else repr(value)


def parse_identity(data: bytes, where: str) -> RunIdentity:
    """The identity behind ``RUN_FILE``.

    Raises:
        ScoringError: It is damaged, or another version of Convoy's.
    """
    try:
        return RunIdentity.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ScoringError(
            f"{where}/{RUN_FILE}: cannot be read ({first['msg']}): it is damaged, or another version of Convoy wrote it. Remove "
            "the data set and score anew, or name another place."
        ) from error
