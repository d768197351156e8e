"""``python -m benchmarks.client``: Convoy's client beside tritonclient, which it must not be slower than, on one server.

The server is ``convoy serve`` with LeNet5 and with a model that gives its input back, so that the model does not hide the client.
The clients take turns second by second; of each round the ratios are taken, and their median is given. Server and clients share
the cores, and on a shared machine so do others: the processor time that a client takes a call stands beside its rate, and where
the server is the one that is waited for, it tells more.

``grpcio`` is the least that any client on it can take: a request that was serialised before, an answer that nobody reads.
"""

from __future__ import annotations

import asyncio
import gc
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import numpy.typing as npt

from benchmarks.harness import Figure, benchmark, interleave, ratios
from benchmarks.serving import write_repository
from convoy import AsyncClient, Client
from convoy.serving.triton import TritonServer

_SECONDS: Final = 1.0
_WARM_UP_S: Final = 0.3
_METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"
_CALLERS: Final = 64
_MANY: Final = 10_000
_LARGE_DIM: Final = 224 * 224 * 3
_GOALS: Final = {
    ("identity", "sync gRPC"): ">= 1.0",
    ("identity", "async gRPC"): ">= 1.5",
}

Call = Callable[[], Any]
AsyncCall = Callable[[], Awaitable[Any]]
Open = Callable[[str, "Question"], AbstractContextManager[Call]]
OpenAsync = Callable[[str, "Question"], AbstractAsyncContextManager[AsyncCall]]


@dataclass(frozen=True)
class Question:
    """What is asked of a model, again and again.

    Attributes:
        model: Its name.
        input_name: Its input.
        output_name: The output that is wanted.
        array: One row.
    """

    model: str
    input_name: str
    output_name: str
    array: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Sight:
    """What was seen of one client once.

    Attributes:
        rate_per_s: Calls a second.
        cpu_us: Processor time that its process took a call, microseconds.
    """

    rate_per_s: float
    cpu_us: float


@benchmark("client", packages=("tritonclient", "grpcio", "httpx", "numpy", "nvidia-pytriton"))
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(3, 999), help="Rounds of a second each client.")
@click.option("--only", multiple=True, metavar="WORDS", help="Only points whose name has these words; may be given several times.")
def main(rounds: int, only: tuple[str, ...]) -> Iterator[Figure]:
    """Measure Convoy's client and tritonclient in turns."""
    with tempfile.TemporaryDirectory(prefix="bench-client-") as folder:
        repository = Path(folder)
        write_repository("lenet5", repository)
        for other in repository.glob("lenet5-*"):  # stand-ins that other benchmarks compare with
            shutil.rmtree(other)
        _write_identity(repository / "identity", 784)
        _write_identity(repository / "large", _LARGE_DIM)
        with TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0) as server:
            for name, cases in _points(server):
                if not only or any(words in name for words in only):
                    yield from _compare(name, cases, rounds)


def _points(server: TritonServer) -> Iterator[tuple[str, dict[str, Callable[[], Sight]]]]:
    rng = np.random.default_rng(0)
    questions = (
        Question("identity", "x", "y", rng.integers(0, 256, (1, 784), np.uint8)),
        Question("lenet5", "image", "probabilities", rng.integers(0, 256, (1, 28, 28, 1), np.uint8)),
    )
    for question in questions:
        yield (
            f"{question.model} sync gRPC",
            {
                "convoy": partial(_see, _convoy, server.grpc_url, question),
                "tritonclient": partial(_see, _triton, server.grpc_url, question),
                "grpcio": partial(_see, _bare, server.grpc_url, question),
            },
        )
        yield (
            f"{question.model} async gRPC",
            {
                "convoy": partial(_run_async, _convoy_async, server.grpc_url, question),
                "tritonclient": partial(_run_async, _triton_async, server.grpc_url, question),
                "grpcio": partial(_run_async, _bare_async, server.grpc_url, question),
            },
        )
        yield (
            f"{question.model} sync REST",
            {
                "convoy": partial(_see, _convoy, server.http_url, question),
                "tritonclient": partial(_see, _triton_rest, server.http_url, question),
            },
        )
    large = Question("large", "x", "y", rng.integers(0, 256, (8, _LARGE_DIM), np.uint8))
    yield (
        f"large ({large.array.nbytes / 1e6:.1f} MB) sync gRPC",
        {
            "convoy": partial(_see, _convoy, server.grpc_url, large),
            "convoy over the wire": partial(_see, _convoy_wire, server.grpc_url, large),
            "tritonclient": partial(_see, _triton, server.grpc_url, large),
        },
    )
    images = rng.integers(0, 256, (_MANY, 28, 28, 1), np.uint8)
    yield (
        f"lenet5 {_MANY:,} images",
        {
            "convoy": lambda: _see_many(server.grpc_url, images),
            "tritonclient": lambda: _see_many_by_triton(server.grpc_url, images),
        },
    )


