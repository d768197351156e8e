"""A program that kills scoring runs: at each of their failpoints in turn, or at random. Started by ``test_killed.py``.

The parent imports everything and forks a child a run, so that hundreds of runs take seconds. It starts no thread and scores nothing
itself. What went wrong is printed as JSON; nothing is, where all went well.

Usage: killed.py FOLDER every SHARE SHARES | random SEED KILLS
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess  # noqa: F401  # here, so that no child does it
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet as pq
from PIL import Image

from convoy.contract.image import ImageSpec
from convoy.contract.manifest import ModelInterface, TensorSpec
from convoy.serving.client import Client
from convoy.serving.client._call import Infer
from convoy.serving.client.testing import FakeModel, FakeTransport
from convoy.serving.scoring import score

N: Final = 14
BAD: Final = (3, 13)
CHUNK_ROWS: Final = 4
ROWS_PER_FILE: Final = 8
IN_FLIGHT: Final = 2
MOST_CHUNKS_IN_FLIGHT: Final = (
    IN_FLIGHT + 4 + 1 + 4
)  # threads that ask or read, a chunk that is whole, chunks that wait to be written
CALLS: Final = ("open", "write", "fsync", "replace", "unlink", "mkdir")
TOO_FAR: Final = 500


@dataclass
class Failpoint:
    """Kills this process at the ``n``-th call of the store to the system.

    Attributes:
        n: Which call.
        when: ``before`` it, ``after`` it, or ``half`` way: of a write the first half is done.
    """

    n: int
    when: str
    seen: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def install(self) -> None:
        for name in CALLS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with self.lock:
                self.seen.append(name)
                here = len(self.seen) == self.n
            if here and self.when == "half" and name == "write":
                original(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                die()
            if here and self.when == "before":
                die()
            result = original(*arguments, **options)
            if here and self.when == "after":
                die()
            return result

        return call


class WithoutPandas(MetaPathFinder):
    """pyarrow imports pandas where it is installed, which takes half a second, and makes each fork slower."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(10)


class Telling(FakeTransport):
    """Writes down which inputs it was sent: each image's first pixel is its number and one."""

    def __init__(self, models: Any, log: int) -> None:
        super().__init__(models)
        self._log, self._write = log, os.write

    def send(self, call: Any, timeout_s: float) -> Any:
        if isinstance(call, Infer) and call.model_version:
            pixels = np.frombuffer(bytes(call.inputs[0].data), np.uint8).reshape(call.inputs[0].shape)
            self._write(self._log, bytes(number - 1 for number in pixels[:, 0, 0, 0] if number))  # 0: what a run begins with
        return super().send(call, timeout_s)


def transport(log: int) -> FakeTransport:
    interface = ModelInterface(
        labels=("zero", "one", "two"),
        image=ImageSpec(height_px=4, width_px=4, channels=1),
        inputs=(TensorSpec(name="image", datatype="UINT8", dims=(4, 4, 1)),),
        outputs=(TensorSpec(name="probabilities", datatype="FP32", dims=(3,)),),
    )

    def probabilities(pixels: Any) -> Any:
        found = np.full((len(pixels), 3), 0.1, np.float32)
        found[np.arange(len(pixels)), pixels[:, 0, 0, 0] % 3] = 0.8
        return found

    return Telling({"digits": FakeModel.classifier(interface, probabilities, max_batch_size=2, version="3")}, log)


