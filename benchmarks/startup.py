"""``python -m benchmarks.startup``: from the command to the first answer, and where the time goes.

Each case is a process that starts, and a client that asks by REST for one inference after another until one is answered. All cases
run in turns, so that what disturbs the machine falls on all of them:

- ``convoy serve`` on one model, and on several;
- the same of another checkout of Convoy (``--against``), such as a ``git worktree`` of an earlier commit;
- tritonserver itself with a bare ``model.py`` of the Python backend, which opens the same ONNX file and runs it: no checks, no
  supervision, no proof. What it takes is Triton's, Python's, numpy's and ONNX Runtime's own.

The parts of ``convoy serve`` are read off the server's log and off its processes: when the guard and tritonserver came to be, when
tritonserver began to load the model and started its process, when the session was open, when the model was ready (its warm-up
done), when the port was open; the rest is the first answer's. That ``convoy serve`` says what it serves, each model proven, comes
after that.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

import click

from benchmarks.harness import Figure, benchmark, interleave, ratios
from convoy.contract.errors import ServerError
from convoy.serving.triton.guard import SHM
from convoy.serving.triton.installation import Installation
from convoy.serving.triton.port import HOST, free_port
from convoy.serving.triton.runtime import Runtime

_ANSWER_WITHIN_S: Final = 60.0
_ASK_EVERY_S: Final = 0.002
_BARE_MODEL: Final = """
import numpy as np
import onnxruntime
import triton_python_backend_utils as pb
from pathlib import Path


class TritonPythonModel:
    def initialize(self, args):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        responses = []
        for request in requests:
            tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            names = request.requested_output_names()
            outputs = self.session.run(names, tensors)
            responses.append(pb.InferenceResponse([pb.Tensor(name, array) for name, array in zip(names, outputs)]))
        return responses
"""
_LINES: Final = {
    "tritonserver's own start": r"model_lifecycle\.cc:\d+\] \"loading: ",
    "Triton's start of the backend process": r"TRITONBACKEND_ModelInstanceInitialize: ",
    "backend process: Python, imports, session, threads": r"intra-op thread",
    "warm-up": r"successfully loaded '",
    "opening of the port": r"Started HTTPService",
}
"""The parts by the line of Triton's log that ends each; the first line of its kind for the first, the last for the others."""


@dataclass(frozen=True)
class Start:
    """One start.

    Attributes:
        answered_s: From the command to the first answer.
        parts_ms: Where it went; empty where nobody asked.
    """

    answered_s: float
    parts_ms: Mapping[str, float]


