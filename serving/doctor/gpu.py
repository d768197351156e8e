"""NVIDIA GPUs and their driver, with ``nvidia-smi`` and without it."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from convoy.serving.doctor import version
from convoy.serving.doctor.world import Answer, Programs, World
from convoy.serving.triton.finding import Finding, info, ok, warning

MIN_COMPUTE_CAPABILITY = "7.5"
"""What CUDA 13 and NVIDIA's containers of 2026 support: Turing and everything after it."""
MIN_DRIVER = {"12": "525.60.13", "13": "580"}
"""The oldest driver for each CUDA generation (NVIDIA's CUDA compatibility guide, R525 for 12.x and R580 for 13.x)."""

_NVIDIA = "0x10de"
_FIELDS = ("name", "driver_version", "memory.total", "mig.mode.current")
_LATER_FIELDS = (*_FIELDS, "compute_cap")  # drivers before 510 refuse the whole question for one field that they do not know
_ABSENT = ("[N/A]", "[Not Supported]", "N/A", "")


@dataclass(frozen=True)
class Gpu:
    """One GPU, as its driver describes it.

    Attributes:
        name: "NVIDIA H100 80GB HBM3".
        driver: The driver's release, "580.95.05"; empty where nobody says.
        memory_mib: Its memory; None where nobody says.
        mig: Whether it is split into instances (MIG); None where it cannot be.
        compute_capability: "9.0"; empty where nobody says.
    """

    name: str
    driver: str = ""
    memory_mib: int | None = None
    mig: bool | None = None
    compute_capability: str = ""


def is_there(world: World) -> bool:
    """Whether a driver for NVIDIA GPUs is loaded, seen from files alone."""
    places = ("proc/driver/nvidia/version", "dev/nvidiactl", "usr/lib/wsl/lib/libcuda.so.1")
    return any((world.root / place).exists() for place in places)


def examine(world: World, programs: Programs, wanted_cuda: str = "") -> list[Finding]:
    """Say which GPUs there are and whether their driver is new enough.

    Args:
        world: The machine.
        programs: Runs ``nvidia-smi``.
        wanted_cuda: The CUDA generation that the installed ONNX Runtime was built for ("13"); empty where it wants none.
    """
    program = programs.find("nvidia-smi")
    if program is None:
        return _without_program(world, wanted_cuda)
    answer, fields = _ask(program, programs)
    if answer.status != 0:
        return [_failed(answer)]
    gpus = parse(answer.output, fields)
    if not gpus:
        return [
            warning(
                "driver",
                "nvidia-smi runs but lists no GPU",
                "In a container: start it with --gpus all (docker) or a GPU reservation (compose). "
                "Else look at `dmesg | grep -i nvrm`.",
                expected="at least one GPU",
            )
        ]
    heading = programs.run([program], limit_s=2.0)
    match = re.search(r"CUDA (?:UMD )?Version\s*:\s*(\d+\.\d+)", heading.output)
    return [_driver(gpus[0].driver, match[1] if match else "", wanted_cuda), *[_gpu(index, gpu) for index, gpu in enumerate(gpus)]]


def parse(output: str, fields: tuple[str, ...] = _LATER_FIELDS) -> list[Gpu]:
    """The GPUs in what ``nvidia-smi --query-gpu=... --format=csv,noheader,nounits`` prints."""
    found = []
    for row in csv.reader(output.splitlines(), skipinitialspace=True):
        if len(row) != len(fields):
            continue
        values = {name: "" if value.strip() in _ABSENT else value.strip() for name, value in zip(fields, row, strict=True)}
        memory, mig = values["memory.total"], values["mig.mode.current"]
        found.append(
            Gpu(
                values["name"],
                values["driver_version"],
                int(memory) if memory.isdigit() else None,
                mig == "Enabled" if mig else None,
                values.get("compute_cap", ""),
            )
        )
    return found


