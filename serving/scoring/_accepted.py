"""Of a page about amounts: how many need no person, how many of these are wrong, and what other thresholds would give."""

from __future__ import annotations

from typing import Final

from convoy.contract.figures import percent
from convoy.contract.reject import least_accepted, shown_threshold
from convoy.serving.scoring._amounts import AmountStatistics
from convoy.serving.scoring._page import DASH, long_table, meter, table
from convoy.serving.scoring._statistics import N_SAMPLED

_THRESHOLDS: Final = ("Wrong at most", "Threshold", "Accepted", "Wrong among them")


def accepted_section(statistics: AmountStatistics) -> str:
    """What a bank asks first; HTML, empty where nothing was scored."""
    if not statistics.n_scored:
        return ""
    share = percent(statistics.n_accepted / statistics.n_scored)
    if statistics.threshold is None:
        said = f"the model has no threshold: all {statistics.n_scored:,} amounts are for a person."
    else:
        said = (
            f"{statistics.n_accepted:,} of {statistics.n_scored:,} amounts reach the model's threshold of "
            f"{shown_threshold(statistics.threshold)}. The others are for a person."
        )
    parts = [f"<h2>Accepted</h2><p><strong>{share}</strong>: {said}</p>"]
    interval, n = statistics.accepted_error_interval, statistics.n_accepted_labelled
    if interval is not None:
        wrong = statistics.n_accepted_wrong
        parts.append(
            f"<p><strong>{percent(wrong / n)}</strong> of those are wrong: {wrong:,} of the {n:,} that are labelled. 95 % interval "
            f"(Wilson): {percent(interval[0])} to {percent(interval[1])}.</p>"
        )
    if statistics.n_labelled:
        parts.append(_thresholds(statistics))
    return f"<section>{''.join(parts)}</section>"


def _thresholds(statistics: AmountStatistics) -> str:
    rows = []
    for error, point in statistics.operating_points().items():
        if point is None:
            rows.append([percent(error, 1), DASH, f"not {least_accepted(error):,} of so few errors", DASH])
        else:
            rows.append([percent(error, 1), shown_threshold(point.threshold), percent(point.coverage, 1), percent(point.error)])
    few = f" A sample of {N_SAMPLED:,} of them." if statistics.n_labelled > N_SAMPLED else ""
    remark = (
        f"Chosen on these {statistics.n_labelled:,} labelled inputs themselves.{few} A share of errors is spoken of where so many "
        "are accepted that a single wrong one is within it."
    )
    return f'<h3>Other thresholds</h3>{table(_THRESHOLDS, rows, numbers={1, 2, 3})}<p class="soft small">{remark}</p>'


def lengths_table(statistics: AmountStatistics) -> str:
    """How many digits the amounts have; HTML."""
    counts = sorted(statistics.lengths.items())
    most = max(count for _, count in counts)
    rows = [[f"{n}", f"{count:,}", percent(count / statistics.n_scored), meter(count / most)] for n, count in counts]
    return f"<h3>Digits</h3>{long_table(('Digits', 'Answers', 'Share', 'Bar'), rows, numbers={1, 2}, meter=3)}"
