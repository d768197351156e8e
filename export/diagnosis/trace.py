"""What every intermediate value of a network is, for a few images: the truth that a file's nodes are held to, one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from convoy.export.diagnosis.difference import max_abs_diff
from convoy.export.diagnosis.program import run_program
from convoy.export.diagnosis.running import NodeError, as_datatype, run_node
from convoy.export.diagnosis.structure import Node, Structure
from convoy.export.diagnosis.values import MEMORY_BYTES, Values

if TYPE_CHECKING:
    from convoy.export.graph.exporting import ExportedGraph

Images = npt.NDArray[np.uint8]
_EPS = float(np.finfo(np.float32).eps)
OWN_ERROR_FACTOR = 16
"""How many times the source's own float32 error at a value another float32 implementation may lie away from the truth there."""
FLOOR_EPS = 16
"""The least allowed difference, in units of float32's epsilon times the largest true value."""
AVERAGES = frozenset({"GlobalAveragePool", "AveragePool", "ReduceMean", "ReduceSum"})
TERMS_PER_EPS = 16
"""An average may be summed one term after the other: each so many terms allow one more epsilon."""


@dataclass(frozen=True)
class Trace:
    """The truth for one batch of images.

    Attributes:
        images: uint8, shape (n, H, W, C), or what else the model takes.
        structure: The graph that ``values`` are named after: the fresh export, or the ONNX file of others.
        values: By value name; float64 where floating.
        allowed: By value name, the largest absolute difference that float32 explains at a node whose inputs are true:
            ``max(16 * own_error, 16 * eps * max |value|)``, own_error being the source's own float32 error from the last true
            values on; ``eps * n / 16 * max |value|`` for a mean or sum of n terms where that is more; 0 for what is no float.
        errors: By value name, the source's own error where all of it is computed in float32, from the images on.
        modules: By value name, the path of the PyTorch module that makes it; empty where unknown.
        proven: Values that the source itself computes. The others are of ``structure`` alone (its shapes, masks, helper values),
            computed from proven values by ONNX Runtime and believed as far as what is computed from them is proven.
        departing: Values that ``structure``'s own node makes otherwise than the source: the exporter's faults.
        uncovered: Nodes whose outputs have no truth, with the reason, for people.
        retrace: The truth for other images.
    """

    images: Images
    structure: Structure
    values: Mapping[str, npt.NDArray[Any]]
    allowed: Mapping[str, float]
    errors: Mapping[str, float]
    modules: Mapping[str, str]
    proven: frozenset[str]
    departing: frozenset[str]
    uncovered: tuple[str, ...]
    retrace: Callable[[Images], Trace]


def allowed_difference(value: npt.NDArray[Any], own_error: float, n_terms: float = 0) -> float:
    """What float32 arithmetic explains at one value: ``max(16 * own_error, max(16, n_terms / 16) * eps * max |value|)``.

    0 for what is no float.

    Args:
        value: The truth.
        own_error: The source's own float32 error there; where it is not finite only the floor counts.
        n_terms: How many terms are added without weights, where the value is a mean or a sum.
    """
    if value.dtype.kind != "f" or value.size == 0:
        return 0.0
    finite = np.abs(value[np.isfinite(value)])
    floor = max(FLOOR_EPS, n_terms / TERMS_PER_EPS) * _EPS * float(finite.max(initial=0.0))
    return max(OWN_ERROR_FACTOR * own_error, floor) if np.isfinite(own_error) else floor


