from __future__ import annotations

import dataclasses
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convoy.contract.errors import (
    AuthenticationError,
    ClientError,
    DataError,
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
from convoy.serving.client.testing import FakeModel, FakeTransport
from convoy.serving.scoring import SCHEMA_VERSION, _scorer, _table, score
from convoy.serving.scoring._local import MOST_REFUSED

parquet = pytest.importorskip("pyarrow.parquet")

SMALL = {"chunk_rows": 8, "rows_per_file": 32}


def rows_of(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = parquet.read_table(out).to_pylist()
    return rows


def without_latency(out: Path) -> list[dict[str, Any]]:
    return [{**row, "latency_ms": None} for row in rows_of(out)]


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def array(tmp_path: Path, n: int = 200) -> Path:
    """Images whose class is their index modulo 3, as the fake foretells; each is another one."""
    images = np.zeros((n, 4, 4), np.uint8)
    images[:, 0, 0] = np.arange(n) % 3 + np.arange(n) // 3 % 80 * 3
    images[:, 0, 1] = np.arange(n) // 240
    np.save(tmp_path / "x.npy", images)
    return tmp_path / "x.npy"


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
    out = tmp_path / "out"
    summary = score("digits", hostile, out, client=client, top_k=2).finish()
    rows = rows_of(out)
    assert [row["row"] for row in rows] == list(range(14))
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
    assert (summary.model_version, summary.accuracy, summary.n_labelled, summary.n_resumed) == ("3", None, 0, 0)
    assert summary.throughput_ips > 0
    assert names(out) == ["_convoy/lock", "_convoy/manifest.json", "_convoy/run.json", "part-000000.parquet"]


def test_the_table_has_the_documented_schema_and_says_its_version(hostile: Path, tmp_path: Path, client: Client) -> None:
    out = tmp_path / "out"
    score("digits", hostile, out, client=client).finish()
    schema = parquet.read_schema(out / "part-000000.parquet")
    documented = [line.split("``")[1] for line in (_table.__doc__ or "").splitlines() if line.startswith("``")]
    assert schema.names == documented
    assert schema.metadata[b"convoy.schema_version"] == SCHEMA_VERSION.encode() == b"2"
    assert schema.metadata[b"convoy.model_version"] == b"3"
    assert schema.metadata[b"convoy.run"].decode() == json.loads((out / "_convoy" / "manifest.json").read_text())["run"]


def test_labels_from_folders_give_true_labels_and_accuracy(
    tmp_path: Path, write_image: Callable[[Path, int], Path], client: Client
) -> None:
    for name, index in (("zero/a.png", 0), ("one/b.png", 1), ("two/c.png", 0), ("one/d.png", 1), ("e.png", 2)):
        write_image(tmp_path / "set" / name, index)
    (tmp_path / "set" / "two" / "bad.png").touch()
    out = tmp_path / "out"
    summary = score("digits", tmp_path / "set", out, client=client, labels_from_folders=True).finish()
    assert [row["true_label"] for row in rows_of(out)] == [None, "one", "one", "two", "two", "zero"]
    assert (summary.n_labelled, summary.accuracy, summary.n_failed) == (4, 0.75, 1)


def test_folders_that_are_no_labels_are_refused_before_anything_is_written(
    tmp_path: Path, write_image: Callable[[Path, int], Path], client: Client
) -> None:
    write_image(tmp_path / "set" / "seven" / "a.png", 0)
    with pytest.raises(UsageError, match=r"none of its sub-folders is named as a class of 'digits'.*found \['seven'\]"):
        score("digits", tmp_path / "set", tmp_path / "out", client=client, labels_from_folders=True).finish()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 9, 32, 33, 100])
