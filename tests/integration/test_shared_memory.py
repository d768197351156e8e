"""Large tensors in memory that client and server both see: right, used where it can be, and cleaned up."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from convoy.contract.errors import DeadlineExceededError, InvalidRequestError, InvalidResponseError
from convoy.serving.client import AsyncClient, Client
from convoy.serving.client import _cuda as cuda_module
from convoy.serving.client import _segment as segment_module
from convoy.serving.client._call import (
    Call,
    Infer,
    Placed,
    RegisterSegment,
    Shared,
    Tensor,
    UnregisterRegion,
    UnregisterSegment,
)
from convoy.serving.client._cuda import Cuda
from convoy.serving.client._grpc_wire import encode_request
from convoy.serving.client._segment import FOLDER, PREFIX, Segment, Segments, abandoned
from convoy.serving.client._shared_memory import sweep
from convoy.serving.triton import TritonServer
from tests.serving.client.fake_cuda import FakeCuda, GpuArray

pytestmark = [pytest.mark.integration, pytest.mark.skipif(sys.platform != "linux", reason="shared memory is Linux's")]

N = 50_000


def segments(pid: int | None = None) -> set[str]:
    """Those of a process, by default of this one: others may be at work on the machine."""
    return {path.name for path in FOLDER.glob(f"{PREFIX}{pid or os.getpid()}-*")}


def regions(server: TritonServer) -> set[str]:
    """What the server has of clients."""
    import httpx

    status = httpx.get(f"{server.http_url}/v2/systemsharedmemory/status", trust_env=False).json()
    return {region["name"] for region in status if region["name"].startswith(PREFIX)}


@pytest.fixture(autouse=True)
def nothing_is_left(server: TritonServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither files nor regions of the server stay, once somebody has swept."""
    yield
    monkeypatch.setattr(segment_module, "REST_S", 0.0)
    sweep(server.client)
    assert segments() == set()
    assert regions(server) == set()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """``swap`` gives two inputs of unlike datatypes back under the other's name."""
    from onnx import TensorProto, helper, save

    folder = tmp_path_factory.mktemp("shared")
    (folder / "swap" / "1").mkdir(parents=True)
    kinds = {"a": TensorProto.FLOAT, "b": TensorProto.INT64}
    inputs = [helper.make_tensor_value_info(name, kind, ["n", N]) for name, kind in kinds.items()]
    outputs = [helper.make_tensor_value_info(f"{name}_out", kind, ["n", N]) for name, kind in kinds.items()]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in kinds]
    graph = helper.make_graph(nodes, "swap", inputs, outputs)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "swap" / "1" / "model.onnx")
    tensor = f'{{{{ name: "{{}}" data_type: TYPE_{{}} dims: [ {N} ] }}}}'
    (folder / "swap" / "config.pbtxt").write_text(
        'name: "swap"\nbackend: "onnxruntime"\nmax_batch_size: 8\ndynamic_batching { }\ninstance_group [ { kind: KIND_CPU } ]\n'
        f"input [ {tensor.format('a', 'FP32')}, {tensor.format('b', 'INT64')} ]\n"
        f"output [ {tensor.format('a_out', 'FP32')}, {tensor.format('b_out', 'INT64')} ]\n"
    )
    with TritonServer(folder, http_port=0, grpc_port=0, metrics_port=0) as running:
        yield running


def tensors(seed: int, rows: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"a": rng.normal(size=(rows, N)).astype(np.float32), "b": rng.integers(-9, 9, (rows, N))}


def is_right(answer: Any, asked: dict[str, np.ndarray]) -> bool:
    return np.array_equal(answer["a_out"], asked["a"]) and np.array_equal(answer["b_out"], asked["b"])


async def test_large_tensors_arrive_as_they_do_over_the_wire(server: TritonServer) -> None:
    with Client(server.grpc_url) as client:
        for seed, rows in enumerate((1, 2, 8, 1, 30)):
            asked = tensors(seed, rows)
            answer = client.infer("swap", asked)
            assert is_right(answer, asked)
            answer["a_out"][:] = 0  # the caller's own
            assert is_right(client.infer("swap", asked), asked)
        assert segments()
        only = client.infer("swap", tensors(9), outputs=["b_out"])
        assert list(only.outputs) == ["b_out"]
        assert np.array_equal(only["b_out"], tensors(9)["b"])
    async with AsyncClient(server.grpc_url) as aclient:
        asked = [tensors(seed, 3) for seed in range(20)]
        answers = await asyncio.gather(*(aclient.infer("swap", one) for one in asked))
        assert all(is_right(answer, one) for answer, one in zip(answers, asked, strict=True))
        assert segments()


def test_threads_do_not_write_into_each_others_memory(server: TritonServer) -> None:
    with Client(server.grpc_url) as client, ThreadPoolExecutor(12) as pool:

        def ask(seed: int) -> bool:
            asked = tensors(seed, 1 + seed % 3)
            return is_right(client.infer("swap", asked), asked)

        assert all(pool.map(ask, range(150)))


