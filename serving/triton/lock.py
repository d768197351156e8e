"""Lock files that say "my server lives": held by the guard, and let go of by the kernel when its last holder dies, however it dies.

No process ids are written down or compared: an id that another process has got since proves nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path


def create(path: Path) -> int:
    """Make a lock file and hold its lock.

    Returns:
        The descriptor that holds the lock; a process that inherits it holds the lock, too.

    Raises:
        FileNotFoundError: Somebody who clears up found the file in the instant before it was locked, and removed it.
        OSError: It cannot be made.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise FileNotFoundError(f"{path}: removed by somebody who clears up.")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def take_over(path: Path) -> int | None:
    """Take a lock whose holders are all dead.

    Returns:
        The descriptor that holds it now, to be closed; None where somebody holds it, or where it is not this user's own file.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None  # being made, being removed, a link, or another user's
    try:
        if os.fstat(descriptor).st_uid == os.getuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
    except OSError:
        pass  # held: its server lives
    os.close(descriptor)
    return None


def remove(path: Path) -> None:
    """Remove a file of this user; another user's stays, and a file that is gone already is no fault."""
    with contextlib.suppress(OSError):
        if path.lstat().st_uid == os.getuid():
            path.unlink()
