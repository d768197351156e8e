"""``convoy predict`` with a model that reads amounts, on a fake server: rows, JSON lines, boxes, drawings."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from convoy.cli.amounts import AmountTable, ReadAnswer
from convoy.cli.field_picture import draw_lines, draw_picture, spans_of
from convoy.cli.images import Found
from convoy.contract.field import FieldPixels
from convoy.serving.client import Alternative, Amount, Character
from convoy.serving.client.testing import FakeModel, FakeTransport

Program = Callable[..., tuple[int, str, str]]

ANSWERS = {7: [("1,234.50", 0.95), ("7,234.50", 0.04)], 9: [("99", 0.5)], 0: []}
"""What the fake reads, by the first pixel."""


@pytest.fixture
def fake() -> FakeTransport:
    """A fake server with the reader ``check-reader`` and the classifier ``digits``."""
    reader = FakeModel.of_amounts(
        lambda field: ANSWERS[int(field[0, 0])], height_px=8, widths_px=(16, 64), max_batch_size=4, version="3"
    )
    digits = FakeModel.of_labels(["0", "1"], lambda pixels: np.full((len(pixels), 2), 0.5))
    return FakeTransport({"check-reader": reader, "digits": digits})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three fields of different widths, and one that cannot be read."""
    place = tmp_path / "checks"
    place.mkdir()
    for name, value, width in (("a.png", 7, 40), ("b.png", 9, 10), ("c.png", 0, 64)):
        Image.new("L", (width, 8), value).save(place / name)
    (place / "d.png").write_bytes(b"no image")
    return place