def _compare(name: str, cases: dict[str, Callable[[], Sight]], rounds: int) -> Iterator[Figure]:
    seen: dict[str, list[Sight]] = {case: [] for case in cases}

    def measured(case: str) -> float:
        gc.collect()
        seen[case].append(cases[case]())
        return seen[case][-1].rate_per_s

    rates = interleave({case: partial(measured, case) for case in cases}, rounds)
    cpu = {case: [sight.cpu_us for sight in sights[-rounds:]] for case, sights in seen.items()}
    for case in cases:
        yield Figure.of(f"{name}: {case}", rates[case], "images/s" if "images" in name else "calls/s")
    for case in cases:
        yield Figure.of(f"{name}: {case}, processor", cpu[case], "us")
    yield Figure.of(
        f"{name}: convoy / tritonclient",
        ratios(rates["convoy"], rates["tritonclient"]),
        "ratio",
        _GOALS.get((name.split()[0], name.partition(" ")[2])),
    )
    yield Figure.of(f"{name}: processor, tritonclient / convoy", ratios(cpu["tritonclient"], cpu["convoy"]), "ratio")


def _see(open_client: Open, url: str, question: Question) -> Sight:
    with open_client(url, question) as call:
        until = time.perf_counter() + _WARM_UP_S
        while time.perf_counter() < until:
            call()
        n, start, cpu = 0, time.perf_counter(), time.process_time()
        while (now := time.perf_counter()) < start + _SECONDS:
            call()
            n += 1
        return Sight(n / (now - start), 1e6 * (time.process_time() - cpu) / n)


def _run_async(open_client: OpenAsync, url: str, question: Question) -> Sight:
    return asyncio.run(_see_async(open_client, url, question))


async def _see_async(open_client: OpenAsync, url: str, question: Question) -> Sight:
    n, stop = 0, False

    async def ask(call: AsyncCall) -> None:
        nonlocal n
        while not stop:
            await call()
            n += 1

    async with open_client(url, question) as call:
        callers = [asyncio.ensure_future(ask(call)) for _ in range(_CALLERS)]
        await asyncio.sleep(_WARM_UP_S)
        before, start, cpu = n, time.perf_counter(), time.process_time()
        await asyncio.sleep(_SECONDS)
        done, elapsed, used = n - before, time.perf_counter() - start, time.process_time() - cpu
        stop = True
        await asyncio.gather(*callers)
    return Sight(done / elapsed, 1e6 * used / done)


@contextmanager
def _convoy(url: str, question: Question) -> Iterator[Call]:
    inputs, outputs = {question.input_name: question.array}, (question.output_name,)
    with Client(url) as client:
        yield lambda: client.infer(question.model, inputs, outputs=outputs)[question.output_name]


@contextmanager
def _convoy_wire(url: str, question: Question) -> Iterator[Call]:
    with Client(url, shared_memory=False) as client:
        yield lambda: client.infer(question.model, {question.input_name: question.array})[question.output_name]


@asynccontextmanager
async def _convoy_async(url: str, question: Question) -> AsyncIterator[AsyncCall]:
    inputs, outputs = {question.input_name: question.array}, (question.output_name,)

    async with AsyncClient(url) as client:

        async def call() -> Any:
            return (await client.infer(question.model, inputs, outputs=outputs))[question.output_name]

        yield call


def _asked(library: Any, question: Question) -> tuple[list[Any], list[Any]]:
    tensor = library.InferInput(question.input_name, list(question.array.shape), "UINT8")
    tensor.set_data_from_numpy(question.array)
    return [tensor], [library.InferRequestedOutput(question.output_name)]


