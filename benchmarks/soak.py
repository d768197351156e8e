"""``python -m benchmarks.soak``: does a server stay what it was? Memory under load, memory over loads and unloads, random kills.

Three parts, each on a ``convoy serve`` of its own with 16 callers, half of them by gRPC and half by REST:

- ``--minutes``: callers send batches of 1 to 8 images, now and then a request that must be refused, and connect anew now and then.
  Every second the server is looked at. A line through what came after the warm-up tells its growth.
- ``--loads``: the model is unloaded and loaded again, with an inference in between.
- ``--kills``: a backend process is killed (``kill -9``) at a random instant, sometimes a second time while it is being replaced.
  Every call that fails is held against what callers may expect: ``UnavailableError``, in bounded time.

Memory is what processes have allocated (anonymous and shared pages). "Flat" says that the growth of all processes together, the
upper end of its 95 % interval, is below 1 % of their resident set an hour. Large requests come and go, and tritonserver's allocator
moves up and down with them by some MiB: ten minutes are too short to tell that from a growth, an hour is not.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import click
import numpy as np

from benchmarks._callers import CALL_TIMEOUT_S, Ended, arriving, calling
from benchmarks._footprint import Footprint, slope, take
from benchmarks._served import ServeProcess, serving
from benchmarks.harness import Figure, benchmark
from convoy.contract.errors import ConvoyError, ServerError
from convoy.serving.client import Client

_WARM_UP_SHARE: Final = 0.2
"""How much of the time under load counts as warm-up: connections, the allocator's arenas, the largest batches."""
_SAMPLE_EVERY_S: Final = 1.0
_GROWTH_GOAL_PERCENT: Final = 1
_RELOAD_WITHIN_S: Final = 30.0
_ARRIVES_EVERY_S: Final = 0.02
_TWICE: Final = 0.3
"""How often a second kill follows within a second."""


@benchmark("soak", packages=("onnxruntime-gpu", "onnxruntime", "nvidia-pytriton", "numpy", "grpcio", "httpx"))
@click.option("--repository", default="model_repository", show_default=True, type=click.Path(path_type=Path, exists=True))
@click.option("--model", "model_name", default="lenet5", show_default=True)
@click.option("--minutes", default=10.0, show_default=True, type=click.FloatRange(0), help="Of load; 0 for none.")
@click.option("--loads", default=200, show_default=True, type=click.IntRange(0), help="Loads and unloads; 0 for none.")
@click.option("--kills", default=30, show_default=True, type=click.IntRange(0), help="Of backend processes; 0 for none.")
@click.option("--callers", default=16, show_default=True, type=click.IntRange(1, 256), help="That call at a time.")
@click.option("--pause-ms", default=0.0, show_default=True, type=click.FloatRange(0), help="Of a caller between calls under load.")
@click.option("--instances", default=1, show_default=True, type=click.IntRange(1, 8), help="Of the model.")
@click.option("--seed", default=0, show_default=True, help="Of the instants of the kills.")
@click.option("--samples", type=click.Path(path_type=Path, dir_okay=False), help="Write what was sampled to this CSV file.")
def main(
    repository: Path,
    model_name: str,
    minutes: float,
    loads: int,
    kills: int,
    callers: int,
    pause_ms: float,
    instances: int,
    seed: int,
    samples: Path | None,
) -> Iterable[Figure]:
    """Hold a server under load, load and unload its model, kill its backend processes; measure what stays."""
    figures: list[Figure] = []
    with _private(repository, model_name, instances) as private:
        if minutes:
            with serving(private) as server:
                figures += _under_load(server, model_name, 60 * minutes, callers, pause_ms / 1000, samples)
        if loads:
            with serving(private) as server:
                figures += _loads(server, model_name, loads)
        if kills:
            with serving(private) as server:
                try:
                    figures += _kills(server, model_name, kills, callers, random.Random(seed))
                except ServerError as error:
                    raise ServerError(f"{error} It said last:\n{server.said()[-4000:]}") from error
    return figures