def forked(work: Callable[[], None], *, after_s: float | None = None) -> int:
    """Do it in a child; gives its exit code, negative the signal. Kill it ``after_s`` seconds."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            work()
            code = 0
        except BaseException as error:
            print(json.dumps({"raised": repr(error)[:2000]}), flush=True)  # noqa: T201
        os._exit(code)
    if after_s is not None:
        time.sleep(after_s)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


@dataclass
class Place:
    """Where runs are made and compared."""

    folder: Path
    form: Any

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def log(self) -> Path:
        return self.folder / "sent"

    def run(self, failpoint: Failpoint | None = None) -> None:
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        fake = transport(log)
        if failpoint is not None:
            failpoint.install()
        run = score(
            "digits",
            self.folder / "set",
            self.out,
            client=Client(transport=fake),
            chunk_rows=CHUNK_ROWS,
            rows_per_file=ROWS_PER_FILE,
            in_flight=IN_FLIGHT,
            format=self.form,
        )
        summary = run.finish()
        assert (summary.n, summary.n_scored, summary.n_failed) == (N, N - len(BAD), len(BAD)), summary

    def committed(self) -> set[int]:
        """The inputs whose rows are on disk."""
        chunks = {int(path.name[6:14]) for path in self.out.glob("_convoy/chunk-*.arrow")}
        per_file = ROWS_PER_FILE // CHUNK_ROWS
        for path in self.out.glob("part-*.*"):
            chunks |= {int(path.name[5:11]) * per_file + i for i in range(per_file)}
        return {row for chunk in chunks for row in range(chunk * CHUNK_ROWS, min(N, (chunk + 1) * CHUNK_ROWS))}

    def sent(self) -> list[int]:
        return list(self.log.read_bytes()) if self.log.exists() else []

    def rows(self) -> list[dict[str, Any]]:
        """The data set, but for latencies."""
        found: list[dict[str, Any]] = []
        for path in sorted(self.out.glob("part-*")):
            if self.form == "parquet":
                found += pq.read_table(path).to_pylist()
            elif self.form == "jsonl":
                found += [json.loads(line) for line in path.read_text().splitlines()]
            else:
                found += pyarrow.csv.read_csv(path).to_pylist()
        for row in found:
            del row["latency_ms"]
        return found

    def run_to_the_end(self, reference: Path) -> None:
        self.run()
        self.check(reference)

    def check(self, reference: Path) -> None:
        """Make sure that the finished data set is the reference's, and that nothing else lies there."""
        assert self.rows() == json.loads(reference.read_text())
        names = sorted(path.relative_to(self.out).as_posix() for path in self.out.rglob("*") if path.is_file())
        parts = [f"part-{part:06}.{self.form}" for part in range(-(-N // ROWS_PER_FILE))]
        assert names == ["_convoy/lock", "_convoy/manifest.json", "_convoy/run.json", *parts], names


def make_set(folder: Path) -> None:
    folder.mkdir()
    for i in range(N):
        path = folder / f"{i:03}.png"
        if i in BAD:
            path.write_text("no image")
        else:
            Image.new("L", (4, 4), i + 1).save(path)


def fail(place: Place, told: dict[str, Any], error: object) -> None:
    names = sorted(path.relative_to(place.out).as_posix() for path in place.out.rglob("*"))
    print(json.dumps({**told, "error": str(error)[:2000], "names": names}), flush=True)  # noqa: T201


def round_of(place: Place, reference: Path, kills: list[tuple[Failpoint | None, float | None]], told: dict[str, Any]) -> int:
    """Kill runs, one after the other, then let one go to its end; gives how many were killed."""
    shutil.rmtree(place.out, ignore_errors=True)
    place.log.unlink(missing_ok=True)
    n_killed = 0
    for i, (failpoint, after_s) in enumerate([*kills, (None, None)]):
        before, n_before = place.committed(), len(place.sent())
        is_last = i == len(kills)
        code = forked(
            lambda failpoint=failpoint, is_last=is_last: place.run_to_the_end(reference) if is_last else place.run(failpoint),  # type: ignore[misc]
            after_s=after_s,
        )
        now = place.sent()[n_before:]
        if again := before & set(now):
            fail(place, told, f"inputs whose rows were on disk were sent again: {sorted(again)}")
        earlier = set(place.sent()[:n_before]) - before
        if len(earlier & set(now)) > MOST_CHUNKS_IN_FLIGHT * CHUNK_ROWS or len(now) != len(set(now)):
            fail(place, told, f"more was sent twice than was in flight: {sorted(earlier & set(now))}")
        if code == -signal.SIGKILL:
            n_killed += 1
        elif code:
            fail(place, told, f"exit code {code}")
    return n_killed


def main() -> None:
    folder, mode, first, second = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    place = Place(folder, sys.argv[5] if len(sys.argv) > 5 else "parquet")
    reference = folder / "reference.json"
    make_set(folder / "set")
    counted = folder / "calls"

    def unbroken() -> None:
        failpoint = Failpoint(-1, "")
        place.run(failpoint)
        reference.write_text(json.dumps(place.rows()))
        place.check(reference)
        counted.write_text(json.dumps(failpoint.seen))

    sys.meta_path.insert(0, WithoutPandas())
    pa.array(["a"])
    Image.init()  # all its formats
    assert forked(unbroken) == 0
    calls, n_killed = json.loads(counted.read_text()), 0
    if mode == "every":
        for n in range(1 + first, len(calls) + 1, second):
            for when in ("before", "half", "after") if calls[n - 1] == "write" else ("before", "after"):
                n_killed += round_of(place, reference, [(Failpoint(n, when), None)], {"n": n, "when": when})
    else:
        chance = random.Random(first)
        while n_killed < second:
            kills: list[tuple[Failpoint | None, float | None]] = [
                (None, chance.uniform(0, 0.15))
                if chance.random() < 0.3
                else (Failpoint(chance.randint(1, len(calls) // 2), chance.choice(("before", "half", "after"))), None)
                for _ in range(chance.randint(1, 6))
            ]
            n_killed += round_of(place, reference, kills, {"seed": first, "killed": n_killed})
    print(json.dumps({"calls": len(calls), "killed": n_killed}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
