"""Figures as people read them."""

from __future__ import annotations

import math
from typing import Final

_Z95: Final = 1.959963984540054  # the normal distribution's 97.5 % point


def figure(value: float | None) -> str:
    """Three significant digits; "-" for nothing, words for what is not finite."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    if value == 0:
        return "0"
    if 1000 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def percent(fraction: float, digits: int = 2) -> str:
    """A fraction as percent."""
    return f"{fraction * 100:.{digits}f} %"


def probability(fraction: float) -> str:
    """A probability as percent, with the digits that small ones need."""
    if not math.isfinite(fraction):
        return figure(fraction)
    shown = fraction * 100
    return f"{shown:.2f} %" if shown >= 0.005 or shown == 0 else f"{shown:.1e} %"


def share(fraction: float) -> str:
    """How much of a limit was needed: percent up to all of it, times beyond."""
    return f"{figure(fraction * 100)} %" if fraction <= 1 else f"{figure(fraction)} ×"


def size(n_bytes: int) -> str:
    """A size in bytes, in binary units."""
    if n_bytes < 1024:
        return f"{n_bytes} B"
    return f"{n_bytes / 1024:,.1f} KiB" if n_bytes < 1 << 20 else f"{n_bytes / (1 << 20):,.1f} MiB"


def interval95(fraction: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a share that was found in ``n`` independent cases (Wilson 1927).

    (p + z²/2n ± z sqrt(p(1 - p)/n + z²/4n²)) / (1 + z²/n), within [0, 1].
    """
    centre = fraction + _Z95**2 / (2 * n)
    half = _Z95 * math.sqrt(fraction * (1 - fraction) / n + _Z95**2 / (4 * n**2))
    whole = 1 + _Z95**2 / n
    return max(0.0, (centre - half) / whole), min(1.0, (centre + half) / whole)
