"""Growing delays between attempts at something that keeps failing."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 60.0
CALM_S = 60.0
"""What has been well this long after an attempt is well again: the delays start anew."""


@dataclass
class Backoff:
    """When to try again: at once at first, then after 1, 2, 4 ... 60 s, for ever.

    Times are seconds of one and the same monotonic clock.
    """

    delay_s: float = 0.0
    next_at: float = 0.0

    def is_due(self, now: float) -> bool:
        """Whether an attempt may be made."""
        return now >= self.next_at

    def attempted(self, now: float) -> None:
        """Note that an attempt ended now, well or not."""
        calm = now - self.next_at > CALM_S
        self.delay_s = FIRST_DELAY_S if calm or not self.delay_s else min(LONGEST_DELAY_S, self.delay_s * 2)
        self.next_at = now + self.delay_s

    def reset(self) -> None:
        """Something was changed: the next attempt is the first."""
        self.delay_s = self.next_at = 0.0
