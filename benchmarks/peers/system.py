"""Other systems that serve the same ONNX file, started on this machine with the settings that were seen to suit them best."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import httpx
import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from benchmarks.peers.environment import clean_environment, environment
from convoy.contract.errors import ConvoyError
from convoy.serving.triton.port import HOST, free_port

_SERVERS: Final = Path(__file__).with_name("servers")
_START_WITHIN_S: Final = 60.0
_ONNXRUNTIME: Final = "onnxruntime==1.27.*"


@dataclass(frozen=True)
class Subject:
    """What is served.

    Attributes:
        name: The model.
        path: Its ONNX file: ``image`` uint8 (N, H, W, C) -> ``probabilities`` float32 (N, K).
        image: One image (H, W, C) of uint8.
        expected: Its probabilities (K,) in ONNX Runtime in this process.
        small: Whether one image takes one thread less than a millisecond.
    """

    name: str
    path: Path
    image: npt.NDArray[np.uint8]
    expected: npt.NDArray[np.float32]
    small: bool


@dataclass(frozen=True)
class Request:
    """One request, ready to be sent again and again.

    Attributes:
        url: Where to.
        body: Its bytes.
        headers: By name.
    """

    url: str
    body: bytes
    headers: dict[str, str]


@dataclass(frozen=True)
class Place:
    """Where and how a system runs.

    Attributes:
        python: The Python of its environment.
        folder: A folder of its own.
        port: Where it listens.
        workers: How many processes it has.
        model_name: What it serves.
    """

    python: Path
    folder: Path
    port: int
    workers: int
    model_name: str


@dataclass(frozen=True)
class Kind:
    """A system.

    Attributes:
        requirements: What pip installs for it.
        command: What starts it.
        request: URL without path, subject -> the request.
        workers: How many processes suit it: for a small model, for a large one.
    """

    requirements: tuple[str, ...]
    command: Callable[[Place], list[str]]
    request: Callable[[str, Subject], Request]
    workers: tuple[int, int]


def _raw(path: str) -> Callable[[str, Subject], Request]:
    def request(url: str, subject: Subject) -> Request:
        return Request(url + path, subject.image.tobytes(), {"Content-Type": "application/octet-stream"})

    return request


def _v2_json(url: str, subject: Subject) -> Request:
    data = subject.image.ravel().tolist()
    tensor = {"name": "image", "shape": [1, *subject.image.shape], "datatype": "UINT8", "data": data}
    body = json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()
    return Request(f"{url}/v2/models/{subject.name}/infer", body, {"Content-Type": "application/json"})


def _fastapi(place: Place) -> list[str]:
    words = ["-m", "uvicorn", "fastapi_app:app", "--app-dir", str(_SERVERS), "--host", HOST, "--port", str(place.port)]
    return [str(place.python), *words, "--workers", str(place.workers), "--no-access-log", "--log-level", "warning"]


def _mosec(place: Place) -> list[str]:
    words = ["--address", HOST, "--port", str(place.port), "--timeout", "30000", "--log-level", "warning"]
    return [str(place.python), str(_SERVERS / "mosec_server.py"), *words]


def _mlserver(place: Place) -> list[str]:
    settings = {"host": HOST, "http_port": place.port, "grpc_port": free_port(), "metrics_port": free_port(), "parallel_workers": 0}
    (place.folder / "settings.json").write_text(json.dumps({**settings, "debug": False}))
    model = {"name": place.model_name, "implementation": "mlserver_runtime.Classifier", "max_batch_size": 64}
    (place.folder / "model-settings.json").write_text(json.dumps({**model, "max_batch_time": 0.001}))
    return [str(place.python.with_name("mlserver")), "start", str(place.folder)]


KINDS: Final = {
    "FastAPI": Kind((_ONNXRUNTIME, "numpy<3", "fastapi==0.*", "uvicorn[standard]"), _fastapi, _raw("/predict"), (2, 2)),
    "mosec": Kind((_ONNXRUNTIME, "numpy<3", "mosec==0.9.8"), _mosec, _raw("/inference"), (1, 1)),
    # a newer uvloop: its inference workers end at the start
    "MLServer": Kind((_ONNXRUNTIME, "numpy<3", "mlserver==1.7.1", "uvloop<0.22"), _mlserver, _v2_json, (1, 1)),
}


class Peer(AbstractContextManager["Peer"]):
    """A running system that is not ours.

    Args:
        name: One of ``KINDS``.
        subject: What it serves.
        cache: Where its environment is kept.
    """

    def __init__(self, name: str, subject: Subject, cache: Path) -> None:
        self.name = name
        self._kind = KINDS[name]
        self._subject = subject
        self._python = environment(name.lower(), self._kind.requirements, cache)
        self._folder = Path(tempfile.mkdtemp(prefix=f"bench-{name.lower()}-"))
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.request = self._kind.request(f"http://{HOST}:{self._port}", subject)

    def __enter__(self) -> Self:
        cores = len(os.sched_getaffinity(0))
        workers = self._kind.workers[0 if self._subject.small else 1]
        height, width, channels = self._subject.image.shape
        served = {
            "BENCH_ONNX": str(self._subject.path),
            "BENCH_NAME": self._subject.name,
            "BENCH_SHAPE": f"{height},{width},{channels}",
            "BENCH_THREADS": str(1 if self._subject.small else max(1, cores // workers)),
            "BENCH_PORT": str(self._port),
            "BENCH_WORKERS": str(workers),
        }
        self._process = subprocess.Popen(
            self._kind.command(Place(self._python, self._folder, self._port, workers, self._subject.name)),
            env={**clean_environment(), **served, "PYTHONPATH": str(_SERVERS), "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=self._folder,
            stdout=(self._folder / "log").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            self._wait()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def _wait(self) -> None:
        """Until it answers as ONNX Runtime does."""
        end = time.monotonic() + _START_WITHIN_S
        while True:
            try:
                answer = httpx.post(self.request.url, content=self.request.body, headers=self.request.headers, timeout=30)
                if answer.status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if time.monotonic() > end or (self._process is not None and self._process.poll() is not None):
                raise ConvoyError(f"{self.name} does not answer: {(self._folder / 'log').read_text()[-800:]}")
            time.sleep(0.1)
        if not np.allclose(_probabilities(answer), self._subject.expected, atol=1e-5):
            raise ConvoyError(f"{self.name} answers otherwise than ONNX Runtime in this process.")

    def _stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def _probabilities(answer: httpx.Response) -> npt.NDArray[Any]:
    if "json" in answer.headers.get("content-type", ""):
        return np.asarray(answer.json()["outputs"][0]["data"], np.float32).ravel()
    return np.frombuffer(answer.content, np.float32)
