"""Validate again: an export folder as it is now, or any ONNX file beside the network that it should decide as."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convoy.contract.bundle import Bundle
from convoy.contract.errors import ExportError, UsageError
from convoy.contract.manifest import INPUT_NAME
from convoy.contract.validation import Check
from convoy.export.candidate import Candidate, Judgement, judge
from convoy.export.diagnosis import Trace, trace_network
from convoy.export.gate.checks import check_agreement, check_values
from convoy.export.gate.evidence import EvaluationSet, edge_images
from convoy.export.gate.gate import Border, Progress, run_gate
from convoy.export.gate.reference import TorchSource
from convoy.export.gate.runtime import open_session, run_session
from convoy.export.gate.trial import try_out
from convoy.export.graph.exporting import to_onnx

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from convoy.export.reading.evidence import FieldSet
    from convoy.training.check_reader.reader import AmountReader


def replay_goldens(bundle: Bundle) -> tuple[Check, ...]:
    """Run the golden inputs through ONNX Runtime and compare with the source's outputs; needs no network and no data set.

    Args:
        bundle: The export, digests checked.
    """
    goldens = bundle.goldens()
    name = f"{len(goldens)} goldens in ONNX Runtime"
    try:
        try_out(bundle.model_path.read_bytes(), goldens.inputs, (bundle.manifest.max_batch_size,))
        actual = run_session(open_session(bundle.model_path), goldens.inputs, bundle.manifest.max_batch_size)
    except ExportError as error:
        return (Check(name=name, verdict="failed", expected="answers", found=str(error)),)
    check = check_agreement if bundle.manifest.task == "image-classification" else check_values
    return tuple(
        check(output, name, bundle.compare(output, expected, actual[output]), bundle.report.tolerances[output])
        for output, expected in goldens.outputs.items()
    )


def revalidate(
    bundle: Bundle, classifier: nn.Module, evaluation: EvaluationSet, *, on_progress: Progress = lambda _: None
) -> Judgement:
    """Run the gate of a classifier again on the exported file as it is now.

    Args:
        bundle: The export. One of a reduced precision is held to the tolerances of its report.
        classifier: The network that it came from.
        evaluation: Real images.
        on_progress: Told what is being done.
    """
    manifest = bundle.manifest
    border = Border(manifest.image, manifest.labels, manifest.max_batch_size, manifest.temperature)
    model = bundle.model_path.read_bytes()
    if manifest.precision == "fp32":
        return judge_file(model, classifier, evaluation, border, on_progress=on_progress)
    source, tolerances = TorchSource(classifier, border.temperature), bundle.report.tolerances
    return Judgement(run_gate(model, source, evaluation, border, tolerances=tolerances, on_progress=on_progress))


def revalidate_reader(
    bundle: Bundle, reader: AmountReader, evidence: FieldSet, *, on_progress: Progress = lambda _: None
) -> Judgement:
    """Run the gate of a reader again on the exported file as it is now.

    Args:
        bundle: The export.
        reader: What it came from.
        evidence: Real fields.
        on_progress: Told what is being done.

    Raises:
        UsageError: The export is no reader's.
    """
    from convoy.export.reading.border import ReadingBorder
    from convoy.export.reading.gate import run_reading_gate
    from convoy.export.reading.source import ReaderSource

    manifest = bundle.manifest
    if manifest.reading is None:
        raise UsageError(f"{bundle.folder}: expected the export of a reader of amounts, found a classifier's.")
    border = ReadingBorder(manifest.image, manifest.labels, manifest.reading, manifest.max_batch_size)
    evidence.check(manifest.image)
    model = bundle.model_path.read_bytes()
    return Judgement(run_reading_gate(model, ReaderSource(reader), evidence, border, on_progress=on_progress))


def judge_file(
    model: bytes, classifier: nn.Module, evaluation: EvaluationSet, border: Border, *, on_progress: Progress = lambda _: None
) -> Judgement:
    """Whether an ONNX file decides as a network does, whoever exported it; where it does not, which node is at fault.

    Args:
        model: The file's bytes; its input and outputs are those of Convoy's own exports.
        classifier: On the CPU, in evaluation mode; uint8 (N, H, W, C) to logits (N, K).
        evaluation: Real images.
        border: The image, the labels, the largest batch and the temperature that the file is held to.
        on_progress: Told what is being done.

    Raises:
        ExportError: The network cannot answer, or the file crashes ONNX Runtime.
    """
    try_out(model, {INPUT_NAME: edge_images(border.image)}, border.batch_sizes)

    def trace(images: npt.NDArray[np.uint8]) -> Trace:
        return trace_network(to_onnx(classifier, border.image, temperature=border.temperature), images)

    candidate = Candidate(model, TorchSource(classifier, border.temperature), trace)
    return judge(candidate, evaluation, border, on_progress)
