"""A person's own network behind Convoy's border: raw pixels in, logits out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from convoy.contract.errors import ExportError, UsageError
from convoy.contract.image import ImageSpec
from convoy.export.adopt.preprocess import Preprocess

Step: TypeAlias = "str | int"
"""A key or an attribute (str), or a position (int), on the way to the logits."""


def image_of(preprocess: Preprocess) -> ImageSpec:
    """The image that a network takes, where nothing but the spec says it.

    Raises:
        UsageError: The spec does not say the size.
    """
    if preprocess.height_px is None or preprocess.width_px is None:
        raise UsageError("preprocessing: a PyTorch network does not show its image size: say size=224 or size=HEIGHTxWIDTH.")
    return ImageSpec(
        height_px=preprocess.height_px,
        width_px=preprocess.width_px,
        channels=1 if preprocess.color == "grey" else 3,
        resize=preprocess.resize,
        interpolation=preprocess.interpolation,
    )


class ForeignClassifier(nn.Module):
    """Preprocessing, a foreign network, and the way to the logits in what it gives.

    Attributes:
        network: Takes float (N, C, H, W), or (N, H, W, C) with ``layout=nhwc``.
        preprocess: What it expects.
    """

    scale: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preprocess: Preprocess, image: ImageSpec, path: tuple[Step, ...], repeats: int) -> None:
        super().__init__()
        self.network = network
        self.preprocess = preprocess
        self._path = path
        self._repeats = repeats
        mean, std = preprocess.per_channel(image.channels)
        self.register_buffer("scale", torch.tensor(preprocess.scale), persistent=False)
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """From raw pixels, uint8 (N, H, W, C), to logits, float (N, K)."""
        logits: Tensor = follow(self.network(self.prepare(image)), self._path)
        return logits.flatten(1)

    def prepare(self, image: Tensor) -> Tensor:
        """What the network expects, in the dtype of the constants: float32, or float64 after ``.double()``."""
        pixels = image.flip(3) if self.preprocess.color == "bgr" else image
        pixels = (pixels.to(self.scale.dtype) * self.scale - self.mean) / self.std  # (N, H, W, C)
        if self._repeats > 1:
            pixels = pixels.repeat(1, 1, 1, self._repeats)
        return pixels if self.preprocess.layout == "nhwc" else pixels.permute(0, 3, 1, 2).contiguous()  # (N, C, H, W)


def wrap_torch(network: nn.Module, preprocess: Preprocess, image: ImageSpec, n_classes: int) -> ForeignClassifier:
    """Put preprocessing before a foreign network, and find the logits in what it gives.

    What it gives may be a tensor, a tuple, a dict or an object with fields (Hugging Face's ``logits``); the logits are the field of
    that name, else the one tensor of ``n_classes`` values an image. A network for grey images that takes three channels gets three
    equal ones.

    Args:
        network: On the CPU, in evaluation mode.
        preprocess: What it expects of its pixels.
        image: What the served model takes; ``image_of``.
        n_classes: K.

    Raises:
        ExportError: It fails on such images, or gives nothing, or several things, that could be the logits.
    """
    failures: list[str] = []
    for repeats in (1, 3) if image.channels == 1 else (1,):
        candidate = ForeignClassifier(network, preprocess, image, (), repeats).eval()
        try:
            with torch.inference_mode():
                found = network(candidate.prepare(torch.zeros((2, *image.dims), dtype=torch.uint8)))
        except Exception as error:  # noqa: BLE001  whatever a stranger's forward() raises
            failures.append(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
            continue
        return ForeignClassifier(network, preprocess, image, _path_to_logits(found, n_classes), repeats).eval()
    layout = "(N, H, W, C)" if preprocess.layout == "nhwc" else "(N, C, H, W)"
    raise ExportError(
        f"expected a network that takes float {layout} of {image.height_px}x{image.width_px} pixels and {image.channels} channels; "
        f"on such images it fails: {failures[0]}. Check size, color and layout of the preprocessing, and the network's forward()."
    )


def follow(found: Any, path: tuple[Step, ...]) -> Any:
    """What lies at the end of ``path`` in the output of a network."""
    for step in path:
        found = found[step] if isinstance(step, int) or isinstance(found, Mapping) else getattr(found, step)
    return found


def _path_to_logits(found: Any, n_classes: int) -> tuple[Step, ...]:
    tensors = dict(_tensors(found, ()))
    fitting = {
        path: tensor
        for path, tensor in tensors.items()
        if tensor.is_floating_point() and tensor.ndim >= 2 and tensor.shape[0] == 2 and tensor[0].numel() == n_classes
    }
    named = [path for path in fitting if path and path[-1] == "logits"]
    chosen = named if len(named) == 1 else list(fitting)
    if len(chosen) == 1:
        return chosen[0]
    listed = ", ".join(f"{_title(path)} {tuple(tensor.shape)}" for path, tensor in tensors.items()) or f"a {type(found).__name__}"
    if fitting:
        raise ExportError(
            f"expected a network that gives one tensor of {n_classes} logits an image, found {len(fitting)} (for 2 images): "
            f"{listed}. Let forward() give the logits alone, or name them 'logits' in a dict."
        )
    raise ExportError(
        f"expected a network that gives {n_classes} logits an image, one for each class name, found for 2 images: {listed}. "
        "Name as many classes as the network has, in its order."
    )


def _title(path: tuple[Step, ...]) -> str:
    return f"output {'.'.join(map(str, path))}" if path else "the output"


def _tensors(found: Any, path: tuple[Step, ...]) -> Iterator[tuple[tuple[Step, ...], Tensor]]:
    if isinstance(found, Tensor):
        yield path, found
    elif isinstance(found, Mapping):
        for key, value in found.items():
            yield from _tensors(value, (*path, key))
    elif hasattr(found, "_fields"):
        for key in found._fields:
            yield from _tensors(getattr(found, key), (*path, key))
    elif isinstance(found, (tuple, list)):
        for index, value in enumerate(found):
            yield from _tensors(value, (*path, index))
    elif dataclasses.is_dataclass(found):
        for field in dataclasses.fields(found):
            yield from _tensors(getattr(found, field.name), (*path, field.name))
