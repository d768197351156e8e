"""Triton as the ``nvidia-pytriton`` wheel brings it, and what it needs of the machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from convoy.contract.errors import MissingDependencyError
from convoy.serving.triton.finding import Finding, ok, problem, warning
from convoy.serving.triton.libpython import LibPython, find_libpython

PACKAGE = "nvidia-pytriton"
INSTALL = "pip install '.[serve]' in Convoy's folder"
ONNXRUNTIME_BUILDS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
STUB_TIMEOUT_S = 10.0
_MIN_GLIBC = (2, 35)
_PYTHONS = ((3, 10), (3, 12))


@dataclass(frozen=True)
class Installation:
    """A Triton that can run here.

    Attributes:
        server: The ``tritonserver`` program.
        libraries: The folder of the shared libraries that it links.
        python_backend: The folder with ``libtriton_python.so`` and ``triton_python_backend_utils.py``.
        stub: The program of the backend's process, for this Python.
        libpython: The libpython that the stub runs on.
        version: The release of the wheel.
    """

    server: Path
    libraries: Path
    python_backend: Path
    stub: Path
    libpython: LibPython
    version: str

    @classmethod
    def find(cls) -> Installation:
        """Find Triton and check everything that it needs.

        Raises:
            MissingDependencyError: Something is missing; the message names all of it, with what to do.
        """
        findings, installation = examine()
        problems = [str(finding) for finding in findings if finding.level == "problem"]
        if installation is None or problems:
            raise MissingDependencyError(
                "Triton cannot run here:\n  " + "\n  ".join(problems) + "\n`convoy doctor` shows everything that was looked at."
            )
        return installation


def examine() -> tuple[list[Finding], Installation | None]:
    """Look at everything that Triton needs of this machine, without starting it.

    Returns:
        The findings, and the installation where the wheel and a libpython were found (problems may stand beside it).
    """
    findings = [check_platform(), check_glibc(), check_python(), check_numpy(), check_onnxruntime(), check_temporary_folder()]
    wheel = _find_wheel()
    if wheel is None:
        findings.append(problem("Triton", f"the wheel {PACKAGE} is not installed", f"{INSTALL} (Linux x86-64 only)"))
        return findings, None
    folder, version = wheel
    short = f"{sys.version_info[0]}.{sys.version_info[1]}"
    stub = folder / "python_backend_stubs" / short / "triton_python_backend_stub"
    server, backend = folder / "bin" / "tritonserver", folder / "backends" / "python"
    libraries = folder.parents[1] / "nvidia_pytriton.libs"
    missing = [str(path) for path in (server, backend / "libtriton_python.so", stub, libraries) if not path.exists()]
    if missing:
        findings.append(problem("Triton", f"{PACKAGE} {version} lacks {', '.join(missing)}", f"Install it again: {INSTALL}"))
        return findings, None
    findings.append(ok("Triton", f"tritonserver of {PACKAGE} {version} at {server}"))
    try:
        libpython = find_libpython()
    except MissingDependencyError as error:
        findings.append(problem("libpython", str(error), ""))
        return findings, None
    installation = Installation(server, libraries, backend, stub, libpython, version)
    findings.append(check_stub(installation))
    return findings, installation


def check_platform() -> Finding:
    """Triton's wheel is for Linux on x86-64."""
    system, machine = platform.system(), platform.machine()
    if (system, machine) == ("Linux", "x86_64"):
        return ok("platform", f"{system} {machine}")
    return problem(
        "platform",
        f"{system} {machine}",
        "Use NVIDIA's container (docker compose up), or a server elsewhere: the client runs here.",
        expected="Linux x86_64 for the Triton server",
    )


