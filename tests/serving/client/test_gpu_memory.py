"""Tensors of other libraries; those on a GPU by way of its memory where that can be. The GPUs' memory is the host's here.

What a real GPU does with them is seen in ``tests/integration/test_gpu.py``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

from convoy.contract.errors import DeadlineExceededError, InvalidRequestError, UsageError
from convoy.serving.client import AsyncClient, Client
from convoy.serving.client import _cuda as cuda_module
from convoy.serving.client import _region as region_module
from convoy.serving.client import _segment as segment_module
from convoy.serving.client._cuda import Cuda, CudaError
from convoy.serving.client._segment import FOLDER, ON_GPU, PREFIX
from convoy.serving.client._shared_memory import sweep
from convoy.serving.client.testing import FakeModel, FakeTransport
from tests.serving.client.fake_cuda import Code, FakeCuda, FakeTriton, GpuArray

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="shared memory is Linux's")

N = 50_000  # 200 kB of float32 a row
Serve = Callable[..., tuple[str, FakeTriton]]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """Two GPUs; at the end nothing of them is taken, and no lock is left."""
    fake = FakeCuda()
    monkeypatch.setattr(cuda_module, "_loaded", (os.getpid(), Cuda(fake, fake)))
    fake.asked.clear()
    yield fake
    fake.failures.clear()
    assert not fake.context
    assert locks() == set()
    assert fake.taken == {}
    assert region_module._left == []


@pytest.fixture
def serve(cuda: FakeCuda, grpc_double: Any) -> Serve:
    def start(**inputs: tuple[str, tuple[int, ...]]) -> tuple[str, FakeTriton]:
        triton = FakeTriton(cuda, inputs or {"x": ("FP32", (-1, N))})
        return grpc_double(triton).url, triton

    return start


def locks() -> set[str]:
    return {path.name for path in FOLDER.glob(f"{PREFIX}{os.getpid()}-*{ON_GPU}")}


def rows(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, N)).astype(np.float32)


def by_region(triton: FakeTriton) -> list[bool]:
    """Of each inference, whether its first input came by a region of a GPU."""
    names = [asked.inputs[0].parameters["shared_memory_region"].string_param for asked in triton.inferences]
    return [name.endswith(ON_GPU) for name in names]


async def test_tensors_on_a_gpu_go_by_its_memory_which_is_made_once_and_freed_at_the_end(serve: Serve, cuda: FakeCuda) -> None:
    url, triton = serve()
    with Client(url) as client:
        for seed, n in enumerate((1, 2, 8, 1)):
            x = rows(n, seed)
            assert np.array_equal(client.infer("echo", {"x": GpuArray(cuda, x)})["x_out"], x)
        assert by_region(triton) == [True] * 4
        assert len(triton.registered) == 1
        assert set(triton.regions) == locks()
        assert all(len(asked.raw_input_contents) == 0 for asked in triton.inferences)
    assert triton.regions == {}
    assert triton.segments == set()
    assert cuda.taken == {}
    async with AsyncClient(url) as aclient:
        asked = [rows(2, seed) for seed in range(6)]
        answers = await asyncio.gather(*(aclient.infer("echo", {"x": GpuArray(cuda, one)}) for one in asked))
        assert all(np.array_equal(answer["x_out"], one) for answer, one in zip(answers, asked, strict=True))
    assert by_region(triton) == [True] * 10
    assert triton.regions == cuda.taken == {}


def test_threads_do_not_write_into_each_others_memory(serve: Serve, cuda: FakeCuda) -> None:
    url, triton = serve()
    with Client(url, merge=False) as client, ThreadPoolExecutor(8) as pool:

        def ask(seed: int) -> bool:
            x = rows(1 + seed % 3, seed)
            return np.array_equal(client.infer("echo", {"x": GpuArray(cuda, x)})["x_out"], x)

        assert all(pool.map(ask, range(60)))
    assert all(by_region(triton))


def test_a_batch_that_is_split_goes_in_rows_of_the_gpus_memory(serve: Serve, cuda: FakeCuda) -> None:
    url, triton = serve()
    x = rows(30)
    with Client(url) as client:
        assert np.array_equal(client.infer("echo", {"x": GpuArray(cuda, x, device=1)})["x_out"], x)
    assert len(triton.inferences) == 4
    assert all(by_region(triton))
    assert {device for _, _, device in triton.regions.values()} <= {1}


def test_inputs_on_two_gpus_and_on_the_host_are_mixed_as_they_come(serve: Serve, cuda: FakeCuda) -> None:
    url, triton = serve(a=("FP32", (-1, N)), b=("INT64", (-1, N)), c=("FP32", (-1, N)), small=("UINT8", (-1, 3)))
    a, b, c = rows(2), np.arange(2 * N).reshape(2, N), rows(2, 1)
    small = np.ones((2, 3), np.uint8)
    inputs = {"a": GpuArray(cuda, a), "b": b, "c": GpuArray(cuda, c, device=1), "small": GpuArray(cuda, small)}
    with Client(url) as client:
        answer = client.infer("echo", inputs)
        for name, array in (("a", a), ("b", b), ("c", c), ("small", small)):
            assert np.array_equal(answer[f"{name}_out"], array)
        only = client.infer("echo", inputs, outputs=["small_out"])
        assert list(only.outputs) == ["small_out"]
    asked = {tensor.name: tensor.parameters["shared_memory_region"].string_param for tensor in triton.inferences[0].inputs}
    assert {name: region.endswith(ON_GPU) for name, region in asked.items()} == {"a": True, "b": False, "c": False, "small": False}
    assert all(asked.values())


def test_a_small_input_beside_a_large_one_on_a_gpu_goes_over_the_wire_where_nothing_else_is_shared(
    serve: Serve, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, triton = serve(a=("FP32", (-1, N)), small=("UINT8", (-1, 3)))
    small = np.ones((2, 3), np.uint8)
    with Client(url) as client:
        monkeypatch.setattr("convoy.serving.client._inference.expected_outputs", lambda *_: ())
        answer = client.infer("echo", {"a": GpuArray(cuda, rows(2)), "small": small})
    assert np.array_equal(answer["a_out"], rows(2))
    assert np.array_equal(answer["small_out"], small)
    assert by_region(triton) == [True]
    assert len(triton.inferences[0].raw_input_contents) == 1


def test_what_a_stream_still_computes_is_waited_for_before_it_is_read(serve: Serve, cuda: FakeCuda) -> None:
    url, _ = serve()
    with Client(url) as client:
        for version, stream in ((3, 7), (3, 1), (3, 2), (2, 9)):
            x = rows(2, stream)
            cuda.asked.clear()
            assert np.array_equal(client.infer("echo", {"x": GpuArray(cuda, x, version=version, stream=stream)})["x_out"], x)
            assert ("cudaDeviceSynchronize" in cuda.asked) == (version == 2 or stream == 2)
        cuda.asked.clear()
        client.infer("echo", {"x": GpuArray(cuda, rows(2))})  # its interface says that there is nothing to wait for
        assert cuda.asked.count("cudaStreamSynchronize") == 1
        assert "cudaDeviceSynchronize" not in cuda.asked
        cuda.failures["cudaDeviceSynchronize"] = Code.cudaErrorIllegalAddress
        with pytest.raises(UsageError, match=r"input 'x': .* what computes it failed: .*IllegalAddress"):
            client.infer("echo", {"x": GpuArray(cuda, rows(2), version=2)})


@pytest.mark.parametrize("way", ["small", "rest", "unshared", "fake", "elsewhere"])
def test_everywhere_else_tensors_are_copied_to_the_host(
    way: str, serve: Serve, cuda: FakeCuda, http_double: Any, echo: dict[str, Any]
) -> None:
    x = rows(2)
    fake = FakeTransport({"echo": FakeModel.of_tensors({"x": ("FP32", (-1, N))}, lambda inputs: {"x_out": inputs["x"]})})
    if way == "fake":
        client = Client(transport=fake)
    elif way == "rest":
        from tests.serving.client.conftest import served_by_http

        client = Client(http_double(served_by_http(fake)).url)
    else:
        url, triton = serve(x=("FP32", (-1, 3))) if way == "small" else serve()
        x = x[:, :3] if way == "small" else x
        client = Client([url, "grpc://192.0.2.1"] if way == "elsewhere" else url, shared_memory=way != "unshared")
    with client:
        assert np.array_equal(client.infer("echo", {"x": GpuArray(cuda, x, stream=5)})["x_out"], x)
    assert "cudaMalloc" not in cuda.asked
    if way in ("small", "unshared"):
        assert by_region(triton) == [False]


def test_small_tensors_of_many_callers_share_requests_as_others_do(cuda: FakeCuda) -> None:
    config = {"max_batch_size": 32, "dynamic_batching": {}}
    fake = FakeTransport({"echo": FakeModel(lambda inputs: {"y": inputs["x"]}, {"x": ("FP32", (-1, 2))}, config)})
    with Client(transport=fake) as client, ThreadPoolExecutor(16) as pool:

        def ask(i: int) -> bool:
            x = np.full((1, 2), i, np.float32)
            return np.array_equal(client.infer("echo", {"x": GpuArray(cuda, x)})["y"], x)

        assert all(pool.map(ask, range(100)))


def test_a_server_that_opens_no_memory_of_gpus_is_asked_once_and_said_once(
    serve: Serve, cuda: FakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    url, triton = serve()
    triton.refuses = "failed to register shared memory region: invalid args"
    with caplog.at_level(logging.INFO, "convoy.client"), Client(url) as client:
        for seed in range(3):
            x = rows(2, seed)
            assert np.array_equal(client.infer("echo", {"x": GpuArray(cuda, x)})["x_out"], x)
        assert cuda.taken == {}
    assert by_region(triton) == [False] * 3
    assert cuda.asked.count("cudaMalloc") == 1
    said = [record.message for record in caplog.records if "on a GPU" in record.message]
    assert len(said) == 1
    assert "tensors on a GPU go by way of the host, since the server cannot share memory" in said[0]
    assert len(triton.inferences[0].raw_input_contents) == 0  # by shared memory of the host


@pytest.mark.parametrize(
    ("function", "code"),
    [
        ("cudaIpcGetMemHandle", Code.cudaErrorNotSupported),  # WSL
        ("cudaMemGetInfo", Code.cudaErrorInvalidValue),
        ("cudaMalloc", Code.cudaErrorMemoryAllocation),
    ],
)
def test_a_gpu_that_cannot_share_or_is_full_leaves_the_way_of_the_host(
    function: str, code: Code, serve: Serve, cuda: FakeCuda
) -> None:
    url, triton = serve()
    cuda.failures[function] = code
    with Client(url) as client:
        for seed in range(2):
            x = rows(2, seed)
            assert np.array_equal(client.infer("echo", {"x": GpuArray(cuda, x)})["x_out"], x)
        assert cuda.taken == {}
    assert by_region(triton) == [False, False]
    assert cuda.asked.count(function) == (2 if code is Code.cudaErrorMemoryAllocation else 1)  # there may be room another time


def test_a_full_gpu_is_not_asked_for_more(serve: Serve, cuda: FakeCuda) -> None:
    url, _ = serve()
    cuda.free = 3 << 20
    with Client(url) as client:
        assert np.array_equal(client.infer("echo", {"x": GpuArray(cuda, rows(2))})["x_out"], rows(2))
    assert "cudaMalloc" not in cuda.asked


def test_a_server_that_was_started_again_is_told_anew(serve: Serve, cuda: FakeCuda) -> None:
    url, triton = serve()
    with Client(url) as client:
        client.infer("echo", {"x": GpuArray(cuda, rows(2))})
        for name in list(triton.regions):
            triton.forget(name)
        for seed in range(3):
            x = rows(2, seed)
            assert np.array_equal(client.infer("echo", {"x": GpuArray(cuda, x)})["x_out"], x)
    assert by_region(triton) == [True, True, False, True, True]


def test_a_refused_first_request_does_not_end_the_sharing(serve: Serve, cuda: FakeCuda) -> None:
    """The server may have opened the memory: it is to forget it before it is asked to open it again."""
    url, triton = serve()
    words = "the model does not like it"
    triton.fails += [(grpc.StatusCode.INVALID_ARGUMENT, words)] * 4  # with and without each kind of memory
    with Client(url) as client:
        with pytest.raises(InvalidRequestError, match=words):
            client.infer("echo", {"x": GpuArray(cuda, rows(2))})
        for seed in range(2):
            assert np.array_equal(client.infer("echo", {"x": GpuArray(cuda, rows(2, seed))})["x_out"], rows(2, seed))
        assert by_region(triton)[-2:] == [True, True]
        triton.fails.append((grpc.StatusCode.INVALID_ARGUMENT, words))  # now it is the caller's
        with pytest.raises(InvalidRequestError, match=words):
            client.infer("echo", {"x": GpuArray(cuda, rows(2))})
        assert np.array_equal(client.infer("echo", {"x": GpuArray(cuda, rows(2))})["x_out"], rows(2))
    assert triton.regions == {}
    assert triton.segments == set()


def test_memory_whose_request_was_given_up_rests_and_is_freed_once_the_server_was_told(
    serve: Serve, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, triton = serve()
    with Client(url) as client:
        client.infer("echo", {"x": GpuArray(cuda, rows(2))})
        (first,) = triton.regions
        triton.before_answer = lambda: time.sleep(0.5)
        with pytest.raises(DeadlineExceededError):
            client.infer("echo", {"x": GpuArray(cuda, rows(2))}, timeout_s=0.2)
        triton.before_answer = lambda: None
        assert np.array_equal(client.infer("echo", {"x": GpuArray(cuda, rows(2))})["x_out"], rows(2))
        assert len(triton.regions) == 2
    assert set(triton.regions) == locks() == {first}  # the server may still read there
    with Client(url) as other:
        sweep(other)
        other.infer("echo", {"x": GpuArray(cuda, rows(2))})
        assert len(cuda.taken) == 2
        monkeypatch.setattr(segment_module, "REST_S", 0.0)
        other.infer("echo", {"x": GpuArray(cuda, rows(2))})
        assert len(cuda.taken) == 1  # its own
        assert first not in triton.regions


HOLDS = """
import os, sys, time
from convoy.serving.client._cuda import Cuda
from convoy.serving.client._endpoint import Endpoint
from convoy.serving.client._region import Region, left
from convoy.serving.client._segment import FOLDER
from tests.serving.client.fake_cuda import FakeCuda

