"""Tar shards in WebDataset's manner."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Final

from convoy.contract.errors import DataError, ImageError
from convoy.contract.image import empty_image
from convoy.serving.scoring.source import _entry
from convoy.serving.scoring.source._cache import Cache
from convoy.serving.scoring.source._entry import Entry, Loaded
from convoy.serving.scoring.source._filesystem import reason_of
from convoy.serving.scoring.source._image_file import load_each
from convoy.serving.scoring.source._name import printable
from convoy.serving.scoring.source._shards import Shards, make_locator, split_locator
from convoy.serving.scoring.source._spool import Spool
from convoy.serving.scoring.source._tar_members import samples

_SPOOLED: Final = 4  # unzipped shards on the disk at once: the one that is listed, those that are read, one to spare


class TarSource:
    """The images of tar files. The key is SHARD:NAME; the locator the shard and the image's offset and size in it.

    Args:
        spec: As given.
        shards: The tar files, gzipped or not.
        with_label: Take the true label from the sample's ``.cls``.
    """

    kind = "tar"

    def __init__(self, spec: str, shards: Shards, *, with_label: bool) -> None:
        self.spec = spec
        self._shards = shards
        self._with_label = with_label
        self._skipped: Mapping[str, int] = {}
        self._spools: Cache[Spool] = Cache(_SPOOLED)

    @property
    def skipped(self) -> Mapping[str, int]:
        """Counted by reason, after ``entries``."""
        return self._skipped

    def entries(self) -> Iterator[Entry]:
        """Every sample's image, shard by shard. A shard that is damaged has one entry more, which says so when it is loaded."""
        skipped: Counter[str] = Counter(self._shards.skipped)
        for name in self._shards.names:
            version = self._shards.version(name)
            try:
                with self._open(name, version) as file:
                    for sample in samples(file, with_label=self._with_label, skipped=skipped):
                        place = make_locator(name, f"{sample.offset}+{sample.size}")
                        yield Entry(printable(f"{name}:{sample.name}"), place, sample.size, version, sample.label)
            except tarfile.TarError as error:
                raise DataError(f"{self._shards.shown(name)}: expected a tar file, found something else: {error}") from error
            except OSError as error:
                raise DataError(f"{self._shards.shown(name)}: cannot be read: {reason_of(error)}") from error
        self._skipped = dict(skipped)

    def load(self, entries: Sequence[Entry]) -> Iterator[Loaded]:
        """Each image's bytes, by their place in the shard."""
        self._shards.check(entries)
        return load_each(entries, self._read, remote=self._shards.files.remote)

    def block(self, start: int, stop: int) -> None:  # noqa: ARG002  # the protocol's
        """There is no array."""
        return

    def _open(self, name: str, version: str) -> IO[bytes]:
        if not _zipped(name):
            return self._shards.files.open(self._shards.path(name))
        return self._unzipped(name, version).open()

    def _unzipped(self, name: str, version: str) -> Spool:
        def make() -> Spool:
            try:
                with self._shards.files.open(self._shards.path(name)) as packed, gzip.GzipFile(fileobj=packed, mode="rb") as file:
                    return Spool.of(file)
            except (OSError, EOFError, zlib.error) as error:
                raise DataError(f"{self._shards.shown(name)}: cannot be unzipped to a temporary file: {error}") from error

        return self._spools.get((name, version), make)

    def _read(self, entry: Entry) -> Loaded:
        name, place = split_locator(entry)
        offset, size = map(int, place.split("+"))
        shown = f"{self._shards.shown(name)}: {entry.key.rpartition(':')[2]}"
        if size == -1:
            return ImageError(f"{shown}: what follows in this tar file cannot be found. Mend it, or fetch it again.")
        if size == 0:
            return empty_image(shown, "an empty member")
        if size > _entry.MOST_BYTES:
            return ImageError(f"{shown}: {size:,} bytes are more than the {_entry.MOST_BYTES:,} that are read of an image.")
        try:
            if _zipped(name):
                with self._unzipped(name, entry.stamp).open() as file:
                    file.seek(offset)
                    data = file.read(size)
            else:
                data = self._shards.files.read_range(self._shards.path(name), offset, size)
        except OSError as error:
            return ImageError(f"{shown}: cannot be read: {reason_of(error)}")
        if len(data) != size:
            return ImageError(f"{shown}: expected {size:,} bytes, found {len(data):,}: the tar file is cut short.")
        return data


def _zipped(name: str) -> bool:
    return name.lower().partition("?")[0].endswith((".gz", ".tgz"))
