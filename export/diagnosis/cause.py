"""What went wrong at a node, from evidence: its attributes, weights and wiring beside the fresh export's, then its numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from convoy.export.diagnosis.difference import agree, differences, find_permutation
from convoy.export.diagnosis.running import NodeError, as_datatype, run_node
from convoy.export.diagnosis.structure import Node, Structure, attributes, opset_version
from convoy.export.diagnosis.walk import Departure, Walk
from convoy.export.gate.runtime import open_session

Value = npt.NDArray[Any]
_CONTRACTIONS = {"Conv", "Gemm", "MatMul", "ConvTranspose"}
_MAX_FLOAT16 = 65504.0


@dataclass(frozen=True)
class _Case:
    """One departure with all that speaks about it."""

    walk: Walk
    departure: Departure

    @property
    def node(self) -> Node:
        return self.departure.node

    @property
    def fresh(self) -> Node | None:
        return None if self.departure.inserted else self.walk.counterpart(self.departure.expected)

    @property
    def file(self) -> Structure:
        return self.walk.file

    @property
    def source(self) -> Structure:
        return self.walk.trace.structure

    @property
    def truth(self) -> Value | None:
        return self.walk.trace.values.get(self.departure.expected)

    def attributes(self, of_source: bool = False) -> dict[str, Any]:
        node, structure = (self.fresh, self.source) if of_source and self.fresh else (self.node, self.file)
        return attributes(node.proto, opset_version(structure.model))


def find_cause(walk: Walk, departure: Departure) -> str:
    """The likeliest cause of a departure in a sentence; where nothing can be told, what was seen.

    Args:
        walk: The walk that found it.
        departure: The node, with what it made and should have made.
    """
    case = _Case(walk, departure)
    found = next(filter(None, (say(case) for say in _SAYINGS)), "")
    return found or _unknown(case)


def _failure(case: _Case) -> str:
    if not case.departure.error:
        return ""
    told = (_fixed_batch, _other_operator, _other_attributes, _other_weights, _other_wiring, _novelty)
    why = next(filter(None, (say(case) for say in told)), "")
    head = f"ONNX Runtime cannot run this {case.node.op_type}"
    return f"{why} {head}: {case.departure.error}" if why else f"{head}: {case.departure.error}"


def _swapped_outputs(case: _Case) -> str:
    """An output that holds what another one should: the two are swapped, or what lies between them is gone."""
    actual, expected, outputs = case.departure.actual, case.departure.expected, case.source.outputs
    if actual is None or expected not in outputs:
        return ""
    for other in outputs:
        if other == expected or not _holds(case, actual, other):
            continue
        counterpart = _output(case, other)
        if counterpart is not None and _holds(case, counterpart, expected):
            return f"Outputs swapped: what is called {expected} holds {other}, and {other} holds {expected}."
        between = case.source.makers[expected].op_type
        return f"Missing: {expected} holds what {other} should; the export has a {between} between them."
    return ""


def _holds(case: _Case, actual: Value, name: str) -> bool:
    truth = case.walk.trace.values.get(name)
    return truth is not None and agree(truth, actual, 4 * case.walk.trace.allowed.get(name, 0.0))


def _output(case: _Case, name: str) -> Value | None:
    """What the whole file gives as one of its outputs; None where it gives nothing."""
    feeds = {given: as_datatype(case.walk.trace.images, case.file.datatypes.get(given)) for given in case.file.inputs}
    try:
        session = open_session(case.file.model.SerializeToString(), level="disabled", threads=1)
        value: Value = session.run([name], feeds)[0]
    except Exception:  # noqa: BLE001 ONNX Runtime's exceptions have no public common base; then nothing speaks for a swap
        return None
    return value


def _fixed_batch(case: _Case) -> str:
    n = len(case.walk.trace.images)
    if case.node.op_type not in ("Reshape", "Expand") or len(case.node.proto.input) < 2:
        return ""
    target = _constant(case.file, case.node.proto.input[1])
    if target is None or target.size == 0 or target.flat[0] in (n, 0, -1):
        return ""
    shape = target.astype(np.int64).ravel().tolist()
    if case.truth is not None and case.truth.ndim and shape[1:] == list(case.truth.shape[1:])[: len(shape) - 1]:
        return f"The batch axis is fixed: this {case.node.op_type} makes shape {shape}, whatever the number of images ({n} here)."
    return f"The shape {shape} of this {case.node.op_type} is fixed and does not fit {n} images."


def _training_mode(case: _Case) -> str:
    mine = case.attributes()
    if case.node.op_type == "BatchNormalization" and mine.get("training_mode"):
        return "Batch normalisation in training mode: it normalises by the batch's own mean and variance, not by the trained ones."
    if case.node.op_type == "Dropout":
        mode = case.node.proto.input[2] if len(case.node.proto.input) > 2 else ""
        flag = _constant(case.file, mode) if mode else None
        if (flag is not None and bool(flag.any())) or _is_random(case):
            return "Dropout in training mode: it drops elements at random."
    return f"This {case.node.op_type} is random: two runs on one input differ." if _is_random(case) else ""


def _is_random(case: _Case) -> bool:
    feeds = case.walk.feeds(case.node)
    try:
        first, second = (run_node(case.file, case.node, feeds) for _ in range(2))
    except NodeError:
        return False
    return any(not np.array_equal(first[name], second[name], equal_nan=first[name].dtype.kind == "f") for name in first)


def _float16(case: _Case) -> str:
    if not _is_float16(case):
        return ""
    values = [value for value in case.walk.feeds(case.node).values() if value.dtype.kind == "f" and value.size]
    largest = max((float(np.abs(value).max()) for value in values), default=0.0)
    if not _finite(case.departure.actual):
        return (
            f"float16 overflows here: it ends at {_MAX_FLOAT16:.0f}, and this {case.node.op_type} is given values up to "
            f"{largest:.3g}; NaN or infinity is first made here."
        )
    return f"This {case.node.op_type} computes in float16, whose steps are 8,192 times as wide as float32's."


def _is_float16(case: _Case) -> bool:
    return any(case.file.datatypes.get(name) == onnx.TensorProto.FLOAT16 for name in (*case.node.makes, *case.node.proto.input))


def _novelty(case: _Case) -> str:
    if not case.departure.inserted:
        return ""
    node = case.node
    if (twin := _twin(case)) is not None and _is_preprocessing(case.source, twin):
        return f"Preprocessing is applied twice: this {node.op_type} repeats {twin.name}."
    if node.op_type == "Transpose":
        return f"Axes swapped: this Transpose (perm {case.attributes().get('perm')}) is not in the export."
    return f"This {node.op_type} is not in the export."


def _twin(case: _Case) -> Node | None:
    """The export's node that computes the same of other inputs."""
    mine = case.file.signature(case.node)
    twins = (node for node in case.source.nodes if case.source.signature(node) == mine and node.reads)
    return next((node for node in twins if node.makes != case.node.makes), None)


