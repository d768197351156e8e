"""``python -m benchmarks.serving``: how fast Convoy's server answers, beside what it could do and beside others.

All systems serve one ONNX file, one image a request, asked for the probabilities alone, on this machine at the same time, and are
measured in turns: what the machine does besides falls on all of them. Load comes from tools written in C (wrk for REST, h2load for
gRPC), which leave the cores to the servers. What is compared, in each round:

- ``convoy``: the wheel's Triton with Convoy's backend, as ``convoy serve`` runs it.
- ``ceiling``: the same Triton with a ``model.py`` that reads each request, answers zeros, and runs ONNX Runtime once a batch on
  images that lie ready: nothing that infers through a Python-based backend can be faster.
- ``empty``: the same without ONNX Runtime. ``first``: the first backend that Convoy's was measured against, frozen.
- FastAPI, mosec, MLServer, each with the settings that were seen to suit it (``benchmarks/peers/system.py``).
- ``convoy by perf_analyzer``: the first again, loaded by NVIDIA's generator, which takes much of two cores itself (``--no-perf``).
- ``in process``: ONNX Runtime alone, in batches as large as the callers are many.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from benchmarks import baseline
from benchmarks.harness import Figure, benchmark, interleave, ratios
from benchmarks.peers import load_tool
from benchmarks.peers.environment import default_cache
from benchmarks.peers.load_tool import Sample
from benchmarks.peers.perf_analyzer import PerfAnalyzer
from benchmarks.peers.system import KINDS, Peer, Request, Subject
from convoy.contract.errors import ConvoyError, UsageError
from convoy.serving.triton import TritonServer

MODELS: Final = {"lenet5": (1, 16, 64), "resnet18": (1, 16)}
"""With the numbers of requests in flight."""
OF_TRITON: Final = {"first": "first.py", "ceiling": "ceiling.py", "empty": "empty.py"}
_ROOT: Final = Path(__file__).resolve().parent.parent
_OUTPUT: Final = "probabilities"
_SIZE_PX: Final = 224


@dataclass(frozen=True)
class Case:
    """What is measured once a round.

    Attributes:
        name: "lenet5 REST 16 convoy".
        measure: Measures once.
    """

    name: str
    measure: Callable[[], Sample]


@benchmark("serving", packages=("nvidia-pytriton", "onnxruntime-gpu", "onnxruntime", "numpy"))
@click.option("--models", default=",".join(MODELS), show_default=True, help="With commas.")
@click.option("--peers", default=",".join(KINDS), show_default=True, help="Other systems, with commas; empty for none.")
@click.option("--perf/--no-perf", default=True, show_default=True, help="Load Convoy's server by perf_analyzer too.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1, 99), help="How often each point is measured.")
@click.option("--seconds", default=4, show_default=True, type=click.IntRange(1, 60), help="Of a measurement.")
@click.option("--cache", type=click.Path(path_type=Path), default=None, help="Where the peers' environments are kept.")
def main(models: str, peers: str, perf: bool, rounds: int, seconds: int, cache: Path | None) -> Iterator[Figure]:
    """Measure the server beside its ceiling, its first backend, other systems and ONNX Runtime alone."""
    names, others = models.split(","), [name for name in peers.split(",") if name]
    if unknown := [*set(names) - set(MODELS), *set(others) - set(KINDS)]:
        raise UsageError(f"expected models of {list(MODELS)} and peers of {list(KINDS)}, found {unknown}.")
    for tool in ("wrk", "h2load"):
        load_tool.require(tool)
    cache = cache or default_cache()
    analyzer = PerfAnalyzer.ready(cache) if perf else None
    for name in names:
        with tempfile.TemporaryDirectory(prefix="bench-serving-") as folder:
            yield from measure_model(name, others, rounds, seconds, Path(folder), cache, analyzer)


def measure_model(
    name: str, peers: list[str], rounds: int, seconds: int, folder: Path, cache: Path, analyzer: PerfAnalyzer | None
) -> Iterator[Figure]:
    """The figures of one model.

    Args:
        name: One of ``MODELS``.
        peers: Names of other systems.
        rounds: How often each point is measured.
        seconds: Of a measurement.
        folder: For the repository.
        cache: Where the peers' environments are kept.
        analyzer: perf_analyzer, where it is to load Convoy's server too.
    """
    subject = write_repository(name, folder)
    os.environ["BENCH_THREADS"] = str(1 if subject.small else len(os.sched_getaffinity(0)))  # of the models in benchmarks/baseline
    with ExitStack() as stack:
        server = stack.enter_context(TritonServer(folder, http_port=0, grpc_port=0, metrics_port=0))
        running = [stack.enter_context(Peer(peer, subject, cache)) for peer in peers]
        for in_flight in MODELS[name]:
            cases = list(_cases(server, subject, running, analyzer, in_flight, seconds))
            try:
                samples = _rounds(cases, rounds)
            except ConvoyError as error:
                if not server.ends_within(2):
                    raise
                raise server.died() from error
            rates = {case: [sample.rate_per_s for sample in found] for case, found in samples.items()}
            yield from _figures(subject, in_flight, rates, samples)


def write_repository(name: str, folder: Path) -> Subject:
    """Write a repository with the model and those of ``benchmarks/baseline`` that stand for it.

    Args:
        name: One of ``MODELS``.
        folder: Where.
    """
    import onnxruntime

    path = folder / name / "1" / "model.onnx"
    if name == "lenet5":
        shutil.copytree(_ROOT / "model_repository" / name, folder / name)
        dims = (28, 28, 1)
    else:
        dims = _write_network(name, path)
    image = np.random.default_rng(0).integers(0, 256, dims, np.uint8)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (expected,) = session.run([_OUTPUT], {"image": image[None]})
    for backend, file in OF_TRITON.items():
        version = folder / f"{name}-{backend}" / "1"
        version.mkdir(parents=True)
        shutil.copyfile(Path(baseline.__file__).with_name(file), version / "model.py")
        shutil.copyfile(path, version / "model.onnx")
        outputs = ("logits", _OUTPUT) if backend == "first" else (_OUTPUT,)
        _write_config(version.parent, "python", dims, expected.shape[1], outputs)
    return Subject(name, path, image, expected[0], small=name == "lenet5")


def _write_network(name: str, path: Path) -> tuple[int, int, int]:
    from benchmarks._networks import build_subject
    from convoy.export.graph.exporting import to_onnx

    network = build_subject(name, 1, size_px=_SIZE_PX)
    path.parent.mkdir(parents=True)
    path.write_bytes(to_onnx(network.classifier, network.image).proto.SerializeToString())
    _write_config(path.parents[1], "onnxruntime", network.image.dims, len(network.labels))
    return network.image.dims


def _write_config(
    model: Path, backend: str, dims: tuple[int, ...], n_classes: int, outputs: tuple[str, ...] = ("logits", _OUTPUT)
) -> None:
    declared = ", ".join(f'{{ name: "{output}" data_type: TYPE_FP32 dims: [ {n_classes} ] }}' for output in outputs)
    (model / "config.pbtxt").write_text(
        f'name: "{model.name}"\nbackend: "{backend}"\nmax_batch_size: 64\n'
        f'input [ {{ name: "image" data_type: TYPE_UINT8 dims: {list(dims)} }} ]\noutput [ {declared} ]\n'
        "instance_group [ { count: 1 kind: KIND_AUTO } ]\ndynamic_batching { }\n"
    )


def _cases(
    server: TritonServer, subject: Subject, peers: Iterable[Peer], analyzer: PerfAnalyzer | None, in_flight: int, seconds: int
) -> Iterator[Case]:
    point = {"in_flight": in_flight, "seconds": seconds}
    for system in ("convoy", *OF_TRITON):
        model = subject.name if system == "convoy" else f"{subject.name}-{system}"
        for wire in ("REST", "gRPC"):
            yield Case(f"{wire} {system}", load_case(server, subject, model, wire, in_flight, seconds).measure)
    if analyzer is not None:
        for wire, url in (("REST", server.http_url), ("gRPC", server.grpc_url)):
            yield Case(f"{wire} convoy by perf_analyzer", _perf(analyzer, url, subject.name, point))
    for peer in peers:
        yield Case(f"REST {peer.name}", _rest(peer.request, point))
    yield Case("in process", _in_process(subject, in_flight, seconds))


def load_case(server: TritonServer, subject: Subject, model: str, wire: str, in_flight: int, seconds: int) -> Case:
    """One model of a Triton under load from a tool written in C.

    Args:
        server: The Triton.
        subject: What is served.
        model: The name of the model there.
        wire: "REST" or "gRPC".
        in_flight: How many requests are under way at once.
        seconds: For how long.
    """
    point = {"in_flight": in_flight, "seconds": seconds}
    if wire == "REST":
        return Case(f"REST {model}", _rest(triton_rest(server, model, subject), point))
    return Case(f"gRPC {model}", _grpc(server, model, subject, point))


def triton_rest(server: TritonServer, model: str, subject: Subject) -> Request:
    """The request of one image, tensors as bytes, to a model of a Triton."""
    sent = {"name": "image", "shape": [1, *subject.image.shape], "datatype": "UINT8"}
    head = json.dumps(
        {
            "inputs": [{**sent, "parameters": {"binary_data_size": subject.image.nbytes}}],
            "outputs": [{"name": _OUTPUT, "parameters": {"binary_data": True}}],
        }
    ).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return Request(f"{server.http_url}/v2/models/{model}/infer", head + subject.image.tobytes(), headers)


def _rest(request: Request, point: dict[str, int]) -> Callable[[], Sample]:
    return lambda: load_tool.post(request.url, request.body, request.headers, **point)


def _grpc(server: TritonServer, model: str, subject: Subject, point: dict[str, int]) -> Callable[[], Sample]:
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[subject.image.tobytes()])
    request.inputs.add(name="image", datatype="UINT8", shape=[1, *subject.image.shape])
    request.outputs.add(name=_OUTPUT)
    message = request.SerializeToString()
    url = f"{server.grpc_url.replace('grpc://', 'http://')}/inference.GRPCInferenceService/ModelInfer"
    return lambda: load_tool.call(url, message, n_answer_bytes=subject.expected.nbytes, **point)


def _perf(analyzer: PerfAnalyzer, url: str, model: str, point: dict[str, int]) -> Callable[[], Sample]:
    def measure() -> Sample:
        found = analyzer.measure(url, model, in_flight=point["in_flight"], window_s=point["seconds"] / PerfAnalyzer.WINDOWS)
        return Sample(found.rate_per_s, found.p50_ms, found.p99_ms)

    return measure


def _in_process(subject: Subject, batch_size: int, seconds: int) -> Callable[[], Sample]:
    """ONNX Runtime alone, with all cores and with one thread: the faster of the two."""
    import onnxruntime

    cores = len(os.sched_getaffinity(0))
    sessions = []
    for threads in sorted({1, cores}):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        sessions.append(onnxruntime.InferenceSession(str(subject.path), options, providers=["CPUExecutionProvider"]))
    images = np.repeat(subject.image[None], batch_size, axis=0)

    def measure() -> Sample:
        return max((_calls(session, images, seconds / len(sessions)) for session in sessions), key=lambda found: found.rate_per_s)

    return measure


def _calls(session: Any, images: Any, seconds: float) -> Sample:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end or len(times) < 3:
        session.run([_OUTPUT], {"image": images})
        times.append(time.perf_counter() - start)
    p50, p99 = np.percentile(times, [50, 99]) * 1e3
    return Sample(len(images) * len(times) / sum(times), float(p50), float(p99))


def _rounds(cases: list[Case], rounds: int) -> dict[str, list[Sample]]:
    """Measure all cases in turns."""
    found: dict[str, list[Sample]] = {case.name: [] for case in cases}

    def keep(case: Case) -> Callable[[], float]:
        def measure() -> float:
            found[case.name].append(case.measure())
            return found[case.name][-1].rate_per_s

        return measure

    interleave({case.name: keep(case) for case in cases}, rounds, warm_up=1)
    return {name: samples[1:] for name, samples in found.items()}  # the first round warmed up


def _figures(subject: Subject, in_flight: int, rates: dict[str, list[float]], samples: dict[str, list[Sample]]) -> Iterator[Figure]:
    at = f"{subject.name} {in_flight}"
    for case, found in rates.items():
        yield Figure.of(f"{at} {case}", found, "images/s")
    for wire in ("REST", "gRPC"):
        ours = rates[f"{wire} convoy"]
        goal = ">= 0.95" if subject.small and in_flight > 1 else None
        yield Figure.of(f"{at} {wire} convoy / ceiling", ratios(ours, rates[f"{wire} ceiling"]), "ratio", goal)
        yield Figure.of(f"{at} {wire} convoy / first", ratios(ours, rates[f"{wire} first"]), "ratio")
        goal = ">= 0.95" if not subject.small and in_flight == 16 else None
        yield Figure.of(f"{at} {wire} convoy / in process", ratios(ours, rates["in process"]), "ratio", goal)
        tails = [sample.p99_ms / sample.p50_ms for sample in samples[f"{wire} convoy"]]
        yield Figure.of(f"{at} {wire} convoy p50", [sample.p50_ms for sample in samples[f"{wire} convoy"]], "ms")
        yield Figure.of(f"{at} {wire} convoy p99 / p50", tails, "ratio", "<= 2.5" if in_flight == 64 else None)
    for peer in KINDS:
        if f"REST {peer}" in rates:
            yield Figure.of(f"{at} REST convoy / {peer}", ratios(rates["REST convoy"], rates[f"REST {peer}"]), "ratio")
    median = statistics.median(rates["REST convoy"])
    click.echo(f"{at}: {median:,.0f}/s on REST", err=True)


if __name__ == "__main__":
    main()