def check_glibc() -> Finding:
    """Triton's wheel wants glibc 2.35 or newer."""
    try:
        name, _, text = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        version = tuple(int(part) for part in text.split(".")[:2])
    except (ValueError, OSError):
        name, text, version = "", "", ()
    if name == "glibc" and version >= _MIN_GLIBC:
        return ok("glibc", text)
    found = f"{name} {text}".strip() or "another C library"
    return problem(
        "glibc",
        found,
        "Ubuntu 22.04, Debian 12, Fedora 36 and everything after them have it; or use NVIDIA's container.",
        expected="glibc 2.35 or newer",
    )


def check_python() -> Finding:
    """The server's environment runs on Python 3.10 to 3.12."""
    found = ".".join(map(str, sys.version_info[:3]))
    if _PYTHONS[0] <= sys.version_info[:2] <= _PYTHONS[1] and sys.implementation.name == "cpython":
        return ok("Python", f"{found} at {sys.executable}")
    return problem(
        "Python",
        f"{sys.implementation.name} {found}",
        "Make the virtual environment with one of them; the client runs on this one.",
        expected="CPython 3.10 to 3.12 for the Triton server",
    )


def check_numpy() -> Finding:
    """Triton's Python backend was built for numpy 1."""
    version = _version("numpy")
    if version is None:
        return problem("numpy", "not installed", INSTALL)
    if int(version.split(".")[0]) < 2:
        return ok("numpy", version)
    return problem("numpy", version, "pip install 'numpy<2'", expected="numpy below 2 for Triton's Python backend")


def check_onnxruntime() -> Finding:
    """ONNX Runtime is installed, in one of its builds only: two of them overwrite each other's files."""
    found = {name: version for name in ONNXRUNTIME_BUILDS if (version := _version(name))}
    said = " and ".join(f"{name} {version}" for name, version in found.items())
    if not found or util.find_spec("onnxruntime") is None:
        return problem("ONNX Runtime", "not installed", INSTALL)
    if len(found) > 1:
        return warning(
            "ONNX Runtime",
            f"{said} are both installed: each overwrote files of the other",
            f"pip uninstall -y {' '.join(found)}, then pip install onnxruntime-gpu (which also runs on CPUs).",
            expected="one build of ONNX Runtime",
        )
    return ok("ONNX Runtime", said)


def check_temporary_folder() -> Finding:
    """The server's libraries are copied to the temporary folder and run from there."""
    folder = tempfile.gettempdir()
    state = os.statvfs(folder)
    if state.f_flag & os.ST_NOEXEC:
        return problem("temporary folder", f"{folder} forbids running programs (noexec)", "Set TMPDIR to a folder that does not.")
    free_mib = state.f_bavail * state.f_frsize // 2**20
    if free_mib < 64:
        return problem("temporary folder", f"{folder} has {free_mib} MiB free", "Make room, or set TMPDIR to another folder.")
    return ok("temporary folder", f"{folder}, {free_mib:,} MiB free")


def check_stub(installation: Installation) -> Finding:
    """Start the stub without arguments: where its libraries are found, it says that it wants some."""
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{installation.libpython.path.parent}:{installation.libraries}"}
    chosen = installation.libpython
    try:
        asked = subprocess.run(
            [str(installation.stub)], env=environment, capture_output=True, text=True, timeout=STUB_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        reason = f"it did not end within {STUB_TIMEOUT_S:g} s"
    except OSError as error:
        reason = f"{installation.stub}: {error.strerror}"
    else:
        said = asked.stdout + asked.stderr
        if "arguments" in said:
            return ok("libpython", f"{chosen.version} at {chosen.path}, standard library of {chosen.home}")
        reason = said.strip().splitlines()[-1] if said.strip() else f"exit status {asked.returncode}"
    return problem(
        "libpython",
        f"Triton's backend process does not start with {chosen.path}: {reason}",
        f"Install the wheel again: pip install --force-reinstall {PACKAGE}; where the line above names a library, install that.",
    )


def _find_wheel() -> tuple[Path, str] | None:
    """The wheel's ``tritonserver`` folder and release, found without importing the package."""
    spec = util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        return None
    version = _version(PACKAGE)
    return None if version is None else (Path(spec.origin).parent / "tritonserver", version)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
