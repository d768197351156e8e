"""Convoy's backend on an NVIDIA GPU: the default where there is one, with the same answers, and never the CPU in silence.

And the client's tensors on one: how they reach the server, that they are whole, and that nothing is left of the memory.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from convoy.contract.bundle import Bundle
from convoy.contract.errors import ServerError
from convoy.serving.client import AsyncClient, Client
from convoy.serving.client import _segment as segment_module
from convoy.serving.client._cuda import Cuda, load
from convoy.serving.client._foreign_tensor import take
from convoy.serving.client._gpu_tensor import GpuTensor
from convoy.serving.client._segment import FOLDER, ON_GPU, PREFIX
from convoy.serving.load.limit import in_process_limit
from convoy.serving.probe import replay
from convoy.serving.triton import TritonServer

SHIPPED = Path(__file__).parents[2] / "model_repository" / "lenet5"
MODEL = SHIPPED / "1" / "model.onnx"
CUDA = "CUDAExecutionProvider"
_TRY = f"""
import onnxruntime
if hasattr(onnxruntime, "preload_dlls"):
    onnxruntime.preload_dlls()
session = onnxruntime.InferenceSession({str(MODEL)!r}, providers=["{CUDA}"], enable_fallback=0)
raise SystemExit(session.get_providers()[0] != "{CUDA}")
"""


def has_gpu() -> bool:
    """Whether ONNX Runtime can run on a GPU here, tried in a process of its own."""
    if not Path("/dev/nvidia0").exists():
        return False
    return subprocess.run([sys.executable, "-c", _TRY], capture_output=True, timeout=120, check=False).returncode == 0


pytestmark = [
    pytest.mark.integration,
    pytest.mark.gpu,
    pytest.mark.skipif(not has_gpu(), reason="no NVIDIA GPU that ONNX Runtime can use"),
]
Serve = Callable[..., TritonServer]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts a server on copies of the shipped LeNet5: by name, the instances' kind and what else its configuration says."""
    servers: list[TritonServer] = []

    def start(**models: tuple[str, str]) -> TritonServer:
        for name, (kind, more) in models.items():
            shutil.copytree(SHIPPED, tmp_path / name)
            config = tmp_path / name / "config.pbtxt"
            text = (
                config.read_text().replace('name: "lenet5"', f'name: "{name}"').replace("  count: 1\n", f"  count: 1\n  {kind}\n")
            )
            assert kind in text
            config.write_text(text + more)
        server = TritonServer(tmp_path, http_port=0, grpc_port=0, metrics_port=0, keep_going=True, start_timeout_s=200)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()


def cuda(**parameters: str) -> str:
    """``config.pbtxt``'s words for the accelerator ``cuda``."""
    said = " ".join(f'parameters {{ key: "{key}" value: "{value}" }}' for key, value in parameters.items())
    return f'optimization {{ execution_accelerators {{ gpu_execution_accelerator {{ name: "cuda" {said} }} }} }}'


SIZES = 'parameters { key: "convoy_gpu_batch_sizes" value { string_value: "SIZES" } }'
TENSORRT = 'optimization { execution_accelerators { gpu_execution_accelerator { name: "tensorrt" } } }'


def test_a_model_that_names_no_hardware_runs_on_the_gpu_and_answers_as_pytorch_did(serve: Serve) -> None:
    server = serve(lenet5=("kind: KIND_AUTO", ""))

    assert server.served.failures == {}
    assert f"lenet5_0_0: {CUDA}" in server.log.read()
    with Client(server.grpc_url) as client:
        assert {group["kind"] for group in client.config("lenet5")["instance_group"]} == {"KIND_GPU"}
        agreements = replay(client, Bundle.open(SHIPPED / "1"), "lenet5")
    assert all(agreement.passed for agreement in agreements.values())


def test_instances_on_the_cpu_and_on_the_gpu_stand_beside_each_other_and_agree(serve: Serve) -> None:
    server = serve(
        on_gpu=("kind: KIND_GPU gpus: 0", ""),
        channels_last=("kind: KIND_GPU", cuda(prefer_nhwc="1")),
        on_cpu=("kind: KIND_CPU", ""),
    )
    images = np.random.default_rng(0).integers(0, 256, (64, 28, 28, 1), np.uint8)

    log = server.log.read()
    assert "on_cpu_0_0: CPUExecutionProvider" in log
    assert f"on_gpu_0_0: {CUDA}" in log
    with Client(server.grpc_url) as client:
        found = {
            name: client.infer(name, {"image": images}).outputs["probabilities"] for name in ("on_cpu", "on_gpu", "channels_last")
        }
    for name in ("on_gpu", "channels_last"):
        np.testing.assert_allclose(found[name], found["on_cpu"], rtol=0, atol=1e-4)


