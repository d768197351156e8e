"""What the backend may do to make the model faster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from tritonclient.grpc import model_config_pb2

from convoy.serving.repository.configuration.part import Part, Parts

_POLICY: Any = model_config_pb2.ModelOptimizationPolicy


class Graph(Part):
    """Optimisation of the graph.

    Attributes:
        level: For ONNX: -1 basic, 0 all, 1 extended, 2 none.
    """

    kind_: ClassVar[Any] = _POLICY.Graph

    level: int = 0


class Cuda(Part):
    """Options of CUDA; the specification of graphs is carried along."""

    kind_: ClassVar[Any] = _POLICY.Cuda

    graphs: bool = False
    busy_wait_events: bool = False
    output_copy_stream: bool = False


class Accelerator(Part):
    """An execution accelerator.

    Attributes:
        name: ``cuda`` or ``tensorrt`` on GPUs, ``openvino`` on CPUs.
        parameters: Its options.
    """

    kind_: ClassVar[Any] = _POLICY.ExecutionAccelerators.Accelerator

    name: str = ""
    parameters: Mapping[str, str] = Field(default_factory=dict)


class ExecutionAccelerators(Part):
    """The execution accelerators, in order of preference."""

    kind_: ClassVar[Any] = _POLICY.ExecutionAccelerators
    parts_: ClassVar[Parts] = {"gpu_execution_accelerator": Accelerator, "cpu_execution_accelerator": Accelerator}

    gpu_execution_accelerator: tuple[Accelerator, ...] = ()
    cpu_execution_accelerator: tuple[Accelerator, ...] = ()


class PinnedMemoryBuffer(Part):
    """Whether tensors pass through pinned memory on their way to and from a GPU."""

    kind_: ClassVar[Any] = _POLICY.PinnedMemoryBuffer

    enable: bool = False


class ModelOptimizationPolicy(Part):
    """What the backend may do to make the model faster.

    Attributes:
        graph: Optimisation of the graph.
        priority: The priority of the model's threads.
        cuda: Options of CUDA.
        execution_accelerators: What runs parts of the model.
        input_pinned_memory: Pinned memory for inputs.
        output_pinned_memory: Pinned memory for outputs.
        gather_kernel_buffer_threshold: From how many buffers on a kernel gathers them; 0 for never.
        eager_batching: Whether the inputs of the next batch are gathered while one runs.
    """

    kind_: ClassVar[Any] = _POLICY
    parts_: ClassVar[Parts] = {
        "graph": Graph,
        "cuda": Cuda,
        "execution_accelerators": ExecutionAccelerators,
        "input_pinned_memory": PinnedMemoryBuffer,
        "output_pinned_memory": PinnedMemoryBuffer,
    }

    graph: Graph | None = None
    priority: Literal["PRIORITY_DEFAULT", "PRIORITY_MAX", "PRIORITY_MIN"] = "PRIORITY_DEFAULT"
    cuda: Cuda | None = None
    execution_accelerators: ExecutionAccelerators | None = None
    input_pinned_memory: PinnedMemoryBuffer | None = None
    output_pinned_memory: PinnedMemoryBuffer | None = None
    gather_kernel_buffer_threshold: int = Field(default=0, ge=0)
    eager_batching: bool = False
