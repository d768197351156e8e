"""Inputs, outputs, and what Triton makes of them for a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

from tritonclient.grpc import model_config_pb2

from convoy.serving.repository.configuration.part import Part, Parts, Violation, error

DataType: TypeAlias = Literal[
    "TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64", "TYPE_INT8", "TYPE_INT16", "TYPE_INT32",
    "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_STRING", "TYPE_BF16",
]  # fmt: skip
"""``TYPE_INVALID`` stands for a type that was not said."""

Dims: TypeAlias = tuple[int, ...]

ANY_EXTENT = -1
"""The extent of an axis that may be of any length."""


class ModelTensorReshape(Part):
    """The shape that the backend sees where it differs from ``dims``, without the batch axis."""

    kind_: ClassVar[Any] = model_config_pb2.ModelTensorReshape

    shape: Dims = ()

    def rules(self) -> Iterator[Violation]:
        """Extents are at least 1, or -1."""
        yield from _extents("shape", self.shape)


class Tensor(Part):
    """What an input and an output have in common.

    Attributes:
        name: Its name in the ONNX graph.
        data_type: Its type.
        dims: Its shape; without the batch axis where ``max_batch_size`` is more than 0. Empty where it was not said.
        reshape: The shape that the backend sees, where it is another one.
        is_shape_tensor: Only for TensorRT.
        is_non_linear_format_io: Only for TensorRT.
    """

    parts_: ClassVar[Parts] = {"reshape": ModelTensorReshape}

    name: str = ""
    data_type: DataType = "TYPE_INVALID"
    dims: Dims = ()
    reshape: ModelTensorReshape | None = None
    is_shape_tensor: bool = False
    is_non_linear_format_io: bool = False

    def rules(self) -> Iterator[Violation]:
        """A name, extents that can be, and a reshape that neither loses nor makes elements."""
        if not self.name:
            yield error("name", "name: expected the tensor's name in the ONNX file, found none. Name it.")
        yield from _extents("dims", self.dims)
        if self.reshape is not None and self.dims and _runs(self.dims) != _runs(self.reshape.shape):
            yield error(
                "reshape",
                f"reshape: expected as many elements as in dims {list(self.dims)}, found {list(self.reshape.shape)}. "
                "Make the products of both equal, between any two axes of any length (-1) too.",
            )


class ModelInput(Tensor):
    """An input.

    Attributes:
        format: ``FORMAT_NHWC`` and ``FORMAT_NCHW`` ask for three dims and change nothing else.
        allow_ragged_batch: Whether requests of different shapes may share a batch.
        optional: Whether a request may leave it out.
    """

    kind_: ClassVar[Any] = model_config_pb2.ModelInput

    format: Literal["FORMAT_NONE", "FORMAT_NHWC", "FORMAT_NCHW"] = "FORMAT_NONE"
    allow_ragged_batch: bool = False
    optional: bool = False

    def rules(self) -> Iterator[Violation]:
        """An image has three dims."""
        yield from super().rules()
        if self.format in ("FORMAT_NHWC", "FORMAT_NCHW") and self.dims and len(self.dims) != 3:
            yield error("format", f"format: {self.format} expects 3 dims, found {list(self.dims)}. Leave format out.")


class ModelOutput(Tensor):
    """An output.

    Attributes:
        label_filename: The file of its class names, in the model's folder.
    """

    kind_: ClassVar[Any] = model_config_pb2.ModelOutput

    label_filename: str = ""

    def rules(self) -> Iterator[Violation]:
        """Labels lie in the model's folder."""
        yield from super().rules()
        parts = self.label_filename.split("/")
        if self.label_filename.startswith("/") or ".." in parts:
            yield error(
                "label_filename",
                f"label_filename: expected a file in the model's folder, found {self.label_filename!r}. Move it there.",
            )


class BatchTensor(Part):
    """What ``batch_input`` and ``batch_output`` have in common.

    Attributes:
        target_name: The tensors that are made.
        source_input: The input that they are made from.
    """

    target_name: tuple[str, ...] = ()
    source_input: tuple[str, ...] = ()

    def rules(self) -> Iterator[Violation]:
        """One source, and each target once."""
        if len(self.source_input) != 1:
            yield error("source_input", f"source_input: expected one input's name, found {len(self.source_input)}. Name one.")
        for name in repeated(self.target_name):
            yield error("target_name", f"target_name: expected each name once, found {name!r} twice. Remove one.")


class BatchInput(BatchTensor):
    """A tensor that Triton makes of a batch for the backend."""

    kind_: ClassVar[Any] = model_config_pb2.BatchInput

    kind: str = "BATCH_ELEMENT_COUNT"
    data_type: DataType = "TYPE_INVALID"

    def rules(self) -> Iterator[Violation]:
        """A type of 32 bits."""
        yield from super().rules()
        if self.data_type not in ("TYPE_INT32", "TYPE_FP32"):
            yield error("data_type", f"data_type: expected TYPE_INT32 or TYPE_FP32, found {self.data_type}. Choose one of the two.")


class BatchOutput(BatchTensor):
    """How an output of a ragged batch is taken apart."""

    kind_: ClassVar[Any] = model_config_pb2.BatchOutput

    kind: str = "BATCH_SCATTER_WITH_INPUT_SHAPE"


def repeated(names: Sequence[str]) -> list[str]:
    """The names that occur more than once, each once."""
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def _extents(name: str, dims: Dims) -> Iterator[Violation]:
    wrong = [extent for extent in dims if extent < 1 and extent != ANY_EXTENT]
    if wrong:
        yield error(
            name, f"{name}: expected extents of at least 1, or -1 for any, found {list(dims)}. Write -1 for an axis of any length."
        )


def _runs(dims: Dims) -> list[int]:
    """The number of elements between the axes of any length; for a shape without any, of the whole."""
    runs = [1]
    for extent in dims:
        if extent == ANY_EXTENT:
            runs.append(1)
        else:
            runs[-1] *= extent
    return runs