def test_arrays_of_any_length_are_scored_whole_in_batches_of_the_server(
    n: int, tmp_path: Path, client: Client, fake: FakeTransport
) -> None:
    progress = []
    out = tmp_path / "out"
    run = score("digits", array(tmp_path, n), out, client=client, on_progress=progress.append, **SMALL)
    tables = list(run)
    assert [table.num_rows for table in tables] == [8] * (n // 8) + [n % 8] * (n % 8 > 0)
    assert [(row["source"], row["index"]) for row in rows_of(out)] == [(str(i), i % 3) for i in range(n)]
    assert [row for table in tables for row in table.to_pylist()] == rows_of(out)
    sizes = [call.inputs[0].shape[0] for call in fake.inferences if call.model_version == "3"]
    assert sorted(sizes, reverse=True) == [4] * (n // 4) + [n % 4] * (n % 4 > 0)
    done = [told.done for told in progress]
    assert (done[0], done[-1], len(done)) == (0, n, 1 + -(-n // 4))
    assert done == sorted(set(done))
    assert {(told.n, told.resumed, told.failed, told.model_version) for told in progress} == {(n, 0, 0, "3")}
    parts = [parquet.read_metadata(path).num_rows for path in sorted(out.glob("part-*.parquet"))]
    assert parts == [32] * (n // 32) + [n % 32] * (n % 32 > 0)
    manifest = json.loads((out / "_convoy" / "manifest.json").read_text())
    assert [file["rows"] for file in manifest["files"]] == parts
    assert manifest["summary"]["n_scored"] == run.summary.n_scored == n


def test_the_version_that_answers_first_is_asked_for_by_name(
    tmp_path: Path, client: Client, fake: FakeTransport, hostile: Path
) -> None:
    score("digits", hostile, tmp_path / "out", client=client).finish()
    versions = [call.model_version for call in fake.inferences]
    assert versions[0] == ""
    assert set(versions[1:]) == {"3"}


def test_the_digest_is_in_every_row_where_the_server_tells_it(
    tmp_path: Path, client: Client, fake: FakeTransport, hostile: Path
) -> None:
    fake.models["digits"].config["parameters"]["convoy_model_sha256"] = {"string_value": "ab" * 32}
    summary = score("digits", hostile, tmp_path / "out", client=client).finish()
    assert summary.model_sha256 == "ab" * 32
    assert {row["model_sha256"] for row in rows_of(tmp_path / "out")} == {"ab" * 32}


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
def test_a_server_or_version_that_goes_stops_the_run_which_then_goes_on(
    error: ClientError, tmp_path: Path, fake: FakeTransport, client: Client
) -> None:
    source, out = array(tmp_path), tmp_path / "out"
    failing = Client(transport=Failing(fake, error, after=20), retry=None)
    with pytest.raises(
        ScoringError, match=r"the run stopped: .* of 200 inputs have their row in .*Run the same command again"
    ) as caught:
        score("digits", source, out, client=failing, in_flight=1, patience_s=0, **SMALL).finish()
    assert str(error) in str(caught.value)
    assert caught.value.__cause__ is error
    assert ("version 3 is not served any more" in str(caught.value)) == isinstance(error, ModelNotFoundError)
    n = sum(1 for name in names(out) if "chunk-" in name) * 8 + len(list(out.glob("part-*"))) * 32
    assert 0 < n < 200
    assert f" {n} of 200 inputs" in str(caught.value)
    fake.calls.clear()
    summary = score("digits", source, out, client=client, **SMALL).finish()
    assert (summary.n, summary.n_scored, summary.n_resumed) == (200, 200, n)
    assert sum(call.inputs[0].shape[0] for call in fake.inferences[1:]) == 200 - n
    score("digits", source, tmp_path / "unbroken", client=client, **SMALL).finish()
    assert without_latency(out) == without_latency(tmp_path / "unbroken")


def test_a_server_that_is_gone_for_a_moment_is_waited_for(tmp_path: Path, fake: FakeTransport) -> None:
    failing = Client(transport=Failing(fake, UnavailableError("gone"), after=9, times=12), retry=None)
    summary = score("digits", array(tmp_path), tmp_path / "out", client=failing, in_flight=4, patience_s=30, **SMALL).finish()
    assert (summary.n_scored, summary.n_failed) == (200, 0)


def test_who_is_waiting_for_a_server_is_stopped_at_once(tmp_path: Path, fake: FakeTransport) -> None:
    failing = Client(transport=Failing(fake, UnavailableError("gone"), after=9), retry=None)
    run = score("digits", array(tmp_path), tmp_path / "out", client=failing, patience_s=300, **SMALL)
    timer = threading.Timer(0.5, run.stop)
    timer.start()
    began = time.monotonic()
    with pytest.raises(ScoringError, match="gone"):
        run.finish()
    timer.join()
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("error", [ServerFailureError("sick"), InvalidResponseError("odd")])
def test_a_batch_that_the_server_refuses_has_the_reason_in_its_rows(
    error: ClientError, tmp_path: Path, fake: FakeTransport
) -> None:
    class Refusing(FakeTransport):
        """Refuses any batch with the images 20 to 22."""

        def send(self, call: Any, timeout_s: float) -> Any:
            if isinstance(call, Infer) and call.model_version:
                pixels = np.frombuffer(bytes(call.inputs[0].data), np.uint8).reshape(call.inputs[0].shape)
                if np.isin(pixels[:, 0, 0, 0], (20, 21, 22)).any():
                    raise error
            return super().send(call, timeout_s)

    refusing = Client(transport=Refusing(fake.models), retry=None)
    summary = score("digits", array(tmp_path), tmp_path / "out", client=refusing, **SMALL).finish()
    assert (summary.n, summary.n_failed) == (200, 3)
    errors = {row["row"]: row["error"] for row in rows_of(tmp_path / "out") if row["error"]}
    assert set(errors) == {20, 21, 22}
    assert set(errors.values()) == {str(error)}


def test_a_server_that_has_no_room_is_asked_again(tmp_path: Path, fake: FakeTransport) -> None:
    failing = Failing(fake, OverloadedError("full"), after=5, times=3)
    summary = score("digits", array(tmp_path), tmp_path / "out", client=Client(transport=failing, retry=None)).finish()
    assert (summary.n, summary.n_failed) == (200, 0)


def test_a_server_that_only_refuses_stops_the_run(tmp_path: Path, fake: FakeTransport) -> None:
    failing = Failing(fake, ServerFailureError("sick"), after=10)
    with pytest.raises(ScoringError, match=rf"refused {MOST_REFUSED} batches one after the other. The last time: sick"):
        score("digits", array(tmp_path, 400), tmp_path / "out", client=Client(transport=failing), **SMALL).finish()
    stored = [row for path in (tmp_path / "out").glob("part-*") for row in rows_of(path)]
    assert sum(row["error"] is not None for row in stored) < 4 * MOST_REFUSED
    assert len(stored) < 4 * (10 + MOST_REFUSED)


def test_an_answer_of_another_version_is_in_no_row(tmp_path: Path, fake: FakeTransport) -> None:
    class Other(FakeTransport):
        def send(self, call: Any, timeout_s: float) -> Any:
            result = super().send(call, timeout_s)
            if isinstance(call, Infer) and call.model_version:
                return dataclasses.replace(result, model_version="4")
            return result

    with pytest.raises(ScoringError, match="version"):
        score("digits", array(tmp_path), tmp_path / "out", client=Client(transport=Other(fake.models)), **SMALL).finish()
    assert not list((tmp_path / "out").glob("part-*"))


def served(fake: FakeTransport, version: str, digest: str) -> None:
    """Serve ``digits`` in another version, or with another file."""
    model = fake.models["digits"]
    config = {**model.config, "parameters": {**model.config["parameters"], "convoy_model_sha256": {"string_value": digest}}}
    fake.models["digits"] = FakeModel(model.run, model.inputs, config, version)


def after(n: int, then: Callable[[], None]) -> Callable[[Any], None]:
    """Tells of progress: does something, once, when ``n`` inputs are done."""
    did = threading.Event()

    def tell(progress: Any) -> None:
        if progress.done >= n and not did.is_set():
            did.set()
            then()

    return tell


def test_a_version_that_is_replaced_under_its_number_stops_the_run(tmp_path: Path, fake: FakeTransport, client: Client) -> None:
    served(fake, "3", "a" * 64)
    source, out = array(tmp_path), tmp_path / "out"
    replace = after(100, lambda: served(fake, "3", "b" * 64))
    with pytest.raises(ScoringError, match=r"version 3 was replaced during the run: its file had the digest aaa.*now has bbb"):
        score("digits", source, out, client=client, in_flight=1, on_progress=replace, **SMALL).finish()
    stored = [path for path in out.rglob("*") if path.name.startswith(("part-", "chunk-"))]
    assert stored
    with pytest.raises(UsageError, match=r"another run was begun here: the model's file \(its digest\) was 'aaa"):
        score("digits", source, out, client=client, **SMALL).finish()
    served(fake, "3", "a" * 64)
    assert score("digits", source, out, client=client, **SMALL).finish().n_scored == 200


def test_a_run_goes_on_with_its_version_only(tmp_path: Path, fake: FakeTransport, client: Client) -> None:
    source, out = array(tmp_path), tmp_path / "out"
    upgrade = after(100, lambda: served(fake, "4", "b" * 64))
    with pytest.raises(ScoringError, match="version 3 is not served any more, and a data set holds the answers of one version"):
        score("digits", source, out, client=client, in_flight=1, on_progress=upgrade, **SMALL).finish()
    with pytest.raises(ScoringError, match="begun with version 3 of 'digits', which is not served any more"):
        score("digits", source, out, client=client, **SMALL).finish()
    with pytest.raises(UsageError, match="the model's version was '3' and is '4'"):
        score("digits", source, out, client=client, model_version="4", **SMALL).finish()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"top_k": 2}, "--top-k was 5 and is 2"),
        ({"chunk_rows": 16}, "--chunk-rows was 8 and is 16"),
        ({"rows_per_file": 64}, "--rows-per-file was 32 and is 64"),
        ({"format": "csv"}, "--format was 'parquet' and is 'csv'"),
        ({"model_name": "others"}, "the model was 'digits' and is 'others'"),
        ({"source": "y.npy"}, "the source was .*x.npy' and is .*y.npy'"),
    ],
)
def test_another_run_is_refused_before_a_server_is_asked(
    changed: dict[str, Any], words: str, tmp_path: Path, client: Client, fake: FakeTransport
) -> None:
    source, out = array(tmp_path), tmp_path / "out"
    (tmp_path / "y.npy").write_bytes(source.read_bytes())
    score("digits", source, out, client=client, **SMALL).finish()
    before = {name: (out / name).read_bytes() for name in names(out)}
    fake.calls.clear()
    asked = {"model_name": "digits", **SMALL, **changed}
    asked["source"] = tmp_path / asked["source"] if "source" in asked else source
    with pytest.raises(UsageError, match=f"another run was begun here: {words}"):
        score(out=out, client=client, **asked).finish()
    assert not fake.calls
    assert {name: (out / name).read_bytes() for name in names(out)} == before


@pytest.mark.parametrize(
    ("first", "then"), [("dig", "{}/dig"), ("{}/dig", "dig"), ("dig", "./other/../dig/"), ("dig/*.png", "{}/dig/*.png")]
)
def test_a_source_that_is_spelled_otherwise_is_the_same_source(
    first: str, then: str, tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("dig", "other"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4), 1).save(tmp_path / name / "a.png")
    begun = score("digits", first.format(tmp_path), "out", client=client, **SMALL).finish()
    summary = score("digits", then.format(tmp_path), "out", client=client, **SMALL).finish()
    assert (summary.n_resumed, summary.source) == (1, begun.source)
    with pytest.raises(UsageError, match=r"the source was .*dig.* and is 'other'"):
        score("digits", "other", "out", client=client, **SMALL).finish()


def test_a_source_that_changed_between_runs_is_refused(hostile: Path, tmp_path: Path, client: Client) -> None:
    out = tmp_path / "out"
    with score("digits", hostile, out, client=client, chunk_rows=4, rows_per_file=4) as run:
        next(iter(run))
    (hostile / "good5.png").write_bytes((hostile / "good6.png").read_bytes())
    with pytest.raises(UsageError, match=r"inputs of the source have changed .*among rows 4 to 7 \(1 of 4 chunks differ\)"):
        score("digits", hostile, out, client=client, chunk_rows=4, rows_per_file=4).finish()
    (hostile / "good99.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"the source had 14 inputs and has 15"):
        score("digits", hostile, out, client=client, chunk_rows=4, rows_per_file=4).finish()


def test_what_is_no_input_may_change_between_runs(hostile: Path, tmp_path: Path, client: Client) -> None:
    with score("digits", hostile, tmp_path / "out", client=client, chunk_rows=4, rows_per_file=4) as run:
        next(iter(run))
    (hostile / "more.txt").touch()
    assert score("digits", hostile, tmp_path / "out", client=client, chunk_rows=4, rows_per_file=4).finish().n == 14


def test_a_file_that_changes_during_the_run_has_the_reason_in_its_row(hostile: Path, tmp_path: Path, client: Client) -> None:
    def change() -> None:
        (hostile / "good9.png").write_bytes((hostile / "good8.png").read_bytes())

    summary = score(
        "digits", hostile, tmp_path / "out", client=client, on_progress=after(0, change), chunk_rows=4, rows_per_file=4
    ).finish()
    assert summary.n_failed == 5
    (row,) = (row for row in rows_of(tmp_path / "out") if row["source"] == "good9.png")
    assert "changed" in row["error"]


def test_an_array_that_changes_during_the_run_stops_it(tmp_path: Path, client: Client) -> None:
    source = array(tmp_path)

    def change() -> None:
        aside = array(tmp_path / "aside", 200)
        os.utime(aside, (1, 1))
        aside.replace(source)

    (tmp_path / "aside").mkdir()
    with pytest.raises(ScoringError, match=r"the run stopped: .*changed"):
        score("digits", source, tmp_path / "out", client=client, in_flight=1, on_progress=after(40, change), **SMALL).finish()
    with pytest.raises(UsageError, match="inputs of the source have changed"):
        score("digits", source, tmp_path / "out", client=client, **SMALL).finish()


def test_a_source_that_cannot_be_read_or_is_empty_leaves_nothing(tmp_path: Path, client: Client) -> None:
    (tmp_path / "set").mkdir()
    for source in (tmp_path / "set", tmp_path / "gone"):
        with pytest.raises((DataError, UsageError)):
            score("digits", source, tmp_path / "out", client=client).finish()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_an_unreachable_server_is_said_before_anything_is_written(tmp_path: Path) -> None:
    source = array(tmp_path)
    with pytest.raises(UnavailableError, match="convoy serve"):
        score("digits", source, tmp_path / "out", url="grpc://127.0.0.1:1", patience_s=2).finish()
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_nothing_is_asked_before_the_tables_are_taken(tmp_path: Path, client: Client, fake: FakeTransport) -> None:
    run = score("digits", array(tmp_path), tmp_path / "out", client=client)
    assert not fake.calls
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="has not ended"):
        _ = run.summary
    run.finish()
    assert run.finish() is run.summary


def test_a_finished_data_set_is_told_again_and_left_as_it_is(
    hostile: Path, tmp_path: Path, client: Client, fake: FakeTransport
) -> None:
    out = tmp_path / "out"
    first = score("digits", hostile, out, client=client).finish()
    before = {name: (out / name).read_bytes() for name in names(out)}
    fake.calls.clear()
    again = score("digits", hostile, out, client=client).finish()
    assert len(fake.inferences) == 1
    assert {name: (out / name).read_bytes() for name in names(out)} == before
    assert (again.n, again.n_scored, again.n_failed, again.n_resumed) == (14, 10, 4, 14)
    assert again.statistics["labels"] == first.statistics["labels"]


def test_a_file_that_was_removed_is_scored_again_and_the_manifest_is_of_the_new_one(
    tmp_path: Path, client: Client, fake: FakeTransport
) -> None:
    source, out = array(tmp_path), tmp_path / "out"
    score("digits", source, out, client=client, **SMALL).finish()
    before = without_latency(out)
    (out / "part-000002.parquet").unlink()
    fake.calls.clear()
    summary = score("digits", source, out, client=client, **SMALL).finish()
    assert summary.n_resumed == 168
    assert sum(call.inputs[0].shape[0] for call in fake.inferences[1:]) == 32
    assert without_latency(out) == before
    files = json.loads((out / "_convoy" / "manifest.json").read_text())["files"]
    from convoy.contract.files import sha256_bytes

    assert [file["sha256"] for file in files] == [sha256_bytes((out / file["name"]).read_bytes()) for file in files]


@pytest.mark.parametrize("damage", [b"", b"no Arrow", None])
def test_a_chunk_that_is_damaged_is_scored_again(damage: bytes | None, tmp_path: Path, client: Client, fake: FakeTransport) -> None:
    source, out = array(tmp_path), tmp_path / "out"
    with score("digits", source, out, client=client, in_flight=1, chunk_rows=8, rows_per_file=200) as run:
        tables = iter(run)
        for _ in range(3):
            next(tables)
    chunk = out / "_convoy" / "chunk-00000001.arrow"
    n_chunks = len(list(chunk.parent.glob("chunk-*.arrow")))
    chunk.write_bytes(chunk.read_bytes()[:-40] if damage is None else damage)
    fake.calls.clear()
    summary = score("digits", source, out, client=client, chunk_rows=8, rows_per_file=200).finish()
    assert (summary.n_scored, summary.n_resumed) == (200, 8 * (n_chunks - 1))
    assert [row["source"] for row in rows_of(out)] == list(map(str, range(200)))


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_a_file_that_is_damaged_is_named(form: Any, tmp_path: Path, client: Client) -> None:
    source, out = array(tmp_path), tmp_path / "out"
    score("digits", source, out, client=client, format=form, **SMALL).finish()
    part = out / f"part-000003.{form}"
    part.write_bytes(part.read_bytes()[:-900])
    with pytest.raises(ScoringError, match=rf"part-000003.{form}: .*Remove this one file"):
        score("digits", source, out, client=client, format=form, **SMALL).finish()
    part.unlink()
    assert score("digits", source, out, client=client, format=form, **SMALL).finish().n_scored == 200


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]"])
def test_a_damaged_identity_is_said(damage: bytes, tmp_path: Path, client: Client) -> None:
    source, out = array(tmp_path), tmp_path / "out"
    score("digits", source, out, client=client).finish()
    (out / "_convoy" / "run.json").write_bytes(damage)
    with pytest.raises(ScoringError, match=r"run.json: cannot be read .*it is damaged, or another version of Convoy wrote it"):
        score("digits", source, out, client=client).finish()


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b'{"run": "another"}'])
def test_a_damaged_manifest_is_written_anew(damage: bytes, tmp_path: Path, client: Client) -> None:
    source, out = array(tmp_path), tmp_path / "out"
    score("digits", source, out, client=client).finish()
    (out / "_convoy" / "manifest.json").write_bytes(damage)
    score("digits", source, out, client=client).finish()
    assert json.loads((out / "_convoy" / "manifest.json").read_text())["summary"]["n"] == 200


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("convoy-score", "convoy-write"))]


