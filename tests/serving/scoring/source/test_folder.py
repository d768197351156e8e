from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convoy.contract.errors import DataError, ImageError, UsageError
from convoy.serving.scoring.source import _entry, open_source

Keys = Callable[[Any], list[str]]


def fill(root: Path, *names: str, content: bytes = b"x") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def test_a_folder_is_sorted_by_the_whole_path_bytewise(tmp_path: Path, keys: Keys) -> None:
    fill(tmp_path, "b/2.png", "b/10.PNG", "a.jpg", "b.png", "a/x/y/z.webp", "a-.png", "é.png")
    source = open_source(tmp_path)
    assert source.kind == "folder"
    assert source.spec == str(tmp_path)
    assert keys(source) == ["a-.png", "a.jpg", "a/x/y/z.webp", "b.png", "b/10.PNG", "b/2.png", "é.png"]


@given(st.sets(st.text(alphabet="ab-.0é", min_size=1, max_size=3).filter(lambda name: name[0] != "."), min_size=1, max_size=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
def test_any_tree_is_sorted_as_its_paths_are(tmp_path_factory: pytest.TempPathFactory, names: set[str]) -> None:
    root = tmp_path_factory.mktemp("tree")
    paths = [f"{name}/{inner}.png" for name in names for inner in names] + [f"{name}.png" for name in names]
    fill(root, *[path for path in paths if not (root / path).is_dir() and path.removesuffix(".png") + ".png" not in names])
    found = [entry.key for entry in open_source(root).entries()]
    assert found == sorted(found, key=os.fsencode)
    assert sorted(found) == sorted(str(path.relative_to(root)) for path in root.rglob("*.png") if path.is_file())


def test_what_is_no_input_is_skipped_and_counted_once_however_often_it_is_listed(tmp_path: Path, keys: Keys) -> None:
    fill(tmp_path, "in/a.png", ".hidden.png", "notes.txt", "more.txt", "README", "in/.DS_Store", ".git/b.png")
    os.mkfifo(tmp_path / "pipe.png")
    source = open_source(tmp_path)
    assert keys(source) == ["in/a.png"]
    assert source.skipped == {"hidden": 3, ".txt files": 2, "files without suffix": 1, "pipes, sockets or devices": 1}


def test_links_are_followed_and_circles_are_not(tmp_path: Path, keys: Keys, loaded: Callable[[Any], list[Any]]) -> None:
    root = tmp_path / "root"
    fill(tmp_path, "root/in/a.png", "beside/b.png")
    (root / "circle").symlink_to(root)
    (root / "in" / "up").symlink_to(root / "in")
    (root / "beside").symlink_to(tmp_path / "beside")
    (root / "again").symlink_to(root / "in")
    (root / "linked.png").symlink_to(root / "in" / "a.png")
    (root / "nowhere.png").symlink_to(tmp_path / "gone")
    (root / "self.png").symlink_to("self.png")
    source = open_source(root)
    assert keys(source) == ["again/a.png", "beside/b.png", "in/a.png", "linked.png", "nowhere.png", "self.png"]
    assert source.skipped == {"links in a circle": 3}
    answers = loaded(source)
    assert answers[:4] == [b"x"] * 4
    assert "No such file" in answers[4]
    assert "cannot be read" in answers[5]


def test_nasty_names_are_shown_and_found(tmp_path: Path, loaded: Callable[[Any], list[Any]]) -> None:
    names = [b"a b.png", b"new\nline/c.png", b"\xff\xfe.png", rb"back\xff.png", b"#%{1..2}*.png"]
    for place, name in enumerate(names):
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(str(place).encode())
    source = open_source(tmp_path)
    entries = list(source.entries())
    assert [entry.key for entry in entries] == ["#%{1..2}*.png", "a b.png", r"back\xff.png", r"new\nline/c.png", r"\xff\xfe.png"]
    for entry in entries:
        entry.locator.encode("utf-8")
    assert loaded(source) == [b"4", b"0", b"3", b"1", b"2"]


def test_what_cannot_be_read_is_an_error_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a.png", "gone.png")
    fill(tmp_path, "empty.png", content=b"")
    fill(tmp_path, "large.png", content=b"12345")
    monkeypatch.setattr(_entry, "MOST_BYTES", 4)
    source = open_source(tmp_path)
    entries = list(source.entries())
    (tmp_path / "gone.png").unlink()
    answers = list(source.load(entries))
    assert answers[0] == b"x"
    assert all(isinstance(answer, ImageError) for answer in answers[1:])
    for answer, words in zip(answers[1:], ("zero bytes", "No such file", "5 bytes are more than the 4"), strict=True):
        assert words in str(answer)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path, "shut.png")
    (tmp_path / "shut.png").chmod(0)
    source = open_source(tmp_path)
    (answer,) = source.load(list(source.entries()))
    assert "Permission denied" in str(answer)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_no_empty_folder(tmp_path: Path) -> None:
    fill(tmp_path, "shut/a.png")
    (tmp_path / "shut").chmod(0)
    try:
        with pytest.raises(DataError, match="cannot be listed"):
            open_source(tmp_path)
    finally:
        (tmp_path / "shut").chmod(0o700)


@pytest.mark.parametrize("same_size", [True, False])
def test_a_file_that_changed_since_it_was_listed_is_not_read(tmp_path: Path, same_size: bool) -> None:
    fill(tmp_path, "a.png")
    source = open_source(tmp_path)
    entries = list(source.entries())
    fill(tmp_path, "a.png", content=b"y" if same_size else b"yy")
    os.utime(tmp_path / "a.png", ns=(1, 1))
    (answer,) = source.load(entries)
    assert isinstance(answer, ImageError)
    assert "changed after the run began" in str(answer)


def test_labels_come_from_the_first_folder(tmp_path: Path) -> None:
    fill(tmp_path, "one/a.png", "two/deep/b.png", "c.png")
    entries = open_source(tmp_path, labels_from_folders=True).entries()
    assert [(entry.key, entry.true_label) for entry in entries] == [
        ("c.png", None),
        ("one/a.png", "one"),
        ("two/deep/b.png", "two"),
    ]
    with pytest.raises(UsageError, match="no image in any"):
        open_source(tmp_path / "one", labels_from_folders=True)


def test_ten_thousand_files_are_listed_in_seconds(tmp_path: Path) -> None:
    for number in range(10_000):
        (tmp_path / f"{number:05}.png").touch()
    start = time.perf_counter()
    source = open_source(tmp_path)
    assert [entry.key for entry in source.entries()] == [f"{number:05}.png" for number in range(10_000)]
    assert time.perf_counter() - start < 10


def test_an_empty_folder_says_what_was_skipped(tmp_path: Path) -> None:
    fill(tmp_path, "notes.md")
    with pytest.raises(DataError, match=r"nothing to score: no image.* is there; skipped: 1 \.md files"):
        open_source(tmp_path)


def test_folders_may_lie_deep(tmp_path: Path, keys: Keys) -> None:
    deep = tmp_path
    for _ in range(300):
        deep = deep / "d"
        deep.mkdir()
    (deep / "a.png").write_bytes(b"x")
    assert keys(open_source(tmp_path)) == ["d/" * 300 + "a.png"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.png", ["a.png"]),
        ("**/*.png", ["a.png", "in/b.png", "in/deep/c.png"]),
        ("in/**", ["b.png", "deep/c.png"]),
        ("in/*/*.png", ["deep/c.png"]),
        ("*/[ab].png", ["in/b.png"]),
        ("i?/b*", ["in/b.png"]),
        ("**/deep/**/*.png", ["in/deep/c.png"]),
        ("**/**/c.png", ["in/deep/c.png"]),
    ],
)
def test_a_pattern_takes_what_it_matches(pattern: str, found: list[str], tmp_path: Path, keys: Keys) -> None:
    fill(tmp_path, "a.png", "in/b.png", "in/deep/c.png", "in/.hidden/d.png", ".e.png", "in/deep/notes.txt")
    source = open_source(f"{tmp_path}/{pattern}")
    assert source.kind == "folder"
    assert keys(source) == found


def test_a_pattern_of_the_present_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: Callable[[Any], list[Any]]
) -> None:
    fill(tmp_path, "a.png", "b.png")
    monkeypatch.chdir(tmp_path)
    assert loaded(open_source("*.png")) == [b"x", b"x"]


def test_a_name_that_exists_is_no_pattern(tmp_path: Path, keys: Keys) -> None:
    fill(tmp_path, "set[1]/a.png", "set1/b.png")
    assert keys(open_source(tmp_path / "set[1]")) == ["a.png"]


@pytest.mark.parametrize("pattern", ["*.png", "gone/*.png"])
def test_a_pattern_without_a_match_is_refused(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing to score|cannot be listed"):
        open_source(f"{tmp_path}/{pattern}")
