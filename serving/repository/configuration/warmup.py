"""Requests that an instance answers before it is ready, so that no caller meets a cold model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import Field
from tritonclient.grpc import model_config_pb2

from convoy.serving.repository.configuration.part import Part, Parts, Violation, error, warning
from convoy.serving.repository.configuration.tensor import ANY_EXTENT, DataType, Dims, ModelInput


class WarmupInput(Part):
    """An input of a warm-up: the schema's ``ModelWarmup.Input``.

    Attributes:
        data_type: Its type.
        dims: Its shape without the batch axis; every extent is said.
        zero_data: Its values are 0.
        random_data: Its values are random.
        input_data_file: Its values stand in this file of the model's folder ``warmup``.
    """

    kind_: ClassVar[Any] = model_config_pb2.ModelWarmup.Input

    data_type: DataType = "TYPE_INVALID"
    dims: Dims = ()
    zero_data: bool | None = None
    random_data: bool | None = None
    input_data_file: str | None = None

    def rules(self) -> Iterator[Violation]:
        """Values from one source, and a shape that is said in full."""
        said = [name for name in ("zero_data", "random_data", "input_data_file") if getattr(self, name) is not None]
        if len(said) != 1:
            yield error(
                "" if not said else said[1],
                f"expected one of zero_data, random_data and input_data_file, found {', '.join(said) or 'none'}. Choose one.",
            )
        if ANY_EXTENT in self.dims:
            yield error("dims", f"dims: expected the shape of a sample, found {list(self.dims)}. Write numbers in the place of -1.")

    def fits(self, tensor: ModelInput) -> str:
        """What of it does not fit an input of the model; empty where it fits."""
        if tensor.data_type != "TYPE_INVALID" and self.data_type != tensor.data_type:
            return f"expected {tensor.data_type}, as the model's input, found {self.data_type}"
        same = len(self.dims) == len(tensor.dims) and all(
            want in (ANY_EXTENT, have) for have, want in zip(self.dims, tensor.dims, strict=True)
        )
        if tensor.dims and not same:
            return f"expected dims {list(tensor.dims)}, as the model's input, found {list(self.dims)}"
        return ""


class ModelWarmup(Part):
    """A sample that is run before the instance is ready.

    Attributes:
        name: What it is called.
        batch_size: How many requests of one row it makes.
        inputs: The inputs by name.
        count: How often it is run; 0 counts as 1.
    """

    kind_: ClassVar[Any] = model_config_pb2.ModelWarmup
    parts_: ClassVar[Parts] = {"inputs": WarmupInput}

    name: str = ""
    batch_size: int = Field(default=0, ge=0)
    inputs: Mapping[str, WarmupInput] = Field(default_factory=dict)
    count: int = Field(default=0, ge=0)

    def rules(self) -> Iterator[Violation]:
        """It runs something."""
        if self.batch_size == 0:
            yield warning("batch_size", "batch_size: expected at least 1, found 0: this warm-up runs nothing. Set it.")
