"""GPUs and drivers: there, missing, broken, hanging, and without nvidia-smi."""

from __future__ import annotations

import time

import pytest

from convoy.serving.doctor import gpu

from .conftest import Machine

H100 = "NVIDIA H100 80GB HBM3, 580.95.05, 81559, Disabled, 9.0"
HEADING = "| NVIDIA-SMI 580.95.05    Driver Version: 580.95.05    CUDA Version: 13.0     |"


def smi(machine: Machine, csv: str, heading: str = HEADING) -> None:
    machine.program("nvidia-smi", f'case "$1" in --query*) printf "%s\\n" "{csv}";; *) echo "{heading}";; esac')


def levels(findings) -> dict[str, str]:
    return {finding.name: finding.level for finding in findings}


def test_a_gpu_is_described_as_its_driver_does(machine: Machine) -> None:
    smi(machine, H100)

    driver, card = gpu.examine(machine.world, machine.programs(), "13")

    assert (driver.level, driver.found) == ("ok", "580.95.05, for CUDA up to 13.0")
    assert (card.level, card.found) == ("ok", "NVIDIA H100 80GB HBM3, 79.6 GiB, compute capability 9.0, MIG off")


def test_each_gpu_has_its_line(machine: Machine) -> None:
    smi(machine, H100 + "\nNVIDIA H100 80GB HBM3, 580.95.05, 81559, Enabled, 9.0")

    findings = gpu.examine(machine.world, machine.programs())

    assert [finding.name for finding in findings] == ["driver", "GPU 0", "GPU 1"]
    assert "split into instances (MIG)" in findings[2].found


def test_a_driver_that_does_not_know_a_field_is_asked_without_it(machine: Machine) -> None:
    machine.program(
        "nvidia-smi",
        'case "$1" in *compute_cap*) echo \'Field "compute_cap" is not a valid field to query.\'; exit 2;; '
        '--query*) echo "Tesla T4, 460.32, 15109, [N/A]";; *) echo "CUDA Version: 11.2";; esac',
    )

    driver, card = gpu.examine(machine.world, machine.programs())

    assert driver.found == "460.32, for CUDA up to 11.2"
    assert card.found == "Tesla T4, 14.8 GiB"


@pytest.mark.parametrize(("wanted", "level"), [("13", "warning"), ("12", "ok"), ("", "ok")])
def test_a_driver_too_old_for_the_installed_onnxruntime_is_a_warning(machine: Machine, wanted: str, level: str) -> None:
    smi(machine, "NVIDIA A10G, 550.90.07, 23028, [N/A], 8.6", "CUDA Version: 12.4")

    driver = gpu.examine(machine.world, machine.programs(), wanted)[0]

    assert driver.level == level
    if level == "warning":
        assert "CUDA 13 (580 or newer)" in driver.expected
        assert "Update NVIDIA's driver" in driver.advice


def test_a_gpu_that_cuda_13_has_left_behind_is_a_warning(machine: Machine) -> None:
    smi(machine, "Tesla V100-SXM2-16GB, 580.95.05, 16384, [N/A], 7.0")

    card = gpu.examine(machine.world, machine.programs())[1]

    assert card.level == "warning"
    assert "compute capability 7.5" in card.expected


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", "modprobe nvidia"),
        ("Failed to initialize NVML: Driver/library version mismatch", "restart the machine"),
    ],
)
def test_a_driver_that_fails_is_quoted_with_what_helps(machine: Machine, said: str, advice: str) -> None:
    machine.program("nvidia-smi", f'echo "{said}"; exit 9')

    (finding,) = gpu.examine(machine.world, machine.programs())

    assert finding.level == "warning"
    assert said in finding.found
    assert advice in finding.advice


def test_a_driver_that_hangs_is_said_to(machine: Machine) -> None:
    machine.hanging("nvidia-smi")
    started = time.monotonic()

    (finding,) = gpu.examine(machine.world, machine.programs(limit_s=1.0))

    assert time.monotonic() - started < 4
    assert (finding.level, finding.found) == ("warning", "nvidia-smi: no answer in time")
    assert "hangs" in finding.advice


def test_no_gpu_in_the_list_points_at_the_container(machine: Machine) -> None:
    machine.program("nvidia-smi", "exit 0")

    (finding,) = gpu.examine(machine.world, machine.programs())

    assert finding.level == "warning"
    assert "--gpus all" in finding.advice


def test_no_gpu_at_all_needs_nothing_done(machine: Machine) -> None:
    (finding,) = gpu.examine(machine.world, machine.programs())

    assert (finding.level, finding.found) == ("info", "none: models run on the CPU")
    assert not gpu.is_there(machine.world)


def test_a_gpu_without_a_driver_is_seen_on_the_bus(machine: Machine) -> None:
    machine.file("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    machine.file("sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n")

    (finding,) = gpu.examine(machine.world, machine.programs())

    assert finding.level == "warning"
    assert "no driver is loaded" in finding.found


def test_what_else_nvidia_makes_is_no_gpu(machine: Machine) -> None:
    machine.file("sys/bus/pci/devices/0000:01:00.1/vendor", "0x10de\n")
    machine.file("sys/bus/pci/devices/0000:01:00.1/class", "0x040300\n")  # the sound of a monitor
    machine.file("sys/bus/pci/devices/0000:00:02.0/vendor", "0x8086\n")
    machine.file("sys/bus/pci/devices/0000:00:02.0/class", "0x030000\n")

    assert [finding.level for finding in gpu.examine(machine.world, machine.programs())] == ["info"]


def test_a_driver_without_nvidia_smi_is_read_from_proc(machine: Machine) -> None:
    machine.file(
        "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build\nGCC version: gcc 12.3.0\n",
    )
    machine.file("proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t\t NVIDIA A10G\nIRQ:   \t\t 37\n")

    findings = gpu.examine(machine.world, machine.programs(), "13")

    assert levels(findings) == {"driver": "warning", "GPU 0": "ok", "nvidia-smi": "info"}
    assert findings[0].found == "550.54.15"
    assert findings[1].found == "NVIDIA A10G"
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in findings[2].advice
    assert gpu.is_there(machine.world)


def test_lines_that_are_no_gpus_are_passed_over() -> None:
    assert gpu.parse("warning: something\n\n" + H100 + "\n")[0].memory_mib == 81559
