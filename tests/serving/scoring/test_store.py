"""Where data sets lie: claims, full disks, foreign files, places behind URLs."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convoy.contract.errors import ScoringError, UsageError
from convoy.serving.client import Client
from convoy.serving.client.testing import FakeTransport
from convoy.serving.scoring import _store, score
from convoy.serving.scoring._store import FolderStore, ObjectStore, open_store

parquet = pytest.importorskip("pyarrow.parquet")

SMALL = {"chunk_rows": 8, "rows_per_file": 32}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", np.zeros((200, 4, 4), np.uint8))
    return tmp_path / "x.npy"


def keys(out: Path) -> list[str]:
    found: list[str] = parquet.read_table(out).column("source").to_pylist()
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("name", ["missing/out", "file"])
def test_an_output_that_cannot_be_is_refused_at_once(
    name: str, source: Path, tmp_path: Path, client: Client, fake: FakeTransport
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"does not exist|found a file"):
        score("digits", source, tmp_path / name, client=client).finish()
    assert not fake.calls


def test_a_place_of_something_else_is_refused_and_left_as_it_is(
    source: Path, tmp_path: Path, client: Client, fake: FakeTransport
) -> None:
    out = tmp_path / "out"
    for name in ("precious.parquet", ".hidden.0123abcd.tmp", "lock", "in/.part-000000.parquet.0123abcd.tmp"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(name)
    before = names(out)
    with pytest.raises(UsageError, match=r"expected an empty or new place, .* found 4 other files"):
        score("digits", source, out, client=client).finish()
    assert names(out) == before
    assert not fake.calls
    for name in ("precious.parquet", "lock", "in/.part-000000.parquet.0123abcd.tmp"):
        (out / name).unlink()
    with pytest.raises(UsageError, match=r"found 1 other files \(.hidden.0123abcd.tmp, say\)"):
        score("digits", source, out, client=client).finish()


def test_foreign_files_beside_a_data_set_stay_and_do_no_harm(source: Path, tmp_path: Path, client: Client) -> None:
    out = tmp_path / "out"
    with score("digits", source, out, client=client, **SMALL) as run:
        next(iter(run))
    foreign = [
        "notes.txt",
        ".mine.0123abcd.tmp",
        "part-0.txt",
        "in/lock",
        "_convoy/chunk-x.arrow",
        "_convoy/x.tmp",
        "part-000001.csv",
    ]
    for name in foreign:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(name)
    assert score("digits", source, out, client=client, **SMALL).finish().n_scored == 200
    assert all((out / name).read_text() == name for name in foreign)


def test_an_empty_folder_is_taken_and_stays_where_the_run_fails(source: Path, tmp_path: Path, client: Client) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(Exception, match="nobody"):
        score("nobody", source, tmp_path / "out", client=client).finish()
    assert names(tmp_path) == ["out", "x.npy"]
    score("digits", source, tmp_path / "out", client=client).finish()
    assert len(keys(tmp_path / "out")) == 200


def test_a_second_scorer_is_refused_while_the_first_one_lives(source: Path, tmp_path: Path, client: Client) -> None:
    out = tmp_path / "out"
    with score("digits", source, out, client=client, **SMALL) as run:
        tables = iter(run)
        next(tables)
        with pytest.raises(UsageError, match="this process has a run open here"):
            score("digits", source, out, client=client, **SMALL).finish()
        assert sum(table.num_rows for table in tables) == 192
    assert keys(out) == list(map(str, range(200)))


def test_of_runs_that_begin_at_once_one_goes_on(source: Path, tmp_path: Path, fake: FakeTransport) -> None:
    ends: list[str] = []

    def run() -> None:
        with Client(transport=fake) as client:
            try:
                score("digits", source, tmp_path / "out", client=client, **SMALL).finish()
                ends.append("scored")
            except UsageError as error:
                ends.append(str(error).split(": ")[1][:24])

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(ends) <= {"scored", "this process has a run o", "another run writes here "}
    assert "scored" in ends
    assert keys(tmp_path / "out") == list(map(str, range(200)))


def test_locks_that_come_and_go_with_their_folders_keep_two_apart(tmp_path: Path) -> None:
    """Claims that leave nothing behind remove the lock while others open it."""
    inside, wrong, taken = threading.Lock(), [], []
    until = time.monotonic() + 1.5

    def claim() -> None:
        while time.monotonic() < until:
            try:
                with FolderStore(tmp_path / "out").claim():
                    if not inside.acquire(blocking=False):
                        wrong.append("two at once")
                    taken.append(1)
                    inside.release()
            except UsageError:
                pass

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(taken) > 10
    assert names(tmp_path) in ([], ["out"])  # the folder was not new to who met another


def test_a_killed_scorer_holds_no_claim_and_what_it_left_aside_is_removed(source: Path, tmp_path: Path, client: Client) -> None:
    out = tmp_path / "out"
    program = (
        "import sys, time; from pathlib import Path; from convoy.serving.scoring._store import FolderStore\n"
        "with FolderStore(Path(sys.argv[1])).claim():\n"
        "    print('claimed', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(out)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        with pytest.raises(UsageError, match=f"another run writes here .process {process.pid} of "):
            score("digits", source, out, client=client).finish()
        process.send_signal(signal.SIGKILL)
    (out / "_convoy" / ".part-000000.parquet.0123abcd.tmp").write_bytes(b"half")
    score("digits", source, out, client=client).finish()
    assert [name for name in names(out) if name.endswith(".tmp")] == []


class Full:
    """``os.write`` on a disk with room for so many bytes."""

    def __init__(self, room: int, error: int = errno.ENOSPC) -> None:
        self.room, self.error, self.write = room, error, os.write

    def __call__(self, file: int, data: Any) -> int:
        if self.room <= 0:
            raise OSError(self.error, os.strerror(self.error))
        n = self.write(file, bytes(data)[: self.room])
        self.room -= n
        return n


@pytest.mark.parametrize("room", [0, 500, 5_000, 20_000, 40_000, 60_000])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_takes_no_more_stops_the_run_which_goes_on(
    room: int, error: int, source: Path, tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(os, "write", Full(room, error))
    with pytest.raises(ScoringError, match=r"cannot be written: .*(space|quota|output).* of 200 inputs have their row") as caught:
        score("digits", source, out, client=client, **SMALL).finish()
    assert ("Make room" in str(caught.value)) == (error != errno.EIO)
    assert [name for name in names(tmp_path) if name.endswith(".tmp")] == []
    assert all(parquet.read_table(path).num_rows for path in out.glob("part-*"))
    monkeypatch.undo()
    score("digits", source, out, client=client, **SMALL).finish()
    assert keys(out) == list(map(str, range(200)))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_real_full_disk_stops_the_run_which_goes_on(source: Path, small_disk: Path, client: Client) -> None:
    out = small_disk / "out"
    with pytest.raises(ScoringError, match=r"No space left on device\. Make room there\."):
        score("digits", source, out, client=client, **SMALL).finish()
    with pytest.raises(ScoringError, match=r"No space left on device\. Make room there\."):
        score("digits", source, out, client=client, **SMALL).finish()
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    summary = score("digits", source, out, client=client, **SMALL).finish()
    assert summary.n_scored == 200
    assert summary.n_resumed > 0
    assert keys(out) == list(map(str, range(200)))


def test_a_limit_on_the_size_of_files_stops_the_run_in_order(source: Path, tmp_path: Path) -> None:
    program = """
