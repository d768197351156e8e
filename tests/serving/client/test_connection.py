from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from convoy.contract.errors import (
    ClientError,
    DeadlineExceededError,
    InvalidResponseError,
    ModelNotFoundError,
    UnavailableError,
    UsageError,
)
from convoy.serving.client import AsyncClient, Client
from convoy.serving.client._grpc_channel import ABANDONED_S
from convoy.serving.client.testing import FakeTransport

SCHEMES = ["grpc", "http"]


@contextlib.contextmanager
def faster_than(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


def pixels(index: int) -> np.ndarray:
    return np.full((1, 4, 4, 1), index, np.uint8)


async def test_both_clients_do_everything_on_both_wires(served: Any, fake: FakeTransport) -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    with Client(served.url) as client:
        async with AsyncClient(served.url) as aclient:
            assert client.live()
            assert await aclient.live()
            assert client.ready()
            assert client.ready("digits")
            assert not client.ready("nobody")
            assert not await aclient.ready("nobody")
            assert client.models() == await aclient.models() == Client(transport=fake).models()
            assert client.metadata("digits") == await aclient.metadata("digits") == Client(transport=fake).metadata("digits")
            assert client.interface("digits") == Client(transport=fake).interface("digits")
            assert client.config("digits")["max_batch_size"] == (await aclient.config("digits"))["max_batch_size"] == 4
            assert client.infer("echo", {"x": x}).outputs["y"].tolist() == x.tolist()
            assert (await aclient.infer("echo", {"x": x}, outputs=["y"])).outputs["y"].tolist() == x.tolist()
            assert client.infer("echo", {"x": x[:0]}).outputs["y"].shape == (0, 2)
            assert client.classify("digits", pixels(2)) == await aclient.classify("digits", pixels(2))
            client.load("digits")
            await aclient.unload("digits")
            with pytest.raises(ModelNotFoundError):
                client.classify("nobody", pixels(0))
            with pytest.raises(ModelNotFoundError):
                client.classify("digits", pixels(0), model_version="9")
            many = np.arange(9, dtype=np.uint8).repeat(16).reshape(9, 4, 4, 1)
            joined = client.infer("digits", {"image": many})["probabilities"]  # in batches of 4
            assert joined.argmax(axis=1).tolist() == [0, 1, 2] * 3
            assert np.array_equal((await aclient.infer("digits", {"image": many}))["probabilities"], joined)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_where_nobody_listens_calls_fail_at_once_and_nothing_is_live(scheme: str, closed_port: int) -> None:
    url = f"{scheme}://127.0.0.1:{closed_port}"
    with faster_than(5), Client(url) as client:
        assert not client.live()
        assert not client.ready()
        with pytest.raises(UnavailableError, match="Is `convoy serve` running") as caught:
            client.classify("digits", pixels(0))
        assert url in str(caught.value)
        assert caught.value.__cause__ is not None
    with faster_than(5):
        async with AsyncClient(url) as client:
            assert not await client.live()
            with pytest.raises(UnavailableError, match="Is `convoy serve` running"):
                await client.classify("digits", pixels(0))


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_server_that_never_answers_costs_no_more_than_the_deadline(scheme: str, silent_port: int) -> None:
    url = f"{scheme}://127.0.0.1:{silent_port}"
    with faster_than(3), Client(url, timeout_s=0.3) as client, pytest.raises((DeadlineExceededError, UnavailableError)):
        client.models()
    with faster_than(3):
        async with AsyncClient(url, timeout_s=0.3) as client:
            with pytest.raises((DeadlineExceededError, UnavailableError)):
                await client.models()
            assert not await client.live()


async def test_a_method_that_never_ends_is_a_deadline_exceeded(grpc_double: Any, http_double: Any) -> None:
    done = threading.Event()

    def never(*args: Any) -> Any:
        done.wait(20)
        return b"" if len(args) == 3 else (200, {}, b"")

    try:
        for url in (grpc_double(never).url, http_double(never).url):
            with (
                faster_than(3),
                Client(url) as client,
                pytest.raises(DeadlineExceededError, match=r"no answer in time.*The whole call had 0\.3 s\."),
            ):
                client.models(timeout_s=0.3)
            with faster_than(3):
                async with AsyncClient(url, timeout_s=0.3) as client:
                    with pytest.raises(DeadlineExceededError, match=r"no answer in time.*The whole call had 0\.3 s\."):
                        await client.models()
    finally:
        done.set()


async def test_a_server_that_drips_its_answer_does_not_hold_the_call(http_double: Any) -> None:
    stop = threading.Event()
    double = http_double(lambda *args: (200, {}, b""))

    import http.server

    def slow(self: Any) -> None:
        self.send_response(200)
        self.send_header("content-length", "1000000")
        self.end_headers()
        while not stop.wait(0.05):
            try:
                self.wfile.write(b" ")
                self.wfile.flush()
            except OSError:
                return

    handler: type[http.server.BaseHTTPRequestHandler] = double._server.RequestHandlerClass
    handler.do_POST = slow  # type: ignore[attr-defined]
    try:
        with faster_than(3), Client(double.url) as client, pytest.raises(DeadlineExceededError, match="bytes of the answer came"):
            client.models(timeout_s=0.3)
        with faster_than(3):
            async with AsyncClient(double.url, timeout_s=0.3) as client:
                with pytest.raises(DeadlineExceededError):
                    await client.models()
    finally:
        stop.set()


def test_one_deadline_bounds_all_requests_of_a_call(fake: FakeTransport) -> None:
    class Slow(FakeTransport):
        left: list[float] = []  # noqa: RUF012

        def send(self, call: Any, timeout_s: float) -> Any:
            self.left.append(timeout_s)
            time.sleep(0.02)  # stands for a server's work: the clock of the deadline is what is tested
            return super().send(call, timeout_s)

    slow = Slow(fake.models)
    with pytest.raises(DeadlineExceededError, match=r"model 'digits': the call did not end within its 0\.1 s"):
        Client(transport=slow).classify("digits", np.zeros((400, 4, 4, 1), np.uint8), timeout_s=0.1)
    assert slow.left == sorted(slow.left, reverse=True)
    assert slow.left[0] <= 0.1


async def test_the_deadline_travels_to_the_server(grpc_double: Any, http_double: Any) -> None:
    import json

    from tritonclient.grpc import service_pb2

    seen: dict[str, Any] = {}

    def by_grpc(method: str, request: bytes, context: Any) -> bytes:
        if method == "ModelInfer":
            seen["grpc"] = service_pb2.ModelInferRequest.FromString(request).parameters["timeout"].int64_param / 1e6
            seen["call_s"] = context.time_remaining()
            return service_pb2.ModelInferResponse(model_name="m").SerializeToString()
        answer = service_pb2.ModelMetadataResponse(name="m")
        answer.inputs.add(name="x", datatype="UINT8", shape=[1])
        return answer.SerializeToString()

    def by_http(method: str, path: str, headers: dict[str, str], body: bytes) -> Any:
        if path.endswith("infer"):
            seen["http"] = json.loads(body[: int(headers["inference-header-content-length"])])["parameters"]["timeout"] / 1e6
            return 200, {}, b'{"model_name": "m", "outputs": []}'
        return 200, {}, b'{"name": "m", "inputs": [{"name": "x", "datatype": "UINT8", "shape": [1]}], "outputs": []}'

    for url in (grpc_double(by_grpc).url, http_double(by_http).url):
        with Client(url) as client:
            client.infer("m", {"x": np.zeros(1, np.uint8)}, timeout_s=5)
    assert all(4 < seen[key] <= 5 for key in ("grpc", "http"))
    assert 4 < seen["call_s"] - ABANDONED_S <= 5


async def test_an_inference_that_comes_too_late_is_left_alone_and_not_cancelled(grpc_double: Any) -> None:
    from tritonclient.grpc import service_pb2

    ended: list[bool] = []
    late, answered = threading.Event(), threading.Semaphore(0)

    def infer(method: str, _request: bytes, context: Any) -> bytes:
        if method == "ModelInfer":
            late.wait(20)
            ended.append(context.is_active())
            answered.release()
            return service_pb2.ModelInferResponse(model_name="m").SerializeToString()
        answer = service_pb2.ModelMetadataResponse(name="m")
        answer.inputs.add(name="x", datatype="UINT8", shape=[1])
        return answer.SerializeToString()

    url = grpc_double(infer).url
    with Client(url) as client:
        async with AsyncClient(url) as async_client:
            with faster_than(3), pytest.raises(DeadlineExceededError, match=r"within 0\.\d+ s.*The whole call had 0\.3 s\."):
                client.infer("m", {"x": np.zeros(1, np.uint8)}, timeout_s=0.3)
            with faster_than(3), pytest.raises(DeadlineExceededError, match=r"The whole call had 0\.3 s\."):
                await async_client.infer("m", {"x": np.zeros(1, np.uint8)}, timeout_s=0.3)
            late.set()
            assert answered.acquire(timeout=5)
            assert answered.acquire(timeout=5)
    assert ended == [True, True]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_headers_travel_with_every_request(scheme: str, grpc_double: Any, http_double: Any) -> None:
    seen = []

    def by_grpc(method: str, request: bytes, context: Any) -> bytes:
        seen.append(dict(context.invocation_metadata()))
        return b""

    def by_http(method: str, path: str, headers: dict[str, str], body: bytes) -> Any:
        seen.append(headers)
        return 200, {}, b"[]"

    double = grpc_double(by_grpc) if scheme == "grpc" else http_double(by_http)
    with Client(double.url, headers={"Authorization": "Bearer x"}) as client:
        client.models()
    assert seen[0]["authorization"] == "Bearer x"


async def test_a_server_that_comes_back_is_found_again(served: Any) -> None:
    with Client(served.url) as client:
        async with AsyncClient(served.url) as aclient:
            assert client.classify("digits", pixels(1))[0].label == "one"
            await aclient.classify("digits", pixels(1))
            served.stop()
            with pytest.raises(UnavailableError):
                client.classify("digits", pixels(1))
            with pytest.raises(UnavailableError):
                await aclient.classify("digits", pixels(1))
            served.start()
            deadline = time.monotonic() + 5
            while not (client.live() and await aclient.live()):
                assert time.monotonic() < deadline
            assert client.classify("digits", pixels(2))[0].label == "two"
            assert (await aclient.classify("digits", pixels(2)))[0].label == "two"


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_server_that_hangs_up_in_the_middle_is_unavailable_at_once(scheme: str) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        stop = threading.Event()

        def hang_up() -> None:
            listener.settimeout(0.05)
            while not stop.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                with connection:
                    connection.settimeout(1)
                    with contextlib.suppress(OSError):
                        connection.recv(100)

        thread = threading.Thread(target=hang_up)
        thread.start()
        try:
            with faster_than(10), Client(url) as client, pytest.raises(UnavailableError):
                client.models()
            with faster_than(10):
                async with AsyncClient(url) as client:
                    with pytest.raises(UnavailableError):
                        await client.models()
        finally:
            stop.set()
            thread.join()


def test_closing_under_a_call_ends_the_call_with_an_error(grpc_double: Any, http_double: Any) -> None:
    for make in (grpc_double, http_double):
        entered, done = threading.Event(), threading.Event()

        def wait(*args: Any, entered: threading.Event = entered, done: threading.Event = done) -> Any:
            entered.set()
            done.wait(20)
            return b"" if len(args) == 3 else (200, {}, b"[]")

        client = Client(make(wait).url, timeout_s=3)
        errors: list[Exception] = []

        def call(client: Client = client, errors: list[Exception] = errors) -> None:
            try:
                client.models()
            except Exception as caught:
                errors.append(caught)

        thread = threading.Thread(target=call)
        thread.start()
        assert entered.wait(5)
        client.close()
        done.set()
        thread.join(10)
        assert not thread.is_alive()
        assert all(isinstance(error, (ClientError, UsageError)) for error in errors)


def test_an_async_client_is_not_shared_between_event_loops(served: Any) -> None:
    client = AsyncClient(served.url)

    async def use() -> None:
        await client.models()

    async def use_and_close() -> None:
        with pytest.raises(UsageError, match="one client a loop"):
            await client.models()

    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(use())
        other = asyncio.new_event_loop()
        other.run_until_complete(use_and_close())
        other.close()
        loop.run_until_complete(client.close())
    finally:
        loop.close()


def test_messages_larger_than_grpcs_default_limit_pass(served: Any) -> None:
    x = np.zeros((1_000_000, 2), np.float32)  # 8 MB, twice the limit
    with Client(served.url) as client:
        assert client.infer("echo", {"x": x})["y"].shape == x.shape


def test_model_names_are_quoted_in_a_rest_path(http_double: Any) -> None:
    paths = []

    def behave(method: str, path: str, *rest: Any) -> Any:
        paths.append(path)
        return 404, {}, b"{}"

    with Client(http_double(behave).url) as client, pytest.raises(ModelNotFoundError):
        client.metadata("../a b?c", "1/2")
    assert paths == ["/v2/models/..%2Fa%20b%3Fc/versions/1%2F2"]


@pytest.mark.parametrize("compression", [None, "gzip"])
async def test_rest_bodies_are_compressed_both_ways_where_the_caller_says_so(served: Any, compression: Any) -> None:
    import gzip

    seen: list[str] = []
    behave = served.behave

    def watched(method: str, path: str, headers: dict[str, str], body: bytes) -> Any:
        seen.append(headers.get("content-encoding", ""))
        body = gzip.decompress(body) if seen[-1] == "gzip" else body
        status, extra, answer = behave(method, path, headers, body)
        if headers.get("accept-encoding") == "gzip":
            answer, extra = gzip.compress(answer), {**extra, "content-encoding": "gzip"}
        return status, extra, answer

    if served.url.startswith("http"):
        served.behave = watched
    x = np.random.default_rng(0).normal(size=(1000, 2)).astype(np.float32)
    with Client(served.url, compression=compression) as client:
        assert np.array_equal(client.infer("echo", {"x": x})["y"], x)
    async with AsyncClient(served.url, compression=compression) as aclient:
        assert np.array_equal((await aclient.infer("echo", {"x": x}))["y"], x)
    assert ("gzip" in seen) == (compression == "gzip" and served.url.startswith("http"))


def test_a_compression_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="compression: expected 'gzip', or None for none, found 'zip'"):
        Client(compression="zip")  # type: ignore[arg-type]


def test_an_answer_that_says_gzip_and_is_none_is_an_invalid_response(http_double: Any) -> None:
    url = http_double(lambda *_: (200, {"content-encoding": "gzip"}, b"no gzip")).url
    with Client(url, compression="gzip") as client, pytest.raises(InvalidResponseError, match="expected a body in gzip"):
        client.models()
