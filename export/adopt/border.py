"""Where pixels enter a foreign graph: which input, in which layout, of which size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
import onnx

from convoy.contract.errors import ExportError, UsageError
from convoy.contract.image import ImageSpec
from convoy.export.adopt.names import Shape, attribute, real_inputs, shape_of
from convoy.export.adopt.preprocess import Preprocess

InputLayout: TypeAlias = Literal["nchw", "nhwc", "nhw", "flat-chw", "flat-hwc", "chw", "hwc"]
"""The axes of the input; ``nhw`` has no axis of channels, ``flat-*`` one axis for all pixels, ``chw`` and ``hwc`` no batch."""

_PIXEL_TYPES: Final = ("uint8", "int32", "int64", "float16", "float32", "float64")
_PASSED_THROUGH: Final = {"Add", "BatchNormalization", "Cast", "Clip", "Div", "Identity", "Mul", "Pad", "QuantizeLinear",
                          "DequantizeLinear", "Relu", "Sub"}  # fmt: skip


@dataclass(frozen=True)
class InputBorder:
    """The one input of a foreign graph.

    Attributes:
        name: Its name.
        dtype: numpy's name of its type.
        layout: Its axes.
        batch: The batch that the file fixes; None where it leaves it open. 1 where there is no batch axis.
        height_px: Of the image.
        width_px: Of the image.
        channels: That the network takes; 3 also where three equal grey ones go in.
    """

    name: str
    dtype: str
    layout: InputLayout
    batch: int | None
    height_px: int
    width_px: int
    channels: int

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape of one image in the network's layout, without the batch axis."""
        height, width, channels = self.height_px, self.width_px, self.channels
        return {
            "nchw": (channels, height, width),
            "chw": (channels, height, width),
            "nhwc": (height, width, channels),
            "hwc": (height, width, channels),
            "nhw": (height, width),
        }.get(self.layout, (channels * height * width,))

    @property
    def has_batch_axis(self) -> bool:
        """Whether the first axis counts images."""
        return self.layout not in ("chw", "hwc")

    @property
    def channels_first(self) -> bool:
        """Whether an image's channels come before its rows."""
        return self.layout in ("nchw", "chw", "flat-chw")


def find_input(model: onnx.ModelProto, preprocess: Preprocess, input_name: str | None) -> tuple[InputBorder, ImageSpec]:
    """The input that takes the image, and the image that it takes.

    Args:
        model: The foreign model.
        preprocess: What the person says of it; decides where the graph leaves it open.
        input_name: Which input takes the image; None where there is only one.

    Raises:
        ExportError: There is another input that wants a value, or this one takes no image.
        UsageError: The spec does not fit the graph, or must say more.
    """
    value = _choose(model.graph, input_name)
    name, dtype = value.name, _dtype(value)
    shape = shape_of(value)
    if shape is None:
        raise ExportError(f"input {name!r}: expected a declared shape, found none: run ONNX's shape inference on the file first.")
    if dtype.startswith(("uint", "int")) and (preprocess.scale, {*preprocess.mean}, {*preprocess.std}) != (1.0, {0.0}, {1.0}):
        raise UsageError(f"preprocessing: input {name!r} takes whole numbers ({dtype}), so it scales them itself: say raw.")
    border = _read_shape(model.graph, name, dtype, shape, preprocess)
    preprocess.per_channel(border.channels if preprocess.color != "grey" else 1)
    if border.channels == 1 and preprocess.color in ("rgb", "bgr"):
        raise UsageError(
            f"preprocessing: expected color=grey for input {name!r}, which takes one channel; found {preprocess.color}."
        )
    image = ImageSpec(
        height_px=border.height_px,
        width_px=border.width_px,
        channels=1 if preprocess.color == "grey" or border.channels == 1 else 3,
        resize=preprocess.resize,
        interpolation=preprocess.interpolation,
    )
    return border, image


def _choose(graph: onnx.GraphProto, input_name: str | None) -> onnx.ValueInfoProto:
    inputs = real_inputs(graph)
    listed = "; ".join(f"{value.name!r} {_describe(value)}" for value in inputs) or "none"
    chosen = inputs if input_name is None else [value for value in inputs if value.name == input_name]
    if not chosen:
        raise UsageError(f"expected an input named {input_name!r}, found: {listed}.")
    if len(inputs) > 1:
        raise ExportError(
            f"expected one input, the image; found {len(inputs)} that want a value: {listed}. Give the others a fixed value (an "
            "initialiser of that name) and save the file again."
        )
    return chosen[0]


def _describe(value: onnx.ValueInfoProto) -> str:
    shape = shape_of(value)
    return "of unknown shape" if shape is None else f"[{', '.join('?' if dim is None else str(dim) for dim in shape)}]"


def _dtype(value: onnx.ValueInfoProto) -> str:
    elem_type = value.type.tensor_type.elem_type
    dtype = str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type))) if elem_type else "no tensor"
    if dtype not in _PIXEL_TYPES:
        raise ExportError(f"input {value.name!r}: expected pixels ({', '.join(_PIXEL_TYPES)}), found {dtype}.")
    return dtype


