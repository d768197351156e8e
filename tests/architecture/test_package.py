"""What is installed: the wheel, the declared dependencies, the lock files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from convoy import __version__
from convoy.cli.program import COMMANDS

LOCKS = ("requirements.lock", "deploy/requirements-client.lock", "deploy/requirements-build.lock")


def requirement_names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=;! ]", requirement)[0].lower() for requirement in requirements}


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)], cwd=root, check=True, capture_output=True
    )
    (path,) = out.glob("convoy-*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_one_import_root(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"convoy", f"convoy-{__version__}.dist-info"}


def test_the_wheel_holds_the_stages(wheel: zipfile.ZipFile, root: Path) -> None:
    packed = {name for name in wheel.namelist() if name.startswith("convoy/") and name.endswith(".py")}
    own = {
        f"convoy/{path.relative_to(root / 'convoy').as_posix()}"
        for folder in ("cli", "contract")
        for path in (root / "convoy" / folder).rglob("*.py")
    }
    stages = {
        f"convoy/{path.relative_to(root).as_posix()}"
        for stage in ("training", "export", "serving")
        for path in (root / stage).rglob("*.py")
    }
    assert packed == own | stages | {"convoy/__init__.py", "convoy/__main__.py"}
    assert "convoy/py.typed" in wheel.namelist()


def test_the_wheel_brings_the_command_and_the_licence(wheel: zipfile.ZipFile) -> None:
    info = f"convoy-{__version__}.dist-info"
    assert "convoy = convoy.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert f"{info}/licenses/LICENSE" in wheel.namelist()


def test_there_is_one_version(pyproject: dict[str, Any]) -> None:
    assert pyproject["project"]["version"] == __version__


def test_the_base_is_the_client(pyproject: dict[str, Any]) -> None:
    base = requirement_names(pyproject["project"]["dependencies"])
    assert not base & {
        "torch",
        "torchvision",
        "onnx",
        "onnxruntime",
        "onnxruntime-gpu",
        "nvidia-pytriton",
        "pyarrow",
        "scikit-learn",
    }
    assert "numpy<2" not in pyproject["project"]["dependencies"]


def test_only_one_onnxruntime_can_be_installed_on_a_platform(pyproject: dict[str, Any]) -> None:
    pytest.importorskip("packaging")
    from packaging.requirements import Requirement

    platforms = [("linux", "x86_64"), ("linux", "aarch64"), ("win32", "AMD64"), ("darwin", "arm64")]
    for extra, requirements in pyproject["project"]["optional-dependencies"].items():
        runtimes = [Requirement(text) for text in requirements if text.startswith("onnxruntime")]
        for system, machine in platforms:
            environment = {"sys_platform": system, "platform_machine": machine, "python_version": "3.11"}
            names = {runtime.name for runtime in runtimes if runtime.marker is None or runtime.marker.evaluate(environment)}
            assert len(names) <= 1, (extra, system, machine, names)


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_and_hashes_every_package(root: Path, lock: str) -> None:
    text = (root / lock).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.match(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==\S+", line), line[:80]
        assert "--hash=sha256:" in line, line[:80]


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_address(root: Path, lock: str) -> None:
    text = (root / lock).read_text(encoding="utf-8")
    assert "://" not in text
    assert " @ " not in text
    assert "index-url" not in text
    assert "find-links" not in text


def test_the_lock_covers_what_is_declared(root: Path, pyproject: dict[str, Any]) -> None:
    text = (root / "requirements.lock").read_text(encoding="utf-8")
    locked = {name.lower() for name in re.findall(r"^([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?==", text, re.MULTILINE)}
    project = pyproject["project"]
    declared = requirement_names(project["dependencies"]) | requirement_names(pyproject["dependency-groups"]["dev"])
    for requirements in project["optional-dependencies"].values():
        declared |= requirement_names(requirements)
    assert declared - locked - {"convoy", "onnxruntime"} == set()  # plain onnxruntime is for the platforms that the lock is not for


@pytest.mark.parametrize("lock", LOCKS)
def test_no_locked_version_breaks_what_is_declared(root: Path, pyproject: dict[str, Any], lock: str) -> None:
    """A lock that was not resolved again after a change of pyproject.toml shows here."""
    requirements_of = pytest.importorskip("packaging.requirements")
    project, broken = pyproject["project"], []
    extras = ["score"] if "client" in lock else list(project["optional-dependencies"])
    declared = [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]
    specifiers = [requirements_of.Requirement(text) for text in [*declared, *pyproject["build-system"]["requires"]]]
    for line in re.findall(r"^([A-Za-z0-9._-]+==[^ ;\\]+)", (root / lock).read_text(encoding="utf-8"), re.MULTILINE):
        name, version = line.split("==")
        broken += [f"{line} for {wanted}" for wanted in specifiers if wanted.name == name and version not in wanted.specifier]
    assert broken == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_module(name: str, root: Path) -> None:
    path = root / "convoy" / "cli" / f"{name}.py"
    assert path.is_file()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert any(isinstance(node, ast.FunctionDef) and node.name == "command" for node in tree.body)
