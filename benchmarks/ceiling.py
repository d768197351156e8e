"""``python -m benchmarks.ceiling``: Convoy's backend over what no Python-based backend can pass, in pairs of one second.

``benchmarks.serving`` measures many systems, and the two that are compared here far apart: on a shared machine what happens in
between is in their ratio. Here they take turns second by second, now one first and now the other, and the median of the pairs is
given with its 95 % interval, by resampling.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import numpy as np
import numpy.typing as npt

from benchmarks.harness import Figure, benchmark
from benchmarks.serving import load_case, write_repository
from convoy.contract.errors import UsageError
from convoy.serving.triton import TritonServer

_WIRES: Final = ("REST", "gRPC")
_SECONDS: Final = 1
_RESAMPLES: Final = 5000


@benchmark("ceiling", packages=("nvidia-pytriton", "onnxruntime-gpu", "onnxruntime", "numpy"))
@click.option("--wires", default=",".join(_WIRES), show_default=True, help="With commas.")
@click.option("--in-flight", default="16,64", show_default=True, help="Numbers of requests in flight, with commas.")
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(5, 999), help="Pairs at each point.")
def main(wires: str, in_flight: str, rounds: int) -> Iterator[Figure]:
    """Measure Convoy's backend and its ceiling in pairs."""
    if unknown := set(wires.split(",")) - set(_WIRES):
        raise UsageError(f"--wires: expected some of {', '.join(_WIRES)}, found {', '.join(sorted(unknown))}.")
    with tempfile.TemporaryDirectory(prefix="bench-ceiling-") as folder:
        subject = write_repository("lenet5", Path(folder))
        with TritonServer(Path(folder), http_port=0, grpc_port=0, metrics_port=0) as server:
            for wire in wires.split(","):
                for n in map(int, in_flight.split(",")):
                    ours = load_case(server, subject, subject.name, wire, n, _SECONDS)
                    ceiling = load_case(server, subject, f"{subject.name}-ceiling", wire, n, _SECONDS)
                    pairs = []
                    for i in range(rounds + 1):
                        first, second = (ceiling, ours) if i % 2 else (ours, ceiling)
                        rates = first.measure().rate_per_s, second.measure().rate_per_s
                        pairs.append(rates[::-1] if i % 2 else rates)
                    yield from _figures(f"{wire} {n}", np.array(pairs[1:]))  # the first pair warmed up


def _figures(at: str, pairs: npt.NDArray[np.float64]) -> list[Figure]:
    found = pairs[:, 0] / pairs[:, 1]
    drawn = np.random.default_rng(0).choice(found, (_RESAMPLES, len(found)))
    low, high = map(float, np.percentile(np.median(drawn, axis=1), [2.5, 97.5]))
    return [
        Figure.of(f"{at} convoy", pairs[:, 0].tolist(), "images/s"),
        Figure.of(f"{at} ceiling", pairs[:, 1].tolist(), "images/s"),
        Figure(name=f"{at} convoy / ceiling", value=float(np.median(found)), low=low, high=high, unit="ratio", goal=">= 0.95"),
    ]


if __name__ == "__main__":
    main()
