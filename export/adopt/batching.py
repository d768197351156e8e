"""From a batch that a file bakes in to one that is free: only where it can be shown that each image keeps its place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx

from convoy.contract.errors import ExportError
from convoy.export.adopt.names import Shape, attribute, bodies, every_name, opset_version, title
from convoy.export.adopt.shapes import constant, infer_shapes, known, reshaped

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
    before = infer_shapes(model, input_name, old)
    changed: dict[str, None] = {}
    for _ in range(4 * len(model.graph.node) + 1):
        freer = _Freer(model, before, infer_shapes(model, input_name, _PROBE), old)
        node = freer.fix_next()
        if node is None:
            break
        changed[node] = None
    freer = _Freer(model, before, infer_shapes(model, input_name, _PROBE), old)
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
    """

    model: onnx.ModelProto
    before: dict[str, Shape]
    now: dict[str, Shape]
    old: int

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

    def _fix_reshape(self, node: onnx.NodeProto) -> bool:
        target = constant(self.model.graph, node.input[1])
        axis = self._batch_axis(node.input[0])
        if target is None or axis is None:
            return False
        zero_is_zero = attribute(node, "allowzero", 0) == 1
        data, result = known(self.now.get(node.input[0])), known(self.before.get(node.output[0]))
        if data is None or result is None:
            # Open dims elsewhere: only a leading batch that stays leading can be seen through.
            if axis == 0 and len(target) and target[0] == self.old and not zero_is_zero and self.now[node.input[0]][0] == _PROBE:
                return self._set_shape(node, [0, *(int(dim) for dim in target[1:])])
            return False
        place = _place(math.prod(data[:axis]), result, self.old)
        if place is None:
            return False
        wanted = (*result[:place], result[place] // self.old * _PROBE, *result[place + 1 :])
        if reshaped(target, data, zero_is_zero=zero_is_zero) == wanted:
            return False
        copies = place == axis and data[axis] == wanted[place] == _PROBE and not zero_is_zero
        dims = [*result[:place], 0 if copies else -1, *result[place + 1 :]]
        if reshaped(np.array(dims), data, zero_is_zero=zero_is_zero) != wanted:
            return False
        return self._set_shape(node, dims)

    def _fix_expand(self, node: onnx.NodeProto) -> bool:
        target = constant(self.model.graph, node.input[1])
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
        target = (
            constant(self.model.graph, node.input[1]) if node.op_type in ("Reshape", "Expand") and len(node.input) > 1 else None
        )
        told = f", told the shape {target.tolist()}" if target is not None else ""
        return f"inputs {', '.join(shapes)} at a batch of {self.old}{told}"


def _place(before: int, result: tuple[int, ...], old: int) -> int | None:
    """The axis of a Reshape's result in which a batch belongs that has ``before`` elements of other axes before it.

    Row-major order: the product of the dims before an axis says how many blocks there are around it, and Reshape keeps that.
    """
    product = 1
    for axis, dim in enumerate(result):
        if product == before and dim % old == 0:
            return axis
        product *= dim
    product = 1
    for axis, dim in enumerate(result):  # merged with what lies before it
        if product and before % product == 0 and (product * dim) % (before * old) == 0:
            return axis
        product *= dim
    return None


def _is_used(graph: onnx.GraphProto, name: str) -> bool:
    return any(name in node.input for node in graph.node) or any(value.name == name for value in graph.output)


def _free_name(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name
