"""The export folder: everything beside the model, from what the gate found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import onnx

from convoy.contract.bundle import GOLDENS_FILE, MANIFEST_FILE, MODEL_FILE, Bundle
from convoy.contract.errors import UsageError
from convoy.contract.files import sha256_file, write_bytes
from convoy.contract.machine import machine
from convoy.contract.manifest import Accuracy, Manifest
from convoy.contract.signature import CARD_FILE, PAGE_FILE
from convoy.contract.validation import PrecisionFacts, ValidationReport, sum_up
from convoy.export.evidence.card import render_card
from convoy.export.evidence.page import render_page
from convoy.export.provenance import versions

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from convoy.contract.goldens import Goldens
    from convoy.export.candidate import Judgement
    from convoy.export.facts import ModelFacts

REPRODUCER_FILE = "reproducer.npz"


@dataclass(frozen=True)
class Exposition:
    """What the folder shows besides the report's figures.

    Attributes:
        goldens: Real inputs with the source's answers.
        pixels: The worst image, uint8 (H, W, C); None where there is none.
        reproducer: The same with the source's answers, kept where the gate failed; None where there is none.
    """

    goldens: Goldens
    pixels: npt.NDArray[np.uint8] | None = None
    reproducer: Goldens | None = None


def check_out(out: Path, *, force: bool) -> None:
    """Refuse a folder that is there already, unless it is an export that may be replaced.

    Raises:
        UsageError: It may not.
    """
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST_FILE).is_file()):
        raise UsageError(f"{out}: exists and is no export folder: name another.")
    if any(out.iterdir()) and not force:
        raise UsageError(f"{out}: holds an export already: name another folder, or replace it (--force; in Python force=True).")


def write_evidence(
    folder: Path,
    facts: ModelFacts,
    judgement: Judgement,
    shown: Exposition,
    *,
    source: Literal["pytorch", "onnx"] = "pytorch",
    precision: PrecisionFacts | None = None,
) -> Bundle:
    """Write everything but the model: goldens, manifest, report, page, card.

    Args:
        folder: Holds the model.
        facts: What the manifest says.
        judgement: What the gate found.
        shown: What is shown besides.
        source: What the file was compared with.
        precision: What a reduced precision costs.
    """
    findings = judgement.findings
    shown.goldens.save(folder / GOLDENS_FILE)
    verdict, worst = sum_up(findings.checks), findings.worst
    if verdict == "failed" and worst is not None and shown.reproducer is not None:
        worst = worst.model_copy(update={"reproducer": REPRODUCER_FILE})
        shown.reproducer.save(folder / REPRODUCER_FILE)
    report = ValidationReport(
        model_name=facts.model_name,
        source=source,
        verdict=verdict,
        checks=findings.checks,
        tolerances=findings.tolerances,
        accuracy=findings.accuracy,
        outputs=findings.outputs,
        worst=worst,
        layers=judgement.layers,
        fault=judgement.fault,
        precision=precision,
        versions=versions(),
        machine=machine(),
    )
    bundle = Bundle.seal(folder, _manifest(folder, facts, findings.accuracy, precision), report)
    write_bytes(folder / PAGE_FILE, render_page(bundle, shown.pixels).encode())
    write_bytes(folder / CARD_FILE, render_card(bundle, facts.card).encode())
    return bundle


def _manifest(folder: Path, facts: ModelFacts, accuracy: Accuracy | None, precision: PrecisionFacts | None) -> Manifest:
    model = onnx.load(folder / MODEL_FILE)
    inputs, outputs = facts.tensors
    return Manifest(
        model_name=facts.model_name,
        task="image-classification" if facts.reading is None else "amount-reading",
        labels=facts.labels,
        image=facts.image,
        reading=facts.reading,
        preprocessing=facts.preprocessing,
        temperature=facts.temperature,
        inputs=inputs,
        outputs=outputs,
        max_batch_size=facts.max_batch_size,
        precision="fp32" if precision is None else precision.precision,
        opset_version=next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
        ir_version=model.ir_version,
        weights_sha256=facts.weights_sha256 or sha256_file(folder / MODEL_FILE),
        origin=facts.origin,
        training=facts.training,
        accuracy=accuracy,
        versions=versions(),
    )
