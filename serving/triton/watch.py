"""``ProcessWatch``: waits for the end of processes that are not this process's children, and notices it when it happens."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterable


class ProcessWatch:
    """Wakes who waits when a watched process ends.

    By pidfd: no period passes between the end and its notice. Where the kernel has none, only the timeout wakes who waits.
    """

    def __init__(self) -> None:
        self._poll = select.poll()
        self._descriptors: dict[int, int] = {}
        self._closing = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._wake, select.POLLIN)

    def watch(self, pids: Iterable[int]) -> None:
        """Watch these processes from now on, and no others."""
        wanted = set(pids)
        for pid in self._descriptors.keys() - wanted:
            self._forget(pid)
        for pid in wanted - self._descriptors.keys():
            try:
                descriptor = os.pidfd_open(pid)
            except OSError:
                continue  # it has just ended, which the next look shows; or a kernel without pidfds
            self._descriptors[pid] = descriptor
            self._poll.register(descriptor, select.POLLIN)

    def wait(self, timeout_s: float) -> bool:
        """Wait until a watched process ends, ``wake`` is called, or the time has passed.

        Returns:
            Whether there was anything before the time had passed. Each end is told once.
        """
        ready = {descriptor for descriptor, _ in self._poll.poll(1000 * timeout_s)}
        if self._wake in ready:
            os.eventfd_read(self._wake)
        for pid in [pid for pid, descriptor in self._descriptors.items() if descriptor in ready]:
            self._forget(pid)
        return bool(ready)

    def wake(self) -> None:
        """Wake who waits; from any thread, also when nobody waits any more."""
        with self._closing:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Let go of every descriptor."""
        self.watch(())
        with self._closing:
            os.close(self._wake)
            self._wake = -1

    def _forget(self, pid: int) -> None:
        descriptor = self._descriptors.pop(pid)
        self._poll.unregister(descriptor)
        os.close(descriptor)