def gone_within(seconds: float) -> bool:
    until = time.monotonic() + seconds
    while threads() and time.monotonic() < until:
        time.sleep(0.01)
    return not threads()


@pytest.mark.parametrize("how", ["close", "with", "forgotten", "raised"])
def test_a_run_that_is_given_up_lets_go_of_everything(
    how: str, tmp_path: Path, fake: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convoy.serving.client._client.open_transport", lambda endpoint, headers: fake)
    source, out = array(tmp_path), tmp_path / "out"
    run = score("digits", source, out, **SMALL)
    if how == "with":
        with run:
            next(iter(run))
    elif how == "raised":
        with pytest.raises(RuntimeError, match="mine"), run:  # noqa: PT012
            for _ in run:
                raise RuntimeError("mine")
    else:
        next(iter(run))
        if how == "close":
            run.close()
            run.close()
        else:
            del run
            gc.collect()
    assert gone_within(5)
    assert fake.closed
    fake.closed = False
    assert score("digits", source, out, **SMALL).finish().n_scored == 200
    assert fake.closed
    assert gone_within(5)


def test_a_loop_that_is_left_ends_the_run_and_another_goes_on(tmp_path: Path, client: Client) -> None:
    source, out = array(tmp_path), tmp_path / "out"
    run = score("digits", source, out, client=client, **SMALL)
    for batch in run:
        assert batch.num_rows == 8
        break
    with pytest.raises(UsageError, match="taken once"):
        iter(run)
    summary = score("digits", source, out, client=client, **SMALL).finish()
    assert summary.n_resumed >= 8
    assert summary.n == summary.n_scored


def test_a_run_that_was_closed_gives_nothing_more(tmp_path: Path, client: Client) -> None:
    run = score("digits", array(tmp_path), tmp_path / "out", client=client)
    run.close()
    with pytest.raises(UsageError, match="taken once"):
        list(run)
    with pytest.raises(UsageError, match="taken once"):
        run.finish()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("mine")])
