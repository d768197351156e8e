"""Spans of calls and of their requests, and the context that goes to the server, on both wires and with both clients."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from convoy.contract.errors import DeadlineExceededError, InvalidRequestError, OverloadedError, UnavailableError
from convoy.serving.client import AsyncClient, Client, Retry
from convoy.serving.client._audience import Audience
from convoy.serving.client._call import (
    Call,
    DescribeModel,
    DescribeServer,
    Infer,
    ListModels,
    LoadModel,
    ModelReady,
    ReadConfig,
    ReadStatistics,
    RegisterRegion,
    RegisterSegment,
    ServerLive,
    ServerReady,
    UnloadModel,
    UnregisterRegion,
    UnregisterSegment,
)
from convoy.serving.client._endpoint import Endpoint
from convoy.serving.client._observer import UNOBSERVED
from convoy.serving.client._tracing import describe
from convoy.serving.client.testing import AsyncFakeTransport, FakeModel, FakeTransport

X = np.ones((1, 2), np.float32)
AT_ONCE = Retry(first_pause_s=0.001, longest_pause_s=0.002)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """An application's tracer provider, and the spans that have ended."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


@pytest.fixture
def tracer(spans: InMemorySpanExporter) -> trace.Tracer:
    """The application's own tracer."""
    return trace.get_tracer("the application")


def of(spans: InMemorySpanExporter) -> tuple[list[ReadableSpan], list[ReadableSpan]]:
    """The spans of calls and the spans of requests, as they began."""
    ended = sorted(spans.get_finished_spans(), key=lambda span: span.start_time or 0)
    return [span for span in ended if span.kind is SpanKind.INTERNAL], [span for span in ended if span.kind is SpanKind.CLIENT]


def header_of(span: ReadableSpan) -> str:
    found = span.get_span_context()
    assert found is not None
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"


def is_below(span: ReadableSpan, parent: ReadableSpan) -> bool:
    own = parent.get_span_context()
    return (
        span.parent is not None and own is not None and (span.parent.trace_id, span.parent.span_id) == (own.trace_id, own.span_id)
    )


@pytest.fixture
def heard(served: Any) -> list[dict[str, str]]:
    """The headers of every request that reached ``served``, in order."""
    headers: list[dict[str, str]] = []
    behave = served.behave

    def listen(*arguments: Any) -> Any:
        if len(arguments) == 3:  # gRPC: method, request, context; REST: method, path, headers, body
            metadata = arguments[2].invocation_metadata()
            headers.append(dict(metadata))
            assert len(headers[-1]) == len(metadata)  # no name twice
        else:
            headers.append(arguments[2])
        return behave(*arguments)

    served.behave = listen
    return headers


