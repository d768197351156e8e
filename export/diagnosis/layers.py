"""Errors by layer: how far a file's own intermediate values lie from the truth, all of it run from the images on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from convoy.contract.validation import LayerError
from convoy.export.diagnosis.difference import max_abs_diff
from convoy.export.diagnosis.running import NodeError, as_datatype, run_node
from convoy.export.diagnosis.structure import Node, Structure
from convoy.export.diagnosis.trace import Trace
from convoy.export.diagnosis.values import Values
from convoy.export.diagnosis.walk import Walk


def measure_layers(model: bytes, trace: Trace) -> tuple[LayerError, ...]:
    """How far each intermediate tensor of a file lies from the truth when the file runs by itself, without graph optimisations.

    Rounding piles up from node to node here, as it does for a server; ``find_fault`` looks at each node by itself instead.

    Args:
        model: The file's bytes.
        trace: The truth for some images.

    Returns:
        One entry for each floating tensor with a counterpart in the trace, in the graph's order: one of the same name or, where the
        file's names are its own, one that holds the same. Tensors of another shape, and those with NaN or infinity where the truth
        is finite, have no difference that is a number: they are left out, and so is what cannot be computed.

    Raises:
        ExportError: The bytes are no ONNX model.
    """
    file = Structure.of(model)
    return tuple(_measure(file, trace, _counterparts(file, trace)))


def _counterparts(file: Structure, trace: Trace) -> dict[str, str]:
    """By value of the file, the true value of the same name or, failing names, the same content."""
    walk = Walk(file, trace)
    if not walk.trusted:
        walk.run()
    shared = {name: expected for name in file.makers if (expected := walk.expected(name))}
    told = {name: meaning.name for name, meaning in walk.meanings.items() if meaning.axes is None}
    return told | shared


def _measure(file: Structure, trace: Trace, counterparts: dict[str, str]) -> Iterator[LayerError]:
    live = Values()
    for name in file.inputs:
        live.add(name, as_datatype(trace.images, file.datatypes.get(name)))
    for node in file.nodes:
        if not all(name in live for name in node.reads):
            continue
        try:
            made = run_node(file, node, {name: live[name] for name in node.reads})
        except NodeError:
            continue
        for name, value in made.items():
            if (error := _layer(node, name, value, trace, counterparts.get(name, ""))) is not None:
                yield error
            if name in file.readers:
                live.add(name, value)
        for name in node.reads:
            if file.last_reader[name] == node.index:
                live.drop(name)


def _layer(node: Node, name: str, value: npt.NDArray[Any], trace: Trace, expected: str) -> LayerError | None:
    truth = trace.values.get(expected) if expected in trace.proven else None
    if truth is None or truth.dtype.kind != "f" or truth.shape != value.shape or not truth.size:
        return None
    diff = max_abs_diff(truth, value)
    if not np.isfinite(diff):
        return None
    finite = np.abs(truth[np.isfinite(truth)])
    return LayerError(
        node=node.name, op_type=node.op_type, module=trace.modules.get(expected, "") or node.module, output=name, max_abs_diff=diff,
        scale=float(finite.max(initial=0.0)),
    )  # fmt: skip
