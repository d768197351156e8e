"""Convoy's backend on an NVIDIA GPU: the default where there is one, with the same answers, and never the CPU in silence."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from convoy.contract.bundle import Bundle
from convoy.contract.errors import ServerError
from convoy.serving.client import Client
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
