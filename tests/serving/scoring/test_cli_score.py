from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convoy.contract.errors import AuthenticationError, ModelNotFoundError
from convoy.serving.client._call import Infer
from convoy.serving.client.testing import FakeTransport

parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def folder(tmp_path: Path, write_image: Callable[[Path, int], Path]) -> Path:
    for name, index in (("zero/a.png", 0), ("one/b.png", 1), ("two/c.png", 0)):
        write_image(tmp_path / "set" / name, index)
    return tmp_path / "set"


def test_score_writes_the_data_set_and_says_what_it_did(program: Any, folder: Path, tmp_path: Path) -> None:
    (folder / "notes.txt").touch()
    code, out, err = program("score", "digits", folder, tmp_path / "out", "--labels-from-folders")
    assert code == 0
    assert "3 of 3 inputs scored with digits version 3" in out
    assert "accuracy: 66.67% of 3 labelled images" in out
    assert "skipped: 1 .txt files" in out
    assert f"written: {tmp_path / 'out'}" in out
    assert err == ""
    assert parquet.read_table(tmp_path / "out").num_rows == 3
    code, out, err = program("score", "digits", folder, tmp_path / "out", "--labels-from-folders")
    assert (code, err) == (0, "")
    assert "3 of 3 inputs scored (3 by earlier runs)" in out


def test_score_exits_1_where_rows_hold_an_error(program: Any, folder: Path, tmp_path: Path) -> None:
    (folder / "bad.png").touch()
    code, out, err = program("score", "digits", folder, tmp_path / "out", "--json")
    assert code == 1
    summary = json.loads(out)
    assert (summary["n"], summary["n_scored"], summary["n_failed"]) == (4, 3, 1)
    assert "1 of 4 inputs could not be scored; the column `error`" in err


