"""Charts as inline SVG: no script, no inline style, a title and a description in each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

from markupsafe import Markup, escape

from convoy.contract.agreement import Tolerance
from convoy.contract.figures import figure
from convoy.contract.validation import Fault, LayerError, OutputErrors

FLOAT32_EPSILON: Final = 2.0**-23
"""The relative distance of neighbouring float32 numbers: 1.19e-07."""

_MAX_DECADES: Final = 24  # keeps the ticks of absurd ranges countable


def relative_error(layer: LayerError) -> float:
    """A layer's largest difference over its largest value; infinite where something stands instead of nothing, or is not finite."""
    if not math.isfinite(layer.max_abs_diff):
        return math.inf
    if layer.scale > 0:
        return layer.max_abs_diff / layer.scale
    return 0.0 if layer.max_abs_diff == 0 else math.inf


def histogram(output: OutputErrors, tolerance: Tolerance | None, name: str) -> Markup:
    """Errors of one output: elements by log10 of the absolute difference, with the tolerance marked.

    Args:
        output: The errors; empty markup where it has no histogram.
        tolerance: What passes.
        name: Unique in the page.
    """
    edges, counts = output.histogram_log10_edges, output.histogram_counts
    if not counts or not any(counts):
        return Markup("")
    left, right, top, bottom = 46.0, 468.0, 22.0, 178.0
    limit = math.log10(tolerance.atol) if tolerance is not None and tolerance.atol > 0 else None
    low, high = math.floor(edges[0]), math.ceil(max(edges[-1], edges[-1] if limit is None else limit + 0.25))
    most = max(counts)

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    parts: list[Markup] = []
    for tick in _ticks(low, high, 9):
        parts += [_line(x(tick), top, x(tick), bottom, "grid"), _power(x(tick), bottom + 15, tick)]
    for (start, end), count in zip(pairwise(edges), counts, strict=True):
        if count:
            height = max(1.5, count / most * (bottom - top))
            about = f"{count:,} elements from 1e{start:.3g} to 1e{end:.3g}"
            parts.append(_bar(x(start) + 0.5, bottom - height, x(end) - x(start) - 1, height, about))
    parts += [_text(left - 6, top + 8, f"{most:,}", "end"), _text(left - 6, bottom, "0", "end")]
    if limit is not None:
        anchor = "end" if x(limit) > (left + right) / 2 else "start"
        shift = -5 if anchor == "end" else 5
        parts += [
            _line(x(limit), top - 12, x(limit), bottom, "limit"),
            _text(x(limit) + shift, top - 5, "tolerance", anchor, "limit"),
        ]
    parts += [
        _line(left, bottom, right, bottom, "axis"),
        _text((left + right) / 2, bottom + 33, "absolute difference, log scale", "middle"),
    ]
    allowed = (
        "" if tolerance is None else f" The tolerance is {tolerance.atol:.3g} plus {tolerance.rtol:.3g} of the expected value."
    )
    description = (
        f"{sum(counts):,} elements of {output.name}; the largest difference is {figure(output.max_abs_diff)}."
        f"{allowed} What is zero or below the first bin is counted in the first bin."
    )
    return _svg(name, 480, 216, f"Differences of {output.name} from the source", description, parts)