def _ask(program: str, programs: Programs) -> tuple[Answer, tuple[str, ...]]:
    answer = Answer(None, "", "")
    for fields in (_LATER_FIELDS, _FIELDS):
        answer = programs.run([program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"], limit_s=2.5)
        if answer.status is None or "not a valid field" not in answer.output + answer.error:
            return answer, fields
    return answer, _FIELDS


def _failed(answer: Answer) -> Finding:
    said = answer.output + answer.error
    if answer.status is None:
        advice = "The driver hangs: look at `dmesg | grep -i -e nvrm -e xid`; most often only a restart of the machine helps."
    elif "version mismatch" in said:
        advice = "The driver was updated while the old one was loaded: restart the machine (or unload the nvidia modules)."
    else:
        advice = (
            "The driver is not loaded: try `sudo modprobe nvidia`, then look at `dmesg | grep -i nvrm`; "
            "after a new kernel install it again."
        )
    return warning("driver", f"nvidia-smi: {answer.reason}", advice, expected="a driver that answers")


def _without_program(world: World, wanted_cuda: str) -> list[Finding]:
    loaded = _loaded_driver(world.root / "proc/driver/nvidia/version")
    if loaded is None:
        if _on_the_bus(world.root / "sys/bus/pci/devices"):
            return [
                warning(
                    "driver",
                    "an NVIDIA GPU is in this machine, but no driver is loaded",
                    "Install NVIDIA's driver (Ubuntu: sudo ubuntu-drivers install; else see docs.nvidia.com/datacenter/tesla), "
                    "then restart.",
                    expected="NVIDIA's driver",
                )
            ]
        return [info("GPU", "none: models run on the CPU")]
    names = []
    for path in sorted((world.root / "proc/driver/nvidia/gpus").glob("*/information")):
        match = re.search(r"^Model:\s*(.+)$", path.read_text(errors="replace"), re.MULTILINE)
        names.append(match[1].strip() if match else path.parent.name)
    gpus = [_gpu(index, Gpu(name)) for index, name in enumerate(names)]
    tool = info(
        "nvidia-smi",
        "not installed, though the driver is loaded: memory and compute capability are unknown",
        "Install the driver's tools (Ubuntu: nvidia-utils of the same release); in a container set "
        "NVIDIA_DRIVER_CAPABILITIES=compute,utility.",
    )
    return [_driver(loaded, "", wanted_cuda), *gpus, tool]


def _loaded_driver(path: Path) -> str | None:
    """The driver's release as its kernel module states it; None where none is loaded."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return None
    match = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", text)
    return match[1] if match else ""


def _on_the_bus(devices: Path) -> bool:
    for device in devices.glob("*"):
        try:
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
        except OSError:
            continue
        if vendor == _NVIDIA and kind.startswith("0x03"):  # 0x03: display and 3D controllers; NVIDIA also makes bridges and sound
            return True
    return False


def _driver(release: str, cuda: str, wanted_cuda: str) -> Finding:
    said = (release or "of an unknown release") + (f", for CUDA up to {cuda}" if cuda else "")
    needed = MIN_DRIVER.get(wanted_cuda)
    if needed is None:
        return ok("driver", said)
    too_old = int(cuda.split(".")[0]) < int(wanted_cuda) if cuda else bool(release) and version.key(release) < version.key(needed)
    if too_old:
        return warning(
            "driver",
            said,
            f"Update NVIDIA's driver to {needed} or newer, or install an onnxruntime-gpu built for the older CUDA; "
            "until then models run on the CPU.",
            expected=f"a driver for CUDA {wanted_cuda} ({needed} or newer), which the installed ONNX Runtime was built for",
        )
    return ok("driver", said)


def _gpu(index: int, gpu: Gpu) -> Finding:
    parts = [gpu.name]
    if gpu.memory_mib is not None:
        parts.append(f"{gpu.memory_mib / 1024:.1f} GiB")
    if gpu.compute_capability:
        parts.append(f"compute capability {gpu.compute_capability}")
    if gpu.mig is not None:
        parts.append("split into instances (MIG)" if gpu.mig else "MIG off")
    said = ", ".join(parts)
    if gpu.compute_capability and version.key(gpu.compute_capability) < version.key(MIN_COMPUTE_CAPABILITY):
        return warning(
            f"GPU {index}",
            said,
            "CUDA 13 and the containers of 2026 do not run on it: use onnxruntime-gpu for CUDA 12 (1.26 or older), or the CPU.",
            expected=f"compute capability {MIN_COMPUTE_CAPABILITY} or higher",
        )
    return ok(f"GPU {index}", said)
