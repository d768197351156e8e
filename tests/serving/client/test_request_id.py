"""The ids by which requests are found again: on the wires, in errors and in the log."""

from __future__ import annotations

import json
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from convoy.contract.errors import InvalidRequestError, OverloadedError, ServerFailureError, UnavailableError, UsageError
from convoy.serving.client import AsyncClient, Client, Retry
from convoy.serving.client._call import Call, Infer
from convoy.serving.client._endpoint import Endpoint
from convoy.serving.client._failure import failure
from convoy.serving.client._request_id import RequestIds
from convoy.serving.client._signature import Signature
from convoy.serving.client.testing import AsyncFakeTransport, FakeTransport

X = np.ones((1, 2), np.float32)
AT_ONCE = Retry(first_pause_s=0.001, longest_pause_s=0.002)


def ids(fake: FakeTransport) -> list[str]:
    return [call.request_id for call in fake.calls if isinstance(call, Infer)]


def test_ids_are_never_given_twice() -> None:
    makers = [RequestIds(), RequestIds()]
    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(lambda i: makers[i % 2].new(), range(4000)))
    assert len(set(given)) == 4000
    assert all(len(request_id) < 40 and request_id.isascii() for request_id in given)


async def test_every_inference_has_an_id_of_its_own(fake: FakeTransport) -> None:
    with Client(transport=fake) as client:
        for _ in range(3):
            client.infer("echo", {"x": X})
        client.classify("digits", np.zeros((4, 4, 1), np.uint8))
    async with AsyncClient(transport=AsyncFakeTransport(fake)) as aclient:
        await aclient.infer("echo", {"x": X})
    assert len(set(ids(fake))) == 5
    assert "" not in ids(fake)


def test_the_id_stays_the_same_over_retries_and_over_servers(fake: FakeTransport) -> None:
    other = FakeTransport(fake.models)
    with Client(["grpc://a", "grpc://b"], transport={"grpc://a": fake, "grpc://b": other}, retry=AT_ONCE) as client:
        client.metadata("echo")
        for server in (fake, other):
            server.failures.append(UnavailableError("not now"))
        client._models.of(("echo", "")).signature = Signature(client.metadata("echo", timeout_s=5))
        for server in (fake, other):
            server.calls.clear()
            server.failures.append(OverloadedError("full"))
        client.infer("echo", {"x": X})
    assert len(ids(fake) + ids(other)) == 3
    assert len(set(ids(fake) + ids(other))) == 1


def test_a_hedge_has_the_id_of_what_it_hedges(fake: FakeTransport) -> None:
    class Slow(FakeTransport):
        def send(self, call: Call[Any], timeout_s: float) -> Any:
            answer = super().send(call, timeout_s)
            if isinstance(call, Infer):
                time.sleep(0.05)
            return answer

    slow = Slow(fake.models)
    with Client(transport=slow, hedge_after_s=0.001) as client:
        client.infer("echo", {"x": X})
    assert len(ids(slow)) == 2
    assert len(set(ids(slow))) == 1


@pytest.mark.parametrize("method", ["infer", "classify", "classify_iter"])
async def test_parts_of_a_big_input_have_the_calls_id_and_the_row_where_they_begin(method: str, fake: FakeTransport) -> None:
    images = np.zeros((9, 4, 4, 1), np.uint8)  # in batches of 4
    given: Any = {"image": images} if method == "infer" else images
    with Client(transport=fake) as client:
        answers = getattr(client, method)("digits", given, request_id="mine")
        if method == "classify_iter":
            assert len(list(answers)) == 9
    assert sorted(ids(fake)) == ["mine", "mine.4", "mine.8"]
    fake.calls.clear()
    async with AsyncClient(transport=AsyncFakeTransport(fake)) as aclient:
        answers = getattr(aclient, method)("digits", given, request_id="mine")
        if method == "classify_iter":
            assert len([answer async for answer in answers]) == 9
        else:
            await answers
    assert sorted(ids(fake)) == ["mine", "mine.4", "mine.8"]


@pytest.mark.parametrize("request_id", ["two\nlines", "é", "x" * 129, 7, None])
def test_an_id_that_would_break_a_log_is_refused(request_id: Any, fake: FakeTransport) -> None:
    with pytest.raises(UsageError, match="request_id: expected up to 128 printable ASCII characters"):
        Client(transport=fake).infer("echo", {"x": X}, request_id=request_id)


