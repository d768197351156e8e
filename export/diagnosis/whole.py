"""A file whose nodes all agree one by one: what its border promises, and what it answers as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from convoy.contract.validation import Fault
from convoy.export.diagnosis.difference import max_abs_diff
from convoy.export.diagnosis.running import as_datatype, first_line
from convoy.export.diagnosis.structure import Structure
from convoy.export.diagnosis.trace import Trace, allowed_difference
from convoy.export.diagnosis.walk import Walk
from convoy.export.gate.runtime import Level, open_session

_LEVELS: Final[tuple[Level, ...]] = ("disabled", "all")


def check_border(file: Structure, trace: Trace, image_name: str) -> Fault | None:
    """The file's inputs and outputs beside the source's: names, order, datatypes, dims, a dynamic batch axis."""
    borders = [
        ("input", _border(file, inputs=True), _border(trace.structure, inputs=True)),
        ("output", _border(file, inputs=False), _border(trace.structure, inputs=False)),
    ]
    for side, mine, theirs in borders:
        if sorted(mine) != sorted(theirs):
            cause = f"The file's {side}s are {', '.join(mine)} where the export has {', '.join(theirs)}."
            return _at_border(side, (*mine, *theirs)[0], image_name, cause)
        for name, expected in theirs.items():
            if (said := _compare(name, mine[name], expected)) is not None:
                return _at_border(side, name, image_name, said)
        if list(mine) != list(theirs):
            return _at_border(side, next(iter(mine)), image_name, f"The {side}s stand in another order: {', '.join(mine)}.")
    return None


def check_whole(walk: Walk, model: bytes, image_names: Sequence[str]) -> Fault | None:
    """Run the whole file, without graph optimisations and with all of them.

    Args:
        walk: A walk that found no departing node.
        model: The file's bytes.
        image_names: Of the traced images.
    """
    feeds = {name: as_datatype(walk.trace.images, walk.file.datatypes.get(name)) for name in walk.file.inputs}
    departing: dict[str, tuple[str, float, float]] = {}
    for level in _LEVELS:
        try:
            session = open_session(model, level=level, threads=1)
            arrays = dict(zip(walk.file.outputs, session.run(list(walk.file.outputs), feeds), strict=True))
        except Exception as error:  # noqa: BLE001 ONNX Runtime's exceptions have no public common base
            return _failing(walk, first_line(error), image_names[0], level)
        if (found := _departing(walk.trace, arrays)) is not None:
            departing[level] = found
    if not departing:
        return None
    output, diff, allowed = next(iter(departing.values()))
    if "disabled" not in departing:
        cause = (
            "Every node agrees by itself, and so does the file without graph optimisations; with all of them it departs: "
            "ONNX Runtime's own rewriting of the graph makes this difference."
        )
        return _at_node(walk, output, diff, allowed, image_names[0], cause, walk.file.makers[output].index)
    return _at_node(walk, output, diff, allowed, image_names[0], *_piled_up(walk, output))


def _piled_up(walk: Walk, output: str) -> tuple[str, int]:
    """The cause and the node where no node departs by itself: that which is not the export's own and adds most."""
    if not walk.shares:
        seen = "no node departs by itself, and all are the export's own; the difference piles up over the whole graph"
        return f"Unknown: {seen}.", walk.file.makers[output].index
    index, share = max(walk.shares.items(), key=lambda item: item[1])
    cause = (
        "Small differences grow downstream: no node departs by itself; this one, which is not as the export has it, adds most "
        f"({share:.1%} of what is allowed there)."
    )
    return cause, index


def _departing(trace: Trace, arrays: dict[str, npt.NDArray[Any]]) -> tuple[str, float, float] | None:
    for name, actual in arrays.items():
        truth = trace.values.get(name)
        if truth is None:
            continue
        allowed = allowed_difference(truth, trace.errors.get(name, 0.0))
        diff = max_abs_diff(truth, actual) if truth.shape == actual.shape else np.inf
        if diff > allowed:
            return name, diff, allowed
    return None


def _failing(walk: Walk, message: str, image_name: str, level: str) -> Fault:
    named = next((node for node in walk.file.nodes if node.proto.name and node.proto.name in message), None)
    where = "" if level == "disabled" else " once it optimises the graph"
    return Fault(
        node=named.name if named else "", op_type=named.op_type if named else "", module=named.module if named else "",
        output=next(iter(named.makes), "") if named else "", max_abs_diff=None, allowed=None, image=image_name,
        cause=f"Every node runs by itself and agrees, but ONNX Runtime refuses the whole file{where}: {message}",
    )  # fmt: skip


def _at_node(walk: Walk, output: str, diff: float, allowed: float, image_name: str, cause: str, index: int) -> Fault:
    node = walk.file.nodes[index]
    made = next(iter(node.makes), output)
    return Fault(
        node=node.name, op_type=node.op_type, module=walk.trace.modules.get(made, "") or node.module, output=made,
        max_abs_diff=diff if np.isfinite(diff) else None, allowed=allowed, image=image_name,
        cause=f"{cause} The numbers are those of the output {output}.",
    )  # fmt: skip


def _at_border(side: str, name: str, image_name: str, cause: str) -> Fault:
    return Fault(
        node=name, op_type=f"graph {side}", module="", output=name, max_abs_diff=None, allowed=None, image=image_name, cause=cause
    )


def _border(structure: Structure, *, inputs: bool) -> dict[str, onnx.TypeProto.Tensor]:
    graph = structure.model.graph
    values = [value for value in graph.input if value.name not in structure.weights] if inputs else graph.output
    return {value.name: value.type.tensor_type for value in values}


def _compare(name: str, mine: onnx.TypeProto.Tensor, theirs: onnx.TypeProto.Tensor) -> str | None:
    if mine.elem_type != theirs.elem_type:
        kinds = [onnx.TensorProto.DataType.Name(side.elem_type) for side in (mine, theirs)]
        return f"{name} is {kinds[0]} where the export has {kinds[1]}."
    found, expected = ([dim.dim_value or "dynamic" for dim in side.shape.dim] for side in (mine, theirs))
    if found == expected or not mine.HasField("shape"):
        return None
    if expected and found[1:] == expected[1:] and expected[0] == "dynamic":
        return f"The batch axis of {name} is fixed to {found[0]}."
    return f"The shape of {name} is {found} where the export has {expected}."
