"""What can be asked of a server, whatever the wire: one frozen value a question, typed by its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeAlias, TypeVar

from typing_extensions import Self

from convoy.contract.errors import InvalidResponseError
from convoy.serving.client._answer import InferResult, ModelMetadata, ModelStatus, ServerMetadata
from convoy.serving.client._datatype import Buffer

if TYPE_CHECKING:
    from convoy.serving.client._gpu_tensor import GpuTensor

R = TypeVar("R")

Headers: TypeAlias = "tuple[tuple[str, str], ...]"
"""Names, in lower case, with their values."""


@dataclass(frozen=True)
class Shared:
    """Elements that lie in memory which the server sees too.

    Attributes:
        region: What the server knows the memory as.
        offset: Where in it they begin.
        view: They themselves.
        mark: What stands at both ends of a place for an output until the server has written there; empty of an input.
    """

    region: str
    offset: int
    view: memoryview
    mark: bytes = b""

    def written(self) -> memoryview:
        """What the server wrote.

        Raises:
            InvalidResponseError: It wrote nothing.
        """
        n = len(self.mark)
        if n and self.view[:n] == self.mark and self.view[-n:] == self.mark:
            raise InvalidResponseError(f"expected {len(self.view)} bytes in shared memory, found none written")
        return self.view

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.view)


@dataclass(frozen=True)
class SharedOnGpu:
    """Elements of an input that lie in memory of a GPU which the server sees too.

    Attributes:
        region: What the server knows the memory as.
        offset: Where in it they begin.
        size: Bytes.
    """

    region: str
    offset: int
    size: int


@dataclass(frozen=True)
class Placed:
    """Where the tensors of an inference lie that do not go over the wire.

    Attributes:
        inputs: By name; others go over the wire.
        outputs: By name; others come over the wire.
        on_gpu: Inputs that lie where their owner has them, on a GPU: whoever carries the call sees to it that the server gets them.
            The ``data`` of these has the right length, and no elements.
    """

    inputs: Mapping[str, Shared | SharedOnGpu]
    outputs: Mapping[str, Shared]
    on_gpu: Mapping[str, GpuTensor] = field(default_factory=dict)

    def release(self) -> None:
        """Nobody reads or writes what lies in shared memory any more."""
        for place in self.inputs.values():
            if isinstance(place, Shared):
                place.view.release()
        for place in self.outputs.values():
            place.view.release()


class Tensor(NamedTuple):
    """An input tensor in the wire's form.

    Attributes:
        name: Its name.
        datatype: One of the protocol's datatypes.
        shape: Its shape with the batch axis.
        data: Its elements as the wire wants them.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer


@dataclass(frozen=True)
class Call(Generic[R]):
    """A question to a server whose answer is an ``R``.

    Attributes:
        model_name: The model that is meant; empty where the server itself is.
        model_version: The version that is meant; empty for the server's choice.
        headers: What goes with this one request beside the client's own headers (a trace's context); no part of the question.
    """

    does: ClassVar[str]
    """What the call does to its subject, for messages."""

    model_name: str = ""
    model_version: str = ""
    headers: Headers = field(default=(), kw_only=True, compare=False, repr=False)

    def having(self, headers: Headers) -> Self:
        """The same question with ``headers``."""
        return replace(self, headers=headers) if headers else self

    @property
    def subject(self) -> str:
        """Whom the call is about, for messages: "the server", "model 'lenet5'", "model 'lenet5' version 3"."""
        if not self.model_name:
            return "the server"
        version = f" version {self.model_version}" if self.model_version else ""
        return f"model {self.model_name!r}{version}"


@dataclass(frozen=True)
class ServerLive(Call[bool]):
    """Does the server's process answer?"""

    does: ClassVar = "reach"


@dataclass(frozen=True)
class ServerReady(Call[bool]):
    """Is the server ready for requests?"""

    does: ClassVar = "reach"


@dataclass(frozen=True)
class DescribeServer(Call[ServerMetadata]):
    """Who is the server, and what does it offer beyond the protocol's core?"""

    does: ClassVar = "read the metadata of"