def test_small_tensors_and_other_ways_share_nothing(server: TritonServer) -> None:
    before = segments()
    with Client(server.grpc_url, shared_memory=False) as client:
        assert is_right(client.infer("swap", tensors(0)), tensors(0))
        assert segments() == before
    with Client(server.http_url) as client:
        assert is_right(client.infer("swap", tensors(0)), tensors(0))
        assert segments() == before


def test_a_refusal_leaves_the_memory_for_the_next_request(server: TritonServer) -> None:
    with Client(server.grpc_url) as client:
        assert is_right(client.infer("swap", tensors(0)), tensors(0))
        used = segments()
        with pytest.raises(InvalidRequestError):
            client.infer("swap", {"a": tensors(0)["a"]})
        assert is_right(client.infer("swap", tensors(1)), tensors(1))
        assert segments() == used


def test_a_refused_first_request_does_not_end_the_sharing(server: TritonServer, caplog: pytest.LogCaptureFixture) -> None:
    """The server has the memory open: it takes no second of that name."""
    with caplog.at_level(logging.INFO, "convoy.client"), Client(server.grpc_url) as client:
        with pytest.raises(InvalidRequestError):
            client.infer("swap", {"a": tensors(0, 4)["a"]})
        for seed in range(3):
            assert is_right(client.infer("swap", tensors(seed, 2)), tensors(seed, 2))
        assert len(segments()) == len(regions(server)) == 1
    assert "cannot share memory" not in caplog.text


