"""Tensors in the system's shared memory, where client and server share a host."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.integration


@pytest.fixture
def region(ours: object, wire: Any) -> Iterator[Any]:
    """Makes regions of shared memory that the server knows: ``(name, n_bytes)`` -> a handle of NVIDIA's."""
    from tritonclient.utils import shared_memory

    made: dict[str, Any] = {}

    def make(name: str, n_bytes: int) -> Any:
        key = f"/convoy_contract_{os.getpid()}_{name}"
        made[name] = shared_memory.create_shared_memory_region(name, key, n_bytes)
        wire.register_system_shared_memory(name, key, n_bytes)
        return made[name]

    yield make
    for name, handle in made.items():
        wire.unregister_system_shared_memory(name)
        shared_memory.destroy_shared_memory_region(handle)


@pytest.mark.parametrize("n", [2, 500_000], ids=["small", "2 MB"])
def test_inputs_and_outputs_may_lie_in_shared_memory(region: Any, wire: Any, n: int) -> None:
    from tritonclient.utils import shared_memory

    values = np.arange(n, dtype=np.float32)[None]
    there, back = region("there", values.nbytes), region("back", values.nbytes)
    shared_memory.set_shared_memory_region(there, [values])
    tensor, wanted = grpc.InferInput("x", [1, n], "FP32"), grpc.InferRequestedOutput("y")
    tensor.set_shared_memory("there", values.nbytes)
    wanted.set_shared_memory("back", values.nbytes)

    answer = wire.infer("lengths", [tensor], outputs=[wanted])

    assert answer.get_output("y").shape == [1, n]
    np.testing.assert_array_equal(shared_memory.get_contents_as_numpy(back, np.float32, [1, n]), -values)


def test_several_inputs_may_share_a_region_and_an_output_may_come_by_wire(region: Any, wire: Any) -> None:
    from tritonclient.utils import shared_memory

    a, b = np.array([[5, 6]], np.float32), np.array([[1, 2]], np.float32)
    shared_memory.set_shared_memory_region(region("both", 16), [a, b])
    tensors = [grpc.InferInput(name, [1, 2], "FP32") for name in ("a", "b")]
    for tensor, offset in zip(tensors, (0, 8), strict=True):
        tensor.set_shared_memory("both", 8, offset)

    answer = wire.infer("several", tensors, outputs=[grpc.InferRequestedOutput("sum")])

    assert answer.as_numpy("sum").tolist() == [[6, 8]]


def test_a_region_that_is_too_small_for_the_output_is_an_error_and_the_next_request_is_answered(region: Any, wire: Any) -> None:
    region("tiny", 4)
    tensor, wanted = grpc.InferInput("x", [1, 2], "FP32"), grpc.InferRequestedOutput("y")
    tensor.set_data_from_numpy(np.ones((1, 2), np.float32))
    wanted.set_shared_memory("tiny", 4)

    with pytest.raises(InferenceServerException):
        wire.infer("bare", [tensor], outputs=[wanted])

    assert wire.infer("bare", [tensor]).as_numpy("y").tolist() == [[-1, -1]]


def test_a_region_that_nobody_made_is_refused(ours: object, wire: Any) -> None:
    tensor = grpc.InferInput("x", [1, 2], "FP32")
    tensor.set_shared_memory("nowhere", 8)

    with pytest.raises(InferenceServerException, match="nowhere"):
        wire.infer("bare", [tensor])
