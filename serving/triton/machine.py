"""What this machine has beyond what the server cannot do without: GPU, Docker, ports, shared memory, torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from convoy.contract.errors import ServerError
from convoy.serving.triton.finding import Finding, ok, problem, warning
from convoy.serving.triton.guard import SHM
from convoy.serving.triton.installation import examine
from convoy.serving.triton.port import check_port

_PORTS = {"--http-port": 8000, "--grpc-port": 8001, "--metrics-port": 8002}
_SMALL_SHM_MIB = 128


def examine_machine() -> list[Finding]:
    """Everything that ``convoy doctor`` says, in the order in which it says it."""
    serving, _ = examine()
    gpus = find_gpus()
    return [
        *serving,
        check_providers(bool(gpus)),
        check_gpu(gpus),
        check_shared_memory(SHM),
        *[check_default_port(port, option) for option, port in _PORTS.items()],
        check_torch(),
        check_docker(),
    ]


def find_gpus() -> list[str]:
    """The NVIDIA GPUs as "name, driver, memory", as ``nvidia-smi`` lists them; empty where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    asked = _run([program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"])
    return [line.strip() for line in asked.splitlines() if line.strip()]


def check_gpu(gpus: list[str]) -> Finding:
    """A GPU is good to have."""
    if gpus:
        return ok("GPU", "; ".join(gpus))
    if shutil.which("nvidia-smi"):
        return warning("GPU", "nvidia-smi is there but lists no GPU.", "Run nvidia-smi: the driver may not be loaded.")
    return ok("GPU", "none; models run on the CPU")


def check_providers(has_gpu: bool) -> Finding:
    """Which execution providers ONNX Runtime has, asked of the library itself."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return problem("execution providers", "onnxruntime is not installed.", "pip install '.[serve]' in Convoy's folder.")
    except Exception as error:  # noqa: BLE001 - a broken installation raises anything
        return problem(
            "execution providers", f"onnxruntime cannot be imported: {error}.", "Install it again: pip install onnxruntime-gpu."
        )
    providers = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    found = f"{', '.join(providers)} (onnxruntime {onnxruntime.__version__})"
    if has_gpu and "CUDA" not in providers:
        return warning(
            "execution providers", f"{found}; this machine has a GPU.", "pip uninstall onnxruntime, pip install onnxruntime-gpu."
        )
    return ok("execution providers", found)


def check_shared_memory(folder: Path) -> Finding:
    """Triton hands tensors to its backend processes through shared memory."""
    try:
        state = os.statvfs(folder)
    except OSError as error:
        return problem("shared memory", f"{folder}: {error.strerror}.", "Triton's Python backend needs it: mount a tmpfs there.")
    size_mib, free_mib = (blocks * state.f_frsize // 2**20 for blocks in (state.f_blocks, state.f_bavail))
    if free_mib < _SMALL_SHM_MIB:
        return warning(
            "shared memory",
            f"{folder} has {free_mib} MiB free of {size_mib}.",
            "Each model takes at least 1 MiB and large batches more; in Docker give --shm-size=1g.",
        )
    return ok("shared memory", f"{folder}, {free_mib:,} MiB free of {size_mib:,}")


def check_default_port(port: int, option: str) -> Finding:
    """The default ports are free."""
    try:
        check_port(port, option)
    except ServerError as error:
        return warning("port", str(error), "")
    return ok("port", f"{port} is free")


def check_torch() -> Finding:
    """Training and export need torch; serving does not."""
    try:
        return ok("torch", metadata.version("torch"))
    except metadata.PackageNotFoundError:
        return ok("torch", "not installed; `convoy train` and `convoy export` need it: pip install '.[export]' in Convoy's folder")


def check_docker() -> Finding:
    """Docker runs NVIDIA's container; `convoy serve` does without."""
    program = shutil.which("docker")
    if program is None:
        return ok("Docker", "not installed: only `docker compose up` needs it")
    server = _run([program, "version", "--format", "{{.Server.Version}}"])
    if not server:
        return warning("Docker", "installed, but its daemon does not answer.", "Start it, or ask for the right to use it.")
    compose = _run([program, "compose", "version", "--short"])
    if not compose:
        return warning("Docker", f"{server}, without the compose plugin.", "Install docker-compose-plugin.")
    return ok("Docker", f"{server}, compose {compose}")


def _run(program: list[str]) -> str:
    """What a program prints; empty where it fails."""
    try:
        return subprocess.run(program, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
