"""Transfer learning: weights from elsewhere, a new head, what stays frozen, and how fast each layer learns."""

from __future__ import annotations

from convoy.training.transfer.plan import Plan as Plan
from convoy.training.transfer.report import TakeOver as TakeOver
from convoy.training.transfer.take_over import expected_preprocessing as expected_preprocessing
from convoy.training.transfer.take_over import take_over as take_over
