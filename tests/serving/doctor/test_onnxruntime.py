"""ONNX Runtime: whole, missing, twice, overwritten, shadowed, failing, dying, hanging."""

from __future__ import annotations

import base64
import hashlib
import time
from dataclasses import replace
from pathlib import Path

import pytest

from convoy.serving.doctor import onnxruntime
from convoy.serving.triton.finding import Finding

from .conftest import Machine

MODULE = "__version__ = '1.31.1'\n\n\ndef get_available_providers():\n    return {providers!r}\n"
CPU, CUDA = ["CPUExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"]


def entry(name: str, data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(data)}\n"


def install(machine: Machine, name: str = "onnxruntime-gpu", providers: list[str] = CUDA, code: str = "") -> None:
    """A distribution with two files, and its record."""
    files = {
        "onnxruntime/__init__.py": (code or MODULE.format(providers=providers)).encode(),
        "onnxruntime/capi/library.so": b"library" * 1000,
    }
    for path, data in files.items():
        machine.package(path, data)
    machine.distribution(name, "1.31.1", "".join(entry(path, data) for path, data in files.items()))


def examine(machine: Machine, *, has_gpu: bool = False, limit_s: float = 20.0) -> dict[str, Finding]:
    found = onnxruntime.examine(machine.world, machine.programs(limit_s), has_gpu=has_gpu)
    return {finding.name: finding for finding in found}


def test_a_whole_installation_is_in_order(machine: Machine) -> None:
    install(machine)

    found = examine(machine, has_gpu=True)

    assert {name: finding.level for name, finding in found.items()} == {"build": "ok", "execution providers": "ok"}
    assert found["execution providers"].found == "CUDA, CPU (onnxruntime 1.31.1)"


def test_none_is_a_problem_with_the_command_that_installs_it(machine: Machine) -> None:
    found = examine(machine)

    assert {name: finding.level for name, finding in found.items()} == {"build": "problem"}
    assert "pip install" in found["build"].advice


def test_two_builds_are_a_clash(machine: Machine) -> None:
    install(machine)
    machine.distribution("onnxruntime", "1.30.0")

    build = examine(machine)["build"]

    assert build.level == "warning"
    assert "onnxruntime 1.30.0" in build.found
    assert "onnxruntime-gpu 1.31.1" in build.found
    assert "pip uninstall -y" in build.advice


def test_a_file_that_another_build_overwrote_is_found_by_its_digest(machine: Machine) -> None:
    install(machine)
    same_size = MODULE.format(providers=CUDA).replace("1.31.1", "1.30.0")
    machine.package("onnxruntime/__init__.py", same_size)

    files = examine(machine)["files"]

    assert files.level == "warning"
    assert "1 overwritten (such as onnxruntime/__init__.py)" in files.found
    assert "pip install onnxruntime-gpu==1.31.1" in files.advice


def test_a_large_file_that_was_overwritten_is_found_by_its_size(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "_HASHED_UP_TO_BYTES", 100)
    install(machine)
    machine.package("onnxruntime/capi/library.so", b"library" * 1001)

    assert "1 overwritten (such as onnxruntime/capi/library.so)" in examine(machine)["files"].found


def test_files_that_another_build_took_along_are_missing(machine: Machine) -> None:
    install(machine)
    (machine.folder / "packages/onnxruntime/capi/library.so").unlink()

    assert "1 missing (such as onnxruntime/capi/library.so)" in examine(machine)["files"].found


def test_a_folder_of_that_name_in_the_current_folder_is_a_warning(machine: Machine) -> None:
    install(machine)
    (machine.folder / "here/onnxruntime").mkdir()

    shadow = examine(machine)["shadow"]

    assert shadow.level == "warning"
    assert str(machine.folder / "here/onnxruntime") in shadow.found


def test_a_folder_that_comes_before_the_package_is_a_problem(machine: Machine) -> None:
    install(machine)
    before = machine.folder / "before"
    (before / "onnxruntime").mkdir(parents=True)
    (before / "onnxruntime/__init__.py").write_text(MODULE.format(providers=CPU))
    shadowed = replace(machine, world=replace(machine.world, module_path=(str(before), *machine.world.module_path)))

    finding = examine(shadowed)["import"]

    assert finding.level == "problem"
    assert str(before / "onnxruntime/__init__.py") in finding.found
    assert f"Rename or remove {before / 'onnxruntime'}" in finding.advice


def test_an_import_error_is_shown_as_it_is(machine: Machine) -> None:
    install(machine, code="raise ImportError('libcudnn.so.9: cannot open shared object file')\n")

    finding = examine(machine)["import"]

    assert finding.level == "problem"
    assert "libcudnn.so.9: cannot open shared object file" in finding.found
    assert "pip uninstall -y onnxruntime-gpu" in finding.advice


def test_a_library_that_ends_the_process_does_not_end_the_doctor(machine: Machine) -> None:
    install(machine, code="import os\n\nos.kill(os.getpid(), 11)\n")

    assert "killed by signal 11" in examine(machine)["import"].found


def test_an_import_that_hangs_is_said_to(machine: Machine) -> None:
    install(machine, code="import time\n\ntime.sleep(600)\n")
    started = time.monotonic()

    finding = examine(machine, limit_s=0.8)["import"]

    assert time.monotonic() - started < 4
    assert finding.level == "warning"  # it may only be slow
    assert "did not end in time" in finding.found


@pytest.mark.parametrize(("has_gpu", "level"), [(True, "warning"), (False, "ok")])
def test_a_build_without_cuda_is_a_warning_where_there_is_a_gpu(machine: Machine, has_gpu: bool, level: str) -> None:
    install(machine, "onnxruntime", CPU)

    finding = examine(machine, has_gpu=has_gpu)["execution providers"]

    assert finding.level == level
    if has_gpu:
        assert "pip install onnxruntime-gpu" in finding.advice


def test_what_pip_did_not_install_is_said_so(machine: Machine) -> None:
    machine.package("onnxruntime/__init__.py", MODULE.format(providers=CPU))

    assert examine(machine)["build"].level == "info"


def test_this_machines_own_installation_is_whole() -> None:
    from convoy.serving.doctor.world import Programs, World

    world = World.here(Path())

    found = onnxruntime.examine(world, Programs(world.environment, limit_s=60), has_gpu=False)

    assert {finding.name: finding.level for finding in found if finding.name in ("build", "files", "import")} == {"build": "ok"}
    assert any(finding.name == "execution providers" for finding in found)
