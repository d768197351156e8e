"""What a run shows to people."""

from __future__ import annotations

from convoy.training.report.curves import draw_curves as draw_curves
from convoy.training.report.run_log import RunLog as RunLog
from convoy.training.report.run_log import logging_listener as logging_listener
