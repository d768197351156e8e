"""A scored set as one HTML page that needs nothing else: no script, nothing loaded from elsewhere.

It is made here by hand, for Jinja and Matplotlib are not among what scoring needs.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from convoy.contract.errors import DataError, ImageError, UsageError
from convoy.contract.figures import figure, interval95, percent
from convoy.contract.files import new_file
from convoy.contract.image import ImageSpec, open_image, to_pixels
from convoy.contract.stylesheet import csp_digest, stylesheet
from convoy.serving.scoring._accepted import accepted_section, lengths_table
from convoy.serving.scoring._amounts import AmountStatistics
from convoy.serving.scoring._page import DASH, bars, long_table, meter, or_dash, shortened, svg, table, text
from convoy.serving.scoring._statistics import N_BINS, N_CONFUSED, Example, Statistics
from convoy.serving.scoring.source import Entry, Loaded, printable
from convoy.serving.scoring.source._filesystem import protocol_of

if TYPE_CHECKING:
    from convoy.serving.scoring._drift import Drift
    from convoy.serving.scoring._listing import Listing
    from convoy.serving.scoring._run import ScoreSummary
    from convoy.serving.scoring.source import Source

THUMBNAIL_PX: Final = 96
FIELD_PX: Final = 224
"""The same of fields, which are wide and low."""
_MOST_MATRIX: Final = 20
_SHADES: Final = 9
_RULES: Final = (
    "PSI and KS below 0.1: little has changed; to 0.25: some; above: much. The PSI counts half an input more in each class. "
    "A p-value below 0.05 says that chance alone seldom makes such a difference, not that it is large."
)


@dataclass(frozen=True)
class Thumbnail:
    """An input, small.

    Attributes:
        png: A PNG file; empty where there is none.
        width_px: Its width.
        height_px: Its height.
        reason: Why there is none.
    """

    png: bytes
    width_px: int
    height_px: int
    reason: str


def check_report_path(path: Path | None, out: str) -> None:
    """See, before hours of work, that a page can be written.

    Raises:
        UsageError: It cannot be.
    """
    if path is None:
        return
    shown = printable(str(path))
    if path.is_dir():
        raise UsageError(f"{shown}: expected the name of an HTML file for the report, found a folder.")
    folder = path.absolute().parent
    if protocol_of(out) is None and folder.resolve().is_relative_to(Path(out).resolve()):
        raise UsageError(f"{shown}: expected a place outside of the data set {printable(out)}, whose files are its rows.")
    if not folder.is_dir():
        raise UsageError(f"{shown}: the folder {printable(str(folder))} does not exist; make it first.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{shown}: nothing can be written to {printable(str(folder))}. Name another place.")


def take_thumbnails(
    source: Source, listing: Listing, statistics: Statistics, box: tuple[int, int, int, int] | None = None
) -> dict[int, Thumbnail]:
    """The inputs that stand out, read again one after the other; each that cannot be read any more has its reason.

    Args:
        source: The source.
        listing: What was listed of it.
        statistics: Says which.
        box: What is shown of each; None: all of it.

    Returns:
        By row.
    """
    most_px = FIELD_PX if isinstance(statistics, AmountStatistics) else THUMBNAIL_PX
    sheets = (statistics.least_confident, statistics.slowest, statistics.surest_wrong)
    rows = sorted({example.row for sheet in sheets for example in sheet})
    found: dict[int, Thumbnail] = {}
    chunks: dict[int, list[int]] = {}
    for row in rows:
        chunks.setdefault(row // listing.chunk_rows, []).append(row)
    entries: list[Entry] = []
    for chunk, some in chunks.items():
        listed = listing.chunk(chunk)
        entries += [listed[row % listing.chunk_rows] for row in some]
    try:
        for row, loaded in zip(rows, source.load(entries), strict=True):
            found[row] = make_thumbnail(loaded, most_px, box)
    except (DataError, OSError) as error:
        for row in rows:
            found.setdefault(row, Thumbnail(b"", 0, 0, printable(str(error))))
    return found


def make_thumbnail(loaded: Loaded, most_px: int = THUMBNAIL_PX, box: tuple[int, int, int, int] | None = None) -> Thumbnail:
    """An input, or what lies in a box on it, no side of it longer than ``most_px``."""
    try:
        if isinstance(loaded, ImageError):
            raise loaded
        opened = open_image(loaded)
        if box is not None:
            left, top, width, height = box
            if left + width > opened.width or top + height > opened.height:
                raise ImageError(f"the image: expected one that holds the box {box}, found {opened.width}x{opened.height} pixels.")
            opened = opened.crop((left, top, left + width, top + height))
        scale = min(1.0, most_px / max(opened.size))
        width, height = (max(1, round(side * scale)) for side in opened.size)
        spec = ImageSpec(height_px=height, width_px=width, channels=3, resize="stretch")
        file = io.BytesIO()
        Image.fromarray(to_pixels(opened, spec)).save(file, "PNG", optimize=True)
    except ImageError as error:
        return Thumbnail(b"", 0, 0, printable(str(error)))
    return Thumbnail(file.getvalue(), width, height, "")


def write_report(
    path: Path, summary: ScoreSummary, statistics: Statistics, drift: Drift | None, thumbnails: Mapping[int, Thumbnail]
) -> None:
    """Write the page to ``path``, whole or not at all; an earlier one there gives way.

    Raises:
        OSError: The place refuses it.
    """
    page = render_report(summary, statistics, drift, thumbnails, when=datetime.now(timezone.utc))
    with new_file(path) as file:
        file.write(page.encode("utf-8", "replace"))


def render_report(
    summary: ScoreSummary,
    statistics: Statistics,
    drift: Drift | None,
    thumbnails: Mapping[int, Thumbnail],
    *,
    when: datetime,
) -> str:
    """The page.

    Args:
        summary: What was done.
        statistics: What is in the data set.
        drift: How far it lies from a reference; None where none was named.
        thumbnails: The inputs that stand out, by row.
        when: The time that the page names.
    """
    css = stylesheet() + _CSS
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{csp_digest(css)}'"
    title = printable(f"{summary.model_name} on {summary.source}")
    labelled = bool(statistics.n_labelled or statistics.n_foreign)
    sections = [
        _head(summary, statistics, drift),
        _failures(summary, statistics),
        _drift(drift) if drift is not None else "",
        accepted_section(statistics) if isinstance(statistics, AmountStatistics) else "",
        _answers(statistics, drift),
        _accuracy(statistics) if labelled else "",
        _calibration(statistics) if statistics.n_labelled else "",
        _confusions(statistics) if statistics.n_labelled and statistics.labels else "",
        *_sheets(statistics, thumbnails),
        _about(summary, when),
    ]
    body = "\n".join(section for section in sections if section)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{css}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _sheets(statistics: Statistics, thumbnails: Mapping[int, Thumbnail]) -> Iterator[str]:
    least = "The answers with the smallest probability."
    yield _sheet("Least confident", least, statistics.least_confident, thumbnails, statistics)
    wrong = "The wrong answers of which the model was surest: is the model wrong here, or the label?"
    yield _sheet("Surest mistakes", wrong, statistics.surest_wrong, thumbnails, statistics)
    slow = "The answers that took longest. An input's latency is that of the request that it travelled in, with others."
    yield _sheet("Slowest", slow, statistics.slowest, thumbnails, statistics, slow=True)


def _head(summary: ScoreSummary, statistics: Statistics, drift: Drift | None) -> str:
    facts = [("Inputs", f"{summary.n:,}"), ("Scored", f"{summary.n_scored:,}"), ("Failed", f"{summary.n_failed:,}")]
    if isinstance(statistics, AmountStatistics) and statistics.n_scored:
        facts.append(("Accepted", percent(statistics.n_accepted / statistics.n_scored)))
    if statistics.accuracy is not None and statistics.accuracy_interval is not None:
        low, high = statistics.accuracy_interval
        facts.append(("Accuracy", f"{percent(statistics.accuracy)} ({percent(low)} to {percent(high)})"))
    if statistics.calibration_error is not None:
        facts.append(("Calibration error (ECE)", percent(statistics.calibration_error)))
    if drift is not None:
        facts.append(("Drift", drift.verdict))
    shown = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return (
        f"<header><section><h1>{text(summary.source)}</h1>\n"
        f"<p>scored with {text(summary.model_name)} version {escape(summary.model_version)}</p>\n"
        f'<dl class="facts">{shown}</dl></section></header>'
    )


def _about(summary: ScoreSummary, when: datetime) -> str:
    fresh = summary.n - summary.n_resumed
    rows = [
        ("Model", f"{text(summary.model_name)} version {escape(summary.model_version)}"),
        ("Digest of its ONNX file", f'<span class="code">{escape(summary.model_sha256 or "not told by the server")}</span>'),
        ("Source", text(summary.source)),
        ("Data set", text(summary.out)),
        ("Taken up", f"{fresh:,} inputs in {summary.duration_s:,.1f} s ({summary.throughput_ips:,.0f} images/s)" if fresh else ""),
        ("By earlier runs", f"{summary.n_resumed:,} inputs" if summary.n_resumed else ""),
        ("This page", f"{when:%Y-%m-%d %H:%M} UTC"),
    ]
    shown = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows if value)
    return f'<section><h2>About the run</h2><dl class="pairs">{shown}</dl></section>'


def _failures(summary: ScoreSummary, statistics: Statistics) -> str:
    tables = []
    for title, what, counts in (
        ("Failed", "These inputs have a row with the reason, and no answer.", statistics.errors),
        ("Skipped", "These are in the source and are no inputs: they have no row.", dict(summary.skipped)),
    ):
        if counts:
            rows = [[text(reason), f"{count:,}"] for reason, count in sorted(counts.items(), key=lambda item: -item[1])]
            tables.append(f'<h2>{title}</h2><p class="soft">{what}</p>{table(("Reason", "Inputs"), rows, numbers={1})}')
    return f"<section>{''.join(tables)}</section>" if tables else ""


def _drift(drift: Drift) -> str:
    parts = [
        f'<h2>Drift: {drift.verdict}</h2><p>{text(drift.sentence)}</p><p class="soft">Compared with {text(drift.reference)}.</p>',
        f'<p class="small">{text(drift.remark)}</p>' if drift.remark else "",
    ]
    for labels in drift.labels:
        g = DASH if labels.g is None else f"G = {figure(labels.g)}, {labels.degrees} degrees of freedom, {_p_value(labels.p_value)}"
        rows = [
            ["Population stability index (PSI)", f"{figure(labels.psi)}; by chance alone about {figure(labels.psi_by_chance)}"],
            ["Jensen-Shannon distance", figure(labels.js_distance)],
            ["G-test", f"no p-value: {text(labels.no_p_value)}" if labels.no_p_value else g],
        ]
        parts.append(f"<h3>Classes, against the {text(labels.basis)}</h3>{table(('Statistic', 'Value'), rows)}")
    if drift.confidence is not None:
        confidence = drift.confidence
        rows = [
            ["Kolmogorov-Smirnov statistic (KS)", f"{figure(confidence.ks)}, {_p_value(confidence.p_value)}"],
            ["Mean", f"{percent(confidence.mean)} instead of {percent(confidence.mean_reference)}"],
        ]
        title = f"Confidences, against those of {confidence.n_reference:,} answers"
        parts.append(f"<h3>{title}</h3>{table(('Statistic', 'Value'), rows)}")
    parts.append(f'<p class="soft small">{_RULES}</p>')
    shifts = drift.labels[0].shifts
    if shifts:
        moved = [[text(shift.label), percent(shift.before), percent(shift.now)] for shift in shifts]
        parts.append(f"<h3>Classes that have changed most</h3>{table(('Class', 'Reference', 'Now'), moved, numbers={1, 2})}")
    kind = {"little": "passed", "much": "failed"}.get(drift.verdict, "undecided")
    return f'<section class="verdict {kind}">{"".join(parts)}</section>'


def _p_value(p: float | None) -> str:
    return f"p {DASH}" if p is None else "p &lt; 1e-9" if p < 1e-9 else f"p = {figure(p)}"


def _answers(statistics: Statistics, drift: Drift | None) -> str:
    if not statistics.n_scored:
        return "<section><h2>Answers</h2><p>Nothing was scored.</p></section>"
    bins = [(int(n), f"{100 * b / N_BINS:g} to {100 * (b + 1) / N_BINS:g} %") for b, n in enumerate(statistics.confidences)]
    histogram = table(("Confidence", "Answers"), [[name, f"{n:,}"] for n, name in bins], numbers={1})
    percentiles = (("50 %", 0.5), ("90 %", 0.9), ("99 %", 0.99), ("99.9 %", 0.999))
    latencies = [[f"{name} of the answers within", f"{figure(statistics.latency_ms(share))} ms"] for name, share in percentiles]
    latencies.append(["all of them within", f"{figure(statistics.slowest[0].latency_ms)} ms"])
    return (
        f'<section><h2>Answers</h2><div class="charts"><figure><figcaption>Confidences</figcaption>'
        f"{bars(statistics.confidences, 'Answers by their probability')}"
        f"<details><summary>As a table</summary>{histogram}</details></figure>"
        f"<figure><figcaption>Latencies</figcaption>{table(('Share', 'Latency'), latencies, numbers={1})}</figure></div>"
        f"{lengths_table(statistics) if isinstance(statistics, AmountStatistics) else _classes(statistics, drift)}</section>"
    )


def _classes(statistics: Statistics, drift: Drift | None) -> str:
    order = np.argsort(-statistics.counts, kind="stable").tolist()
    shares = (statistics.counts / statistics.n_scored).tolist()
    before = None if drift is None else drift.reference_shares
    most = max([*shares, *(before or ())])
    rows = []
    for i in order:
        cells = [text(statistics.labels[i]), f"{int(statistics.counts[i]):,}", percent(shares[i])]
        if before is not None:
            cells.append(percent(before[i]))
        rows.append([*cells, meter(shares[i] / most, None if before is None else before[i] / most)])
    heads = [
        "Class",
        "Answers",
        "Share",
        *([] if before is None else ["Reference"]),
        "Bar" if before is None else "Bar, reference |",
    ]
    numbers = {1, 2, 3} if drift is not None else {1, 2}
    n_unseen = int(np.count_nonzero(statistics.counts == 0))
    unseen = f'<p class="soft">{n_unseen:,} of {len(rows):,} classes were never the answer.</p>' if n_unseen else ""
    return f"<h3>Classes</h3>{unseen}{long_table(heads, rows, numbers=numbers, meter=len(heads) - 1)}"


def _accuracy(statistics: Statistics) -> str:
    n = statistics.n_labelled + statistics.n_foreign
    assert statistics.accuracy is not None
    low, high = interval95(statistics.accuracy, n)
    said = (
        f"{statistics.n_right:,} of {n:,} labelled inputs were answered rightly. 95 % interval (Wilson): {percent(low)} to "
        f"{percent(high)}."
    )
    parts = [f"<h2>Accuracy</h2><p><strong>{percent(statistics.accuracy)}</strong>: {said}</p>"]
    if statistics.n_foreign:
        parts.append(
            f"<p>{statistics.n_foreign:,} of them have a label that is none of the model's classes. They count as wrong here, and "
            "are not among the classes, the calibration and the confusions below.</p>"
        )
    classes = [counts for counts in statistics.classes() if counts.n or counts.n_answered]
    # A class of one image that was missed says little: what is surely bad comes first.
    classes.sort(
        key=lambda counts: (2.0, 0.0) if counts.recall is None else (interval95(counts.recall, counts.n)[1], counts.recall)
    )
    rows = []
    for counts in classes:
        interval = DASH
        if counts.recall is not None:
            interval = " to ".join(percent(end, 1) for end in interval95(counts.recall, counts.n))
        cells = [text(counts.label), f"{counts.n:,}", f"{counts.n_answered:,}", or_dash(counts.recall), interval]
        rows.append([*cells, or_dash(counts.precision)])
    heads = ("Class", "Inputs", "Answers", "Recall", "95 % interval", "Precision")
    if rows:
        parts.append(f"<h3>Classes, those first whose recall is surely bad</h3>{long_table(heads, rows, numbers={1, 2, 3, 4, 5})}")
    return f"<section>{''.join(parts)}</section>"


def _calibration(statistics: Statistics) -> str:
    assert statistics.calibration_error is not None
    n = np.maximum(statistics.labelled, 1)
    accuracy, confidence = statistics.right / n, statistics.probability_sums / n
    rows = [
        [f"{100 * b / N_BINS:g} to {100 * (b + 1) / N_BINS:g} %", f"{count:,}", percent(confidence[b], 1), percent(accuracy[b], 1)]
        for b, count in enumerate(statistics.labelled.tolist())
        if count
    ]
    heads = ("Confidence", "Labelled inputs", "Mean confidence", "Share right")
    return (
        f"<section><h2>Calibration</h2><p>Does 80 % mean right in 80 of 100? Expected calibration error (ECE, {N_BINS} bins of "
        f"equal width): <strong>{percent(statistics.calibration_error)}</strong>.</p>\n"
        f'<div class="charts"><figure class="square"><figcaption>Reliability</figcaption>'
        f"{_reliability(statistics.labelled, accuracy, confidence)}</figure>"
        f"<figure>{table(heads, rows, numbers={1, 2, 3})}</figure></div></section>"
    )


def _confusions(statistics: Statistics) -> str:
    parts = []
    if len(statistics.labels) <= _MOST_MATRIX:
        parts.append(f"<h2>Confusion matrix</h2>{_matrix(statistics.confusion(), statistics.labels)}")
    pairs = statistics.most_confused(N_CONFUSED)
    if pairs:
        of = {counts.label: counts.n for counts in statistics.classes()}
        rows = [[text(p.true_label), text(p.answer), f"{p.n:,}", percent(p.n / of[p.true_label], 1)] for p in pairs]
        heads = ("Shows", "Taken for", "Inputs", "Of the class")
        parts.append(f"<h2>Most confused</h2>{long_table(heads, rows, numbers={2, 3}, most=10)}")
    return f"<section>{''.join(parts)}</section>" if parts else ""


def _matrix(confusion: npt.NDArray[np.int64], labels: Sequence[str]) -> str:
    totals = confusion.sum(axis=1)
    head = "".join(f'<th scope="col" class="n">{text(label)}</th>' for label in labels)
    rows = []
    for i, label in enumerate(labels):
        cells = []
        for j, count in enumerate(confusion[i].tolist()):
            share = count / totals[i] if totals[i] else 0.0
            shade = min(_SHADES, 1 + int(share * _SHADES)) if count else 0
            kind = ("right" if i == j else "wrong") + str(shade) if shade else "none"
            cells.append(f'<td class="n {kind}">{f"{count:,}" if count else "·"}</td>')
        rows.append(f'<tr><th scope="row">{text(label)}</th>{"".join(cells)}</tr>')
    return (
        f'<p class="soft">Rows: what the inputs show. Columns: what they were taken for. The shade is the share of the row.</p>'
        f'<div class="scroll"><table class="matrix"><thead><tr><th scope="col">Shows</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _sheet(
    title: str,
    what: str,
    examples: Sequence[Example],
    thumbnails: Mapping[int, Thumbnail],
    statistics: Statistics,
    *,
    slow: bool = False,
) -> str:
    if not examples:
        return ""
    kind = " fields" if isinstance(statistics, AmountStatistics) else ""
    items = []
    for example in examples:
        truth = ""
        if example.true_label is not None:
            right = statistics.is_right(example.label, example.true_label)
            mark = (
                '<span class="mark passed">right</span>'
                if right
                else f'<span class="mark failed">shows {text(example.true_label)}</span>'
            )
            truth = f"<br>{mark}"
        took = f"<br><strong>{figure(example.latency_ms)} ms</strong>" if slow else ""
        items.append(
            f'<li>{_picture(thumbnails.get(example.row), example)}<span class="answer">{text(example.label or "nothing")} · '
            f'{percent(example.probability, 1)}</span>{truth}{took}<br><span class="soft small">{text(example.source)}</span>'
            f"{_not_shown(thumbnails.get(example.row), example)}</li>"
        )
    return f'<section><h2>{title}</h2><p class="soft">{what}</p><ul class="contact{kind}">{"".join(items)}</ul></section>'


def _not_shown(thumbnail: Thumbnail | None, example: Example) -> str:
    """Why there is no picture, where there is none."""
    if thumbnail is not None and thumbnail.png:
        return ""
    reason = "no picture was taken" if thumbnail is None else thumbnail.reason
    reason = reason.partition(f"{example.source}: ")[2] or reason
    return f'<br><span class="small">not shown: {text(shortened(reason, 120))}</span>'


def _picture(thumbnail: Thumbnail | None, example: Example) -> str:
    if thumbnail is None or not thumbnail.png:
        return '<span class="frame gone">not shown</span>'
    alt = f"input {example.source}: answered {example.label}, {percent(example.probability, 1)}"
    times = max(1, THUMBNAIL_PX // max(thumbnail.width_px, thumbnail.height_px))
    data = base64.b64encode(thumbnail.png).decode()
    pixelated = ' class="pixelated"' if times > 1 else ""
    return (
        f'<span class="frame"><img{pixelated} src="data:image/png;base64,{data}" width="{thumbnail.width_px * times}" '
        f'height="{thumbnail.height_px * times}" alt="{escape(printable(alt))}"></span>'
    )


def _reliability(n: npt.NDArray[np.int64], accuracy: npt.NDArray[np.float64], confidence: npt.NDArray[np.float64]) -> str:
    size, left, bottom, top = 360, 48, 44, 8
    across, up = size - left - 8, size - bottom - top

    def x(share: float) -> float:
        return left + share * across

    def y(share: float) -> float:
        return top + (1 - share) * up

    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        anchor = "start" if share == 0 else "end" if share == 1 else "middle"
        parts += [
            f'<line class="grid" x1="{x(0):.1f}" y1="{y(share):.1f}" x2="{x(1):.1f}" y2="{y(share):.1f}"/>',
            f'<text x="{left - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{100 * share:g} %</text>',
            f'<text x="{x(share):.1f}" y="{size - bottom + 17}" text-anchor="{anchor}">{100 * share:g} %</text>',
        ]
    for b in np.flatnonzero(n).tolist():
        low, high = interval95(float(accuracy[b]), int(n[b]))
        middle = x((b + 0.5) / N_BINS)
        tall = y(0) - y(accuracy[b])
        place = f'x="{x(b / N_BINS) + 1:.1f}" y="{y(accuracy[b]):.1f}"'
        parts.append(f'<rect class="bar" {place} width="{across / N_BINS - 2:.1f}" height="{tall:.1f}"/>')
        parts.append(f'<line class="whisker" x1="{middle:.1f}" y1="{y(low):.1f}" x2="{middle:.1f}" y2="{y(high):.1f}"/>')
    parts.append(f'<line class="ideal" x1="{x(0):.1f}" y1="{y(0):.1f}" x2="{x(1):.1f}" y2="{y(1):.1f}"/>')
    parts += [
        f'<circle class="dot" cx="{x(min(1.0, confidence[b])):.1f}" cy="{y(accuracy[b]):.1f}" r="3"/>'
        for b in np.flatnonzero(n).tolist()
    ]
    parts.append(f'<text x="{(x(0) + x(1)) / 2:.1f}" y="{size - 8}" text-anchor="middle">confidence</text>')
    title = "Share of right answers by confidence; dashed: as often right as said; lines: 95 % intervals; dots: the mean confidence"
    legend = "Bars: share of right answers, with 95 % intervals. Dots: at the mean confidence. Dashed: as often right as said."
    return f'{svg(size, size, title, parts)}<p class="soft small">{legend}</p>'


_CSS: Final = (
    """
