from __future__ import annotations

import dataclasses
import errno
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convoy.contract.errors import (
    AuthenticationError,
    ClientError,
    InvalidResponseError,
    MissingDependencyError,
    ModelNotFoundError,
    OverloadedError,
    ScoringError,
    ServerFailureError,
    UnavailableError,
    UsageError,
)
from convoy.serving.client import Client
from convoy.serving.client._call import Infer
from convoy.serving.client.testing import FakeTransport
from convoy.serving.scoring import SCHEMA_VERSION, _table, score
from convoy.serving.scoring._run import MAX_FAILED_BATCHES
from convoy.serving.scoring._table import TableFile

parquet = pytest.importorskip("pyarrow.parquet")


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return rows


@pytest.fixture
def hostile(tmp_path: Path, write_image: Callable[[Path, int], Path]) -> Path:
    """A folder of good, unreadable, empty, truncated and foreign files."""
    folder = tmp_path / "set"
    for i in range(10):
        write_image(folder / f"good{i}.png", i)
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("not an image")
    good = (folder / "good1.png").read_bytes()
    (folder / "truncated.png").write_bytes(good[: len(good) - 20])
    (folder / "gone.png").symlink_to(folder / "nowhere")
    (folder / "notes.txt").write_text("no input")
    return folder


def test_every_input_has_exactly_one_row_in_the_sources_order(hostile: Path, tmp_path: Path, client: Client) -> None:
    out = tmp_path / "out.parquet"
    summary = score("digits", hostile, out, client=client, top_k=2)
    rows = rows_of(out)
    assert [row["source"] for row in rows] == sorted(path.name for path in hostile.iterdir() if path.suffix == ".png")
    for row in rows:
        if row["source"].startswith("good"):
            index = int(row["source"][4]) % 3
            assert (row["index"], row["label"]) == (index, ("zero", "one", "two")[index])
            assert row["probability"] == pytest.approx(0.8)
            assert row["top_k"][0]["label"] == row["label"]
            assert len(row["top_k"]) == 2
            assert row["latency_ms"] > 0
            assert row["error"] is None
        else:
            assert row["source"] in row["error"]
            assert {row[key] for key in ("index", "label", "probability", "top_k", "latency_ms")} == {None}
        assert (row["model_name"], row["model_version"], row["model_sha256"]) == ("digits", "3", None)
    assert (summary.n, summary.n_scored, summary.n_failed, dict(summary.skipped)) == (14, 10, 4, {".txt files": 1})
    assert (summary.model_version, summary.accuracy, summary.n_labelled) == ("3", None, 0)
    assert summary.throughput_ips > 0


def test_the_table_has_the_documented_schema_and_says_its_version(hostile: Path, tmp_path: Path, client: Client) -> None:
    out = tmp_path / "out.parquet"
    score("digits", hostile, out, client=client)
    schema = parquet.read_schema(out)
    documented = [line.split("``")[1] for line in (_table.__doc__ or "").splitlines() if line.startswith("``")]
    assert schema.names == documented[:-1]
    assert documented[-1] == "true_label"
    assert schema.metadata[b"convoy.schema_version"] == SCHEMA_VERSION.encode() == b"1"
    assert schema.metadata[b"convoy.model_version"] == b"3"


def test_labels_from_folders_give_true_labels_and_accuracy(
    tmp_path: Path, write_image: Callable[[Path, int], Path], client: Client
) -> None:
    for name, index in (("zero/a.png", 0), ("one/b.png", 1), ("two/c.png", 0), ("one/d.png", 1), ("e.png", 2)):
        write_image(tmp_path / "set" / name, index)
    (tmp_path / "set" / "two" / "bad.png").touch()
    out = tmp_path / "out.parquet"
    summary = score("digits", tmp_path / "set", out, client=client, labels_from_folders=True)
    assert [row["true_label"] for row in rows_of(out)] == [None, "one", "one", "two", "two", "zero"]
    assert (summary.n_labelled, summary.accuracy, summary.n_failed) == (4, 0.75, 1)


def test_folders_that_are_no_labels_are_refused_before_anything_is_written(
    tmp_path: Path, write_image: Callable[[Path, int], Path], client: Client
) -> None:
    write_image(tmp_path / "set" / "seven" / "a.png", 0)
    with pytest.raises(UsageError, match=r"'seven' are no labels of model 'digits', which knows 'zero', 'one', 'two'"):
        score("digits", tmp_path / "set", tmp_path / "out.parquet", client=client, labels_from_folders=True)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("n", [1, 3, 4, 5, 40])
