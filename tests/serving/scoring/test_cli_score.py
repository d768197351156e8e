from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convoy.contract.errors import AuthenticationError, ModelNotFoundError
from convoy.serving.client.testing import FakeTransport

parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def folder(tmp_path: Path, write_image: Callable[[Path, int], Path]) -> Path:
    for name, index in (("zero/a.png", 0), ("one/b.png", 1), ("two/c.png", 0)):
        write_image(tmp_path / "set" / name, index)
    return tmp_path / "set"


def test_score_writes_the_table_and_says_what_it_did(program: Any, folder: Path, tmp_path: Path) -> None:
    (folder / "notes.txt").touch()
    code, out, err = program("score", "digits", folder, tmp_path / "out.parquet", "--labels-from-folders")
    assert code == 0
    assert "3 of 3 inputs scored with digits version 3" in out
    assert "accuracy: 66.67% of 3 labelled images" in out
    assert "skipped: 1 .txt files" in out
    assert err == ""
    assert parquet.read_table(tmp_path / "out.parquet").num_rows == 3


def test_score_exits_1_where_rows_hold_an_error(program: Any, folder: Path, tmp_path: Path) -> None:
    (folder / "bad.png").touch()
    code, out, err = program("score", "digits", folder, tmp_path / "out.parquet", "--json")
    assert code == 1
    summary = json.loads(out)
    assert (summary["n"], summary["n_scored"], summary["n_failed"]) == (4, 3, 1)
    assert "1 of 4 inputs could not be scored; the column `error`" in err


def test_score_exits_2_on_wrong_use(program: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out.parquet").touch()
    for arguments in (
        ("score", "digits", folder, tmp_path / "out.parquet"),
        ("score", "digits", tmp_path / "gone", tmp_path / "new.parquet"),
        ("score", "digits", folder, tmp_path / "new.parquet", "--url", "localhost"),
        ("score", "digits", folder, tmp_path / "new.parquet", "--top-k", "0"),
        ("score", "digits", folder),
    ):
        code, out, err = program(*arguments)
        assert code == 2
        assert out == ""
        assert err
    assert not (tmp_path / "new.parquet").exists()


def test_score_exits_1_where_the_model_is_not_served(program: Any, folder: Path, tmp_path: Path) -> None:
    code, out, err = program("score", "nobody", folder, tmp_path / "out.parquet")
    assert (code, out) == (1, "")
    assert "model 'nobody'" in err


def test_a_model_that_is_not_served_is_answered_with_those_that_are(program: Any, folder: Path, tmp_path: Path) -> None:
    for arguments in (("predict", "digit", folder / "one" / "b.png"), ("score", "digit", folder, tmp_path / "out.parquet")):
        code, out, err = program(*arguments)
        assert (code, out) == (1, "")
        assert err.rstrip().endswith("The server serves: digits (version 3).")
    _, _, err = program("predict", "digits", folder / "one" / "b.png", "--model-version", "9")
    assert "version 9" in err
    assert "The server serves: digits (version 3)." in err


def test_a_server_that_does_not_list_its_models_leaves_the_first_error(program: Any, folder: Path, fake: FakeTransport) -> None:
    fake.failures.extend([ModelNotFoundError("no model 'digit'."), AuthenticationError("the list is secret")])
    assert program("predict", "digit", folder / "one" / "b.png") == (1, "", "convoy: error: no model 'digit'.\n")


def test_a_version_that_is_no_number_is_wrong_use(program: Any, folder: Path, tmp_path: Path, fake: FakeTransport) -> None:
    for arguments in (("predict", "digits", folder / "one" / "b.png"), ("score", "digits", folder, tmp_path / "out.parquet")):
        code, _, err = program(*arguments, "--model-version", "v1")
        assert code == 2
        assert "expected a positive whole number" in err
    assert not fake.calls


def test_score_into_a_name_of_another_format_is_wrong_use(program: Any, folder: Path, tmp_path: Path) -> None:
    code, _, err = program("score", "digits", folder, tmp_path / "scores.csv")
    assert code == 2
    assert "a Parquet table is written" in err
    assert not (tmp_path / "scores.csv").exists()


def test_an_interrupted_score_says_that_nothing_was_written(
    program: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("convoy.serving.scoring.score", interrupt)
    out_path = tmp_path / "out.parquet"
    code, out, err = program("score", "digits", folder, out_path, "--json")
    assert (code, out) == (130, "")
    assert f"nothing was written to {out_path}." in err
    assert err.endswith("convoy: interrupted\n")


def test_predict_prints_label_probability_and_version(program: Any, folder: Path) -> None:
    code, out, err = program("predict", "digits", folder / "one" / "b.png")
    assert (code, err) == (0, "")
    header, row = out.strip().splitlines()
    assert header.split() == ["image", "label", "probability", "version"]
    assert row.split()[1:3] == ["one", "80.00%"]
    assert row.split()[-1] == "3"


def test_predict_lists_the_likeliest_classes(program: Any, folder: Path) -> None:
    _, out, _ = program("predict", "digits", folder / "one" / "b.png", folder / "zero" / "a.png", "--top-k", "2")
    assert [word for line in out.splitlines()[1:] for word in line.split() if word in ("zero", "one", "two")] == [
        "one",
        "zero",
        "zero",
        "one",
    ]


def test_predict_answers_the_readable_images_and_reports_the_others(program: Any, folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    images = (bad, folder / "one" / "b.png", tmp_path / "gone.png", folder)
    code, out, err = program("predict", "digits", *images)
    assert code == 1
    assert "80.00%" in out
    assert "bad.png: expected an image" in err
    assert "gone.png: no such file" in err
    assert "found a folder" in err
    assert "3 of 4 images could not be read" in err

    code, out, _ = program("predict", "digits", *images, "--json", "--top-k", "3")
    assert code == 1
    answers = json.loads(out)["predictions"]
    assert [answer["image"] for answer in answers] == [str(image) for image in images]
    assert [answer["label"] for answer in answers] == [None, "one", None, None]
    assert answers[1]["error"] is None
    assert "expected an image" in answers[0]["error"]
    assert len(answers[1]["top_k"]) == 3


def test_predict_takes_labels_and_names_as_they_are(program: Any, tmp_path: Path, fake: FakeTransport, write_image: Any) -> None:
    model = fake.models["digits"]
    parameter = model.config["parameters"]["convoy_interface"]
    parameter["string_value"] = parameter["string_value"].replace('"zero"', '"[red]"')
    _, out, _ = program("predict", "digits", write_image(tmp_path / "[bold].png", 0))
    assert "[red]" in out
    assert "[bold].png" in out


def test_predict_with_unreadable_images_only_prints_no_table(program: Any, tmp_path: Path) -> None:
    code, out, err = program("predict", "digits", tmp_path / "gone.png")
    assert (code, out) == (1, "")
    assert "1 of 1 image could not be read" in err
