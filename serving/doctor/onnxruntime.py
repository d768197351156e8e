"""The installed ONNX Runtime: which build, whole or overwritten, and which execution providers it has."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from convoy.serving.doctor.world import Answer, Programs, World
from convoy.serving.triton.finding import Finding, info, ok, problem, warning
from convoy.serving.triton.installation import INSTALL, ONNXRUNTIME_BUILDS

_HASHED_UP_TO_BYTES = 2**20  # larger files are told by their size: hashing all of them takes seconds
_ASK = """
import json, os, sys
sys.path[:] = json.load(sys.stdin)
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime
print(json.dumps([onnxruntime.__version__, str(onnxruntime.__file__), list(onnxruntime.get_available_providers())]))
"""


@dataclass(frozen=True)
class Installed:
    """One distribution of ONNX Runtime.

    Attributes:
        name: "onnxruntime-gpu".
        version: "1.31.1".
        folder: Where its packages lie.
        record: What it installed: path, hash and size, as its RECORD has them.
    """

    name: str
    version: str
    folder: Path
    record: str


def find_installed(world: World) -> list[Installed]:
    """All distributions of ONNX Runtime on the module path."""
    found = {}
    for distribution in metadata.distributions(path=list(dict.fromkeys(world.module_path))):
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name in ONNXRUNTIME_BUILDS and name not in found:
            folder = Path(str(distribution.locate_file("")))
            found[name] = Installed(name, distribution.version, folder, distribution.read_text("RECORD") or "")
    return list(found.values())


def examine(world: World, programs: Programs, *, has_gpu: bool) -> list[Finding]:
    """Look at the distributions, at their files, and ask the library itself, in a process of its own."""
    installed = find_installed(world)
    answer = programs.run([world.python, "-c", _ASK], stdin=json.dumps(list(world.module_path)))
    findings = [_build(installed, answer), *_files(installed), *_shadows(world)]
    if answer.status == 0:
        version, file, providers = json.loads(answer.output.strip().splitlines()[-1])
        origin = Path(file)
        if installed and not any(origin.resolve() == (one.folder / "onnxruntime/__init__.py").resolve() for one in installed):
            findings.append(
                problem(
                    "import",
                    f"`import onnxruntime` takes {origin}, not the installed package",
                    f"Rename or remove {origin.parent}, or take its folder off PYTHONPATH.",
                    expected=f"{installed[0].folder / 'onnxruntime'}",
                )
            )
        return [*findings, _providers(version, providers, has_gpu=has_gpu)]
    if installed or "No module named 'onnxruntime'" not in answer.error:
        findings.append(_import_failed(installed, answer))
    return findings


def _build(installed: list[Installed], answer: Answer) -> Finding:
    said = " and ".join(f"{one.name} {one.version}" for one in installed)
    if len(installed) > 1:
        names = " ".join(one.name for one in installed)
        return warning(
            "build",
            f"{said}: each overwrote files of the other",
            f"pip uninstall -y {names}, then pip install onnxruntime-gpu (it also runs on CPUs).",
            expected="one build of ONNX Runtime",
        )
    if installed:
        return ok("build", said)
    if answer.status == 0:
        return info("build", "not installed by pip, yet it can be imported")
    return problem("build", "not installed", INSTALL, expected="onnxruntime-gpu (it also runs on CPUs)")


def _files(installed: list[Installed]) -> list[Finding]:
    """Whether what each distribution installed is still what lies there."""
    findings = []
    for one in installed:
        missing, changed = _compare(one)
        if not missing and not changed:
            continue
        said = [
            f"{len(paths)} {word} (such as {paths[0]})" for paths, word in ((missing, "missing"), (changed, "overwritten")) if paths
        ]
        again = f"pip uninstall -y {one.name}, then pip install {one.name}=={one.version}"
        findings.append(
            warning(
                "files",
                f"of {one.name} {one.version}: {' and '.join(said)}",
                f"{again}: another build was installed over it, or removed after it.",
                expected="every file as it was installed",
            )
        )
    return findings


def _compare(one: Installed) -> tuple[list[str], list[str]]:
    missing, changed = [], []
    for row in csv.reader(one.record.splitlines()):
        if len(row) != 3 or not row[0].startswith("onnxruntime/") or not row[1]:
            continue
        name, digest, size = row
        path = one.folder / name
        try:
            actual = path.stat().st_size
            same = not size or actual == int(size)
            if same and actual <= _HASHED_UP_TO_BYTES:
                method, _, expected = digest.partition("=")
                same = _digest(path, method) == expected
        except FileNotFoundError:
            missing.append(name)
        else:
            if not same:
                changed.append(name)
    return missing, changed


def _digest(path: Path, method: str) -> str:
    return base64.urlsafe_b64encode(hashlib.new(method, path.read_bytes()).digest()).rstrip(b"=").decode()


def _shadows(world: World) -> list[Finding]:
    """A folder or a module of that name where the user is: Python programs started there import it instead."""
    for path in (world.folder / "onnxruntime", world.folder / "onnxruntime.py"):
        if path.exists():
            return [
                warning(
                    "shadow",
                    f"{path}: Python programs that are started in this folder import it instead of the package",
                    f"Rename {path.name}, or start them in another folder.",
                    expected="nothing of that name in the current folder",
                )
            ]
    return []


def _import_failed(installed: list[Installed], answer: Answer) -> Finding:
    name = installed[0].name if installed else "onnxruntime-gpu"
    if answer.status is None:  # perhaps only slow: a first import reads hundreds of megabytes
        return warning(
            "import",
            "`import onnxruntime` did not end in time",
            f"Run convoy doctor again. Where it stays so: pip uninstall -y {name}, then pip install {name}.",
            expected="an import within seconds",
        )
    if answer.status < 0:
        found = f"`import onnxruntime` is killed by signal {-answer.status}"
    else:
        found = f"`import onnxruntime` fails: {answer.reason}"
    return problem(
        "import",
        found,
        f"pip uninstall -y {' '.join(one.name for one in installed) or name}, then pip install {name}. Where it stays so, its own "
        "words above name the library that it misses.",
    )


def _providers(version: str, providers: list[str], *, has_gpu: bool) -> Finding:
    names = [provider.removesuffix("ExecutionProvider") for provider in providers]
    found = f"{', '.join(names)} (onnxruntime {version})"
    if has_gpu and "CUDA" not in names:
        return warning(
            "execution providers",
            found,
            "pip uninstall -y onnxruntime, then pip install onnxruntime-gpu; until then models run on the CPU.",
            expected="CUDA, as this machine has an NVIDIA GPU",
        )
    return ok("execution providers", found)
