"""One row of the export matrix, measured in a process of its own, so that its peak memory is its own."""

from __future__ import annotations

import contextlib
import io
import logging
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnxruntime
import torch
from pydantic import BaseModel, ConfigDict

from benchmarks._networks import Subject, build_subject
from convoy.contract.agreement import Tolerance, compare
from convoy.contract.errors import ConvoyError
from convoy.contract.manifest import INPUT_NAME, LOGITS_NAME, PROBABILITIES_NAME
from convoy.contract.validation import ValidationReport
from convoy.export import EvaluationSet, ModelFacts, export_classifier
from convoy.export.bundling import Reduction
from convoy.export.graph.servable import Servable

MAX_ACCURACY_DROP: Final = 0.05
"""Of the reduced precisions: 128 images cannot prove less (with no flip at all, the bound is 2.1 %)."""
MAX_BATCH_SIZE: Final = 16
_PLAIN_BATCHES: Final = (1, 2, 7)


class Reduced(BaseModel):
    """What became of a reduced precision.

    Attributes:
        verdict: Of the whole report; "error" where there is none.
        why: What did not pass, or the error.
        seconds: Conversion and gate, without float32's.
        accuracy_drop: Of top-1 accuracy, as a fraction.
        speed_up: Throughput over float32's, in ONNX Runtime on the CPU.
        size_ratio: The file's size over float32's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: str
    why: str = ""
    seconds: float = 0.0
    accuracy_drop: float | None = None
    speed_up: float | None = None
    size_ratio: float | None = None


class Row(BaseModel):
    """What was measured of one network.

    Attributes:
        network: Its name.
        size_px: The height and width of its images.
        images: Where they come from, and how many.
        verdict: Of our gate; "error" where there was no report.
        why: What did not pass, or the error.
        export_s: From the network to the ONNX model.
        gate_s: Everything after that.
        peak_mib: The most memory that the process had, PyTorch and the network included.
        base_mib: What it had before the export: PyTorch, the network, the images.
        file_mib: Of ``model.onnx``.
        accuracy: Of the network on its images; None where there was no report.
        plain: What ``torch.onnx.export`` said: "exported", or its error.
        plain_right: Whether its file answers as the network does in batches of 1, 2 and 7; None where there is no file.
        plain_why: Where it does not.
        fp16: The reduced precisions; None where they were not asked for.
        int8: The same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: str
    size_px: int
    images: str
    verdict: Literal["passed", "failed", "undecided", "error"]
    why: str = ""
    export_s: float = 0.0
    gate_s: float = 0.0
    peak_mib: float = 0.0
    base_mib: float = 0.0
    file_mib: float = 0.0
    accuracy: float | None = None
    plain: str = ""
    plain_right: bool | None = None
    plain_why: str = ""
    fp16: Reduced | None = None
    int8: Reduced | None = None