def _read_shape(graph: onnx.GraphProto, name: str, dtype: str, shape: Shape, preprocess: Preprocess) -> InputBorder:
    if len(shape) == 4:
        return _rank_4(graph, name, dtype, shape, preprocess)
    if len(shape) == 3:
        return _rank_3(name, dtype, shape, preprocess)
    if len(shape) == 2:
        return _rank_2(name, dtype, shape, preprocess)
    raise ExportError(
        f"input {name!r}: expected an image, of shape (N, C, H, W), (N, H, W, C), (N, H, W) or (N, pixels); found "
        f"{len(shape)} axes."
    )


def _rank_4(graph: onnx.GraphProto, name: str, dtype: str, shape: Shape, preprocess: Preprocess) -> InputBorder:
    seen, hint = _look_ahead(graph, name)
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    layout: Literal["nchw", "nhwc"] | None = preprocess.layout
    if layout is None and first != last:
        layout = "nchw" if first else "nhwc"
    layout = layout or seen
    if layout is None:
        raise UsageError(
            f"input {name!r}: {list(shape)} does not show whether channels come first or last: say layout=nchw or layout=nhwc in "
            "the preprocessing."
        )
    channels = shape[1] if layout == "nchw" else shape[3]
    if channels is None:
        by_color = 1 if preprocess.color == "grey" else 3
        channels = hint if hint is not None and layout == "nchw" else by_color
    if channels not in (1, 3):
        raise ExportError(
            f"input {name!r}: expected 1 or 3 channels, found {channels} in {list(shape)} read as {layout} (layout=... in the "
            "preprocessing reads it the other way)."
        )
    height, width = _size(name, shape[2:] if layout == "nchw" else shape[1:3], preprocess)
    return InputBorder(name, dtype, layout, shape[0], height, width, channels)


def _rank_3(name: str, dtype: str, shape: Shape, preprocess: Preprocess) -> InputBorder:
    if shape[0] == 3 and preprocess.color != "grey":
        height, width = _size(name, shape[1:], preprocess)
        return InputBorder(name, dtype, "chw", 1, height, width, 3)
    if shape[2] in (1, 3) and shape[0] not in (None, 1):
        height, width = _size(name, shape[:2], preprocess)
        return InputBorder(name, dtype, "hwc", 1, height, width, int(shape[2]))
    height, width = _size(name, shape[1:], preprocess)
    return InputBorder(name, dtype, "nhw", shape[0], height, width, 1)


def _rank_2(name: str, dtype: str, shape: Shape, preprocess: Preprocess) -> InputBorder:
    n_values = shape[1]
    if n_values is None:
        raise ExportError(f"input {name!r}: expected a fixed number of pixels, found an open one in {list(shape)}.")
    if preprocess.height_px is not None and preprocess.width_px is not None:
        height, width = preprocess.height_px, preprocess.width_px
    else:
        height = width = math.isqrt(n_values if math.isqrt(n_values) ** 2 == n_values else n_values // 3)
    channels, rest = divmod(n_values, height * width) if height * width else (0, 1)
    if rest or channels not in (1, 3):
        raise UsageError(
            f"input {name!r}: expected size=HEIGHTxWIDTH in the preprocessing so that {n_values} values are 1 or 3 channels of "
            f"such an image, found {height}x{width}."
        )
    if channels == 3 and preprocess.layout is None:
        raise UsageError(
            f"input {name!r}: {n_values} values do not show whether channels come first or last: say layout=nchw or layout=nhwc in "
            "the preprocessing."
        )
    return InputBorder(name, dtype, "flat-hwc" if preprocess.layout == "nhwc" else "flat-chw", shape[0], height, width, channels)


def _size(name: str, dims: Shape, preprocess: Preprocess) -> tuple[int, int]:
    sizes = []
    for axis, fixed, asked in zip(("height", "width"), dims, (preprocess.height_px, preprocess.width_px), strict=True):
        if fixed is None and asked is None:
            raise UsageError(
                f"input {name!r}: the file leaves the image's {axis} open: say size=HEIGHTxWIDTH in the preprocessing."
            )
        if fixed is not None and asked is not None and fixed != asked:
            raise UsageError(f"input {name!r}: the file fixes the image's {axis} at {fixed}, the preprocessing says {asked}.")
        sizes.append(int(fixed if fixed is not None else asked or 0))
    if max(sizes) > 16_384:
        raise ExportError(f"input {name!r}: expected an image of at most 16384 pixels a side, found {sizes}.")
    return sizes[0], sizes[1]


def _look_ahead(graph: onnx.GraphProto, name: str) -> tuple[Literal["nchw", "nhwc"] | None, int | None]:
    """The layout that the first convolution or transposition shows, and the channels that the former takes."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    seen = {name}
    for node in graph.node:
        if not seen.intersection(node.input):
            continue
        if node.op_type == "Transpose" and attribute(node, "perm") == [0, 3, 1, 2]:
            return "nhwc", None
        if node.op_type == "Conv" and len(weights.get(node.input[1], ())) == 4:
            group = attribute(node, "group", 1)
            return "nchw", weights[node.input[1]][1] * (group if isinstance(group, int) else 1)
        if node.op_type not in _PASSED_THROUGH:
            return None, None
        seen.update(node.output)
    return None, None