CALLS: list[Call[Any]] = [
    ServerLive(),
    ServerReady(),
    DescribeServer(),
    ListModels(),
    *[kind(*of) for kind in (ModelReady, DescribeModel, ReadConfig, ReadStatistics) for of in (("a b",), ("a/b", "3"))],
    LoadModel("a/b"),
    UnloadModel("a/b"),
    Infer("a b", inputs=()),
    Infer("a/b", "3", inputs=()),
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{type(call).__name__} {call.model_version}")
def test_a_request_is_described_as_it_is_sent(call: Call[Any]) -> None:
    from convoy.serving.client._grpc_wire import method_of
    from convoy.serving.client._http_wire import encode_request

    name, attributes = describe(call, Endpoint.parse("grpc://a"), 1)
    assert f"/{name}" == f"/{attributes['rpc.method']}" == method_of(call)
    assert (attributes["rpc.system.name"], attributes["server.address"], attributes["server.port"]) == ("grpc", "a", 8001)
    name, attributes = describe(call, Endpoint.parse("https://a:9").at("10.0.0.7"), 3)
    request = encode_request(call, 1)
    assert (attributes["http.request.method"], attributes["url.full"]) == (request.method, f"https://a:9{request.path}")
    assert name == f"{request.method} {attributes['url.template']}"
    assert "a b" not in name
    assert "a/b" not in name
    assert attributes["network.peer.address"] == "10.0.0.7"
    assert attributes["http.request.resend_count"] == 2
    assert attributes.get("convoy.model.name", "") == call.model_name


def test_every_call_is_described() -> None:
    within_a_transport = {RegisterRegion, RegisterSegment, UnregisterRegion, UnregisterSegment}
    assert {type(call) for call in CALLS} == set(Call.__subclasses__()) - within_a_transport


async def test_a_call_is_a_span_and_each_of_its_requests_one_below_it_that_the_server_is_told_of(
    served: Any, heard: list[dict[str, str]], spans: InMemorySpanExporter
) -> None:
    with Client(served.url) as client:
        client.infer("echo", {"x": X}, request_id="abc")
    async with AsyncClient(served.url) as aclient:
        await aclient.infer("echo", {"x": X}, request_id="def")
    calls, requests = of(spans)
    assert [call.name for call in calls] == ["convoy.infer"] * 2
    assert [dict(call.attributes or {}) for call in calls] == [
        {"convoy.model.name": "echo", "convoy.request.id": request_id} for request_id in ("abc", "def")
    ]
    grpc_names = ["inference.GRPCInferenceService/ModelMetadata", "inference.GRPCInferenceService/ModelInfer"]
    http_names = ["GET /v2/models/{model_name}", "POST /v2/models/{model_name}/infer"]
    assert [request.name for request in requests] == (grpc_names if served.url.startswith("grpc") else http_names) * 2
    assert [is_below(request, calls[i // 2]) for i, request in enumerate(requests)] == [True] * 4
    assert [headers["traceparent"] for headers in heard] == [header_of(request) for request in requests]
    assert all(span.status.status_code is StatusCode.UNSET for span in calls + requests)
    assert all(request.attributes and request.attributes["server.port"] == served.port for request in requests)
    if served.url.startswith("grpc"):
        assert all(request.attributes and request.attributes["rpc.response.status_code"] == "OK" for request in requests)


async def test_a_rest_server_is_told_the_context_with_the_question_what_it_takes_too(
    http_double: Any, spans: InMemorySpanExporter
) -> None:
    heard: dict[str, str] = {}

    def behave(method: str, path: str, headers: dict[str, str], body: bytes) -> Any:
        heard[path] = headers["traceparent"]
        if path == "/v2":
            return 200, {}, b'{"name": "old", "version": "1", "extensions": []}'
        if method == "GET":
            return 200, {}, b'{"name": "m", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}], "outputs": []}'
        return 200, {}, b'{"model_name": "m", "outputs": []}'

    with Client(http_double(behave, extensions=None).url) as client:
        client.infer("m", {"x": X})
    _, requests = of(spans)
    assert heard["/v2"] == heard["/v2/models/m/infer"] == header_of(requests[-1])


async def test_the_callers_trace_its_state_and_its_baggage_reach_the_server(
    served: Any, heard: list[dict[str, str]], spans: InMemorySpanExporter
) -> None:
    caller = trace.SpanContext(7 << 64, 9, True, trace.TraceFlags(1), trace.TraceState([("vendor", "x")]))
    token = context.attach(baggage.set_baggage("tenant", "blue", trace.set_span_in_context(trace.NonRecordingSpan(caller))))
    try:
        with Client(served.url, headers={"traceparent": "the client's", "baggage": "its=own", "x-key": "kept"}) as client:
            client.metadata("echo")
        async with AsyncClient(served.url) as aclient:
            await aclient.metadata("echo")
    finally:
        context.detach(token)
    (call, call_too), (request, request_too) = of(spans)
    assert call.parent == call_too.parent == caller
    assert [headers["traceparent"] for headers in heard] == [header_of(request), header_of(request_too)]
    assert heard[0]["traceparent"].startswith(f"00-{7 << 64:032x}-")
    assert [(headers["tracestate"], headers["baggage"]) for headers in heard] == [("vendor=x", "tenant=blue")] * 2
    assert heard[0]["x-key"] == "kept"


async def test_a_configured_propagator_is_the_one_that_is_used(
    served: Any, heard: list[dict[str, str]], spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opentelemetry import propagate
    from opentelemetry.propagators.textmap import TextMapPropagator

    class Own(TextMapPropagator):
        def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Any:
            raise AssertionError

        def inject(self, carrier: Any, context: Any = None, setter: Any = None) -> None:
            setter.set(carrier, "X-B3-TraceId", f"{trace.get_current_span(context).get_span_context().trace_id:x}")

        @property
        def fields(self) -> set[str]:
            return set()

    monkeypatch.setattr(propagate, "get_global_textmap", Own)
    with Client(served.url) as client:
        client.models()
    (call,), _ = of(spans)
    own = call.get_span_context()
    assert own is not None
    assert heard[0]["x-b3-traceid"] == f"{own.trace_id:x}"  # gRPC takes no capitals
    assert "traceparent" not in heard[0]


async def test_a_trace_that_is_not_sampled_is_told_to_the_server_as_such(
    served: Any, heard: list[dict[str, str]], spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", TracerProvider(sampler=ALWAYS_OFF))
    with Client(served.url) as client:
        client.models()
    assert not int(heard[0]["traceparent"].rsplit("-", 1)[1], 16) & trace.TraceFlags.SAMPLED
    assert spans.get_finished_spans() == ()


async def test_without_a_tracer_provider_nothing_is_traced_and_nothing_sent(served: Any, heard: list[dict[str, str]]) -> None:
    assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    assert Audience().begin("models", "", "", "id", lasting=False) is UNOBSERVED
    with Client(served.url) as client:
        client.models()
    async with AsyncClient(served.url) as aclient:
        await aclient.models()
    assert len(heard) == 2
    assert not any("traceparent" in headers for headers in heard)


def test_a_provider_that_comes_after_the_client_is_used(fake: FakeTransport, request: pytest.FixtureRequest) -> None:
    client = Client(transport=fake)
    client.models()
    spans: InMemorySpanExporter = request.getfixturevalue("spans")
    client.models()
    assert [span.name for span in spans.get_finished_spans()] == ["inference.GRPCInferenceService/RepositoryIndex", "convoy.models"]


async def test_each_try_is_a_span_and_what_failed_says_so(fake: FakeTransport, spans: InMemorySpanExporter) -> None:
    async def retried(call: Any) -> None:
        spans.clear()
        fake.failures.append(OverloadedError("full up"))
        result = call("echo")
        await result if asyncio.iscoroutine(result) else None
        (span,), (first, second) = of(spans)
        assert [is_below(request, span) for request in (first, second)] == [True, True]
        assert [request.attributes and request.attributes["convoy.attempt"] for request in (first, second)] == [1, 2]
        assert (first.status.status_code, first.status.description) == (StatusCode.ERROR, "full up")
        assert first.attributes
        assert first.attributes["error.type"] == "OverloadedError"
        assert second.status.status_code is span.status.status_code is StatusCode.UNSET
        assert [(event.name, dict(event.attributes or {})) for event in span.events] == [
            ("convoy.retry", {"error.type": "OverloadedError"})
        ]

    await retried(Client(transport=fake, retry=AT_ONCE).metadata)
    await retried(AsyncClient(transport=AsyncFakeTransport(fake), retry=AT_ONCE).metadata)


def test_a_call_that_fails_is_recorded_with_its_error(fake: FakeTransport, spans: InMemorySpanExporter) -> None:
    fake.failures.append(InvalidRequestError("wrong shape"))
    with pytest.raises(InvalidRequestError):
        Client(transport=fake).config("echo", "3")
    (call,), (request,) = of(spans)
    assert call.attributes
    assert request.attributes
    for span in (call, request):
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "wrong shape")
    assert call.attributes["error.type"] == request.attributes["error.type"] == "InvalidRequestError"
    assert call.attributes["convoy.model.version"] == "3"
    assert [event.name for event in call.events] == ["exception"]


def test_a_status_of_grpc_is_named(grpc_double: Any, spans: InMemorySpanExporter) -> None:
    def behave(method: str, request: bytes, context: Any) -> bytes:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")
        raise AssertionError

    with Client(grpc_double(behave).url) as client, pytest.raises(InvalidRequestError):
        client.models()
    (call,), (request,) = of(spans)
    assert request.attributes
    assert request.attributes["rpc.response.status_code"] == request.attributes["error.type"] == "INVALID_ARGUMENT"
    assert call.attributes
    assert call.attributes["error.type"] == "InvalidRequestError"


@pytest.mark.parametrize("method", ["infer", "classify", "classify_iter"])
async def test_the_requests_of_a_big_input_are_below_its_call_though_threads_send_them(
    method: str, served: Any, heard: list[dict[str, str]], spans: InMemorySpanExporter, tracer: trace.Tracer
) -> None:
    images = np.zeros((30, 4, 4, 1), np.uint8)  # in batches of 4
    given: Any = {"image": images} if method == "infer" else images
    with Client(served.url) as client, tracer.start_as_current_span("thread"):
        answers = getattr(client, method)("digits", given)
        if method == "classify_iter":
            list(answers)
    async with AsyncClient(served.url) as aclient:
        with tracer.start_as_current_span("loop"):
            answers = getattr(aclient, method)("digits", given)
            if method == "classify_iter":
                assert len([answer async for answer in answers]) == 30
            else:
                await answers
    ended = of(spans)[0]
    mine = {span.name: span for span in ended if span.name in ("thread", "loop")}
    calls = [span for span in ended if span.name == f"convoy.{method}"]
    assert [is_below(call, mine[name]) for call, name in zip(calls, ("thread", "loop"), strict=True)] == [True, True]
    sent = [request for request in of(spans)[1] if request.name.lower().endswith("infer")]
    assert len(sent) == 16
    assert all(sum(is_below(request, call) for request in sent) == 8 for call in calls)
    assert {headers["traceparent"] for headers in heard} == {header_of(request) for request in of(spans)[1]}


async def test_the_callers_context_is_there_in_the_threads_and_tasks_that_send(fake: FakeTransport) -> None:
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")
    found: list[str] = []

    class Curious(FakeTransport):
        def send(self, call: Call[Any], timeout_s: float) -> Any:
            found.append(tenant.get())
            return super().send(call, timeout_s)

    curious = Curious(fake.models)
    images = np.zeros((30, 4, 4, 1), np.uint8)
    token = tenant.set("blue")
    with Client(transport=curious, hedge_after_s=5) as client:
        client.classify("digits", images)
    async with AsyncClient(transport=AsyncFakeTransport(curious), hedge_after_s=5) as aclient:
        await aclient.classify("digits", images)
    tenant.reset(token)
    assert set(found) == {"blue"}
    assert len(found) >= 18  # 8 parts and the look-up of each client


async def test_a_call_is_the_current_span_within_and_the_callers_is_after(
    fake: FakeTransport, spans: InMemorySpanExporter, tracer: trace.Tracer
) -> None:
    def progress(_: int) -> None:
        tracer.start_span("progress").end()

    images = np.zeros((9, 4, 4, 1), np.uint8)
    with tracer.start_as_current_span("caller") as caller:
        with Client(transport=fake) as client:
            client.classify("digits", images, progress=progress)
            assert trace.get_current_span() is caller
            with pytest.raises(InvalidRequestError):
                client.infer("echo", {"y": X})
            assert trace.get_current_span() is caller
        async with AsyncClient(transport=AsyncFakeTransport(fake)) as aclient:
            await asyncio.gather(*(aclient.classify("digits", images, progress=progress) for _ in range(5)))
            assert trace.get_current_span() is caller
    ended = of(spans)[0]
    calls = [span for span in ended if span.name == "convoy.classify"]
    for call in calls:
        assert sum(is_below(span, call) for span in ended if span.name == "progress") == 3


async def test_between_the_answers_of_an_iterator_the_callers_span_is_the_current_one(
    fake: FakeTransport, spans: InMemorySpanExporter, tracer: trace.Tracer
) -> None:
    images = np.zeros((9, 4, 4, 1), np.uint8)
    with tracer.start_as_current_span("caller") as caller:
        with Client(transport=fake) as client:
            for _ in client.classify_iter("digits", images):
                assert trace.get_current_span() is caller
            for _ in client.classify_iter("digits", images):
                break
            client.classify_iter("digits", images)  # and never asked for an answer
        async with AsyncClient(transport=AsyncFakeTransport(fake)) as aclient:
            async for _ in aclient.classify_iter("digits", images):
                assert trace.get_current_span() is caller
    calls = [span for span in of(spans)[0] if span.name == "convoy.classify_iter"]
    assert [bool(call.attributes and call.attributes.get("convoy.cancelled")) for call in calls] == [False, True, True, False]
    assert all(call.status.status_code is StatusCode.UNSET for call in calls)


class Slow(AsyncFakeTransport):
    """Answers every other inference late."""

    n = 0

    async def send(self, call: Call[Any], timeout_s: float) -> Any:
        if isinstance(call, Infer):
            self.n += 1
            if self.n % 2:
                await asyncio.sleep(2)
        return await super().send(call, timeout_s)


async def test_a_hedge_is_a_second_span_and_the_one_that_lost_is_cancelled(
    fake: FakeTransport, spans: InMemorySpanExporter
) -> None:
    async with AsyncClient(transport=Slow(fake), hedge_after_s=0.01) as aclient:
        await aclient.infer("echo", {"x": X})
        await asyncio.sleep(0.01)  # the one that lost takes its leave
    (call,), requests = of(spans)
    lost, won = [request for request in requests if request.name.endswith("ModelInfer")]
    assert [is_below(request, call) for request in (lost, won)] == [True, True]
    assert lost.attributes
    assert won.attributes
    assert (lost.attributes["convoy.attempt"], won.attributes["convoy.attempt"]) == (1, 2)
    assert lost.attributes["convoy.cancelled"]
    assert "convoy.cancelled" not in won.attributes
    assert [event.name for event in call.events] == ["convoy.hedge"]


async def test_an_inference_that_went_with_others_names_the_request_that_answered_it(
    spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    class Unhurried(AsyncFakeTransport):
        async def send(self, call: Call[Any], timeout_s: float) -> Any:
            await asyncio.sleep(0.005)
            return await super().send(call, timeout_s)

    model = FakeModel(lambda inputs: dict(inputs), {"x": ("FP32", (-1, 2))}, {"max_batch_size": 16, "dynamic_batching": {}})
    fake = FakeTransport({"m": model})
    async with AsyncClient(transport=Unhurried(fake)) as aclient:
        await aclient.infer("m", {"x": X})
        with caplog.at_level(logging.DEBUG, "convoy.client"):
            await asyncio.gather(*(aclient.infer("m", {"x": X}) for _ in range(30)))
    sent = {call.request_id for call in fake.calls if isinstance(call, Infer)}
    calls, _ = of(spans)
    merged = {
        (call.attributes or {})["convoy.request.id"]: (event.attributes or {})["convoy.request.id"]
        for call in calls
        for event in call.events
        if event.name == "convoy.merge"
    }
    assert merged
    assert sent.isdisjoint(merged)
    assert sent | merged.keys() == {(call.attributes or {})["convoy.request.id"] for call in calls}
    assert sent >= set(merged.values())
    logged = dict(
        message.removeprefix("request ").split(": answered with others by request ")
        for message in caplog.messages
        if "with others" in message
    )
    assert logged == merged


def test_a_hedge_that_goes_on_after_its_call_harms_nobody(
    fake: FakeTransport, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    class Late(FakeTransport):
        n = 0

        def send(self, call: Call[Any], timeout_s: float) -> Any:
            if isinstance(call, Infer):
                self.n += 1
                if self.n == 1:
                    time.sleep(0.1)
                    raise UnavailableError("gone")
            return super().send(call, timeout_s)

    client = Client(transport=Late(fake.models), hedge_after_s=0.001, retry=AT_ONCE)
    client.infer("echo", {"x": X})
    deadline = time.monotonic() + 10
    while len(of(spans)[1]) < 4 and time.monotonic() < deadline:  # metadata, the late one, its hedge, its retry
        time.sleep(0.01)
    (call,), requests = of(spans)
    assert len(requests) == 4
    assert all(is_below(request, call) for request in requests)
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


async def test_a_call_that_is_cancelled_is_no_failure(fake: FakeTransport, spans: InMemorySpanExporter) -> None:
    async with AsyncClient(transport=Slow(fake)) as aclient:
        task = asyncio.ensure_future(aclient.infer("echo", {"x": X}))
        while not fake.calls:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    (call,), requests = of(spans)
    for span in (call, requests[-1]):
        assert span.attributes
        assert span.attributes["convoy.cancelled"]
        assert span.status.status_code is StatusCode.UNSET


async def test_a_deadline_that_is_missed_is_an_error_of_request_and_call(fake: FakeTransport, spans: InMemorySpanExporter) -> None:
    fake.failures.append(DeadlineExceededError("too late"))
    with pytest.raises(DeadlineExceededError):
        Client(transport=fake).models()
    (call,), (request,) = of(spans)
    assert request.status.description == "too late"
    assert str(call.status.description).startswith("too late The whole call had 30 s.")


async def test_where_nobody_is_there_calls_say_no_and_their_requests_failed(
    fake: FakeTransport, spans: InMemorySpanExporter
) -> None:
    fake.failures.append(UnavailableError("nobody"))
    assert not Client(transport=fake).live()
    (call,), (request,) = of(spans)
    assert (call.name, call.status.status_code) == ("convoy.live", StatusCode.UNSET)
    assert request.status.status_code is StatusCode.ERROR
