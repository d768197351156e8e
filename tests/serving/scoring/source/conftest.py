from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from convoy.serving.scoring.source import Source


@pytest.fixture
def tar_bytes() -> Callable[..., bytes]:
    """A tar file of members in the order of a mapping; ``mode`` as of ``tarfile.open``."""

    def make(members: Mapping[str, bytes], mode: str = "w") -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return buffer.getvalue()

    return make


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's file system in memory, emptied."""
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def keys() -> Callable[[Source], list[str]]:
    """The keys of a source, listed twice: both times must be equal."""

    def of(source: Source) -> list[str]:
        first = list(source.entries())
        assert list(source.entries()) == first
        return [entry.key for entry in first]

    return of


@pytest.fixture
def loaded() -> Callable[[Source], list[Any]]:
    """What loading gives; an error as its text."""

    def of(source: Source) -> list[Any]:
        return [str(one) if isinstance(one, Exception) else one for one in source.load(list(source.entries()))]

    return of
