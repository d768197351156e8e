from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convoy.contract.errors import DataError, UsageError
from convoy.serving.scoring.source import open_source

Keys = Callable[[Any], list[str]]
Loaded = Callable[[Any], list[Any]]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("deep/a b.png", "other.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


@pytest.mark.parametrize("suffix", ["txt", "lst"])
def test_a_list_names_one_path_a_line_relative_to_itself(images: Path, suffix: str, keys: Keys, loaded: Loaded) -> None:
    other = images / "other.png"
    path = images / f"list.{suffix}"
    path.write_bytes(b"\xef\xbb\xbf" + f"deep/a b.png\n\n{other}\r\ngone.png\ndeep\ndeep/a b.png".encode())
    source = open_source(path)
    assert source.kind == "list"
    assert keys(source) == ["deep/a b.png", str(other), "gone.png", "deep", "deep/a b.png"]
    answers = loaded(source)
    assert [answers[0], answers[1], answers[4]] == [b"deep/a b.png", b"other.png", b"deep/a b.png"]
    assert "No such file" in answers[2]
    assert "found a folder" in answers[3]
    sizes = [(entry.size, bool(entry.stamp)) for entry in source.entries()]
    assert sizes == [(12, True), (9, True), (-1, False), (-1, False), (12, True)]


def test_bytes_that_are_no_utf8_and_impossible_names(tmp_path: Path, keys: Keys, loaded: Loaded) -> None:
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "list.txt").write_bytes(b"\xff.png\n" + b"n" * 300 + b".png\nnosuch://x/y.png\npipe.png")
    source = open_source(tmp_path / "list.txt")
    assert keys(source)[0] == r"\xff.png"
    answers = loaded(source)
    assert answers[0] == b"x"
    assert "name too long" in answers[1].lower()
    assert "nosuch" in answers[2]
    assert "no regular file" in answers[3]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "nothing to score"), (b"\n \n", "nothing to score"), (b"a\0b", "NUL byte"), (b"x" * 2_000_000, "line 1")],
)
def test_what_is_no_list_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(DataError, match=words):
        open_source(tmp_path / "list.txt")


@pytest.mark.parametrize(("suffix", "sign"), [("csv", ","), ("tsv", "\t")])
@pytest.mark.parametrize(("header", "column"), [("path", None), ("filename", None), ("photo", "photo")])
def test_a_table_names_paths_and_labels(
    images: Path, suffix: str, sign: str, header: str, column: str | None, keys: Keys, loaded: Loaded
) -> None:
    rows = [["n", header, "class"], ["1", '"deep/a b.png"', "cat"], ["2", "other.png", ""], ["3", "", "dog"]]
    path = images / f"list.{suffix}"
    path.write_text("\n".join(sign.join(row) for row in rows))
    source = open_source(path, column=column, label_column="class")
    assert keys(source) == ["deep/a b.png", "other.png"]
    assert [entry.true_label for entry in source.entries()] == ["cat", None]
    assert source.skipped == {"rows without a path": 1}
    assert loaded(source) == [b"deep/a b.png", b"other.png"]


def test_the_only_column_is_taken_and_of_several_none_that_has_no_usual_name(images: Path, keys: Keys) -> None:
    (images / "list.csv").write_text("scan\nother.png\n")
    assert keys(open_source(images / "list.csv")) == ["other.png"]
    (images / "list.csv").write_text("n,scan\n1,other.png\n")
    assert keys(open_source(images / "list.csv", column="scan")) == ["other.png"]
    with pytest.raises(UsageError, match=r"expected a column of paths named path, .* found the columns n, scan"):
        open_source(images / "list.csv")


@pytest.mark.parametrize(
    ("content", "options", "error", "words"),
    [
        ("path\n", {}, DataError, "nothing to score"),
        ("other.png,1\nb.png,2\n", {}, DataError, "names of the columns"),
        ("path\na.png\n", {"column": "x"}, UsageError, "expected a column 'x', found path"),
        ("path\na.png\n", {"label_column": "y"}, UsageError, "expected a column 'y', found path"),
        ("n,path\n1\n", {}, DataError, "line 2: expected 2 columns, found 1"),
        ('path\n"a.png\n', {}, DataError, "no row of a CSV file"),
        ("path\na.png\n", {"labels_from_folders": True}, UsageError, "only be taken from folders"),
    ],
)
def test_a_table_that_cannot_be_taken_says_why(
    content: str, options: dict[str, Any], error: type, words: str, tmp_path: Path
) -> None:
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(error, match=words):
        open_source(tmp_path / "list.csv", **options)


def test_a_list_has_no_columns(images: Path) -> None:
    (images / "list.txt").write_text("other.png")
    with pytest.raises(UsageError, match="has no columns: expected no column, found 'path'"):
        open_source(images / "list.txt", column="path")


@pytest.mark.parametrize("binary", [True, False])
def test_standard_input_is_read_once_and_listed_twice(
    images: Path, binary: bool, monkeypatch: pytest.MonkeyPatch, keys: Keys, loaded: Loaded
) -> None:
    monkeypatch.chdir(images)
    text = "other.png\ndeep/a b.png\n"
    with io.TextIOWrapper(io.BytesIO(text.encode())) if binary else io.StringIO(text) as stdin:
        source = open_source("-", stdin=stdin)
    assert (source.kind, source.spec) == ("paths", "-")
    assert keys(source) == ["other.png", "deep/a b.png"]
    assert loaded(source) == [b"other.png", b"deep/a b.png"]


def test_empty_standard_input_is_refused() -> None:
    with pytest.raises(DataError, match="nothing to score"):
        open_source("-", stdin=io.StringIO(""))
