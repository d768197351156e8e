"""One suite for every server that speaks KServe v2: the fake transport, Triton and MLServer, by gRPC and by REST, sync and async.

What is the same everywhere is tested by the same lines; where servers differ, the difference is an attribute of ``Server`` that the
test names.
"""

from __future__ import annotations

import asyncio
import os
import runpy
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convoy.contract.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    ModelNotFoundError,
    ServerFailureError,
    UnavailableError,
    UsageError,
)
from convoy.serving.client import AsyncClient, Client, TensorMetadata
from convoy.serving.client.testing import AsyncFakeTransport, FakeModel, FakeTransport
from convoy.serving.triton import TritonServer

pytestmark = pytest.mark.integration

_MLSERVER = runpy.run_path(str(Path(__file__).with_name("mlserver") / "server.py"))

DATATYPES = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES")
SLOW_S = 0.5

Tensors = dict[str, tuple[str, tuple[int, ...]]]


def tensors(letter: str) -> Tensors:
    return {f"{letter}_{datatype}": (datatype, (-1, -1)) for datatype in DATATYPES}


PAIR = ("FP32", (-1, 2))
MODELS: dict[str, tuple[Tensors, Tensors]] = {
    "identity": (tensors("x"), tensors("y")),
    "pairs": ({"x": PAIR}, {"twice": PAIR, "half": PAIR}),
    "spare": ({"x": PAIR}, {"twice": PAIR, "half": PAIR}),
    "slow": ({"x": PAIR}, {"y": PAIR}),
}
"""Inputs and outputs of each model, with the batch axis."""


# The models, as each server wants them. ------------------------------------------------------------------------------------------


def identity(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"y{name[1:]}": array for name, array in inputs.items()}


def pairs(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    if np.any(inputs["x"] < 0):
        raise InvalidRequestError("pairs takes no negative numbers")
    return {"twice": inputs["x"] * 2, "half": inputs["x"] / 2}


def fake_models() -> dict[str, FakeModel]:
    runs: dict[str, Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]]]
    runs = {"identity": identity, "pairs": pairs, "spare": pairs, "slow": identity}
    takes_s = {"slow": SLOW_S}
    return {name: FakeModel.of_tensors(inputs, runs[name], takes_s=takes_s.get(name, 0.0)) for name, (inputs, _) in MODELS.items()}


TRITON_IDENTITY = """
import time
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        time.sleep(SLEEP)
        return [pb.InferenceResponse([pb.Tensor("y" + x.name()[1:], x.as_numpy()) for x in r.inputs()]) for r in requests]
"""

TRITON_PAIRS = """
import numpy as np
import triton_python_backend_utils as pb

def answer(x):
    if np.any(x < 0):
        error = pb.TritonError("pairs takes no negative numbers", pb.TritonError.INVALID_ARG)
        return pb.InferenceResponse(error=error)
    return pb.InferenceResponse([pb.Tensor("twice", x * 2), pb.Tensor("half", x / 2)])

class TritonPythonModel:
    def execute(self, requests):
        return [answer(pb.get_input_tensor_by_name(request, "x").as_numpy()) for request in requests]
"""


def write_triton(repository: Path) -> None:
    programs = {
        "identity": TRITON_IDENTITY.replace("SLEEP", "0"),
        "pairs": TRITON_PAIRS,
        "spare": TRITON_PAIRS,
        "slow": TRITON_IDENTITY.replace("SLEEP", str(SLOW_S)),
    }
    for name, both in MODELS.items():
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "1" / "model.py").write_text(programs[name])
        text = f'name: "{name}"\nbackend: "python"\nmax_batch_size: 0\ninstance_group [ {{ count: 1 kind: KIND_CPU }} ]\n'
        for field, specs in zip(("input", "output"), both, strict=True):
            for tensor, (datatype, shape) in specs.items():
                kind = "STRING" if datatype == "BYTES" else datatype
                text += f'{field} [ {{ name: "{tensor}" data_type: TYPE_{kind} dims: {list(shape)} }} ]\n'
        (repository / name / "config.pbtxt").write_text(text)


def mlserver_settings() -> dict[str, dict[str, Any]]:
    classes = {"identity": "Identity", "pairs": "Pairs", "spare": "Pairs", "slow": "Slow"}

    def described(specs: Tensors) -> list[dict[str, Any]]:
        return [{"name": name, "datatype": datatype, "shape": list(shape)} for name, (datatype, shape) in specs.items()]

    settings: dict[str, dict[str, Any]] = {
        name: {"implementation": f"models.{classes[name]}", "inputs": described(inputs), "outputs": described(outputs)}
        for name, (inputs, outputs) in MODELS.items()
    }
    settings["spare"] |= {"max_batch_size": 8, "max_batch_time": 0.002}
    return settings


