"""A trial of a file in processes of its own, before this one loads it: native code that it crashes takes nothing else down."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import ExportError
from convoy.export.adopt.limits import Limits
from convoy.export.adopt.sandbox import run_contained
from convoy.export.gate.runtime import CPU, Level, levels, open_session, run_session, usable_providers

_LIMITS: Final = dataclasses.replace(Limits(), memory_bytes=8 * 2**30, deadline_s=900.0, cpu_s=3600)
"""Wide: a large network in its largest batch is no attack. What is bounded is a file that asks for everything."""
_TASK: Final = f"{__name__}:trial_task"


def try_out(model: bytes, images: npt.NDArray[np.uint8], batch_sizes: Sequence[int]) -> None:
    """Load a file on every execution provider at every graph optimisation level, and run it in batches of some sizes.

    What it answers, or that it answers with an error, is for the gate to judge; here it must only not bring its process down.

    Args:
        model: The file's bytes; input ``image``, uint8 (N, H, W, C).
        images: Some to run, uint8 (n, H, W, C); repeated where a batch needs more.
        batch_sizes: How many images go together.

    Raises:
        ExportError: ONNX Runtime crashes, or uses up memory or time; the message names the provider and the level.
    """
    providers = usable_providers()[0]
    try:
        _run(model, images, batch_sizes, providers, levels())
    except ExportError:
        for provider in providers:
            for level in levels():  # one by one, so that the one that does it can be named
                try:
                    _run(model, images, batch_sizes, (provider,), (level,))
                except ExportError as error:
                    raise ExportError(f"ONNX Runtime on {provider}, graph optimisation {level}: {error}") from error
        raise


def _run(
    model: bytes, images: npt.NDArray[np.uint8], batch_sizes: Sequence[int], providers: Sequence[str], chosen: Sequence[Level]
) -> None:
    payload = {
        "model": model,
        "images": images,
        "batch_sizes": list(batch_sizes),
        "providers": list(providers),
        "levels": list(chosen),
    }
    run_contained(_TASK, payload, limits=_LIMITS)


def trial_task(payload: Mapping[str, Any]) -> dict[str, Any]:
    """``try_out`` in a contained process."""
    images: npt.NDArray[np.uint8] = payload["images"]
    if any(provider != CPU for provider in payload["providers"]):
        usable_providers()  # loads the GPU's libraries
    for provider in payload["providers"]:
        for level in payload["levels"]:
            try:
                session = open_session(payload["model"], provider, level)
                for size in payload["batch_sizes"]:
                    run_session(session, np.resize(images, (size, *images.shape[1:])), size)
            except ExportError:
                continue  # an answer too: the gate gets the same one
    return {}
