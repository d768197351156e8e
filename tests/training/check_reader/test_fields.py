from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from convoy.contract.errors import DataError
from convoy.contract.field import to_field
from convoy.training.check_reader.examples import field_spec, from_real
from convoy.training.check_reader.fields import DigitBox, Field, block_folds, load_fields, load_orand
from convoy.training.data import DataLocation

NAMES = ("a_car_000002_png.rf.0a1b.jpg", "a_car_000001_png.rf.99.jpg", "a_car_000010_jpg.rf.ff.jpg")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three fields, not in the order of their names."""
    folder = tmp_path / "orand"
    (folder / "images").mkdir(parents=True)
    for i, name in enumerate(NAMES):
        Image.new("RGB" if i else "L", (30 + i, 20 + i), 200 if i == 0 else (10, 10, 10)).save(folder / "images" / name)
    lines = [f"images/{name},{amount}" for name, amount in zip(NAMES, ("12", "007", "5"), strict=True)]
    (folder / "amounts.csv").write_text("\n".join(["file,amount", *lines]) + "\n")
    coco = {
        "categories": [{"id": digit, "name": str(digit)} for digit in range(10)],
        "images": [{"id": i, "file_name": name} for i, name in enumerate(NAMES)],
        "annotations": [
            {"image_id": 0, "category_id": 2, "bbox": [15, 3, 8, 12]},
            {"image_id": 0, "category_id": 1, "bbox": [4, 2, 6, 13]},
        ],
    }
    (folder / "digit_boxes.json").write_text(json.dumps(coco))
    return folder


def test_fields_are_grey_and_sorted_by_name_with_their_boxes_from_left_to_right(root: Path) -> None:
    fields = load_orand(root)
    assert [field.name for field in fields] == ["a_car_000001", "a_car_000002", "a_car_000010"]
    assert [field.digits for field in fields] == ["007", "12", "5"]
    assert [field.image.shape for field in fields] == [(21, 31), (20, 30), (22, 32)]
    assert all(field.image.dtype == np.uint8 for field in fields)
    assert fields[1].boxes == (DigitBox("1", 4, 2, 6, 13), DigitBox("2", 15, 3, 8, 12))
    assert [field.digits for field in fields[1:]] == ["12", "5"]
    assert [field.digits for field in fields.take(np.array([2, 0]))] == ["5", "007"]


def test_boxes_can_be_left_out(root: Path) -> None:
    (root / "digit_boxes.json").unlink()
    assert [field.boxes for field in load_orand(root, boxes=False)] == [(), (), ()]


def change_table(root: Path, before: str, after: str) -> None:
    path = root / "amounts.csv"
    path.write_text(path.read_text().replace(before, after))


def change_boxes(root: Path, change: Callable[[Any], object]) -> None:
    path = root / "digit_boxes.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "amounts.csv").unlink(), "amounts.csv: expected a readable table"),
        (lambda root: (root / "amounts.csv").write_bytes(b"file,amount\n\xff,1"), "expected a readable table"),
        (lambda root: (root / "amounts.csv").write_text(""), "found an empty file"),
        (lambda root: (root / "amounts.csv").write_text("file,amount\n"), "expected amounts below the header"),
        (lambda root: change_table(root, "file,amount", "file,label"), "expected the header file,amount, found file,label"),
        (lambda root: change_table(root, "007", "7.00"), r"line 3: expected an amount of the digits 0 to 9 alone, found '7\.00'"),
        (lambda root: change_table(root, "007", ""), "line 3: expected an amount of the digits"),
        (lambda root: change_table(root, "007", "٣"), "line 3: expected an amount of the digits"),
        (lambda root: change_table(root, ",12", ",12,3"), "line 2: expected a file and an amount"),
        (lambda root: change_table(root, NAMES[0], NAMES[1]), "expected each file once"),
        (lambda root: (root / "images" / NAMES[0]).unlink(), "rf.0a1b.jpg: no such file"),
        (lambda root: (root / "images" / NAMES[0]).write_bytes(b"\xff\xd8 no"), "rf.0a1b.jpg: expected an image"),
        (lambda root: (root / "digit_boxes.json").unlink(), "expected a readable file of COCO"),
        (lambda root: (root / "digit_boxes.json").write_text("{"), "expected a readable file of COCO"),
        (lambda root: (root / "digit_boxes.json").write_text("[]"), "expected categories, images and annotations"),
        (lambda root: change_boxes(root, lambda coco: coco.pop("images")), "KeyError: 'images'"),
        (lambda root: change_boxes(root, lambda coco: coco["images"].pop()), "expected the image a_car_000010"),
        (lambda root: change_boxes(root, lambda coco: coco["annotations"][0].update(bbox=[1, 2, 3])), "boxes of four numbers"),
        (lambda root: change_boxes(root, lambda coco: coco["annotations"][0].update(bbox=[1, 2, 0, 3])), "'2' at"),
        (lambda root: change_boxes(root, lambda coco: coco["categories"][2].update(name="two")), "'two' at"),
    ],
)
def test_what_is_missing_or_damaged_is_named(root: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(root)
    with pytest.raises(DataError, match=message):
        load_orand(root)


def test_a_truncated_image_is_an_error(root: Path) -> None:
    path = root / "images" / NAMES[0]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=NAMES[0]):
        load_orand(root)


def test_two_files_of_one_field_are_an_error(root: Path) -> None:
    other = "a_car_000001_png.rf.aa.jpg"
    (root / "images" / NAMES[2]).rename(root / "images" / other)
    change_table(root, NAMES[2], other)
    change_boxes(root, lambda coco: coco["images"][2].update(file_name=other))
    with pytest.raises(DataError, match="found a_car_000001 twice"):
        load_orand(root)


def numbered(n: int) -> list[Field]:
    return [Field(f"{i:05d}", np.zeros((1, 1), np.uint8), "0") for i in range(n)]


@settings(max_examples=60)
@given(n=st.integers(60, 300), k=st.integers(2, 8), seed=st.integers(0, 99), gap=st.integers(0, 7))
def test_each_field_is_tested_once_in_a_block_that_no_training_field_is_near(n: int, k: int, seed: int, gap: int) -> None:
    folds = block_folds(numbered(n), k, seed, gap=gap)
    assert np.concatenate([fold.test for fold in folds]).tolist() == list(range(n))
    for train, test in folds:
        assert test.tolist() == list(range(test[0], test[-1] + 1))
        assert np.abs(train[:, None] - test[None]).min() == gap + 1
        left_out = set(range(n)) - set(train.tolist()) - set(test.tolist())
        assert left_out == {i for i in (*range(test[0] - gap, test[0]), *range(test[-1] + 1, test[-1] + 1 + gap)) if 0 <= i < n}
        assert abs(len(test) - n / k) <= n / k / 2 + 1


def test_a_seed_moves_the_borders_and_gives_the_same_again() -> None:
    fields = numbered(200)
    starts = [[int(fold.test[0]) for fold in block_folds(fields, 5, seed)] for seed in (0, 1, 1, 2)]
    assert starts[0] == [0, 40, 80, 120, 160]
    assert starts[1] == starts[2] != starts[0]
    assert starts[1] != starts[3]


@pytest.mark.parametrize(("n", "k", "gap"), [(100, 1, 0), (3, 4, 0), (100, 5, -1), (40, 2, 10)])
def test_folds_that_leave_nothing_to_learn_from_are_refused(n: int, k: int, gap: int) -> None:
    with pytest.raises(DataError, match="fields left to learn from"):
        block_folds(numbered(n), k, gap=gap)


def test_folds_of_fields_in_another_order_are_refused() -> None:
    with pytest.raises(DataError, match="sorted by name"):
        block_folds(numbered(100)[::-1], 5)


def test_the_real_amounts_are_read() -> None:
    found = DataLocation.from_environment()
    if found.root is None or not (found.root / "orand_car_a").is_dir():
        pytest.skip("CONVOY_DATA has no orand_car_a")
    fields = load_orand(found.root / "orand_car_a")
    assert len(fields) == 1080
    assert sum(len(field.boxes) for field in fields) == 4898
    assert fields[0].name == "a_car_000154"
    assert fields[0].digits == "2250"
    assert np.mean([field.digits == "".join(box.digit for box in field.boxes) for field in fields]) > 0.95
    for field in fields:
        height, width = field.image.shape
        assert all(box.left_px >= -1 and box.left_px + box.width_px <= width + 1 for box in field.boxes)
        assert 20 <= height <= 120
    assert [len(fold.test) for fold in block_folds(fields, 5)] == [216] * 5


def test_a_persons_labels_are_digits_alone_or_the_amount_as_written(tmp_path: Path) -> None:
    for name in ("b.png", "a.png"):
        Image.new("L", (60, 30), 200).save(tmp_path / name)
    (tmp_path / "amounts.csv").write_text("file,amount\nb.png,1234\na.png,$1.234.-\n")
    first, second = load_fields(tmp_path)
    assert (first.name, first.label, first.digits, first.text) == ("a.png", "$1.234.-", "1234", "$1.234.-")
    assert (second.name, second.label, second.digits, second.text) == ("b.png", "1234", "1234", "")
    (tmp_path / "amounts.csv").write_text("file,amount\na.png,$-\n")
    with pytest.raises(DataError, match=r"line 2: expected an amount with digits, found '\$-'"):
        load_fields(tmp_path)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Two fields of a person."""
    for name in ("a.png", "b.png"):
        Image.new("L", (60, 30), 200).save(tmp_path / name)
    (tmp_path / "amounts.csv").write_text("file,amount\na.png,12\nb.png,1.234\n")
    return tmp_path


