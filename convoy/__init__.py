"""Convoy: from a PyTorch convolutional network to a validated ONNX file, a Triton server and its callers.

``from convoy import Client, AsyncClient, score``; everything else is reached through its stage: ``convoy.training``,
``convoy.export``, ``convoy.serving``. Nothing is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convoy.serving.client import AsyncClient as AsyncClient
    from convoy.serving.client import Client as Client
    from convoy.serving.scoring import score as score

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "__version__", "score"]

_HOME = {
    "AsyncClient": "convoy.serving.client",
    "Client": "convoy.serving.client",
    "score": "convoy.serving.scoring",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'convoy' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
