from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from convoy.contract.errors import DataError
from convoy.training.data import load_folder
from convoy.training.data.lists import read_list


@pytest.mark.parametrize(
    "text",
    [
        "a b.png\tcat\nc.png\tdog\n",
        "a b.png cat\nc.png dog",
        "a b.png,cat\r\nc.png, dog\r\n",
        '"a b.png","cat"\n"c.png","dog"\n',
        "\ufeffa b.png cat\n\n# c.png bird\nc.png dog\n",
        "filename,label\na b.png,cat\nc.png,dog\n",
        "id,class,width,image\n7,cat,12,a b.png\n8,dog,12,c.png\n",
        "path\tlabel\na b.png\tcat\nc.png\tdog\n",
    ],
)
def test_every_usual_form_of_a_list_is_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "train.txt"
    path.write_text(text, encoding="utf-8", newline="")
    assert read_list(path) == [("a b.png", "cat"), ("c.png", "dog")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected lines of a file and its label, found none"),
        (b"\n# nothing\n", "found none"),
        (b"a.png cat\nb.png\n", r"train.txt, line 2: expected a file and its label.*found 'b.png'"),
        (b"a.png,cat\nb.png,\n", "line 2: expected a file and its label"),
        (b"file,label\na.png,cat\n", None),
        (b"x,file,label\na.png,cat\n", "line 2: expected as many columns as the first line names"),
        (b"\xff\xfe", "expected a list of files and labels in UTF-8"),
    ],
)
def test_a_list_that_is_none_is_refused_with_the_line(tmp_path: Path, data: bytes, message: str | None) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(data)
    if message is None:
        assert read_list(path) == [("a.png", "cat")]
        return
    with pytest.raises(DataError, match=message):
        read_list(path)


def test_lists_give_the_splits(photos: Path) -> None:
    (photos / "train.txt").write_text("".join(f"{label}/{i}.png {label}\n" for label in ("dog", "cat") for i in range(6)))
    (photos / "val.csv").write_text("file,label\ncat/6.png,cat\ndog/6.png,dog\n")
    (photos / "test.tsv").write_text("dog/7.png\tdog\n")
    data = load_folder(photos)
    assert data.labels == ("cat", "dog")
    assert data.train.files[:2] == ("dog/0.png", "dog/1.png")
    assert data.validation.files == ("cat/6.png", "dog/6.png")
    assert (data.test.files, data.test.labels.tolist()) == (("dog/7.png",), [1])
    assert data.remarks == ("images that were left out, since they are in no list: 5.",)


def numbered(photos: Path, n: dict[str, int]) -> None:
    lines = [f"{label}{i}.png {n[label]}\n" for label in ("dog", "cat") for i in range(10)]
    for label in ("dog", "cat"):
        for i in range(10):
            (photos / label / f"{i}.png").rename(photos / label / f"{label}{i}.png")
    (photos / "some-files_train.txt").write_text("".join(lines))


def test_bare_names_are_found_and_numbers_named_after_the_folders(photos: Path) -> None:
    numbered(photos, {"dog": 9, "cat": 10})
    data = load_folder(photos)
    assert data.labels == ("dog", "cat")  # in the order of the numbers
    assert {data.labels[label] for label, file in zip(data.train.labels, data.train.files, strict=True) if "dog" in file} == {"dog"}
    assert [len(split) for split in data.splits.values()] == [14, 2, 4]


def test_numbers_stay_where_folders_do_not_tell_them_apart(photos: Path) -> None:
    numbered(photos, {"dog": 9, "cat": 10})
    shutil.move(photos / "dog" / "dog1.png", photos / "cat" / "dog1.png")
    assert load_folder(photos).labels == ("9", "10")


def test_a_bare_name_in_two_places_is_refused(photos: Path) -> None:
    (photos / "train.txt").write_text("1.png cat\n2.png dog\n")
    with pytest.raises(DataError, match=r"names 1\.png, which lies in several places: .*cat/1\.png, .*dog/1\.png"):
        load_folder(photos)


def test_listed_files_that_are_not_there_are_all_named(photos: Path) -> None:
    lines = [f"{label}/{i}.png {label}\n" for label in ("dog", "cat") for i in range(10)]
    (photos / "train.txt").write_text("".join(lines) + "cat/77.png cat\nelsewhere/78.png dog\n")
    with pytest.raises(DataError, match=r"2 of 22 images cannot be read:\s+cat/77.png: no such file\s+elsewhere/78.png: no such"):
        load_folder(photos)
    data = load_folder(photos, skip_bad=True)
    assert len(data.skipped) == 2


def test_a_label_that_was_mistyped_comes_with_its_file(photos: Path) -> None:
    lines = [f"{label}/{i}.png {label}\n" for label in ("dog", "cat") for i in range(9)]
    (photos / "train.txt").write_text("".join(lines) + "cat/9.png cta\n")
    with pytest.raises(DataError, match=r"fewer of cta \(1\), such as .*cat/9\.png\. Add"):
        load_folder(photos)


def test_two_lists_for_one_split_are_refused(photos: Path) -> None:
    for name in ("train.txt", "new_train.csv"):
        (photos / name).write_text("cat/1.png cat\n")
    with pytest.raises(DataError, match=r"one list for train, found new_train.csv and train.txt"):
        load_folder(photos)


def test_lists_of_one_class_are_refused(photos: Path) -> None:
    (photos / "train.txt").write_text("cat/1.png cat\n")
    with pytest.raises(DataError, match=r"train.txt: expected at least two classes, found cat alone"):
        load_folder(photos)


def test_a_class_that_only_the_test_list_has_is_refused(photos: Path) -> None:
    (photos / "train.txt").write_text("".join(f"{label}/{i}.png {label}\n" for label in ("dog", "cat") for i in range(6)))
    (photos / "test.txt").write_text("cat/7.png bird\n")
    with pytest.raises(DataError, match=r"found fewer of bird \(0\)"):
        load_folder(photos)


def test_a_text_file_that_only_looks_like_a_list_changes_nothing(photos: Path, write_image: Callable[..., Path]) -> None:
    (photos / "requirements-test.txt").write_text("pillow\n")
    data = load_folder(photos)
    assert sum(len(split) for split in data.splits.values()) == 20
