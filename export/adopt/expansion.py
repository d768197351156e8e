"""Small files that grow: what nodes would make from constants alone, found without making it.

ONNX Runtime computes constant parts of a graph when it loads it, so forty bytes of Expand can ask for terabytes. This walk
follows shapes, and the values of small integer tensors, through the operators that such graphs are built from. It proves no
file harmless: what it does not follow meets the memory limit of the process that loads the file.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from convoy.contract.errors import ExportError
from convoy.export.adopt.bodies import describe, subgraphs
from convoy.export.adopt.limits import Limits
from convoy.export.adopt.tensors import n_elements

_MAX_KNOWN: Final = 4096  # elements of a tensor whose values are followed
_PX_ATTRIBUTES: Final = frozenset({"pads", "kernel_shape", "output_shape", "output_padding", "dilations", "strides"})
_T: Final = onnx.TensorProto
_NUMBERS: Final = frozenset({
    _T.FLOAT, _T.FLOAT16, _T.DOUBLE, _T.INT8, _T.INT16, _T.INT32, _T.INT64, _T.UINT8, _T.UINT16, _T.UINT32, _T.UINT64, _T.BOOL,
})  # fmt: skip

Array = npt.NDArray[Any]
Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Fact:
    """What is known of a value before anything runs.

    Attributes:
        shape: Its shape; None for an axis that is not known, and as a whole where even the rank is not.
        value: Its elements, where they are few and known.
        constant: Whether it follows from constants alone.
    """

    shape: Shape | None = None
    value: Array | None = None
    constant: bool = False


_UNKNOWN: Final = Fact()
_Facts = ChainMap[str, Fact]
_Attributes = dict[str, Any]


def check_expansion(model: onnx.ModelProto, limits: Limits) -> None:
    """Check that no node of ``model`` makes a giant tensor from what the file says alone.

    Raises:
        ExportError: A tensor would take more than ``limits.max_tensor_bytes`` (unknown axes counted as 1, elements as 4 bytes),
            all constant ones together more than ``limits.max_constants_bytes``, or a node pads by more than
            ``limits.max_pad_px``.
    """
    walk = _Walk(limits)
    walk.graph(model.graph, ChainMap())
    for function in model.functions:
        walk.nodes(function.node, _Facts())


class _Walk:
    def __init__(self, limits: Limits) -> None:
        self.limits, self.constants_bytes = limits, 0

    def graph(self, graph: onnx.GraphProto, outer: _Facts) -> None:
        facts = outer.new_child()
        for tensor in graph.initializer:
            facts[tensor.name] = _stored(tensor)
        for value in graph.input:
            facts[value.name] = Fact(shape=self._declared(value))
        self.nodes(graph.node, facts)

    def nodes(self, nodes: Any, facts: _Facts) -> None:
        for node in nodes:
            for _, inner in subgraphs(node):
                self.graph(inner, facts)
            self._check_attributes(node)
            made = _infer(node, [facts.get(name, _UNKNOWN) if name else _UNKNOWN for name in node.input])
            self._check_size(node, made)
            for output in node.output:
                facts[output] = _UNKNOWN
            if node.output:
                facts[node.output[0]] = made

    def _declared(self, value: onnx.ValueInfoProto) -> Shape | None:
        if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
            return None
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim)
        owner = f"the input {value.name[:120]!r}"
        if n_elements(owner, [dim or 1 for dim in shape], self.limits) * 4 > self.limits.max_tensor_bytes:
            raise ExportError(f"{owner}: expected at most {self.limits.max_tensor_bytes:,} bytes, found the shape {list(shape)}.")
        return shape

    def _check_attributes(self, node: onnx.NodeProto) -> None:
        for attribute in node.attribute:
            if attribute.name not in _PX_ATTRIBUTES:
                continue
            many = len(attribute.ints) > 2 * self.limits.max_rank
            if many or any(abs(entry) > self.limits.max_pad_px for entry in attribute.ints):
                raise ExportError(
                    f"{describe(node)}: expected {attribute.name} of at most {self.limits.max_pad_px:,}, found "
                    f"{list(attribute.ints[:8])}: no image network needs as much."
                )

    def _check_size(self, node: onnx.NodeProto, made: Fact) -> None:
        if made.shape is None:
            return
        claimed = 4 * prod(1 if dim is None else dim for dim in made.shape)
        if claimed > self.limits.max_tensor_bytes:
            raise ExportError(
                f"{describe(node)}: expected a result of at most {self.limits.max_tensor_bytes:,} bytes, found {claimed:,} from "
                "the sizes that the file itself gives: no server could hold it."
            )
        if made.constant and made.value is None:
            self.constants_bytes += claimed
            if self.constants_bytes > self.limits.max_constants_bytes:
                raise ExportError(
                    f"expected results of constants of {self.limits.max_constants_bytes:,} bytes together at most, found more at "
                    f"{describe(node)}: no server could hold them."
                )


def _stored(tensor: onnx.TensorProto) -> Fact:
    return Fact(tuple(tensor.dims), _array(tensor), constant=True)


def _array(tensor: onnx.TensorProto) -> Array | None:
    """The elements of a small tensor of numbers; never of an external one, for which onnx would open a file."""
    if prod(tensor.dims) > _MAX_KNOWN or tensor.data_location == _T.EXTERNAL or tensor.external_data:
        return None
    return numpy_helper.to_array(tensor) if tensor.data_type in _NUMBERS else None


def _infer(node: onnx.NodeProto, inputs: list[Fact]) -> Fact:
    rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    constant = all(fact.constant for fact, name in zip(inputs, node.input, strict=True) if name)
    if rule is None:
        return Fact(constant=constant)
    try:
        attributes = {attribute.name: _attribute(attribute) for attribute in node.attribute}
        with np.errstate(all="ignore"):
            shape, value = rule(inputs, attributes)
    # The rules read attributes and inputs as a well-formed node has them; ONNX's checker says later what is wrong with this one.
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError):
        return Fact(constant=constant)
    if value is not None and (value.size > _MAX_KNOWN or value.dtype.kind not in "biuf"):
        value = None
    return Fact(shape, value, constant)


def _attribute(attribute: onnx.AttributeProto) -> Any:
    if attribute.ref_attr_name or attribute.HasField("g") or attribute.graphs:
        return None
    if max(len(attribute.ints), len(attribute.floats), len(attribute.strings)) > _MAX_KNOWN:
        return None
    if attribute.HasField("t"):
        return attribute.t
    return onnx.helper.get_attribute_value(attribute)


_Made = tuple[Shape | None, Array | None]
_Rule = Callable[[list[Fact], _Attributes], _Made]


def _of_value(value: Array) -> _Made:
    return tuple(value.shape), value


def _ints(fact: Fact) -> list[int] | None:
    return None if fact.value is None else [int(entry) for entry in np.ravel(fact.value)]


def _constant(_: list[Fact], attributes: _Attributes) -> _Made:
    for name, dtype in (
        ("value_int", np.int64),
        ("value_ints", np.int64),
        ("value_float", np.float32),
        ("value_floats", np.float32),
    ):
        if name in attributes:
            return _of_value(np.asarray(attributes[name], dtype=dtype))
    fact = _stored(attributes["value"])
    return fact.shape, fact.value


def _filled(shape: list[int], value: Array | None) -> _Made:
    if value is not None and all(dim >= 0 for dim in shape) and prod(shape) <= _MAX_KNOWN:
        return tuple(shape), np.broadcast_to(np.ravel(value)[0], shape)
    return tuple(max(dim, 0) for dim in shape), None


def _constant_of_shape(inputs: list[Fact], attributes: _Attributes) -> _Made:
    shape = _ints(inputs[0])
    if shape is None:
        return None, None
    stored = attributes.get("value")
    return _filled(shape, _array(stored) if stored is not None else np.zeros(1, np.float32))


def _random(_: list[Fact], attributes: _Attributes) -> _Made:
    return tuple(int(dim) for dim in attributes["shape"]), None


def _broadcast(shapes: list[Shape | None]) -> Shape | None:
    known = [shape for shape in shapes if shape is not None]
    if not known:
        return None
    rank = max(len(shape) for shape in known)
    padded = [(1,) * (rank - len(shape)) + shape for shape in known]
    return tuple(_broadcast_axis(axis) for axis in zip(*padded, strict=True))


def _broadcast_axis(dims: Shape) -> int | None:
    known = [dim for dim in dims if dim is not None]
    longest = max(known, default=1)
    if len(known) < len(dims) and longest <= 1:
        return None
    return 0 if 0 in known and longest == 1 else longest


def _grown(dim: int | None, least: int) -> int | None:
    """An axis that grew from ``dim``; one of unknown length stays so, unless even its least length is large."""
    return None if dim is None and least <= _MAX_KNOWN else max(least, 0)


def _elementwise(function: Callable[..., Array] | None = None) -> _Rule:
    def rule(inputs: list[Fact], _: _Attributes) -> _Made:
        shape = _broadcast([fact.shape for fact in inputs])
        values = [fact.value for fact in inputs]
        small = shape is not None and prod(dim or 1 for dim in shape) <= _MAX_KNOWN
        if function is None or not small or any(value is None for value in values):
            return shape, None
        return _of_value(np.asarray(function(*values)))

    return rule


def _divide(left: Array, right: Array) -> Array:
    return np.trunc(left / right).astype(left.dtype) if left.dtype.kind in "iu" else np.asarray(left / right)


def _expand(inputs: list[Fact], _: _Attributes) -> _Made:
    target = _ints(inputs[1])
    if target is None:
        return None, None
    shape = _broadcast([inputs[0].shape, tuple(target)])
    if shape is not None and inputs[0].value is not None and None not in shape and prod(dim or 0 for dim in shape) <= _MAX_KNOWN:
        return _of_value(np.broadcast_to(inputs[0].value, tuple(dim or 0 for dim in shape)))
    return shape, None


def _tile(inputs: list[Fact], _: _Attributes) -> _Made:
    repeats, shape = _ints(inputs[1]), inputs[0].shape
    if repeats is None or shape is None or len(repeats) != len(shape):
        return None, None
    made = tuple(_grown(dim, (1 if dim is None else dim) * count) for dim, count in zip(shape, repeats, strict=True))
    if inputs[0].value is not None and prod(dim or 0 for dim in made) <= _MAX_KNOWN:
        return _of_value(np.tile(inputs[0].value, [max(count, 0) for count in repeats]))
    return made, None


def _range(inputs: list[Fact], _: _Attributes) -> _Made:
    if any(fact.value is None for fact in inputs):
        return None, None
    start, limit, delta = (np.ravel(fact.value).tolist()[0] for fact in inputs if fact.value is not None)
    count = max(0, int(-((start - limit) // delta)))
    return (count,), np.arange(start, limit, delta) if count <= _MAX_KNOWN else None


def _shape(inputs: list[Fact], attributes: _Attributes) -> _Made:
    shape = inputs[0].shape
    if shape is None:
        return None, None
    part = shape[attributes.get("start", 0) : attributes.get("end", len(shape))]
    known = [dim for dim in part if dim is not None]
    return (len(part),), np.array(known, dtype=np.int64) if len(known) == len(part) else None


def _reshape(inputs: list[Fact], attributes: _Attributes) -> _Made:
    target, shape = _ints(inputs[1]), inputs[0].shape
    if target is None:
        return None, None
    if inputs[0].value is not None and -1 not in target and 0 not in target:
        return _of_value(inputs[0].value.reshape(target))
    keep_zero = bool(attributes.get("allowzero", 0))
    made: list[int | None] = [shape[i] if dim == 0 and not keep_zero and shape else dim for i, dim in enumerate(target)]
    return tuple(None if dim == -1 else dim for dim in made), None


def _concat(inputs: list[Fact], attributes: _Attributes) -> _Made:
    values = [fact.value for fact in inputs if fact.value is not None]
    axis = int(attributes["axis"])
    if len(values) == len(inputs) and sum(value.size for value in values) <= _MAX_KNOWN:
        return _of_value(np.concatenate(values, axis))
    shapes = [fact.shape for fact in inputs if fact.shape is not None]
    if len(shapes) != len(inputs):
        return None, None
    made = list(shapes[0])
    lengths = [shape[axis] for shape in shapes]
    made[axis] = _grown(None if None in lengths else 0, sum(1 if length is None else length for length in lengths))
    return tuple(made), None


def _axes(inputs: list[Fact], attributes: _Attributes) -> list[int] | None:
    return attributes["axes"] if "axes" in attributes else _ints(inputs[1])  # an input since opset 13


def _unsqueeze(inputs: list[Fact], attributes: _Attributes) -> _Made:
    axes, shape = _axes(inputs, attributes), inputs[0].shape
    if axes is None or shape is None:
        return None, None
    rank, left = len(shape) + len(axes), list(shape)
    places = {axis % rank for axis in axes}
    made = tuple(1 if axis in places else left.pop(0) for axis in range(rank))
    return made, None if inputs[0].value is None else inputs[0].value.reshape([dim or 0 for dim in made])


def _squeeze(inputs: list[Fact], attributes: _Attributes) -> _Made:
    shape = inputs[0].shape
    if shape is None:
        return None, None
    axes = _axes(inputs, attributes) if "axes" in attributes or len(inputs) > 1 else [i for i, dim in enumerate(shape) if dim == 1]
    if axes is None:
        return None, None
    places = {axis % len(shape) for axis in axes}
    made = tuple(dim for i, dim in enumerate(shape) if i not in places)
    return made, None if inputs[0].value is None else inputs[0].value.reshape([dim or 0 for dim in made])


def _gather(inputs: list[Fact], attributes: _Attributes) -> _Made:
    data, indices = inputs[0], inputs[1]
    axis = int(attributes.get("axis", 0))
    if data.shape is None or indices.shape is None:
        return None, None
    axis %= len(data.shape)
    made = data.shape[:axis] + indices.shape + data.shape[axis + 1 :]
    if data.value is not None and indices.value is not None and prod(dim or 0 for dim in made) <= _MAX_KNOWN:
        return _of_value(np.asarray(np.take(data.value, indices.value, axis)))
    return made, None


def _cast(inputs: list[Fact], attributes: _Attributes) -> _Made:
    if inputs[0].value is None:
        return inputs[0].shape, None
    return inputs[0].shape, inputs[0].value.astype(onnx.helper.tensor_dtype_to_np_dtype(attributes["to"]))


def _same(inputs: list[Fact], _: _Attributes) -> _Made:
    return inputs[0].shape, inputs[0].value


def _transpose(inputs: list[Fact], attributes: _Attributes) -> _Made:
    shape = inputs[0].shape
    if shape is None:
        return None, None
    order = attributes.get("perm", list(range(len(shape)))[::-1])
    return tuple(shape[axis] for axis in order), None if inputs[0].value is None else inputs[0].value.transpose(order)


def _matmul(inputs: list[Fact], _: _Attributes) -> _Made:
    left, right = inputs[0].shape, inputs[1].shape
    if left is None or right is None or len(left) < 2 or len(right) < 2:
        return None, None
    batch = _broadcast([left[:-2], right[:-2]])
    return (*(batch or ()), left[-2], right[-1]), None


def _pad(inputs: list[Fact], attributes: _Attributes) -> _Made:
    pads, shape = attributes.get("pads") or _ints(inputs[1]), inputs[0].shape
    if pads is None or shape is None or len(pads) != 2 * len(shape):
        return None, None
    return tuple(_grown(dim, (1 if dim is None else dim) + pads[i] + pads[i + len(shape)]) for i, dim in enumerate(shape)), None


def _resize(inputs: list[Fact], attributes: _Attributes) -> _Made:
    shape = inputs[0].shape
    scales = attributes.get("scales")  # an attribute before opset 9, the second input until 10, the third since 11
    if scales is None and len(inputs) > 1:
        factors = inputs[min(len(inputs), 3) - 1].value
        scales = None if factors is None else factors.ravel().tolist()
    sizes = _ints(inputs[3]) if len(inputs) > 3 else None
    if sizes:
        return tuple(sizes), None
    if shape is None or scales is None or len(scales) != len(shape):
        return None, None
    return tuple(_grown(dim, int((1 if dim is None else dim) * scale)) for dim, scale in zip(shape, scales, strict=True)), None


def _one_hot(inputs: list[Fact], _: _Attributes) -> _Made:
    shape, depth = inputs[0].shape, _ints(inputs[1])
    return (None, None) if shape is None or depth is None else ((*shape, depth[0]), None)


_RULES: Final[dict[str, _Rule]] = {
    "Constant": _constant, "ConstantOfShape": _constant_of_shape, "RandomNormal": _random, "RandomUniform": _random,
    "Expand": _expand, "Tile": _tile, "Range": _range, "Shape": _shape, "Reshape": _reshape, "Concat": _concat,
    "Unsqueeze": _unsqueeze, "Squeeze": _squeeze, "Gather": _gather, "Cast": _cast, "Identity": _same, "Dropout": _same,
    "Transpose": _transpose, "MatMul": _matmul, "Pad": _pad, "Resize": _resize, "Upsample": _resize, "OneHot": _one_hot,
    "Add": _elementwise(np.add), "Sub": _elementwise(np.subtract), "Mul": _elementwise(np.multiply), "Div": _elementwise(_divide),
    "Pow": _elementwise(np.power), "Max": _elementwise(), "Min": _elementwise(), "Sum": _elementwise(), "Where": _elementwise(),
    "Equal": _elementwise(), "Less": _elementwise(), "Greater": _elementwise(), "And": _elementwise(), "Or": _elementwise(),
    "Mod": _elementwise(), "Relu": _elementwise(), "Sigmoid": _elementwise(), "Exp": _elementwise(), "Sqrt": _elementwise(),
    "Neg": _elementwise(np.negative), "Abs": _elementwise(np.abs), "Not": _elementwise(), "Clip": _same, "EyeLike": _elementwise(),
    "RandomNormalLike": _elementwise(), "RandomUniformLike": _elementwise(),
}  # fmt: skip
