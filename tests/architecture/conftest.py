"""What the files at the root say, read once."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from compose_spec import PyOptions

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>[A-Z][A-Z0-9_]*):-(?P<default>[^}]*)\})")


def interpolate(text: str, environment: Mapping[str, str]) -> str:
    """Compose's ``${NAME:-default}`` and ``$$``, which is all that the file may use.

    Raises:
        ValueError: There is another dollar sign.
    """
    without = _VARIABLE.sub("", text)
    if "$" in without:
        raise ValueError(f"expected ${{NAME:-default}} or $$ only, found {without[without.index('$') :][:40]!r}")
    return _VARIABLE.sub(lambda found: (environment.get(found["name"]) or found["default"]) if found["name"] else "$", text)


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def tracked(root: Path) -> frozenset[str]:
    """Every path that git tracks, relative to the root."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return frozenset(path for path in listed.stdout.split("\0") if path)


@pytest.fixture(scope="session")
def pyproject(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def compose_text(root: Path) -> str:
    return (root / "docker-compose.yml").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def compose_variables(compose_text: str) -> dict[str, str]:
    """The variables that the file reads, with their defaults."""
    return {found["name"]: found["default"] for found in _VARIABLE.finditer(compose_text) if found["name"]}


@pytest.fixture(scope="session")
def parse_compose(compose_text: str) -> Callable[[Mapping[str, str]], dict[str, Any]]:
    """The file as Compose reads it under an environment, checked against the specification: its services by name."""

    def parse(environment: Mapping[str, str]) -> dict[str, Any]:
        compose = PyOptions(apply_merge=True).from_yaml(interpolate(compose_text, environment))
        compose.validate()
        services: dict[str, Any] = compose.to_dict()["services"]
        return services

    return parse


@pytest.fixture(scope="session")
def services(parse_compose: Callable[[Mapping[str, str]], dict[str, Any]]) -> dict[str, Any]:
    return parse_compose({})
