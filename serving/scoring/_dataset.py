"""The data set under way: which chunks are there, which files; how chunks become files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from convoy.contract.errors import ScoringError, UsageError
from convoy.contract.files import sha256_bytes
from convoy.serving.scoring._arrow import import_arrow
from convoy.serving.scoring._identity import RUN_FILE, RunIdentity, parse_identity
from convoy.serving.scoring._store import Store
from convoy.serving.scoring._table import from_file, from_staged, to_file, to_staged
from convoy.serving.scoring.source import printable

MANIFEST_FILE: Final = "_convoy/manifest.json"
_CHUNK: Final = re.compile(r"_convoy/chunk-(\d{8,})\.arrow")
_PART: Final = re.compile(r"part-(\d{6,})\.(parquet|csv|jsonl)")


@dataclass(frozen=True)
class Stored:
    """What of a run is there.

    Attributes:
        parts: The numbers of finished files.
        chunks: The numbers of chunks that wait for their file to be full.
    """

    parts: frozenset[int]
    chunks: frozenset[int]


class DataSet:
    """The files of one run.

    ``part-NNNNNN.parquet`` are the data set; what lies in ``_convoy/`` is the run's own: ``run.json`` names the run, chunks wait
    there as Arrow files until all of a part are there, and ``manifest.json``, written last, says that all is.

    Args:
        store: Where they lie.
        identity: The run.
        schema: The rows' schema.
    """

    def __init__(self, store: Store, identity: RunIdentity, schema: Any) -> None:
        self._store = store
        self._identity = identity
        self._schema = schema
        self._per_part = identity.rows_per_file // identity.chunk_rows
        self.n_chunks = len(identity.listing)

    @staticmethod
    def identity_in(store: Store) -> RunIdentity | None:
        """The run that was begun in a place; None where the place is empty.

        Raises:
            UsageError: Something else is there.
            ScoringError: It is damaged.
        """
        names = store.names()
        if RUN_FILE in names:
            try:
                return parse_identity(store.read(RUN_FILE), store.shown)
            except OSError as error:
                raise ScoringError(f"{store.shown}/{RUN_FILE}: cannot be read: {error}.") from error
        others = sorted(name for name in names if not name.startswith("_convoy/"))
        if others:
            raise UsageError(
                f"{store.shown}: expected an empty or new place, or a data set that `convoy score` began, found {len(others)} "
                f"other files ({printable(others[0])}, say). Name another place."
            )
        return None

    def begin(self) -> Stored:
        """Write the identity, where this is the first run here; say what is there already.

        Raises:
            ScoringError: The place refuses it.
        """
        if RUN_FILE not in self._store.names():
            self._store.write(RUN_FILE, self._identity.to_bytes())
        return self._stored()

    def reopen(self) -> None:
        """Take back that all is there: a file is missing.

        Raises:
            ScoringError: The place refuses it.
        """
        self._store.remove(MANIFEST_FILE)

    def _stored(self) -> Stored:
        parts, chunks = set[int](), set[int]()
        for name, size in self._store.names().items():
            if found := _PART.fullmatch(name):
                if found[2] == self._identity.format:
                    parts.add(int(found[1]))
            elif (found := _CHUNK.fullmatch(name)) and size:
                chunks.add(int(found[1]))
        for chunk in [chunk for chunk in chunks if chunk // self._per_part in parts]:
            self._store.remove(_chunk_name(chunk))  # its file was finished just before the run was killed
            chunks.discard(chunk)
        return Stored(frozenset(parts), frozenset(chunks))

    @property
    def n_parts(self) -> int:
        """How many files there will be."""
        return -(-self.n_chunks // self._per_part)

    def part_of(self, chunk: int) -> int:
        """The file of a chunk."""
        return chunk // self._per_part

    def chunks_of(self, part: int) -> range:
        """The chunks of a file."""
        return range(part * self._per_part, min(self.n_chunks, (part + 1) * self._per_part))

    def rows_of(self, chunk: int) -> int:
        """How many rows a chunk has."""
        return min(self._identity.chunk_rows, self._identity.n - chunk * self._identity.chunk_rows)

    def write_chunk(self, chunk: int, table: Any) -> None:
        """Keep a chunk's rows.

        Raises:
            ScoringError: The place refuses them.
        """
        assert table.num_rows == self.rows_of(chunk), (chunk, table.num_rows)
        self._store.write(_chunk_name(chunk), to_staged(table))

    def read_chunk(self, chunk: int) -> Any:
        """A chunk's rows; None where they are damaged, and are to be scored again."""
        import pyarrow

        try:
            table = from_staged(self._store.read(_chunk_name(chunk)))
        except (OSError, pyarrow.ArrowException):
            return None
        right = table.num_rows == self.rows_of(chunk) and table.schema.equals(self._schema, check_metadata=True)
        return table if right else None

    def remove_chunk(self, chunk: int) -> None:
        """Forget a chunk."""
        self._store.remove(_chunk_name(chunk))

    def write_part(self, part: int, tables: list[Any]) -> None:
        """Make a file of its chunks' rows, and forget them.

        Raises:
            ScoringError: The place refuses it.
        """
        table = import_arrow().concat_tables(tables).combine_chunks()
        self._store.write(self.part_name(part), to_file(table, self._identity.format))
        for chunk in self.chunks_of(part):
            self.remove_chunk(chunk)

    def read_part(self, part: int) -> Any:
        """A file's rows.

        Raises:
            ScoringError: It is damaged, or another run's.
        """
        import pyarrow

        name = self.part_name(part)
        try:
            table = from_file(self._store.read(name), self._identity.format, self._schema)
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise ScoringError(
                f"{self._store.shown}/{name}: cannot be read: {error}. Remove this one file: its rows are scored anew."
            ) from error
        rows = sum(self.rows_of(chunk) for chunk in self.chunks_of(part))
        run = (table.schema.metadata or {}).get(b"convoy.run", b"").decode()
        if table.num_rows != rows or (self._identity.format == "parquet" and run != self._identity.digest):
            raise ScoringError(
                f"{self._store.shown}/{name}: expected {rows:,} rows of run {self._identity.digest}, found {table.num_rows:,} of "
                f"{run or 'another'}. Remove this one file: its rows are scored anew."
            )
        return table

    def part_name(self, part: int) -> str:
        """The name of a file."""
        return f"part-{part:06}.{self._identity.format}"

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Say that all is there.

        Raises:
            ScoringError: The place refuses it.
        """
        files = []
        for part in range(self.n_parts):
            name = self.part_name(part)
            try:
                data = self._store.read(name)
            except OSError as error:
                raise ScoringError(f"{self._store.shown}/{name}: cannot be read: {error}.") from error
            rows = sum(self.rows_of(chunk) for chunk in self.chunks_of(part))
            files.append({"name": name, "rows": rows, "bytes": len(data), "sha256": sha256_bytes(data)})
        document = {"run": self._identity.digest, "files": files, "summary": dict(summary)}
        self._store.write(MANIFEST_FILE, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())

    def manifest(self) -> dict[str, Any] | None:
        """What ``finish`` wrote; None where the run has not ended."""
        if MANIFEST_FILE not in self._store.names():
            return None
        try:
            document: dict[str, Any] = json.loads(self._store.read(MANIFEST_FILE))
        except (OSError, ValueError):
            return None
        return document if isinstance(document, dict) and document.get("run") == self._identity.digest else None


def _chunk_name(chunk: int) -> str:
    return f"_convoy/chunk-{chunk:08}.arrow"
