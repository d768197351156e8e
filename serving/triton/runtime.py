"""The temporary folder that one Triton of ours runs from, its shared memory, and what dead ones have left behind.

::

    /tmp/convoy-triton-<token>/
      lock            held (flock) by the guard as long as it lives: who can take it may clear the folder away
      triton.log      what the server and its backend processes say
      cwd/            empty: the backend's process looks for modules where it was started
      backends/{python,onnxruntime}/   what Triton calls backends
      python/         an overlay of this Python environment, found by the stub as `python3` on PATH
      lib/            the one libpython

    /dev/shm/convoy_<token>.lock    the same for the shared memory: a temporary folder can be private, or be gone before the memory
    /dev/shm/convoy_<token>_*       one segment a backend process

The stub runs Python isolated: it ignores PYTHONHOME and PYTHONPATH, looks for a ``python3`` on PATH, and takes the
``pyvenv.cfg`` beside it for the description of its environment. So the overlay is a small virtual environment of our own, whose
``.pth`` file adds the packages of the environment that Convoy runs in, activated or not, editable installs included.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import site
import sys
import tempfile
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Final

from convoy.contract.errors import MissingDependencyError
from convoy.serving.triton import lock
from convoy.serving.triton.guard import SHM
from convoy.serving.triton.installation import Installation
from convoy.serving.triton.libpython import library_name

PREFIX: Final = "convoy-triton-"
BACKENDS: Final = ("python", "onnxruntime")
_NEEDED_PACKAGES = ("convoy", "numpy", "onnxruntime")
_SHM_LOCK = re.compile(r"convoy_([0-9a-f]{12})\.lock")


@dataclass(frozen=True)
class Runtime:
    """A runtime folder that is in use by this process.

    Attributes:
        folder: The folder.
        locks: Descriptors that hold the locks of the folder and of the shared memory; the guard inherits them.
    """

    folder: Path
    locks: tuple[int, ...]

    @property
    def shm_prefix(self) -> str:
        """How the names of this server's shared-memory segments begin."""
        return shm_prefix(self.folder)

    @property
    def lock_words(self) -> str:
        """The locks' descriptors as the guard takes them."""
        return ",".join(map(str, self.locks))

    @property
    def backends(self) -> Path:
        """Triton's backend directory."""
        return self.folder / "backends"

    @property
    def cwd(self) -> Path:
        """An empty folder to start the server in."""
        return self.folder / "cwd"

    @property
    def log_path(self) -> Path:
        """The log, unless the caller named another."""
        return self.folder / "triton.log"

    @classmethod
    def create(cls, installation: Installation) -> Runtime:
        """Make a runtime folder for ``installation``."""
        runtime = _claim()
        try:
            runtime.cwd.mkdir()
            _assemble_backends(runtime.backends, installation)
            _assemble_python(runtime.folder / "python", installation)
            (runtime.folder / "lib").mkdir()
            (runtime.folder / "lib" / library_name()).symlink_to(installation.libpython.path)
        except BaseException:
            runtime.remove()
            raise
        return runtime

    def environment(self, installation: Installation) -> dict[str, str]:
        """The environment variables of the server's process, made from this process's own."""
        variables = dict(os.environ)
        libraries = [str(self.folder / "lib"), str(installation.libraries), variables.get("LD_LIBRARY_PATH", "")]
        variables["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
        variables["PATH"] = os.pathsep.join(filter(None, [str(self.folder / "python" / "bin"), variables.get("PATH", os.defpath)]))
        variables["PYTHONDONTWRITEBYTECODE"] = "1"
        variables.setdefault(
            "ORT_DISABLE_TELEMETRY", "1"
        )  # from 1.29 on, ONNX Runtime's wheels tell Microsoft which models they open
        return variables

    def remove(self) -> None:
        """Remove the folder and what is left of the shared memory, and let go of the locks."""
        _remove_memory(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        for descriptor in self.locks:
            os.close(descriptor)


def _claim(attempts: int = 3) -> Runtime:
    """Make a runtime folder and hold its locks. Another start may clear either lock away in the instant before it is held."""
    folder = Path(tempfile.gettempdir()).resolve() / f"{PREFIX}{secrets.token_hex(6)}"
    folder.mkdir(mode=0o700)
    locks: list[int] = []
    try:
        locks.append(lock.create(folder / "lock"))
        locks.append(lock.create(shm_lock(folder)))
    except BaseException as error:
        Runtime(folder, tuple(locks)).remove()
        if isinstance(error, FileNotFoundError) and attempts > 1:
            return _claim(attempts - 1)
        raise
    return Runtime(folder, tuple(locks))


def shm_prefix(folder: Path) -> str:
    """How the names of the shared-memory segments of the server in ``folder`` begin."""
    return f"convoy_{folder.name.removeprefix(PREFIX)}_"


def shm_lock(folder: Path) -> Path:
    """The lock file of the shared memory of the server in ``folder``."""
    return SHM / f"convoy_{folder.name.removeprefix(PREFIX)}.lock"


def clear_stale() -> list[Path]:
    """Remove the folders and shared-memory segments of this user's dead servers; nobody else's.

    A server is dead where nobody holds its lock: a lock in its folder for the folder, one in ``/dev/shm`` for the memory. What no
    lock speaks for is left alone: other programs' segments, other users', those of servers started without Convoy.

    Returns:
        The folders and the lock files of what was removed.
    """
    removed = []
    for folder in sorted(Path(tempfile.gettempdir()).resolve().glob(f"{PREFIX}*")):
        if not folder.is_symlink() and (held := lock.take_over(folder / "lock")) is not None:
            if not shm_lock(folder).exists():  # a server from before the memory had a lock of its own
                _remove_memory(folder)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)
            removed.append(folder)
    for path in sorted(SHM.glob("convoy_*.lock")):
        token = _SHM_LOCK.fullmatch(path.name)
        if token is not None and (held := lock.take_over(path)) is not None:
            _remove_memory(Path(f"{PREFIX}{token[1]}"))
            os.close(held)
            removed.append(path)
    return removed


def _remove_memory(folder: Path) -> None:
    """Remove the segments of the server in ``folder``, the lock last: what is cut short is taken up again at the next start."""
    for segment in SHM.glob(f"{shm_prefix(folder)}*"):
        lock.remove(segment)
    lock.remove(shm_lock(folder))


def _assemble_backends(backends: Path, installation: Installation) -> None:
    """Both names get the Python backend and the stub; ``onnxruntime`` also gets our ``model.py``.

    They are copies: Triton refuses a library whose links lead out of the backend directory.
    """
    ours = Path(__file__).with_name("backends") / "onnxruntime" / "model.py"
    for name in BACKENDS:
        folder = backends / name
        folder.mkdir(parents=True)
        for path in installation.python_backend.iterdir():
            if path.is_file():
                shutil.copy(path, folder)
        shutil.copy(installation.stub, folder)
    shutil.copyfile(ours, backends / "onnxruntime" / ours.name)


def _assemble_python(folder: Path, installation: Installation) -> None:
    packages = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    packages.mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin" / "python3").symlink_to(sys.executable)
    (folder / "pyvenv.cfg").write_text(f"home = {installation.libpython.home}\ninclude-system-site-packages = false\n")
    lines = [f"import site; site.addsitedir({str(path)!r})" for path in site_folders()]
    (packages / "convoy.pth").write_text("\n".join([*lines, *map(str, package_folders())]) + "\n")


def site_folders() -> list[Path]:
    """The folders of installed packages that this Python uses; their ``.pth`` files count."""
    named = [Path(path) for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    return [path for path in dict.fromkeys([*named, *map(Path, site.getsitepackages())]) if path.is_dir()]


def package_folders() -> list[Path]:
    """The folders that hold the packages which the backend imports, wherever they were imported from.

    Raises:
        MissingDependencyError: One is not installed.
    """
    folders = []
    for name in _NEEDED_PACKAGES:
        spec = util.find_spec(name)
        if spec is None or spec.origin is None:
            raise MissingDependencyError(f"the package {name} is not installed. pip install '.[serve]' in Convoy's folder")
        folders.append(Path(spec.origin).parents[1])
    return list(dict.fromkeys(folders))