def test_an_error_of_who_is_told_of_the_progress_ends_the_run_in_order(
    error: BaseException, tmp_path: Path, client: Client
) -> None:
    def fail() -> None:
        raise error

    source, out = array(tmp_path), tmp_path / "out"
    with pytest.raises(type(error)):
        score("digits", source, out, client=client, on_progress=after(100, fail), **SMALL).finish()
    assert gone_within(5)
    score("digits", source, out, client=client, **SMALL).finish()
    assert [row["source"] for row in rows_of(out)] == list(map(str, range(200)))


def test_stop_ends_a_run_after_the_chunks_in_flight(tmp_path: Path, client: Client, fake: FakeTransport) -> None:
    source, out = array(tmp_path, 600), tmp_path / "out"
    run = score("digits", source, out, client=client, in_flight=2, on_progress=lambda told: told.done >= 50 and run.stop(), **SMALL)
    with pytest.raises(ScoringError, match=r"the run stopped: it was asked to stop\. (\d+) of 600 inputs have their row"):
        run.finish()
    n = sum(call.inputs[0].shape[0] for call in fake.inferences[1:])
    assert 50 <= n <= 50 + 8 * (2 + 4 + 1)
    assert n % 8 == 0
    fake.calls.clear()
    assert score("digits", source, out, client=client, **SMALL).finish().n_resumed == n  # no row was lost
    assert sum(call.inputs[0].shape[0] for call in fake.inferences[1:]) == 600 - n