def layer_chart(layers: Sequence[LayerError], fault: Fault | None, name: str) -> Markup:
    """Relative error by layer over the graph's order, log scale; each point names its node and module when one points at it.

    Args:
        layers: In the graph's order.
        fault: Marked where it is there.
        name: Unique in the page.
    """
    if not layers:
        return Markup("")
    left, right, top, bottom = 54.0, 848.0, 26.0, 214.0
    errors = [relative_error(layer) for layer in layers]
    shown = [math.log10(error) for error in errors if 0 < error < math.inf]
    low = math.floor(min([*shown, math.log10(FLOAT32_EPSILON)]) - 0.2)
    high = max(math.ceil(max([*shown, math.log10(FLOAT32_EPSILON)]) + 0.2), low + 3)
    step = (right - left) / len(layers)

    def y(value: float) -> float:
        return bottom - 12 - (value - low) / (high - low) * (bottom - 12 - top)

    parts: list[Markup] = []
    for tick in _ticks(low, high, 7):
        parts += [_line(left, y(tick), right, y(tick), "grid"), _power(left - 8, y(tick) + 4, tick, "end")]
    parts += [_line(left, bottom, right, bottom, "axis"), _text(left - 8, bottom + 4, "0", "end")]
    epsilon = y(math.log10(FLOAT32_EPSILON))
    parts += [
        _line(left, epsilon, right, epsilon, "epsilon"),
        _text(right, epsilon - 4, "float32 rounding of one value, 1.19e-07", "end"),
    ]
    radius = min(4.0, max(1.6, step / 2.6))
    for index, (layer, error) in enumerate(zip(layers, errors, strict=True)):
        at = left + (index + 0.5) * step
        faulty = fault is not None and fault.node == layer.node
        height = bottom if error == 0 else (top - 8 if error == math.inf else y(math.log10(error)))
        kind = "point faulty" if faulty else "point"
        mark = [
            _line(at, bottom, at, height, "stem faulty" if faulty else "stem"),
            _point(at, height, radius, kind, beyond=error == math.inf),
        ]
        if faulty:
            anchor = "end" if at > (left + right) / 2 else "start"
            mark.append(_text(at + (-7 if anchor == "end" else 7), top - 12, "first fault", anchor, "faulty"))
        hit = _hit(at - step / 2, top - 10, step, bottom - top + 10)
        parts.append(Markup("<g><title>{}</title>{}{}</g>").format(_about(index, layer, error), Markup("").join(mark), hit))
    for index in sorted({0, len(layers) // 4, len(layers) // 2, len(layers) * 3 // 4, len(layers) - 1}):
        parts.append(_text(left + (index + 0.5) * step, bottom + 17, str(index + 1), "middle"))
    parts.append(_text((left + right) / 2, bottom + 36, f"layer, in the graph's order (1 to {len(layers)})", "middle"))
    worst = max(range(len(layers)), key=lambda index: errors[index])
    description = (
        f"{len(layers)} layers. The largest: {_about(worst, layers[worst], errors[worst])}. "
        f"{f'The first fault is at {fault.node}.' if fault else ''} The table below has every layer."
    )
    return _svg(name, 860, 256, "Error by layer, relative to the layer's largest value", description, parts)


def meter(share: float) -> Markup:
    """A bar that is ``share`` of its place full, for tables: the figure stands beside it."""
    width = 0.0 if math.isnan(share) else max(0.0, min(1.0, share)) * 100
    return Markup(
        '<svg class="meter" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true" focusable="false">'
        '<rect class="track" width="100" height="8"/><rect class="fill" width="{}" height="8"/></svg>'
    ).format(_number(width))


def _about(index: int, layer: LayerError, error: float) -> str:
    module = f", {layer.module}" if layer.module else ""
    return f"{index + 1}: {layer.node} ({layer.op_type}{module}): {figure(error)} of {figure(layer.scale)}"


def _ticks(low: int, high: int, most: int) -> Iterable[int]:
    return range(low, high + 1, max(1, math.ceil(min(high - low, _MAX_DECADES * most) / most)))


def _svg(name: str, width: int, height: int, title: str, description: str, parts: list[Markup]) -> Markup:
    return Markup(
        '<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name}-title {name}-desc">'
        '<title id="{name}-title">{title}</title><desc id="{name}-desc">{description}</desc>{body}</svg>'
    ).format(width=width, height=height, name=name, title=title, description=description, body=Markup("").join(parts))


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    ends = [_number(value) for value in (x1, y1, x2, y2)]
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(kind, *ends)


def _bar(x: float, y: float, width: float, height: float, about: str) -> Markup:
    place = [_number(value) for value in (x, y, max(width, 0.5), height)]
    return Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(*place, about)


def _hit(x: float, y: float, width: float, height: float) -> Markup:
    return Markup('<rect class="hit" x="{}" y="{}" width="{}" height="{}"/>').format(*map(_number, (x, y, width, height)))


def _point(x: float, y: float, radius: float, kind: str, *, beyond: bool) -> Markup:
    """A dot, or a triangle where the value lies beyond any scale."""
    if beyond:
        corners = ((x - radius, y + radius), (x + radius, y + radius), (x, y - radius))
        return Markup('<polygon class="{}" points="{}"/>').format(kind, " ".join(f"{_number(a)},{_number(b)}" for a, b in corners))
    return Markup('<circle class="{}" cx="{}" cy="{}" r="{}"/>').format(kind, _number(x), _number(y), _number(radius))


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(kind, _number(x), _number(y), anchor, text)


def _power(x: float, y: float, exponent: int, anchor: str = "middle") -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">10<tspan class="power" dy="-4">{}</tspan></text>').format(
        _number(x), _number(y), anchor, escape(str(exponent).replace("-", "−"))
    )


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
