from __future__ import annotations

import gzip
import io
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convoy.contract.errors import DataError, ImageError, MissingDependencyError, SourceChangedError, UsageError
from convoy.serving.scoring.source import open_source

pytest.importorskip("fsspec")

Keys = Callable[[Any], list[str]]
Loaded = Callable[[Any], list[Any]]
TarBytes = Callable[..., bytes]


@pytest.fixture(params=["memory", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Callable[[str, bytes], Any]]:
    """A URL, and what writes a file below it."""
    if request.param == "file":

        def write(name: str, content: bytes) -> None:
            (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / name).write_bytes(content)

        return f"file://{tmp_path}/set", write
    memory = request.getfixturevalue("memory")
    return "memory://set", lambda name, content: memory.pipe_file(f"/set/{name}", content)


Place = tuple[str, Callable[[str, bytes], Any]]


@pytest.mark.parametrize(
    ("spec", "found"), [("", ["a.png", "in/b.png", "in/deep/c.png"]), ("/in/**/*.png", ["b.png", "deep/c.png"])]
)
def test_folders_and_patterns(spec: str, found: list[str], place: Place, keys: Keys, loaded: Loaded) -> None:
    url, write = place
    for name in ("in/b.png", "a.png", "in/deep/c.png", "in/.hidden.png", "notes.txt"):
        write(name, name.encode())
    source = open_source(url + spec)
    assert (source.kind, source.spec) == ("folder", url + spec)
    assert keys(source) == found
    assert [answer[-5:] for answer in loaded(source)] == [name[-5:].encode() for name in found]
    assert all(entry.stamp and entry.size > 0 for entry in source.entries())


def test_more_files_than_requests_at_once_come_in_order(place: Place, loaded: Loaded) -> None:
    url, write = place
    for number in range(100):
        write(f"{number:03}.png", str(number).encode())
    assert loaded(open_source(url)) == [str(number).encode() for number in range(100)]


def test_what_changed_or_is_gone_is_an_error_in_its_place(place: Place, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url, write = place
    for name in ("a", "b", "empty"):
        write(f"{name}.png", b"" if name == "empty" else b"x")
    source = open_source(url)
    entries = list(source.entries())
    write("a.png", b"longer")
    if url.startswith("file"):
        (tmp_path / "set" / "b.png").unlink()
    else:
        request.getfixturevalue("memory").rm("/set/b.png")
    changed, gone, empty = source.load(entries)
    assert isinstance(changed, ImageError)
    assert "changed after the run began" in str(changed)
    assert "cannot be read" in str(gone)
    assert "zero bytes" in str(empty)


def test_lists_and_tables_of_paths_and_urls(place: Place, memory: Any, tmp_path: Path, keys: Keys, loaded: Loaded) -> None:
    url, write = place
    memory.pipe_file("/elsewhere/c.png", b"c")
    write("in/a.png", b"a")
    write("list.txt", b"in/a.png\nmemory://elsewhere/c.png\ngone.png\n../set/in/a.png\n")
    write("list.csv", b"path,y\nin/a.png,cat\n")
    source = open_source(f"{url}/list.txt")
    assert keys(source)[:2] == ["in/a.png", "memory://elsewhere/c.png"]
    answers = loaded(source)
    assert [answers[0], answers[1], answers[3]] == [b"a", b"c", b"a"]
    assert "cannot be read" in answers[2]
    table = open_source(f"{url}/list.csv", label_column="y")
    assert [entry.true_label for entry in table.entries()] == ["cat"]
    assert loaded(table) == [b"a"]
    (tmp_path / "local.txt").write_text("memory://elsewhere/c.png\n")
    assert loaded(open_source(tmp_path / "local.txt")) == [b"c"]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tar_shards(mode: str, place: Place, tar_bytes: TarBytes, keys: Keys, loaded: Loaded) -> None:
    url, write = place
    end = "tgz" if mode == "w:gz" else "tar"
    for shard in range(2):
        write(f"{shard}.{end}", tar_bytes({"a.png": f"{shard}a".encode(), "a.cls": b"cat", "b.png": b"b" * 2000}, mode))
    for spec in (url, f"{url}/*.{end}", f"{url}/{{0..1}}.{end}"):
        source = open_source(spec, label_column="cls")
        assert keys(source) == [f"0.{end}:a", f"0.{end}:b", f"1.{end}:a", f"1.{end}:b"]
        assert loaded(source) == [b"0a", b"b" * 2000, b"1a", b"b" * 2000]
    entries = list(source.entries())
    write(f"0.{end}", tar_bytes({"a.png": b"another"}, mode))
    with pytest.raises(SourceChangedError):
        list(source.load(entries))


def test_parquet(place: Place, keys: Keys, loaded: Loaded) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    url, write = place
    buffer = io.BytesIO()
    parquet.write_table(pa.table({"image": [b"zero", b"one", b"two"]}), buffer, row_group_size=2)
    write("x.parquet", buffer.getvalue())
    for spec in (url, f"{url}/x.parquet"):
        source = open_source(spec)
        assert keys(source) == ["x.parquet#0", "x.parquet#1", "x.parquet#2"]
        assert loaded(source) == [b"zero", b"one", b"two"]


def test_arrays(place: Place, loaded: Loaded) -> None:
    url, write = place
    array = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
    npy, npz, idx = io.BytesIO(), io.BytesIO(), bytes([0, 0, 8, 3]) + struct.pack(">3I", 3, 4, 4) + array.tobytes()
    np.save(npy, array)
    np.savez_compressed(npz, array)
    for name, content in (("x.npy", npy.getvalue()), ("x.npz", npz.getvalue()), ("x.idx", idx), ("x.gz", gzip.compress(idx))):
        write(name, content)
        source = open_source(f"{url}/{name}")
        assert np.array_equal(np.stack(loaded(source))[..., 0], array)
        assert np.array_equal(np.asarray(source.block(1, 2)), array[1:2])


def test_a_circle_behind_a_url_ends(tmp_path: Path, keys: Keys) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"x")
    (tmp_path / "in" / "up").symlink_to(tmp_path)
    assert keys(open_source(f"file://{tmp_path}")) == ["in/a.png"]


def test_what_is_not_there_or_unknown_is_refused(memory: Any) -> None:
    with pytest.raises(UsageError, match="memory://gone: cannot be read"):
        open_source("memory://gone")
    with pytest.raises(UsageError, match=r"nosuch://x: cannot be opened.*Expected"):
        open_source("nosuch://x")
    with pytest.raises(DataError, match=r"nothing to score|cannot be listed"):
        open_source("memory://gone/*.png")


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingDependencyError, match=r"gs:// needs the package gcsfs.*pip install '\.\[score\]'"):
        open_source("gs://bucket/x")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingDependencyError, match=r"fsspec.*pip install '\.\[score\]'"):
        open_source("memory://x")


def test_what_a_backend_raises_becomes_an_error_in_its_place(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe_file("/set/a.png", b"x")
    source = open_source("memory://set")
    entries = list(source.entries())

    def fail(*_: Any, **__: Any) -> bytes:
        raise RuntimeError("the line is down")

    monkeypatch.setattr(type(memory), "cat_file", fail)
    (answer,) = source.load(entries)
    assert isinstance(answer, ImageError)
    assert "RuntimeError: the line is down" in str(answer)


def test_a_server_that_gives_no_ranges_is_not_taken_for_a_damaged_tar(
    memory: Any, tar_bytes: TarBytes, monkeypatch: pytest.MonkeyPatch, loaded: Loaded
) -> None:
    memory.pipe_file("/set/x.tar", tar_bytes({"a.png": b"a"}))
    original = type(memory).cat_file
    monkeypatch.setattr(type(memory), "cat_file", lambda self, path, **_: original(self, path))
    (answer,) = loaded(open_source("memory://set/x.tar"))
    assert "gives no part of a file" in answer