fake = FakeCuda()
endpoint = Endpoint.parse("grpc://localhost")
region = Region(endpoint, Cuda(fake, fake), 0, 2 << 20)
"""


def test_what_a_killed_client_left_is_forgotten_by_the_server_when_another_comes(
    serve: Serve, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, triton = serve()
    program = f"{HOLDS}\nprint(region.name, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        triton.regions[name] = (cuda.put(np.zeros(8)), 8, 0)

        def come() -> set[str]:
            with Client(url) as client:
                client.infer("echo", {"x": rows(2)})  # it need not have a GPU
            return set(triton.regions)

        with monkeypatch.context() as later:
            later.setattr(segment_module, "REST_S", 0.0)
            assert come() == {name}  # its process lives
        process.kill()
    assert come() == {name}  # the server may still be at it
    monkeypatch.setattr(segment_module, "REST_S", 0.0)
    assert come() == set()
    assert not (FOLDER / name).exists()


def test_a_forked_process_leaves_its_parents_memory_alone() -> None:
    program = f"""{HOLDS}
region.leave()
child = os.fork()
if not child:
    assert left(endpoint) == []
    region.remove()
    os._exit(0 if list(fake.taken) == [region.pointer] else 9)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert (FOLDER / region.name).exists()
region.remove()
assert fake.taken == {{}} and not (FOLDER / region.name).exists()
print("ok")
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "ok\n", done.stderr


