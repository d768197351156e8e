"""The CUDA libraries: there, missing, broken, of the driver, and a loader that hangs or dies."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from convoy.serving.doctor import cuda

from .conftest import Machine

PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
INFO = "package_name = 'onnxruntime-gpu'\n__version__ = '{version}'\ncuda_version = '{cuda}'\n"


def build(machine: Machine, library: bytes, *, version: str = "1.31.1", release: str = "13.0") -> None:
    machine.package("onnxruntime/__init__.py")
    machine.package(PROVIDER, library)
    machine.package("onnxruntime/capi/build_and_package_info.py", INFO.format(version=version, cuda=release))


def test_libraries_of_the_wheels_are_found_and_loaded(machine: Machine, shared_library: Callable[..., bytes]) -> None:
    build(machine, shared_library("libcublasLt.so.13", "libcudart.so.13", "libc.so.6"))
    blas = machine.package("nvidia/cu13/lib/libcublasLt.so.13", shared_library("libc.so.6"))
    machine.package("nvidia/cu13/lib/libcudart.so.13", shared_library())
    machine.package("nvidia/cudnn/lib/libcudnn.so.9", shared_library("libm.so.6"))

    findings = cuda.examine(machine.world, machine.programs(), has_gpu=True)

    assert {finding.name: finding.level for finding in findings} == {
        "libcublasLt.so.13": "ok",
        "libcudart.so.13": "ok",
        "libcudnn.so.9": "ok",
    }
    assert findings[0].found == str(blas)


# Names that no machine has, from here on: one with CUDA would find the real ones.


def test_a_missing_library_names_the_package_of_its_generation(machine: Machine, shared_library: Callable[..., bytes]) -> None:
    build(machine, shared_library("libcurand.so.99"))

    curand = cuda.examine(machine.world, machine.programs(), has_gpu=True)[0]

    assert curand.level == "warning"
    assert "CUDA 13.0" in curand.expected
    assert "pip install 'nvidia-curand==99.*'" in curand.advice


def test_the_packages_for_cuda_12_have_its_number(machine: Machine, shared_library: Callable[..., bytes]) -> None:
    build(machine, shared_library("libcublas.so.98", "libcudnn.so.99"), version="1.22.0", release="12.8")

    blas, cudnn = cuda.examine(machine.world, machine.programs(), has_gpu=True)[:2]

    assert "'nvidia-cublas-cu12'" in blas.advice
    assert "'nvidia-cudnn-cu12==99.*'" in cudnn.advice


@pytest.mark.parametrize(("content", "reason"), [(b"", "file too short"), (b"x" * 500, "invalid ELF header")])
def test_a_broken_library_is_said_to_be_broken(
    machine: Machine, shared_library: Callable[..., bytes], content: bytes, reason: str
) -> None:
    build(machine, shared_library("libcudart.so.99"))
    path = machine.package("nvidia/cu13/lib/libcudart.so.99", content)

    finding = cuda.examine(machine.world, machine.programs(), has_gpu=True)[0]

    assert finding.level == "warning"
    assert f"{path} is there but cannot be loaded" in finding.found
    assert reason in finding.found
    assert "--force-reinstall 'nvidia-cuda-runtime==99.*'" in finding.advice


def test_a_library_that_lacks_another_one_names_that(machine: Machine, shared_library: Callable[..., bytes]) -> None:
    build(machine, shared_library("libcublas.so.99"))
    machine.package("nvidia/cu13/lib/libcublas.so.99", shared_library("libnvJitLink.so.99"))

    finding = cuda.examine(machine.world, machine.programs(), has_gpu=True)[0]

    assert "libnvJitLink.so.99" in finding.found


def test_the_drivers_own_library_is_not_to_be_got_by_pip(machine: Machine, shared_library: Callable[..., bytes]) -> None:
    build(machine, shared_library("libcuda_of_no_driver.so.1"))

    finding = cuda.examine(machine.world, machine.programs(), has_gpu=True)[0]

    assert finding.level == "warning"
    assert "NVIDIA_DRIVER_CAPABILITIES" in finding.advice
    assert "pip" not in finding.advice


def test_without_a_gpu_nothing_is_loaded_and_nothing_is_missed(machine: Machine, shared_library: Callable[..., bytes]) -> None:
    build(machine, shared_library("libcudart.so.99", "libcurand.so.99"))
    machine.package("nvidia/cu13/lib/libcudart.so.99", shared_library())
    machine = machine.with_python(machine.program("python", "echo started >&2; exit 1"))

    (finding,) = cuda.examine(machine.world, machine.programs(), has_gpu=False)

    assert (finding.level, finding.found.split(" lie")[0]) == ("info", "1 of 3 libraries")


def test_a_build_without_cuda_wants_none(machine: Machine) -> None:
    machine.package("onnxruntime/__init__.py")

    (finding,) = cuda.examine(machine.world, machine.programs(), has_gpu=True)

    assert (finding.level, "not built for it" in finding.found) == ("info", True)
    assert cuda.find_build(machine.world) is None


def test_a_damaged_provider_is_to_be_installed_again(machine: Machine) -> None:
    build(machine, b"cut off")

    (finding,) = cuda.examine(machine.world, machine.programs(), has_gpu=True)

    assert finding.level == "warning"
    assert "--force-reinstall onnxruntime-gpu" in finding.advice


@pytest.mark.parametrize(("script", "reason"), [("/bin/sleep 600", "no answer in time"), ("kill -SEGV $$", "signal 11")])
def test_loading_that_hangs_or_dies_is_said_to(
    machine: Machine, shared_library: Callable[..., bytes], script: str, reason: str
) -> None:
    build(machine, shared_library("libcublas.so.99"))
    machine = machine.with_python(machine.program("python", script))
    started = time.monotonic()

    (finding,) = cuda.examine(machine.world, machine.programs(limit_s=0.8), has_gpu=True)

    assert time.monotonic() - started < 4
    assert finding.level == "warning"
    assert reason in finding.found
    assert "nvidia-cublas" in finding.advice


def test_the_build_says_what_it_was_built_for(machine: Machine, shared_library: Callable[..., bytes]) -> None:
    build(machine, shared_library(), version="1.22.0", release="12.8")

    found = cuda.find_build(machine.world)

    assert found is not None
    assert (found.version, found.cuda, found.generation) == ("1.22.0", "12.8", "12")