def lines_of(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_each_field_has_a_row_that_says_whether_it_is_accepted(program: Program, folder: Path) -> None:
    code, out, err = program("predict", "check-reader", folder)
    assert code == 1
    assert "d.png: expected an image" in err
    assert "1 of 4 inputs could not be read" in err
    header, *rows = out.splitlines()
    assert header.split() == ["image", "amount", "text", "confidence", "version"]
    assert [row.split()[1:4] for row in rows[:2]] == [["1234.50", "1,234.50", "95.00%"], ["99", "99", "50.00%"]]
    assert "█" * 11 in rows[0]
    assert rows[0].split()[-2:] == ["accepted", "3"]
    assert rows[1].split()[-4:] == ["to", "a", "person", "3"]
    assert rows[2].split()[1:3] == ["-", "0.00%"]


def test_alternatives_have_rows_of_their_own(program: Program, folder: Path) -> None:
    _, out, _ = program("predict", "check-reader", folder / "a.png", "--top-k", 3)
    header, first, second = out.splitlines()
    assert header.split() == ["image", "amount", "text", "posterior", "confidence", "version"]
    assert first.split()[1:5] == ["1234.50", "1,234.50", "95.00%", "95.00%"]
    assert second.split() == ["7234.50", "7,234.50", "4.00%"]


def test_an_amount_with_points_between_its_thousands_is_written_as_in_json(
    program: Program, folder: Path, fake: FakeTransport
) -> None:
    read = FakeModel.of_amounts(lambda _: [("$ 8.635.-", 0.9), ("8.535", 0.05)], labels="$ 8653.-", decimal="")
    fake.models["check-reader"] = read
    _, out, _ = program("predict", "check-reader", folder / "a.png", "--top-k", 2)
    assert "8,635" not in out
    assert out.splitlines()[1].split()[1:5] == ["8635", "$", "8.635.-", "90.00%"]
    assert out.splitlines()[2].split() == ["8535", "8.535", "5.00%"]


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_more_amounts_than_the_model_gives_are_not_listed_and_that_is_said(
    program: Program, folder: Path, options: tuple[str, ...]
) -> None:
    _, _, err = program("predict", "check-reader", folder / "a.png", "--top-k", 9, *options)
    assert err == "convoy: --top-k 9: 'check-reader' gives 3 amounts at most; no more are listed.\n"
    assert program("predict", "check-reader", folder / "a.png", "--top-k", 3, *options)[2] == ""
    assert program("predict", "digits", folder / "a.png", "--top-k", 9, *options)[2] == ""


def test_where_pictures_were_drawn_is_said(program: Program, folder: Path, tmp_path: Path) -> None:
    _, _, err = program("predict", "check-reader", folder / "a.png", "--draw", tmp_path / "read.png", "--json")
    assert err == f"convoy: drawn: {tmp_path / 'read.png'}\n"
    _, _, err = program("predict", "check-reader", folder, "--draw", tmp_path / "drawn")
    assert f"convoy: drawn: 3 pictures in {tmp_path / 'drawn'}\n" in err
    _, _, err = program("predict", "check-reader", folder / "d.png", "--draw", tmp_path / "none")
    assert "convoy: drawn" not in err


def test_json_lines_hold_amounts_as_text_and_the_places_of_characters(program: Program, folder: Path) -> None:
    code, out, _ = program("predict", "check-reader", folder, "--json", "--top-k", 2)
    assert code == 1
    first, second, third, broken = lines_of(out)
    assert first == {
        "image": str(folder / "a.png"),
        "amount": "1234.50",
        "text": "1,234.50",
        "confidence": pytest.approx(0.95),
        "accepted": True,
        "characters": [{"character": character, "left_px": 5 * i, "right_px": 5 * i + 5} for i, character in enumerate("1,234.50")],
        "alternatives": [
            {"amount": "1234.50", "text": "1,234.50", "posterior": pytest.approx(0.95)},
            {"amount": "7234.50", "text": "7,234.50", "posterior": pytest.approx(0.04)},
        ],
        "model_name": "check-reader",
        "model_version": "3",
        "error": None,
    }
    assert (second["amount"], second["accepted"]) == ("99", False)
    assert (third["amount"], third["text"], third["characters"]) == (None, "", [])
    assert broken.keys() == first.keys()
    assert "expected an image" in broken["error"]
    assert broken["amount"] is broken["confidence"] is broken["model_version"] is None


def test_a_box_cuts_the_field_out_of_a_form_and_places_are_those_on_the_form(program: Program, tmp_path: Path) -> None:
    form = np.zeros((100, 300), np.uint8)
    form[40:48, 200:240] = 7
    Image.fromarray(form).save(tmp_path / "form.png")
    code, out, _ = program("predict", "check-reader", tmp_path / "form.png", "--box", "200,40,40,8", "--json")
    (line,) = lines_of(out)
    assert (code, line["amount"]) == (0, "1234.50")
    assert [character["left_px"] for character in line["characters"]] == list(range(200, 240, 5))
    code, _, err = program("predict", "check-reader", tmp_path / "form.png", "--box", "290,40,40,8")
    assert code == 1
    assert "expected a box (left, top, width, height) on the image of 300x100 pixels" in err


@pytest.mark.parametrize("box", ["1,2,3", "1,2,3,4,5", "a,b,c,d", "1.5,0,2,2", "-1,0,2,2", "0,0,0,2", ""])
def test_a_box_that_is_none_is_wrong_use(box: str, program: Program, folder: Path) -> None:
    code, out, err = program("predict", "check-reader", folder / "a.png", f"--box={box}")
    assert (code, out) == (2, "")
    assert "LEFT" in err


@pytest.mark.parametrize("option", [("--box", "0,0,4,4"), ("--draw", "out")])
def test_what_only_readers_have_is_refused_for_a_classifier(option: tuple[str, str], program: Program, folder: Path) -> None:
    code, out, err = program("predict", "digits", folder / "a.png", *option)
    assert (code, out) == (2, "")
    assert f"{option[0]} is for models that read amounts, and 'digits' classifies" in err


def test_a_picture_is_drawn_for_one_field_and_for_each_of_many(program: Program, folder: Path, tmp_path: Path) -> None:
    assert program("predict", "check-reader", folder / "a.png", "--draw", tmp_path / "new" / "read.png")[0] == 0
    with Image.open(tmp_path / "new" / "read.png") as picture:
        assert picture.width > 40 * 112 // 8
        assert picture.height > 112
    other = folder / "within" / "a.png"
    other.parent.mkdir()
    Image.new("L", (30, 8), 9).save(other)
    code, out, _ = program("predict", "check-reader", folder, "--draw", tmp_path / "drawn", "--json")
    assert (code, len(lines_of(out))) == (1, 5)
    names = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert names == ["a-2.read.png", "a.read.png", "b.read.png", "c.read.png"]


def test_a_place_for_pictures_that_would_do_harm_is_refused(program: Program, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file.txt").touch()
    for images, place, message in (
        ([folder], tmp_path / "one.png", "is for one image"),
        ([folder / "a.png", folder / "b.png"], tmp_path / "one.png", "is for one image"),
        ([folder / "a.png"], folder / "a.png", "expected another file than the image itself"),
        ([folder / "a.png"], tmp_path / "file.txt", "found a file of another kind"),
        (["--watch", folder], folder / "drawn", "is watched"),
        ([folder / "a.png"], tmp_path / "out.jpg", "drawings are PNG files: name a .png file, or a folder"),
        ([folder], tmp_path / "out.TIF", "drawings are PNG files: name a .png file, or a folder"),
        ([folder / "a.png"], tmp_path / "out.svg", "drawings are PNG files: name a .png file, or a folder"),
        (
            [folder / "a.png"],
            tmp_path / "x.docx",
            "drawings are PNG files: name a .png file, or a folder; make one whose name ends",
        ),
        ([folder], tmp_path / "x.html", "drawings are PNG files: name a .png file, or a folder"),
        ([folder / "a.png"], folder / "d.png", "expected a new file, or a drawing of this program's, found another file"),
    ):
        code, _, err = program("predict", "check-reader", *images, "--draw", place)
        assert code == 2, message
        assert message in err
    assert not (tmp_path / "x.docx").exists()
    for place in (tmp_path / "run.3", tmp_path / "old.docx"):
        if place.suffix == ".docx":
            place.mkdir()
        assert program("predict", "check-reader", folder / "a.png", "--draw", place)[0] == 0
        assert (place / "a.read.png").is_file()
    before = (folder / "a.png").read_bytes()
    assert program("predict", "check-reader", folder / "a.png", "--draw", folder)[0] == 0
    assert (folder / "a.png").read_bytes() == before
    code, _, err = program("predict", "check-reader", folder / "a.png", "--draw", tmp_path / "file.txt" / "x.png")
    assert code == 2
    assert "cannot be written" in err


@pytest.mark.parametrize(
    ("images", "place"),
    [
        (["checks"], "checks"),
        (["checks"], "checks/drawn"),
        (["checks"], "checks/not/there/yet"),
        (["checks"], "link"),
        (["link"], "checks"),
        (["other/b.png", "checks", "other/a.png"], "other/../checks"),
        (["other", "checks/a.png"], "other"),
    ],
)
def test_pictures_do_not_go_into_a_folder_whose_images_are_read(
    images: list[str], place: str, program: Program, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(folder)
    for place_of_images in (folder, tmp_path / "other"):
        Image.new("L", (30, 8), 9).save(place_of_images / "a.read.png")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    code, out, err = program("predict", "check-reader", *(tmp_path / image for image in images), "--draw", tmp_path / place)
    assert (code, out) == (2, "")
    assert f"--draw {tmp_path / place}: expected a folder outside of {tmp_path}/" in err
    assert "Choose another folder." in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before


def test_pictures_do_not_take_the_places_of_images_that_are_named(program: Program, folder: Path) -> None:
    Image.new("L", (30, 8), 9).save(folder / "a.read.png")
    before = (folder / "a.read.png").read_bytes()
    code, out, err = program("predict", "check-reader", folder / "a.png", folder / "a.read.png", "--draw", folder)
    assert (code, out) == (2, "")
    assert f"--draw {folder}: {folder / 'a.read.png'} lies there" in err
    assert "Choose another folder" in err
    assert (folder / "a.read.png").read_bytes() == before


def test_a_picture_is_written_over_an_older_picture_and_over_no_other_file(program: Program, folder: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    for place, picture in ((drawn, drawn / "a.read.png"), (tmp_path / "one.png", tmp_path / "one.png")):
        picture.touch()  # as mktemp leaves it
        for value in (7, 9):
            Image.new("L", (40, 8), value).save(folder / "a.png")
            before = picture.read_bytes()
            assert program("predict", "check-reader", folder / "a.png", "--draw", place)[0] == 0
            assert picture.read_bytes() != before
    Image.new("L", (30, 8), 9).save(drawn / "b.read.png")
    before = (drawn / "b.read.png").read_bytes()
    code, _, err = program("predict", "check-reader", folder, "--draw", drawn)
    assert code == 2
    assert f"{drawn / 'b.read.png'}: expected a new file, or a drawing of this program's, found another file" in err
    assert (drawn / "b.read.png").read_bytes() == before


def test_a_folder_of_pictures_may_hold_the_folder_of_images(program: Program, folder: Path, tmp_path: Path) -> None:
    (folder / "d.png").unlink()
    for _ in range(2):
        assert program("predict", "check-reader", folder, "--draw", tmp_path)[0] == 0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["a.read.png", "b.read.png", "c.read.png"]


def test_fields_that_appear_in_a_folder_are_read_and_drawn(
    program: Program, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[Callable[[], None]] = [lambda: Image.new("L", (40, 8), 7).save(folder / "new.png"), lambda: None, lambda: None]

    def pause(_: float) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop(0)()

    monkeypatch.setattr("convoy.cli.predict._pause", pause)
    code, out, err = program("predict", "check-reader", "--watch", folder, "--json", "--draw", tmp_path / "drawn")
    assert code == 0
    assert [(Path(line["image"]).name, line["amount"]) for line in lines_of(out)] == [("new.png", "1234.50")]
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["new.read.png"]
    assert f"stopped watching {folder}: 1 input in all" in err


def make_answer(width_px: int = 64, text: str = "1,234.50", name: str = "a.png") -> ReadAnswer:
    pixels = np.full((8, 64, 1), 250, np.uint8)
    pixels[2:6, : width_px // 2] = 10
    step = max(1, width_px // max(1, len(text)))
    places = [(min(i * step, width_px - 1), min((i + 1) * step, width_px)) for i in range(len(text))]
    characters = tuple(
        Character(one, 100 + left, 100 + max(left + 1, right)) for one, (left, right) in zip(text, places, strict=True)
    )
    amount = Amount(None, text, characters, 0.5, False, (Alternative(text, None, 0.5),), "check-reader", "3")
    return ReadAnswer(Found(name, name), FieldPixels(pixels, width_px, 1.0, 100), amount, None)


def shown(monkeypatch: pytest.MonkeyPatch, width: int, *answers: ReadAnswer, **options: Any) -> list[str]:
    screen = io.StringIO()
    console = Console(file=screen, width=width, highlight=False, **options)
    monkeypatch.setattr("convoy.cli.amounts.stdout_console", lambda: console)
    table = AmountTable(1)
    for answer in answers:
        table.show([answer])
    return screen.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("options", [{}, {"force_terminal": True, "color_system": None}])
def test_no_row_and_no_drawing_is_wider_than_the_terminal(
    width: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = shown(monkeypatch, width, make_answer(), make_answer(name="folder/" + "long" * 30 + ".png"), **options)
    assert max(map(len, lines)) <= width


def test_a_terminal_shows_the_field_with_the_characters_under_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, 100, make_answer(), force_terminal=True, color_system=None)
    drawn = lines[2:]
    ink, under = drawn[:-1], drawn[-1]
    assert any("█" in line for line in ink)
    assert max(line.rfind("█") for line in ink) < 60
    assert under.split() == list("1,234.50")
    assert [i for i, character in enumerate(under) if character != " "] == pytest.approx(
        [2 + 6 + 12 * i - 2 for i in range(8)], abs=12
    )
    in_colour = shown(monkeypatch, 100, make_answer(), force_terminal=True, color_system="truecolor")
    assert any("▀" in line and "38;2;" in line for line in in_colour)
    assert not any("▀" in line or "░" in line for line in shown(monkeypatch, 100, make_answer()))


@given(width_px=st.integers(1, 64), text=st.text("0123456789.,", max_size=20), columns=st.integers(1, 200), flags=st.integers(0, 3))
def test_any_field_can_be_drawn(width_px: int, text: str, columns: int, flags: int) -> None:
    answer = make_answer(width_px, text)
    assert answer.field is not None
    assert answer.amount is not None
    *field, under = draw_lines(answer.field, answer.amount, columns=columns, in_colour=bool(flags & 1), unicode=bool(flags & 2))
    assert 1 <= len(field) <= 10
    assert max(len(line) for line in field) <= columns
    assert "".join(under.plain.split()) == text
    if not flags & 2:
        assert all(line.plain.isascii() for line in field)
    assert all(0 <= span.left < span.right <= 1 for span in spans_of(answer.field, answer.amount))
    picture = draw_picture(answer.field, answer.amount)
    assert picture.mode == "RGB"
    assert picture.width >= 14 * width_px
