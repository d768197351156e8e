"""Where an export comes from: the weights' digest, the versions that took part, the machine."""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata
from typing import TYPE_CHECKING

import torch

from convoy import __version__

if TYPE_CHECKING:
    from torch import nn


def weights_digest(classifier: nn.Module) -> str:
    """The SHA-256 digest of a network's tensors: names, dtypes, shapes and values, in the order of its state dict."""
    digest = hashlib.sha256()
    for name, tensor in classifier.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """The versions of what takes part in an export."""
    found = {"convoy": __version__, "python": platform.python_version()}
    for name in ("torch", "onnx", "onnxruntime-gpu", "onnxruntime", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