def test_options_of_cuda_reach_it_and_a_bad_one_is_an_error_at_load(serve: Serve) -> None:
    server = serve(
        good=("kind: KIND_AUTO", cuda(gpu_mem_limit="1073741824", cudnn_conv_algo_search="HEURISTIC")),
        bad=("kind: KIND_AUTO", cuda(gpu_mem_limit="a lot")),
        graphs=("kind: KIND_AUTO", cuda(enable_cuda_graph="1")),
    )

    assert {proof.model_name for proof in server.served.proofs} == {"good"}
    assert "gpu_mem_limit" in server.served.failures["bad"]
    assert "cannot replay CUDA graphs" in server.served.failures["graphs"]


def test_tensorrt_without_its_library_is_an_error_where_a_gpu_was_asked_for_and_said_where_none_was(serve: Serve) -> None:
    if shutil.which("trtexec") or Path("/usr/lib/x86_64-linux-gnu/libnvinfer.so.10").exists():
        pytest.skip("TensorRT is here")
    server = serve(asked=("kind: KIND_GPU", TENSORRT), found=("kind: KIND_AUTO", TENSORRT))

    assert "TensorRT" in server.served.failures["asked"] or "Tensorrt" in server.served.failures["asked"]
    log = server.log.read()
    assert "RUNS WITHOUT TENSORRT" in log
    assert f"found_0_0: {CUDA}" in log


def test_the_limit_of_the_machine_is_measured_on_the_gpu() -> None:
    limit = in_process_limit(MODEL, max_batch_size=64, batch_sizes=[64], threads=[1], providers=(CUDA, "CPUExecutionProvider"))

    assert limit.best.images_per_s > 0


def test_a_file_that_cannot_run_on_the_gpu_is_told(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "damaged" / "1").mkdir(parents=True)
    (tmp_path / "damaged" / "1" / "model.onnx").write_bytes(MODEL.read_bytes()[:1000])
    (tmp_path / "damaged" / "config.pbtxt").write_text('name: "damaged"\nbackend: "onnxruntime"\n')
    server = serve(lenet5=("kind: KIND_AUTO", ""))

    assert "model.onnx" in server.served.failures["damaged"]
    with pytest.raises(ServerError):
        server.load("damaged")


def test_batches_of_changing_size_cost_no_new_plans(serve: Serve) -> None:
    server = serve(lenet5=("kind: KIND_AUTO", ""), any_size=("kind: KIND_AUTO", SIZES.replace("SIZES", "any")))
    images = np.random.default_rng(0).integers(0, 256, (64, 28, 28, 1), np.uint8)
    sizes = [1, 64, 3, 40, 7, 16, 2, 63, 5, 33]

    assert "a session each for 1, 2, 4, 8, 16, 32, 64 rows" in server.log.read()
    with Client(server.grpc_url) as client:
        together = client.infer("lenet5", {"image": images}).outputs["probabilities"]
        for size in sizes:
            by_itself = client.infer("lenet5", {"image": images[:size]}).outputs["probabilities"]
            np.testing.assert_allclose(by_itself, together[:size], rtol=0, atol=1e-5)
        compute_ms = {}
        for name in ("lenet5", "any_size"):
            before = compute_infer_ns(client, name)
            for size in sizes:
                client.infer(name, {"image": images[:size]})
            compute_ms[name] = (compute_infer_ns(client, name) - before) / len(sizes) / 1e6
    assert compute_ms["lenet5"] < compute_ms["any_size"] / 2, compute_ms


def compute_infer_ns(client: Client, name: str) -> int:
    """What a model has computed so far, by Triton's own count."""
    (statistics,) = client.statistics(name)
    return int(statistics["inference_stats"]["compute_infer"]["ns"])


# The client's tensors on a GPU. What the server has of them is asked of the server.

N = 50_000  # 200 kB of float32 a row