class _Clock:
    """Takes the time at which the export says what it does next."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.told: list[float] = []

    def __call__(self, message: str) -> None:
        del message
        self.told.append(time.perf_counter())

    def split(self) -> tuple[float, float]:
        """Seconds until the graph was there, and since: the first message announces the export, the second what follows it."""
        now = time.perf_counter()
        gate = self.told[1] if len(self.told) > 1 else now
        return gate - self.started, now - gate


def measure(name: str, n_images: int, size_px: int | None, precisions: list[str]) -> Row:
    """Export a network, run the gate, and see what torch's exporter alone makes of it.

    Args:
        name: One of ``network_names()``.
        n_images: How many images the gate gets.
        size_px: Their height and width; None takes the network's own.
        precisions: Which reduced ones to try.
    """
    subject = build_subject(name, n_images, size_px=size_px)
    fields = {
        "network": name,
        "size_px": subject.image.height_px,
        "images": f"{len(subject.test)} of {subject.source}",
        "base_mib": _peak_mib(),
    }
    with tempfile.TemporaryDirectory() as folder:
        clock = _Clock()
        try:
            bundle = export_classifier(
                subject.classifier, _facts(subject), _evaluation(subject), Path(folder) / "fp32", on_progress=clock
            )
        except ConvoyError as error:
            export_s, gate_s = clock.split()
            row = Row(**fields, verdict="error", why=str(error), export_s=export_s, gate_s=gate_s, peak_mib=_peak_mib())
            return row.model_copy(update=_plain(subject, None))
        export_s, gate_s = clock.split()
        report = bundle.report
        row = Row(
            **fields,
            verdict=report.verdict,
            why="" if report.verdict == "passed" else report.why(),
            export_s=export_s,
            gate_s=gate_s,
            peak_mib=_peak_mib(),
            file_mib=bundle.model_path.stat().st_size / 2**20,
            accuracy=report.accuracy.pytorch if report.accuracy else None,
        )
        found = {precision: _reduced(subject, precision, Path(folder), gate_s + export_s) for precision in precisions}
        return row.model_copy(update={**found, **_plain(subject, report)})


def _facts(subject: Subject) -> ModelFacts:
    return ModelFacts(
        model_name=subject.name,
        labels=subject.labels,
        image=subject.image,
        preprocessing=subject.preprocessing,
        max_batch_size=MAX_BATCH_SIZE,
    )


def _evaluation(subject: Subject) -> EvaluationSet:
    return EvaluationSet(subject.source, subject.test, subject.test_labels)


def _peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _reduced(subject: Subject, precision: str, folder: Path, float32_s: float) -> Reduced:
    start = time.perf_counter()
    reductions = {
        "fp16": Reduction("fp16", MAX_ACCURACY_DROP),
        "int8": Reduction("int8", MAX_ACCURACY_DROP, subject.train),
    }
    reduction = reductions[precision]
    try:
        bundle = export_classifier(
            subject.classifier, _facts(subject), _evaluation(subject), folder / precision, reduction=reduction
        )
    except ConvoyError as error:
        return Reduced(verdict="error", why=str(error), seconds=time.perf_counter() - start)
    report = bundle.report
    facts = report.precision
    return Reduced(
        verdict=report.verdict,
        why="" if report.verdict == "passed" else report.why(),
        seconds=max(0.0, time.perf_counter() - start - float32_s),
        accuracy_drop=facts.accuracy_drop if facts else None,
        speed_up=facts.speed.throughput_ips / facts.float32_speed.throughput_ips if facts else None,
        size_ratio=facts.speed.size_bytes / facts.float32_speed.size_bytes if facts else None,
    )


def _plain(subject: Subject, report: ValidationReport | None) -> dict[str, object]:
    """``torch.onnx.export`` of the same module, as its documentation says, and whether its file is right for any batch."""
    example = torch.from_numpy(subject.test[:1])
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            logging.disable(logging.CRITICAL)
            program = torch.onnx.export(
                Servable(subject.classifier).eval(),
                (example,),
                dynamo=True,
                input_names=[INPUT_NAME],
                output_names=[LOGITS_NAME, PROBABILITIES_NAME],
                dynamic_shapes={INPUT_NAME: {0: "batch"}},
            )
            assert program is not None
            model: bytes = program.model_proto.SerializeToString()
    except Exception as error:  # noqa: BLE001 the exporter raises many kinds, and what it says is what is measured
        return {"plain": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:200]}
    return {"plain": "exported", **_compare(subject, model, report)}


def _compare(subject: Subject, model: bytes, report: ValidationReport | None) -> dict[str, object]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    faults = []
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 ONNX Runtime's exceptions have no common base
        return {"plain_right": False, "plain_why": f"ONNX Runtime refuses it: {error}"[:200]}
    for n in _PLAIN_BATCHES:
        images = subject.test[:n]
        with torch.inference_mode():
            expected = subject.classifier(torch.from_numpy(images)).numpy()
        try:
            actual = session.run([LOGITS_NAME], {INPUT_NAME: images})[0]
        except Exception as error:  # noqa: BLE001 the same
            faults.append(f"batch of {n}: {str(error).splitlines()[0][:120]}")
            continue
        tolerance = report.tolerances[LOGITS_NAME] if report else Tolerance(atol=1e-4 * float(np.abs(expected).max()), rtol=0)
        if actual.shape != expected.shape:
            faults.append(f"batch of {n}: logits {actual.shape}")
        elif not (agreement := compare(expected, actual, tolerance)).passed:
            faults.append(f"batch of {n}: max_abs_diff {agreement.max_abs_diff:.3g}")
    return {"plain_right": not faults, "plain_why": "; ".join(faults)}


if __name__ == "__main__":
    name, n_images, size_px, *precisions = sys.argv[1:]
    sys.stdout.write(measure(name, int(n_images), int(size_px) or None, precisions).model_dump_json() + "\n")
