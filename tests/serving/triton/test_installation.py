"""What Triton needs, each thing missing in turn."""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
from importlib import metadata, util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from convoy.contract.errors import MissingDependencyError
from convoy.serving.triton import installation as module
from convoy.serving.triton.installation import Installation, examine


def problems() -> dict[str, str]:
    return {finding.name: str(finding) for finding in examine()[0] if finding.level == "problem"}


def test_this_machine_has_everything() -> None:
    found = Installation.find()

    assert problems() == {}
    assert found.server.name == "tritonserver"
    assert os.access(found.stub, os.X_OK)
    assert "pytriton" not in sys.modules


def test_another_platform_is_told_where_the_server_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")

    assert "found Linux aarch64" in problems()["platform"]
    assert "docker compose up" in problems()["platform"]


@pytest.mark.parametrize(("libc", "expected"), [("glibc 2.31", "found glibc 2.31"), ("", "another C library")])
def test_an_old_or_foreign_c_library_is_named(monkeypatch: pytest.MonkeyPatch, libc: str, expected: str) -> None:
    monkeypatch.setattr(os, "confstr", lambda name: libc)

    assert expected in problems()["glibc"]


@pytest.mark.parametrize("version", [(3, 9, 1), (3, 13, 0)])
def test_another_python_is_told_which_ones_do(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]) -> None:
    monkeypatch.setattr(
        module, "sys", SimpleNamespace(version_info=version, implementation=sys.implementation, executable=sys.executable)
    )

    assert "expected CPython 3.10 to 3.12" in str(module.check_python())


def versions(monkeypatch: pytest.MonkeyPatch, **changed: str | None) -> None:
    real = metadata.version

    def version(name: str) -> str:
        key = name.replace("-", "_")
        if key not in changed:
            return real(name)
        if changed[key] is None:
            raise metadata.PackageNotFoundError(name)
        return str(changed[key])

    monkeypatch.setattr(metadata, "version", version)


def test_numpy_2_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, numpy="2.1.0")

    assert "expected numpy below 2" in problems()["numpy"]
    assert "found 2.1.0" in problems()["numpy"]


def test_two_builds_of_onnxruntime_are_a_warning_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, onnxruntime="1.20.0", onnxruntime_gpu="1.20.0")

    finding = module.check_onnxruntime()

    assert finding.level == "warning"
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in finding.advice


def test_no_onnxruntime_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, onnxruntime=None, onnxruntime_gpu=None)

    assert ".[serve]" in problems()["ONNX Runtime"]


def test_a_missing_wheel_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, package=None: None if name == "pytriton" else real(name, package))

    with pytest.raises(MissingDependencyError, match=r"nvidia-pytriton is not installed.*pip install '\.\[serve\]'"):
        Installation.find()


def test_a_wheel_without_a_stub_for_this_python_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_find_wheel", lambda: (tmp_path / "pytriton" / "tritonserver", "0.7.0"))

    assert "triton_python_backend_stub" in problems()["Triton"]


def test_a_temporary_folder_that_forbids_programs_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def statvfs(path: Any) -> Any:
        return SimpleNamespace(f_flag=os.ST_NOEXEC, f_bavail=10**9, f_frsize=4096)

    monkeypatch.setattr(os, "statvfs", statvfs)

    assert "Set TMPDIR" in str(module.check_temporary_folder())


def test_a_stub_that_does_not_start_is_reported_with_the_loaders_words(tmp_path: Path) -> None:
    found = Installation.find()
    stub = tmp_path / "stub"
    stub.write_text("#!/bin/sh\necho 'error while loading shared libraries: libpython' >&2\nexit 127\n")
    stub.chmod(0o755)

    finding = module.check_stub(
        Installation(found.server, found.libraries, found.python_backend, stub, found.libpython, found.version)
    )

    assert finding.level == "problem"
    assert "error while loading shared libraries" in finding.found


@pytest.mark.parametrize(
    ("content", "reason"), [("#!/bin/sh\nexec /bin/sleep 600\n", "did not end within 0.2 s"), ("", "Exec format error")]
)
def test_a_stub_that_hangs_or_is_none_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, reason: str
) -> None:
    monkeypatch.setattr(module, "STUB_TIMEOUT_S", 0.2)
    stub = tmp_path / "stub"
    stub.write_text(content)
    stub.chmod(0o755)

    finding = module.check_stub(dataclasses.replace(Installation.find(), stub=stub))

    assert finding.level == "problem"
    assert reason in finding.found
    assert "--force-reinstall nvidia-pytriton" in finding.advice