def _other_operator(case: _Case) -> str:
    if case.fresh is None or case.fresh.op_type == case.node.op_type:
        return ""
    if missing := _missing_between(case):
        return missing
    return f"{_a(case.node.op_type)} stands where the export has {_a(case.fresh.op_type)}."


def _other_attributes(case: _Case) -> str:
    if case.fresh is None or case.fresh.op_type != case.node.op_type:
        return ""
    mine, theirs = case.attributes(), case.attributes(of_source=True)
    names = [name for name in (*theirs, *(mine.keys() - theirs.keys())) if not _same(mine.get(name), theirs.get(name))]
    if not names:
        return ""
    said = " and ".join(f"{name} is {_short(mine.get(name))} where the export has {_short(theirs.get(name))}" for name in names)
    return f"Axes swapped: {said}." if names == ["perm"] else f"Another attribute: {said}."


def _other_weights(case: _Case) -> str:
    if case.fresh is None or case.fresh.op_type != case.node.op_type:
        return ""
    for place, (mine, theirs) in enumerate(zip(case.node.proto.input, case.fresh.proto.input, strict=False)):
        actual, expected = _constant(case.file, mine), _constant(case.source, theirs)
        if actual is None or expected is None or _same_array(actual, expected):
            continue
        kind = "bias" if place == 2 and case.node.op_type in _CONTRACTIONS else "weights"
        return f"The {kind} {theirs!r} differ: {describe_difference(expected, actual)}."
    extra = case.node.proto.input[len(case.fresh.proto.input) :]
    if any(name in case.file.weights for name in extra):
        return f"It has a weight more than the export's: {', '.join(map(repr, extra))}."
    return ""


