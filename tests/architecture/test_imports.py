"""What imports what, and what a process loads: the arrows of the design, and the weight of a start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "grpc", "tritonclient", "pytriton",
    "numpy", "scipy", "sklearn", "matplotlib", "pyarrow", "PIL", "pydantic", "httpx", "rich",
)  # fmt: skip
STAGE_ONLY = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "pytriton", "sklearn", "matplotlib", "safetensors")

HELP = """
import sys
sys.argv = ["convoy", "--help"]
from convoy.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code
"""

# Refuses the modules named in BLOCKED as if they were not installed.
BLOCKER = """
import sys, os
class Refuse:
    blocked = frozenset(os.environ["BLOCKED"].split(","))
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.blocked:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Refuse())
"""


def run_python(code: str, root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_import_contracts_hold(root: Path) -> None:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    checked = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], cwd=root, capture_output=True, text=True, timeout=240, check=False
    )
    assert checked.returncode == 0, checked.stdout[-3000:] + checked.stderr[-2000:]


@pytest.mark.parametrize("start", ["import convoy", HELP], ids=["import convoy", "convoy --help"])
def test_a_start_loads_nothing_heavy(start: str, root: Path) -> None:
    ended = run_python(f"{start}\nimport sys\nprint('LOADED', *sorted(set(sys.modules) & set({HEAVY!r})))", root)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "LOADED"


@pytest.mark.parametrize(
    "modules",
    [
        "convoy.serving.client",
        "convoy.serving.repository",
        "convoy.serving.scoring",
        "convoy.serving.triton",
        "convoy.serving.probe",
        "convoy.cli.predict, convoy.cli.score, convoy.cli.probe, convoy.cli.serve, convoy.cli.deploy",
    ],
)
def test_serving_imports_without_torch_and_onnx(modules: str, root: Path) -> None:
    ended = run_python(f"{BLOCKER}\nimport {modules}", root, BLOCKED=",".join(STAGE_ONLY))
    assert ended.returncode == 0, ended.stderr


def test_the_client_needs_the_base_dependencies_alone(root: Path) -> None:
    code = f"{BLOCKER}\nfrom convoy import AsyncClient, Client\nassert Client.classify and AsyncClient.classify"
    ended = run_python(code, root, BLOCKED=",".join([*STAGE_ONLY, "pyarrow", "psutil"]))
    assert ended.returncode == 0, ended.stderr


def test_the_blocker_blocks(root: Path) -> None:
    ended = run_python(f"{BLOCKER}\nimport torch", root, BLOCKED="torch")
    assert ended.returncode != 0
    assert "blocked: torch" in ended.stderr


def test_the_folders_at_the_root_are_links_inside_the_package(root: Path, tracked: frozenset[str]) -> None:
    for stage in ("training", "export", "serving"):
        link = root / "convoy" / stage
        assert link.is_symlink()
        assert link.readlink() == Path(f"../{stage}")
        assert f"convoy/{stage}" in tracked