# The servers. --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """A server as the tests see it.

    Attributes:
        open: A client of it.
        open_async: An asynchronous one.
        tells_outputs: Whether a model's metadata has its outputs.
        tells_versions: Whether it has its versions.
        has_binary: Whether it takes bytes as they are, and not only what JSON can say.
        has_config: Whether it tells a model's configuration.
        has_statistics: Whether it counts requests.
        unloads: Whether it can be told which models to serve.
        not_loaded: The error of ``load`` for a model that is not there.
    """

    open: Callable[[], Client]
    open_async: Callable[[], AsyncClient]
    tells_outputs: bool = True
    tells_versions: bool = True
    has_binary: bool = True
    has_config: bool = True
    has_statistics: bool = True
    unloads: bool = True
    not_loaded: type[Exception] = ModelNotFoundError


def by_url(url: str, **differences: Any) -> Server:
    return Server(lambda: Client(url, timeout_s=30), lambda: AsyncClient(url, timeout_s=30), **differences)


@pytest.fixture(scope="module")
def any_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = tmp_path_factory.mktemp("any_server")
    write_triton(repository)
    with TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0) as server:
        yield server


@pytest.fixture(scope="module")
def any_mlserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if why := _MLSERVER["unsupported"]():
        pytest.skip(why)
    with _MLSERVER["MlServer"](tmp_path_factory.mktemp("mlserver"), mlserver_settings()) as server:
        yield server
    with pytest.raises(ProcessLookupError):  # nothing is left of it
        os.killpg(server.pid, 0)


@pytest.fixture(scope="module", params=["fake", "triton-grpc", "triton-http", "mlserver-grpc", "mlserver-http"])
def server(request: pytest.FixtureRequest) -> Server:
    name, _, wire = request.param.partition("-")
    if name == "fake":
        fake = FakeTransport(fake_models())
        return Server(
            lambda: Client(transport=fake),
            lambda: AsyncClient(transport=AsyncFakeTransport(fake)),
            tells_outputs=False,
            has_statistics=False,
            unloads=False,
        )
    running = request.getfixturevalue(f"any_{name}")
    url = running.grpc_url if wire == "grpc" else running.http_url
    if name == "triton":
        return by_url(url, not_loaded=ServerFailureError)  # Triton says the same of one that is broken
    # MLServer 1.7 fails at the question by gRPC, with the status UNKNOWN, where the model is not there.
    return by_url(url, tells_versions=False, has_binary=wire == "grpc", has_config=False, has_statistics=False)


class Blocking:
    """An ``AsyncClient`` as if it were a ``Client``, so that one test does for both."""

    def __init__(self, client: AsyncClient, loop: asyncio.AbstractEventLoop) -> None:
        self._client, self._loop = client, loop

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda *args, **named: self._loop.run_until_complete(method(*args, **named))

    def infer_all(self, calls: list[tuple[Any, ...]]) -> list[Any]:
        async def run() -> list[Any]:
            return await asyncio.gather(*(self._client.infer(*call) for call in calls))

        return self._loop.run_until_complete(run())


class Threaded:
    """A ``Client`` with ``infer_all``."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def infer_all(self, calls: list[tuple[Any, ...]]) -> list[Any]:
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(lambda call: self._client.infer(*call), calls))


@pytest.fixture(params=["sync", "async"])
def client(request: pytest.FixtureRequest, server: Server) -> Iterator[Any]:
    if request.param == "sync":
        with server.open() as client:
            yield Threaded(client)
        return
    loop = asyncio.new_event_loop()
    blocking = Blocking(server.open_async(), loop)
    yield blocking
    blocking.close()
    loop.close()


# The suite. ----------------------------------------------------------------------------------------------------------------------