def describe_difference(expected: Value, actual: Value) -> str:
    """In words, how one weight differs from another."""
    if expected.shape != actual.shape:
        axes = find_permutation(expected, actual, 0.0)
        moved = f", axes permuted by {list(axes)}" if axes else ""
        return f"shape {list(actual.shape)} in place of {list(expected.shape)}{moved}"
    if actual.dtype.kind != "f":
        return f"{_short(actual.tolist())} in place of {_short(expected.tolist())}"
    if n_bad := int((~np.isfinite(actual)).sum()):
        return f"{n_bad} of {actual.size} elements are NaN or infinite"
    wide, narrow = expected.astype(np.float64), actual.astype(np.float64)
    changed = wide != narrow
    if (axes := find_permutation(wide, narrow, 0.0)) is not None:
        return f"axes permuted by {list(axes)}"
    for axis in range(wide.ndim):
        if n_moved := _moved(wide, narrow, axis):
            return f"{n_moved} of {wide.shape[axis]} channels of axis {axis} stand in another place"
    if changed.sum() > 1 and (factor := _factor(wide[changed], narrow[changed])) is not None:
        return f"{int(changed.sum())} of {wide.size} elements are {factor:.6g} times the export's"
    first = tuple(int(i) for i in np.argwhere(changed)[0])
    largest = float(np.abs(narrow - wide).max())
    if changed.sum() == 1:
        return f"element {list(first)} is {narrow[first]:.6g} in place of {wide[first]:.6g}"
    return f"{int(changed.sum())} of {wide.size} elements, by at most {largest:.3g}, the first at {list(first)}"


def _moved(expected: Value, actual: Value, axis: int) -> int:
    """How many slices along an axis changed places; 0 where they are not the same but for their order."""
    n = expected.shape[axis]
    if n < 2:
        return 0
    rows = [np.ascontiguousarray(np.moveaxis(a, axis, 0)).reshape(n, -1) for a in (expected, actual)]
    keys = [[row.tobytes() for row in part] for part in rows]
    if sorted(keys[0]) != sorted(keys[1]):
        return 0
    return sum(bool(mine != theirs) for mine, theirs in zip(*keys, strict=True))


def _factor(expected: Value, actual: Value) -> float | None:
    """The one factor between two arrays, to within float32's rounding."""
    known = expected != 0
    if not known.any() or (actual[~known] != 0).any():
        return None
    ratios = actual[known] / expected[known]
    factor = float(np.median(ratios))
    return factor if np.isfinite(factor) and np.abs(ratios - factor).max() <= 1e-5 * abs(factor) else None


def _other_wiring(case: _Case) -> str:
    if case.fresh is None or case.node.reads == case.fresh.reads:
        return ""
    if missing := _missing_between(case):
        return missing
    if (
        (twin := _twin(case)) is not None
        and _is_preprocessing(case.source, twin)
        and case.departure.expected not in case.node.makes
    ):
        return f"Preprocessing is applied twice: this {case.node.op_type} repeats {twin.name}."
    meanings = [case.walk.meanings[name].name if name in case.walk.meanings else name for name in case.node.reads]
    if tuple(meanings) == case.fresh.reads:
        return ""
    if sorted(meanings) == sorted(case.fresh.reads):
        return f"Its inputs are swapped: it reads {', '.join(meanings)} where the export reads {', '.join(case.fresh.reads)}."
    pairs = [(mine, theirs) for mine, theirs in zip(meanings, case.fresh.reads, strict=False) if mine != theirs]
    said = " and ".join(f"{mine!r} where the export reads {theirs!r}" for mine, theirs in pairs)
    return f"Rewired: it reads {said}." if said else "It reads another number of values than the export's."


def _missing_between(case: _Case) -> str:
    """Nodes of the export that the file lacks, between what this node reads and what it should."""
    if case.fresh is None:
        return ""
    read = {case.walk.meanings[name].name if name in case.walk.meanings else name for name in case.node.reads}
    lost = [node for node in _upstream(case.source, case.fresh, read) if not any(name in case.file.makers for name in node.makes)]
    if case.fresh.op_type != case.node.op_type:
        if not any(_alike(case, node) for node in lost):
            return ""
        lost = [node for node in lost if not _alike(case, node)] + [case.fresh]
    if not lost:
        return ""
    names = ", ".join(f"{node.name} ({node.op_type})" for node in lost)
    if all(_is_preprocessing(case.source, node) for node in lost):
        return f"Preprocessing is missing: the export has {names} before this node."
    return f"The export's {names} {'is' if len(lost) == 1 else 'are'} missing before this node."


def _alike(case: _Case, node: Node) -> bool:
    return case.source.signature(node) == case.file.signature(case.node)