def test_stop_ends_the_listing(tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    run = score("digits", array(tmp_path), tmp_path / "out", client=client, **SMALL)
    run.stop()
    with pytest.raises(ScoringError, match="the run was stopped before anything was scored"):
        run.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_a_full_disk_for_the_list_of_inputs_is_said(tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **options: open("/dev/full", "wb+", buffering=0))  # noqa: PTH123, SIM115
    with pytest.raises(ScoringError, match=r"the list of inputs cannot be written: .*TMPDIR"):
        score("digits", array(tmp_path), tmp_path / "out", client=client).finish()
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


@pytest.mark.parametrize("in_flight", [1, 3])
def test_no_more_batches_are_at_the_server_than_allowed_and_reading_runs_only_so_far_ahead(
    in_flight: int, tmp_path: Path, fake: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = threading.Lock()
    state = {"now": 0, "most": 0, "sent": 0, "decoded": 0, "ahead": 0}

    class Counting(FakeTransport):
        def send(self, call: Any, timeout_s: float) -> Any:
            if not (isinstance(call, Infer) and call.model_version):
                return super().send(call, timeout_s)
            with lock:
                state["now"] += 1
                state["sent"] += call.inputs[0].shape[0]
                state["most"] = max(state["most"], state["now"])
            time.sleep(0.002)
            try:
                return super().send(call, timeout_s)
            finally:
                with lock:
                    state["now"] -= 1

    original = _scorer.to_pixels

    def counted(*args: Any) -> Any:
        with lock:
            state["decoded"] += 1
            state["ahead"] = max(state["ahead"], state["decoded"] - state["sent"])
        return original(*args)

    monkeypatch.setattr(_scorer, "to_pixels", counted)
    np.save(tmp_path / "x.npy", np.zeros((400, 5, 5), np.uint8))  # of another size: each is brought to the model's
    client = Client(transport=Counting(fake.models))
    summary = score("digits", tmp_path / "x.npy", tmp_path / "out", client=client, in_flight=in_flight).finish()
    assert summary.n_scored == 400
    assert 1 <= state["most"] <= in_flight
    assert state["ahead"] <= 4 * (in_flight + 4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("in_flight", value) for value in (0, 257, 1.5, True)),
        *(("top_k", value) for value in (0, -1, "5")),
        ("chunk_rows", 0),
        ("rows_per_file", 0),
        ("patience_s", -1),
        ("storage_options", "x"),
        ("report", 5),
        ("workers", 0),
        ("format", "xml"),
        ("engine", "spark"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused(name: str, value: Any, tmp_path: Path, client: Client) -> None:
    with pytest.raises(UsageError, match=name):
        score("digits", array(tmp_path), tmp_path / "out", client=client, **{name: value})


def test_what_is_no_path_and_files_of_broken_chunks_are_refused_with_what_would_do(tmp_path: Path, client: Client) -> None:
    with pytest.raises(
        UsageError, match=r"source: expected a path or a URL, found list\. A list of paths is a source as a text file"
    ):
        score("digits", ["a.png"], tmp_path / "out", client=client)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="out: expected a path or a URL, found an empty name"):
        score("digits", "a", "", client=client)
    with pytest.raises(UsageError, match=r"multiple of chunk_rows \(--chunk-rows, 777\).* found 3,333. 3,108 or 3,885 would do"):
        score("digits", "a", tmp_path / "out", client=client, chunk_rows=777, rows_per_file=3333)
    assert score("digits", array(tmp_path), tmp_path / "out", client=client, rows_per_file=100).finish().n > 0


def test_a_missing_pyarrow_is_said_with_the_extra_to_install(
    tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"pip install '\.\[score\]'"):
        score("digits", array(tmp_path), tmp_path / "out", client=client)


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_names_that_are_no_utf8_and_their_errors_fit_into_the_table(form: Any, tmp_path: Path, client: Client) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / os.fsdecode(b"\xff.png")).write_bytes(b"no image")
    (table,) = score("digits", folder, tmp_path / "out", client=client, format=form)
    (row,) = table.to_pylist()
    assert row["source"] == r"\xff.png"
    assert r"\xff.png" in row["error"]
    (again,) = score("digits", folder, tmp_path / "out", client=client, format=form)
    assert again.equals(table)


def test_the_summary_is_plain_json(hostile: Path, tmp_path: Path, client: Client) -> None:
    summary = score("digits", hostile, tmp_path / "out", client=client).finish()
    assert json.loads(json.dumps(dataclasses.asdict(summary)))["n"] == 14


def test_chunks_that_overtake_a_slow_one_do_not_stay_in_memory(
    tmp_path: Path, fake: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convoy.serving.scoring._run._MOST_WAITING", 2)
    free = threading.Event()

    class Slow(FakeTransport):
        """The first image's batch is answered last."""

        def send(self, call: Any, timeout_s: float) -> Any:
            if isinstance(call, Infer) and call.model_version and not any(bytes(call.inputs[0].data)[:2]):
                free.wait(10)
            return super().send(call, timeout_s)

    def tell(progress: Any) -> None:
        if progress.done >= 196:
            free.set()

    out = tmp_path / "out"
    run = score("digits", array(tmp_path), out, client=Client(transport=Slow(fake.models)), on_progress=tell, **SMALL)
    assert [row["source"] for table in run for row in table.to_pylist()] == list(map(str, range(200)))


def test_a_source_whose_names_come_from_stdin(tmp_path: Path, client: Client, write_image: Callable[[Path, int], Path]) -> None:
    import io

    paths = [str(write_image(tmp_path / f"{i}.png", i)) for i in range(5)]

    def run() -> Any:
        return score(
            "digits", "-", tmp_path / "out", client=client, stdin=io.StringIO("\n".join(paths)), chunk_rows=2, rows_per_file=2
        )

    with run() as first:
        next(iter(first))
    assert run().finish().n == 5


def in_order(tables: Iterator[Any]) -> list[int]:
    return [row for table in tables for row in table.column("row").to_pylist()]


def test_rows_of_earlier_runs_come_too(tmp_path: Path, client: Client) -> None:
    source, out = array(tmp_path), tmp_path / "out"
    with score("digits", source, out, client=client, **SMALL) as run:
        tables = iter(run)
        first = in_order(next(tables) for _ in range(9))
    assert first == list(range(72))
    run = score("digits", source, out, client=client, **SMALL)
    assert in_order(iter(run)) == list(range(200))
    assert run.summary.n_resumed >= 72
