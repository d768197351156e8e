"""deploy/client.Dockerfile: what it copies exists and is enough, what it installs is pinned and holds no torch."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

LOCKS = ("requirements-client.lock", "requirements-build.lock")


@pytest.fixture(scope="module")
def dockerfile(root: Path) -> str:
    return (root / "deploy" / "client.Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


@pytest.fixture(scope="module")
def sources(dockerfile: str) -> list[str]:
    """What COPY takes from the build's context."""
    copied = [line.split()[1:-1] for line in dockerfile.splitlines() if line.startswith("COPY ") and "--from" not in line]
    return [source.rstrip("/") for line in copied for source in line]


def ignored(root: Path, path: str) -> bool:
    """Whether .dockerignore keeps ``path`` (a top folder, or a file) out of the context: the last rule that fits decides."""
    verdict = False
    for line in (root / ".dockerignore").read_text(encoding="utf-8").splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.lstrip("!").removeprefix("**/")
        prefixes = ["/".join(path.split("/")[: depth + 1]) for depth in range(path.count("/") + 1)]
        candidates = prefixes if "**/" not in rule else [Path(prefix).name for prefix in prefixes]
        if any(fnmatch.fnmatchcase(candidate, pattern) for candidate in candidates):
            verdict = not rule.startswith("!")
    return verdict


def test_everything_that_is_copied_is_tracked(sources: list[str], tracked: frozenset[str]) -> None:
    assert [
        source for source in sources if source not in tracked and not any(path.startswith(f"{source}/") for path in tracked)
    ] == []


def test_everything_that_is_copied_is_in_the_context(root: Path, sources: list[str]) -> None:
    assert [source for source in sources if ignored(root, source)] == []


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/pyvenv.cfg",
        "runs/a/run.json",
        "requirements.lock",
        "serving/__pycache__/a.pyc",
        "model_repository/lenet5/config.pbtxt",
    ],
)
def test_the_context_leaves_out_what_no_image_needs(root: Path, path: str) -> None:
    assert ignored(root, path)


def test_both_sides_of_each_link_are_copied(root: Path, sources: list[str]) -> None:
    links = [entry for entry in (root / "convoy").iterdir() if entry.is_symlink()]
    assert {link.name for link in links} == {"training", "export", "serving"}
    assert "convoy" in sources
    for link in links:
        target = link.resolve().relative_to(root).as_posix()
        assert target in sources


def test_what_is_copied_is_enough_to_build_the_wheel(
    root: Path, sources: list[str], tracked: frozenset[str], tmp_path: Path
) -> None:
    context = tmp_path / "context"
    for path in tracked:
        if any(path == source or path.startswith(f"{source}/") for source in sources) and (root / path).exists():
            target = context / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / path, target, follow_symlinks=False)
    out = tmp_path / "wheel"
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)], cwd=context, check=True, capture_output=True
    )
    (wheel,) = out.glob("convoy-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "convoy/serving/client/__init__.py" in names
    assert "convoy/cli/program.py" in names


def test_it_does_not_run_as_root(dockerfile: str) -> None:
    final = dockerfile.rsplit("FROM ", 1)[1]
    assert re.search(r"^USER (?!root|0)\w+", final, re.MULTILINE)
    assert 'ENTRYPOINT ["convoy"]' in final


def test_its_base_image_is_pinned_to_a_python_that_is_supported(dockerfile: str) -> None:
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.1[0-9]-slim-\w+$", dockerfile, re.MULTILINE)


def test_whatever_is_installed_is_checked_by_its_hash(dockerfile: str) -> None:
    for command in re.findall(r"pip install ([^&\n]*)", dockerfile):
        assert "--require-hashes" in command or ("--no-index" in command and "--no-deps" in command)


@pytest.mark.parametrize("lock", LOCKS)
def test_the_locks_fit_every_machine(root: Path, lock: str) -> None:
    text = (root / "deploy" / lock).read_text(encoding="utf-8")
    assert "platform_machine" not in text  # a marker for x86-64 would leave the image for Arm empty


def test_the_client_lock_holds_the_client_and_its_score_extra_alone(root: Path, pyproject: dict) -> None:
    text = (root / "deploy" / "requirements-client.lock").read_text(encoding="utf-8")
    locked = {name.lower() for name in re.findall(r"^([A-Za-z0-9._-]+)==", text, re.MULTILINE)}
    project = pyproject["project"]
    wanted = {
        re.split(r"[\[<>=;! ]", requirement)[0]
        for requirement in [*project["dependencies"], *project["optional-dependencies"]["score"]]
    }
    assert wanted <= locked
    assert not locked & {
        "torch",
        "torchvision",
        "nvidia-pytriton",
        "onnx",
        "onnxruntime",
        "onnxruntime-gpu",
        "scikit-learn",
        "matplotlib",
    }


def test_the_build_lock_holds_the_build_backend(root: Path, pyproject: dict) -> None:
    wanted = (root / "deploy" / "requirements-build.in").read_text(encoding="utf-8").split()
    assert set(wanted) <= set(pyproject["build-system"]["requires"])
    assert re.search(r"^hatchling==", (root / "deploy" / "requirements-build.lock").read_text(encoding="utf-8"), re.MULTILINE)
