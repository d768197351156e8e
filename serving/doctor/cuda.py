"""The CUDA and cuDNN libraries that the installed ONNX Runtime wants: are they there, and can they be loaded?"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from convoy.serving.doctor import elf
from convoy.serving.doctor.world import Programs, World
from convoy.serving.triton.finding import Finding, info, ok, warning

PROVIDER = "onnxruntime/capi/libonnxruntime_providers_cuda.so"

_WITHOUT_CUDA = re.compile(r"lib(?:c|m|dl|rt|pthread|stdc\+\+|gcc_s)\.so|ld-linux|libonnxruntime")
_PACKAGES = {  # library: the pip package that brings it
    "libcublas": "nvidia-cublas",
    "libcublasLt": "nvidia-cublas",
    "libcudart": "nvidia-cuda-runtime",
    "libcufft": "nvidia-cufft",
    "libcurand": "nvidia-curand",
    "libnvrtc": "nvidia-cuda-nvrtc",
    "libcudnn": "nvidia-cudnn",
}
_LOAD = """
import ctypes, json, sys
said = {}
for name, paths in json.load(sys.stdin).items():
    for candidate in [*paths, name]:
        try:
            ctypes.CDLL(candidate, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            said.setdefault(name, ["", str(error)])
        else:
            said[name] = [candidate, ""]
            break
print(json.dumps(said))
"""


@dataclass(frozen=True)
class Build:
    """What the installed ONNX Runtime was built for.

    Attributes:
        version: Its release, "1.31.1".
        cuda: The CUDA release, "13.0".
        provider: The library of its CUDA execution provider.
    """

    version: str
    cuda: str
    provider: Path

    @property
    def generation(self) -> str:
        """The first number of the CUDA release: what libraries and driver must agree with."""
        return self.cuda.split(".")[0]


def find_build(world: World) -> Build | None:
    """The ONNX Runtime on the module path that can use CUDA; None where there is none. Read from its files, not imported."""
    for folder in world.module_path:
        provider = Path(folder or ".", PROVIDER)
        if not Path(folder or ".", "onnxruntime/__init__.py").exists():
            continue
        if not provider.exists():
            return None  # the first one is the one that Python imports
        try:
            text = provider.with_name("build_and_package_info.py").read_text()
        except OSError:
            text = ""
        values = dict(re.findall(r"^(\w+)\s*=\s*['\"]([^'\"]*)['\"]", text, re.MULTILINE))
        return Build(values.get("__version__", ""), values.get("cuda_version", ""), provider)
    return None


def examine(world: World, programs: Programs, *, has_gpu: bool) -> list[Finding]:
    """Look for every library that the CUDA provider links, and for cuDNN, and load them in a process of its own.

    Without a GPU nothing is loaded and nothing that is missing matters.
    """
    build = find_build(world)
    if build is None:
        return [info("CUDA", "the installed ONNX Runtime is not built for it")]
    try:
        names = [name for name in elf.needed(build.provider) if not _WITHOUT_CUDA.match(name)]
    except (OSError, ValueError) as error:
        return [warning("CUDA provider", str(error), "Install it again: pip install --force-reinstall onnxruntime-gpu")]
    names += [name for name in ["libcudnn.so.9"] if name not in names]  # opened when a model needs it, not linked
    paths = {name: _candidates(world, name) for name in names}
    title = f"CUDA {build.cuda}".strip()
    if not has_gpu:
        present = [name for name in names if paths[name]]
        return [info(title, f"{len(present)} of {len(names)} libraries lie in this environment; without a GPU none is needed")]
    answer = programs.run([world.python, "-I", "-S", "-c", _LOAD], stdin=json.dumps(paths))
    if answer.status != 0:
        return [
            warning(
                title,
                f"the libraries cannot be loaded: {answer.reason}",
                "Install them again: pip install --force-reinstall "
                + " ".join(sorted({_package(name, build) for name in names if _is_ours(name)})),
                expected=", ".join(names),
            )
        ]
    said: dict[str, list[str]] = json.loads(answer.output)
    return [_library(name, build, paths[name], *said[name]) for name in names]


def _library(name: str, build: Build, paths: list[str], loaded: str, error: str) -> Finding:
    if loaded:
        return ok(name, "found by the loader" if loaded == name else loaded)
    found = (
        f"{paths[0]} is there but cannot be loaded: {error}" if paths else "none in this environment and none known to the loader"
    )
    if not _is_ours(name):
        return warning(
            name,
            found,
            "It belongs to NVIDIA's driver: install the driver; in a container set NVIDIA_DRIVER_CAPABILITIES=compute,utility "
            "and start it with --gpus all.",
            expected="the driver's own library",
        )
    again = "--force-reinstall " if paths else ""
    return warning(
        name,
        found,
        f"pip install {again}'{_package(name, build)}'; until then models run on the CPU.",
        expected=f"a library for CUDA {build.cuda}, which onnxruntime-gpu {build.version} links",
    )


def _is_ours(name: str) -> bool:
    return name.split(".so")[0] in _PACKAGES


def _package(name: str, build: Build) -> str:
    """The pip package that brings a library, pinned to the generation that fits."""
    stem, _, generation = name.partition(".so.")
    package = _PACKAGES[stem]
    if package == "nvidia-cudnn":
        return f"nvidia-cudnn-cu{build.generation}=={generation}.*"
    if build.generation == "12":
        return f"{package}-cu12"
    return f"{package}=={generation}.*"


def _candidates(world: World, name: str) -> list[str]:
    """Where the nvidia-* wheels put a library, for all folders of the module path."""
    found = [
        str(path)
        for folder in dict.fromkeys(world.module_path)
        for path in (*Path(folder or ".").glob(f"nvidia/*/lib/{name}"), *Path(folder or ".").glob(f"nvidia/*/lib/*/{name}"))
    ]
    return sorted(found)
