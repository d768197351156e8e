"""What a run shows to people."""

from __future__ import annotations

from convoy.training.report.curves import draw_curves as draw_curves