@pytest.fixture(scope="module")
def torch() -> Any:
    """PyTorch, where it finds the GPU too."""
    module = pytest.importorskip("torch")
    if not module.cuda.is_available():
        pytest.skip("PyTorch finds no GPU")
    return module


@pytest.fixture(scope="module")
def bindings(torch: Any) -> Cuda:
    """NVIDIA's bindings, which must work where PyTorch does: both are of one CUDA."""
    found = load()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Gives two inputs of unlike datatypes back."""
    from onnx import TensorProto, helper, save

    folder = tmp_path_factory.mktemp("identity")
    (folder / "identity" / "1").mkdir(parents=True)
    kinds = {"a": TensorProto.FLOAT, "b": TensorProto.INT64}
    inputs = [helper.make_tensor_value_info(name, kind, ["n", N]) for name, kind in kinds.items()]
    outputs = [helper.make_tensor_value_info(f"{name}_out", kind, ["n", N]) for name, kind in kinds.items()]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in kinds]
    graph = helper.make_graph(nodes, "identity", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save(model, folder / "identity" / "1" / "model.onnx")
    tensor = f'{{{{ name: "{{}}" data_type: TYPE_{{}} dims: [ {N} ] }}}}'
    (folder / "identity" / "config.pbtxt").write_text(
        'name: "identity"\nbackend: "onnxruntime"\nmax_batch_size: 8\ndynamic_batching { }\n'
        "instance_group [ { kind: KIND_AUTO } ]\n"
        f"input [ {tensor.format('a', 'FP32')}, {tensor.format('b', 'INT64')} ]\n"
        f"output [ {tensor.format('a_out', 'FP32')}, {tensor.format('b_out', 'INT64')} ]\n"
    )
    with TritonServer(folder, http_port=0, grpc_port=0, metrics_port=0, start_timeout_s=200) as running:
        yield running


@pytest.fixture
def by_region(identity: TritonServer, bindings: Cuda, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing of a test went by way of the host, and nothing is left of it: no region of the server, no lock."""
    with caplog.at_level(logging.INFO, "convoy.client"):
        yield
    assert "way of the host" not in caplog.text
    assert "cannot be asked" not in caplog.text
    assert regions(identity) == set()
    assert not list(FOLDER.glob(f"{PREFIX}*{ON_GPU}"))


def regions(server: TritonServer) -> set[str]:
    """What the server has open of GPUs."""
    status = httpx.get(f"{server.http_url}/v2/cudasharedmemory/status", trust_env=False).json()
    return {region["name"] for region in status}


def pair(torch: Any, rows: int, seed: int = 0) -> dict[str, Any]:
    """Inputs on the GPU."""
    generator = torch.Generator("cuda").manual_seed(seed)
    a = torch.randn((rows, N), generator=generator, device="cuda")
    return {"a": a, "b": torch.randint(-9, 9, (rows, N), generator=generator, device="cuda")}


def is_right(answer: Any, asked: dict[str, Any]) -> bool:
    """Whether the inputs came back."""
    return all(np.array_equal(answer[f"{name}_out"], x.cpu().numpy()) for name, x in asked.items())


@pytest.mark.usefixtures("by_region")
async def test_torch_tensors_go_by_memory_of_the_gpu_that_is_reused_and_freed(torch: Any, identity: TritonServer) -> None:
    spare = []
    for _ in range(2):  # the second time both sides have what they keep
        with Client(identity.grpc_url) as client:
            for seed, rows in enumerate((1, 2, 8, 1, 30)):
                asked = pair(torch, rows, seed)
                assert is_right(client.infer("identity", asked), asked)
            few = len(regions(identity))
            assert few
            for seed in range(20):
                client.infer("identity", pair(torch, 8, seed))
            assert len(regions(identity)) == few
        del asked
        torch.cuda.empty_cache()
        spare.append(torch.cuda.mem_get_info()[0])
    assert spare[1] > spare[0] - (4 << 20)
    async with AsyncClient(identity.grpc_url) as aclient:
        some = [pair(torch, 3, seed) for seed in range(10)]
        answers = await asyncio.gather(*(aclient.infer("identity", one) for one in some))
        assert all(is_right(answer, one) for answer, one in zip(answers, some, strict=True))