@benchmark("startup", packages=("nvidia-pytriton", "onnxruntime-gpu", "onnxruntime", "numpy", "grpcio", "pydantic"))
@click.option("--repository", default="model_repository", show_default=True, type=click.Path(path_type=Path, exists=True))
@click.option("--model", "model_name", default="lenet5", show_default=True)
@click.option("--models", "n_models", default=5, show_default=True, type=click.IntRange(2, 32), help="In the larger repository.")
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(3, 101))
@click.option("--against", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Another checkout of Convoy.")
def main(repository: Path, model_name: str, n_models: int, rounds: int, against: Path | None) -> Iterable[Figure]:
    """Time starts of the server, Convoy's beside the bare one."""
    parts: list[Mapping[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="convoy-startup-") as name:
        one, several, bare = (Path(name) / kind for kind in ("one", "several", "bare"))
        shutil.copytree(repository / model_name, one / model_name)
        names = [f"{model_name}_{i}" for i in range(n_models)]
        for copy in names:
            _copy_under_name(repository / model_name, several / copy, model_name)
        _write_bare(repository / model_name, bare / model_name)

        def ours(folder: Path, last: str, checkout: Path | None = None) -> Callable[[], float]:
            def start() -> float:
                result = _convoy(folder, last, checkout)
                if checkout is None and folder == one:
                    parts.append(result.parts_ms)
                return result.answered_s

            return start

        cases = {
            "convoy serve": ours(one, model_name),
            "tritonserver with a bare model.py": lambda: _tritonserver(bare, model_name),
            f"convoy serve, {n_models} models": ours(several, names[-1]),
        }
        if against is not None:
            cases["before"] = ours(one, model_name, against)
            cases[f"before, {n_models} models"] = ours(several, names[-1], against)
        samples = interleave(cases, rounds)
    figures = [Figure.of(f"until the first answer: {name}", values, "s") for name, values in samples.items()]
    plain = samples["convoy serve"]
    figures.append(
        Figure.of("convoy serve over the bare one", ratios(plain, samples["tritonserver with a bare model.py"]), "ratio")
    )
    if against is not None:
        figures += [
            Figure.of("before over now", ratios(samples["before"], plain), "ratio", goal="> 1"),
            Figure.of(
                f"before over now, {n_models} models",
                ratios(samples[f"before, {n_models} models"], samples[f"convoy serve, {n_models} models"]),
                "ratio",
                goal="> 1",
            ),
        ]
    return figures + [Figure.of(f"part: {part}", [counted[part] for counted in parts[1:]], "ms") for part in parts[0]]


def _copy_under_name(source: Path, target: Path, old: str) -> None:
    shutil.copytree(source, target)
    config = target / "config.pbtxt"
    config.write_text(config.read_text().replace(f'name: "{old}"', f'name: "{target.name}"', 1))


def _write_bare(source: Path, target: Path) -> None:
    """The same model for the Python backend, with nothing around it; its warm-up stays."""
    shutil.copytree(source, target)
    config = target / "config.pbtxt"
    config.write_text(re.sub(r'backend: "onnxruntime"', 'backend: "python"', config.read_text()))
    for version in target.iterdir():
        if version.name.isdecimal():
            (version / "model.py").write_text(_BARE_MODEL)


def _convoy(repository: Path, model_name: str, checkout: Path | None) -> Start:
    """Start ``convoy serve`` and stop it."""
    ports = _ports()
    with tempfile.TemporaryDirectory(prefix="convoy-startup-") as name:
        log = Path(name) / "triton.log"
        program = [sys.executable, "-c", "from convoy.cli import main; main()", "serve", "--repository", str(repository), "--json",
                   *(f"--{kind}-port={port}" for kind, port in ports.items()), "--log", str(log)]  # fmt: skip
        home = checkout or Path(__file__).parents[1]  # what `python -c` imports from before anything else
        with _running(program, {**os.environ, "TMPDIR": name}, Path(name), home) as (process, began, wall):
            answered = _first_answer(ports["http"], model_name, process, Path(name) / "output")
            guard = _child(process.pid)
            parts = {} if checkout is not None else _parts(log, wall, [_born(guard), _born(_child(guard))], wall + answered - began)
    return Start(answered - began, parts)


def _tritonserver(repository: Path, model_name: str) -> float:
    """Start tritonserver alone and stop it. The folder that it runs from is made before the clock starts."""
    ports = _ports()
    installation = Installation.find()
    runtime = Runtime.create(installation)
    try:
        program = [
            str(installation.server),
            f"--model-repository={repository}",
            f"--backend-directory={runtime.backends}",
            "--disable-auto-complete-config",
            f"--backend-config=python,shm-region-prefix-name={runtime.shm_prefix}",
            *(f"--{kind}-port={port}" for kind, port in ports.items()),
            *(f"--{kind}-address={HOST}" for kind in ports),
        ]
        with _running(program, runtime.environment(installation), runtime.folder, runtime.cwd) as (process, began, _):
            return _first_answer(ports["http"], model_name, process, runtime.folder / "output") - began
    finally:
        for segment in SHM.glob(f"{runtime.shm_prefix}*"):
            segment.unlink(missing_ok=True)
        runtime.remove()


@contextmanager
def _running(
    program: list[str], environment: Mapping[str, str], folder: Path, home: Path
) -> Iterator[tuple[subprocess.Popen[bytes], float, float]]:
    """Run a program; gives it with the instant of its start on the steady clock and on the wall's."""
    with (folder / "output").open("wb") as output:
        wall, began = time.time(), time.perf_counter()
        process = subprocess.Popen(program, stdout=output, stderr=output, env=dict(environment), cwd=home)
    try:
        yield process, began, wall
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _ports() -> dict[str, int]:
    ports: set[int] = set()
    while len(ports) < 3:
        ports.add(free_port())
    return dict(zip(("http", "grpc", "metrics"), sorted(ports), strict=True))


def _first_answer(port: int, model_name: str, process: subprocess.Popen[bytes], output: Path) -> float:
    """When the first inference was answered, on the steady clock."""
    body = json.dumps({"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 28, 28, 1], "data": [0] * 784}]})
    deadline = time.perf_counter() + _ANSWER_WITHIN_S
    while time.perf_counter() < deadline:
        connection = http.client.HTTPConnection(HOST, port, timeout=10)
        try:
            connection.request("POST", f"/v2/models/{model_name}/infer", body)
            if connection.getresponse().status == http.HTTPStatus.OK:
                return time.perf_counter()
        except OSError:
            pass  # not yet
        finally:
            connection.close()
        if process.poll() is not None:
            raise ServerError(f"it ended with status {process.returncode}: {output.read_text()[-2000:]}")
        time.sleep(_ASK_EVERY_S)
    raise ServerError(f"no answer within {_ANSWER_WITHIN_S:g} s: {output.read_text()[-2000:]}")


def _child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def _born(pid: int) -> float:
    """When a process was started, on the wall clock, to 10 ms."""
    since_boot = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot


def _parts(log: Path, wall: float, born: list[float], answered: float) -> dict[str, float]:
    """The parts in milliseconds."""
    instants: list[tuple[str, float]] = [("interpreter, imports, checks", born[0]), ("guard", born[1])]
    lines = log.read_text(errors="replace").splitlines()
    for i, (part, pattern) in enumerate(_LINES.items()):
        found = [line for line in lines if re.search(pattern, line)]
        instants.append((part, _stamp(found[0 if i == 0 else -1])))
    instants.append(("first answer", answered))
    parts, before = {}, wall
    for part, at in instants:
        parts[part] = 1000 * (at - before)
        before = at
    return parts


def _stamp(line: str) -> float:
    """The instant in "I1124 04:51:13.760826 ...", which is in UTC and knows no year."""
    match = re.match(r"[IWE](\d{4} [\d:.]+) ", line)
    if match is None:
        raise ServerError(f"expected a line of Triton's log, found {line!r}")
    now = datetime.now(timezone.utc)
    return datetime.strptime(f"{now.year} {match[1]}", "%Y %m%d %H:%M:%S.%f").replace(tzinfo=timezone.utc).timestamp()


if __name__ == "__main__":
    main()
