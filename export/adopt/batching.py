"""From a batch that a file bakes in to one that is free: only where it can be shown that each image keeps its place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx

from convoy.contract.errors import ExportError
from convoy.export.adopt.names import Shape, attribute, bodies, every_name, opset_version, title
from convoy.export.adopt.shapes import Numbers, Whole, infer_shapes, known, reshaped

_PROBE: Final = 8191
"""A prime that no other axis has: where it divides a dim, that axis holds the batch."""

ONE_BY_ONE: Final = "--max-batch-size 1 serves it one image at a time"
_SHAPE_READERS: Final = {"Shape", "Size"}


def free_batch(model: onnx.ModelProto, input_name: str, batch: int | None) -> tuple[str, ...]:
    """Make the batch axis of a graph free.

    With the input's first axis set to a large prime, ONNX's shape inference shows where the batch goes and where a node bakes the
    old one in. A Reshape to a constant shape keeps the order of elements, so the batch must come out where as many elements lie
    before it as went in; there its dim becomes 0 (copy) or -1 (what is left). An Expand to the old batch keeps the axis open; a
    constant that is joined to a batch (a class token) is repeated for it; a Squeeze that names no axes gets those that it has.

    Args:
        model: Changed in place. Its input and outputs carry no other axes that are open.
        input_name: The input.
        batch: The batch that the file declares; None where it declares an open one (and may bake in 1 all the same).

    Returns:
        What was changed, for people.

    Raises:
        ExportError: A node bakes the batch in or mixes images, and there is no sure way around; the message names it.
    """
    old = batch or 1
    model.graph.ClearField("value_info")
    changed: dict[str, None] = {}
    for _ in range(4 * len(model.graph.node) + 1):
        freer = _Freer.look(model, input_name, old)
        if freer.fold():
            continue
        node = freer.fix_next()
        if node is None:
            break
        changed[node] = None
    freer = _Freer.look(model, input_name, old)
    if culprit := freer.culprit():
        raise ExportError(f"the batch of {old} is baked in: {culprit}; {ONE_BY_ONE}.")
    remarks = [f"the batch axis, {batch} in the file, is free"] if batch is not None else []
    if changed:
        names = ", ".join(list(changed)[:5]) + (", ..." if len(changed) > 5 else "")
        remarks.append(f"{len(changed)} nodes that baked a batch of {old} in were freed: {names}")
    return tuple(remarks)


@dataclass
class _Freer:
    """One look at the graph with the prime in its batch axis.

    Attributes:
        model: The graph.
        before: Shapes at the old batch.
        now: Shapes at the prime.
        old: The old batch.
        input_name: The input.
    """

    model: onnx.ModelProto
    before: dict[str, Shape]
    now: dict[str, Shape]
    old: int
    input_name: str

    @classmethod
    def look(cls, model: onnx.ModelProto, input_name: str, old: int) -> _Freer:
        """Infer both shapes."""
        return cls(model, infer_shapes(model, input_name, old), infer_shapes(model, input_name, _PROBE), old, input_name)

    def __post_init__(self) -> None:
        self._numbers = Numbers(self.model, self.now)
        self._old_numbers = Numbers(self.model, self.before)
        self._outer: dict[str, int] = {}
        for node in self.model.graph.node:
            self._follow(node)

    def fold(self) -> bool:
        """Store whole numbers that are the same at any batch, which inference does not always follow; whether there were any."""
        graph = self.model.graph
        folded: dict[str, onnx.TensorProto] = {}
        kept = []
        for node in graph.node:
            numbers = self._same_numbers(node) if node.op_type != "Constant" else None
            if numbers is None:
                kept.append(node)
            else:
                folded[node.output[0]] = onnx.numpy_helper.from_array(numbers, node.output[0])
        if folded:
            copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
            del graph.node[:]
            graph.node.extend(copies)
            graph.initializer.extend(folded.values())
        return bool(folded)

    def _same_numbers(self, node: onnx.NodeProto) -> Whole | None:
        if len(node.output) != 1 or any(value.name == node.output[0] for value in self.model.graph.output):
            return None
        now = self._numbers.of(node.output[0])
        before = None if now is None else self._old_numbers.of(node.output[0])
        if now is None or before is None or now.dtype != before.dtype or not np.array_equal(now, before):
            return None
        return np.ascontiguousarray(now)

    def fix_next(self) -> str | None:
        """Free the first node that bakes the batch in and can be freed; its title, or None where there is none."""
        for index, node in enumerate(self.model.graph.node):
            if node.domain not in ("", "ai.onnx"):
                continue
            if self._fix(node, index):
                return title(node)
        return None

    def _fix(self, node: onnx.NodeProto, index: int) -> bool:
        if node.op_type == "Concat":
            return self._fix_concat(node, index)
        fixes = {"Reshape": self._fix_reshape, "Expand": self._fix_expand, "Squeeze": self._fix_squeeze}
        return node.op_type in fixes and fixes[node.op_type](node)

    def _batch_axis(self, name: str) -> int | None:
        """The axis of ``name`` that holds the batch; None where none does, or that cannot be told."""
        shape = self.now.get(name)
        axes = [axis for axis, dim in enumerate(shape or ()) if dim is not None and dim and dim % _PROBE == 0]
        return axes[0] if len(axes) == 1 else None

    def _follow(self, node: onnx.NodeProto) -> None:
        """Note how many blocks of other things lie before the batch inside its own axis, where axes were merged."""
        carriers = [(name, axis) for name in node.input if (axis := self._batch_axis(name)) is not None]
        for output in node.output if carriers else ():
            axis = self._batch_axis(output)
            if axis is None:
                continue
            if node.op_type == "Reshape":
                blocks, before = self._blocks_before(node.input[0]), known(self.now[output][:axis])
                if blocks and before is not None and blocks % math.prod(before) == 0:
                    self._outer[output] = blocks // math.prod(before)
                continue
            same = [name for name, place in carriers if self.now[name][place] == self.now[output][axis]]
            self._outer[output] = max((self._outer.get(name, 1) for name in same), default=1)

    def _blocks_before(self, name: str) -> int | None:
        """How many blocks of other things lie before the batch in row-major order; None where that cannot be told."""
        axis = self._batch_axis(name)
        before = None if axis is None else known(self.now[name][:axis])
        return None if before is None else math.prod(before) * self._outer.get(name, 1)

    def _fix_reshape(self, node: onnx.NodeProto) -> bool:
        target = self._numbers.of(node.input[1])
        axis = self._batch_axis(node.input[0])
        if target is None or axis is None:
            return False
        zero_is_zero = attribute(node, "allowzero", 0) == 1
        data, result = known(self.now.get(node.input[0])), self._old_result(node, zero_is_zero=zero_is_zero)
        if data is None or result is None:
            # Open dims elsewhere: only a leading batch that stays leading can be seen through.
            if axis == 0 and len(target) and target[0] == self.old and not zero_is_zero and self.now[node.input[0]][0] == _PROBE:
                return self._set_shape(node, [0, *(int(dim) for dim in target[1:])])
            return False
        told = reshaped(target, data, zero_is_zero=zero_is_zero)
        choices: dict[tuple[int, ...], list[int]] = {}
        for place in _places(math.prod(data[:axis]) * self._outer.get(node.input[0], 1), result, self.old):
            wanted = (*result[:place], result[place] // self.old * _PROBE, *result[place + 1 :])
            copies = place == axis and data[axis] == wanted[place] == _PROBE and not zero_is_zero
            dims = [*result[:place], 0 if copies else -1, *result[place + 1 :]]
            if reshaped(np.array(dims), data, zero_is_zero=zero_is_zero) == wanted:
                choices[wanted] = dims
        if not choices or (told in choices and known(self.now.get(node.output[0])) == told):
            return False
        if told in choices:
            return self._set_shape(node, choices[told])
        return self._set_shape(node, self._first_that_fits(node, list(choices.values())))

    def _first_that_fits(self, node: onnx.NodeProto, choices: list[list[int]]) -> list[int]:
        """The first shape with which the nodes that read the result still work."""
        if len(choices) == 1:
            return choices[0]
        read = [
            name
            for reader in self.model.graph.node
            if node.output[0] in reader.input
            for name in reader.output
            if known(self.before.get(name)) is not None
        ]
        was = node.input[1]
        for dims in choices:
            self._set_shape(node, dims)
            after = infer_shapes(self.model, self.input_name, _PROBE)
            del self.model.graph.initializer[-1]
            node.input[1] = was
            if all(known(after.get(name)) is not None for name in read):
                return dims
        return choices[0]

    def _old_result(self, node: onnx.NodeProto, *, zero_is_zero: bool) -> tuple[int, ...] | None:
        """What a Reshape gives at the old batch, also where inference could not follow how its shape is computed."""
        inferred, data = known(self.before.get(node.output[0])), known(self.before.get(node.input[0]))
        target = self._old_numbers.of(node.input[1])
        return inferred or (reshaped(target, data, zero_is_zero=zero_is_zero) if target is not None and data is not None else None)

    def _fix_expand(self, node: onnx.NodeProto) -> bool:
        target = self._numbers.of(node.input[1])
        data, old_data = self.now.get(node.input[0]), self.before.get(node.input[0])
        if target is None or data is None or old_data is None or not len(target):
            return False
        offset = len(target) - len(data)
        axis = self._batch_axis(node.input[0])
        if axis is not None and axis + offset >= 0 and target[axis + offset] not in (1, _PROBE):
            dims = [int(dim) for dim in target]
            dims[axis + offset] = 1
            return self._set_shape(node, dims)
        # A single row that is repeated for the old batch: leave it single; what it meets then repeats it.
        if axis is None and self.old > 1 and target[0] == self.old and (offset > 0 or data[0] == 1):
            return self._set_shape(node, [1, *(int(dim) for dim in target[1:])])
        return False

    def _fix_squeeze(self, node: onnx.NodeProto) -> bool:
        has_axes = attribute(node, "axes") is not None or (len(node.input) > 1 and node.input[1])
        data = known(self.now.get(node.input[0]))
        if has_axes or data is None or self._batch_axis(node.input[0]) is None:
            return False
        axes = [axis for axis, dim in enumerate(data) if dim == 1]
        if opset_version(self.model) < 13:
            node.attribute.append(onnx.helper.make_attribute("axes", axes))
        else:
            del node.input[1:]
            node.input.append(self._add(axes, node.output[0]))
        return True

    def _fix_concat(self, node: onnx.NodeProto, index: int) -> bool:
        if opset_version(self.model) < 8:
            return False
        carriers = [(name, axis) for name in node.input if (axis := self._batch_axis(name)) is not None]
        along = attribute(node, "axis", 1)
        if not carriers or not isinstance(along, int):
            return False
        reference, axis = carriers[0]
        rank = len(self.now[reference])
        if axis == along % rank or any(other != axis for _, other in carriers):
            return False
        for i, name in enumerate(node.input):
            shape = self.now.get(name)
            if shape is not None and len(shape) == rank and shape[axis] == 1:
                node.input[i] = self._repeat(name, reference, axis, rank, index)
                return True
        return False

    def _repeat(self, name: str, reference: str, axis: int, rank: int, index: int) -> str:
        """Nodes before ``index`` that repeat the single row ``name`` along ``axis`` as often as ``reference`` is long there."""
        taken = every_name(self.model.graph)
        shape, batch, dims, repeated = (_free_name(f"{name}/{part}", taken) for part in ("shape", "batch", "dims", "repeated"))
        at = self._add([axis], f"{name}/axis")
        parts = [batch]
        if axis:
            parts.insert(0, self._add([1] * axis, f"{name}/before"))
        if rank - axis - 1:
            parts.append(self._add([1] * (rank - axis - 1), f"{name}/after"))
        nodes = [
            onnx.helper.make_node("Shape", [reference], [shape], name=shape),
            onnx.helper.make_node("Gather", [shape, at], [batch], name=batch, axis=0),
            onnx.helper.make_node("Concat", parts, [dims], name=dims, axis=0),
            onnx.helper.make_node("Expand", [name, dims], [repeated], name=repeated),
        ]
        for offset, node in enumerate(nodes):
            self.model.graph.node.insert(index + offset, node)
        return repeated

    def _set_shape(self, node: onnx.NodeProto, dims: list[int]) -> bool:
        node.input[1] = self._add(dims, node.output[0])
        return True

    def _add(self, values: list[int], hint: str) -> str:
        """A new initialiser: the old one may be shared with nodes that need it as it is."""
        name = _free_name(f"{hint}/freed", every_name(self.model.graph))
        self.model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, dtype=np.int64), name))
        return name

    def culprit(self) -> str | None:
        """The first node that bakes the batch in, with how it does; None where every output keeps the batch."""
        for node in self.model.graph.node:
            if node.op_type in _SHAPE_READERS or not any(self._carries(name) for name in node.input):
                continue
            for name in node.output:
                if name not in self.before or any(True for _ in bodies(node)):
                    continue
                if name not in self.now or (None in self.now[name] and None not in self.before[name]):
                    return f"the node {title(node)} does not work with another batch: {self._shapes(node)}"
                if None not in self.now[name] and not self._carries(name) and _is_used(self.model.graph, name):
                    return (
                        f"the node {title(node)} makes {list(self.now[name])} from a batch of images, so it drops all but "
                        "one of them, or mixes them"
                    )
        for value in self.model.graph.output:
            shape = self.now.get(value.name)
            if shape is not None and None not in shape and not self._carries(value.name):
                return f"the output {value.name!r} is of shape {list(shape)} whatever the batch"
        return None

    def _carries(self, name: str) -> bool:
        return any(dim is not None and dim > 0 and dim % _PROBE == 0 for dim in self.now.get(name, ()))

    def _shapes(self, node: onnx.NodeProto) -> str:
        """The input shapes of a node at the old batch, and the constant that it is told, for people."""
        shapes = [f"{list(self.before[name])}" for name in node.input if name in self.before]
        target = self._old_numbers.of(node.input[1]) if node.op_type in ("Reshape", "Expand") and len(node.input) > 1 else None
        told = f", told the shape {target.tolist()}" if target is not None else ""
        return f"inputs {', '.join(shapes)} at a batch of {self.old}{told}"


def _places(before: int, result: tuple[int, ...], old: int) -> list[int]:
    """The axes of a Reshape's result in which a batch can belong that has ``before`` elements of other axes before it.

    Row-major order: the product of the dims before an axis says how many blocks there are around it, and Reshape keeps that. The
    batch goes into the axis before which there are exactly so many (merged with what lies behind it, heads of attention, say), or
    into the one at whose end there are (merged with what lies before it).
    """
    products = [math.prod(result[:axis]) for axis in range(len(result) + 1)]
    exact = [axis for axis, dim in enumerate(result) if products[axis] == before and dim % old == 0]
    merged = [
        axis
        for axis in range(len(result))
        if products[axis] and before % products[axis] == 0 and products[axis + 1] == before * old and axis not in exact
    ]
    return [*exact[:1], *merged[:1]]


def _is_used(graph: onnx.GraphProto, name: str) -> bool:
    return any(name in node.input for node in graph.node) or any(value.name == name for value in graph.output)


def _free_name(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name
