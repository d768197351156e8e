"""Counters and histograms for Prometheus: what is counted, and that it adds up over processes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from convoy.contract.errors import (
    InvalidRequestError,
    MissingDependencyError,
    ModelNotFoundError,
    OverloadedError,
    UnavailableError,
    UsageError,
)
from convoy.serving.client import AsyncClient, Client, Retry
from convoy.serving.client._call import Call, Infer
from convoy.serving.client.metrics import BUCKETS_S, ClientMetrics
from convoy.serving.client.testing import AsyncFakeTransport, FakeModel, FakeTransport

X = np.ones((1, 2), np.float32)
AT_ONCE = Retry(first_pause_s=0.001, longest_pause_s=0.002)


@pytest.fixture
def registry() -> CollectorRegistry:
    """Where a test's metrics are registered."""
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> ClientMetrics:
    """Metrics in ``registry``."""
    return ClientMetrics(registry)


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    return registry.get_sample_value(f"convoy_client_{name}", labels) or 0.0


async def test_calls_are_counted_by_model_method_and_outcome(
    fake: FakeTransport, registry: CollectorRegistry, metrics: ClientMetrics
) -> None:
    with Client(transport=fake, metrics=metrics) as client:
        client.infer("echo", {"x": X})
        client.classify("digits", np.zeros((9, 4, 4, 1), np.uint8))
        list(client.classify_iter("digits", np.zeros((9, 4, 4, 1), np.uint8)))
        client.models()
        for _ in range(2):
            with pytest.raises(ModelNotFoundError):
                client.metadata("nobody")
        with pytest.raises(InvalidRequestError):
            client.infer("echo", {"y": X})  # refused without a request
    async with AsyncClient(transport=AsyncFakeTransport(fake), metrics=metrics) as aclient:
        await aclient.infer("echo", {"x": X})
    for model, method, outcome, n in (
        ("echo", "infer", "ok", 2),
        ("echo", "infer", "InvalidRequestError", 1),
        ("digits", "classify", "ok", 1),
        ("digits", "classify_iter", "ok", 1),
        ("", "models", "ok", 1),
        ("nobody", "metadata", "ModelNotFoundError", 2),
    ):
        assert value(registry, "requests_total", model=model, method=method, outcome=outcome) == n
    assert value(registry, "request_seconds_count", model="echo", method="infer") == 3
    assert 0 < value(registry, "request_seconds_sum", model="echo", method="infer") < 30
    answered = value(registry, "attempts_total", endpoint="grpc://localhost:8001", outcome="ok")
    assert answered == len(fake.calls) - 2
    assert value(registry, "attempts_total", endpoint="grpc://localhost:8001", outcome="ModelNotFoundError") == 2


def test_buckets_reach_from_half_a_millisecond_to_a_minute(registry: CollectorRegistry, metrics: ClientMetrics) -> None:
    assert (BUCKETS_S[0], BUCKETS_S[-1]) == (0.0005, 60.0)
    assert list(BUCKETS_S) == sorted(BUCKETS_S)
    Client(transport=FakeTransport({}), metrics=metrics).live()
    bounds = [
        sample.labels["le"]
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "convoy_client_request_seconds_bucket"
    ]
    assert [float(bound) for bound in bounds] == [*BUCKETS_S, float("inf")]


def test_calls_under_way_are_gauged(fake: FakeTransport, registry: CollectorRegistry, metrics: ClientMetrics) -> None:
    entered, leave = threading.Event(), threading.Event()

    class Holding(FakeTransport):
        def send(self, call: Call[Any], timeout_s: float) -> Any:
            entered.set()
            leave.wait(20)
            return super().send(call, timeout_s)

    client = Client(transport=Holding(fake.models), metrics=metrics)
    thread = threading.Thread(target=client.metadata, args=("echo",))
    thread.start()
    assert entered.wait(10)
    assert value(registry, "in_flight", model="echo", method="metadata") == 1
    assert value(registry, "requests_total", model="echo", method="metadata", outcome="ok") == 0
    leave.set()
    thread.join(10)
    assert value(registry, "in_flight", model="echo", method="metadata") == 0
    assert value(registry, "requests_total", model="echo", method="metadata", outcome="ok") == 1