import resource, signal, sys
sys.path.insert(0, sys.argv[3])
from killed import transport
from convoy.contract.errors import ScoringError
from convoy.serving.client import Client
from convoy.serving.scoring import score
import pyarrow, os
pyarrow.array(["a"])
run = score("digits", sys.argv[1], sys.argv[2], client=Client(transport=transport(os.open(os.devnull, os.O_WRONLY))))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import convoy.serving.scoring._run as module
original = module.DataSet.begin
def begin(self):
    found = original(self)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
    return found
module.DataSet.begin = begin
try:
    run.finish()
except ScoringError as error:
    print(error)
"""
    out = tmp_path / "out"
    words = [sys.executable, "-c", program, str(source), str(out), str(Path(__file__).parent)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "File too large. Make room there. 0 of 200 inputs have their row" in done.stdout
    assert names(out) == ["_convoy", "_convoy/lock", "_convoy/run.json"]


def test_what_lies_behind_a_file_url_is_a_folder(source: Path, tmp_path: Path, client: Client) -> None:
    pytest.importorskip("fsspec")
    score("digits", source, f"file://{tmp_path}/out", client=client).finish()
    assert len(keys(tmp_path / "out")) == 200
    assert isinstance(open_store(f"file://{tmp_path}/out"), FolderStore)


@pytest.fixture
def quick_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_store, "LEASE_S", 1.0)
    monkeypatch.setattr(_store, "_SETTLES_S", 0.05)


def rows_behind(system: Any, root: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for path in sorted(system.find(root)):
        if path.endswith(".parquet"):
            with system.open(path) as file:
                found += [{**row, "latency_ms": None} for row in parquet.read_table(file).to_pylist()]
    return found


@pytest.mark.usefixtures("quick_lease")
def test_a_data_set_behind_a_url_is_the_same(source: Path, tmp_path: Path, client: Client, memory: Any) -> None:
    with score("digits", source, "memory://bucket/out", client=client, **SMALL) as run:
        next(iter(run))
    assert "_convoy/lock" not in [path.partition("/out/")[2] for path in memory.find("/bucket/out")]
    with pytest.raises(UsageError, match="--top-k was 5 and is 2"):
        score("digits", source, "memory://bucket/out", client=client, top_k=2, **SMALL).finish()
    summary = score("digits", source, "memory://bucket/out", client=client, **SMALL).finish()
    assert (summary.n_scored, summary.out) == (200, "memory://bucket/out")
    assert summary.n_resumed > 0
    assert [row["source"] for row in rows_behind(memory, "/bucket/out")] == list(map(str, range(200)))
    there = sorted(path.partition("/out/")[2] for path in memory.find("/bucket/out"))
    assert there == ["_convoy/manifest.json", "_convoy/run.json", *[f"part-{part:06}.parquet" for part in range(7)]]


@pytest.mark.usefixtures("quick_lease")
def test_a_lease_keeps_others_off_as_long_as_its_holder_lives(source: Path, client: Client, memory: Any) -> None:
    out = "memory://bucket/out"
    with score("digits", source, out, client=client, **SMALL) as run:
        next(iter(run))
        time.sleep(1.5)  # longer than a lease lasts: it is written anew
        with pytest.raises(UsageError, match=rf"another run writes here \(process {os.getpid()} of .* sign of life 0 s ago"):
            score("digits", source, out, client=client, **SMALL).finish()
    assert score("digits", source, out, client=client, **SMALL).finish().n_scored == 200


@pytest.mark.parametrize(("age_s", "free"), [(0.0, False), (-0.5, False), (30.0, True), (-30.0, True)])
@pytest.mark.usefixtures("quick_lease")
def test_a_dead_lease_ends_and_clocks_may_differ(age_s: float, free: bool, source: Path, client: Client, memory: Any) -> None:
    memory.pipe_file("/bucket/out/_convoy/lock", f"process 1 of elsewhere, ab\n{time.time() - age_s}".encode())
    run = score("digits", source, "memory://bucket/out", client=client, **SMALL)
    if free:
        assert run.finish().n_scored == 200
    else:
        with pytest.raises(UsageError, match="process 1 of elsewhere"):
            run.finish()


def test_of_runs_that_take_a_lease_at_once_one_goes_on(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_store, "_SETTLES_S", 0.3)
    inside: list[int] = []
    refused: list[str] = []
    together, ended = threading.Barrier(4), threading.Event()

    def claim(number: int) -> None:
        store = ObjectStore("memory://bucket/out", None)
        together.wait()
        try:
            with store.claim():
                inside.append(number)
                ended.wait(5)
        except UsageError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    ended.set()
    for thread in threads:
        thread.join()
    assert len(inside) == 1
    assert len(refused) == 3


@pytest.mark.usefixtures("quick_lease")
def test_one_whose_lease_was_taken_writes_no_more(source: Path, client: Client, memory: Any) -> None:
    with score("digits", source, "memory://bucket/out", client=client, in_flight=1, **SMALL) as run:
        tables = iter(run)
        next(tables)
        memory.pipe_file("/bucket/out/_convoy/lock", f"process 1 of elsewhere, ab\n{time.time()}".encode())
        time.sleep(0.6)
        with pytest.raises(ScoringError, match="another run has taken this place"):
            list(tables)
    assert memory.cat_file("/bucket/out/_convoy/lock").startswith(b"process 1 of elsewhere")


@pytest.mark.usefixtures("quick_lease")
def test_a_place_behind_a_url_that_refuses_stops_the_run_which_goes_on(
    source: Path, client: Client, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = type(memory).pipe_file

    def refuse(self: Any, path: str, data: bytes, **options: Any) -> None:
        if "part-000001" in path:
            raise RuntimeError("SlowDown.")
        original(self, path, data, **options)

    monkeypatch.setattr(type(memory), "pipe_file", refuse)
    with pytest.raises(ScoringError, match=r"part-000001.parquet: cannot be written: SlowDown\. \d+ of 200 inputs have"):
        score("digits", source, "memory://bucket/out", client=client, **SMALL).finish()
    monkeypatch.undo()
    monkeypatch.setattr(_store, "_SETTLES_S", 0.05)
    assert score("digits", source, "memory://bucket/out", client=client, **SMALL).finish().n_scored == 200


def test_a_protocol_that_nobody_speaks_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nosuch://x: cannot be opened"):
        open_store("nosuch://x")
