"""Which libraries a library wants, also of files that are damaged."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from convoy.serving.doctor.elf import needed

from .conftest import make_shared_library


def test_the_names_are_those_that_the_file_has(tmp_path: Path, shared_library: Callable[..., bytes]) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(shared_library("libcublas.so.13", "libcudart.so.13"))

    assert needed(path) == ["libcublas.so.13", "libcudart.so.13"]


def test_a_library_that_a_compiler_made_is_read() -> None:
    spec = importlib.util.find_spec("pydantic_core._pydantic_core")
    assert spec is not None
    assert spec.origin is not None

    assert "libc.so.6" in needed(Path(spec.origin))


@pytest.mark.parametrize("data", [b"", b"no library", b"\x7fELF\x01\x01" + bytes(58)])
def test_what_is_no_such_library_is_said_to_be_none(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(data)

    with pytest.raises(ValueError, match="library"):
        needed(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(position=37, value=16, length=600)
@example(position=39, value=255, length=600)
@given(st.integers(0, 500), st.integers(0, 255), st.integers(1, 600))
def test_a_damaged_library_gives_names_or_a_reason(tmp_path: Path, position: int, value: int, length: int) -> None:
    data = bytearray(make_shared_library("libcublas.so.13"))
    data[position % len(data)] = value
    path = tmp_path / "library.so"
    path.write_bytes(bytes(data[:length]))

    with contextlib.suppress(ValueError):
        assert all(isinstance(name, str) for name in needed(path))