.contact { list-style: none; padding: 0; margin: 0; display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(120px, 1fr)); }
.contact.fields { grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); }
.fields .frame { width: 234px; height: 66px; } .fields img { max-width: 224px; max-height: 60px; width: auto; height: auto; }
.contact li { break-inside: avoid; font-size: 0.87rem; line-height: 1.35; min-width: 0; }
.contact .answer { font-weight: 600; }
.contact .mark { white-space: normal; }
.frame { display: flex; align-items: center; justify-content: center; width: 106px; height: 106px; margin-bottom: 4px;
  border: 1px solid var(--rule); border-radius: 4px; background: var(--tint); overflow: hidden; }
.frame.gone { border-style: dashed; color: var(--soft); font-size: 0.8rem; }
tbody th { min-width: 7.5em; } .matrix tbody th { min-width: 0; }
.square svg.chart { max-width: 420px; }
svg .whisker { stroke: var(--ink); stroke-width: 1.5; } svg .ideal { stroke: var(--ink); stroke-dasharray: 5 4; }
.square svg .bar { opacity: 0.55; } svg .tick { fill: var(--ink); } section > h2:not(:first-child) { margin-top: 18px; }
svg .dot { fill: var(--file); stroke: var(--sheet); }
.matrix { width: auto; } .matrix th, .matrix td { padding: 4px 8px; }
.matrix th.n:last-child, .matrix td.n:last-child { padding-right: 8px; }
.matrix td { border: 1px solid var(--sheet); min-width: 2.4em; }
.matrix td.none { color: var(--soft); }
"""
    + "".join(
        f".right{shade} {{ background: color-mix(in srgb, var(--source) {5 * shade}%, var(--sheet)); }} "
        f".wrong{shade} {{ background: color-mix(in srgb, var(--bad) {5 + 5 * shade}%, var(--sheet)); }}\n"
        for shade in range(1, _SHADES + 1)
    )
    + "@media (max-width: 700px) { .meter-cell { display: none; } }\n"
    + "@media print { section > p { break-after: avoid; } .matrix td { print-color-adjust: exact; } }\n"
    + "@media print { .contact { grid-template-columns: repeat(5, 1fr); } }\n"
)