async def test_calls_that_are_left_are_cancelled_and_not_under_way_for_ever(
    fake: FakeTransport, registry: CollectorRegistry, metrics: ClientMetrics
) -> None:
    images = np.zeros((9, 4, 4, 1), np.uint8)
    with Client(transport=fake, metrics=metrics) as client:
        client.classify_iter("digits", images)  # and never asked for an answer
        for _ in client.classify_iter("digits", images):
            break
    assert value(registry, "requests_total", model="digits", method="classify_iter", outcome="cancelled") == 2
    assert value(registry, "in_flight", model="digits", method="classify_iter") == 0

    class Late(AsyncFakeTransport):
        async def send(self, call: Call[Any], timeout_s: float) -> Any:
            await asyncio.sleep(20)

    async with AsyncClient(transport=Late(fake), metrics=metrics) as aclient:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(aclient.metadata("echo"), 0.01)
    assert value(registry, "requests_total", model="echo", method="metadata", outcome="cancelled") == 1
    assert value(registry, "in_flight", model="echo", method="metadata") == 0
    assert value(registry, "attempts_total", endpoint="grpc://localhost:8001", outcome="cancelled") == 1


def test_retries_hedges_and_servers_that_go_out_are_counted(
    fake: FakeTransport, registry: CollectorRegistry, metrics: ClientMetrics
) -> None:
    class Slow(FakeTransport):
        def send(self, call: Call[Any], timeout_s: float) -> Any:
            if isinstance(call, Infer):
                time.sleep(0.03)
            return super().send(call, timeout_s)

    client = Client(transport=fake, metrics=metrics, retry=AT_ONCE)
    fake.failures.extend([OverloadedError("full"), UnavailableError("gone")])
    client.metadata("echo")
    assert value(registry, "retries_total", reason="OverloadedError") == 1
    assert value(registry, "retries_total", reason="UnavailableError") == 1
    assert value(registry, "ejections_total", endpoint="grpc://localhost:8001") == 0  # the only one is never left alone
    Client(transport=Slow(fake.models), metrics=metrics, hedge_after_s=0.001).infer("echo", {"x": X})
    assert value(registry, "hedges_total") == 1

    servers = {"grpc://a:1": fake, "grpc://b:1": FakeTransport(fake.models)}
    both = Client(list(servers), transport=servers, metrics=metrics, retry=None)
    fake.failures.extend([UnavailableError("gone")] * 50)
    for _ in range(30):
        both.metadata("echo")
    assert value(registry, "ejections_total", endpoint="grpc://a:1") == 1
    assert value(registry, "ejections_total", endpoint="grpc://b:1") == 0
    assert value(registry, "retries_total", reason="UnavailableError") == 2  # the other server was asked at once


def test_a_part_that_the_server_had_no_room_for_is_a_retry_too(
    fake: FakeTransport, registry: CollectorRegistry, metrics: ClientMetrics
) -> None:
    with Client(transport=fake, metrics=metrics, retry=Retry(attempts=1, first_pause_s=0)) as client:
        client.interface("digits")
        client.classify("digits", np.zeros((4, 4, 4, 1), np.uint8))
        fake.failures.append(OverloadedError("full"))
        client.classify("digits", np.zeros((40, 4, 4, 1), np.uint8))
    assert value(registry, "retries_total", reason="OverloadedError") == 1


async def test_inferences_that_shared_a_request_are_counted(registry: CollectorRegistry, metrics: ClientMetrics) -> None:
    class Slow(AsyncFakeTransport):
        async def send(self, call: Call[Any], timeout_s: float) -> Any:
            await asyncio.sleep(0.005)
            return await super().send(call, timeout_s)

    model = FakeModel(lambda inputs: dict(inputs), {"x": ("FP32", (-1, 2))}, {"max_batch_size": 16, "dynamic_batching": {}})
    fake = FakeTransport({"m": model})
    async with AsyncClient(transport=Slow(fake), metrics=metrics) as client:
        await client.infer("m", {"x": X})
        await asyncio.gather(*(client.infer("m", {"x": X}) for _ in range(50)))
    sent = [call for call in fake.calls if isinstance(call, Infer)]
    assert value(registry, "requests_total", model="m", method="infer", outcome="ok") == 51
    assert value(registry, "merges_total") == 51 - len(sent) > 0