def test_score_exits_2_on_wrong_use(program: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments in (
        ("score", "digits", folder, tmp_path / "file"),
        ("score", "digits", folder, folder),
        ("score", "digits", tmp_path / "gone", tmp_path / "new"),
        ("score", "digits", folder, tmp_path / "new", "--url", "localhost"),
        ("score", "digits", folder, tmp_path / "new", "--top-k", "0"),
        ("score", "digits", folder, tmp_path / "new", "--rows-per-file", "1500"),
        ("score", "digits", folder, tmp_path / "new", "--chunk-rows", "0"),
        ("score", "digits", folder, tmp_path / "new", "--format", "xml"),
        ("score", "digits", folder, tmp_path / "new", "--storage-option", "x"),
        ("score", "digits", folder),
    ):
        code, out, err = program(*arguments)
        assert code == 2
        assert out == ""
        assert err
    assert not (tmp_path / "new").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["one", "two", "zero"]


def test_score_exits_2_where_another_run_was_begun(program: Any, folder: Path, tmp_path: Path) -> None:
    assert program("score", "digits", folder, tmp_path / "out")[0] == 0
    code, out, err = program("score", "digits", folder, tmp_path / "out", "--top-k", "2")
    assert (code, out) == (2, "")
    assert "another run was begun here: --top-k was 5 and is 2" in err


def test_score_exits_1_where_the_model_is_not_served(program: Any, folder: Path, tmp_path: Path) -> None:
    code, out, err = program("score", "nobody", folder, tmp_path / "out")
    assert (code, out) == (1, "")
    assert "model 'nobody'" in err
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_served_is_answered_with_those_that_are(program: Any, folder: Path, tmp_path: Path) -> None:
    for arguments in (("predict", "digit", folder / "one" / "b.png"), ("score", "digit", folder, tmp_path / "out")):
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
    code, out, err = program("score", "digits", folder, tmp_path / "out", *arguments)
    assert (code, err) == (0, "")
    assert opened == [("https://box:443", {"authorization": "secret"})]
    assert "secret" not in out
    assert fake.closed


def test_a_version_that_is_no_number_is_wrong_use(program: Any, folder: Path, tmp_path: Path, fake: FakeTransport) -> None:
    for arguments in (("predict", "digits", folder / "one" / "b.png"), ("score", "digits", folder, tmp_path / "out")):
        code, _, err = program(*arguments, "--model-version", "v1")
        assert code == 2
        assert "expected a positive whole number" in err
    assert not fake.calls


def test_score_writes_csv_and_json_lines_as_well(program: Any, folder: Path, tmp_path: Path) -> None:
    for form in ("csv", "jsonl"):
        code, _, err = program("score", "digits", folder, tmp_path / form, "--format", form, "--rows-per-file", "2")
        assert (code, err) == (0, "")
        assert [path.name for path in sorted((tmp_path / form).glob("part-*"))] == [f"part-00000{part}.{form}" for part in (0, 1)]


class Signalling(FakeTransport):
    """Sends this process a signal at the scored batches of these numbers."""

    def __init__(self, fake: FakeTransport, number: int, at: tuple[int, ...]) -> None:
        super().__init__(fake.models)
        self._number, self._at, self._n = number, at, 0

    def send(self, call: Any, timeout_s: float) -> Any:
        if isinstance(call, Infer) and call.model_version:
            self._n += 1
            if self._n in self._at:
                os.kill(os.getpid(), self._number)
                time.sleep(0.3)  # two signals of one kind that come too fast are one
        return super().send(call, timeout_s)


@pytest.fixture
def signalled(program: Any, folder: Path, fake: FakeTransport, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the program on a server that sends it a signal."""
    for i in range(40):
        (folder / "one" / f"{i:02}.png").write_bytes((folder / "one" / "b.png").read_bytes())

    def run(number: int, at: tuple[int, ...], *arguments: Any) -> tuple[int, str, str]:
        server = Signalling(fake, number, at)
        with monkeypatch.context() as patch:
            patch.setattr("convoy.serving.client._client.open_transport", lambda endpoint, headers: server)
            result: tuple[int, str, str] = program(*arguments)
        return result

    return run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_in_order_and_the_command_that_is_printed_goes_on(
    number: int, signalled: Any, program: Any, folder: Path, tmp_path: Path
) -> None:
    out_path = tmp_path / "it's out"
    secrets = ("--header", "Authorization: secret", "--header=X-Key: secret", "--storage-option", "key=secret")
    arguments = ("score", "digits", folder, out_path, "--chunk-rows", 2, "--rows-per-file", 4, "--in-flight", 1)
    before = signal.getsignal(number)
    code, out, err = signalled(number, (3,), *arguments, *secrets)
    assert (code, out) == (130, "")
    assert signal.getsignal(number) is before
    assert "Stopping after the chunks in flight; once more stops at once." in err
    assert "the run stopped: it was asked to stop." in err
    assert "secret" not in err
    command = shlex.split(err.rstrip().splitlines()[-1])
    assert command[0] == "convoy"
    assert command[1 : 1 + len(arguments)] == list(map(str, arguments))
    assert command[1 + len(arguments) :] == [
        *("--header", "Authorization:..."),
        "--header=X-Key:...",
        *("--storage-option", "key=..."),
    ]
    rows = 2 * len(list(out_path.glob("_convoy/chunk-*"))) + 4 * len(list(out_path.glob("part-*")))
    assert 0 < rows < 43
    code, out, err = program(*command[1 : 1 + len(arguments)])
    assert (code, err) == (0, "")
    assert f"43 of 43 inputs scored ({rows} by earlier runs)" in out


def test_a_second_signal_ends_a_run_at_once(signalled: Any, program: Any, folder: Path, tmp_path: Path) -> None:
    arguments = ("score", "digits", folder, tmp_path / "out", "--chunk-rows", 40, "--rows-per-file", 40, "--in-flight", 1)
    code, out, err = signalled(signal.SIGINT, (2, 4), *arguments)
    assert (code, out) == (130, "")
    assert "Stopped at once" in err
    assert shlex.join(["convoy", *map(str, arguments)]) in err
    assert err.endswith("convoy: interrupted\n")
    assert program(*arguments)[0] == 0


def test_the_command_that_goes_on_begins_as_the_first_one_did(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from convoy.cli.score import _again

    monkeypatch.setattr(sys, "argv", ["/x/convoy/__main__.py", "-v", "score", "a b", "--header"])
    assert _again() == shlex.join([sys.executable, "-m", "convoy", "-v", "score", "a b", "--header"])
    monkeypatch.setattr(sys, "argv", ["/x y/bin/convoy", "score"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _again() == "'/x y/bin/convoy' score"
