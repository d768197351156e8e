"""From a trained reader of amounts to an export folder: graph, gate, goldens, manifest, page and card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from convoy.contract.bundle import MODEL_FILE, Bundle
from convoy.contract.errors import ExportError, UsageError
from convoy.contract.files import new_folder, write_bytes
from convoy.contract.goldens import Goldens
from convoy.contract.manifest import check_model_name
from convoy.contract.reading import CONFIDENCE_NAME
from convoy.contract.signature import sign_bundle
from convoy.contract.validation import Check, sum_up
from convoy.export.candidate import Judgement
from convoy.export.folder import Exposition, check_out, write_evidence
from convoy.export.gate.evidence import N_GOLDENS
from convoy.export.gate.gate import Findings, Progress
from convoy.export.graph.capture import MAX_READER_WIDTH_PX, MIN_READER_WIDTH_PX
from convoy.export.graph.exporting import reader_to_onnx
from convoy.export.graph.metadata import annotate
from convoy.export.provenance import weights_digest
from convoy.export.reading.evidence import FieldExhibits, FieldSet
from convoy.export.reading.gate import run_reading_gate
from convoy.export.reading.source import ReaderSource
from convoy.training.check_reader.sliding import STRIDE

if TYPE_CHECKING:
    from convoy.contract.signing_key import PrivateKey
    from convoy.export.facts import ModelFacts
    from convoy.training.check_reader.reader import AmountReader

NO_DIAGNOSIS: Final = Check(
    name="errors by layer",
    verdict="uncovered",
    expected="every intermediate tensor beside the source's",
    found="a reader's graph loops over frames: its tensors are compared at the border alone",
)


def export_reader(
    reader: AmountReader,
    facts: ModelFacts,
    evidence: FieldSet,
    out: Path,
    *,
    signing_key: PrivateKey | None = None,
    force: bool = False,
    on_progress: Progress = lambda _: None,
) -> Bundle:
    """Export a reader of amounts, run the gate, and write the export folder.

    The folder is written also where the gate fails, so that the report can be read; look at ``bundle.report.verdict``. Nothing but
    a passed one can be deployed, or is signed. The file computes in float32: there is no lower precision for readers.

    Args:
        reader: On the CPU, in evaluation mode.
        facts: What the manifest says, ``reading`` among it.
        evidence: Fields that the reader was not trained on, with amounts where they are known.
        out: The export folder.
        signing_key: Signs what passed; ``convoy.contract.signature.open_key`` reads one.
        force: Replace ``out`` if it is there.
        on_progress: Told what is being done.

    Raises:
        ExportError: The reader cannot be exported, or not as a file that loads everywhere.
        UsageError: ``out`` exists, or the facts or the evidence do not fit the reader.
    """
    out = Path(out)  # a str does as well
    _check_facts(reader, facts)
    check_out(out, force=force)
    evidence.check(facts.image)
    facts = replace(facts, weights_sha256=facts.weights_sha256 or weights_digest(reader))
    on_progress("torch.onnx export of the reader, which takes a minute or two")
    proto = reader_to_onnx(reader, facts.image.height_px).proto
    annotate(
        proto,
        labels=facts.labels,
        image=facts.image,
        preprocessing=facts.preprocessing,
        weights_sha256=facts.weights_sha256 or "",
        licence=facts.card.license,
        task="amount-reading",
        reading=facts.reading,
    )
    model = proto.SerializeToString(deterministic=True)
    source = ReaderSource(reader)
    findings = run_reading_gate(model, source, evidence, facts.reading_border, on_progress=on_progress)
    judgement = Judgement(replace(findings, checks=(*findings.checks, NO_DIAGNOSIS)))
    with new_folder(out) as aside:
        write_bytes(aside / MODEL_FILE, model)
        bundle = write_evidence(aside, facts, judgement, _exposition(source, evidence, facts, findings))
        if signing_key is not None and bundle.report.verdict == "passed":
            sign_bundle(aside, signing_key)
    return Bundle(out, bundle.manifest, bundle.report)


def _check_facts(reader: AmountReader, facts: ModelFacts) -> None:
    """What the facts say of the border is what the reader has."""
    check_model_name(facts.model_name)
    reading = facts.reading_border.reading
    lattice, image = reader.lattice, facts.image
    pairs = (
        ("labels", tuple(lattice.alphabet), facts.labels),
        ("grammar", lattice.grammar.name, reading.grammar),
        ("n_best", reader.decoder.n_best, reading.n_best),
        ("max_characters", max(lattice.max_length or 0, 1), reading.max_characters),
        ("image height_px", reader.network.height_px, image.height_px),
        ("image channels", 1, image.channels),
        ("image resize", "height", image.resize),
        ("temperature", 1.0, facts.temperature),
    )
    for name, expected, found in pairs:
        if expected != found:
            raise UsageError(f"{name}: expected {expected!r}, the reader's, found {found!r}.")
    wrong = [width for width in image.widths_px if width % STRIDE or not MIN_READER_WIDTH_PX <= width <= MAX_READER_WIDTH_PX]
    if wrong:
        raise UsageError(
            f"image widths_px: expected multiples of {STRIDE} from {MIN_READER_WIDTH_PX} to {MAX_READER_WIDTH_PX}, "
            f"found {wrong}: the graph takes no other."
        )
    odd = next((f"{value.dtype} in {name}" for name, value in reader.named_parameters() if value.dtype != torch.float32), "")
    if odd:
        raise ExportError(f"expected float32 weights, found {odd}: call .float() first.")


def _exposition(source: ReaderSource, evidence: FieldSet, facts: ModelFacts, findings: Findings) -> Exposition:
    goldens = _goldens(source, evidence, findings)
    if findings.worst_index is None:
        return Exposition(goldens)
    exhibits = FieldExhibits.of(evidence, facts.image)
    field = exhibits.fields[findings.worst_index]
    reproducer = None
    if sum_up(findings.checks) == "failed":
        inputs = exhibits.inputs([findings.worst_index])
        known = findings.worst is not None and findings.worst.true_label
        reproducer = Goldens(inputs, source.float32(inputs), np.array([known or ""]))
    return Exposition(goldens, field.pixels[:, : field.width_px], reproducer)


def _goldens(source: ReaderSource, evidence: FieldSet, findings: Findings) -> Goldens:
    """Up to 16 fields of the width of image that most have: first those whose amounts no rounding changes, the surest of them."""
    widths = np.array([field.pixels.shape[1] for field in evidence.fields])
    values, counts = np.unique(widths, return_counts=True)
    candidates = np.flatnonzero(widths == values[counts.argmax()])
    confidence = findings.expected[CONFIDENCE_NAME][:, 0]
    chosen = candidates[np.argsort(-confidence[candidates], kind="stable")][: 2 * N_GOLDENS]
    inputs = FieldExhibits(evidence, evidence.fields, 0).inputs(chosen)
    kept = np.sort(np.argsort(~source.steady(inputs), kind="stable")[:N_GOLDENS])
    answers = {name: output[chosen][kept] for name, output in findings.expected.items()}
    texts = np.array([evidence.texts[index] for index in chosen[kept]])
    return Goldens({name: value[kept] for name, value in inputs.items()}, answers, texts)
