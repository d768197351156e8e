"""The server's command of docker-compose.yml, run by the wheel's server: what polling, health check and refusals really do."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml

from convoy.contract.agreement import Tolerance
from convoy.contract.bundle import GOLDENS_FILE, MODEL_FILE, Bundle
from convoy.contract.errors import ClientError
from convoy.contract.goldens import Goldens
from convoy.contract.image import ImageSpec
from convoy.contract.manifest import Manifest, TensorSpec
from convoy.contract.validation import Check, ValidationReport
from convoy.serving.client import Client
from convoy.serving.repository import Repository
from convoy.serving.triton import guard
from convoy.serving.triton.installation import Installation
from convoy.serving.triton.port import HOST, free_port
from convoy.serving.triton.runtime import BACKENDS, Runtime

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
IMAGE = np.zeros((1, 2, 2, 1), np.uint8)


def onnx_bytes(winner: int) -> bytes:
    """A classifier into three classes that always decides for ``winner``."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "weights", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    constants = {"weights": np.zeros((4, 3), np.float32), "bias": 4 * np.eye(3, dtype=np.float32)[winner]}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 2, 2, 1])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("logits", "probabilities")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def write_bundle(folder: Path, model: bytes) -> Bundle:
    """A bundle around any bytes: the repository checks digests, not what the bytes mean."""
    folder.mkdir()
    (folder / MODEL_FILE).write_bytes(model)
    zeros = np.zeros((1, 3), np.float32)
    Goldens.of_classes(IMAGE, zeros, zeros, np.zeros(1, np.int64)).save(folder / GOLDENS_FILE)
    report = ValidationReport(
        model_name="tiny",
        verdict="passed",
        checks=(Check(name="a check", verdict="passed", expected="x", found="x"),),
        tolerances={name: Tolerance(atol=1e-5, rtol=1e-5) for name in ("logits", "probabilities")},
        accuracy=None,
        versions={},
    )
    manifest = Manifest(
        model_name="tiny",
        labels=("ant", "bee", "cat"),
        image=ImageSpec(height_px=2, width_px=2, channels=1),
        inputs=(TensorSpec(name="image", datatype="UINT8", dims=(2, 2, 1)),),
        outputs=tuple(TensorSpec(name=name, datatype="FP32", dims=(3,)) for name in ("logits", "probabilities")),
        max_batch_size=4,
        opset_version=17,
        ir_version=8,
        weights_sha256="0" * 64,
        accuracy=None,
        versions={},
    )
    return Bundle.seal(folder, manifest, report)


@dataclass(frozen=True)
class Polling:
    """The running server.

    Attributes:
        repository: What it polls.
        client: A client of it.
        http_port: Where its REST is.
        log: Its log.
    """

    repository: Repository
    client: Client
    http_port: int
    log: Path

    def health(self) -> subprocess.CompletedProcess[str]:
        """The health check of the compose file, run on this server."""
        script = ROOT / "deploy" / "models-ready.sh"
        words = ["bash", str(script), str(self.repository.root), str(self.http_port)]
        return subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)

    def answer(self, model_name: str) -> tuple[str, str] | None:
        """The label and the version of an answer; None where there is none."""
        try:
            (prediction,) = self.client.classify(model_name, IMAGE)
        except ClientError:
            return None
        return prediction.label, prediction.model_version


def until(condition: Callable[[], bool], what: str, timeout_s: float = 40) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("exports")
    models = {"ant": onnx_bytes(0), "bee": onnx_bytes(1), "damaged": onnx_bytes(2)[:60]}
    return {name: write_bundle(folder / name, model) for name, model in models.items()}


