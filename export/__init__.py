"""Export and validation: from a trained network to an ONNX file with the evidence that it decides alike."""

from __future__ import annotations

from convoy.export.bundling import ModelFacts as ModelFacts
from convoy.export.bundling import export_classifier as export_classifier
from convoy.export.bundling import replay_goldens as replay_goldens
from convoy.export.bundling import revalidate as revalidate
from convoy.export.gate.evidence import EvaluationSet as EvaluationSet
