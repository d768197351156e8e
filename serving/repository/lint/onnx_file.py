"""The borders of ONNX files, read by ONNX Runtime in a process of its own: a file that others made may bring its reader down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any, Final

from convoy.serving.triton.backend.border import Border, BorderTensor

TIMEOUT_S: Final = 300.0
"""How long one file may take."""

_PROBE: Final = "convoy.serving.repository.lint.probe"


@dataclass(frozen=True)
class Probed:
    """What was read of a file.

    Attributes:
        border: Its inputs and outputs; None where it cannot be read.
        reason: Why it cannot.
    """

    border: Border | None = None
    reason: str = ""


def can_read() -> bool:
    """Whether ONNX Runtime is installed."""
    return util.find_spec("onnxruntime") is not None


def read_borders(paths: Sequence[Path], *, timeout_s: float = TIMEOUT_S) -> dict[Path, Probed]:
    """Read the borders of ONNX files, with the graph as it is written (no optimisation).

    Args:
        paths: The files.
        timeout_s: How long one file may take.
    """
    found: dict[Path, Probed] = {}
    left = list(dict.fromkeys(paths))
    while left:
        answers, why = _run(left, timeout_s * len(left))
        found.update(zip(left, answers, strict=False))
        left = left[len(answers) :]
        if left:  # the process ended on the next one
            found[left.pop(0)] = Probed(None, why)
    return found


def _run(paths: Sequence[Path], timeout_s: float) -> tuple[list[Probed], str]:
    """What one process answers, and why it answers no more."""
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "CUDA_VISIBLE_DEVICES": ""}
    order = "\n".join(json.dumps(str(path.absolute())) for path in paths)
    with tempfile.TemporaryDirectory(prefix="convoy-lint-") as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-m", _PROBE], input=order.encode(), capture_output=True, cwd=folder, env=environment,
                timeout=timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            return list(_answers(late.stdout or b"")), f"reading it takes more than {timeout_s:.0f} s. Look at the file."
    last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    how = f"was ended by signal {-done.returncode}" if done.returncode < 0 else f"ended with status {done.returncode}"
    return list(_answers(done.stdout)), f"the process that read it {how}: {' '.join(last) or 'it said nothing'}. Look at the file."


def _answers(output: bytes) -> Iterator[Probed]:
    for line in output.splitlines():
        if line.startswith(b"{") and line.endswith(b"}"):
            yield _probed(json.loads(line))


def _probed(said: Mapping[str, Any]) -> Probed:
    if "reason" in said:
        return Probed(None, said["reason"])
    parts = (
        tuple(BorderTensor(one["name"], one["datatype"], tuple(one["shape"])) for one in said[name])
        for name in ("inputs", "outputs", "optional")
    )
    return Probed(Border(*parts))