@pytest.fixture(scope="module")
def polling(tmp_path_factory: pytest.TempPathFactory, bundles: dict[str, Bundle]) -> Iterator[Polling]:
    """The compose file's command but for the repository, the ports and the interval, with the model ``first`` in the repository."""
    repository = Repository(tmp_path_factory.mktemp("models"))
    repository.deploy(bundles["ant"], "first")
    ports = {name: free_port() for name in ("http", "grpc", "metrics")}
    written = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]["triton"]["command"]
    theirs = ["tritonserver", "--model-repository=/models", "--repository-poll-secs=${TRITON_POLL_SECS:-5}"]
    theirs += [f"--{name}-port={port}" for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002))]
    assert set(theirs) <= set(written)
    installation = Installation.find()
    runtime = Runtime.create(installation)
    log = tmp_path_factory.mktemp("log") / "triton.log"
    program = [
        str(installation.server),
        *[option for option in written if option not in theirs],
        f"--model-repository={repository.root}",
        "--repository-poll-secs=1",
        f"--backend-directory={runtime.backends}",
        *[f"--backend-config={name},shm-region-prefix-name={runtime.shm_prefix}" for name in BACKENDS],
        *[f"--{name}-address={HOST}" for name in ports],
        *[f"--{name}-port={port}" for name, port in ports.items()],
    ]
    words = [runtime.lock_words, "15", runtime.shm_prefix, str(runtime.folder), "--", *program]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(guard.__file__)), *words],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=runtime.cwd,
            env=runtime.environment(installation),
            pass_fds=runtime.locks,
        )
        try:
            with Client(f"grpc://{HOST}:{ports['grpc']}") as client:
                server = Polling(repository, client, ports["http"], log)
                until(lambda: process.poll() is not None or server.health().returncode == 0, "the health check says yes", 60)
                assert process.poll() is None, log.read_text()[-2000:]
                yield server
        finally:
            assert process.stdin is not None
            process.stdin.close()  # the guard stops the server and clears up
            process.wait(40)
            runtime.remove()


def test_a_model_that_is_there_at_the_start_answers(polling: Polling) -> None:
    assert polling.answer("first") == ("ant", "1")


def test_a_deployment_and_a_rollback_go_live_and_no_request_is_lost(polling: Polling, bundles: dict[str, Bundle]) -> None:
    polling.repository.deploy(bundles["ant"], "rolled")
    until(lambda: polling.answer("rolled") == ("ant", "1"), "a new model is taken up")
    seen: list[tuple[str, str] | str] = []
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            try:
                (prediction,) = polling.client.classify("rolled", IMAGE)
                seen.append((prediction.label, prediction.model_version))
            except ClientError as error:
                seen.append(str(error))

    callers = [threading.Thread(target=call) for _ in range(2)]
    for caller in callers:
        caller.start()
    try:
        polling.repository.deploy(bundles["bee"], "rolled")
        until(lambda: seen[-1:] == [("bee", "2")], "version 2 is taken up")
        polling.repository.rollback("rolled")
        until(lambda: seen[-1:] == [("ant", "1")], "version 1 is back")
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert set(seen) == {("ant", "1"), ("bee", "2")}


def test_a_damaged_version_leaves_the_old_one_answering_and_the_health_check_content(
    polling: Polling, bundles: dict[str, Bundle]
) -> None:
    polling.repository.deploy(bundles["ant"], "hurt")
    until(lambda: polling.answer("hurt") == ("ant", "1"), "the model is taken up")
    polling.repository.deploy(bundles["damaged"], "hurt")
    until(lambda: "failed to load 'hurt' version 2" in polling.log.read_text(), "Triton refuses the version")
    assert polling.answer("hurt") == ("ant", "1")
    assert polling.health().returncode == 0
    polling.repository.rollback("hurt")
    polling.repository.deploy(bundles["bee"], "hurt")
    until(lambda: polling.answer("hurt") == ("bee", "3"), "a good version is taken up after a damaged one")
    assert polling.health().returncode == 0
    # Why the health check asks model by model: the server's own endpoint says no from now on.
    assert httpx.get(f"http://{HOST}:{polling.http_port}/v2/health/ready").status_code == 400


def test_the_health_check_names_the_model_that_is_missing(polling: Polling, tmp_path: Path) -> None:
    broken = polling.repository.root / "broken"
    broken.mkdir()
    try:
        (broken / "config.pbtxt").write_text("no configuration")
        checked = polling.health()
        assert checked.returncode == 1
        assert checked.stdout == "broken: not ready (status 400)\n"
    finally:
        (broken / "config.pbtxt").unlink()
        broken.rmdir()
    assert polling.health().returncode == 0


def test_load_and_unload_requests_are_refused(polling: Polling) -> None:
    with pytest.raises(ClientError):
        polling.client.load("first")
    with pytest.raises(ClientError):
        polling.client.unload("first")
    assert polling.answer("first") == ("ant", "1")


def test_the_server_writes_nothing_into_the_repository(polling: Polling) -> None:
    ours = re.compile(
        r"\w+/(config\.pbtxt|labels\.txt|\d+/(model\.onnx|manifest\.json|validation\.json|goldens\.npz|config\.pbtxt))"
    )
    files = [path.relative_to(polling.repository.root).as_posix() for path in polling.repository.root.rglob("*") if path.is_file()]
    assert [path for path in files if not ours.fullmatch(path)] == []
