"""From a trained network, or an ONNX file that others made, to an export folder: graph, gate, goldens, manifest, page and card.

The folder is written whole or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import onnx

from convoy.contract.bundle import MODEL_FILE, Bundle
from convoy.contract.errors import UsageError
from convoy.contract.files import new_folder, sha256_bytes, write_bytes
from convoy.contract.goldens import Goldens
from convoy.contract.manifest import INPUT_NAME, LOGITS_NAME, PROBABILITIES_NAME, check_model_name
from convoy.contract.signature import sign_bundle
from convoy.contract.validation import Check, PrecisionFacts, sum_up
from convoy.export.candidate import Candidate, Judgement, judge
from convoy.export.diagnosis import trace_network, trace_onnx
from convoy.export.facts import ModelFacts
from convoy.export.folder import Exposition, check_out, write_evidence
from convoy.export.gate.evidence import EvaluationSet, Exhibits, edge_images
from convoy.export.gate.gate import Progress, run_gate
from convoy.export.gate.reference import TorchSource
from convoy.export.gate.trial import try_out
from convoy.export.graph.exporting import check_network, to_onnx
from convoy.export.graph.metadata import annotate
from convoy.export.provenance import weights_digest

if TYPE_CHECKING:
    from torch import nn

    from convoy.contract.signing_key import PrivateKey
    from convoy.export.adopt.adoption import AdoptedModel

_NO_PAIRS = Check(
    name="the network behind the file",
    verdict="uncovered",
    expected="the answers of the network that the file was once exported from",
    found="the file alone, without that network and without pairs of inputs and outputs",
    detail="--pairs names a folder of such pairs (test_data_set_*/input_0.pb and output_0.pb, or .npz)",
)


@dataclass(frozen=True)
class Reduction:
    """A precision below float32, and what it may cost.

    Attributes:
        precision: What to compute in.
        max_accuracy_drop: The largest loss of top-1 accuracy that passes, as a fraction; its 95 % confidence bound counts.
        calibration: For int8: training images that fix the quantisation ranges, uint8 (n, H, W, C); never those of the evaluation.
    """

    precision: Literal["fp16", "int8"]
    max_accuracy_drop: float = 0.01
    calibration: npt.NDArray[np.uint8] | None = None


def export_classifier(
    classifier: nn.Module,
    facts: ModelFacts,
    evaluation: EvaluationSet,
    out: Path,
    *,
    reduction: Reduction | None = None,
    signing_key: PrivateKey | None = None,
    force: bool = False,
    on_progress: Progress = lambda _: None,
) -> Bundle:
    """Export a network, run the gate, and write the export folder.

    The folder is written also where the gate fails, so that the report can be read; look at ``bundle.report.verdict``. Nothing but
    a passed one can be deployed, or is signed.

    Args:
        classifier: On the CPU, in evaluation mode; uint8 (N, H, W, C) to logits (N, K).
        facts: What the manifest says.
        evaluation: Real images, of a split that the network was not trained on, with labels where they are known.
        out: The export folder.
        reduction: A precision below float32; the float32 file has to pass first.
        signing_key: Signs what passed; ``convoy.contract.signature.open_key`` reads one.
        force: Replace ``out`` if it is there.
        on_progress: Told what is being done.

    Raises:
        ExportError: The network cannot be exported, or not as a file that loads everywhere.
        UsageError: ``out`` exists, or the model's name, its labels, its temperature or the evaluation set does not fit.
    """
    out = Path(out)  # a str does as well
    _check_arguments(facts, evaluation, out, force=force)
    check_network(classifier, facts.image, len(facts.labels))
    on_progress("torch.onnx export")
    facts = replace(facts, weights_sha256=facts.weights_sha256 or weights_digest(classifier))
    graph = to_onnx(classifier, facts.image, temperature=facts.temperature)
    _annotate(graph.proto, facts)
    source = TorchSource(classifier, facts.temperature)
    candidate = Candidate(graph.proto.SerializeToString(deterministic=True), source, lambda images: trace_network(graph, images))
    return _export(candidate, facts, evaluation, out, reduction, signing_key, on_progress)


def export_adopted(
    adopted: AdoptedModel,
    facts: ModelFacts,
    evaluation: EvaluationSet,
    out: Path,
    *,
    checks: Sequence[Check] = (),
    reduction: Reduction | None = None,
    signing_key: PrivateKey | None = None,
    force: bool = False,
    on_progress: Progress = lambda _: None,
) -> Bundle:
    """Run the gate on an ONNX file that others made, and write the export folder.

    Its source is the foreign file as it came, at its own border, by other means than the server's: ONNX Runtime without graph
    optimisations, and the ONNX reference evaluator in float64. Whether it decides as the network that it was once exported from,
    nobody can check here, except for pairs of inputs and outputs that came with it.

    Args:
        adopted: The file, taken up by ``adopt_onnx``.
        facts: What the manifest says.
        evaluation: Real images, with labels where they are known.
        out: The export folder.
        checks: Of the pairs that came with the file.
        reduction: A precision below float32.
        signing_key: Signs what passed; ``convoy.contract.signature.open_key`` reads one.
        force: Replace ``out`` if it is there.
        on_progress: Told what is being done.

    Raises:
        ExportError: The file cannot be run, or it crashes ONNX Runtime.
        UsageError: ``out`` exists, or the model's name, its labels, its temperature or the evaluation set does not fit.
    """
    out = Path(out)  # a str does as well
    _check_arguments(facts, evaluation, out, force=force)
    if facts.temperature != 1:
        raise UsageError(f"temperature: an ONNX file's softmax stays as it came: expected 1, found {facts.temperature:g}.")
    proto = onnx.load_model_from_string(adopted.model)
    facts = replace(facts, weights_sha256=facts.weights_sha256 or sha256_bytes(adopted.model))
    _annotate(proto, facts)
    model = proto.SerializeToString(deterministic=True)
    on_progress("ONNX Runtime in a process of its own, in case the file crashes it")
    try_out(model, {INPUT_NAME: edge_images(facts.image)}, facts.border.batch_sizes)
    candidate = Candidate(model, adopted.source, lambda images: trace_onnx(model, images), tuple(checks) or (_NO_PAIRS,))
    return _export(candidate, facts, evaluation, out, reduction, signing_key, on_progress)


def _annotate(proto: onnx.ModelProto, facts: ModelFacts) -> None:
    """Write the facts into the file itself."""
    annotate(
        proto,
        labels=facts.labels,
        image=facts.image,
        preprocessing=facts.preprocessing,
        weights_sha256=facts.weights_sha256 or "",
        temperature=facts.temperature,
        licence=facts.card.license,
    )


def _export(
    candidate: Candidate,
    facts: ModelFacts,
    evaluation: EvaluationSet,
    out: Path,
    reduction: Reduction | None,
    signing_key: PrivateKey | None,
    say: Progress,
) -> Bundle:
    judgement = judge(candidate, evaluation, facts.border, say)
    model, precision = candidate.model, None
    if reduction is not None and sum_up(judgement.findings.checks) != "failed":
        model, judgement, precision = _reduce(candidate, judgement, facts, evaluation, reduction, say)
    with new_folder(out) as aside:
        write_bytes(aside / MODEL_FILE, model)
        bundle = _write(aside, candidate, facts, evaluation, judgement, precision)
        if signing_key is not None and bundle.report.verdict == "passed":
            sign_bundle(aside, signing_key)
    return Bundle(out, bundle.manifest, bundle.report)


def _reduce(
    candidate: Candidate,
    judgement: Judgement,
    facts: ModelFacts,
    evaluation: EvaluationSet,
    reduction: Reduction,
    say: Progress,
) -> tuple[bytes, Judgement, PrecisionFacts]:
    """The file in a lower precision, held to the decisions of the float32 file, which the gate has seen."""
    from convoy.export.precision import reduce_precision  # ONNX Runtime's quantiser is slow to load, and seldom wanted

    say(f"to {reduction.precision}")
    before = judgement.findings
    reduced = reduce_precision(
        reduction.precision,
        candidate.model,
        calibration=reduction.calibration,
        evaluation=evaluation,
        max_accuracy_drop=reduction.max_accuracy_drop,
        max_batch_size=facts.max_batch_size,
        labels=facts.labels,
        on_progress=say,
    )
    after = run_gate(reduced.model, candidate.source, evaluation, facts.border, tolerances=reduced.tolerances, on_progress=say)
    n_passed = sum(check.verdict == "passed" for check in before.checks)
    first = Check(
        name="the float32 file", verdict=sum_up(before.checks), expected="all checks pass", found=f"{n_passed} checks passed"
    )
    checks = (first, *reduced.checks, *after.checks)
    return reduced.model, Judgement(replace(after, checks=checks)), reduced.facts


def _write(
    folder: Path,
    candidate: Candidate,
    facts: ModelFacts,
    evaluation: EvaluationSet,
    judgement: Judgement,
    precision: PrecisionFacts | None,
) -> Bundle:
    findings = judgement.findings
    chosen = evaluation.goldens()
    goldens = Goldens.of_classes(
        image=evaluation.images[chosen],
        logits=findings.expected[LOGITS_NAME][chosen],
        probabilities=findings.expected[PROBABILITIES_NAME][chosen],
        label=evaluation.labels[chosen],
    )
    shown = Exposition(goldens)
    if findings.worst_index is not None:
        pixels = Exhibits.of(evaluation, facts.image).images[findings.worst_index]
        failed = sum_up(findings.checks) == "failed"
        shown = Exposition(goldens, pixels, _reproducer(candidate, pixels) if failed else None)
    return write_evidence(folder, facts, judgement, shown, source=candidate.source.kind, precision=precision)


def _reproducer(candidate: Candidate, pixels: npt.NDArray[np.uint8]) -> Goldens:
    """The image that shows the fault, with the source's answers: ``numpy.load`` reads its file."""
    images = pixels[np.newaxis]
    expected = candidate.source.float32(images, 1)
    return Goldens.of_classes(images, expected[LOGITS_NAME], expected[PROBABILITIES_NAME], np.full(1, -1))


