"""Export and validation: from a trained network to an ONNX file with the evidence that it decides alike.

Nothing is imported before it is used: a process that only looks at a foreign file never loads torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convoy.export.bundling import Reduction as Reduction
    from convoy.export.bundling import export_adopted as export_adopted
    from convoy.export.bundling import export_classifier as export_classifier
    from convoy.export.candidate import Judgement as Judgement
    from convoy.export.evidence.card import CardFacts as CardFacts
    from convoy.export.facts import ModelFacts as ModelFacts
    from convoy.export.gate.evidence import EvaluationSet as EvaluationSet
    from convoy.export.gate.gate import Border as Border
    from convoy.export.reading.bundling import export_reader as export_reader
    from convoy.export.reading.evidence import FieldSet as FieldSet
    from convoy.export.revalidation import judge_file as judge_file
    from convoy.export.revalidation import replay_goldens as replay_goldens
    from convoy.export.revalidation import revalidate as revalidate
    from convoy.export.revalidation import revalidate_reader as revalidate_reader

__all__ = [
    "Border",
    "CardFacts",
    "EvaluationSet",
    "FieldSet",
    "Judgement",
    "ModelFacts",
    "Reduction",
    "export_adopted",
    "export_classifier",
    "export_reader",
    "judge_file",
    "replay_goldens",
    "revalidate",
    "revalidate_reader",
]

_HOME = {
    "Border": "convoy.export.gate.gate",
    "CardFacts": "convoy.export.evidence.card",
    "EvaluationSet": "convoy.export.gate.evidence",
    "FieldSet": "convoy.export.reading.evidence",
    "Judgement": "convoy.export.candidate",
    "ModelFacts": "convoy.export.facts",
    "Reduction": "convoy.export.bundling",
    "export_adopted": "convoy.export.bundling",
    "export_classifier": "convoy.export.bundling",
    "export_reader": "convoy.export.reading.bundling",
    "judge_file": "convoy.export.revalidation",
    "replay_goldens": "convoy.export.revalidation",
    "revalidate": "convoy.export.revalidation",
    "revalidate_reader": "convoy.export.revalidation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'convoy.export' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
