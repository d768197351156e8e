"""Latency and throughput of two files side by side, in one run, in turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import ExportError
from convoy.contract.validation import Speed
from convoy.export.gate.runtime import CPU, open_session

if TYPE_CHECKING:
    import onnxruntime

ROUNDS: Final = 7
_ROUND_S: Final = 0.1  # of each file, each figure, in a round
_MAX_S: Final = 3.0  # of each file, each figure, in all rounds; one round at least

_MAX_BATCH_S: Final = 1.5  # a batch that would take longer, image by image, is halved


def measure_speed(model: bytes, images: npt.NDArray[np.uint8], batch_size: int, provider: str = CPU) -> Speed:
    """Size, latency and throughput of one file.

    Args:
        model: The file.
        images: Images to run, uint8, shape (n, H, W, C); repeated where a batch needs more.
        batch_size: Of the throughput; halved while a batch would take too long.
        provider: The execution provider.

    Raises:
        ExportError: ONNX Runtime cannot run the file.
    """
    return _measure((model,), images, batch_size, provider)[0]


def compare_speed(
    float32_model: bytes, model: bytes, images: npt.NDArray[np.uint8], batch_size: int, provider: str = CPU
) -> tuple[Speed, Speed]:
    """Size, latency and throughput of two files, measured in turns so that what else the machine does hits both.

    Args:
        float32_model: The file before the conversion.
        model: The converted one.
        images: Images to run, uint8, shape (n, H, W, C); repeated where a batch needs more.
        batch_size: Of the throughput; halved while a batch would take too long.
        provider: The execution provider.

    Returns:
        The medians over the rounds, in the order of the files.

    Raises:
        ExportError: ONNX Runtime cannot run one of the files.
    """
    first, second = _measure((float32_model, model), images, batch_size, provider)
    return first, second


def _measure(models: tuple[bytes, ...], images: npt.NDArray[np.uint8], batch_size: int, provider: str) -> list[Speed]:
    sessions = [open_session(model, provider) for model in models]
    single = images[:1]
    latencies = _seconds_in_turns([_call(session, single) for session in sessions])
    while batch_size > 1 and batch_size * max(latencies) > _MAX_BATCH_S:
        batch_size //= 2
    batch = np.resize(images, (batch_size, *images.shape[1:]))
    batches = _seconds_in_turns([_call(session, batch) for session in sessions])
    return [
        Speed(
            size_bytes=len(model),
            latency_ms=round(1000 * latency, 4),
            throughput_ips=round(batch_size / seconds, 2),
            batch_size=batch_size,
            provider=provider,
        )
        for model, latency, seconds in zip(models, latencies, batches, strict=True)
    ]


def _call(session: onnxruntime.InferenceSession, images: npt.NDArray[np.uint8]) -> Callable[[], None]:
    feed = {session.get_inputs()[0].name: images}

    def call() -> None:
        try:
            session.run(None, feed)
        except Exception as error:  # ONNX Runtime's exceptions have no public common base
            raise ExportError(f"ONNX Runtime fails on a batch of {len(images)}: {error}") from error

    return call


def _seconds_in_turns(calls: list[Callable[[], None]]) -> list[float]:
    """The median duration of each call, in seconds, warm-up left out."""
    for call in calls:
        call()
    durations: list[list[float]] = [[] for _ in calls]
    spent = 0.0
    for round_ in range(ROUNDS):
        if round_ and spent > _MAX_S * len(calls):
            break
        for call, found in zip(calls, durations, strict=True):
            start = now = time.perf_counter()
            while now - start < _ROUND_S:
                before = now
                call()
                now = time.perf_counter()
                found.append(now - before)
            spent += now - start
    return [median(found) for found in durations]