def test_arrays_of_any_length_are_scored_whole_in_batches_of_the_server(
    n: int, tmp_path: Path, client: Client, fake: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_table, "ROW_GROUP_ROWS", 8)
    images = np.zeros((n, 4, 4), np.uint8) + np.arange(n, dtype=np.uint8).reshape(-1, 1, 1)
    np.save(tmp_path / "x.npy", images)
    progress = []
    out = tmp_path / "out.parquet"
    score("digits", tmp_path / "x.npy", out, client=client, on_progress=lambda done, total: progress.append((done, total)))
    assert [(row["source"], row["index"]) for row in rows_of(out)] == [(str(i), i % 3) for i in range(n)]
    sizes = [call.inputs[0].shape[0] for call in fake.calls if isinstance(call, Infer) and call.model_version == "3"]
    assert sorted(sizes, reverse=True) == [4] * (n // 4) + [n % 4] * (n % 4 > 0)
    assert progress == [(min(i * 4, n), n) for i in range(-(-n // 4) + 1)]
    assert parquet.ParquetFile(out).num_row_groups == -(-n // 8)


def test_the_version_that_answers_first_is_asked_for_by_name(
    tmp_path: Path, client: Client, fake: FakeTransport, hostile: Path
) -> None:
    score("digits", hostile, tmp_path / "out.parquet", client=client)
    versions = [call.model_version for call in fake.calls if isinstance(call, Infer)]
    assert versions[0] == ""
    assert set(versions[1:]) == {"3"}


def test_the_digest_is_in_every_row_where_the_server_tells_it(
    tmp_path: Path, client: Client, fake: FakeTransport, hostile: Path
) -> None:
    fake.models["digits"].config["parameters"]["convoy_model_sha256"] = {"string_value": "ab" * 32}
    summary = score("digits", hostile, tmp_path / "out.parquet", client=client)
    assert summary.model_sha256 == "ab" * 32
    assert {row["model_sha256"] for row in rows_of(tmp_path / "out.parquet")} == {"ab" * 32}


def big(tmp_path: Path, n: int = 200) -> Path:
    np.save(tmp_path / "x.npy", np.zeros((n, 4, 4), np.uint8))
    return tmp_path / "x.npy"


class Failing(FakeTransport):
    """Raises ``error`` for every scored batch from the ``after``-th on, ``times`` times."""

    def __init__(self, fake: FakeTransport, error: Exception, *, after: int, times: int = 10**9) -> None:
        super().__init__(fake.models)
        self._error, self._after, self._times, self._seen = error, after, times, 0
        self._guard = threading.Lock()

    def send(self, call: Any, timeout_s: float) -> Any:
        if isinstance(call, Infer) and call.model_version:
            with self._guard:
                self._seen += 1
                fails = self._after < self._seen <= self._after + self._times
            if fails:
                raise self._error
        return super().send(call, timeout_s)


@pytest.mark.parametrize("error", [UnavailableError("gone"), ModelNotFoundError("gone"), AuthenticationError("no")])
def test_a_server_or_version_that_goes_stops_the_run_and_nothing_is_written(
    error: ClientError, tmp_path: Path, fake: FakeTransport
) -> None:
    source = big(tmp_path)
    with pytest.raises(ScoringError, match=r"stopped after \d+ of 200 inputs and wrote nothing.*again when it is served") as caught:
        score("digits", source, tmp_path / "out.parquet", client=Client(transport=Failing(fake, error, after=9)))
    assert str(error) in str(caught.value)
    assert caught.value.__cause__ is error
    assert ("version 3 is not served any more" in str(caught.value)) == (not isinstance(error, AuthenticationError))
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


@pytest.mark.parametrize("error", [OverloadedError("full"), ServerFailureError("sick"), InvalidResponseError("odd")])
def test_a_batch_that_the_server_refuses_has_the_reason_in_its_rows(
    error: ClientError, tmp_path: Path, fake: FakeTransport
) -> None:
    failing = Failing(fake, error, after=5, times=3)
    summary = score("digits", big(tmp_path), tmp_path / "out.parquet", client=Client(transport=failing, retry=None))
    assert (summary.n, summary.n_failed) == (200, 12)
    errors = [row["error"] for row in rows_of(tmp_path / "out.parquet")]
    assert len(errors) == 200
    assert errors.count(str(error)) == 12


def test_a_server_that_only_refuses_stops_the_run(tmp_path: Path, fake: FakeTransport) -> None:
    failing = Failing(fake, ServerFailureError("sick"), after=10)
    with pytest.raises(ScoringError, match=rf"refused {MAX_FAILED_BATCHES} batches one after the other. The last time: sick"):
        score("digits", big(tmp_path, 400), tmp_path / "out.parquet", client=Client(transport=failing))
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_an_unreachable_server_is_said_before_anything_is_written(tmp_path: Path) -> None:
    source = big(tmp_path)
    with pytest.raises(UnavailableError, match="convoy serve"):
        score("digits", source, tmp_path / "out.parquet", url="grpc://127.0.0.1:1")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_a_file_that_is_there_is_only_replaced_by_force(tmp_path: Path, client: Client) -> None:
    source, out = big(tmp_path), tmp_path / "out.parquet"
    out.write_text("precious")
    with pytest.raises(UsageError, match="--force"):
        score("digits", source, out, client=client)
    assert out.read_text() == "precious"
    score("digits", source, out, client=client, force=True)
    assert len(rows_of(out)) == 200


def test_a_failed_run_leaves_the_file_that_was_there(tmp_path: Path, fake: FakeTransport) -> None:
    source, out = big(tmp_path), tmp_path / "out.parquet"
    out.write_text("precious")
    with pytest.raises(ScoringError):
        score("digits", source, out, client=Client(transport=Failing(fake, UnavailableError("gone"), after=9)), force=True)
    assert out.read_text() == "precious"


@pytest.mark.parametrize("name", ["missing/out.parquet", "folder"])
def test_an_output_that_cannot_be_is_refused_at_once(name: str, tmp_path: Path, client: Client, fake: FakeTransport) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=r"does not exist|found a folder"):
        score("digits", big(tmp_path), tmp_path / name, client=client)
    assert not fake.calls


@pytest.mark.parametrize("name", ["scores.csv", "scores", "scores.parquet.gz", ".parquet"])
def test_a_name_of_another_format_is_refused_before_the_server_is_asked(
    name: str, tmp_path: Path, client: Client, fake: FakeTransport
) -> None:
    with pytest.raises(UsageError, match=r"a Parquet table is written.* ends in \.parquet or \.pq"):
        score("digits", big(tmp_path), tmp_path / name, client=client)
    assert not fake.calls


@pytest.mark.parametrize("name", ["scores.pq", "SCORES.PARQUET"])
def test_a_name_of_a_parquet_file_is_taken_in_any_case(name: str, tmp_path: Path, client: Client) -> None:
    score("digits", big(tmp_path), tmp_path / name, client=client)
    assert len(rows_of(tmp_path / name)) == 200


def test_what_a_killed_run_left_aside_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path, client: Client) -> None:
    source, out = big(tmp_path), tmp_path / "out.parquet"
    dead = tmp_path / ".out.parquet.3e5cb6a3.tmp"
    dead.write_bytes(b"half a table")
    others = {".out.parquet.tmp", ".out.parquet.mine.tmp", ".other.parquet.3e5cb6a3.tmp", "out.parquet.3e5cb6a3.tmp"}
    for name in others:
        (tmp_path / name).touch()
    schema = _table.make_schema(with_true_label=False, metadata={})
    with suppress(InterruptedError), TableFile(out, schema):
        (aside,) = (path for path in tmp_path.iterdir() if path.name.startswith(".out.parquet") and path.name not in others)
        assert aside != dead  # the first run has removed it
        score("digits", source, out, client=client)
        assert aside.exists()
        raise InterruptedError  # the living run ends, and takes its own file with it
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", "out.parquet", *others}


def test_a_run_that_was_killed_leaves_no_file_that_stays(tmp_path: Path, client: Client) -> None:
    source, out = big(tmp_path), tmp_path / "out.parquet"
    program = (
        "import os, signal, sys; from pathlib import Path; from convoy.serving.scoring import _table\n"
        "with _table.TableFile(Path(sys.argv[1]), _table.make_schema(with_true_label=False, metadata={})):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(out)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".out.parquet.*.tmp"))) == 1
    score("digits", source, out, client=client)
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", "out.parquet"}


@pytest.mark.parametrize("when", ["during", "at the end"])
def test_a_full_disk_leaves_nothing_half_written(
    when: str, tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = big(tmp_path)
    monkeypatch.setattr(_table, "ROW_GROUP_ROWS", 32)
    original = Path.open

    class Full:
        """A file on a disk with room for 500 bytes, or, where it fails only in the end, for none of the footer."""

        def __init__(self, file: Any) -> None:
            self._file, self._written = file, 0

        def write(self, data: Any) -> int:
            self._written += len(data)
            if self._written > (500 if when == "during" else 10_000):
                raise OSError(errno.ENOSPC, "No space left on device")
            n: int = self._file.write(data)
            return n

        def flush(self) -> None:
            if when == "at the end":
                raise OSError(errno.ENOSPC, "No space left on device")
            self._file.flush()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    monkeypatch.setattr(
        Path, "open", lambda path, *args: Full(original(path, *args)) if path.suffix == ".tmp" else original(path, *args)
    )
    with pytest.raises(ScoringError, match=r"No space left on device\. Nothing half-written was kept"):
        score("digits", source, tmp_path / "out.parquet", client=client)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_an_interrupt_leaves_nothing_half_written(tmp_path: Path, client: Client) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score("digits", big(tmp_path), tmp_path / "out.parquet", client=client, on_progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


@pytest.mark.parametrize("in_flight", [1, 3])
def test_no_more_batches_are_at_the_server_than_allowed_and_reading_runs_only_so_far_ahead(
    in_flight: int, tmp_path: Path, fake: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, gate = threading.Lock(), threading.Event()
    state = {"now": 0, "most": 0, "sent": 0, "decoded": 0, "ahead": 0}

    class Counting(FakeTransport):
        def send(self, call: Any, timeout_s: float) -> Any:
            if not (isinstance(call, Infer) and call.model_version):
                return super().send(call, timeout_s)
            with lock:
                state["now"] += 1
                state["sent"] += call.inputs[0].shape[0]
                state["most"] = max(state["most"], state["now"])
                if state["now"] >= in_flight:
                    gate.set()
            gate.wait(5)  # all that may be at the server at once meet here
            try:
                return super().send(call, timeout_s)
            finally:
                with lock:
                    state["now"] -= 1

    from convoy.serving.scoring import _batch

    original = _batch.to_pixels

    def counted(*args: Any) -> Any:
        with lock:
            state["decoded"] += 1
            state["ahead"] = max(state["ahead"], state["decoded"] - state["sent"])
        return original(*args)

    monkeypatch.setattr(_batch, "to_pixels", counted)
    summary = score(
        "digits", big(tmp_path, 400), tmp_path / "out.parquet", client=Client(transport=Counting(fake.models)), in_flight=in_flight
    )
    assert summary.n_scored == 400
    assert state["most"] == in_flight
    assert state["ahead"] <= 4 * (in_flight + 4)


@pytest.mark.parametrize("in_flight", [0, 257, 1.5, True])
def test_a_number_in_flight_that_makes_no_sense_is_refused(in_flight: Any, tmp_path: Path, client: Client) -> None:
    with pytest.raises(UsageError, match="in_flight"):
        score("digits", big(tmp_path), tmp_path / "out.parquet", client=client, in_flight=in_flight)


def test_a_missing_pyarrow_is_said_with_the_extra_to_install(
    tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"pip install '\.\[score\]'"):
        score("digits", big(tmp_path), tmp_path / "out.parquet", client=client)


def test_names_that_are_no_utf8_and_their_errors_fit_into_the_table(tmp_path: Path, client: Client) -> None:
    import os

    folder = tmp_path / "set"
    folder.mkdir()
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"no image")
    score("digits", folder, tmp_path / "out.parquet", client=client)
    (row,) = rows_of(tmp_path / "out.parquet")
    assert row["source"] == r"\xff.png"
    assert r"\xff.png" in row["error"]


def test_the_summary_is_plain_json(hostile: Path, tmp_path: Path, client: Client) -> None:
    summary = score("digits", hostile, tmp_path / "out.parquet", client=client)
    assert json.loads(json.dumps(dataclasses.asdict(summary)))["n"] == 14
