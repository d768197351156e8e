"""Export and validation: from a trained network to an ONNX file with the evidence that it decides alike.

Nothing is imported before it is used: a process that only looks at a foreign file never loads torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convoy.export.bundling import ModelFacts as ModelFacts
    from convoy.export.bundling import export_classifier as export_classifier
    from convoy.export.bundling import replay_goldens as replay_goldens
    from convoy.export.bundling import revalidate as revalidate
    from convoy.export.gate.evidence import EvaluationSet as EvaluationSet

__all__ = ["EvaluationSet", "ModelFacts", "export_classifier", "replay_goldens", "revalidate"]

_HOME = {
    "EvaluationSet": "convoy.export.gate.evidence",
    "ModelFacts": "convoy.export.bundling",
    "export_classifier": "convoy.export.bundling",
    "replay_goldens": "convoy.export.bundling",
    "revalidate": "convoy.export.bundling",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'convoy.export' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
