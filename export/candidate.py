"""A file that stands for export: the bytes, what they are compared with, and how a fault in them is looked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import ExportError
from convoy.contract.validation import Check, Fault, LayerError
from convoy.export.diagnosis import Trace, find_fault, measure_layers
from convoy.export.gate.evidence import EvaluationSet, Exhibits
from convoy.export.gate.gate import Border, Findings, Progress, run_gate
from convoy.export.gate.source import Source

Tracer = Callable[[npt.NDArray[np.uint8]], Trace]


@dataclass(frozen=True)
class Candidate:
    """A file that stands for export.

    Attributes:
        model: The ONNX file's bytes, with Convoy's border.
        source: What it is compared with.
        trace: Gives the truth of every intermediate tensor for some images, uint8 (n, H, W, C), two at least.
        checks: What was checked before: the pairs of inputs and outputs that came with a foreign file.
    """

    model: bytes
    source: Source
    trace: Tracer
    checks: tuple[Check, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """What the gate found, and what was seen inside the graph.

    Attributes:
        findings: The checks and what they measured.
        layers: Errors by layer on the worst image.
        fault: Where the file departs from its source, where it does.
    """

    findings: Findings
    layers: tuple[LayerError, ...] = ()
    fault: Fault | None = None


def judge(candidate: Candidate, evaluation: EvaluationSet, border: Border, on_progress: Progress = lambda _: None) -> Judgement:
    """Run the gate; then look into the graph: errors by layer, and, where something failed, the first node at fault.

    Args:
        candidate: The file and its source.
        evaluation: Real images.
        border: What the manifest says.
        on_progress: Told what is being done.

    Raises:
        ExportError: The source cannot answer.
    """
    findings = run_gate(candidate.model, candidate.source, evaluation, border, on_progress=on_progress)
    failed = any(check.verdict == "failed" for check in findings.checks)  # a check made before says nothing of file and source
    findings = replace(findings, checks=(*candidate.checks, *findings.checks))
    exhibits = Exhibits.of(evaluation, border.image)
    on_progress("looking for the first node at fault" if failed else "errors by layer")
    indices = _telling(findings, len(exhibits))
    images, names = exhibits.images[list(indices)], [exhibits.name(index) for index in indices]
    try:
        trace = candidate.trace(images[:2])
        layers = measure_layers(candidate.model, trace)
        fault = None
        if failed:
            size = findings.failure.batch_size if findings.failure else None
            fault = find_fault(candidate.model, trace, images, names, failing_batch_size=size)
    except ExportError as error:
        check = Check(
            name="errors by layer", verdict="uncovered", expected="every intermediate tensor beside the source's", found=str(error)
        )
        return Judgement(replace(findings, checks=(*findings.checks, check)))
    return Judgement(findings, layers, fault)


def _telling(findings: Findings, n: int) -> Sequence[int]:
    """Indices of the images to look at, two at least: those that show a failure, else the one with the largest difference."""
    first = findings.failure.indices if findings.failure else (findings.worst_index or 0,)
    return first if len(first) > 1 else (first[0], (first[0] + 1) % n)
