"""``validation.json``: the evidence that an ONNX file decides as the network that it came from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator
from typing_extensions import Self

from convoy.contract.agreement import Tolerance
from convoy.contract.files import Document
from convoy.contract.manifest import NO_DIGEST, Accuracy, ModelName, Precision, Sha256

Verdict = Literal["passed", "failed", "undecided"]
CheckVerdict = Literal["passed", "failed", "undecided", "uncovered"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Check(_Part):
    """One thing that was checked.

    Attributes:
        name: What was checked, in a few words.
        verdict: What came out; ``uncovered`` where nothing on this machine could check it, which neither passes nor fails.
        expected: What passes.
        found: What was measured.
        detail: Where it failed, or what a person should know besides.
        limit: The largest ``measured`` that passes, where the check compares two numbers.
        measured: What was measured, in the unit of ``limit``.
    """

    name: str
    verdict: CheckVerdict
    expected: str
    found: str
    detail: str = ""
    limit: float | None = None
    measured: float | None = None


class OutputErrors(_Part):
    """How far one output of the file lies from the truth, over all compared elements.

    Attributes:
        name: The output.
        n_images: Real and edge images, compared in the largest batches on the first execution provider.
        max_abs_diff: The largest absolute difference from the source's float32 answers.
        n_truth_images: How many of the images the float64 truth was computed for.
        max_error: The file's largest absolute distance from the float64 truth; None without a truth.
        rms_error: The root mean square of that distance.
        own_max_error: The source's own float32 distance from the float64 truth, at its largest.
        own_rms_error: The root mean square of that.
        histogram_log10_edges: Edges of the bins of log10 of the absolute difference, ascending; one more than ``histogram_counts``.
        histogram_counts: Elements in each bin; what is 0 or below the first edge is in the first.
    """

    name: str
    n_images: int
    max_abs_diff: float
    n_truth_images: int = 0
    max_error: float | None = None
    rms_error: float | None = None
    own_max_error: float | None = None
    own_rms_error: float | None = None
    histogram_log10_edges: tuple[float, ...] = ()
    histogram_counts: tuple[int, ...] = ()


class ClassScore(_Part):
    """One class of one image, or one amount of one field: the source's probability and the file's."""

    label: str
    expected: float
    actual: float


class WorstImage(_Part):
    """The image on which source and file lie furthest apart.

    Attributes:
        name: Which one: "image 17 of digits test", "edge image: black", "field 3 of checks".
        true_label: What it shows, where that is known.
        max_abs_diff: The largest difference of its logits, or of a field's posteriors and confidence; None if one is not finite.
        scores: The likeliest classes of either side, at most ten, or its amounts, the source's likeliest first.
        reproducer: The file beside the report that holds the image with the expected outputs; empty where all passed.
    """

    name: str
    true_label: str | None
    max_abs_diff: float | None
    scores: tuple[ClassScore, ...]
    reproducer: str = ""


class LayerError(_Part):
    """How far one intermediate tensor of the file lies from the network's, on one image.

    Attributes:
        node: The ONNX node that makes it.
        op_type: Its operator.
        module: The path of the PyTorch module that it came from ("network.layer1.0.bn1"); empty where unknown.
        output: The tensor's name.
        max_abs_diff: The largest absolute difference from the source's float64 value.
        scale: The largest absolute value in the source's.
    """

    node: str
    op_type: str
    module: str
    output: str
    max_abs_diff: float
    scale: float


class Fault(_Part):
    """Where the file first departs from the network.

    Attributes:
        node: The first ONNX node whose output departs while its inputs agree.
        op_type: Its operator.
        module: The path of the PyTorch module that it came from; empty where unknown.
        output: The tensor that departs first.
        max_abs_diff: By how much; None where it is not finite or has another shape.
        allowed: The largest difference that float32 arithmetic explains there.
        image: The input that shows it, as in ``WorstImage.name``.
        cause: The likeliest cause, in a sentence.
        suspects: Other nodes that could be it, where no single one can be named.
    """

    node: str
    op_type: str
    module: str
    output: str
    max_abs_diff: float | None
    allowed: float | None
    image: str
    cause: str
    suspects: tuple[str, ...] = ()


class Speed(_Part):
    """One file, measured in ONNX Runtime on this machine.

    Attributes:
        size_bytes: Of the ONNX file.
        latency_ms: Median of single images, in milliseconds.
        throughput_ips: Images a second in batches of ``batch_size``.
        batch_size: Of the throughput.
        provider: The execution provider.
    """

    size_bytes: int
    latency_ms: float
    throughput_ips: float
    batch_size: int
    provider: str


class Flip(_Part):
    """An image on which the reduced precision decides another way than float32.

    Attributes:
        index: Its index in the split.
        true_label: What it shows.
        before: What float32 answers.
        after: What the reduced precision answers.
    """

    index: int
    true_label: str
    before: str
    after: str


class PrecisionFacts(_Part):
    """What a reduced precision costs and brings, beside float32 in the same run.

    Attributes:
        precision: The reduced precision.
        split: The images that were decided on.
        n: How many.
        float32_accuracy: As a fraction.
        accuracy: Of the reduced precision, as a fraction.
        accuracy_drop: The difference (positive: worse).
        accuracy_drop_upper: The upper end of its one-sided 95 % confidence interval, from the paired decisions.
        max_accuracy_drop: What was allowed.
        flips: The images whose answer changed.
        kept_float32: Nodes that stay in float32, with the reason.
        calibration: Which images fixed the quantisation ranges, and how many; empty for fp16.
        float32_speed: The float32 file.
        speed: The converted one.
        remarks: What a person should know: arithmetic that this machine does not have, an int8 that is slower.
    """

    precision: Precision
    split: str
    n: int
    float32_accuracy: float
    accuracy: float
    accuracy_drop: float
    accuracy_drop_upper: float
    max_accuracy_drop: float
    flips: tuple[Flip, ...]
    kept_float32: dict[str, str]
    calibration: str = ""
    float32_speed: Speed
    speed: Speed
    remarks: tuple[str, ...] = ()


class ValidationReport(Document):
    """What was compared, what passes, what was found. docs/validation.md explains each field.

    Attributes:
        schema_version: The version of this document's form; documents of version 1 are read too.
        model_name: The model's name at export.
        model_sha256: Digest of the ``model.onnx`` that was checked. A report is worth nothing for another file.
        goldens_sha256: Digest of the ``goldens.npz`` beside it.
        manifest_sha256: Digest of the ``manifest.json`` beside it, with zeros for the digest of this report: labels, image rule and
            figures are part of what was validated.
        source: What the file was compared with: the PyTorch network that it came from, or, for an ONNX file that others made, that
            file by other means (the ONNX reference evaluator, ONNX Runtime without optimisation).
        verdict: ``passed`` where every check passed, but for uncovered ones; ``failed`` where one failed; else ``undecided``.
        checks: All checks, in the order in which they ran.
        tolerances: By output name, what passes; live servers are held to the same.
        accuracy: Accuracy of both sides; None where no labelled split was at hand.
        outputs: The errors of each output.
        worst: The image with the largest difference.
        layers: Errors by layer, in the graph's order, on ``worst``.
        fault: Where the file departs from the network, where it does.
        precision: What a reduced precision costs; None for float32.
        versions: The versions of the libraries that took part.
        machine: Where the gate ran.
    """

    schema_version: Literal[2] = 2
    model_name: ModelName
    model_sha256: Sha256 = NO_DIGEST
    goldens_sha256: Sha256 = NO_DIGEST
    manifest_sha256: Sha256 = NO_DIGEST
    source: Literal["pytorch", "onnx"] = "pytorch"
    verdict: Verdict
    checks: tuple[Check, ...]
    tolerances: dict[str, Tolerance]
    accuracy: Accuracy | None
    outputs: tuple[OutputErrors, ...] = ()
    worst: WorstImage | None = None
    layers: tuple[LayerError, ...] = ()
    fault: Fault | None = None
    precision: PrecisionFacts | None = None
    versions: dict[str, str]
    machine: str = ""

    @classmethod
    def migrate(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Version 1 had neither source nor errors by output and layer: everything came from PyTorch."""
        return {**fields, "schema_version": 2} if fields.get("schema_version") == 1 else fields

    def why(self) -> str:
        """What did not pass, in words; empty where everything did."""
        reasons = [
            f"{check.name}: expected {check.expected}, found {check.found}{'; ' if check.detail else ''}{check.detail}."
            for check in self.checks
            if check.verdict in ("failed", "undecided")
        ]
        return " ".join(reason.replace("..", ".") for reason in reasons)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.verdict != sum_up(self.checks):
            raise ValueError(f"verdict: {self.verdict!r} is not what the checks say ({sum_up(self.checks)!r})")
        return self


def sum_up(checks: tuple[Check, ...] | list[Check]) -> Verdict:
    """The verdict of all checks together: no checks prove nothing, and what is uncovered neither passes nor fails."""
    verdicts = {check.verdict for check in checks}
    if "failed" in verdicts:
        return "failed"
    return "passed" if "passed" in verdicts and "undecided" not in verdicts else "undecided"
