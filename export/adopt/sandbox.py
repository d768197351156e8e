"""Work on foreign files in a process of its own, whose crash, hunger or silence is an error message and no more.

The process is a fresh interpreter (``python -m convoy.export.adopt.child``), not a fork, which would inherit open files and
threads' locks, and not :mod:`multiprocessing`, whose results are unpickled by the parent: who takes over the child would take
over the parent. It gets its input and gives its answer as a frame (:mod:`~convoy.export.adopt.frames`) through pipes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from convoy.contract.errors import ContractError, ExportError
from convoy.export.adopt.frames import decode, encode
from convoy.export.adopt.limits import Limits

_DEFAULT: Final = Limits()
_MAX_LOG_BYTES: Final = 2**16
_PIECE: Final = 2**20
_KEPT: Final = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "SYSTEMROOT", "PYTHONHOME")
_FIXED: Final = {
    "LANG": "C.UTF-8",
    "MALLOC_ARENA_MAX": "2",  # each arena reserves address space that the process never uses
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONFAULTHANDLER": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
}


@dataclass(frozen=True)
class _Ended:
    code: int
    reply: bytearray
    log: str
    too_late: bool
    too_long: bool


def run_contained(
    task: str, payload: Mapping[str, Any], *, limits: Limits = _DEFAULT, payload_bytes: int | None = None
) -> dict[str, Any]:
    """Run one of our functions in a limited child process.

    On Linux its data memory, processor time, open files and the size of files that it could write (none) are limited by the
    system, and it ends with the parent. macOS does not enforce the memory limit, and Windows has none of these: there the
    deadline alone holds. The child has an empty working folder and an environment without the parent's variables; what it
    answers is bounded, and is not trusted.

    Args:
        task: ``"package.module:function"``. The function takes the payload as a dict and returns a mapping.
        payload: JSON-like values, bytes, and numpy arrays of numbers; the latter two at the top level alone.
        limits: Memory, time, and the size of the answer.
        payload_bytes: What the memory limit grows with, where the work is on files and not on the payload itself.

    Returns:
        What the function returned: JSON-like values, bytes, and read-only arrays.

    Raises:
        ExportError: The function raised one (its message is kept), failed in another way, crashed, ran out of memory or time,
            or answered what is no answer.
    """
    frame = encode(dict(payload))
    size = len(frame) if payload_bytes is None else payload_bytes
    order = encode({
        "task": task,
        "memory_bytes": limits.memory_bytes + limits.memory_per_payload_byte * size,
        "cpu_s": limits.cpu_s,
        "deadline_s": limits.deadline_s,
        "parent": os.getpid(),
    })  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="convoy-contained-") as folder:
        ended = _run([len(order).to_bytes(8, "little"), order, frame], Path(folder), limits)
    return _answer(task, ended, limits)


def _run(parts: list[bytes], folder: Path, limits: Limits) -> _Ended:
    process = subprocess.Popen(
        [sys.executable, "-s", "-m", "convoy.export.adopt.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env=_environment(folder),
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    reply, log, overflow = bytearray(), bytearray(), threading.Event()
    threads = [
        threading.Thread(target=_write, args=(process.stdin, parts), daemon=True),
        threading.Thread(target=_collect, args=(process.stdout, reply, limits.max_reply_bytes, overflow, process), daemon=True),
        threading.Thread(target=_keep_last, args=(process.stderr, log), daemon=True),
    ]
    for thread in threads:
        thread.start()
    too_late = False
    try:
        process.wait(limits.deadline_s)
    except subprocess.TimeoutExpired:
        too_late = True
    finally:
        _kill(process)  # and whatever it started, also when this process is interrupted
        process.wait()
        for thread in threads:
            thread.join()
        for stream in (process.stdin, process.stdout, process.stderr):
            with suppress(OSError):  # what is left to be written to the dead
                stream.close()
    return _Ended(process.returncode, reply, _plain(log.decode(errors="replace")), too_late, overflow.is_set())


def _environment(folder: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    paths = os.pathsep.join(path for path in sys.path if Path(path).is_absolute())
    return {**kept, **_FIXED, "PYTHONPATH": paths, "HOME": str(folder), "TMPDIR": str(folder), "TEMP": str(folder)}


def _write(stream: IO[bytes], parts: list[bytes]) -> None:
    with suppress(OSError):  # the child has ended, and its exit says why
        for part in parts:
            stream.write(part)
        stream.close()


def _collect(stream: IO[bytes], into: bytearray, bound: int, overflow: threading.Event, process: subprocess.Popen[bytes]) -> None:
    while piece := os.read(stream.fileno(), _PIECE):
        if len(into) + len(piece) > bound:
            overflow.set()
            _kill(process)
            return
        into += piece


def _keep_last(stream: IO[bytes], into: bytearray) -> None:
    while piece := os.read(stream.fileno(), _PIECE):
        into += piece
        del into[:-_MAX_LOG_BYTES]


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _answer(task: str, ended: _Ended, limits: Limits) -> dict[str, Any]:
    name = task.partition(":")[2].removesuffix("_task").replace("_", " ")
    if ended.too_late:
        raise ExportError(
            f"expected the contained process ({name}) to end within {limits.deadline_s:g} s, found it still at work: the file "
            "makes it work without end, or this machine is too slow for it."
        )
    if ended.too_long:
        raise ExportError(
            f"expected an answer of at most {limits.max_reply_bytes:,} bytes from the contained process ({name}), found more: "
            "the file is too large or hostile."
        )
    if ended.code != 0:
        raise ExportError(f"expected the contained process ({name}) to end well, found that it {_cause(ended, limits)}")
    try:
        reply = decode(ended.reply)
    except ContractError as error:
        raise ExportError(
            f"expected an answer from the contained process ({name}), found none: {error} Do not trust the file."
        ) from error
    status, message = reply.pop("status", None), reply.pop("message", "")
    if status == "refused":
        raise ExportError(_plain(str(message)))
    if status == "failed":
        raise ExportError(f"expected the contained process ({name}) to finish, found that it failed: {_plain(str(message))}")
    if status != "done":
        raise ExportError(
            f"expected an answer from the contained process ({name}), found the status {status!r}: do not trust the file."
        )
    return reply


def _cause(ended: _Ended, limits: Limits) -> str:
    lines = [line for line in ended.log.splitlines() if line.strip()]
    last = next((line for line in lines if line.startswith("Fatal Python error")), lines[-1] if lines else "")
    said = f" Its last words: {last[:300]}" if last else ""
    try:
        ending = signal.Signals(-ended.code).name if ended.code < 0 else f"exit code {ended.code}"
    except ValueError:
        ending = f"signal {-ended.code}"
    if ending == "SIGXCPU":
        return f"used more than {limits.cpu_s} s of processor time: the file makes it work without end."
    if ending == "SIGKILL":
        return "was killed by the system (SIGKILL), as it does when memory or processor time run out: the file asks for too much."
    if "bad_alloc" in ended.log or "MemoryError" in ended.log or "annot allocate memory" in ended.log:
        return f"ran out of its memory ({ending}): the file asks for too much.{said}"
    return f"crashed ({ending}), as native code may when it is misled or its memory ends: do not trust the file.{said}"


def _plain(text: str) -> str:
    """What an untrusted process says, fit for a terminal and bounded."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text[-_MAX_LOG_BYTES:]).strip()
