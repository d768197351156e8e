"""What each tensor operation does to receptive fields: one rule an operation of ``torch.ops.aten``.

A rule may be missing: what an operation gives is then not followed any further, and says so. It must never be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor

from convoy.training.anatomy.reach import COLUMNS, ROWS, Reach


@dataclass(frozen=True, eq=False)
class Followed:
    """A tensor whose receptive fields are known.

    Attributes:
        reach: They.
        dims: The tensor's dimensions that are the map's rows and columns; None where the map has one position along them.
        merged_dim: The dimension into which positions were flattened: its features see no more than ``reach``, and what a layer
            computes of all of them sees exactly that. None where none was.
    """

    reach: Reach
    dims: tuple[int | None, int | None]
    merged_dim: int | None = None

    @classmethod
    def image(cls, shape: Sequence[int]) -> Followed:
        """The input, (N, C, H, W)."""
        return cls(Reach.of_image(shape[2], shape[3]), (2, 3))._without_single_positions()

    @property
    def is_map(self) -> bool:
        """Whether it has positions, so that features differ in what they see."""
        return self.merged_dim is None and self.dims != (None, None)

    def move(self, to: Callable[[int], int | None]) -> Followed:
        """With each dimension ``d`` renamed to ``to(d)``."""
        rows, columns = (None if dim is None else to(dim) for dim in self.dims)
        return replace(self, dims=(rows, columns), merged_dim=None if self.merged_dim is None else to(self.merged_dim))

    def each_axis(self, change: Callable[[Reach, int, int], Reach]) -> Followed:
        """With ``change(reach, axis, dim)`` done to each axis that has positions."""
        reach = self.reach
        for axis, dim in enumerate(self.dims):
            if dim is not None:
                reach = change(reach, axis, dim)
        return replace(self, reach=reach)._without_single_positions()

    def collapse(self, dims: Sequence[int]) -> Followed:
        """With all positions along the dimensions ``dims`` seen by one; what was flattened into one of them is whole again."""
        collapsed = self.each_axis(lambda reach, axis, dim: reach.collapse(axis) if dim in dims else reach)
        return replace(collapsed, merged_dim=None) if self.merged_dim in dims else collapsed

    def _without_single_positions(self) -> Followed:
        rows, columns = (None if self.reach.n_positions(axis) == 1 else dim for axis, dim in enumerate(self.dims))
        return replace(self, dims=(rows, columns))


@dataclass(frozen=True)
class Lost:
    """A tensor whose receptive fields are not known.

    Attributes:
        reason: The operation that has no rule, in words.
    """

    reason: str


Knowledge: TypeAlias = Followed | Lost


@dataclass(frozen=True)
class Call:
    """One call of an operation.

    Attributes:
        name: The operation's, without the underscore of those that work in place.
        args: Its arguments.
        kwargs: Its keyword arguments.
        result: What it gave.
        sources: The arguments that come from the image, with what is known of them.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any
    sources: tuple[tuple[Tensor, Knowledge], ...]

    def argument(self, position: int, name: str, default: Any) -> Any:
        """An argument that may be named."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    @property
    def first(self) -> Tensor:
        """The first argument, a tensor."""
        tensor: Tensor = self.args[0]
        return tensor


class NoRuleError(Exception):
    """There is no rule for what an operation does here."""


Rule: TypeAlias = Callable[[Followed, Call], Followed]


def follow(call: Call, *, is_pointwise: bool) -> Knowledge:
    """What is known of the result of ``call``; at least one of its sources comes from the image."""
    lost = [knowledge for _, knowledge in call.sources if isinstance(knowledge, Lost)]
    if lost:
        return lost[0]
    followed = [(tensor, knowledge) for tensor, knowledge in call.sources if isinstance(knowledge, Followed)]
    try:
        if is_pointwise or call.name in _JOINS:
            return _join(followed, call)
        if call.name not in _RULES:
            raise NoRuleError
        if len(followed) != 1 or followed[0][0] is not call.first:
            raise NoRuleError
        return _RULES[call.name](followed[0][1], call)
    except NoRuleError:
        return Lost(f"no rule for {call.name.replace('_', ' ').strip()} here")


def has_rule(name: str) -> bool:
    """Whether ``follow`` knows the operation; others may be made of operations that it knows."""
    return name in _RULES or name in _JOINS or name in CONSTANTS


def _shape(call: Call) -> tuple[int, ...]:
    result = call.result[0] if isinstance(call.result, (tuple, list)) else call.result
    return tuple(result.shape)


def _join(sources: Sequence[tuple[Tensor, Followed]], call: Call) -> Followed:
    """Element by element, shapes aligned from the right; concatenation, of channels alone."""
    n_dims = len(_shape(call))
    moved = [_shifted(knowledge, n_dims - tensor.dim()) for tensor, knowledge in sources]
    dims = [_agree([one.dims[axis] for one in moved]) for axis in (ROWS, COLUMNS)]
    merged_dim = _agree([one.merged_dim for one in moved])
    if call.name in ("cat", "concat", "concatenate"):
        dim = call.argument(1, "dim", 0) % n_dims
        if dim in dims or (dim == merged_dim and any(one.merged_dim is None for one in moved)):
            raise NoRuleError
    reach = moved[0].reach
    for other in moved[1:]:
        reach = reach.union(other.reach)
    return Followed(reach, (dims[ROWS], dims[COLUMNS]), merged_dim)


def _shifted(source: Followed, n_dims: int) -> Followed:
    """With ``n_dims`` dimensions more in front."""
    return source.move(lambda dim: dim + n_dims)


def _agree(dims: Sequence[int | None]) -> int | None:
    known = {dim for dim in dims if dim is not None}
    if len(known) > 1:
        raise NoRuleError
    return known.pop() if known else None


def _unchanged(source: Followed, call: Call) -> Followed:  # noqa: ARG001 a rule's signature
    return source


def _convolution(source: Followed, call: Call) -> Followed:
    weight, stride, padding, dilation, transposed = (call.args[1], *call.args[3:7])
    if transposed:
        raise NoRuleError
    return _windows(source, call, kernel=weight.shape[2:], stride=stride, padding=padding, dilation=dilation)


def _max_pool(source: Followed, call: Call) -> Followed:
    kernel, dilation = call.args[1], call.argument(4, "dilation", 1)
    return _windows(
        source,
        call,
        kernel=kernel,
        stride=call.argument(2, "stride", ()) or kernel,
        padding=call.argument(3, "padding", 0),
        dilation=dilation,
    )


def _average_pool(source: Followed, call: Call) -> Followed:
    kernel = call.args[1]
    stride = call.argument(2, "stride", ()) or kernel
    return _windows(source, call, kernel=kernel, stride=stride, padding=call.argument(3, "padding", 0), dilation=1)


def _windows(source: Followed, call: Call, *, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Followed:
    shape = _shape(call)
    n_window_dims = {"1d": 1, "3d": 3}.get(call.name[-2:], 2) if call.name != "convolution" else len(kernel)
    offset = len(shape) - n_window_dims
    if source.merged_dim is not None:
        raise NoRuleError

    def change(reach: Reach, axis: int, dim: int) -> Reach:
        if dim < offset:
            raise NoRuleError
        kernel_, stride_, padding_, dilation_ = (_at(value, dim - offset) for value in (kernel, stride, padding, dilation))
        return reach.window(axis, kernel=kernel_, stride=stride_, padding=padding_, dilation=dilation_, n_out=shape[dim])

    return source.each_axis(change)


def _at(value: Any, index: int) -> int:
    if isinstance(value, int):
        return value
    number: int = value[index] if len(value) > 1 else value[0]
    return number


def _adaptive_pool(source: Followed, call: Call) -> Followed:
    shape = _shape(call)
    if source.merged_dim is not None:
        raise NoRuleError
    pooled = source.each_axis(lambda reach, axis, dim: reach.bins(axis, shape[dim]))
    for axis, dim in ((ROWS, len(shape) - 2), (COLUMNS, len(shape) - 1)):
        if source.dims[axis] is None and shape[dim] > 1:  # one position is enlarged to many
            dims = (dim, pooled.dims[COLUMNS]) if axis == ROWS else (pooled.dims[ROWS], dim)
            pooled = Followed(pooled.reach.repeat(axis, shape[dim]), dims)
    return pooled


def _reduce(source: Followed, call: Call) -> Followed:
    n_dims = call.first.dim()
    dims = call.argument(1, "dim", None)
    if call.name == "linalg_vector_norm":
        dims = call.argument(2, "dim", None)
    reduced = (
        range(n_dims) if dims is None or dims == [] else [dims % n_dims] if isinstance(dims, int) else [d % n_dims for d in dims]
    )
    collapsed = source.collapse(list(reduced))
    if len(_shape(call)) == n_dims:
        return collapsed
    return collapsed.move(lambda dim: dim - sum(other < dim for other in reduced))


def _linear(source: Followed, call: Call) -> Followed:
    last = call.first.dim() - 1
    if source.merged_dim not in (None, last):
        raise NoRuleError
    return source.collapse([last])


def _layer_norm(source: Followed, call: Call) -> Followed:
    n_dims = call.first.dim()
    return _spread(source, range(n_dims - len(call.args[1]), n_dims))


def _map_norm(source: Followed, call: Call) -> Followed:
    return _spread(source, range(2, call.first.dim()))


def _spread(source: Followed, dims: Sequence[int]) -> Followed:
    """Each position sees what all along ``dims`` see, as their mean and variance do."""
    if source.merged_dim is not None and source.merged_dim not in dims:
        raise NoRuleError

    def change(reach: Reach, axis: int, dim: int) -> Reach:
        return reach.union(reach.collapse(axis)) if dim in dims else reach

    return source.each_axis(change)


def _reshape(source: Followed, call: Call) -> Followed:
    before, after = tuple(call.first.shape), _shape(call)
    if before == after:
        return source
    if source.merged_dim is not None:
        return replace(source, merged_dim=_place(before, after, source.merged_dim))
    kept = [None if dim is None else _find(before, after, dim) for dim in source.dims]
    gone = [axis for axis, dim in enumerate(source.dims) if dim is not None and kept[axis] is None]
    if not gone:
        return replace(source, dims=(kept[ROWS], kept[COLUMNS]))
    if any(dim is not None for dim in kept):
        raise NoRuleError
    places = {_merged(before, after, dim) for dim in source.dims if dim is not None}
    if len(places) != 1:
        raise NoRuleError
    reach = source.reach
    is_uniform = reach.is_uniform()
    for axis in gone:
        reach = reach.collapse(axis)
    return Followed(reach, (None, None), None if is_uniform else places.pop())


def _find(before: Sequence[int], after: Sequence[int], dim: int) -> int | None:
    """Where dimension ``dim`` is after a reshape that leaves it whole; None where it does not."""
    outer = math.prod(before[:dim])
    return next((d for d, n in enumerate(after) if n == before[dim] and math.prod(after[:d]) == outer), None)


def _place(before: Sequence[int], after: Sequence[int], dim: int) -> int:
    place = _find(before, after, dim)
    if place is None:
        raise NoRuleError
    return place


def _merged(before: Sequence[int], after: Sequence[int], dim: int) -> int:
    """The dimension of ``after`` that takes in the whole of dimension ``dim``."""
    outer, inner = math.prod(before[:dim]), math.prod(before[dim + 1 :])
    for d in range(len(after)):
        if outer % math.prod(after[:d]) == 0 and inner % math.prod(after[d + 1 :]) == 0:
            return d
    raise NoRuleError


def _permute(source: Followed, call: Call) -> Followed:
    n_dims = call.first.dim()
    if call.name == "permute":
        order = [dim % n_dims for dim in call.args[1]]
    elif call.name in ("t", "numpy_T", "mT"):
        order = [*range(n_dims - 2), n_dims - 1, n_dims - 2]
    else:
        order = list(range(n_dims))
        a, b = call.args[1] % n_dims, call.args[2] % n_dims
        order[a], order[b] = b, a
    return source.move(order.index)


def _expand(source: Followed, call: Call) -> Followed:
    return _shifted(source, len(_shape(call)) - call.first.dim())


def _select(source: Followed, call: Call) -> Followed:
    n_dims, dim = call.first.dim(), call.args[1] % call.first.dim()
    if dim == source.merged_dim:
        raise NoRuleError
    index = call.args[2] % call.first.shape[dim]
    picked = source.each_axis(lambda reach, axis, d: reach.pick(axis, start=index, step=1, n_out=1) if d == dim else reach)
    return picked.move(lambda d: d - (dim < d < n_dims))


def _slice(source: Followed, call: Call) -> Followed:
    dim = call.argument(1, "dim", 0) % call.first.dim()
    if dim == source.merged_dim:
        raise NoRuleError
    start, _, _ = slice(call.argument(2, "start", None), None).indices(call.first.shape[dim])
    step, n_out = call.argument(4, "step", 1), _shape(call)[dim]
    return source.each_axis(lambda reach, axis, d: reach.pick(axis, start=start, step=step, n_out=n_out) if d == dim else reach)


def _split(source: Followed, call: Call) -> Followed:
    position = 1 if call.name == "unbind" else 2
    dim = call.argument(position, "dim", 0) % call.first.dim()
    if dim in (*source.dims, source.merged_dim):
        raise NoRuleError
    return source.move(lambda d: d - (d > dim)) if call.name == "unbind" else source


def _pad(mode: Literal["constant", "reflect", "edge"]) -> Rule:
    def rule(source: Followed, call: Call) -> Followed:
        amounts, last = call.args[1], call.first.dim() - 1
        if source.merged_dim is not None and 2 * (last - source.merged_dim) < len(amounts):
            raise NoRuleError

        def change(reach: Reach, axis: int, dim: int) -> Reach:
            at = 2 * (last - dim)
            before, after = amounts[at : at + 2] if at < len(amounts) else (0, 0)
            return reach.pad(axis, before=before, after=after, mode=mode) if before or after else reach

        return source.each_axis(change)

    return rule


def _softmax(source: Followed, call: Call) -> Followed:
    return _spread(source, [call.args[1] % call.first.dim()])


CONSTANTS: Final = frozenset(
    ("zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_empty", "new_full", "fill", "zero")
)
"""Operations whose results have the shape of their argument and nothing else of it."""

_JOINS: Final = frozenset({"cat", "concat", "concatenate", "copy"})
_RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {
        **dict.fromkeys(
            ("batch_norm", "dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "contiguous", "clone", "alias"),
            _unchanged,
        ),
        **dict.fromkeys(("detach", "_to_copy", "to", "hardswish", "lift_fresh"), _unchanged),
        "convolution": _convolution,
        **dict.fromkeys(("max_pool2d_with_indices", "max_pool2d", "max_pool1d", "max_pool3d"), _max_pool),
        **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _average_pool),
        **dict.fromkeys(("adaptive_avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d"), _adaptive_pool),
        **dict.fromkeys(("mean", "sum", "amax", "amin", "var", "std", "logsumexp", "linalg_vector_norm"), _reduce),
        **dict.fromkeys(("linear", "mm"), _linear),
        "layer_norm": _layer_norm,
        **dict.fromkeys(("group_norm", "instance_norm"), _map_norm),
        **dict.fromkeys(("softmax", "log_softmax", "_softmax", "_log_softmax"), _softmax),
        **dict.fromkeys(("view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"), _reshape),
        **dict.fromkeys(("permute", "transpose", "t", "numpy_T", "mT"), _permute),
        "expand": _expand,
        "select": _select,
        "slice": _slice,
        **dict.fromkeys(("split", "split_with_sizes", "chunk", "unbind"), _split),
        "constant_pad_nd": _pad("constant"),
        **dict.fromkeys(("reflection_pad1d", "reflection_pad2d"), _pad("reflect")),
        **dict.fromkeys(("replication_pad1d", "replication_pad2d"), _pad("edge")),
    }
)


def is_pointwise(operation: torch._ops.OpOverload) -> bool:
    """Whether the operation works element by element."""
    return torch.Tag.pointwise in operation.tags
