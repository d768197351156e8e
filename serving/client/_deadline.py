"""The instant at which a call gives up."""

from __future__ import annotations

import math
import time

from convoy.contract.errors import DeadlineExceededError, UsageError


def check_timeout(timeout_s: float, name: str = "timeout_s") -> float:
    """Return ``timeout_s`` where it is a time that can pass.

    Args:
        timeout_s: Seconds.
        name: What the caller calls it, for the message.

    Raises:
        UsageError: It is not a positive, finite number of seconds: no call waits for ever.
    """
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)) or not math.isfinite(timeout_s) or timeout_s <= 0:
        raise UsageError(f"{name}: expected a positive, finite number of seconds, found {timeout_s!r}.")
    return float(timeout_s)


class Deadline:
    """One call's end, kept across all the requests that the call makes.

    Attributes:
        timeout_s: How long the whole call may take.
        at_s: The end, on the monotonic clock.
    """

    __slots__ = ("at_s", "timeout_s")

    def __init__(self, timeout_s: float, at_s: float) -> None:
        self.timeout_s = timeout_s
        self.at_s = at_s

    @classmethod
    def after(cls, timeout_s: float) -> Deadline:
        """The deadline ``timeout_s`` seconds from now."""
        return cls(check_timeout(timeout_s), time.monotonic() + timeout_s)

    @property
    def left_s(self) -> float:
        """Seconds that are left; below 0 once it has passed."""
        return self.at_s - time.monotonic()

    def passed(self, what: str) -> DeadlineExceededError:
        """The error where nothing is left of it.

        Args:
            what: The place and work for the message ("grpc://localhost:8001: model 'lenet5'").
        """
        return DeadlineExceededError(
            f"{what}: the call did not end within its {self.timeout_s:g} s. Allow more time (timeout_s; --timeout on the "
            "command line), or send fewer images at a time."
        )

    def missed(self, error: DeadlineExceededError) -> DeadlineExceededError:
        """The error of a request that had what was left of this call's time, with the time that the caller asked for."""
        return DeadlineExceededError(f"{error} The whole call had {self.timeout_s:g} s.")
