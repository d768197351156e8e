"""How ``convoy score`` tells people what is in a data set: a few lines, with histograms of text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from convoy.serving.scoring import ScoreSummary

_MOST_CLASSES: Final = 10
_MOST_REASONS: Final = 5
_BAR: Final = 24
_LEVELS: Final = "▁▂▃▄▅▆▇█"
_PLAIN_LEVELS: Final = ".:-=+*%#"


def describe_answers(summary: ScoreSummary) -> list[str]:
    """Accuracy, histograms, drift and failures of a data set, line by line."""
    from convoy.serving.scoring import name_of_first

    statistics = summary.statistics
    lines = [*_accuracy(statistics), *_classes(statistics)]
    if summary.n_scored:
        lines.append(_confidences(statistics["confidence_histogram"]))
    if summary.drift is not None:
        lines.append(f"drift from {summary.drift['reference']}: {summary.drift['verdict']}. {summary.drift['sentence']}")
        if summary.drift["remark"]:
            lines.append(f"  {summary.drift['remark']}")
    reasons = list(statistics["errors"].items())
    shown = reasons if len(reasons) <= _MOST_REASONS + 1 else reasons[:_MOST_REASONS]
    for reason, count in shown:
        first = name_of_first(reason, statistics["first_errors"].get(reason, ""))
        lines.append(f"failed: {count:,}  {reason}{f'  (the first: {first})' if first and count > 1 else ''}")
    if len(shown) < len(reasons):
        lines.append(f"failed: {sum(count for _, count in reasons[len(shown) :]):,}  for other reasons")
    return lines


def _accuracy(statistics: Any) -> list[str]:
    if statistics["accuracy"] is None:
        return []
    low, high = statistics["accuracy_interval_95"]
    line = f"accuracy: {statistics['accuracy']:.2%} of {statistics['n_labelled']:,} labelled images"
    line += f" (95 % interval {low:.2%} to {high:.2%})"
    if statistics["calibration_error"] is not None:
        line += f", expected calibration error {statistics['calibration_error']:.2%}"
    lines = [line]
    if statistics.get("n_foreign_labels"):
        lines.append(f"  {statistics['n_foreign_labels']:,} of them have a label that is none of the model's: they count as wrong")
    if statistics.get("most_confused"):
        most = statistics["most_confused"][0]
        lines.append(f"most confused: {_shown(most['true_label'])} taken for {_shown(most['answer'])}, {most['n']:,} times")
    return lines


def _classes(statistics: Any) -> list[str]:
    n = statistics["n_scored"]
    if "labels" not in statistics:
        return _accepted(statistics) if n else []
    counts = sorted(statistics["labels"].items(), key=lambda item: -item[1])
    shown = [(_shown(label), count) for label, count in counts[:_MOST_CLASSES] if count]
    if not shown:
        return []
    names, numbers = max(len(label) for label, _ in shown), max(len(f"{count:,}") for _, count in shown)
    bar = "█" if _can_say(_LEVELS) else "#"
    lines = ["answers:"]
    for label, count in shown:
        length = max(1, round(_BAR * count / shown[0][1]))
        lines.append(f"  {label:{names}}  {count:{numbers},}  {count / n:6.1%}  {bar * length}")
    left = counts[len(shown) :]
    if seen := sum(1 for _, count in left if count):
        lines.append(f"  and {seen:,} other classes: {sum(count for _, count in left):,}")
    if unseen := sum(1 for _, count in left if not count):
        lines.append(f"  never the answer: {unseen:,} of {len(counts):,} classes")
    return lines


def _accepted(statistics: Any) -> list[str]:
    """Of models that read amounts: how many need no person."""
    from convoy.contract.reject import shown_threshold

    threshold = statistics["threshold"]
    if threshold is None:
        n = statistics["n_scored"]
        return [f"accepted: none of {n:,} amounts, for the model has no threshold; all are for a person to read"]
    line = f"accepted: {statistics['n_accepted']:,} of {statistics['n_scored']:,} amounts ({statistics['coverage']:.2%})"
    line += f", from a confidence of {shown_threshold(threshold)} on"
    if statistics["n_accepted_labelled"]:
        wrong, n = statistics["n_accepted_wrong"], statistics["n_accepted_labelled"]
        line += f"; {wrong:,} of the {n:,} that are labelled are wrong ({statistics['accepted_error']:.2%})"
    return [f"{line}; the others are for a person to read"]


def _confidences(counts: Sequence[int]) -> str:
    levels = _LEVELS if _can_say(_LEVELS) else _PLAIN_LEVELS
    most = max(counts)
    bars = "".join(levels[min(len(levels) - 1, count * len(levels) // most)] if count else " " for count in counts)
    half = sum(counts[: len(counts) // 2])
    return f"confidences: 0 % |{bars}| 100 %; {half / sum(counts):.1%} of the answers are below 50 %"


def _shown(text: str, most: int = 40) -> str:
    from convoy.serving.scoring.source import printable

    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _can_say(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
