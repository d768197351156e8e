"""What git tracks, and the documents and hooks that must follow the code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

# Home folders and the like of whoever wrote a file; the root of this checkout is added to them.
_MACHINE_PATH = re.compile(rb"(?<![\w.$}/-])/(?:home|Users|root|work|private/var)/[\w.-]+")
_BINARY_PATH = re.compile(rb"site-packages|dist-packages")


def test_nothing_that_is_tracked_names_a_path_of_a_machine(root: Path, tracked: frozenset[str]) -> None:
    here = str(root).encode()
    found = []
    for path in sorted(tracked):
        file = root / path
        if file.is_symlink() or not file.is_file():
            continue
        data = file.read_bytes()
        match = _MACHINE_PATH.search(data)
        if match or here in data:
            found.append(f"{path}: {match[0].decode() if match else str(root)}")
    assert found == []


def test_no_model_that_is_tracked_names_the_environment_that_made_it(root: Path, tracked: frozenset[str]) -> None:
    models = [root / path for path in tracked if path.startswith("model_repository/") and (root / path).is_file()]
    assert [str(path.relative_to(root)) for path in models if _BINARY_PATH.search(path.read_bytes())] == []


def test_nothing_that_is_built_is_tracked(tracked: frozenset[str]) -> None:
    assert [path for path in tracked if re.search(r"(^|/)(__pycache__|\.venv|dist|runs|\.mypy_cache)/|\.pyc$|\.tmp$", path)] == []


def test_every_dependency_is_explained(root: Path, pyproject: dict[str, Any]) -> None:
    text = (root / "docs" / "dependencies.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| `([a-z0-9-]+)", text, re.MULTILINE))
    project = pyproject["project"]
    requirements = [*project["dependencies"], *pyproject["dependency-groups"]["dev"], *pyproject["build-system"]["requires"]]
    for extra in project["optional-dependencies"].values():
        requirements += extra
    declared = {re.split(r"[\[<>=;! ]", requirement)[0].lower() for requirement in requirements} - {"convoy"}
    assert declared - explained == set()
    assert explained - declared == set()


def test_the_hooks_call_targets_that_the_makefile_has(root: Path) -> None:
    config = yaml.safe_load((root / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    entries = [hook["entry"] for repo in config["repos"] for hook in repo["hooks"]]
    assert entries
    for entry in entries:
        program, target = entry.split()
        assert program == "make"
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_make_setup_says_what_to_do_next_and_other_targets_do_not(root: Path, tmp_path: Path) -> None:
    shutil.copy(root / "Makefile", tmp_path)
    for name in ("requirements.lock", "pyproject.toml", "deploy/system-packages.sh", ".venv/.setup-done"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for target, starts in (("setup", "Ready. Next: . .venv/bin/activate "), ("demo", None)):
        if target == "demo":
            (tmp_path / ".venv" / "bin").mkdir()
            (tmp_path / ".venv" / "bin" / "convoy").symlink_to("/bin/true")
        alone = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
        done = subprocess.run(["make", target], cwd=tmp_path, env=alone, capture_output=True, text=True, check=True)
        assert len(done.stdout.splitlines()) == (starts is not None), done.stdout
        assert done.stdout.startswith(starts or "")


def test_what_the_readme_writes_into_a_clone_is_ignored(root: Path) -> None:
    ignored = (root / ".gitignore").read_text(encoding="utf-8").splitlines()
    readme = (root / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^convoy score my-network \S+ (\S+) .* --report (\S+)$", readme, re.MULTILINE)
    assert {f"/{command[0]}/", f"/{command[1]}", "/images/", "/exports/", "/runs/"} <= set(ignored)


def test_the_documents_link_to_files_that_are_there(root: Path, tracked: frozenset[str]) -> None:
    documents = sorted(path for path in tracked if path.endswith(".md"))
    assert {"README.md", "docs/triton.md"} <= set(documents)
    broken = []
    for document in documents:
        text = (root / document).read_text(encoding="utf-8")
        links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
        broken += [f"{document}: {link}" for link in links if not (root / document).parent.joinpath(link).exists()]
    assert broken == []
