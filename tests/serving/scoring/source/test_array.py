from __future__ import annotations

import gzip
import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convoy.contract.errors import DataError, SourceChangedError, UsageError
from convoy.serving.scoring.source import open_source

Keys = Callable[[Any], list[str]]


def images(n: int = 3) -> np.ndarray:
    return np.arange(n * 16, dtype=np.uint8).reshape(n, 4, 4)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write(path: Path, array: np.ndarray) -> Path:
    if path.name.endswith("packed.npz"):
        np.savez_compressed(path, image=array, label=np.arange(len(array)))
    elif path.suffix == ".npz":
        np.savez(path, image=array, label=np.arange(len(array)))
    elif path.suffix == ".npy":
        np.save(path, array)
    else:
        path.write_bytes(gzip.compress(idx(array), mtime=0) if path.suffix == ".gz" else idx(array))
    return path


FORMS = ("x.npy", "x.npz", "packed.npz", "x.idx", "x-ubyte", "x.idx.gz")


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 4, 3), (3, 4, 4, 1), (3, 2, 2, 3)])
def test_arrays_are_read_in_every_form(name: str, shape: tuple[int, ...], tmp_path: Path, keys: Keys) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    source = open_source(write(tmp_path / name, array))
    assert source.kind == "array"
    assert keys(source) == ["0", "1", "2"]
    entries = list(source.entries())
    assert all(entry.size == np.prod(shape[1:]) for entry in entries)
    answers: list[Any] = list(source.load(entries[::-1]))
    assert all(one.ndim == 3 and one.dtype == np.uint8 for one in answers)
    assert all(np.array_equal(one.reshape(shape[1:]), want) for one, want in zip(answers, array[::-1], strict=True))
    block = source.block(1, 3)
    assert block is not None
    assert not block.flags.owndata
    assert np.array_equal(block, array[1:3])


def test_fortran_order_is_kept(tmp_path: Path) -> None:
    array = images()
    np.save(tmp_path / "x.npy", np.asfortranarray(array))
    assert np.array_equal(np.asarray(open_source(tmp_path / "x.npy").block(0, 3)), array)


def test_an_npz_may_name_images_and_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=images(), b=images() + 1, y=np.array(["cat", "dog", "cat"]), short=np.zeros(2))
    source = open_source(tmp_path / "x.npz", column="b", label_column="y")
    assert [entry.true_label for entry in source.entries()] == ["cat", "dog", "cat"]
    assert np.array_equal(np.asarray(source.block(0, 3)), images() + 1)
    for options, error, words in (
        ({}, UsageError, r"found \['a', 'b', 'y', 'short'\]"),
        ({"column": "z"}, UsageError, "expected an array 'z'"),
        ({"column": "a", "label_column": "z"}, UsageError, "expected an array 'z'"),
        ({"column": "a", "label_column": "short"}, DataError, "one label an image"),
    ):
        with pytest.raises(error, match=words):
            open_source(tmp_path / "x.npz", **options)  # type: ignore[arg-type]


def test_a_million_images_are_listed_fast_and_flat(tmp_path: Path) -> None:
    array = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (1_000_000, 28, 28))
    del array  # a hole of 784 MB on the disk
    source = open_source(tmp_path / "x.npy")
    start = time.process_time()
    assert sum(1 for _ in source.entries()) == 1_000_000
    assert time.process_time() - start < 3
    tracemalloc.start()
    for place, _ in enumerate(source.entries()):
        if place == 20_000:
            break
    source.block(999_000, 1_000_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.idx", "x.idx.gz"])
def test_another_file_under_the_name_ends_the_run(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, images())
    entries = list(open_source(path).entries())
    write(path, images(4))
    os.utime(path, ns=(1, 1))
    with pytest.raises(SourceChangedError, match="changed since it was listed"):
        list(open_source(path).load(entries))


def test_a_mapped_file_that_changes_under_way_ends_the_run(tmp_path: Path) -> None:
    path = write(tmp_path / "x.npy", images())
    source = open_source(path)
    entries = list(source.entries())
    os.utime(path, ns=(1, 1))
    with pytest.raises(SourceChangedError):
        list(source.load(entries))
    with pytest.raises(SourceChangedError):
        source.block(0, 1)
    path.unlink()
    with pytest.raises(SourceChangedError, match="gone"):
        source.block(0, 1)


def test_many_threads_load_at_once(tmp_path: Path) -> None:
    array = np.arange(256, dtype=np.uint8).repeat(16).reshape(256, 4, 4)
    source = open_source(write(tmp_path / "packed.npz", array))
    entries = list(source.entries())
    with ThreadPoolExecutor(8) as pool:
        chunks = list(
            pool.map(lambda start: [int(one[0, 0, 0]) for one in source.load(entries[start : start + 8])], range(0, 256, 8))
        )  # type: ignore[index, union-attr]
    assert [one for chunk in chunks for one in chunk] == list(range(256))


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("short.idx", idx(images())[:-1], DataError, "expected 48 bytes.*found 47"),
        ("long.idx", idx(images()) + b"x", DataError, "expected 48 bytes.*found 49"),
        ("labels.idx", idx(np.zeros(3, np.uint8)), UsageError, "IDX file of images"),
        ("cut.idx", b"\0\0\x08\x03\0\0", UsageError, "IDX file of images"),
        ("none.idx", idx(images(0)), DataError, "nothing to score"),
        ("cut.gz", gzip.compress(idx(images()), mtime=0)[:-9], DataError, "cannot be unzipped"),
        ("not.gz", gzip.compress(b"hello", mtime=0), UsageError, "IDX file of images"),
        ("not.npy", b"hello", DataError, "numpy file"),
        ("not.npz", b"PK\x03\x04 broken", DataError, "numpy file"),
    ],
)
def test_a_damaged_array_is_refused(name: str, content: bytes, error: type, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=words):
        open_source(tmp_path / name)


def test_a_npy_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.npy", images())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="numpy file"):
        open_source(path)


@pytest.mark.parametrize(
    "array", [images().astype(np.float32), images()[0], np.zeros((2, 4, 4, 2), np.uint8), np.zeros((2, 0, 4), np.uint8)]
)
def test_an_array_that_holds_no_images_is_refused(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(UsageError, match="expected uint8 images"):
        open_source(tmp_path / "x.npy")


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    objects = np.array([{}], dtype=object)
    np.save(tmp_path / "x.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "x.npz", objects)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(UsageError, match="pickled Python objects"):
            open_source(tmp_path / name)


def test_an_array_without_names_has_no_columns(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected no column"):
        open_source(write(tmp_path / "x.npy", images()), column="x")


@given(st.binary(max_size=80))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_no_file_whatever_breaks_the_reader(tmp_path: Path, content: bytes) -> None:
    heads = (b"", b"\0\0\x08\x03", b"\x1f\x8b\x08", b"PK\x03\x04", b"\x93NUMPY", b"\x93NUMPY\x01\x00")
    for suffix in ("txt", "csv", "npy", "npz", "idx", "tar", "tgz", "parquet"):
        path = tmp_path / f"x.{suffix}"
        for head in heads:
            path.write_bytes(head + content)
            try:
                source: Any = open_source(path)
                assert list(source.entries())
            except (UsageError, DataError):
                continue
