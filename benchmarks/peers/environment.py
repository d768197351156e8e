"""Python environments of other systems, made once and kept in a cache folder."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from convoy.contract.errors import ConvoyError


def default_cache() -> Path:
    """Where environments are kept unless a caller names another folder."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "convoy-benchmarks"


def environment(name: str, requirements: Sequence[str], cache: Path) -> Path:
    """The Python of an environment that holds some packages; made where it is not there yet.

    Args:
        name: What the environment is called; it is made anew where its requirements changed.
        requirements: What pip shall install.
        cache: Where environments are kept.

    Raises:
        ConvoyError: pip cannot install it.
    """
    folder = cache / f"{name}-python{sys.version_info.major}.{sys.version_info.minor}"
    python, done = folder / "bin" / "python", folder / "done"
    wanted = "\n".join(requirements)
    if done.exists() and done.read_text() == wanted:
        return python
    venv.create(folder, with_pip=True, clear=True)
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *requirements]
    installed = subprocess.run(command, capture_output=True, text=True, check=False)
    if installed.returncode:
        raise ConvoyError(f"{name} cannot be installed into {folder}: {installed.stderr.strip()[-500:]}")
    done.write_text(wanted)
    return python


def clean_environment() -> dict[str, str]:
    """The variables of this process without those that would lead another Python to our packages."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