def _check_arguments(facts: ModelFacts, evaluation: EvaluationSet, out: Path, *, force: bool) -> None:
    check_model_name(facts.model_name)
    if facts.reading is not None:
        raise UsageError("reading: a reader of amounts is exported by export_reader.")
    if not 0 < facts.temperature < math.inf:
        raise UsageError(f"temperature: expected a number above 0, found {facts.temperature:g}.")
    check_out(out, force=force)
    _check_evaluation(facts, evaluation)


def _check_evaluation(facts: ModelFacts, evaluation: EvaluationSet) -> None:
    if len(set(facts.labels)) != len(facts.labels) or len(facts.labels) < 2:
        raise UsageError(f"labels: expected at least two class names, each another, found {list(facts.labels)}.")
    if evaluation.images.shape[1:] != facts.image.dims:
        raise UsageError(f"expected evaluation images of shape {facts.image.dims}, found {evaluation.images.shape[1:]}.")
    if evaluation.labelled and (evaluation.labels.min() < 0 or evaluation.labels.max() >= len(facts.labels)):
        raise UsageError(
            f"expected evaluation labels from 0 to {len(facts.labels) - 1}, an index into the {len(facts.labels)} class names, "
            f"found {evaluation.labels.min()} to {evaluation.labels.max()}."
        )