def test_names_that_strangers_type_do_not_fill_the_memory(registry: CollectorRegistry) -> None:
    metrics = ClientMetrics(registry, most_models=3)
    client = Client(transport=FakeTransport({}), metrics=metrics)
    for i in range(50):
        with pytest.raises(ModelNotFoundError):
            client.metadata(f"model-{i}")
    client.live()
    counted = {sample.labels["model"] for metric in registry.collect() for sample in metric.samples if "model" in sample.labels}
    assert counted == {"model-0", "model-1", "model-2", "_other", ""}
    assert value(registry, "requests_total", model="_other", method="metadata", outcome="ModelNotFoundError") == 47


async def test_no_label_holds_a_version_an_id_or_an_address(
    registry: CollectorRegistry, metrics: ClientMetrics, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convoy.serving.client._base.look_up", lambda _: ["127.0.0.1", "127.0.0.2"])
    monkeypatch.setattr("convoy.serving.client._router.LOOK_UP_S", 0.0)
    with Client(f"{served.url.split(':')[0]}://triton.invalid:{served.port}", metrics=metrics, timeout_s=20) as client:
        deadline = time.monotonic() + 10
        while b"_ejections_total{" not in generate_latest(registry) and time.monotonic() < deadline:
            client.live()
            time.sleep(0.01)
        client.infer("echo", {"x": X}, model_version="1", request_id="my-id")
    text = generate_latest(registry).decode()
    assert "my-id" not in text
    assert "127.0.0" not in text
    assert f'convoy_client_ejections_total{{endpoint="{client.url}"}} 1.0' in text
    labels = {label for metric in registry.collect() for sample in metric.samples for label in sample.labels}
    assert labels == {"model", "method", "outcome", "endpoint", "reason", "le"}


WORK = """
import sys
import numpy as np
from convoy import Client
from convoy.contract.errors import ModelNotFoundError
from convoy.serving.client.metrics import ClientMetrics
from convoy.serving.client.testing import FakeModel, FakeTransport

fake = FakeTransport({"echo": FakeModel.of_tensors({"x": ("FP32", (-1, 2))}, lambda inputs: {"y": inputs["x"]})})
client = Client(transport=fake, metrics=ClientMetrics())
for _ in range(int(sys.argv[1])):
    client.infer("echo", {"x": np.ones((1, 2), np.float32)})
try:
    client.metadata("nobody")
except ModelNotFoundError:
    pass
"""


def test_counters_and_histograms_add_up_over_processes(tmp_path: Path) -> None:
    import os

    from prometheus_client.multiprocess import MultiProcessCollector

    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for n in (3, 5):
        subprocess.run([sys.executable, "-c", WORK, str(n)], env=environment, check=True, timeout=120)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(tmp_path))
    assert value(registry, "requests_total", model="echo", method="infer", outcome="ok") == 8
    assert value(registry, "requests_total", model="nobody", method="metadata", outcome="ModelNotFoundError") == 2
    assert value(registry, "request_seconds_count", model="echo", method="infer") == 8
    assert value(registry, "request_seconds_bucket", model="echo", method="infer", le="60.0") == 8
    assert value(registry, "attempts_total", endpoint="grpc://localhost:8001", outcome="ok") == 10


def test_without_prometheus_client_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingDependencyError, match="pip install prometheus-client"):
        ClientMetrics()


def test_metrics_that_are_none_are_refused(registry: CollectorRegistry, metrics: ClientMetrics) -> None:
    with pytest.raises(UsageError, match="metrics: expected a ClientMetrics, or None for none, found CollectorRegistry"):
        Client(metrics=registry)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="Give all clients of a registry the same ClientMetrics"):
        ClientMetrics(registry)
    other = CollectorRegistry()
    with pytest.raises(UsageError, match="ascending buckets"):
        ClientMetrics(other, buckets_s=(1.0, 0.5))
    ClientMetrics(other)  # nothing was registered by halves