def _upstream(source: Structure, node: Node, until: set[str]) -> list[Node]:
    """The nodes above ``node``, in order, down from the values in ``until``; at most a few steps, else they say nothing."""
    found: dict[int, Node] = {}
    edge = [node]
    for _ in range(4):
        edge = [source.makers[name] for other in edge for name in other.reads if name not in until and name in source.makers]
        found.update({other.index: other for other in edge})
        if not edge:
            return [found[index] for index in sorted(found)]
    return [found[index] for index in sorted(found)]


def _is_preprocessing(source: Structure, node: Node) -> bool:
    """Whether a node stands before the first contraction, where pixels are scaled and shifted, and works on pixels."""
    first = next((other.index for other in source.nodes if other.op_type in _CONTRACTIONS), 0)
    return node.index < first and node.op_type in ("Cast", "Div", "Mul", "Sub", "Add", "Transpose", "Where")


def _numbers(case: _Case) -> str:
    actual, truth = case.departure.actual, case.truth
    if actual is None or truth is None:
        return ""
    if not _finite(actual):
        bad = [name for name in case.node.proto.input if name in case.file.weights and not _finite(case.file.array(name))]
        said = f"the weights {bad[0]!r} hold NaN or infinity" if bad else "its inputs are finite"
        return f"NaN or infinity is first made here, though the truth is finite; {said}."
    if actual.shape != truth.shape:
        return f"It makes shape {list(actual.shape)} where {list(truth.shape)} is right."
    allowed = case.walk.trace.allowed[case.departure.expected]
    if (axes := find_permutation(truth, actual, allowed)) is not None:
        return f"Axes swapped: it holds the right elements, axes permuted by {list(axes)}."
    if actual.dtype.kind == "f" and (factor := _output_factor(truth, actual, allowed)) is not None:
        return f"What it makes is {factor:.6g} times what is right."
    return ""


def _output_factor(truth: Value, actual: Value, allowed: float) -> float | None:
    square = float(np.square(truth, dtype=np.float64).sum())
    factor = float((truth * actual).sum()) / square if square else 1.0
    close = float(np.abs(actual - factor * truth).max()) <= 4 * allowed * max(1.0, abs(factor))
    return factor if close and abs(factor - 1) > 1e-6 else None


def _unknown(case: _Case) -> str:
    actual, truth = case.departure.actual, case.truth
    if case.departure.expected in case.walk.trace.departing:
        same = "The file's node is the exporter's own, and it computes something else than PyTorch there; "
    else:
        same = "Unknown: operator, attributes, weights and wiring show no cause; "
    if actual is None or truth is None or actual.shape != truth.shape or actual.dtype.kind not in "fiub":
        return same + "nothing more was seen."
    off = differences(truth, actual) > case.walk.trace.allowed[case.departure.expected]
    return f"{same}{int(off.sum())} of {off.size} elements differ{_concentration(off)}."


def _concentration(off: npt.NDArray[np.bool_]) -> str:
    """Along which axis what differs keeps to some places."""
    for axis in range(1, off.ndim):
        places = off.any(axis=tuple(other for other in range(off.ndim) if other != axis))
        if 0 < places.sum() < len(places):
            return f", in {int(places.sum())} of {len(places)} places of axis {axis}"
    return ""


def _constant(structure: Structure, name: str) -> Value | None:
    """What a value holds where it is a weight, or made by a Constant or an Identity of one."""
    if name in structure.weights:
        return structure.array(name)
    maker = structure.makers.get(name)
    if maker is None or maker.reads:
        return None
    try:
        return run_node(structure, maker, {}).get(name)
    except NodeError:
        return None


def _same(mine: Any, theirs: Any) -> bool:
    return bool(mine == theirs) and type(mine) is type(theirs)


def _same_array(mine: Value, theirs: Value) -> bool:
    return mine.dtype == theirs.dtype and mine.shape == theirs.shape and mine.tobytes() == theirs.tobytes()


def _finite(value: Value | None) -> bool:
    return value is None or value.dtype.kind != "f" or bool(np.isfinite(value).all())


def _short(value: Any) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _a(op_type: str) -> str:
    return f"{'an' if op_type[:1] in 'AEIO' else 'a'} {op_type}"


_SAYINGS: tuple[Callable[[_Case], str], ...] = (
    _failure,
    _swapped_outputs,
    _fixed_batch,
    _training_mode,
    _float16,
    _novelty,
    _other_operator,
    _other_attributes,
    _other_weights,
    _other_wiring,
    _numbers,
)
