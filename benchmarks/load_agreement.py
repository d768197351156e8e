"""``python -m benchmarks.load_agreement``: Convoy's load generator beside NVIDIA's perf_analyzer, on the same server and points.

Both keep the same number of requests in flight and measure three windows of the same length. They take turns, so that what the
machine does besides falls on both. ``wrk`` (REST) and ``h2load`` (gRPC), written in C, take a turn too where they
are installed.

All of them share the cores with the server: a generator that takes more of them leaves less, and measures a slower server. So the
processor time that each takes stands beside what it saw. Generators must agree where none takes much of what the server needs.
perf_analyzer runs in both its modes; the quicker of the two at a point is what Convoy's is held to.
"""

from __future__ import annotations

import functools
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from benchmarks.harness import Figure, benchmark, interleave, ratios
from benchmarks.peers import load_tool
from benchmarks.peers.environment import default_cache
from benchmarks.peers.perf_analyzer import PerfAnalyzer
from benchmarks.serving import write_repository
from convoy.contract.errors import ConvoyError, UsageError
from convoy.serving.load import Closed, Target, measure
from convoy.serving.load.measurement import STABLE_WINDOWS
from convoy.serving.load.private import private_server

MODELS: Final = {"lenet5": (1, 4, 16), "resnet18": (1, 4, 16)}
"""With the numbers of requests in flight."""
GOAL: Final = "<= 0.1"
SERVER_BOUND: Final = ("resnet18",)
"""Models of which a request costs the server so much that no generator matters beside it: the goal is for these."""

_C_TOOLS: Final = {"http": "wrk", "grpc": "h2load"}
_MODES: Final = ("async", "sync")


@dataclass(frozen=True)
class Sight:
    """What one generator saw once.

    Attributes:
        rate_per_s: Requests a second.
        p50_ms: The median latency.
        p99_ms: The 99th percentile.
        cores: The processor time that the generator took, as a share of one core; None where it is not known.
    """

    rate_per_s: float
    p50_ms: float
    p99_ms: float
    cores: float | None


