"""The samples of a tar file in WebDataset's manner: neighbours of one name up to the first dot belong together."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import IO, Final

from convoy.serving.scoring.source._image_file import IMAGE_SUFFIXES, suffix_of

_BLOCK: Final = 512
_LONGEST_LABEL: Final = 4096


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a tar file.

    Attributes:
        name: Its members' name up to the first dot, with their folder.
        offset: Where the image's bytes begin.
        size: How many they are; -1 where the tar is damaged at ``offset``, and nothing further can be found in it.
        label: What the ``.cls`` member says; None where there is none, or nobody asked.
    """

    name: str
    offset: int
    size: int
    label: str | None


@dataclass(frozen=True, slots=True)
class _Member:
    sample: str
    ending: str
    offset: int
    size: int


def samples(file: IO[bytes], *, with_label: bool, skipped: Counter[str]) -> Iterator[Sample]:
    """Read the headers alone, one sample in memory at a time.

    Raises:
        tarfile.TarError: It is no tar file at all.
        OSError: It cannot be read.
    """
    for name, group in groupby(_members(file, skipped), key=lambda member: member.sample):
        members = list(group)
        if members[0].size == -1:
            yield Sample(f"(damaged at byte {members[0].offset})", members[0].offset, -1, None)
            continue
        images = [member for member in members if suffix_of(f"x.{member.ending}") in IMAGE_SUFFIXES]
        if not images:
            skipped["samples without image"] += 1
            continue
        if len(images) > 1:
            skipped["further images of a sample"] += len(images) - 1
        image = min(images, key=lambda member: member.ending.count("."))  # `jpg` before `mask.png`; else the first
        label = next((member for member in members if member.ending == "cls"), None) if with_label else None
        yield Sample(name, image.offset, image.size, None if label is None else _text(file, label))


def _members(file: IO[bytes], skipped: Counter[str]) -> Iterator[_Member]:
    with tarfile.open(fileobj=file, mode="r:") as tar:
        try:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps every header
                if tar.offset <= member.offset or member.size < 0:  # a forged size that leads back would be read for ever
                    yield _Member("", "", member.offset, -1)
                    return
                folder, slash, base = member.name.rpartition("/")
                stem, _, ending = base.partition(".")
                if member.isdir():
                    continue
                if not stem:
                    skipped["hidden"] += 1
                elif not member.isreg() or member.sparse is not None:
                    skipped["links, devices or sparse files"] += 1
                else:
                    yield _Member(folder + slash + stem, ending, member.offset_data, member.size)
        except tarfile.TarError:  # the file ends within a member
            yield _Member("", "", tar.offset, -1)
            return
        # tarfile takes a damaged header for the end. The end is a block of zeros, or nothing.
        file.seek(tar.offset)
        if file.read(_BLOCK).strip(b"\0"):
            yield _Member("", "", tar.offset, -1)


def _text(file: IO[bytes], member: _Member) -> str | None:
    file.seek(member.offset)
    return file.read(min(member.size, _LONGEST_LABEL)).decode("utf-8", "backslashreplace").strip() or None
