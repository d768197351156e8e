"""What a verdict means, and what to do next, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from convoy.contract.manifest import Task
from convoy.contract.validation import CheckVerdict, ValidationReport

SYMBOLS: Final[dict[CheckVerdict, str]] = {"passed": "✓", "failed": "✗", "undecided": "?", "uncovered": "–"}


@dataclass(frozen=True)
class VerdictWords:
    """A verdict for people.

    Attributes:
        headline: What came out.
        meaning: What that says of the file.
        next_step: What to do.
    """

    headline: str
    meaning: str
    next_step: str


@dataclass(frozen=True)
class TaskWords:
    """What a kind of model is about.

    Attributes:
        kind: The model, with its article; ``{n}`` stands for how many labels it has.
        images: What it is shown.
        labels: What its labels are.
        accuracy: What its accuracy counts.
        figures: Which outputs of the worst image differ by how much.
    """

    kind: str
    images: str
    labels: str
    accuracy: str
    figures: str


_TASKS: Final[dict[Task, TaskWords]] = {
    "image-classification": TaskWords("An image classifier with {n} classes", "images", "Classes", "Top-1 accuracy", "logits"),
    "amount-reading": TaskWords(
        "A reader of amounts in fields of writing, with {n} characters", "fields", "Characters", "Share of amounts read rightly",
        "posteriors and confidence",
    ),
}  # fmt: skip


def task_words(task: Task) -> TaskWords:
    """What a kind of model is about, for people."""
    return _TASKS[task]


def source_name(report: ValidationReport) -> str:
    """What the file was compared with: the column's head."""
    return "PyTorch" if report.source == "pytorch" else "Reference"


def verdict_words(report: ValidationReport) -> VerdictWords:
    """The verdict of a report for people, with what to do about it."""
    count = {verdict: sum(check.verdict == verdict for check in report.checks) for verdict in SYMBOLS}
    n_made = len(report.checks) - count["uncovered"]
    network = "its PyTorch network" if report.source == "pytorch" else "the ONNX file that was taken up"
    uncovered = f" Not made here: {_checks(count['uncovered'])}, listed below." if count["uncovered"] else ""
    if report.verdict == "passed":
        alike = f"This ONNX file decides as {network} does"
        if report.precision is not None:
            alike = f"This {report.precision.precision} file stays within the accuracy drop that was allowed"
        return VerdictWords(
            "Passed",
            f"{alike}: {_checks(n_made)} passed.{uncovered}",
            "It can be deployed: convoy deploy with the folder that holds this page.",
        )
    if report.verdict == "failed":
        where = f" It departs first at {report.fault.node}; see below." if report.fault else ""
        return VerdictWords(
            "Failed",
            f"This ONNX file does not decide as {network} does: {count['failed']} of {_checks(n_made)} failed.{where}",
            "Do not use this file; convoy deploy refuses it. Mend what is named below, then run convoy export again.",
        )
    return VerdictWords(
        "Undecided",
        f"The evidence is too small to say whether this ONNX file decides as {network} does: "
        f"{count['undecided']} of {_checks(n_made)} could not be decided.{uncovered}",
        "It cannot be deployed. Give what the open checks ask for (most often more images), then run convoy export again.",
    )


def _checks(n: int) -> str:
    return f"{n:,} check{'' if n == 1 else 's'}"
