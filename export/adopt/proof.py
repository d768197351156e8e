"""Proof that an adopted file answers as the foreign one did, and that company changes no image's answer."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from convoy.contract.errors import ExportError
from convoy.contract.image import ImageSpec
from convoy.contract.manifest import INPUT_NAME, LOGITS_NAME, PROBABILITIES_NAME
from convoy.export.adopt.batching import ONE_BY_ONE
from convoy.export.adopt.names import title
from convoy.export.adopt.running import Arrays, open_plain, run_in_batches, run_plain, with_outputs
from convoy.export.gate.evidence import edge_images

BATCH_SIZES: Final = (2, 7)
N_IMAGES: Final = 7
_SLACK: Final = {"float16": 2e-2, "float32": 1e-3, "float64": 1e-3}
_OUTPUTS: Final = (LOGITS_NAME, PROBABILITIES_NAME)


def proof_images(samples: npt.NDArray[np.uint8] | None, image: ImageSpec) -> npt.NDArray[np.uint8]:
    """Seven images that lie far apart: noise, a real one where there is one, edge cases."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (N_IMAGES, *image.dims), dtype=np.uint8)
    real = noise[:0] if samples is None else samples[:2]
    images: npt.NDArray[np.uint8] = np.concatenate([noise[:1], real, edge_images(image), noise[1:]])[:N_IMAGES]
    return images


def prove(
    model: onnx.ModelProto, expected: Arrays, images: npt.NDArray[np.uint8], *, dtype: str, batch_sizes: tuple[int, ...]
) -> None:
    """Run an adopted file on each image alone and in company.

    Alone it must give what the foreign file gave: ``|actual - expected| <= s * max |expected|`` with s = 1e-3, 2e-2 for a network
    in float16; in company, what it gave alone, with s = 1e-4 and 2e-2. These bounds tell a fault in the graph from rounding; the
    gate measures the rounding.

    Args:
        model: The adopted model.
        expected: By output, what the foreign file gave for ``images``.
        images: uint8, (n, H, W, C).
        dtype: In which the network computes.
        batch_sizes: How many images go together.

    Raises:
        ExportError: It gives something else, or fails; the message names the node where images mix.
    """
    slack = _SLACK[dtype]
    session = open_plain(model.SerializeToString())
    alone = run_in_batches(session, INPUT_NAME, images, _OUTPUTS, 1, fixed=False)
    for name in _OUTPUTS:
        if not _close(alone[name], expected[name], slack):
            raise ExportError(
                f"{name}: the adopted file differs from the one that was taken up by {_apart(alone[name], expected[name]):.3g} on "
                "single images: this graph cannot be wrapped safely. Please report it with the file."
            )
    for batch_size in batch_sizes:
        try:
            together = run_in_batches(session, INPUT_NAME, images, _OUTPUTS, batch_size, fixed=False)
        except ExportError as error:
            raise ExportError(f"the batch is baked in: batches of {batch_size} fail: {error}; {ONE_BY_ONE}.") from error
        if not all(_close(together[name], alone[name], slack if dtype == "float16" else slack / 10) for name in _OUTPUTS):
            culprit = first_mixer(model, images[:batch_size])
            raise ExportError(
                f"in batches of {batch_size} images get other answers than alone: the node {culprit} mixes them; {ONE_BY_ONE}."
            )


def first_mixer(model: onnx.ModelProto, images: npt.NDArray[np.uint8]) -> str:
    """The first node whose result in company is not the single results one after the other, along any axis."""
    names = [name for node in model.graph.node for name in node.output if name]
    session = open_plain(with_outputs(model, names))
    together = run_plain(session, {INPUT_NAME: images})
    alone = [run_plain(session, {INPUT_NAME: images[i : i + 1]}) for i in range(len(images))]
    for node in model.graph.node:
        for name in node.output:
            if name in together and not _is_stack(together[name], [single[name] for single in alone]):
                return title(node)
    return "that cannot be told"


def _is_stack(together: npt.NDArray[Any], alone: list[npt.NDArray[Any]]) -> bool:
    if together.dtype.kind != "f":
        return True
    if together.shape == alone[0].shape:
        return all(_close(single, together, 1e-3) for single in alone)
    if together.ndim != alone[0].ndim:
        return False
    axes = [axis for axis in range(together.ndim) if together.shape[axis] == sum(single.shape[axis] for single in alone)]
    return any(_close(np.concatenate(alone, axis=axis), together, 1e-3) for axis in axes)


def _close(actual: npt.NDArray[Any], expected: npt.NDArray[Any], slack: float) -> bool:
    """Whether they agree; what is not finite must be so on both sides (the gate fails it)."""
    if actual.shape != expected.shape:
        return False
    finite = np.isfinite(expected)
    scale = float(np.abs(expected[finite].astype(np.float64)).max(initial=0))
    return bool((np.isfinite(actual) == finite).all()) and _apart(actual, expected) <= slack * scale


def _apart(actual: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    if actual.shape != expected.shape:
        return float("inf")
    finite = np.isfinite(actual) & np.isfinite(expected)
    return float(np.abs(actual[finite].astype(np.float64) - expected[finite].astype(np.float64)).max(initial=0))
