"""A trial of a file in processes of its own, before this one loads it: native code that it crashes takes nothing else down."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from convoy.contract.errors import ExportError
from convoy.export.adopt.limits import Limits
from convoy.export.adopt.sandbox import run_contained
from convoy.export.gate.runtime import CPU, Level, levels, open_session, run_session, usable_providers

if TYPE_CHECKING:
    from convoy.contract.goldens import Arrays

_LIMITS: Final = dataclasses.replace(Limits(), memory_bytes=8 * 2**30, deadline_s=900.0, cpu_s=3600)
"""Wide: a large network in its largest batch is no attack. What is bounded is a file that asks for everything."""
_TASK: Final = f"{__name__}:trial_task"
_INPUT: Final = "input "
"""What the keys of inputs begin with in what the process is given: it takes arrays at the top level alone."""


def try_out(model: bytes, inputs: Arrays, batch_sizes: Sequence[int]) -> None:
    """Load a file on every execution provider at every graph optimisation level, and run it in batches of some sizes.

    What it answers, or that it answers with an error, is for the gate to judge; here it must only not bring its process down.

    Args:
        model: The file's bytes.
        inputs: Some to run, by input name: the images, uint8 (n, H, W, C), first; repeated where a batch needs more.
        batch_sizes: How many images go together.

    Raises:
        ExportError: ONNX Runtime crashes, or uses up memory or time; the message names the provider and the level.
    """
    providers = usable_providers()[0]
    try:
        _run(model, inputs, batch_sizes, providers, levels())
    except ExportError:
        for provider in providers:
            for level in levels():  # one by one, so that the one that does it can be named
                try:
                    _run(model, inputs, batch_sizes, (provider,), (level,))
                except ExportError as error:
                    raise ExportError(f"ONNX Runtime on {provider}, graph optimisation {level}: {error}") from error
        raise


def _run(model: bytes, inputs: Arrays, batch_sizes: Sequence[int], providers: Sequence[str], chosen: Sequence[Level]) -> None:
    payload = {
        "model": model,
        "batch_sizes": list(batch_sizes),
        "providers": list(providers),
        "levels": list(chosen),
        **{f"{_INPUT}{name}": np.ascontiguousarray(values) for name, values in inputs.items()},
    }
    run_contained(_TASK, payload, limits=_LIMITS)


def trial_task(payload: Mapping[str, Any]) -> dict[str, Any]:
    """``try_out`` in a contained process."""
    inputs = {key.removeprefix(_INPUT): values for key, values in payload.items() if key.startswith(_INPUT)}
    if any(provider != CPU for provider in payload["providers"]):
        usable_providers()  # loads the GPU's libraries
    for provider in payload["providers"]:
        for level in payload["levels"]:
            try:
                session = open_session(payload["model"], provider, level)
                for size in payload["batch_sizes"]:
                    batch = {name: np.resize(values, (size, *values.shape[1:])) for name, values in inputs.items()}
                    run_session(session, batch, size)
            except ExportError:
                continue  # an answer too: the gate gets the same one
    return {}
