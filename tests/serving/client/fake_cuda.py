"""A driver and a runtime of CUDA whose devices' memory is the host's, arrays on them, and a Triton that opens what they share."""

from __future__ import annotations

import ctypes
import enum
import struct
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from convoy.serving.client._segment import FOLDER


class Code(enum.IntEnum):
    """Results of both: what is used of them."""

    cudaSuccess = 0  # noqa: N815
    cudaErrorInvalidValue = 1  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815
    cudaErrorIllegalAddress = 700  # noqa: N815
    cudaErrorNotSupported = 801  # noqa: N815


class Handle(bytes):
    """``cudaIpcMemHandle_t``."""

    def getPtr(self) -> int:  # noqa: N802
        self.buffer = ctypes.create_string_buffer(self, 64)
        return ctypes.addressof(self.buffer)


class FakeCuda:
    """``cuda.bindings.runtime`` and ``cuda.bindings.driver`` in one. It is as strict as they are lenient.

    Attributes:
        failures: Functions that fail from now on, with what.
        free: How many bytes each device has to spare.
        taken: The bytes that ``cudaMalloc`` gave, by pointer.
        opened: How many servers have a pointer open.
        asked: The functions that were called, in order.
    """

    cudaError_t = Code  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyDefault=4)  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815
    CUpointer_attribute = SimpleNamespace(CU_POINTER_ATTRIBUTE_MEMORY_TYPE=2, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL=9)
    CUmemorytype = SimpleNamespace(CU_MEMORYTYPE_DEVICE=2)

    def __init__(self, n_devices: int = 2) -> None:
        self.n_devices = n_devices
        self.failures: dict[str, Code] = {}
        self.free = 8 << 30
        self.taken: dict[int, int] = {}
        self.opened: dict[int, int] = {}
        self.asked: list[str] = []
        self._memory: dict[int, tuple[Any, int]] = {}  # by pointer, with its device
        self._work: dict[int, list[Callable[[], None]]] = {}  # by stream
        self._local = threading.local()

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not name.startswith("cu") or not callable(value) or isinstance(value, type):
            return value

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.asked.append(name)
            if name in self.failures:
                return (self.failures[name], None)
            return (Code.cudaSuccess, *value(*arguments))

        call.__name__ = name
        return call

    # what tests do

    def put(self, array: np.ndarray, device: int = 0, stream: int | None = None) -> int:
        """The pointer to a copy on a device; with a stream it is only there once somebody has waited for that."""
        buffer = ctypes.create_string_buffer(max(1, array.nbytes))
        pointer = ctypes.addressof(buffer)
        self._memory[pointer] = (buffer, device)
        data = np.ascontiguousarray(array).tobytes()

        def write() -> None:
            ctypes.memmove(pointer, data, len(data))

        if stream is None:
            write()
        else:
            self._work.setdefault(stream, []).append(write)
        return pointer

    @property
    def context(self) -> list[int]:
        """The devices whose contexts this thread has pushed."""
        if not hasattr(self._local, "context"):
            self._local.context = []
        return self._local.context

    # the driver

    def cuInit(self, flags: int) -> tuple[()]:  # noqa: N802
        assert flags == 0
        return ()

    def cuDeviceGet(self, ordinal: int) -> tuple[str]:  # noqa: N802
        assert 0 <= ordinal < self.n_devices
        return (f"device {ordinal}",)

    def cuDevicePrimaryCtxRetain(self, device: str) -> tuple[str]:  # noqa: N802
        return (f"context of {device}",)

    def cuCtxPushCurrent(self, context: str) -> tuple[()]:  # noqa: N802
        self.context.append(int(context.removeprefix("context of device ")))
        return ()

    def cuCtxPopCurrent(self) -> tuple[str]:  # noqa: N802
        return (f"context of device {self.context.pop()}",)

    def cuPointerGetAttribute(self, attribute: int, pointer: int) -> tuple[int]:  # noqa: N802
        assert not self.context, "nobody's context is needed for that"
        device = self._memory[self._base(pointer)][1]
        return (2 if attribute == 2 else device,)

    # the runtime

    def cudaGetDeviceCount(self) -> tuple[int]:  # noqa: N802
        return (self.n_devices,)

    def cudaMemGetInfo(self) -> tuple[int, int]:  # noqa: N802
        assert self.context
        return self.free, 16 << 30

    def cudaMalloc(self, size: int) -> tuple[int]:  # noqa: N802
        pointer = self.put(np.zeros(size, np.uint8), self.context[-1])
        self.taken[pointer] = size
        return (pointer,)

    def cudaFree(self, pointer: int) -> tuple[()]:  # noqa: N802
        assert self._memory.pop(pointer)[1] == self.context[-1]
        assert not self.opened.get(pointer), "a server has it open"
        del self.taken[pointer]
        return ()

    def cudaIpcGetMemHandle(self, pointer: int) -> tuple[Handle]:  # noqa: N802
        assert pointer in self.taken
        return (Handle(struct.pack("<Q", pointer)),)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int]:  # noqa: N802
        assert flags == self.cudaStreamNonBlocking
        return (1000 + self.context[-1],)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[()]:  # noqa: N802
        assert stream == 1000 + self.context[-1]
        assert kind == 4
        for pointer in (target, source):
            base = self._base(pointer, none=True)
            assert base is None or pointer + size <= base + len(self._memory[base][0])
        self._work.setdefault(stream, []).append(lambda: ctypes.memmove(target, source, size) and None)
        return ()

    def cudaStreamSynchronize(self, stream: int) -> tuple[()]:  # noqa: N802
        assert self.context
        for work in self._work.pop(stream, []):
            work()
        return ()

    def cudaDeviceSynchronize(self) -> tuple[()]:  # noqa: N802
        assert self.context
        for stream in list(self._work):
            for work in self._work.pop(stream, []):
                work()
        return ()

    def _base(self, pointer: int, *, none: bool = False) -> Any:
        for base, (buffer, _) in list(self._memory.items()):  # another thread may take some meanwhile
            if base <= pointer < base + len(buffer):
                return base
        assert none, f"{pointer:#x} is no device's"
        return None


