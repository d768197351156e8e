"""``python -m benchmarks.batch_sizes``: what a change of the batch's size costs ONNX Runtime, and what a session a size saves.

It runs on the GPU where there is one that ONNX Runtime can use, else on the CPU, where nothing is dear about a change. All ways are
measured in turns on the same batches.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from benchmarks.harness import Figure, benchmark, interleave, ratios
from benchmarks.serving import MODELS, write_repository
from convoy.contract.errors import UsageError
from convoy.export.gate.runtime import CPU, CUDA, usable_providers
from convoy.serving.triton.backend.ladder import Ladder
from convoy.serving.triton.backend.options import Kind, Options
from convoy.serving.triton.backend.session import open_session

_DRAWS: Final = 200
_GENERATOR: Final = random.Random(0)
BATCHES: Final = {
    "64": (64,),
    "16": (16,),
    "1": (1,),
    "1 to 16": tuple(_GENERATOR.randint(1, 16) for _ in range(_DRAWS)),
    "48 to 64": tuple(_GENERATOR.randint(48, 64) for _ in range(_DRAWS)),
}
"""By name, the sizes of the batches that follow each other."""


@benchmark("batch_sizes", packages=("onnxruntime-gpu", "onnxruntime", "numpy"))
@click.option("--models", default=",".join(MODELS), show_default=True, help="With commas.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1, 99), help="How often each is measured.")
@click.option("--seconds", default=0.7, show_default=True, type=click.FloatRange(0.1), help="Of a measurement.")
def main(models: str, rounds: int, seconds: float) -> Iterator[Figure]:
    """Compare one session with one a size."""
    if unknown := set(models.split(",")) - set(MODELS):
        raise UsageError(f"--models: expected some of {', '.join(MODELS)}, found {', '.join(sorted(unknown))}.")
    provider = CUDA if CUDA in usable_providers()[0] else CPU
    for name in models.split(","):
        with tempfile.TemporaryDirectory(prefix="bench-batch-sizes-") as folder:
            subject = write_repository(name, Path(folder))
            yield from compare(name, subject.path, subject.image, provider, rounds, seconds)


def compare(name: str, path: Path, image: Any, provider: str, rounds: int, seconds: float) -> Iterator[Figure]:
    """The figures of one model.

    Args:
        name: What to call it.
        path: The ONNX file.
        image: uint8, shape (H, W, C).
        provider: Where to run.
        rounds: How often each is measured.
        seconds: Of a measurement.
    """
    images = np.repeat(image[None], 64, axis=0)
    kind: Kind = "GPU" if provider == CUDA else "CPU"

    def opened() -> Any:
        return open_session(path, Options(kind=kind, gpu_was_asked_for=provider == CUDA, max_batch_size=64)).session

    ways = {"one session": opened(), "a session a size": Ladder({1 << power: opened() for power in range(7)})}
    for batches, sizes in BATCHES.items():
        cases = {way: _rate(session, images, sizes, seconds) for way, session in ways.items()}
        rates = interleave(cases, rounds, warm_up=1)
        for way, found in rates.items():
            yield Figure.of(f"{name} {provider} batches of {batches}: {way}", found, "images/s")
        gained = ratios(rates["a session a size"], rates["one session"])
        yield Figure.of(f"{name} {provider} batches of {batches}: a session a size / one session", gained, "ratio")


def _rate(session: Any, images: Any, sizes: Sequence[int], seconds: float) -> Callable[[], float]:
    def measure() -> float:
        n_images = n_runs = 0
        start = time.perf_counter()
        while (spent_s := time.perf_counter() - start) < seconds:
            size = sizes[n_runs % len(sizes)]
            session.run(["probabilities"], {"image": images[:size]})
            n_images, n_runs = n_images + size, n_runs + 1
        return n_images / spent_s

    return measure


if __name__ == "__main__":
    main()