@pytest.mark.parametrize(
    "table",
    [
        "\ufefffile,amount\r\na.png,12\r\nb.png,1.234\r\n",  # as spreadsheets write it
        "file, amount\na.png, 12\n\nb.png , 1.234\n\n",
    ],
)
def test_tables_as_people_write_them_are_read(own: Path, table: str) -> None:
    (own / "amounts.csv").write_bytes(table.encode())
    assert [(field.name, field.label) for field in load_fields(own)] == [("a.png", "12"), ("b.png", "1.234")]


def test_a_line_is_counted_as_an_editor_counts_it(own: Path) -> None:
    (own / "amounts.csv").write_text("file,amount\n\na.png,12\n\nb.png,\n")
    with pytest.raises(DataError, match=r"amounts.csv, line 5: expected an amount with digits, found ''"):
        load_fields(own)


def test_all_files_that_are_missing_are_named(own: Path) -> None:
    (own / "a.png").unlink()
    (own / "b.png").unlink()
    with pytest.raises(DataError, match=r"amounts.csv: expected the files that it names, found 2 missing: a.png, b.png\."):
        load_fields(own)


def test_fields_are_read_as_a_client_reads_them(own: Path) -> None:
    """A scan of 16 bits, a photo that lies on its side, a drawing on transparent paper."""
    generator = np.random.default_rng(0)
    levels = generator.integers(0, 256, (30, 60), np.uint8)
    Image.fromarray(levels.astype(np.uint16) * 257).save(own / "deep.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(levels).save(own / "turned.jpg", exif=turned)
    Image.merge("LA", (Image.new("L", (60, 30), 0), Image.fromarray(levels))).save(own / "clear.png")
    (own / "amounts.csv").write_text("file,amount\nclear.png,1\ndeep.png,2\nturned.jpg,3\n")
    spec = field_spec(32)
    for field in load_fields(own):
        served, trained = to_field(own / field.name, spec), to_field(field.image, spec)
        assert np.array_equal(served.pixels, trained.pixels), field.name
        assert served.width_px == trained.width_px


def test_a_field_that_is_too_wide_is_named(own: Path) -> None:
    Image.new("L", (2500, 100), 200).save(own / "b.png")
    with pytest.raises(DataError, match=r"^b.png: expected a field at most 24 times as wide as high, found 2500x100 pixels"):
        from_real(load_fields(own), field_spec(32))
