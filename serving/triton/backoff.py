"""Growing delays between attempts at something that keeps failing."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 60.0
BURST = 5
"""How many deaths in a row are mended at once."""

REFILL_S = 3.0
"""How long something must have been well to be mended at once one time more."""


@dataclass
class Backoff:
    """When to try again: at once what dies now and then; after 1, 2, 4 ... 60 s, for ever, what fails or dies again and again.

    Times are seconds of one and the same monotonic clock.
    """

    credit: float = BURST
    delay_s: float = 0.0
    next_at: float = 0.0

    def is_due(self, now: float) -> bool:
        """Whether an attempt may be made."""
        return now >= self.next_at

    def attempted(self, now: float, *, failed: bool = False) -> None:
        """Note that an attempt ended now.

        Args:
            now: The time.
            failed: Whether it brought nothing, so that the next one would not, either.
        """
        well_s = max(0.0, now - self.next_at) if self.next_at else 0.0
        self.credit = min(BURST, self.credit + well_s / REFILL_S) - 1
        if self.credit >= 0 and not failed:
            self.delay_s = 0.0
        else:
            self.credit = max(0.0, self.credit)
            self.delay_s = min(LONGEST_DELAY_S, self.delay_s * 2) or FIRST_DELAY_S
        self.next_at = now + self.delay_s

    def reset(self) -> None:
        """Something was changed: the next attempt is the first."""
        self.credit, self.delay_s, self.next_at = BURST, 0.0, 0.0