def test_a_server_without_a_gpu_opens_no_memory_of_one_and_is_sent_the_tensors(
    server: TritonServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its own refusal: of a handle that no GPU has made."""
    fake = FakeCuda()
    monkeypatch.setattr(cuda_module, "_loaded", (os.getpid(), Cuda(fake, fake)))
    with caplog.at_level(logging.INFO, "convoy.client"), Client(server.grpc_url) as client:
        for seed, rows in enumerate((1, 2, 30)):
            asked = tensors(seed, rows)
            answer = client.infer("swap", {"a": GpuArray(fake, asked["a"]), "b": asked["b"]})
            assert is_right(answer, asked)
        assert segments()
        _tell(client, UnregisterRegion(region="nobody-s"))  # which is no error
    assert fake.taken == {}
    assert caplog.text.count("since the server cannot share memory") == 1


def test_some_inputs_go_over_the_wire_beside_others_in_shared_memory(server: TritonServer) -> None:
    asked = tensors(3, 2)
    segment = Segment(asked["b"].nbytes)
    with Client(server.grpc_url, shared_memory=False) as client:
        _tell(client, RegisterSegment(segment=segment.name, size=segment.size))
        for shared, other in (("a", "b"), ("b", "a")):
            segment.view[: asked[shared].nbytes] = asked[shared].tobytes()
            inputs = tuple(Tensor(n, {"a": "FP32", "b": "INT64"}[n], x.shape, x.tobytes()) for n, x in asked.items())
            place = Shared(segment.name, 0, segment.view[: asked[shared].nbytes])
            call = Infer("swap", inputs=inputs, placed=Placed({shared: place}, {}))
            wire = encode_request(call, 1.0)
            assert asked[other].tobytes() in wire
            assert asked[shared].tobytes() not in wire
            assert is_right(_tell(client, call).outputs, asked)
            place.view.release()
        _tell(client, UnregisterSegment(segment=segment.name))
    segment.remove()


def test_a_server_that_was_started_again_is_told_anew(server: TritonServer) -> None:
    with Client(server.grpc_url, shared_memory=False) as other, Client(server.grpc_url) as client:
        assert is_right(client.infer("swap", tensors(0)), tensors(0))
        for name in regions(server):  # what a restarted server has: no region at all
            _tell(other, UnregisterSegment(segment=name))
        for seed in range(3):
            assert is_right(client.infer("swap", tensors(seed)), tensors(seed))


def test_a_server_that_cannot_see_the_memory_gets_everything_over_the_wire(
    server: TritonServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Elsewhere(Segment):
        def __init__(self, size: int) -> None:
            super().__init__(size)
            (FOLDER / self.name).unlink()  # as in a container, whose files are others

    monkeypatch.setattr(segment_module, "Segment", Elsewhere)
    with caplog.at_level(logging.INFO, "convoy.client"), Client(server.grpc_url) as client:
        for seed in range(3):
            assert is_right(client.infer("swap", tensors(seed)), tensors(seed))
    assert [record.message for record in caplog.records if "cannot share memory" in record.message][1:] == []
    assert "tensors go over the wire" in caplog.text


def test_memory_whose_request_was_given_up_is_not_used_again_soon(server: TritonServer) -> None:
    with Client(server.grpc_url) as client:
        assert is_right(client.infer("swap", tensors(0)), tensors(0))
        for _ in range(3):
            with pytest.raises(DeadlineExceededError):
                client.infer("swap", tensors(0, 8), timeout_s=0.004)
        for seed in range(20):
            assert is_right(client.infer("swap", tensors(seed, 8)), tensors(seed, 8))
    assert regions(server) <= segments()  # what the server may still be at it forgets later, by these names
    assert len(segments()) <= 3


async def test_a_cancelled_call_and_a_client_that_nobody_closed_leave_what_can_be_swept(server: TritonServer) -> None:
    client = AsyncClient(server.grpc_url)
    asked = tensors(0, 8)
    assert is_right(await client.infer("swap", asked), asked)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(client.infer("swap", asked), 0.004)
    assert regions(server) <= segments()
    await client.close()
    assert regions(server) == segments()


def test_a_client_that_nobody_holds_any_more_takes_its_leave(server: TritonServer) -> None:
    client = Client(server.grpc_url)
    assert is_right(client.infer("swap", tensors(0)), tensors(0))
    assert regions(server)
    del client
    gc.collect()
    assert segments() == regions(server) == set()


def test_what_a_killed_client_left_is_removed_by_another(server: TritonServer, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import sys, time, numpy as np; from convoy import Client\n"
        "client = Client(sys.argv[1])\n"
        f"client.infer('swap', {{'a': np.zeros((1, {N}), np.float32), 'b': np.zeros((1, {N}), np.int64)}})\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, server.grpc_url], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        left = segments(process.pid)
        assert left
        assert not left & set(abandoned())  # its process lives
        process.send_signal(signal.SIGKILL)
    assert not left & set(abandoned())  # the server may still be at it
    monkeypatch.setattr(segment_module, "REST_S", 0.0)
    with Client(server.grpc_url) as client:
        assert is_right(client.infer("swap", tensors(0)), tensors(0))
        assert not segments(process.pid)
        assert not regions(server) & left


def test_what_nobody_closed_is_removed_at_the_end_of_the_process(server: TritonServer) -> None:
    program = (
        "import os, sys, numpy as np; from convoy import Client\n"
        "client = Client(sys.argv[1])\n"
        f"x = {{'a': np.zeros((1, {N}), np.float32), 'b': np.zeros((1, {N}), np.int64)}}\n"
        "client.infer('swap', x)\n"
        "child = os.fork()\n"
        "client.infer('swap', x)\n"
        "os.waitpid(child, 0) if child else sys.exit(0)\n"
        "client.infer('swap', x); print(os.getpid(), 'done')"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, server.grpc_url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.endswith("done\n"), done.stderr
    assert segments(int(done.stdout.split()[0])) == regions(server) == set()


def test_segments_are_reused_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_module, "_MOST_BYTES", 4 << 20)
    pool = Segments()
    first, second = pool.lease(100), pool.lease((1 << 20) + 1)
    assert first is not None
    assert second is not None
    assert (first.size, second.size) == (1 << 20, 2 << 20)
    assert pool.lease(3 << 20) is None  # 1 + 2 + 4 MiB are too many
    pool.give_back(second)
    assert pool.lease(100) is second  # rather than a new one
    pool.give_back(first)
    pool.rest(second)
    assert pool.lease(2 << 20) is None
    monkeypatch.setattr(time, "monotonic", lambda: 1e12)
    assert pool.lease(2 << 20) is second
    first.remove()
    second.remove()


def test_an_answer_that_was_not_written_is_no_answer() -> None:
    """A server that takes the memory and writes nothing there must not pass last call's answer for this one's."""
    from tritonclient.grpc import service_pb2

    def behave(method: str, request: bytes, _: Any) -> bytes:
        if method == "ModelMetadata":
            answer = service_pb2.ModelMetadataResponse(name="m")
            for tensors_of in (answer.inputs, answer.outputs):
                tensors_of.add(name="x", datatype="UINT8", shape=[-1, 200_000])
            return bytes(answer.SerializeToString())
        if method == "ModelInfer":
            answer = service_pb2.ModelInferResponse(model_name="m", raw_output_contents=[b""])
            answer.outputs.add(name="x", datatype="UINT8", shape=[1, 200_000])
            return bytes(answer.SerializeToString())
        return b""

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            name = details.method.rsplit("/", 1)[1]
            return grpc.unary_unary_rpc_method_handler(lambda request, context: behave(name, request, context))

    running = grpc.server(ThreadPoolExecutor(2), handlers=[Handler()])
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    try:
        with Client(f"grpc://127.0.0.1:{port}") as client, pytest.raises(InvalidResponseError, match="found 0"):
            client.infer("m", {"x": np.zeros((1, 200_000), np.uint8)})
    finally:
        running.stop(None).wait(5)


def _tell(client: Client, call: Call[Any]) -> Any:
    with client._begin("tell", None) as talk:
        return client._drive(talk.ask(call))