async def test_the_id_travels_on_both_wires(grpc_double: Any, http_double: Any, echo: Any) -> None:
    seen: list[str] = []

    def by_grpc(method: str, request: bytes, context: Any) -> bytes:
        if method == "ModelInfer":
            seen.append(service_pb2.ModelInferRequest.FromString(request).id)
            return bytes(echo["grpc"](request))
        answer = service_pb2.ModelMetadataResponse(name="m")
        answer.inputs.add(name="x", datatype="FP32", shape=[-1, 2])
        return answer.SerializeToString()

    def by_http(method: str, path: str, headers: dict[str, str], body: bytes) -> Any:
        if path.endswith("infer"):
            length = int(headers.get("inference-header-content-length", len(body)))
            document = json.loads(body[:length])
            seen.append(document["id"])
            if length < len(body):
                return echo["http"](path, headers, body)
            return 200, {}, json.dumps({"model_name": "m", "outputs": document["inputs"]}).encode()
        return 200, {}, b'{"name": "m", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}], "outputs": []}'

    for url in (grpc_double(by_grpc).url, http_double(by_http).url, http_double(by_http, extensions=()).url):
        with Client(url) as client:
            client.infer("m", {"x": X}, request_id="from a thread")
            client.infer("m", {"x": X})
        async with AsyncClient(url) as aclient:
            await aclient.infer("m", {"x": X}, request_id="from a loop")
        sent, made_up, sent_too = seen
        assert (sent, sent_too) == ("from a thread", "from a loop")
        assert made_up
        seen.clear()


def test_a_failure_of_the_server_names_the_request_that_its_log_names(grpc_double: Any) -> None:
    def behave(method: str, request: bytes, context: Any) -> bytes:
        if method == "ModelInfer":
            request_id = service_pb2.ModelInferRequest.FromString(request).id
            context.abort(grpc.StatusCode.INTERNAL, f"[request id: {request_id}] CUDA error")
        answer = service_pb2.ModelMetadataResponse(name="m")
        answer.inputs.add(name="x", datatype="FP32", shape=[-1, 2])
        return answer.SerializeToString()

    with Client(grpc_double(behave).url) as client, pytest.raises(ServerFailureError) as caught:
        client.infer("m", {"x": X}, request_id="abc-7")
    assert "INTERNAL: CUDA error. The server's log" in str(caught.value)
    assert str(caught.value).endswith("look for request abc-7.")


def test_an_id_never_changes_what_an_error_is() -> None:
    call = Infer("m", inputs=(), request_id="unknown model")
    error = failure(ServerFailureError, Endpoint.parse("grpc://a"), call, "[request id: unknown model] broken")
    assert type(error) is ServerFailureError
    assert "request unknown model" in str(error)
    refused = failure(InvalidRequestError, Endpoint.parse("grpc://a"), call, "wrong shape")
    assert "request unknown model" not in str(refused)  # the caller has all that it takes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_gives_other_ids(fake: FakeTransport) -> None:
    client = Client(transport=fake)
    client.infer("echo", {"x": X})
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        client.infer("echo", {"x": X})
        os.write(writer, ids(fake)[-1].encode())
        os._exit(0)
    os.waitpid(child, 0)
    client.infer("echo", {"x": X})
    first, second = ids(fake)
    prefix = first.split("-")[0]
    assert second.split("-")[0] == prefix
    assert os.read(reader, 100).decode().split("-")[0] != prefix
    os.close(reader)
    os.close(writer)


async def test_each_request_is_a_line_of_the_log_where_debug_is_on(fake: FakeTransport, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "convoy.client"):
        client = Client(transport=fake, retry=AT_ONCE)
        client.metadata("echo")
        fake.failures.append(OverloadedError("full"))
        client.metadata("echo", timeout_s=5)
        caplog.clear()
        fake.failures.append(OverloadedError("full"))
        async with AsyncClient(transport=AsyncFakeTransport(fake), retry=AT_ONCE) as aclient:
            await aclient.infer("echo", {"x": X}, request_id="abc")
    records: list[Any] = [record for record in caplog.records if record.levelno == logging.DEBUG]
    assert [record.convoy_outcome for record in records] == ["OverloadedError", "ok", "ok"]
    assert [record.convoy_attempt for record in records] == [1, 2, 1]
    assert {record.convoy_request_id for record in records} == {"abc"}
    assert {record.convoy_model_name for record in records} == {"echo"}
    assert all(record.convoy_latency_ms >= 0 for record in records)
    assert records[-1].message.startswith("grpc://localhost:8001: request abc: run model 'echo', attempt 1: ok in ")
    (retry,) = [record for record in caplog.records if record.levelno == logging.INFO]
    assert "request abc: trying again in" in retry.message


def test_nothing_is_written_of_a_request_where_debug_is_off(fake: FakeTransport, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "convoy.client"):
        Client(transport=fake).infer("echo", {"x": X})
    assert caplog.records == []