@contextmanager
def _triton(url: str, question: Question) -> Iterator[Call]:
    from tritonclient import grpc

    with grpc.InferenceServerClient(url.partition("://")[2]) as client:

        def call() -> Any:
            inputs, outputs = _asked(grpc, question)
            return client.infer(question.model, inputs, outputs=outputs).as_numpy(question.output_name)

        yield call


@contextmanager
def _triton_rest(url: str, question: Question) -> Iterator[Call]:
    from tritonclient import http

    with http.InferenceServerClient(url.partition("://")[2]) as client:

        def call() -> Any:
            inputs, outputs = _asked(http, question)
            return client.infer(question.model, inputs, outputs=outputs).as_numpy(question.output_name)

        yield call


@asynccontextmanager
async def _triton_async(url: str, question: Question) -> AsyncIterator[AsyncCall]:
    from tritonclient.grpc import aio

    async with aio.InferenceServerClient(url.partition("://")[2]) as client:

        async def call() -> Any:
            inputs, outputs = _asked(aio, question)
            return (await client.infer(question.model, inputs, outputs=outputs)).as_numpy(question.output_name)

        yield call


def _serialised(question: Question) -> bytes:
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name=question.model, raw_input_contents=[question.array.tobytes()])
    request.inputs.add(name=question.input_name, datatype="UINT8", shape=question.array.shape)
    request.outputs.add(name=question.output_name)
    data: bytes = request.SerializeToString()
    return data


@contextmanager
def _bare(url: str, question: Question) -> Iterator[Call]:
    import grpc

    request = _serialised(question)
    with grpc.insecure_channel(url.partition("://")[2]) as channel:
        method = channel.unary_unary(_METHOD)
        yield lambda: method(request, timeout=30)


@asynccontextmanager
async def _bare_async(url: str, question: Question) -> AsyncIterator[AsyncCall]:
    import grpc

    request = _serialised(question)
    async with grpc.aio.insecure_channel(url.partition("://")[2]) as channel:
        method = channel.unary_unary(_METHOD)
        yield lambda: method(request, timeout=30)


def _see_many(url: str, images: npt.NDArray[np.uint8]) -> Sight:
    with Client(url) as client:
        client.classify("lenet5", images[:100])
        start, cpu = time.perf_counter(), time.process_time()
        predictions = client.classify("lenet5", images)
        elapsed, used = time.perf_counter() - start, time.process_time() - cpu
        return Sight(len(predictions) / elapsed, 1e6 * used / len(predictions))


def _see_many_by_triton(url: str, images: npt.NDArray[np.uint8]) -> Sight:
    """As one writes it with tritonclient: batch by batch."""
    from tritonclient import grpc

    with grpc.InferenceServerClient(url.partition("://")[2]) as client:
        size = client.get_model_config("lenet5").config.max_batch_size

        def classify(some: npt.NDArray[np.uint8]) -> list[int]:
            labels: list[int] = []
            for i in range(0, len(some), size):
                inputs, outputs = _asked(grpc, Question("lenet5", "image", "probabilities", some[i : i + size]))
                labels += client.infer("lenet5", inputs, outputs=outputs).as_numpy("probabilities").argmax(axis=1).tolist()
            return labels

        classify(images[:100])
        start, cpu = time.perf_counter(), time.process_time()
        labels = classify(images)
        elapsed, used = time.perf_counter() - start, time.process_time() - cpu
        return Sight(len(labels) / elapsed, 1e6 * used / len(labels))


def _write_identity(model: Path, dim: int) -> None:
    from onnx import TensorProto, helper, save

    version = model / "1"
    version.mkdir(parents=True)
    x, y = (helper.make_tensor_value_info(name, TensorProto.UINT8, ["n", dim]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], model.name, [x], [y])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), version / "model.onnx")
    (model / "config.pbtxt").write_text(
        f'name: "{model.name}"\nbackend: "onnxruntime"\nmax_batch_size: 64\n'
        f'input [ {{ name: "x" data_type: TYPE_UINT8 dims: [ {dim} ] }} ]\n'
        f'output [ {{ name: "y" data_type: TYPE_UINT8 dims: [ {dim} ] }} ]\n'
        "instance_group [ { count: 1 kind: KIND_CPU } ]\ndynamic_batching { }\n"
    )


if __name__ == "__main__":
    main()
