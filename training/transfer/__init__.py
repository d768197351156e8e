"""Transfer learning: weights from elsewhere, a new head, what stays frozen, and how fast each layer learns."""

from __future__ import annotations

from convoy.training.transfer.plan import Plan as Plan
