"""A foreign file in ONNX Runtime as it came: no graph optimisation, its own border, its own batch size."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

from convoy.contract.errors import ExportError, MissingDependencyError

if TYPE_CHECKING:
    import onnxruntime

Arrays = Mapping[str, "npt.NDArray[Any]"]


def open_plain(model: bytes) -> onnxruntime.InferenceSession:
    """A session on the CPU in which ONNX Runtime runs the graph as it is written.

    Raises:
        ExportError: ONNX Runtime refuses the file.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("validation needs ONNX Runtime: pip install '.[export]' in Convoy's folder.") from error
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no public common base
        raise ExportError(f"expected a file that ONNX Runtime {onnxruntime.__version__} loads: {first_line(error)}") from error


def run_plain(
    session: onnxruntime.InferenceSession, feeds: Arrays, outputs: Sequence[str] | None = None
) -> dict[str, npt.NDArray[Any]]:
    """One call.

    Args:
        session: The file.
        feeds: By input name.
        outputs: Which outputs; all where None.

    Raises:
        ExportError: ONNX Runtime fails, or gives what is no tensor.
    """
    names = [output.name for output in session.get_outputs()] if outputs is None else list(outputs)
    try:
        values = session.run(names, dict(feeds))
    except Exception as error:
        shapes = ", ".join(f"{name} {value.dtype} {list(value.shape)}" for name, value in feeds.items())
        raise ExportError(f"ONNX Runtime fails on {shapes}: {first_line(error)}") from error
    return {name: value for name, value in zip(names, values, strict=True) if isinstance(value, np.ndarray)}


def run_in_batches(
    session: onnxruntime.InferenceSession,
    name: str,
    feed: npt.NDArray[Any],
    outputs: Sequence[str],
    batch_size: int,
    *,
    fixed: bool,
    has_batch_axis: bool = True,
) -> dict[str, npt.NDArray[Any]]:
    """All of ``feed``, so many rows a call.

    Args:
        session: The file.
        name: Its input.
        feed: Rows for the input; (n, ...).
        outputs: Which outputs.
        batch_size: Rows a call.
        fixed: The file takes exactly that many: the last call is filled up with its last row.
        has_batch_axis: False where the file takes one row without an axis that counts them.

    Returns:
        By output, shape (n, values of one row).
    """
    parts: dict[str, list[npt.NDArray[Any]]] = {output: [] for output in outputs}
    for rows, n in batches(feed, batch_size, fixed=fixed):
        for output, value in run_plain(session, {name: rows if has_batch_axis else rows[0]}, outputs).items():
            parts[output].append(rows_of(output, value, len(rows))[:n])
    return {output: np.concatenate(found) for output, found in parts.items()}


def batches(feed: npt.NDArray[Any], batch_size: int, *, fixed: bool) -> Iterator[tuple[npt.NDArray[Any], int]]:
    """Parts of ``feed``, each with how many of its rows count: with ``fixed`` the last is filled up with its last row."""
    for start in range(0, len(feed), batch_size):
        rows = feed[start : start + batch_size]
        n = len(rows)
        if fixed and n < batch_size:
            rows = np.concatenate([rows, np.repeat(rows[-1:], batch_size - n, axis=0)])
        yield rows, n


def rows_of(output: str, value: npt.NDArray[Any], n: int) -> npt.NDArray[Any]:
    """``value`` as one row for each of ``n`` images.

    Raises:
        ExportError: It has no such rows.
    """
    if value.size % n or not value.size:
        raise ExportError(f"output {output!r}: expected one row for each of {n} images, found {list(value.shape)}.")
    return value.reshape(n, -1)


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> bytes:
    """``model`` with values inside it as further outputs; nothing else is touched.

    Args:
        model: Left as it is.
        names: Values of the main graph.
    """
    present = {value.name for value in model.graph.output}
    added = [onnx.ValueInfoProto(name=name) for name in names if name not in present]
    if not added:
        return bytes(model.SerializeToString(deterministic=True))
    model.graph.output.extend(added)
    try:
        return bytes(model.SerializeToString(deterministic=True))
    finally:
        del model.graph.output[-len(added) :]


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
