"""REST servers without binary tensors: how the client finds out, what it sends them, and when it asks again."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from convoy.contract.errors import (
    AuthenticationError,
    ClientError,
    DeadlineExceededError,
    InvalidRequestError,
    InvalidResponseError,
    ModelNotFoundError,
    OverloadedError,
    ServerFailureError,
    UnavailableError,
)
from convoy.serving.client import AsyncClient, Client
from convoy.serving.client._answer import InferResult, ServerMetadata
from convoy.serving.client._call import DescribeServer, Infer, ServerLive, Tensor
from convoy.serving.client._datatype import DATATYPES, NUMPY_DTYPES, encode
from convoy.serving.client._http_dialect import Dialect, Exchange
from convoy.serving.client._http_wire import decode_response, encode_request

X = np.array([[1.5, -0.0]], np.float32)
METADATA = {"name": "echo", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}], "outputs": []}


class Rest:
    """A REST server that takes JSON alone, or binary alone, and counts what it was asked."""

    def __init__(self, *, binary: bool) -> None:
        self.binary = binary
        self.asked: list[str] = []
        self.forms: list[str] = []
        self.refuse: tuple[int, str] | None = None

    def __call__(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(path)
        if path == "/v2":
            extensions = ["model_repository", "binary_tensor_data"] if self.binary else []
            return 200, {}, json.dumps({"name": "rest", "version": "1", "extensions": extensions}).encode()
        if not path.endswith("/infer"):
            return 200, {}, json.dumps(METADATA).encode()
        length = headers.get("inference-header-content-length")
        self.forms.append("json" if length is None else "binary")
        if self.refuse is not None:
            return self.refuse[0], {}, json.dumps({"error": self.refuse[1]}).encode()
        if self.binary != (length is not None):
            return 400, {}, b'{"error": "this body cannot be read"}'
        if length is None:
            assert headers["content-type"] == "application/json"
            outputs = json.loads(body)["inputs"]
            return 200, {}, json.dumps({"model_name": "echo", "outputs": outputs}).encode()
        outputs = json.loads(body[: int(length)])["inputs"]
        header = json.dumps({"model_name": "echo", "outputs": outputs}).encode()
        return 200, {"inference-header-content-length": str(len(header))}, header + body[int(length) :]


@pytest.fixture(params=["sync", "async"])
def infer(request: pytest.FixtureRequest) -> Any:
    """Opens a client of a URL and gives a function that runs ``echo`` on it, over and over."""
    opened: list[Callable[[], object]] = []
    loop = asyncio.new_event_loop()

    def connect(url: str) -> Callable[..., InferResult]:
        if request.param == "sync":
            client = Client(url, timeout_s=10)
            opened.append(client.close)
            return lambda x=X, **named: client.infer("echo", {"x": x}, **named)
        aclient = AsyncClient(url, timeout_s=10)
        opened.append(lambda: loop.run_until_complete(aclient.close()))
        return lambda x=X, **named: loop.run_until_complete(aclient.infer("echo", {"x": x}, **named))

    yield connect
    for close in opened:
        close()
    loop.close()


@pytest.mark.parametrize(("binary", "form"), [(True, "binary"), (False, "json")])
def test_a_server_is_asked_once_and_spoken_to_in_the_form_that_it_takes(
    binary: bool, form: str, infer: Any, http_double: Any
) -> None:
    rest = Rest(binary=binary)
    run = infer(http_double(rest, extensions=None).url)
    assert rest.asked == []
    for _ in range(3):
        assert run()["x"].tobytes() == X.tobytes()
    assert rest.asked.count("/v2") == 1
    assert rest.forms == [form] * 3


def test_only_an_inference_asks_for_the_servers_extensions(http_double: Any) -> None:
    rest = Rest(binary=False)
    with Client(http_double(rest, extensions=None).url) as client:
        client.metadata("echo")
        client.live()
    assert "/v2" not in rest.asked


def test_a_plain_request_holds_what_the_protocols_core_names_and_nothing_else() -> None:
    call = Infer("echo", "3", inputs=(Tensor("x", "FP32", (1, 2), encode(X, "FP32")),), outputs=("y",))
    request = encode_request(call, 1.5, binary=False)
    assert request.path == "/v2/models/echo/versions/3/infer"
    assert request.headers == {"content-type": "application/json"}
    assert json.loads(request.body) == {
        "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.5, -0.0]}],
        "outputs": [{"name": "y"}],
    }


@st.composite
def json_tensors(draw: st.DrawFn) -> tuple[str, np.ndarray]:
    datatype = draw(st.sampled_from(DATATYPES))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    if datatype == "BYTES":
        n = int(np.prod(shape))
        texts = draw(st.lists(st.text('a\0\n"\\é中😀\x7f\u2028', max_size=6), min_size=n, max_size=n))
        array = np.empty(n, dtype=object)
        array[:] = [text.encode() for text in texts]
        return datatype, array.reshape(shape)
    if datatype == "BF16":
        array = draw(hnp.arrays(np.uint16, shape)).view(ml_dtypes.bfloat16)
        return datatype, np.where(np.isfinite(array.astype(np.float32)), array, ml_dtypes.bfloat16(1))
    dtype = NUMPY_DTYPES[datatype].newbyteorder("=")
    if dtype.kind != "f":
        return datatype, draw(hnp.arrays(dtype, shape))
    finite = {"allow_nan": False, "allow_infinity": False, "width": dtype.itemsize * 8}
    return datatype, draw(hnp.arrays(dtype, shape, elements=st.floats(**finite)))


def nested(values: list[Any], shape: tuple[int, ...]) -> Any:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array.reshape(shape).tolist()


@given(case=json_tensors(), flat=st.booleans())
def test_every_datatype_and_shape_survives_plain_json_bit_for_bit(case: tuple[str, np.ndarray], flat: bool) -> None:
    datatype, array = case
    call = Infer("echo", inputs=(Tensor("x", datatype, array.shape, encode(array, datatype)),))
    tensor = json.loads(encode_request(call, 1, binary=False).body)["inputs"][0]
    assert (tensor["name"], tensor["datatype"], tuple(tensor["shape"])) == ("x", datatype, array.shape)
    if not flat and array.ndim:
        tensor["data"] = nested(tensor["data"], array.shape)
    result = decode_response(call, json.dumps({"outputs": [tensor]}).encode(), {})["x"]
    expected = array.astype(np.float32) if datatype == "BF16" else array
    assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
    assert result.tolist() == expected.tolist() if datatype == "BYTES" else result.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("datatype", "array", "message"),
    [
        ("FP32", np.array([1, np.inf], np.float32), "finite numbers, found inf at flat index 1"),
        ("FP64", np.array([[1, -np.inf]]), "finite numbers, found -inf at flat index 1"),
        ("FP16", np.array(np.nan, np.float16), "finite numbers, found nan at flat index 0"),
        ("BF16", np.array([np.nan], np.float32), "finite numbers, found nan at flat index 0"),
        ("BYTES", np.array([b"a", b"\xc3"], object), "UTF-8 in each element, found other bytes at flat index 1"),
    ],
)
def test_what_json_can_not_carry_is_refused(datatype: str, array: np.ndarray, message: str) -> None:
    call = Infer("echo", inputs=(Tensor("x", datatype, array.shape, encode(array, datatype)),))
    with pytest.raises(InvalidRequestError, match=f"input 'x': expected {message}.* gRPC"):
        encode_request(call, 1, binary=False)


@pytest.mark.parametrize("data", [[1, None], [[1], [None]]])
def test_a_null_among_an_answers_numbers_is_refused_and_not_taken_for_nan(data: list[Any]) -> None:
    output = {"name": "y", "datatype": "FP32", "shape": [2, 1], "data": data}
    body = json.dumps({"model_name": "m", "outputs": [output]}).encode()
    with pytest.raises(InvalidResponseError, match="output 'y': expected numbers, found null"):
        decode_response(Infer("m", inputs=()), body, {})


def test_a_nan_that_is_written_out_is_one() -> None:
    body = b'{"outputs": [{"name": "y", "datatype": "FP64", "shape": [2], "data": [NaN, -Infinity]}]}'
    values = decode_response(Infer("m", inputs=()), body, {})["y"]
    assert np.isnan(values[0])
    assert values[1] == -np.inf


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 501])
def test_a_server_that_refuses_to_describe_itself_is_sent_json(status: int, infer: Any, http_double: Any) -> None:
    rest = Rest(binary=False)

    def behave(method: str, path: str, *rest_: Any) -> Any:
        return (status, {}, b"no") if path == "/v2" else rest(method, path, *rest_)

    run = infer(http_double(behave, extensions=None).url)
    assert run()["x"].tolist() == X.tolist()
    assert rest.forms == ["json"]
    with pytest.raises(InvalidRequestError, match=r"echo.*expected finite numbers.*JSON alone.*Nothing was sent"):
        run(np.full((1, 2), np.nan, np.float32))


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (500, b"{}", ServerFailureError),
        (503, b"{}", UnavailableError),
        (429, b"{}", OverloadedError),
        (504, b"{}", DeadlineExceededError),
        (200, b"<html>", InvalidResponseError),
        (200, b"[]", InvalidResponseError),
        (302, b"", InvalidResponseError),
    ],
)
def test_a_server_that_fails_to_describe_itself_is_not_spoken_to_on_a_guess(
    status: int, body: bytes, error: type, infer: Any, http_double: Any
) -> None:
    rest = Rest(binary=True)

    def behave(method: str, path: str, *rest_: Any) -> Any:
        return (status, {}, body) if path == "/v2" else rest(method, path, *rest_)

    double = http_double(behave, extensions=None)
    run = infer(double.url)
    with pytest.raises(error, match="cannot read the metadata of the server"):
        run()
    assert rest.forms == []
    double.behave = rest  # and nothing is remembered of it
    assert run()["x"].tolist() == X.tolist()
    assert rest.forms == ["binary"]


@pytest.mark.parametrize("extensions", [None, []])
def test_a_description_without_extensions_is_one_of_a_plain_server(extensions: Any) -> None:
    document = {"name": "s", "version": "2"} | ({} if extensions is None else {"extensions": extensions})
    assert decode_response(DescribeServer(), json.dumps(document).encode(), {}) == ServerMetadata("s", "2", ())


@pytest.mark.parametrize("binary", [True, False])
def test_a_server_that_came_in_anothers_place_is_asked_anew_and_answers_the_same_call(
    binary: bool, infer: Any, http_double: Any
) -> None:
    rest = Rest(binary=binary)
    run = infer(http_double(rest, extensions=None).url)
    run()
    rest.binary = not binary  # no connection broke: nobody told the client
    assert run()["x"].tolist() == X.tolist()
    assert run()["x"].tolist() == X.tolist()
    first, second = ("binary", "json") if binary else ("json", "binary")
    assert rest.forms == [first, first, second, second]
    assert rest.asked.count("/v2") == 2


def test_a_nan_that_could_not_be_sent_is_sent_once_the_server_takes_binary(infer: Any, http_double: Any) -> None:
    rest = Rest(binary=False)
    run = infer(http_double(rest, extensions=None).url)
    run()
    rest.binary = True
    assert np.isnan(run(np.full((1, 2), np.nan, np.float32))["x"]).all()
    assert rest.forms == ["json", "binary"]


@pytest.mark.parametrize(("status", "error"), [(400, InvalidRequestError), (500, ServerFailureError)])
def test_a_refusal_by_an_unchanged_server_is_raised_and_nothing_is_sent_twice(
    status: int, error: type, infer: Any, http_double: Any
) -> None:
    rest = Rest(binary=True)
    run = infer(http_double(rest, extensions=None).url)
    run()
    rest.refuse = (status, "its own words")
    for n in (2, 3):
        with pytest.raises(error, match="its own words"):
            run()
        assert len(rest.forms) == n
    rest.refuse = None
    assert run()["x"].tolist() == X.tolist()
    assert rest.forms == ["binary"] * 4


def test_a_server_that_comes_back_as_another_is_found_out(infer: Any, http_double: Any) -> None:
    rest = Rest(binary=True)
    double = http_double(rest, extensions=None)
    run = infer(double.url)
    run()
    double.stop()
    with pytest.raises(UnavailableError):
        run()
    rest.binary = False
    double.start()
    assert run()["x"].tolist() == X.tolist()
    assert rest.forms == ["binary", "json"]


def test_the_question_and_the_inference_share_one_deadline(http_double: Any) -> None:
    rest, released = Rest(binary=True), threading.Event()

    def behave(method: str, path: str, *rest_: Any) -> Any:
        if path == "/v2":
            released.wait(5)
        return rest(method, path, *rest_)

    with Client(http_double(behave, extensions=None).url) as client:
        with pytest.raises(DeadlineExceededError, match=r"whole call had 0\.3 s"):
            client.infer("echo", {"x": X}, timeout_s=0.3)
        released.set()
        assert client.infer("echo", {"x": X})["x"].tolist() == X.tolist()


def test_a_path_that_no_server_has_is_told_from_a_model_that_is_not_there(http_double: Any) -> None:
    double = http_double(lambda *request: (404, {}, b'{"detail": "Not Found"}'))
    with Client(double.url) as client:
        for ask in (lambda: client.config("m"), lambda: client.statistics("m"), client.models, lambda: client.load("m")):
            with pytest.raises(InvalidRequestError, match="HTTP 404: Not Found: the server does not offer this"):
                ask()
        with pytest.raises(ModelNotFoundError):
            client.metadata("m")
        double.behave = lambda *request: (404, {}, b'{"error": "Model m not found"}')
        with pytest.raises(ModelNotFoundError, match="Model m not found"):
            client.config("m")


# The steps by themselves: what an error leaves behind. ---------------------------------------------------------------------------

CALL = Infer("echo", inputs=())
ANSWER = InferResult("echo", "1", {})


def drive(dialect: Dialect, *events: Any) -> list[Any]:
    """Answer each exchange by the next event; give the exchanges, and the error at the end if there is one."""
    steps = dialect.exchanges(CALL)
    seen: list[Any] = [next(steps)]
    for event in events:
        try:
            seen += [steps.throw(event) if isinstance(event, Exception) else steps.send(event)]
        except StopIteration:
            return seen
        except ClientError as error:
            return [*seen, error]
    raise RuntimeError(f"expected an end after {len(events)} events, found {seen[-1]}")


def told(*extensions: str) -> ServerMetadata:
    return ServerMetadata("s", "1", extensions)


ASK = Exchange(DescribeServer())
BINARY, PLAIN = Exchange(CALL, binary=True), Exchange(CALL, binary=False)


@pytest.mark.parametrize("error", [AuthenticationError, ModelNotFoundError, UnavailableError])
def test_after_an_error_behind_which_another_server_may_come_the_server_is_asked_again(error: type[ClientError]) -> None:
    dialect, gone = Dialect(), error("gone")
    assert drive(dialect, told("binary_tensor_data"), ANSWER) == [ASK, BINARY]
    assert drive(dialect, gone) == [BINARY, gone]
    assert drive(dialect, told(), ANSWER) == [ASK, PLAIN]


@pytest.mark.parametrize("error", [OverloadedError, DeadlineExceededError, InvalidResponseError])
def test_after_other_errors_what_was_heard_is_remembered(error: type[ClientError]) -> None:
    dialect, busy = Dialect(), error("busy")
    assert drive(dialect, told("binary_tensor_data"), busy) == [ASK, BINARY, busy]
    assert drive(dialect, ANSWER) == [BINARY]


def test_a_refusal_right_after_the_question_is_not_asked_about_again() -> None:
    dialect, refusal = Dialect(), InvalidRequestError("no")
    assert drive(dialect, told(), refusal) == [ASK, PLAIN, refusal]
    assert drive(dialect, ANSWER) == [PLAIN]


def test_where_nobody_can_tell_any_more_the_refusal_stands() -> None:
    dialect, refusal = Dialect(), InvalidRequestError("no")
    assert drive(dialect, told("binary_tensor_data"), ANSWER) == [ASK, BINARY]
    assert drive(dialect, refusal, UnavailableError("gone")) == [BINARY, ASK, refusal]
    assert drive(dialect, told(), ANSWER) == [ASK, PLAIN]


def test_calls_without_tensors_are_sent_as_they_are() -> None:
    call = ServerLive()
    steps = Dialect().exchanges(call)
    assert next(steps) == Exchange(call)
    with pytest.raises(StopIteration) as done:
        steps.send(True)
    assert done.value.value is True
