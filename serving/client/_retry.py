"""When a request that failed is sent again: how often, after which pause, and within which budget."""

from __future__ import annotations

import math
import random
import threading
from dataclasses import dataclass
from typing import Final

from convoy.contract.errors import ClientError, OverloadedError, UnavailableError, UsageError

RETRIED: Final[tuple[type[ClientError], ...]] = (UnavailableError, OverloadedError)
"""What is worth another try: nobody answered, or nobody had room. Any other error would only come again."""


@dataclass(frozen=True)
class Retry:
    """How often a call is tried, and when.

    Only what is safe to send twice is (inferences and questions; never ``load`` or ``unload``), and only after an
    ``UnavailableError`` or an ``OverloadedError``. The pause before the n-th retry is drawn from 0 to
    ``min(longest_pause_s, first_pause_s * 2 ** (n - 1))`` (full jitter), so that callers who failed together do not come back
    together. Where another server is there, a call that found none goes to it at once, without a pause.

    All calls of a client share a budget, so that a server in trouble is not drowned by retries: each call pays ``budget_share`` of
    a retry in, each retry takes one out, and never more than ``budget_reserve`` are saved up (so many there are at the start).
    Where the budget is empty the error is raised at once.

    Attributes:
        attempts: Requests a call, the first included.
        first_pause_s: The longest pause before the first retry, seconds.
        longest_pause_s: The longest pause before any.
        budget_share: Retries over calls, in the long run.
        budget_reserve: Retries that can be saved up.

    Raises:
        UsageError: A value is out of range.
    """

    attempts: int = 3
    first_pause_s: float = 0.05
    longest_pause_s: float = 1.0
    budget_share: float = 0.2
    budget_reserve: float = 10.0

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 1:
            raise UsageError(f"retry: attempts: expected a whole number from 1 (1: no retry), found {self.attempts!r}.")
        for name in ("first_pause_s", "longest_pause_s", "budget_share", "budget_reserve"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
                raise UsageError(f"retry: {name}: expected a finite number from 0, found {value!r}.")

    def pause_s(self, n: int) -> float:
        """A pause before the ``n``-th retry, from 1."""
        longest = min(self.longest_pause_s, self.first_pause_s * 2.0 ** min(n - 1, 60))
        return random.uniform(0, longest)  # noqa: S311  # jitter, no secret


NEVER: Final = Retry(attempts=1)


class RetryBudget:
    """How many retries all calls of a client together have left. Safe under threads."""

    def __init__(self, retry: Retry) -> None:
        self._share, self._reserve = retry.budget_share, retry.budget_reserve
        self._left = retry.budget_reserve
        self._lock = threading.Lock()

    def pay_in(self) -> None:
        """A call begins. Without the lock, which each call would pay for: of two in the same instant one may not count."""
        if self._left < self._reserve:
            self._left = min(self._reserve, self._left + self._share)

    def take(self) -> bool:
        """Take one retry out; False where none is left."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True
