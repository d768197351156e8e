"""The libpython that Triton's backend process runs on.

Triton's stub does not start an interpreter's program: it links ``libpython3.X.so.1.0`` and starts Python in itself. That library
must be of the very release of the standard library that it finds, so either both are the running interpreter's, or both are the
system's.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from convoy.contract.errors import MissingDependencyError

SYSTEM_FOLDERS = tuple(Path(folder) for folder in ("/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"))
SYSTEM_HOME = Path("/usr/bin")
LOAD_TIMEOUT_S = 30.0
_PRINT_VERSION = (
    "import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); library.Py_GetVersion.restype = ctypes.c_char_p; "
    "print(library.Py_GetVersion().decode())"
)


@dataclass(frozen=True)
class LibPython:
    """A libpython and the standard library that belongs to it.

    Attributes:
        path: The library.
        home: The folder of the interpreter whose standard library is used, as ``home`` in ``pyvenv.cfg``.
        version: Its release, such as ``3.11.7``.
    """

    path: Path
    home: Path
    version: str


def library_name() -> str:
    """The file that the stub of this Python links: ``libpython3.11.so.1.0``."""
    return f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0"


def find_libpython() -> LibPython:
    """The running interpreter's libpython, else the system's with the system's standard library.

    Raises:
        MissingDependencyError: There is none that fits; the message names the Debian package.
    """
    return choose(interpreter_folders(), SYSTEM_FOLDERS)


def interpreter_folders() -> list[Path]:
    """Where the running interpreter's own libpython would be."""
    folders = [sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix, "lib"), Path(sys.base_exec_prefix, "lib")]
    return list(dict.fromkeys(Path(folder) for folder in folders if folder))


def choose(own: Iterable[Path], system: Iterable[Path]) -> LibPython:
    """Choose among folders.

    Args:
        own: Folders of the running interpreter; a library there counts only where its release is exactly this interpreter's.
        system: Folders of the system; a library there counts where the system has a standard library for it.

    Raises:
        MissingDependencyError: None fits.
    """
    short, full = f"{sys.version_info[0]}.{sys.version_info[1]}", ".".join(map(str, sys.version_info[:3]))
    rejected = []
    for folder in own:
        path = folder / library_name()
        if path.exists():
            version = release_of(path)
            if version == full:
                return LibPython(path.resolve(), _base_home(), version)
            rejected.append(f"{path} is {version}, this Python is {full}")
    for folder in system:
        path = folder / library_name()
        if path.exists():
            if any(Path(prefix, f"python{short}", "os.py").exists() for prefix in ("/usr/lib", "/usr/lib64")):
                return LibPython(path.resolve(), SYSTEM_HOME, release_of(path))
            rejected.append(f"{path} has no standard library in /usr/lib/python{short}")
    found = "; ".join(rejected) or "no such file"
    raise MissingDependencyError(
        f"expected {library_name()} for this Python ({full}, {sys.base_prefix}), found: {found}. "
        f"On Debian and Ubuntu: apt-get install libpython{short}. With pyenv: build Python with "
        f"PYTHON_CONFIGURE_OPTS=--enable-shared. Or make the virtual environment with a Python that has its library: the "
        f"system's, uv's or conda's."
    )


def release_of(path: Path) -> str:
    """The release that a libpython says it is, asked in a process of its own.

    Raises:
        MissingDependencyError: It cannot be loaded.
    """
    words = [sys.executable, "-I", "-S", "-c", _PRINT_VERSION, str(path)]
    try:
        asked = subprocess.run(words, capture_output=True, text=True, timeout=LOAD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise MissingDependencyError(f"{path} cannot be loaded: it did not end within {LOAD_TIMEOUT_S:g} s.") from error
    if asked.returncode != 0:
        said = asked.stderr.strip().splitlines()
        raise MissingDependencyError(f"{path} cannot be loaded: {said[-1] if said else f'exit status {asked.returncode}'}")
    return asked.stdout.split()[0]


def _base_home() -> Path:
    base = getattr(sys, "_base_executable", None) or sys.executable
    return Path(base).resolve().parent