@pytest.mark.usefixtures("by_region")
def test_threads_views_and_mixed_inputs_are_whole(torch: Any, identity: TritonServer) -> None:
    with Client(identity.grpc_url) as client, ThreadPoolExecutor(8) as pool:

        def ask(seed: int) -> bool:
            asked = pair(torch, 1 + seed % 3, seed)
            return is_right(client.infer("identity", asked), asked)

        assert all(pool.map(ask, range(60)))
        views = {name: x[1:7:2] for name, x in pair(torch, 8).items()}
        assert is_right(client.infer("identity", views), views)
        turned = {name: x.reshape(N, -1).T for name, x in pair(torch, 4).items()}
        assert is_right(client.infer("identity", turned), turned)
        mixed = pair(torch, 2)
        assert is_right(client.infer("identity", {"a": mixed["a"], "b": mixed["b"].cpu().numpy()}), mixed)
        assert is_right(client.infer("identity", {"a": mixed["a"].cpu(), "b": mixed["b"]}), mixed)


@pytest.mark.usefixtures("by_region")
def test_what_a_stream_of_its_own_still_computes_is_waited_for(torch: Any, identity: TritonServer) -> None:
    stream = torch.cuda.Stream()
    factor = torch.eye(4096, device="cuda")
    with Client(identity.grpc_url) as client:
        client.infer("identity", pair(torch, 2))
        for seed in range(10):
            asked = pair(torch, 2, seed)
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(40):  # keeps the stream busy while the request is made
                    factor = factor @ factor
                late = {name: x + 1 for name, x in asked.items()}
                answer = client.infer("identity", late)
            stream.synchronize()
            assert is_right(answer, late)


@pytest.mark.usefixtures("by_region")
def test_every_dtype_is_read_bit_by_bit(torch: Any) -> None:
    for dtype in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float64):
        x = torch.randint(0, 2, (3, 1000), device="cuda").to(dtype)
        taken = take("x", x)
        assert isinstance(taken, GpuTensor)
        taken.wait()
        assert np.array_equal(taken[1:3].to_host().view(taken.dtype).reshape(2, 1000), x[1:3].cpu().numpy())
    brain = torch.randn((3, 1000), device="cuda").bfloat16()
    taken = take("x", brain)
    assert isinstance(taken, GpuTensor)
    taken.wait()
    assert taken.dtype.name == "bfloat16"
    assert np.array_equal(taken.to_host().view(np.int16).reshape(3, 1000), brain.view(torch.int16).cpu().numpy())


@pytest.mark.usefixtures("by_region")
def test_the_callers_device_and_its_contexts_are_left_alone(torch: Any, identity: TritonServer) -> None:
    from cuda.bindings import driver

    n = torch.cuda.device_count()
    device = n - 1
    with Client(identity.grpc_url) as client:
        asked = {name: x.to(f"cuda:{device}") for name, x in pair(torch, 2).items()}
        current = torch.cuda.current_device()
        active = [driver.cuDevicePrimaryCtxGetState(i)[2] for i in range(n)]
        assert is_right(client.infer("identity", asked), asked)
        assert torch.cuda.current_device() == current
        assert [driver.cuDevicePrimaryCtxGetState(i)[2] for i in range(n)] == active


def test_what_a_killed_client_left_of_a_gpu_is_forgotten_when_another_comes(
    torch: Any, bindings: Cuda, identity: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "import sys, time, torch; from convoy import Client\n"
        "client = Client(sys.argv[1])\n"
        f"x = {{'a': torch.zeros((1, {N}), device='cuda'), 'b': torch.zeros((1, {N}), dtype=torch.int64, device='cuda')}}\n"
        "client.infer('identity', x)\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, identity.grpc_url], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        left = regions(identity)
        assert left
        process.send_signal(signal.SIGKILL)
    monkeypatch.setattr(segment_module, "REST_S", 0.0)
    with Client(identity.grpc_url) as client:
        asked = pair(torch, 1)
        assert is_right(client.infer("identity", asked), asked)
        assert not regions(identity) & left
    assert regions(identity) == set()


def test_tensors_go_by_way_of_the_host_where_they_cannot_stay(torch: Any, identity: TritonServer) -> None:
    asked = pair(torch, 2)
    for client in (Client(identity.http_url), Client(identity.grpc_url, shared_memory=False)):
        with client:
            assert is_right(client.infer("identity", asked), asked)
            assert regions(identity) == set()