@dataclass(frozen=True)
class ModelReady(Call[bool]):
    """Is the model ready for requests?"""

    does: ClassVar = "reach"


@dataclass(frozen=True)
class DescribeModel(Call[ModelMetadata]):
    """Which tensors does the model take and give?"""

    does: ClassVar = "read the metadata of"


@dataclass(frozen=True)
class ReadConfig(Call[dict[str, Any]]):
    """With which configuration is the model served?"""

    does: ClassVar = "read the configuration of"


@dataclass(frozen=True)
class ReadStatistics(Call[list[dict[str, Any]]]):
    """How often was the model asked since it was loaded, and where did its time go?"""

    does: ClassVar = "read the statistics of"


@dataclass(frozen=True)
class ListModels(Call[list[ModelStatus]]):
    """Which models does the server know?"""

    does: ClassVar = "list the models of"


@dataclass(frozen=True)
class LoadModel(Call[None]):
    """Load the model, or load it again."""

    does: ClassVar = "load"


@dataclass(frozen=True)
class UnloadModel(Call[None]):
    """Unload the model."""

    does: ClassVar = "unload"


@dataclass(frozen=True, kw_only=True)
class Infer(Call[InferResult]):
    """Run the model.

    Attributes:
        inputs: The input tensors.
        outputs: The outputs to send back; empty for all.
        request_id: What the request is called on the wire and in logs; no part of the question.
        expects: The outputs whose sizes are known beforehand: name, datatype and shape.
        placed: Where its tensors lie, if not in the request; ``inputs`` hold the elements all the same, but for those on a GPU. It
            is made by, and for, transports that share memory: others never see it.
    """

    does: ClassVar = "run"

    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...] = ()
    request_id: str = field(default="", compare=False)
    expects: tuple[tuple[str, str, tuple[int, ...]], ...] = field(default=(), compare=False)
    placed: Placed | None = field(default=None, compare=False)

    @classmethod
    def quickly(
        cls, model_name: str, model_version: str, inputs: tuple[Tensor, ...], outputs: tuple[str, ...], request_id: str
    ) -> Self:
        """The same as by the class's name, in a third of the time, which a frozen class takes for its fields."""
        call = cls.__new__(cls)
        fields = call.__dict__
        fields["model_name"] = model_name
        fields["model_version"] = model_version
        fields["headers"] = ()
        fields["inputs"] = inputs
        fields["outputs"] = outputs
        fields["request_id"] = request_id
        fields["expects"] = ()
        fields["placed"] = None
        return call


@dataclass(frozen=True, kw_only=True)
class RegisterSegment(Call[None]):
    """See a piece of shared memory.

    Attributes:
        segment: Its name.
        size: Bytes.
    """

    does: ClassVar = "share memory with"

    segment: str
    size: int


@dataclass(frozen=True, kw_only=True)
class UnregisterSegment(Call[None]):
    """See a piece of shared memory no longer.

    Attributes:
        segment: Its name.
    """

    does: ClassVar = "end the sharing of memory with"

    segment: str


@dataclass(frozen=True, kw_only=True)
class RegisterRegion(Call[None]):
    """See a piece of memory of a GPU.

    Attributes:
        region: Its name.
        handle: What CUDA opens it by in another process.
        device: Which GPU it lies on.
        size: Bytes.
    """

    does: ClassVar = "share memory of a GPU with"

    region: str
    handle: bytes
    device: int
    size: int


@dataclass(frozen=True, kw_only=True)
class UnregisterRegion(Call[None]):
    """See a piece of memory of a GPU no longer.

    Attributes:
        region: Its name.
    """

    does: ClassVar = "end the sharing of memory of a GPU with"

    region: str


def check_id(call: Infer, answered: str) -> None:
    """Make sure that an answer is not that to another request, as it is on a connection that is out of step.

    Raises:
        InvalidResponseError: It is. A server that names no request is believed.
    """
    if answered and call.request_id and answered != call.request_id:
        raise InvalidResponseError(f"expected the answer to request {call.request_id}, found that to {answered!r}")
