"""The real NVIDIA Triton on this machine: the launcher, its supervisor, and the Python-based ``onnxruntime`` backend.

``from convoy.serving.triton import TritonServer``. Nothing is imported before it is used: Triton's backend process imports
``convoy.serving.triton.backend`` and shall load nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convoy.serving.triton.server import TritonServer as TritonServer
    from convoy.serving.triton.supervisor import Supervisor as Supervisor

__all__ = ["Supervisor", "TritonServer"]

_HOME = {"Supervisor": "convoy.serving.triton.supervisor", "TritonServer": "convoy.serving.triton.server"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'convoy.serving.triton' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
