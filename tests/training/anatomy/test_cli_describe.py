from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from convoy.cli.program import program
from convoy.contract.errors import UsageError

PROGRAM = [sys.executable, "-c", "from convoy.cli import main; main()"]


def describe(*arguments: str) -> Result:
    return CliRunner().invoke(program, ["describe", *arguments], catch_exceptions=False)


def test_it_shows_the_lectures_number_beside_the_exact_one() -> None:
    result = describe("lenet5")
    assert result.exit_code == 0
    assert "6 (5*5*1 + 1) = 156" in result.stdout
    assert "61,706 parameters, 4.2 % in convolutions" in result.stdout
    assert "416,520 multiply-accumulates an image, 85.9 % in convolutions" in result.stdout
    assert "parameters: about 60k; exactly 61,706: agrees" in result.stdout
    (pool,) = [line for line in result.stdout.splitlines() if "16x5x5" in line and "16x16" in line]
    assert "25 % to 33 %" in pool


def test_json_is_one_document() -> None:
    document = json.loads(describe("lenet5", "--json", "--classes", "26").stdout)
    assert document["image"] == {"height_px": 28, "width_px": 28, "channels": 1}
    assert document["n_classes"] == 26
    assert document["parameters"] == sum(layer["parameters"] for layer in document["layers"]) == 61_706 + 16 * 85
    assert document["layers"][document["last_map"]]["field"]["size_px"] == [16, 16]
    assert document["layers"][-1]["dims"] == [26]
    assert document["lecture"] is None


def test_of_other_classes_it_says_for_what_the_lectures_numbers_are() -> None:
    assert "convoy describe lenet5 --image-size 28 --classes 10" in describe("lenet5", "--classes", "26").stdout


def test_lines_fit_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    monkeypatch.setattr("convoy.cli.layers.stdout_console", lambda: Console(file=sys.stdout, width=80, highlight=False))
    lines = describe("lenet5").stdout.splitlines()
    (heading,) = [line for line in lines if "parameters" in line and "MACs" in line]
    table = lines[lines.index(heading) : lines.index("", lines.index(heading))]
    assert len(table) == 9  # no row is folded
    assert max(map(len, table)) <= 80


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    result = describe("lenet5", "--plot", str(tmp_path / "fields.png"), "--json")
    assert result.exit_code == 0
    json.loads(result.stdout)
    assert "are drawn in" in result.stderr
    with Image.open(tmp_path / "fields.png") as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize(("name", "message"), [("fields.jpg", "ends with .png"), ("nowhere/fields.png", "nowhere is none")])
def test_a_plot_that_cannot_be_written_is_refused_first(tmp_path: Path, name: str, message: str) -> None:
    result = describe("lenet5", "--plot", str(tmp_path / name))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_images_that_the_network_does_not_take_are_wrong_use() -> None:
    done = subprocess.run(
        [*PROGRAM, "describe", "lenet5", "--image-size", "9"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("convoy: error: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("lenet-5",), "did you mean 'lenet5'"), (("lenet5", "--set", "epoch=3"), "did you mean 'epochs'")],
)
def test_wrong_names_come_with_the_nearest(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        program.main(["describe", *arguments], standalone_mode=False)


def test_a_reader_is_taken_apart_on_a_field() -> None:
    result = describe("check-reader-lenet5", "--image-size", "158")
    assert result.exit_code == 0
    assert "on grey fields of 32x160 (any width does), 21 classes" in result.stdout
    assert "62,641 parameters" in result.stdout
    assert "The field gives 40 frames, one every 4 columns; each sees 32 columns." in result.stdout
    assert "Grammar chilean: amounts of at most 20 characters" in result.stdout
    document = json.loads(describe("check-reader", "--json").stdout)
    assert document["image"] == {"height_px": 48, "width_px": 240, "channels": 1}
    assert document["parameters"] == 541_437
    assert document["layers"][-1]["dims"] == [document["n_classes"], 60]
    assert document["reading"]["frames"] == 60
    assert document["reading"]["field_px"] == document["layers"][-1]["field"]["size_px"][1] == 65
    assert json.loads(describe("lenet5", "--json").stdout)["reading"] is None


def test_a_field_of_one_frame_is_the_narrowest() -> None:
    assert "The field gives 1 frame, which sees 4 columns." in describe("check-reader-small", "--image-size", "1").stdout


def test_settings_of_a_reader_change_what_is_described() -> None:
    result = describe("check-reader-lenet5", "--set", "grammar=digits", "--set", "channels=[6,16,120,20]")
    assert "Grammar digits" in result.stdout
    assert "Conv-20 1x1" in result.stdout


@pytest.mark.parametrize("option", [("--classes", "10"), ("--data", "mnist")])
def test_what_a_grammar_says_is_no_option(option: tuple[str, str]) -> None:
    result = describe("check-reader", *option)
    assert result.exit_code == 2
    assert "its grammar says what its classes are; leave --data and --classes out" in result.stderr