def numbers(datatype: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array whose first elements are the datatype's odd ones."""
    n = int(np.prod(shape))
    rng = np.random.default_rng(n)
    if datatype == "BYTES":
        texts = [b"", "é\0\u4e2d\U0001f600".encode(), b'"\\\n', *(b"%d" % i for i in range(n))]
        array = np.empty(n, dtype=object)
        array[:] = texts[:n]
    elif datatype == "BOOL":
        array = rng.integers(0, 2, n).astype(bool)
    elif datatype.startswith("FP"):
        dtype = np.dtype(f"float{datatype[2:]}")
        kinds = np.finfo(dtype)
        odd = np.array([kinds.max, -0.0, kinds.smallest_subnormal, kinds.min, 1 / 3], dtype)
        array = np.concatenate([odd, rng.normal(size=n).astype(dtype)])[:n]
    else:
        dtype = np.dtype(datatype.lower())
        limits = np.iinfo(dtype)
        odd = np.array([limits.max, limits.min, limits.max - 1, 1], dtype)
        array = np.concatenate([odd, rng.integers(limits.min, limits.max, n, dtype)])[:n]
    return array.reshape(shape)


def pair(*values: float) -> np.ndarray:
    return np.array([[value, value + 1] for value in values], np.float32)


@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (0, 3), (3, 0), (7, 11)])
def test_every_datatype_comes_back_bit_for_bit(client: Any, shape: tuple[int, ...]) -> None:
    inputs = {f"x_{datatype}": numbers(datatype, shape) for datatype in DATATYPES}
    result = client.infer("identity", inputs)
    assert set(result.outputs) == {f"y_{datatype}" for datatype in DATATYPES}
    for datatype in DATATYPES:
        sent, came = inputs[f"x_{datatype}"], result[f"y_{datatype}"]
        assert (came.dtype, came.shape) == (sent.dtype, shape), datatype
        assert came.tolist() == sent.tolist() if datatype == "BYTES" else came.tobytes() == sent.tobytes(), datatype


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_nan_and_infinity_come_back_or_are_refused_before_they_are_sent(client: Any, server: Server, datatype: str) -> None:
    inputs = {f"x_{other}": numbers(other, (2, 2)) for other in DATATYPES}
    odd = np.array([[1.0, np.nan], [np.inf, -np.inf]], f"float{datatype[2:]}")
    inputs[f"x_{datatype}"] = odd
    if server.has_binary:
        assert np.array_equal(client.infer("identity", inputs)[f"y_{datatype}"], odd, equal_nan=True)
        return
    words = rf"input 'x_{datatype}': expected finite numbers, found nan at flat index 1: .* gRPC"
    with pytest.raises(InvalidRequestError, match=words) as caught:
        client.infer("identity", inputs)
    assert "Nothing was sent" in str(caught.value)


def test_bytes_that_are_no_text_come_back_or_are_refused_before_they_are_sent(client: Any, server: Server) -> None:
    inputs = {f"x_{other}": numbers(other, (2, 1)) for other in DATATYPES}
    inputs["x_BYTES"] = np.array([[b"text"], [b"\xff\x00\xfe"]], dtype=object)
    if server.has_binary:
        assert client.infer("identity", inputs)["y_BYTES"].tolist() == inputs["x_BYTES"].tolist()
        return
    with pytest.raises(InvalidRequestError, match=r"input 'x_BYTES': expected UTF-8 .* flat index 1.* gRPC"):
        client.infer("identity", inputs)


def test_the_outputs_that_are_asked_for_come_and_no_others(client: Any) -> None:
    result = client.infer("pairs", {"x": pair(1, 2)}, outputs=["half"], model_version="1")
    assert (result.model_name, result.model_version) == ("pairs", "1")
    assert set(result.outputs) == {"half"}
    assert result["half"].tolist() == [[0.5, 1.0], [1.0, 1.5]]
    assert set(client.infer("pairs", {"x": pair(1)}).outputs) == {"twice", "half"}


def test_a_model_is_described_as_it_was_declared(client: Any, server: Server) -> None:
    for name, (inputs, outputs) in MODELS.items():
        metadata = client.metadata(name)
        assert (metadata.name, metadata.versions) == (name, ("1",) if server.tells_versions else ())
        assert set(metadata.inputs) == {TensorMetadata(tensor, *spec) for tensor, spec in inputs.items()}
        expected = {TensorMetadata(tensor, *spec) for tensor, spec in outputs.items()} if server.tells_outputs else set()
        assert set(metadata.outputs) == expected


def test_the_server_and_its_models_are_live_and_ready(client: Any, server: Server) -> None:
    assert client.live()
    assert client.ready()
    assert client.ready("pairs")
    assert client.ready("pairs", "1")
    for absent in (("nobody", ""), ("pairs", "9")):
        assert not client.ready(*absent)


def test_every_model_is_listed_with_its_version_and_state(client: Any) -> None:
    listed = {(model.name, model.version): model.state for model in client.models()}
    assert {listed[(name, "1")] for name in MODELS} == {"READY"}


