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


def test_score_reaches_its_server_by_the_options_of_predict(
    program: Any, folder: Path, tmp_path: Path, fake: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[str, dict[str, str]]] = []

    def open_transport(endpoint: Any, options: Any) -> FakeTransport:
        opened.append((str(endpoint), options.headers))
        return fake

    monkeypatch.setattr("convoy.serving.client._client.open_transport", open_transport)
    arguments = ("--url", "http://box", "--tls", "--header", "Authorization: secret")
    code, out, err = program("score", "digits", folder, tmp_path / "out.parquet", *arguments)
    assert (code, err) == (0, "")
    assert opened == [("https://box:443", {"authorization": "secret"})]
    assert "secret" not in out
    assert fake.closed


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
