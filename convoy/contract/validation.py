"""``validation.json``: the evidence that an ONNX file decides as the PyTorch network does."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator
from typing_extensions import Self

from convoy.contract.agreement import Tolerance
from convoy.contract.files import Document
from convoy.contract.manifest import NO_DIGEST, Accuracy, ModelName, Sha256

Verdict = Literal["passed", "failed", "undecided"]


class Check(BaseModel):
    """One thing that was checked.

    Attributes:
        name: What was checked, in a few words.
        verdict: What came out.
        expected: What passes.
        found: What was measured.
        detail: Where it failed, or what a person should know besides.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    verdict: Verdict
    expected: str
    found: str
    detail: str = ""


class ValidationReport(Document):
    """What was compared, what passes, what was found.

    Attributes:
        schema_version: The version of this document's form.
        model_name: The model's name at export.
        model_sha256: Digest of the ``model.onnx`` that was checked. A report is worth nothing for another file.
        goldens_sha256: Digest of the ``goldens.npz`` beside it.
        manifest_sha256: Digest of the ``manifest.json`` beside it, with zeros for the digest of this report: labels, image rule and
            figures are part of what was validated.
        verdict: ``passed`` where every check passed; ``failed`` where one failed; else ``undecided``.
        checks: All checks, in the order in which they ran.
        tolerances: By output name, what passes; live servers are held to the same.
        accuracy: Accuracy of both sides; None where no labelled split was at hand.
        versions: The versions of the libraries that took part.
    """

    schema_version: Literal[1] = 1
    model_name: ModelName
    model_sha256: Sha256 = NO_DIGEST
    goldens_sha256: Sha256 = NO_DIGEST
    manifest_sha256: Sha256 = NO_DIGEST
    verdict: Verdict
    checks: tuple[Check, ...]
    tolerances: dict[str, Tolerance]
    accuracy: Accuracy | None
    versions: dict[str, str]

    def why(self) -> str:
        """What did not pass, in words; empty where everything did."""
        reasons = [
            f"{check.name}: expected {check.expected}, found {check.found}{'; ' if check.detail else ''}{check.detail}."
            for check in self.checks
            if check.verdict != "passed"
        ]
        return " ".join(reason.replace("..", ".") for reason in reasons)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.verdict != sum_up(self.checks):
            raise ValueError(f"verdict: {self.verdict!r} is not what the checks say ({sum_up(self.checks)!r})")
        return self


def sum_up(checks: tuple[Check, ...] | list[Check]) -> Verdict:
    """The verdict of all checks together: no checks prove nothing."""
    verdicts = {check.verdict for check in checks}
    if "failed" in verdicts:
        return "failed"
    return "passed" if verdicts == {"passed"} else "undecided"