@contextmanager
def _private(repository: Path, model_name: str, instances: int) -> Iterator[Path]:
    """A repository with that one model, so that the one at hand stays as it is."""
    with tempfile.TemporaryDirectory(prefix="convoy-soak-") as name:
        folder = Path(name) / model_name
        shutil.copytree(repository / model_name, folder)
        config = folder / "config.pbtxt"
        text = config.read_text()
        if instances > 1:
            if "  count: 1\n" not in text:
                raise ServerError(f"{config}: expected `count: 1` in its instance_group, to change it to {instances}.")
            config.write_text(text.replace("  count: 1\n", f"  count: {instances}\n"))
        yield Path(name)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text}\033[K", end="", file=sys.stderr, flush=True)


def _under_load(
    server: ServeProcess, model_name: str, seconds: float, callers: int, pause_s: float, samples: Path | None
) -> list[Figure]:
    taken: list[Footprint] = []
    urls = [server.urls["grpc"], server.urls["http"]]
    with calling(urls, model_name, callers=callers, pause_s=pause_s, mixed=True) as calls:
        began = time.monotonic()
        while (at_s := time.monotonic() - began) < seconds:
            taken.append(take(server, at_s))
            _progress(f"load: {at_s:.0f} of {seconds:.0f} s, {calls.n_good} answers, {taken[-1].server_mib:.1f} MiB")
            time.sleep(_SAMPLE_EVERY_S)
    if samples is not None:
        _write(samples, taken)
    counted = taken[int(len(taken) * _WARM_UP_SHARE) :]
    hours = [sample.at_s / 3600 for sample in counted]
    parts = {
        "tritonserver": [sample.server_mib for sample in counted],
        "backend processes": [sample.stubs_mib for sample in counted],
        "convoy serve and its guard": [sample.convoy_mib for sample in counted],
    }
    whole = slope(hours, [sum(values) for values in zip(*parts.values(), strict=True)])
    resident_mib = statistics.fmean(sample.rss_mib for sample in counted)
    figures = [
        Figure(name="load: answers", value=calls.n_good, unit="calls"),
        Figure(name="load: failed calls", value=len(calls.failed), unit="calls", goal="== 0"),
        Figure.of("load: resident set", [sample.rss_mib for sample in counted], "MiB"),
        Figure(name="load: growth", value=whole.value, low=whole.low, high=whole.high, unit="MiB/h"),
        Figure(name="load: upper end of the growth, of the resident set", value=100 * whole.high / resident_mib, unit="%/h",
               goal=f"< {_GROWTH_GOAL_PERCENT:g}"),
    ]  # fmt: skip
    for name, values in parts.items():
        fitted = slope(hours, values)
        figures += [
            Figure.of(f"load: memory of {name}", values, "MiB"),
            Figure(name=f"load: growth of {name}", value=fitted.value, low=fitted.low, high=fitted.high, unit="MiB/h"),
        ]
    first, last = counted[0], counted[-1]
    for name in ("threads", "fds", "convoy_fds", "stubs", "segments", "segments_mib"):
        grown = getattr(last, name) - getattr(first, name)
        bar = "<= 2" if name in ("threads", "fds", "convoy_fds") else "<= 0"  # a connection may just be made anew
        figures.append(Figure(name=f"load: {name}, gained", value=grown, goal=bar))
    return figures


def _loads(server: ServeProcess, model_name: str, n: int) -> list[Figure]:
    taken: list[Footprint] = []
    times: list[float] = []
    with Client(server.urls["grpc"], timeout_s=CALL_TIMEOUT_S) as client:
        (tensor,) = client.metadata(model_name).inputs
        inputs = {tensor.name: np.zeros([1, *tensor.shape[1:]], np.uint8)}
        for i in range(n):
            client.unload(model_name)
            _until(lambda: not server.stubs(), "the end of the backend process")
            began = time.monotonic()
            client.load(model_name)
            client.infer(model_name, inputs)
            times.append(1000 * (time.monotonic() - began))
            taken.append(take(server, float(i)))
            _progress(f"loads: {i + 1} of {n}, {taken[-1].server_mib:.1f} MiB")
    counted = taken[int(len(taken) * _WARM_UP_SHARE) :]
    at = [sample.at_s for sample in counted]
    figures = [Figure.of("loads: load and first answer", times, "ms")]
    for name, values in (
        ("tritonserver", [1024 * sample.server_mib for sample in counted]),
        ("convoy serve and its guard", [1024 * sample.convoy_mib for sample in counted]),
    ):
        fitted = slope(at, values)
        figures.append(
            Figure(name=f"loads: growth of {name}", value=fitted.value, low=fitted.low, high=fitted.high, unit="KiB/load")
        )
    first, last = counted[0], counted[-1]
    return figures + [
        Figure(name=f"loads: {name}, gained", value=getattr(last, name) - getattr(first, name), goal="<= 2")
        for name in ("threads", "fds", "convoy_fds", "stubs", "segments", "segments_mib")
    ]


def _kills(server: ServeProcess, model_name: str, n: int, callers: int, rng: random.Random) -> list[Figure]:
    killed: list[tuple[float, bool]] = []
    before = take(server, 0.0)
    grpc, http = server.urls["grpc"], server.urls["http"]
    with (
        calling([grpc, http], model_name, callers=callers, pause_s=0.01) as calls,
        arriving(grpc, model_name, _ARRIVES_EVERY_S) as arrived,
    ):
        for i in range(n):
            time.sleep(rng.uniform(1, 7))
            _kill_one(server, rng)
            at, twice = time.monotonic(), rng.random() < _TWICE
            killed.append((at, twice))
            if twice:
                time.sleep(rng.uniform(0, 1))
                _kill_one(server, rng)
            _until(partial(_is_answered, arrived, at), "the next good answer", timeout_s=3 * _RELOAD_WITHIN_S)
            _progress(f"kills: {i + 1} of {n}, {len(calls.failed)} calls failed, {calls.n_good} answered")
        time.sleep(5)
    after = take(server, 0.0)
    failed = calls.failed + [call for call in arrived if call.error]
    by_error = Counter(call.error for call in failed)
    others = len(failed) - by_error["UnavailableError"]
    _explain(failed, server)
    return [
        *(
            Figure.of(f"{name}: until a new caller is answered", windows, "s", goal="<= 1" if kind is False else None)
            for kind, name in ((False, "kills"), (True, "kills, a second within 1 s"))
            if (windows := [good - at for at, twice in killed if twice is kind and (good := _next_good(arrived, at))])
        ),
        Figure(name="kills: answered calls", value=calls.n_good + sum(not call.error for call in arrived), unit="calls"),
        Figure(name="kills: failed calls", value=len(failed), unit="calls"),
        Figure(name="kills: failed calls that did not raise UnavailableError", value=others, unit="calls", goal="== 0"),
        Figure(name="kills: calls that took 30 s", value=by_error["DeadlineExceededError"], unit="calls", goal="== 0"),
        Figure.of("kills: time that a failed call took", [call.latency_s for call in failed] or [0.0], "s"),
        Figure(
            name="kills: that the server did not survive",
            value=server.said().count("starting the server again") + server.said().count("Starting it again"),
            unit="restarts",
        ),
        *(
            Figure(name=f"kills: {name}, gained a kill", value=(getattr(after, name) - getattr(before, name)) / n)
            for name in ("server_mib", "threads", "fds", "convoy_fds", "stubs", "segments")
        ),
    ]


def _is_answered(arrived: list[Ended], at: float) -> bool:
    return _next_good(arrived, at) is not None


def _next_good(arrived: list[Ended], at: float) -> float | None:
    """When the first good answer came to a caller who arrived after ``at``; None where none has come yet."""
    return min((call.ended for call in arrived if call.began > at and not call.error), default=None)


def _kill_one(server: ServeProcess, rng: random.Random) -> None:
    """Kill a backend process, whatever it is doing; none where there is none at the moment."""
    with contextlib.suppress(ProcessLookupError, ServerError):
        if stubs := server.stubs():
            os.kill(rng.choice(stubs).pid, signal.SIGKILL)


def _until(condition: Callable[[], bool], what: str, timeout_s: float = _RELOAD_WITHIN_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise ServerError(f"{what} did not come within {timeout_s:g} s.")
        time.sleep(0.005)


def _explain(failed: list[Ended], server: ServeProcess) -> None:
    """Say on stderr with which words calls failed, and what the server said."""
    words = Counter((call.error, call.words.partition(": ")[2][:160]) for call in failed)
    for (error, text), count in words.most_common(12):
        print(f"{count:6} x {error}: {text}", file=sys.stderr)
    print(server.said()[-2000:], file=sys.stderr)


def _write(path: Path, taken: list[Footprint]) -> None:
    fields = list(Footprint.__dataclass_fields__)
    lines = [",".join(fields), *(",".join(f"{getattr(sample, name):g}" for name in fields) for sample in taken)]
    try:
        path.write_text("\n".join(lines) + "\n")
    except OSError as error:
        raise ConvoyError(f"{path}: cannot be written: {error.strerror}.") from error


if __name__ == "__main__":
    main()
