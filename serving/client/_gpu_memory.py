"""Inputs that lie on a GPU, to a server on the same machine: copied within the GPU, to where the server reads them.

Only what is on a GPU already goes this way: what is in the host's memory has one copy to the GPU before it either way, which the
server makes from shared memory of the host as well.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace

from convoy.serving.client._answer import InferResult
from convoy.serving.client._call import Infer, Placed, SharedOnGpu
from convoy.serving.client._cuda import CudaError
from convoy.serving.client._endpoint import Endpoint
from convoy.serving.client._gpu_tensor import GpuTensor
from convoy.serving.client._region import Region, Regions, left
from convoy.serving.client._sharing import Exchanges, Sharing, padded, unregister


class GpuMemory:
    """How inputs of one client that lie on GPUs reach one server. No I/O: generators of requests.

    Args:
        endpoint: Where the server is, for the log.
        onward: Sends an inference all of whose inputs are where the server gets them.
    """

    def __init__(self, endpoint: Endpoint, onward: Callable[[Infer], Exchanges[InferResult]]) -> None:
        self._endpoint = endpoint
        self._onward = onward
        self._sharing = Sharing[Region](endpoint, "tensors on a GPU go by way of the host")
        self._pools: dict[int, Regions] = {}
        self._lock = threading.Lock()

    def carry(self, call: Infer, on_gpu: Mapping[str, GpuTensor]) -> Exchanges[InferResult]:
        """The requests that an inference takes.

        Args:
            call: The inference.
            on_gpu: Its inputs that lie on GPUs. Those on the GPU of the first stay there, others go by way of the host.
        """
        for region in left(self._endpoint):
            yield from unregister(region, self._endpoint)
        device = next(iter(on_gpu.values())).device
        staying = {name: tensor for name, tensor in on_gpu.items() if tensor.device == device}
        leased = self._lease(device, staying)
        if leased is None:
            return (yield from self._onward(_to_host(call, on_gpu)))
        rest = _to_host(call, {name: tensor for name, tensor in on_gpu.items() if name not in staying})
        return (
            yield from self._sharing.carry(
                self._pools[device],
                leased,
                place=lambda: self._place(rest, staying, leased),
                send=self._onward,
                instead=lambda: self._onward(_to_host(rest, staying)),
            )
        )

    def leave(self) -> Exchanges[None]:
        """The requests with which a client takes its leave."""
        for pool in list(self._pools.values()):
            yield from self._sharing.leave(pool)

    def _lease(self, device: int, tensors: Mapping[str, GpuTensor]) -> Region | None:
        if not self._sharing.usable:
            return None
        with self._lock:
            pool = self._pools.get(device)
            if pool is None:
                pool = self._pools[device] = Regions(self._endpoint, next(iter(tensors.values())).cuda, device)
        try:
            return pool.lease(sum(padded(tensor.nbytes) for tensor in tensors.values()))
        except CudaError as error:
            self._sharing.give_up(f"CUDA cannot share memory: {error}")
            return None

    def _place(self, call: Infer, on_gpu: Mapping[str, GpuTensor], region: Region) -> Infer | None:
        """The call with copies in the region of the inputs that are named."""
        places = {}
        offset = 0
        try:
            for name, tensor in on_gpu.items():
                tensor.cuda.copy(tensor.device, region.pointer + offset, tensor.pointer, tensor.nbytes)
                places[name] = SharedOnGpu(region.name, offset, tensor.nbytes)
                offset += padded(tensor.nbytes)
        except CudaError as error:
            self._sharing.give_up(f"CUDA cannot copy them: {error}")
            return None
        return replace(call, placed=Placed(places, {}))


def _to_host(call: Infer, on_gpu: Mapping[str, GpuTensor]) -> Infer:
    """The call with elements in the host's memory of the inputs that are named."""
    inputs = [
        tensor._replace(data=on_gpu[tensor.name].to_host().data) if tensor.name in on_gpu else tensor for tensor in call.inputs
    ]
    return replace(call, inputs=tuple(inputs), placed=None)
