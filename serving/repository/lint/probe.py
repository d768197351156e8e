"""The process that reads ONNX files: ``python -m``, paths in, borders out, a line of JSON each.

Only :mod:`convoy.serving.repository.lint.onnx_file` starts it.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import Any

from convoy.contract.errors import ConvoyError

_MEMORY_BYTES = 16 * 2**30


def main() -> None:
    """Read every file that standard input names."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # native code prints to descriptor 1: that must not reach the answers
    _limit()
    for line in sys.stdin:
        answers.write(json.dumps(_read(json.loads(line))) + "\n")


def _read(path: str) -> dict[str, Any]:
    import onnxruntime

    from convoy.serving.triton.backend.border import Border
    from convoy.serving.triton.backend.session import reason_of

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = 4
    settings.add_session_config_entry("session.disable_prepacking", "1")
    try:
        return asdict(Border.of(onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])))
    except ConvoyError as error:
        return {"reason": str(error)}
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions have no common base but Exception
        return {"reason": f"ONNX Runtime cannot load it: {reason_of(error)}"}


def _limit() -> None:
    """A file that takes the machine's memory ends this process, and no other."""
    try:
        import resource
    except ImportError:
        return
    for kind, most in ((resource.RLIMIT_DATA, _MEMORY_BYTES), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


if __name__ == "__main__":
    main()