def trace_network(graph: ExportedGraph, images: Images, memory_bytes: int = MEMORY_BYTES) -> Trace:
    """The truth of a network that Convoy exported, from its PyTorch program in float64.

    Values that only the ONNX graph has come from the fresh export, each of its nodes run by itself on true inputs; where such a
    node gives another value than PyTorch the exporter is at fault, and helper values that lead there alone are no truth.

    Args:
        graph: The fresh export. Its model is read again later: break a copy, not it.
        images: uint8, shape (n, H, W, C): two at least, so that what depends on the batch shows.
        memory_bytes: How much of the values stays in memory; the rest lies in a temporary folder.

    Raises:
        ExportError: The program cannot be run by itself.
    """
    structure = Structure.of(graph.proto)
    names = dict(zip(graph.program.graph_signature.user_outputs, structure.outputs, strict=True))
    shared = frozenset(name for name in structure.makers) | frozenset(str(name) for name in names)
    values = Values(memory_bytes)
    allowed: dict[str, float] = {}
    errors: dict[str, float] = {}
    modules = {name: node.module for name, node in structure.makers.items()}
    for step in run_program(graph.program, images, shared):
        name = names.get(step.name, step.name)
        values.add(name, step.value)
        allowed[name] = allowed_difference(step.value, step.own_error)
        errors[name] = step.error
        modules[name] = step.module or modules.get(name, "")
    trace = Trace(
        images=images, structure=structure, values=values, allowed=allowed, errors=errors, modules=modules,
        proven=frozenset(values), departing=frozenset(), uncovered=(),
        retrace=lambda others: trace_network(graph, others, memory_bytes),
    )  # fmt: skip
    return _complete(trace, values, allowed)


def _complete(trace: Trace, values: Values, allowed: dict[str, float]) -> Trace:
    """Run each node of the fresh export on true inputs: prove it, and learn the values that only it has."""
    structure = trace.structure
    feeds_of_images = dict.fromkeys(structure.inputs, trace.images)
    departing: set[str] = set()
    uncovered: list[str] = []
    for node in structure.nodes:
        known = {name: values[name] for name in node.reads if name in values} | feeds_of_images
        feeds = {name: as_datatype(known[name], structure.datatypes.get(name)) for name in node.reads if name in known}
        try:
            made = run_node(structure, node, feeds)
        except NodeError as error:
            departing.update(name for name in node.makes if name in trace.proven)
            uncovered.append(f"{node.name} ({node.op_type}): {error}")
            continue
        for name, own in made.items():
            if name not in trace.proven:
                values.add(name, own.astype(np.float64) if own.dtype == np.float32 else own)
                allowed[name] = allowed_difference(own, 0.0)
                continue
            truth = values[name]
            allowed[name] = max(allowed[name], allowed_difference(truth, 0.0, count_terms(node, feeds, own)))
            if truth.shape != own.shape and truth.size == own.size:  # the exporter may keep sizes as [n] that PyTorch has as n
                truth = truth.reshape(own.shape)
                values.add(name, truth)
            if truth.shape != own.shape or max_abs_diff(truth, own) > allowed[name]:
                departing.add(name)
    for name in _unproven(structure, trace.proven, departing):
        values.drop(name)
        allowed.pop(name, None)
    return dataclasses.replace(trace, departing=frozenset(departing), uncovered=tuple(uncovered))


def count_terms(node: Node, feeds: Mapping[str, npt.NDArray[Any]], made: npt.NDArray[Any]) -> float:
    """How many terms a node adds for each element that it makes, where it is a mean or a sum; else 0."""
    if node.op_type not in AVERAGES or not node.reads or not made.size:
        return 0
    return feeds[node.reads[0]].size / made.size


def _unproven(structure: Structure, proven: frozenset[str], departing: set[str]) -> set[str]:
    """Helper values of the fresh export that lead to departing values only."""
    sound = _helpers_before(structure, proven, [name for name in structure.makers if name in proven - departing])
    return _helpers_before(structure, proven, departing) - sound


def _helpers_before(structure: Structure, proven: frozenset[str], names: set[str] | list[str]) -> set[str]:
    found: set[str] = set()
    stack: list[Node] = [structure.makers[name] for name in names if name in structure.makers]
    while stack:
        for name in stack.pop().reads:
            if name not in proven and name in structure.makers and name not in found:
                found.add(name)
                stack.append(structure.makers[name])
    return found
