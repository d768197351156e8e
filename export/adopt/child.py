"""The contained process: it limits itself, runs one task, and answers with a frame.

Only :mod:`convoy.export.adopt.sandbox` starts it.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from importlib import import_module
from math import ceil
from pathlib import Path
from typing import IO, Any, Final

from convoy.contract.errors import ConvoyError
from convoy.export.adopt.frames import decode, encode

_MAX_OPEN_FILES: Final = 256
_MAX_ORDER_BYTES: Final = 2**16
_MAX_MESSAGE_CHARS: Final = 20_000
_DEATH_SIGNAL: Final = 1  # PR_SET_PDEATHSIG


def main() -> None:
    """Read an order and a payload from standard input, do the task, write the answer to what was standard output."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # native code prints to descriptor 1: that must not reach the frame
    order = _order(sys.stdin.buffer)
    _die_with(int(order["parent"]))
    _limit(int(order["memory_bytes"]), int(order["cpu_s"]), float(order["deadline_s"]))
    answer = _done(str(order["task"]), sys.stdin.buffer)
    answers.write(answer)
    answers.close()


def _order(stream: IO[bytes]) -> dict[str, Any]:
    size = int.from_bytes(stream.read(8), "little")
    if size > _MAX_ORDER_BYTES:
        raise SystemExit("expected an order from convoy.export.adopt.sandbox, which alone starts this module")
    return decode(stream.read(size))


def _limit(memory_bytes: int, cpu_s: int, deadline_s: float) -> None:
    """Have the system hold this process to its limits, where the system can."""
    if hasattr(signal, "alarm"):
        signal.alarm(ceil(deadline_s) + 5)  # the parent's deadline comes first; this one holds where the parent is stopped
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # should memory run out, this process goes, and no other
    try:
        import resource
    except ImportError:
        return
    # RLIMIT_DATA counts what the process writes; RLIMIT_AS would count the shared libraries too, which with CUDA are gigabytes.
    _bound(resource, "RLIMIT_DATA", memory_bytes, memory_bytes)
    _bound(resource, "RLIMIT_CPU", cpu_s, cpu_s + 5)
    _bound(resource, "RLIMIT_FSIZE", 0, 0)
    _bound(resource, "RLIMIT_CORE", 0, 0)
    _bound(resource, "RLIMIT_NOFILE", _MAX_OPEN_FILES, _MAX_OPEN_FILES)


def _bound(resource: Any, name: str, soft: int, hard: int) -> None:
    if (kind := getattr(resource, name, None)) is None:
        return
    ceiling = resource.getrlimit(kind)[1]
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    with suppress(ValueError, OSError):  # macOS refuses some of them
        resource.setrlimit(kind, (soft, hard))


def _die_with(parent: int) -> None:
    """End with the parent, also when it is killed."""
    if sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit("the process that ordered the work has ended")


def _done(task: str, stream: IO[bytes]) -> bytes:
    try:
        module, _, function = task.partition(":")
        result = getattr(import_module(module), function)(decode(stream.read()))
        return encode({**result, "status": "done"})
    except MemoryError:
        return encode({"status": "failed", "message": "it ran out of its memory: the file asks for too much."})
    except ConvoyError as error:
        return encode({"status": "refused", "message": str(error)[:_MAX_MESSAGE_CHARS]})
    except Exception as error:  # noqa: BLE001 whatever it is, the parent names it
        return encode({"status": "failed", "message": f"{type(error).__name__}: {error}"[:_MAX_MESSAGE_CHARS]})


if __name__ == "__main__":
    main()