def test_a_retry_on_another_server_has_memory_of_its_own(serve: Serve, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    url, first = serve()
    other_url, second = serve()
    x = rows(2)
    with Client([url, other_url]) as client:
        for _ in range(8):
            assert np.array_equal(client.infer("echo", {"x": GpuArray(cuda, x)})["x_out"], x)
        for triton in (first, second):
            triton.fails.append((grpc.StatusCode.UNAVAILABLE, "going away"))
        for _ in range(8):
            assert np.array_equal(client.infer("echo", {"x": GpuArray(cuda, x)})["x_out"], x)
        assert all(by_region(first) + by_region(second))
        assert first.registered
        assert second.registered
    assert len(cuda.taken) >= 1  # the servers may still read there
    monkeypatch.setattr(segment_module, "REST_S", 0.0)
    for one in (url, other_url):
        with Client(one) as client:
            client.infer("echo", {"x": GpuArray(cuda, x)})


def test_hedges_have_memory_of_their_own(serve: Serve, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    url, triton = serve()
    slow = iter([0.3])
    triton.before_answer = lambda: time.sleep(next(slow, 0.0))
    with Client(url, hedge_after_s=0.05) as client:
        client.metadata("echo")
        assert np.array_equal(client.infer("echo", {"x": GpuArray(cuda, rows(2))})["x_out"], rows(2))
        time.sleep(0.4)
    assert len(triton.registered) == 2
    assert all(by_region(triton))


def test_without_the_bindings_a_tensor_is_copied_by_its_own_library(serve: Serve, cuda: FakeCuda) -> None:
    url, triton = serve()
    cuda_module._loaded = (os.getpid(), None)

    class Other(GpuArray):
        get = None  # type: ignore[assignment]

    class OnHost:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    class Torch(Other):
        def cpu(self) -> OnHost:
            return OnHost(self.array)

    class Numba(Other):
        def copy_to_host(self) -> np.ndarray:
            return self.array

    class Jax(Other):
        def __array__(self) -> np.ndarray:
            return self.array

    with Client(url) as client:
        for kind in (GpuArray, Torch, Numba, Jax):
            assert np.array_equal(client.infer("echo", {"x": kind(cuda, rows(2))})["x_out"], rows(2))
        with pytest.raises(UsageError, match=r"input 'x': .*copy it to the host"):
            client.infer("echo", {"x": Other(cuda, rows(2))})
    assert by_region(triton) == [False] * 4
    assert cuda.asked == []


def test_memory_that_is_on_no_gpu_is_left_to_its_library(serve: Serve, cuda: FakeCuda) -> None:
    url, triton = serve()
    cuda.failures["cuPointerGetAttribute"] = Code.cudaErrorInvalidValue
    with Client(url) as client:
        assert np.array_equal(client.infer("echo", {"x": GpuArray(cuda, rows(2))})["x_out"], rows(2))
    assert by_region(triton) == [False]


def test_bfloat16_goes_as_it_is_and_other_dtypes_as_the_model_takes_them(serve: Serve, cuda: FakeCuda) -> None:
    url, triton = serve(x=("BF16", (-1, N)))
    floats = rows(2)
    bits = (floats.view(np.uint32) >> 16).astype(np.uint16)

    class Brain(GpuArray):
        dtype = "torch.bfloat16"

        def __init__(self, cuda: FakeCuda, array: np.ndarray) -> None:
            super().__init__(cuda, array.view("V2"))
            self.dtype = "torch.bfloat16"

    with Client(url) as client:
        exact = (bits.astype(np.uint32) << 16).view(np.float32)
        assert np.array_equal(client.infer("echo", {"x": Brain(cuda, bits)})["x_out"], exact)
        assert by_region(triton) == [True]
        rounded = client.infer("echo", {"x": floats})["x_out"]
        assert np.array_equal(client.infer("echo", {"x": GpuArray(cuda, floats)})["x_out"], rounded)
        assert by_region(triton) == [True, False, False]
        with pytest.raises(InvalidRequestError, match=r"expected BF16, found dtype float64 \(FP64\)"):
            client.infer("echo", {"x": GpuArray(cuda, floats.astype(np.float64))})
    url, _ = serve()
    with Client(url) as client, pytest.raises(InvalidRequestError, match=r"expected FP32, found dtype bfloat16 \(BF16\)"):
        client.infer("echo", {"x": Brain(cuda, bits)})
    with Client(url) as client, pytest.raises(InvalidRequestError, match=r"found \[2, 50000, 1\]"):
        client.infer("echo", {"x": GpuArray(cuda, floats[..., None])})


def test_a_tensor_in_another_order_is_put_in_order_by_its_library(serve: Serve, cuda: FakeCuda) -> None:
    url, triton = serve()
    x = rows(2)

    class Turned(GpuArray):
        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            return {**super().__cuda_array_interface__, "strides": (4, 8)}

        def get(self) -> np.ndarray:
            return x

    class TurnedTorch(Turned):
        def contiguous(self) -> GpuArray:
            return GpuArray(self.cuda, x, stream=3)

    with Client(url) as client:
        for kind in (Turned, TurnedTorch):
            assert np.array_equal(client.infer("echo", {"x": kind(cuda, np.zeros_like(x))})["x_out"], x)
    assert by_region(triton) == [False, True]
    with Client(url) as client:
        strided = GpuArray(cuda, x)
        strided_too = {**strided.__cuda_array_interface__, "strides": (N * 4, 4)}  # in order, and said so
        owner = SimpleNamespace(__cuda_array_interface__=strided_too, dtype=x.dtype, owner=strided)
        assert np.array_equal(client.infer("echo", {"x": owner})["x_out"], x)
        masked = SimpleNamespace(__cuda_array_interface__={**strided_too, "mask": object()}, dtype=x.dtype)
        with pytest.raises(UsageError, match="without a mask"):
            client.infer("echo", {"x": masked})


def test_a_tensor_without_elements_needs_no_gpu(cuda: FakeCuda) -> None:
    fake = FakeTransport({"echo": FakeModel.of_tensors({"x": ("FP32", (-1, 2))}, lambda inputs: {"y": inputs["x"]})})
    with Client(transport=fake) as client:
        empty = GpuArray(cuda, np.zeros((0, 2), np.float32))
        assert client.infer("echo", {"x": empty})["y"].shape == (0, 2)
    assert cuda.asked == []


def test_torch_tensors_in_the_hosts_memory_are_taken_without_a_copy(fake: FakeTransport) -> None:
    torch = pytest.importorskip("torch")
    with Client(transport=fake) as client:
        x = torch.arange(6, dtype=torch.float32).reshape(3, 2)
        assert client.infer("echo", {"x": x})["y"].tolist() == x.tolist()
        assert client.infer("echo", {"x": x.T.reshape(3, 2).contiguous().T.reshape(2, 3).T})["y"].shape == (3, 2)
        sent = np.frombuffer(fake.inferences[0].inputs[0].data, np.uint8)
        assert sent.ctypes.data == x.data_ptr()
        with pytest.raises(UsageError, match=r"input 'x': expected a tensor that requires no grad.* \.detach\(\)"):
            client.infer("echo", {"x": x.requires_grad_()})
        for bad in (x.detach().bfloat16(), x.detach().to_sparse(), torch.zeros(3, 2, device="meta")):
            with pytest.raises(UsageError, match=r"input 'x': expected a dense tensor .* Convert it"):
                client.infer("echo", {"x": bad})
        with pytest.raises(InvalidRequestError, match="expected FP32, found dtype float64"):
            client.infer("echo", {"x": x.detach().double()})


@pytest.mark.parametrize("bad", [[[1.0, 2.0]], "text", None, object()])
def test_what_is_no_tensor_is_told_so(bad: Any, fake: FakeTransport) -> None:
    with Client(transport=fake) as client, pytest.raises(UsageError, match=r"input 'x': expected a numpy array, or a tensor"):
        client.infer("echo", {"x": bad})


def test_a_tensor_on_another_device_is_told_so(fake: FakeTransport) -> None:
    elsewhere = SimpleNamespace(__dlpack__=lambda: None, __dlpack_device__=lambda: (8, 0))
    with Client(transport=fake) as client, pytest.raises(UsageError, match=r"DLPack's type 8.*copy it to the host"):
        client.infer("echo", {"x": elsewhere})


def test_nothing_of_it_is_loaded_for_numpy_arrays(serve: Serve) -> None:
    url, triton = serve()
    program = (
        "import sys, numpy as np; from convoy import Client\n"
        f"with Client(sys.argv[1]) as client: client.infer('echo', {{'x': np.zeros((2, {N}), np.float32)}})\n"
        "names = ('_cuda', '_foreign_tensor', '_gpu_memory', '_gpu_tensor', '_region')\n"
        "print(*[n for n in names if f'convoy.serving.client.{n}' in sys.modules], 'cuda' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, url], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"
    assert len(triton.inferences[0].raw_input_contents) == 0


def test_the_real_bindings_have_what_is_asked_of_them() -> None:
    """The fakes stand for the real ones: every function by its name and the number of its arguments."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    driver = pytest.importorskip("cuda.bindings.driver")
    functions = [name for name in vars(FakeCuda) if name.startswith("cu") and callable(vars(FakeCuda)[name])]
    functions.remove("cudaError_t")
    for name in functions:
        real = getattr(runtime if name.startswith("cuda") else driver, name)
        arguments = (real.__doc__ or "").splitlines()[0].split("(", 1)[1].rsplit(")", 1)[0]
        n = vars(FakeCuda)[name].__code__.co_argcount - 1
        assert len([argument for argument in arguments.split(",") if argument]) == n, name
    assert runtime.CUDA_IPC_HANDLE_SIZE == cuda_module._HANDLE_BYTES
    assert runtime.cudaIpcMemHandle_t().getPtr()
    assert runtime.cudaStreamNonBlocking == FakeCuda.cudaStreamNonBlocking
    assert runtime.cudaMemcpyKind.cudaMemcpyDefault == FakeCuda.cudaMemcpyKind.cudaMemcpyDefault
    for code in Code:
        assert getattr(runtime.cudaError_t, code.name) == code
    assert driver.CUmemorytype.CU_MEMORYTYPE_DEVICE == FakeCuda.CUmemorytype.CU_MEMORYTYPE_DEVICE
    for name, value in vars(FakeCuda.CUpointer_attribute).items():
        assert getattr(driver.CUpointer_attribute, name) == value


def test_bindings_that_find_no_driver_or_an_old_one_are_as_good_as_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    old = FakeCuda()
    old.failures["cudaGetDeviceCount"] = Code.cudaErrorInsufficientDriver
    with pytest.raises(CudaError, match="cudaGetDeviceCount: cudaErrorInsufficientDriver"):
        Cuda(old, old)
    monkeypatch.setattr(cuda_module, "_loaded", None)
    monkeypatch.setitem(sys.modules, "cuda", None)
    with caplog.at_level(logging.INFO, "convoy.client"):
        assert cuda_module.load() is None
        assert cuda_module.load() is None
    assert caplog.text.count("copied to the host by their own library") == 1
