"""``python -m benchmarks.scoring``: how fast `convoy score` goes, beside ONNX Runtime alone and beside one request after another.

Server, scorer and ONNX Runtime share the cores of this machine, and are measured in turns, run by run:

- ``score``: `convoy score` through the wheel's Triton, over gRPC, the data set written, from the first line of the command's work
  (listing the source, pinning the version) to the last.
- ``score in process``: the same with ``--in-process``.
- ``in process``: ONNX Runtime alone on images that lie decoded in memory, in batches of 64: the faster of one thread and all.
- ``one by one``: ``Client.classify`` of one image after the other.
- ``JPEG``: files of 512 x 384 px that are read, decoded and brought to 224 px. ``PIL``: ``to_pixels`` alone, in as many threads as
  there are cores. ``score``: `convoy score` with a model that costs nothing.

``--million`` scores 1,000,000 images of 28 x 28 px in a process of its own, and watches its memory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import numpy.typing as npt

from benchmarks.harness import Figure, benchmark, interleave, ratios
from benchmarks.serving import write_repository
from convoy import Client
from convoy.contract.image import ImageSpec, to_pixels
from convoy.contract.manifest import INTERFACE_PARAMETER, ModelInterface, TensorSpec
from convoy.serving.scoring import score
from convoy.serving.triton import TritonServer

CASES: Final = ("lenet5", "resnet18", "jpeg")
_N: Final = {"lenet5": 120_000, "resnet18": 768, "jpeg": 600}
_BATCH: Final = 64
_SECONDS: Final = 3.0
_JPEG_PX: Final = (512, 384)
_MILLION: Final = 1_000_000
_MOST_GROWTH_MIB: Final = 64


@benchmark("scoring", packages=("nvidia-pytriton", "onnxruntime-gpu", "onnxruntime", "numpy", "pyarrow", "pillow"))
@click.option("--cases", default=",".join(CASES), show_default=True, help="With commas.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1, 99), help="How often each is measured.")
@click.option("--million/--no-million", default=False, show_default=True, help="Watch the memory of a run of 1,000,000 images.")
def main(cases: str, rounds: int, million: bool) -> Iterator[Figure]:
    """Measure batch scoring beside ONNX Runtime alone."""
    with tempfile.TemporaryDirectory(prefix="bench-scoring-") as name:
        folder = Path(name)
        for case in filter(None, cases.split(",")):
            place = folder / case
            place.mkdir()
            yield from (_jpeg(place, rounds) if case == "jpeg" else _arrays(case, place, rounds))
        if million:
            yield from _million(folder)


def _arrays(name: str, folder: Path, rounds: int) -> Iterator[Figure]:
    """Images that lie decoded in a ``.npy`` file."""
    repository = folder / "repository"
    subject = write_repository(name, repository)
    _tell_interface(repository / name, subject.image.shape, subject.expected.shape[0])
    n = _N[name]
    images = np.random.default_rng(1).integers(0, 256, (n, *subject.image.shape), np.uint8)
    source = folder / "images.npy"
    np.save(source, images)
    with TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0) as server:
        cases: dict[str, Callable[[], float]] = {
            "score": lambda: _score(folder, name, source, url=server.grpc_url),
            "in process": _onnxruntime(subject.path, images[:_BATCH]),
        }
        if name == "lenet5":
            cases["one by one"] = lambda: _one_by_one(server.grpc_url, name, images)
        found = interleave(cases, rounds)
    for case, rates in found.items():
        yield Figure.of(f"{name} {case}", rates, "images/s")
    goal = ">= 0.4" if name == "lenet5" else ">= 0.9"
    yield Figure.of(f"{name} score / in process", ratios(found["score"], found["in process"]), "ratio", goal)
    if name == "lenet5":
        yield Figure.of(f"{name} score / one by one", ratios(found["score"], found["one by one"]), "ratio", ">= 5")


def _jpeg(folder: Path, rounds: int) -> Iterator[Figure]:
    """JPEG files in a folder, with a model that costs nothing."""
    repository, source = folder / "repository", folder / "images"
    spec = ImageSpec(height_px=224, width_px=224, channels=3, resize="crop")
    _write_free_model(repository / "free", spec)
    source.mkdir()
    files = _write_jpegs(source, _N["jpeg"])
    with (
        TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0) as server,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
    ):

        def by_pil() -> float:
            began = time.perf_counter()
            for _ in pool.map(lambda file: to_pixels(file.read_bytes(), spec), files):
                pass
            return len(files) / (time.perf_counter() - began)

        cases = {"score": lambda: _score(folder, "free", source, url=server.grpc_url), "PIL": by_pil}
        found = interleave(cases, rounds)
    for case, rates in found.items():
        yield Figure.of(f"JPEG {case}", rates, "images/s")
    yield Figure.of("JPEG score / PIL", ratios(found["score"], found["PIL"]), "ratio")


def _million(folder: Path) -> Iterator[Figure]:
    """The memory of a process that scores so many images: from a tenth of the way to the end it may hardly grow."""
    repository, source = folder / "repository", folder / "million.npy"
    write_repository("lenet5", repository)
    images: Any = np.lib.format.open_memmap(source, "w+", np.uint8, (_MILLION, 28, 28))  # type: ignore[no-untyped-call]
    for start in range(0, _MILLION, 10_000):
        images[start : start + 10_000] = np.random.default_rng(start).integers(0, 256, (10_000, 28, 28), np.uint8)
    del images
    with TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0) as server:
        out = folder / "million"
        command = [sys.executable, "-m", "convoy", "score", "lenet5", str(source), str(out), "--url", server.grpc_url]
        began = time.perf_counter()
        process = subprocess.Popen(command)
        early = most = 0.0
        while process.poll() is None:
            used = _anonymous_mib(process.pid)
            most = max(most, used)
            if not early and len(list(out.glob("part-*.parquet"))) >= 2:  # some 130,000 rows
                early = most
            time.sleep(0.1)
        seconds = time.perf_counter() - began
    if process.returncode:
        raise click.ClickException(f"convoy score ended with status {process.returncode}")
    yield Figure(name="1,000,000 images", value=_MILLION / seconds, unit="images/s")
    yield Figure(name="1,000,000 images, memory at the most", value=most, unit="MiB")
    yield Figure(
        name="1,000,000 images, memory: growth after the first 130,000",
        value=most - early,
        unit="MiB",
        goal=f"<= {_MOST_GROWTH_MIB}",
    )


def _score(folder: Path, model: str, source: Path, *, url: str) -> float:
    """Images a second of a whole run."""
    out = folder / "scored"
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    summary = score(model, source, out, url=url).finish()
    seconds = time.perf_counter() - began
    if summary.n_failed:
        raise click.ClickException(f"{summary.n_failed} of {summary.n} images failed: {summary.statistics['errors']}")
    return summary.n_scored / seconds


def _onnxruntime(path: Path, images: npt.NDArray[np.uint8]) -> Callable[[], float]:
    import onnxruntime

    sessions = []
    for threads in sorted({1, len(os.sched_getaffinity(0))}):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        sessions.append(onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))

    def rate(session: Any) -> float:
        n, began = 0, time.perf_counter()
        while (now := time.perf_counter()) < began + _SECONDS or n == 0:
            session.run(["probabilities"], {"image": images})
            n += len(images)
        return n / (now - began)

    return lambda: max(map(rate, sessions))


def _one_by_one(url: str, model: str, images: npt.NDArray[np.uint8]) -> float:
    with Client(url) as client:
        client.classify(model, images[0])
        n, began = 0, time.perf_counter()
        while time.perf_counter() < began + _SECONDS:
            client.classify(model, images[n % len(images)])
            n += 1
        return n / (time.perf_counter() - began)


def _tell_interface(model: Path, dims: tuple[int, ...], n_classes: int) -> None:
    """Write into a configuration what ``convoy deploy`` would, where it has not."""
    config = model / "config.pbtxt"
    if INTERFACE_PARAMETER not in config.read_text():
        height, width, channels = dims
        spec = ImageSpec(height_px=height, width_px=width, channels=3 if channels == 3 else 1)
        config.write_text(config.read_text() + _parameter(spec, n_classes))


def _parameter(spec: ImageSpec, n_classes: int) -> str:
    outputs = tuple(TensorSpec(name=name, datatype="FP32", dims=(n_classes,)) for name in ("logits", "probabilities"))
    interface = ModelInterface(
        labels=tuple(f"class {i}" for i in range(n_classes)),
        image=spec,
        inputs=(TensorSpec(name="image", datatype="UINT8", dims=spec.dims),),
        outputs=outputs,
    )
    text = interface.model_dump_json().replace("\\", "\\\\").replace('"', '\\"')
    return f'parameters {{ key: "{INTERFACE_PARAMETER}" value {{ string_value: "{text}" }} }}\n'


def _write_free_model(model: Path, spec: ImageSpec) -> None:
    """A classifier that answers the same whatever it is shown."""
    from onnx import TensorProto, helper, numpy_helper, save

    outputs = ("logits", "probabilities")
    half = helper.make_tensor("half", TensorProto.FLOAT, [1], [0.5])
    nodes = [
        helper.make_node("Shape", ["image"], ["n"], start=0, end=1),
        helper.make_node("Concat", ["n", "two"], ["shape"], axis=0),
        helper.make_node("ConstantOfShape", ["shape"], [outputs[0]], value=half),
        helper.make_node("Identity", [outputs[0]], [outputs[1]]),
    ]
    graph = helper.make_graph(
        nodes,
        "free",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", *spec.dims])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in outputs],
        [numpy_helper.from_array(np.array([2], np.int64), "two")],
    )
    (model / "1").mkdir(parents=True)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), model / "1" / "model.onnx")
    declared = ", ".join(f'{{ name: "{name}" data_type: TYPE_FP32 dims: [ 2 ] }}' for name in outputs)
    (model / "config.pbtxt").write_text(
        f'name: "{model.name}"\nbackend: "onnxruntime"\nmax_batch_size: {_BATCH}\n'
        f'input [ {{ name: "image" data_type: TYPE_UINT8 dims: {list(spec.dims)} }} ]\noutput [ {declared} ]\n'
        "instance_group [ { count: 1 kind: KIND_AUTO } ]\ndynamic_batching { }\n" + _parameter(spec, 2)
    )


def _write_jpegs(folder: Path, n: int) -> list[Path]:
    """Pictures with edges and noise, as photographs have: JPEG takes as long for them."""
    from PIL import Image, ImageFilter

    files = []
    random = np.random.default_rng(2)
    for i in range(n):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)).resize(_JPEG_PX, Image.Resampling.BICUBIC)
        grain = Image.fromarray(random.integers(0, 256, (*_JPEG_PX[::-1], 3), np.uint8)).filter(ImageFilter.GaussianBlur(1))
        files.append(folder / f"{i:05}.jpg")
        Image.blend(coarse, grain, 0.2).save(files[-1], quality=90)
    return files


def _anonymous_mib(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0.0)


if __name__ == "__main__":
    main()
