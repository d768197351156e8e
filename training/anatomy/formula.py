"""What layers are called and how many parameters they have, in the lecture's notation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

Shapes = Mapping[str, tuple[int, ...]]

_OPERATIONS: Final = {
    "cat": "concatenate",
    "constant_pad_nd": "pad",
    "slice": "slice",
    "linear": "fully connected",
    "conv2d": "convolution",
    "max_pool2d_with_indices": "max pool",
    "max_pool2d": "max pool",
    "avg_pool2d": "average pool",
    "adaptive_avg_pool2d": "average pool",
    "adaptive_max_pool2d": "max pool",
}


def name_of(module: nn.Module, dims: Sequence[int] = ()) -> str:
    """A layer in words: ``Conv-64 3x3 /2 pad 1``, ``FC-100``, ``max pool 2x2``.

    Args:
        module: The layer.
        dims: Of what it gives, without the batch axis.
    """
    name = type(module).__name__
    if isinstance(module, _ConvNd):
        return f"Conv-{module.out_channels} {_convolution(module)}"
    if isinstance(module, nn.Linear):
        return f"FC-{module.out_features}"
    if isinstance(module, _NormBase):
        return "BN" if name.startswith("BatchNorm") else name
    if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
        kind = "max" if isinstance(module, nn.MaxPool2d) else "average"
        return f"{kind} pool {window(module.kernel_size, module.stride, module.padding, own_stride=True)}"
    if isinstance(module, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
        kind = "max" if isinstance(module, nn.AdaptiveMaxPool2d) else "average"
        return f"{kind} pool to {times(dims[-2:])}"
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return "dropout"
    return "LRN" if isinstance(module, nn.LocalResponseNorm) else name


def name_of_operation(operation: str, arguments: Sequence[Any]) -> str:
    """An operation outside any layer in words."""
    name = _OPERATIONS.get(operation, operation.replace("_", " "))
    if operation in ("max_pool2d", "avg_pool2d", "max_pool2d_with_indices") and arguments:
        stride = arguments[1] if len(arguments) > 1 and arguments[1] else arguments[0]
        return f"{name} {window(arguments[0], stride, arguments[2] if len(arguments) > 2 else 0, own_stride=True)}"
    return name


def parameter_formula(module: nn.Module, shapes: Shapes) -> str | None:
    """How many parameters a layer has, in the lecture's notation; None where it has none.

    A fully connected layer of m units on n inputs has m (n + 1), a convolutional layer of m maps, FxF filters and c input
    channels m (F*F*c + 1); without biases the 1 is gone, in groups each map sees the channels of its group.
    """
    if not shapes:
        return None
    total = f"{count(shapes):,}"
    weight = shapes.get("weight")
    if weight is not None and isinstance(module, (_ConvNd, nn.Linear)) and set(shapes) <= {"weight", "bias"}:
        inputs = weight[1:] if isinstance(module, nn.Linear) else (*weight[2:], weight[1])
        product = "*".join(f"{n}" if isinstance(module, nn.Linear) else str(n) for n in inputs)
        return f"{weight[0]} ({product}{' + 1' if 'bias' in shapes else ''}) = {total}"
    if isinstance(module, _NormBase) and weight is not None:
        return f"2*{weight[0]} = {total}"
    products = ["*".join(str(n) for n in shape) or "1" for shape in shapes.values()]
    text = " + ".join(products)
    return total if text == total else f"{text} = {total}"


def count(shapes: Shapes) -> int:
    """How many numbers tensors of these shapes hold."""
    return sum(math.prod(shape) for shape in shapes.values())


def times(numbers: Sequence[int]) -> str:
    """``5x5``."""
    return "x".join(str(number) for number in numbers)


def window(kernel: Any, stride: Any, padding: Any, *, own_stride: bool = False) -> str:
    """``3x3 /2 pad 1``; a stride of 1 is not told, nor that of a pool whose windows do not overlap."""
    kernel, stride, padding = _pair(kernel), _pair(stride), _pair(padding)
    return _window(kernel, stride, padding, kernel if own_stride else (1, 1))


def _window(kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...], untold: tuple[int, ...]) -> str:
    text = times(kernel)
    if stride != untold:
        text += f" /{stride[0] if len(set(stride)) == 1 else times(stride)}"
    if any(padding):
        text += f" pad {padding[0] if len(set(padding)) == 1 else times(padding)}"
    return text


def _convolution(module: _ConvNd) -> str:
    padding = module._reversed_padding_repeated_twice[::2][::-1] if isinstance(module.padding, str) else module.padding
    text = _window(module.kernel_size, module.stride, tuple(padding), (1,) * len(module.kernel_size))
    if set(module.dilation) != {1}:
        text += f" dilation {module.dilation[0]}"
    if module.groups > 1:
        text += f" in {module.groups} groups"
    return text


def _pair(value: Any) -> tuple[int, ...]:
    numbers = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    return numbers * 2 if len(numbers) == 1 else numbers