@pytest.mark.parametrize(("name", "version"), [("nobody", ""), ("pairs", "9"), ("no body/at all?", "")])
def test_a_model_that_is_not_there_is_named(client: Any, name: str, version: str) -> None:
    for ask in (
        lambda: client.infer(name, {"x": pair(1)}, model_version=version),
        lambda: client.metadata(name, version),
    ):
        with pytest.raises(ModelNotFoundError) as caught:
            ask()
        assert repr(name) in str(caught.value)
        assert version in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"z": pair(1)}, r"expected the inputs \['x'\], found \['z'\]"),
        ({"x": pair(1), "z": pair(1)}, r"expected the inputs \['x'\], found \['x', 'z'\]"),
        ({"x": pair(1).astype(np.float64)}, "expected FP32, found dtype float64"),
        ({"x": np.zeros((1, 3), np.float32)}, r"expected shape \[-1, 2\] \(-1: any\), found \[1, 3\]"),
        ({"x": np.zeros(2, np.float32)}, r"expected shape \[-1, 2\] \(-1: any\), found \[2\]"),
    ],
)
def test_tensors_that_a_model_does_not_take_are_refused(client: Any, inputs: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        client.infer("pairs", inputs)


def test_an_output_that_a_model_does_not_have_is_refused(client: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"expected outputs among .* found 'nothing'"):
        client.infer("pairs", {"x": pair(1)}, outputs=["nothing"])


def test_what_a_model_itself_refuses_is_an_invalid_request_with_its_words(client: Any) -> None:
    client.infer("pairs", {"x": pair(1)})
    for _ in range(2):
        with pytest.raises(InvalidRequestError, match="pairs takes no negative numbers"):
            client.infer("pairs", {"x": pair(-1)})
    assert client.infer("pairs", {"x": pair(1)})["twice"].tolist() == [[2.0, 4.0]]


def test_an_answer_that_does_not_come_in_time_is_a_deadline_exceeded(client: Any) -> None:
    start = time.monotonic()
    with pytest.raises(DeadlineExceededError, match="'slow'"):
        client.infer("slow", {"x": pair(1)}, timeout_s=SLOW_S / 2)
    assert time.monotonic() - start < SLOW_S + 5
    assert client.infer("slow", {"x": pair(1)})["y"].tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("name", ["pairs", "spare"])  # MLServer joins requests to the second into batches
def test_callers_in_parallel_get_their_own_answers(client: Any, name: str) -> None:
    calls = [(name, {"x": pair(*range(i, i + 1 + i % 3))}) for i in range(60)]
    for (_, inputs), result in zip(calls, client.infer_all(calls), strict=True):
        assert result["twice"].tolist() == (inputs["x"] * 2).tolist()


def test_a_model_can_be_unloaded_and_loaded_again(client: Any, server: Server) -> None:
    client.load("spare")
    client.unload("spare")
    if not server.unloads:
        assert client.infer("spare", {"x": pair(1)})  # what a fake serves is its owner's to say
        return
    end = time.monotonic() + 20
    while True:  # Triton answers before it is done
        try:
            client.infer("spare", {"x": pair(1)})
        except (ModelNotFoundError, UnavailableError):
            break
        assert time.monotonic() < end
    with pytest.raises((ModelNotFoundError, UnavailableError)):
        client.infer("spare", {"x": pair(1)})
    assert client.ready("pairs")
    client.load("spare")
    assert client.ready("spare")
    assert client.infer("spare", {"x": pair(1)})["half"].tolist() == [[0.5, 1.0]]


def test_a_model_that_is_nowhere_can_not_be_loaded(client: Any, server: Server) -> None:
    with pytest.raises(server.not_loaded, match=r"cannot load model 'nobody'|model 'nobody' is not served"):
        client.load("nobody")


def test_a_configuration_is_told_or_not_offered(client: Any, server: Server) -> None:
    if server.has_config:
        assert client.config("pairs")["max_batch_size"] == 0
        with pytest.raises(UsageError, match="infer"):  # whose model it is, the configuration says
            client.classify("pairs", np.zeros((1, 4, 4, 1), np.uint8))
        return
    for ask in (lambda: client.config("pairs"), lambda: client.classify("pairs", np.zeros((1, 4, 4, 1), np.uint8))):
        with pytest.raises(InvalidRequestError, match="cannot read the configuration of model 'pairs'"):
            ask()


def test_statistics_are_told_or_not_offered(client: Any, server: Server) -> None:
    if server.has_statistics:
        assert [version["name"] for version in client.statistics("pairs")] == ["pairs"]
        return
    with pytest.raises(InvalidRequestError):
        client.statistics("pairs")
