from __future__ import annotations

import gzip
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convoy.contract.errors import DataError, ImageError, UsageError
from convoy.serving.scoring._source import Source, open_source


def names(source: Source) -> list[str]:
    return [item.source for item in source.items()]


def images(n: int = 3) -> np.ndarray:
    return np.arange(n * 16, dtype=np.uint8).reshape(n, 4, 4)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def test_a_folder_is_listed_with_its_sub_folders_sorted_level_by_level(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.PNG", "a.jpg", "b.png", "a/x/y/z.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    source = open_source(tmp_path)
    assert names(source) == ["a/x/y/z.webp", "a.jpg", "b/10.PNG", "b/2.png", "b.png"]
    assert names(source) == names(source)
    assert source.n == 5


def test_what_is_no_input_is_skipped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").touch()
    for name in (".hidden.png", "notes.txt", "more.txt", "README", "in/.DS_Store"):
        (tmp_path / name).touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "b.png").touch()
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "gone")
    (tmp_path / "linked.png").symlink_to(tmp_path / "in" / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    source = open_source(tmp_path)
    assert names(source) == ["in/a.png", "linked.png", "nowhere.png"]
    assert source.skipped == {
        "hidden": 3,
        ".txt files": 2,
        "files without suffix": 1,
        "links to folders": 1,
        "pipes, sockets or devices": 1,
    }
    with pytest.raises(ImageError, match=r"nowhere\.png: cannot be read: No such file"):
        [item.load() for item in source.items()]


def test_a_name_that_is_no_utf8_becomes_text_and_is_still_found(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    write_image(tmp_path / os.fsdecode(b"\xff.png"), 1)
    (item,) = open_source(tmp_path).items()
    assert item.source == r"\xff.png"
    assert Path(item.load()).is_file()  # type: ignore[arg-type]


def test_a_list_names_one_path_a_line_relative_to_itself(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    write_image(tmp_path / "deep" / "a b.png", 0)
    other = write_image(tmp_path / "other.png", 0)
    (tmp_path / "list.txt").write_text(f"deep/a b.png\n\n{other}\r\ngone.png\ndeep\ndeep/a b.png")
    source = open_source(tmp_path / "list.txt")
    assert names(source) == ["deep/a b.png", str(other), "gone.png", "deep", "deep/a b.png"]
    loads = [item.load for item in source.items()]
    assert loads[0]() == tmp_path / "deep" / "a b.png"
    assert loads[1]() == other
    for bad, words in ((2, "No such file"), (3, "found a folder")):
        with pytest.raises(ImageError, match=words):
            loads[bad]()


def test_a_pipe_in_a_list_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "list.txt").write_text("pipe.png\n")
    (item,) = open_source(tmp_path / "list.txt").items()
    with pytest.raises(ImageError, match="no regular file"):
        item.load()


@pytest.mark.parametrize("form", ["npy", "npz", "idx", "idx.gz"])
@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 4, 3), (3, 4, 4, 1), (3, 2, 2, 3)])
def test_arrays_of_images_are_read_in_every_form(form: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    path = tmp_path / f"set.{form}"
    if form == "npy":
        np.save(path, array)
    elif form == "npz":
        np.savez(path, image=array, label=np.zeros(3))
    else:
        path.write_bytes(idx(array) if form == "idx" else gzip.compress(idx(array)))
    source = open_source(path)
    assert names(source) == ["0", "1", "2"]
    loaded = [np.asarray(item.load()) for item in source.items()]
    assert all(np.array_equal(one.reshape(shape[1:]), want) for one, want in zip(loaded, array, strict=True))
    assert all(one.ndim == 3 for one in loaded)


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("empty.txt", b"", DataError, "nothing to score"),
        ("x.bin", b"a\0b", UsageError, "neither text nor an array"),
        ("digit.png", b"\x89PNG", UsageError, "convoy predict"),
        ("short.idx", idx(images())[:-1], DataError, "expected 48 bytes.*found 47"),
        ("long.idx", idx(images()) + b"x", DataError, "expected 48 bytes.*found 49"),
        ("labels.idx", idx(np.zeros(3, np.uint8)), UsageError, "IDX file of images"),
        ("cut.idx", b"\0\0\x08\x03\0\0", UsageError, "IDX file of images"),
        ("none.idx", idx(images(0)), DataError, "nothing to score"),
        ("cut.gz", gzip.compress(idx(images()))[:-9], DataError, "cannot be unzipped"),
        ("not.gz", gzip.compress(b"hello"), UsageError, "IDX file of images"),
        ("not.npy", b"hello", DataError, "numpy file"),
        ("not.npz", b"PK\x03\x04 broken", DataError, "numpy file"),
    ],
)
def test_a_file_that_is_no_set_is_refused(name: str, content: bytes, error: type, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=words):
        open_source(tmp_path / name)


@pytest.mark.parametrize(
    "array", [images().astype(np.float32), images()[0], np.zeros((2, 4, 4, 2), np.uint8), np.zeros((2, 0, 4), np.uint8)]
)
def test_an_array_that_holds_no_images_is_refused(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(UsageError, match="expected uint8 images, found"):
        open_source(tmp_path / "x.npy")


def test_an_npz_of_several_arrays_must_name_its_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=images(), b=images())
    with pytest.raises(UsageError, match=r"found \['a', 'b'\]"):
        open_source(tmp_path / "x.npz")


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    objects = np.array([{}], dtype=object)
    np.save(tmp_path / "x.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "x.npz", objects)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(UsageError, match="expected uint8 images, found pickled Python objects"):
            open_source(tmp_path / name)


def test_a_source_that_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        open_source(tmp_path / "gone")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(UsageError, match="neither a folder nor a regular file"):
            open_source(tmp_path / "s")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(DataError, match=r"nothing to score; skipped: 1 \.txt files"):
        open_source(tmp_path / "empty")


def test_labels_come_from_the_first_folder(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    for name in ("one/a.png", "two/deep/b.png", "c.png"):
        write_image(tmp_path / name, 0)
    source = open_source(tmp_path, labels_from_folders=True)
    assert [(item.source, item.true_label) for item in source.items()] == [
        ("c.png", None),
        ("one/a.png", "one"),
        ("two/deep/b.png", "two"),
    ]
    assert source.classes == ("one", "two")


def test_labels_from_folders_need_folders(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    write_image(tmp_path / "set" / "a.png", 0)
    with pytest.raises(UsageError, match="no image in any"):
        open_source(tmp_path / "set", labels_from_folders=True)
    np.save(tmp_path / "x.npy", images())
    with pytest.raises(UsageError, match="only be taken from folders"):
        open_source(tmp_path / "x.npy", labels_from_folders=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_no_empty_folder(tmp_path: Path, write_image: Callable[..., Path]) -> None:
    write_image(tmp_path / "shut" / "a.png", 0)
    (tmp_path / "shut").chmod(0)
    try:
        with pytest.raises(DataError, match="cannot be listed"):
            open_source(tmp_path)
    finally:
        (tmp_path / "shut").chmod(0o700)


@given(st.binary(max_size=80))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_no_file_whatever_breaks_the_reader(tmp_path: Path, content: bytes) -> None:
    for suffix in ("txt", "npy", "npz", "idx"):
        path = tmp_path / f"x.{suffix}"
        for body in (
            content,
            b"\0\0\x08\x03" + content,
            b"\x1f\x8b\x08" + content,
            b"PK\x03\x04" + content,
            b"\x93NUMPY" + content,
        ):
            path.write_bytes(body)
            try:
                source: Any = open_source(path)
            except (UsageError, DataError):
                continue
            assert len(names(source)) == source.n > 0