@benchmark("load_agreement", packages=("nvidia-pytriton", "onnxruntime-gpu", "onnxruntime", "numpy"))
@click.option("--models", default=",".join(MODELS), show_default=True, help="With commas.")
@click.option("--protocols", default="http,grpc", show_default=True, help="With commas.")
@click.option("--in-flight", default="", help="Only these numbers of requests in flight, with commas.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1, 99), help="How often each point is measured.")
@click.option("--window", "window_s", default=1.0, show_default=True, type=click.FloatRange(0.1, 60), help="Seconds a window.")
@click.option("--cache", type=click.Path(path_type=Path), default=None, help="Where perf_analyzer is kept.")
def main(models: str, protocols: str, in_flight: str, rounds: int, window_s: float, cache: Path | None) -> Iterator[Figure]:
    """Measure the same points with Convoy's generator and with perf_analyzer."""
    if unknown := [*set(models.split(",")) - set(MODELS), *set(protocols.split(",")) - set(_C_TOOLS)]:
        raise UsageError(f"expected models of {list(MODELS)} and protocols of {list(_C_TOOLS)}, found {unknown}.")
    only = {int(word) for word in in_flight.split(",") if word}
    perf = PerfAnalyzer.ready(cache or default_cache())
    for name in models.split(","):
        with tempfile.TemporaryDirectory(prefix="bench-agreement-") as folder:
            write_repository(name, Path(folder))
            with private_server(Path(folder), name) as server:
                for protocol in protocols.split(","):
                    url = server.http_url if protocol == "http" else server.grpc_url
                    for n in MODELS[name]:
                        if not only or n in only:
                            click.echo(f"{name} {protocol} {n} ...", err=True)
                            yield from compare(url, name, n, perf, rounds=rounds, window_s=window_s)


def compare(url: str, name: str, in_flight: int, perf: PerfAnalyzer, *, rounds: int, window_s: float) -> list[Figure]:
    """The figures of one point.

    Args:
        url: The server.
        name: The model.
        in_flight: Requests under way at once.
        perf: The program to agree with.
        rounds: How often each generator measures.
        window_s: How long a window is, at least.

    Raises:
        ConvoyError: Requests failed.
    """
    target = Target.of(url, name)
    # Windows of slow models are lengthened by Convoy; perf_analyzer gets windows of the same length.
    window_s = max(window_s, measure(target, Closed(in_flight), window_s=window_s, max_windows=STABLE_WINDOWS).window_s)
    seen: dict[str, list[Sight]] = {}

    def keep(tool: str, see: Callable[[], Sight]) -> Callable[[], float]:
        def once() -> float:
            seen.setdefault(tool, []).append(see())
            return seen[tool][-1].rate_per_s

        return once

    tools = {"convoy": lambda: _convoy(target, in_flight, window_s)}
    for mode in _MODES:
        tools[f"perf_analyzer {mode}"] = functools.partial(_perf, perf, target, in_flight, window_s, mode)
    tool = _C_TOOLS[target.protocol]
    if shutil.which(tool):
        tools[tool] = lambda: _c_tool(target, in_flight, 3 * window_s)
    interleave({tool: keep(tool, see) for tool, see in tools.items()}, rounds, warm_up=1)
    return _figures(f"{name} {target.protocol} {in_flight}", {tool: sights[1:] for tool, sights in seen.items()})


def _convoy(target: Target, in_flight: int, window_s: float) -> Sight:
    found = measure(target, Closed(in_flight), window_s=window_s, max_windows=STABLE_WINDOWS)
    if found.n_errors or found.latency_ms is None:
        raise ConvoyError(f"{found.n_errors} requests failed. The first one: {found.first_error}")
    return Sight(found.requests_per_s, found.latency_ms.p50, found.latency_ms.p99, found.generator_cpu)


def _perf(perf: PerfAnalyzer, target: Target, in_flight: int, window_s: float, mode: str) -> Sight:
    found = perf.measure(target.url, target.model_name, in_flight=in_flight, window_s=window_s, mode=mode)
    return Sight(found.rate_per_s, found.p50_ms, found.p99_ms, found.cores)


def _c_tool(target: Target, in_flight: int, seconds: float) -> Sight:
    if target.protocol == "http":
        head, _, body = target.request.partition(b"\r\n\r\n")
        lines = [line.split(": ", 1) for line in head.decode().split("\r\n")[1:]]
        headers = {name: value for name, value in lines if name not in ("host", "content-length")}
        path = head.split(b" ", 2)[1].decode()
        found = load_tool.post(f"{target.url}{path}", body, headers, in_flight=in_flight, seconds=seconds)
    else:
        url = f"http://{target.task['authority']}{target.task['method']}"
        found = load_tool.call(url, target.request, n_answer_bytes=1, in_flight=in_flight, seconds=seconds)
    return Sight(found.rate_per_s, found.p50_ms, found.p99_ms, None)


def _figures(point: str, seen: dict[str, list[Sight]]) -> list[Figure]:
    figures = []
    for tool, sights in seen.items():
        figures.append(Figure.of(f"{point}: {tool}", [sight.rate_per_s for sight in sights], "requests/s"))
        figures.append(Figure.of(f"{point}: {tool} p50", [sight.p50_ms for sight in sights], "ms"))
        if cores := [sight.cores for sight in sights if sight.cores is not None]:
            figures.append(Figure.of(f"{point}: {tool} itself", cores, "cores"))
    ours = seen["convoy"]
    best = max(
        (tool for tool in seen if "perf" in tool), key=lambda tool: statistics.median(sight.rate_per_s for sight in seen[tool])
    )
    for tool, theirs in seen.items():
        if tool == "convoy":
            continue
        for what, attribute in (("rate", "rate_per_s"), ("p50", "p50_ms")):
            found = ratios([getattr(sight, attribute) for sight in ours], [getattr(sight, attribute) for sight in theirs])
            figures.append(Figure.of(f"{point}: convoy / {tool}, {what}", found, "ratio"))
            if tool == best:
                goal = GOAL if point.split()[0] in SERVER_BOUND else None
                figures.append(
                    Figure(name=f"{point}: {what} off perf_analyzer's", value=abs(statistics.median(found) - 1), goal=goal)
                )
    return figures


if __name__ == "__main__":
    main()
