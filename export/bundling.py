"""From a trained network to an export folder: graph, gate, goldens, manifest, written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import torch

from convoy import __version__
from convoy.contract.agreement import compare
from convoy.contract.bundle import GOLDENS_FILE, MANIFEST_FILE, MODEL_FILE, Bundle
from convoy.contract.errors import ExportError, UsageError
from convoy.contract.files import new_folder
from convoy.contract.goldens import Goldens
from convoy.contract.image import ImageSpec
from convoy.contract.manifest import (
    INPUT_NAME,
    LOGITS_NAME,
    PROBABILITIES_NAME,
    Manifest,
    Preprocessing,
    TensorSpec,
    TrainingFacts,
    check_model_name,
)
from convoy.contract.validation import Check, ValidationReport, sum_up
from convoy.export.gate.checks import check_agreement
from convoy.export.gate.evidence import EvaluationSet
from convoy.export.gate.gate import Border, Findings, Progress, run_gate
from convoy.export.gate.reference import TorchSource
from convoy.export.gate.runtime import open_session, run_session
from convoy.export.graph.exporting import check_network, to_onnx
from convoy.export.graph.targets import check_targets

if TYPE_CHECKING:
    from torch import nn

DEFAULT_MAX_BATCH_SIZE = 64


@dataclass(frozen=True)
class ModelFacts:
    """What the manifest says of a network beyond its weights.

    Attributes:
        model_name: The name to serve it under.
        labels: Class names in the order of the logits.
        image: The model's image.
        preprocessing: What the network does with the pixels, where that can be said.
        training: Where the weights come from, where Convoy trained them.
        weights_sha256: Digest of the weights' file; of the tensors themselves where None.
        max_batch_size: The largest batch that the server may form.
    """

    model_name: str
    labels: tuple[str, ...]
    image: ImageSpec
    preprocessing: Preprocessing | None = None
    training: TrainingFacts | None = None
    weights_sha256: str | None = None
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE


def export_classifier(
    classifier: nn.Module,
    facts: ModelFacts,
    evaluation: EvaluationSet,
    out: Path,
    *,
    force: bool = False,
    on_progress: Progress = lambda _: None,
) -> Bundle:
    """Export a network, run the gate, and write the export folder.

    The folder is written also where the gate fails, so that the report can be read; look at ``bundle.report.verdict``. Nothing but
    a passed one can be deployed.

    Args:
        classifier: On the CPU, in evaluation mode; uint8 (N, H, W, C) to logits (N, K).
        facts: What the manifest says.
        evaluation: Real images with labels, of a split that the network was not trained on.
        out: The export folder.
        force: Replace ``out`` if it is there.
        on_progress: Told what is being done.

    Raises:
        ExportError: The network cannot be exported, or not as a file that loads everywhere.
        UsageError: ``out`` exists, or the model's name, its labels or the evaluation set does not fit.
    """
    check_model_name(facts.model_name)
    _check_out(out, force=force)
    _check_evaluation(facts, evaluation)
    check_network(classifier, facts.image, len(facts.labels))

    on_progress("torch.onnx export")
    proto = to_onnx(classifier, facts.image).proto
    proto.producer_name = "convoy"
    proto.producer_version = __version__
    check_targets(proto)
    model = proto.SerializeToString(deterministic=True)
    border = Border(facts.image, facts.labels, facts.max_batch_size)
    findings = run_gate(model, TorchSource(classifier), evaluation, border, on_progress=on_progress)
    with new_folder(out) as aside:
        bundle = _write(aside, model, proto, classifier, facts, evaluation, findings)
    return Bundle(out, bundle.manifest, bundle.report)


def revalidate(
    bundle: Bundle, classifier: nn.Module, evaluation: EvaluationSet, *, on_progress: Progress = lambda _: None
) -> Findings:
    """Run the gate again on the exported file as it is now.

    Args:
        bundle: The export.
        classifier: The network that it came from.
        evaluation: Real images with labels.
        on_progress: Told what is being done.
    """
    manifest = bundle.manifest
    border = Border(manifest.image, manifest.labels, manifest.max_batch_size)
    return run_gate(bundle.model_path.read_bytes(), TorchSource(classifier), evaluation, border, on_progress=on_progress)


def replay_goldens(bundle: Bundle) -> tuple[Check, ...]:
    """Run the golden inputs through ONNX Runtime and compare with PyTorch's outputs; needs no network and no data set.

    Args:
        bundle: The export, digests checked.
    """
    goldens = bundle.goldens()
    name = f"{len(goldens)} goldens in ONNX Runtime"
    try:
        actual = run_session(open_session(bundle.model_path), goldens.image, bundle.manifest.max_batch_size)
    except ExportError as error:
        return (Check(name=name, verdict="failed", expected="answers", found=str(error)),)
    pairs = ((LOGITS_NAME, goldens.logits), (PROBABILITIES_NAME, goldens.probabilities))
    return tuple(
        check_agreement(output, name, compare(expected, actual[output], tolerance), tolerance)
        for output, expected in pairs
        for tolerance in (bundle.report.tolerances[output],)
    )


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


def machine() -> str:
    """Where the gate runs: processor, cores, system."""
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.system()}"


def _check_out(out: Path, *, force: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST_FILE).is_file()):
        raise UsageError(f"{out}: exists and is no export folder: name another.")
    if any(out.iterdir()) and not force:
        raise UsageError(f"{out}: holds an export already: name another folder, or replace it (--force; in Python force=True).")


def _check_evaluation(facts: ModelFacts, evaluation: EvaluationSet) -> None:
    if len(set(facts.labels)) != len(facts.labels) or len(facts.labels) < 2:
        raise UsageError(f"labels: expected at least two class names, each another, found {list(facts.labels)}.")
    if evaluation.images.shape[1:] != facts.image.dims:
        raise UsageError(f"expected evaluation images of shape {facts.image.dims}, found {evaluation.images.shape[1:]}.")
    if not evaluation.labelled:
        return
    if evaluation.labels.min() < 0 or evaluation.labels.max() >= len(facts.labels):
        raise UsageError(
            f"expected evaluation labels from 0 to {len(facts.labels) - 1}, an index into the {len(facts.labels)} class names, "
            f"found {evaluation.labels.min()} to {evaluation.labels.max()}."
        )


def _write(
    folder: Path,
    model: bytes,
    proto: onnx.ModelProto,
    classifier: nn.Module,
    facts: ModelFacts,
    evaluation: EvaluationSet,
    findings: Findings,
) -> Bundle:
    (folder / MODEL_FILE).write_bytes(model)
    chosen = evaluation.goldens()
    if not len(chosen):
        raise ExportError("expected at least one real image for the goldens, found none.")
    goldens = Goldens(
        image=evaluation.images[chosen],
        logits=findings.expected[LOGITS_NAME][chosen],
        probabilities=findings.expected[PROBABILITIES_NAME][chosen],
        label=evaluation.labels[chosen],
    )
    goldens.save(folder / GOLDENS_FILE)
    height, width, channels = facts.image.dims
    n_classes = len(facts.labels)
    manifest = Manifest(
        model_name=facts.model_name,
        labels=facts.labels,
        image=facts.image,
        preprocessing=facts.preprocessing,
        inputs=(TensorSpec(name=INPUT_NAME, datatype="UINT8", dims=(height, width, channels), value_range=(0, 255)),),
        outputs=(
            TensorSpec(name=LOGITS_NAME, datatype="FP32", dims=(n_classes,)),
            TensorSpec(name=PROBABILITIES_NAME, datatype="FP32", dims=(n_classes,), value_range=(0, 1)),
        ),
        max_batch_size=facts.max_batch_size,
        opset_version=next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")),
        ir_version=proto.ir_version,
        weights_sha256=facts.weights_sha256 or weights_digest(classifier),
        training=facts.training,
        accuracy=findings.accuracy,
        versions=versions(),
    )
    report = ValidationReport(
        model_name=facts.model_name,
        verdict=sum_up(findings.checks),
        checks=findings.checks,
        tolerances=findings.tolerances,
        accuracy=findings.accuracy,
        outputs=findings.outputs,
        worst=findings.worst,
        versions=versions(),
        machine=machine(),
    )
    return Bundle.seal(folder, manifest, report)
