"""``python -m convoy.serving.load.in_process``: runs a model in ONNX Runtime, alone in its process, and says how fast.

It reads a task, a line of JSON, from stdin and writes a line of JSON a measured point to stdout: see ``convoy.serving.load.limit``.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from convoy.contract.errors import ConvoyError, MissingDependencyError, UsageError
from convoy.serving.client._answer import TensorMetadata
from convoy.serving.load.inputs import make_inputs

_DATATYPES: Final = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8", "int16": "INT16",
    "int32": "INT32", "int64": "INT64", "float16": "FP16", "float": "FP32", "double": "FP64", "string": "BYTES",
}  # fmt: skip
_CUDA: Final = "CUDAExecutionProvider"
_WARM_UP_SHARE: Final = 0.25
_LEAST_CALLS: Final = 3


def tensors_of(inputs: Sequence[Any]) -> list[TensorMetadata]:
    """A session's inputs as a server would describe them; extents with a name or none are -1.

    Raises:
        UsageError: One has a type that no wire knows.
    """
    tensors = []
    for tensor in inputs:
        datatype = _DATATYPES.get(tensor.type.removeprefix("tensor(").removesuffix(")"))
        if datatype is None:
            raise UsageError(f"input {tensor.name!r}: expected a tensor of one of {', '.join(_DATATYPES)}, found {tensor.type}.")
        shape = tuple(extent if isinstance(extent, int) else -1 for extent in tensor.shape)
        tensors.append(TensorMetadata(tensor.name, datatype, shape))
    return tensors


def measure_points(task: Mapping[str, Any]) -> None:
    """Measure and print each point of a task."""
    for threads in task["threads"]:
        with contextlib.redirect_stdout(sys.stderr):  # ONNX Runtime prints what it cannot load; stdout has the protocol
            session = _open(task["model_path"], threads, task["providers"])
        tensors = tensors_of(session.get_inputs())
        for batch_size in task["batch_sizes"]:
            shapes = _of_open(tensors, task["shapes"], batched=batch_size > 0)
            arrays = make_inputs(tensors, batch_size=batch_size or None, shapes=shapes, ranges=task["ranges"], seed=0)
            calls, spent_s = _measure(session, arrays, task["seconds"])
            print(  # noqa: T201  # the protocol
                json.dumps({"threads": threads, "batch_size": max(1, batch_size), "calls": calls, "spent_s": spent_s}), flush=True
            )
            if spent_s / calls > task["longest_call_s"]:
                break


def _of_open(tensors: Sequence[TensorMetadata], shapes: Mapping[str, Any], *, batched: bool) -> dict[str, Any]:
    """The shapes of the inputs whose file leaves an extent open; a server may give a scalar of the file an axis of its own."""
    open_ones = {tensor.name for tensor in tensors if -1 in tensor.shape[int(batched) :]}
    return {name: shape for name, shape in shapes.items() if name in open_ones}


def _open(model_path: str, threads: int, providers: Sequence[str]) -> Any:
    """A session on the first provider, computing as Convoy's backend does.

    Raises:
        MissingDependencyError: It cannot be had; ONNX Runtime by itself would run on the CPU and say nothing.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if _CUDA in providers and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # CUDA and cuDNN from the nvidia-* wheels, where they are installed
    asked = [(provider, {"use_tf32": "0"}) if provider == _CUDA else provider for provider in providers]
    session = onnxruntime.InferenceSession(model_path, options, providers=asked, enable_fallback=0)
    if session.get_providers()[0] != providers[0]:
        raise MissingDependencyError(f"ONNX Runtime could not start its {providers[0]}; `convoy doctor` says what it lacks.")
    return session


def _measure(session: Any, arrays: Mapping[str, Any], seconds: float) -> tuple[int, float]:
    end = time.perf_counter() + seconds * _WARM_UP_SHARE
    session.run(None, arrays)
    while time.perf_counter() < end:
        session.run(None, arrays)
    start = now = time.perf_counter()
    calls = 0
    while calls < _LEAST_CALLS or now - start < seconds:
        session.run(None, arrays)
        calls += 1
        now = time.perf_counter()
    return calls, now - start


def main() -> None:
    """Do one task."""
    try:
        measure_points(json.loads(sys.stdin.readline()))
    except ConvoyError as error:
        print(json.dumps({"error": str(error), "usage": isinstance(error, UsageError)}), flush=True)  # noqa: T201
    except Exception as error:  # noqa: BLE001  # whatever ONNX Runtime raises is the answer
        print(json.dumps({"error": f"{type(error).__name__}: {error}", "usage": False}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
