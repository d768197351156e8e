"""Reading a file that is one image."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from convoy.contract.errors import ImageError
from convoy.contract.image import empty_image
from convoy.serving.scoring.source import _entry
from convoy.serving.scoring.source._entry import Entry, Loaded
from convoy.serving.scoring.source._filesystem import Location, reason_of

# fmt: off
IMAGE_SUFFIXES: Final = frozenset({
    ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm",
    ".ppm", ".tga", ".tif", ".tiff", ".webp",
})
# fmt: on
"""Files whose names end so, in any case, are inputs. One that turns out to be no image has its row, with the reason."""

REQUESTS: Final = 16
"""So many files are asked for at once from a remote place, where waiting is most of the time."""


def load_each(entries: Sequence[Entry], read: Callable[[Entry], Loaded], *, remote: bool) -> Iterator[Loaded]:
    """What ``read`` gives for each entry, in order; several at once where they are remote."""
    if not remote:
        yield from map(read, entries)
        return
    with ThreadPoolExecutor(min(REQUESTS, max(1, len(entries))), "convoy-source") as pool:
        ahead: deque[Future[Loaded]] = deque()
        try:
            for entry in entries:
                ahead.append(pool.submit(read, entry))
                if len(ahead) > REQUESTS:  # what waits to be taken stays few
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def suffix_of(name: str) -> str:
    """The ending of a file's name with its dot, in small letters; empty where there is none."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122  # may be no UTF-8, or a URL


def read_image_file(location: Location, entry: Entry) -> bytes | ImageError:
    """The file's bytes, or why there are none to decode; a file that is not the one that was listed gives no bytes."""
    files, path = location.files, location.path
    most = _entry.MOST_BYTES
    try:
        info = files.info(path)
        if info.kind != "file":  # reading a pipe could wait for ever
            what = "a folder" if info.kind == "folder" else "no regular file"
            return ImageError(f"{location}: expected an image, found {what}.")
        if changed := _changed(entry, info.size, info.stamp):
            return ImageError(f"{location}: the file changed after the run began{changed}. Run again to score it as it is now.")
        if info.size > most:
            return ImageError(f"{location}: {info.size:,} bytes are more than the {most:,} that are read of an image.")
        data = files.read(path, most + 1, info.size)
    except OSError as error:
        return ImageError(f"{location}: cannot be read: {reason_of(error)}")
    if len(data) > most:
        return ImageError(f"{location}: it has more than the {most:,} bytes that are read of an image.")
    if info.size not in (-1, len(data)):
        return ImageError(f"{location}: the file changed after the run began: it was written to while it was read.")
    if not data:
        return empty_image(location)
    return data


def _changed(entry: Entry, size: int, stamp: str) -> str:
    if -1 not in (entry.size, size) and entry.size != size:
        return f": expected {entry.size:,} bytes, found {size:,}"
    if entry.stamp and stamp and entry.stamp != stamp:
        return f": expected the stamp {entry.stamp}, found {stamp}"
    return ""