class GpuArray:
    """An array on a fake GPU, as CuPy's are: nothing but what the CUDA Array Interface says."""

    def __init__(self, cuda: FakeCuda, array: np.ndarray, *, device: int = 0, version: int = 3, stream: int | None = None) -> None:
        self.array = array
        self.dtype: Any = array.dtype
        self.cuda = cuda
        self.pointer = cuda.put(array, device, stream)
        self.version = version
        self.stream = stream

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        described = {
            "shape": self.array.shape,
            "typestr": self.array.dtype.str,
            "data": (self.pointer, False),
            "version": self.version,
            "strides": None,
        }
        return described if self.version < 3 else {**described, "stream": self.stream}

    def get(self) -> np.ndarray:
        return self.array.copy()


class FakeTriton:
    """A gRPC server's behaviour: a model ``echo`` that gives its inputs back; it opens what clients register, or refuses to.

    Attributes:
        inferences: The requests for inferences.
        regions: What is registered, of GPUs.
        segments: What is registered, of the host.
        refuses: The words by which registrations of memory of GPUs are refused; empty: they are not.
        fails: The words by which the next inferences fail.
    """

    def __init__(self, cuda: FakeCuda, inputs: dict[str, tuple[str, tuple[int, ...]]], *, max_batch_size: int = 8) -> None:
        self.cuda = cuda
        self.inputs = inputs
        self.max_batch_size = max_batch_size
        self.inferences: list[Any] = []
        self.regions: dict[str, tuple[int, int, int]] = {}  # pointer, size, device
        self.segments: set[str] = set()
        self.registered: list[str] = []
        self.refuses = ""
        self.fails: list[tuple[grpc.StatusCode, str]] = []
        self.before_answer: Callable[[], None] = lambda: None

    def __call__(self, method: str, request: bytes, context: Any) -> bytes:
        asked = getattr(service_pb2, f"{method}Request").FromString(request)
        answer = getattr(service_pb2, f"{method}Response")()
        if method == "ModelMetadata":
            answer.name = asked.name
            for name, (datatype, shape) in self.inputs.items():
                answer.inputs.add(name=name, datatype=datatype, shape=shape)
                answer.outputs.add(name=f"{name}_out", datatype=datatype, shape=shape)
        elif method == "ModelConfig":
            answer.config.max_batch_size = self.max_batch_size
        elif method == "SystemSharedMemoryRegister":
            if asked.name in self.segments:
                context.abort(grpc.StatusCode.ALREADY_EXISTS, f"shared memory region '{asked.name}' already in manager")
            self.segments.add(asked.name)
        elif method == "SystemSharedMemoryUnregister":
            self.segments.discard(asked.name)
        elif method == "CudaSharedMemoryRegister":
            if self.refuses:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.refuses)
            if asked.name in self.regions:
                context.abort(grpc.StatusCode.ALREADY_EXISTS, f"shared memory region '{asked.name}' already in manager")
            assert len(asked.raw_handle) == 64
            (pointer,) = struct.unpack_from("<Q", asked.raw_handle)
            assert self.cuda.taken[pointer] == asked.byte_size
            self.cuda.opened[pointer] = self.cuda.opened.get(pointer, 0) + 1
            self.regions[asked.name] = (pointer, asked.byte_size, asked.device_id)
            self.registered.append(asked.name)
        elif method == "CudaSharedMemoryUnregister":
            self.forget(asked.name)
        elif method == "ModelInfer":
            self.inferences.append(asked)
            if self.fails:
                context.abort(*self.fails.pop(0))
            self.before_answer()
            self._infer(asked, answer, context)
        return bytes(answer.SerializeToString())

    def forget(self, name: str) -> None:
        """See a region no longer."""
        if name in self.regions:
            self.cuda.opened[self.regions.pop(name)[0]] -= 1

    def _infer(self, asked: Any, answer: Any, context: Any) -> None:
        answer.model_name, answer.model_version, answer.id = asked.model_name, "1", asked.id
        raw = list(asked.raw_input_contents)
        places = {tensor.name: tensor.parameters for tensor in asked.outputs}
        for tensor in asked.inputs:
            data = self._read(tensor.parameters, context) if tensor.parameters else raw.pop(0)
            if places and f"{tensor.name}_out" not in places:
                continue
            answer.outputs.add(name=f"{tensor.name}_out", datatype=tensor.datatype, shape=tensor.shape)
            place = places.get(f"{tensor.name}_out")  # empty: over the wire
            answer.raw_output_contents.append(b"" if place else data)
            if place:
                with (FOLDER / place["shared_memory_region"].string_param).open("r+b") as file:
                    file.seek(place["shared_memory_offset"].int64_param)
                    file.write(data)
        assert not raw

    def _read(self, parameters: Any, context: Any) -> bytes:
        name, size = parameters["shared_memory_region"].string_param, parameters["shared_memory_byte_size"].int64_param
        offset = parameters["shared_memory_offset"].int64_param
        if name in self.regions:
            pointer, available, _ = self.regions[name]
            assert offset + size <= available
            return ctypes.string_at(pointer + offset, size)
        if name not in self.segments:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Unable to find shared memory region: '{name}'")
        with (FOLDER / name).open("rb") as file:
            file.seek(offset)
            return file.read(size)
