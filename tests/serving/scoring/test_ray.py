"""What Ray's engine does around Ray; the workers run here, one call after the other. tests/integration has the real cluster."""

from __future__ import annotations

import pickle
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from convoy.contract.errors import (
    AuthenticationError,
    ConvoyError,
    InvalidRequestError,
    MissingDependencyError,
    ScoringError,
    UsageError,
)
from convoy.serving.client import Tls
from convoy.serving.client.testing import FakeTransport
from convoy.serving.scoring import Progress, score
from convoy.serving.scoring._local import MOST_REFUSED

pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
_ray = pytest.importorskip("convoy.serving.scoring._ray")


class FakeRayError(Exception):
    """What Ray raises."""


class Handle:
    """An actor's handle: calls are made at once."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self.actor, name))


class FakeRay(ModuleType):
    """As much of Ray as the engine uses, without processes. Items are given out backwards."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.exceptions = SimpleNamespace(RayError=FakeRayError)
        self.desks: list[Any] = []
        self.pipelines = 0
        self.item_takes_s = 0.0
        self.break_after: list[int] = []  # so many items, and the pipeline breaks: one number for each pipeline
        context = SimpleNamespace(enable_progress_bars=True)
        self.data = SimpleNamespace(
            range=self._range,
            ActorPoolStrategy=SimpleNamespace,
            DataContext=SimpleNamespace(get_current=lambda: context),
        )

    def is_initialized(self) -> bool:
        return True

    def get(self, value: Any) -> Any:
        return value

    def kill(self, actor: Handle) -> None:
        self.desks.remove(actor)
        actor.actor._file.close()  # as the end of its process does

    def remote(self, **_options: Any) -> Callable[[type], Any]:
        def make(*arguments: Any) -> Handle:
            self.desks.append(Handle(_ray.Desk(*arguments)))
            return self.desks[-1]

        return lambda _kind: SimpleNamespace(remote=make)

    def _range(self, n: int, override_num_blocks: int) -> Any:
        assert n == override_num_blocks
        self.pipelines += 1

        def map_batches(kind: type, fn_constructor_args: tuple[Any, ...], compute: Any, **_options: Any) -> Any:
            description, desk = fn_constructor_args
            workers = [kind(pickle.loads(pickle.dumps(description)), desk) for _ in range(compute.size)]

            def iter_batches(**_options: Any) -> Iterator[Any]:
                left = self.break_after.pop(0) if self.break_after else n
                for place in reversed(range(n)):
                    if not left:
                        raise FakeRayError("a trace\nThe node is gone.")
                    left -= 1
                    time.sleep(self.item_takes_s)
                    yield workers[place % len(workers)](pa.table({"id": [place]}))

            return SimpleNamespace(iter_batches=iter_batches)

        return SimpleNamespace(map_batches=map_batches)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch, fake: FakeTransport) -> FakeRay:
    module = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setattr(_ray, "import_ray", lambda: module)
    monkeypatch.setattr("convoy.serving.client._client.open_transport", lambda *_arguments: fake)
    return module


@pytest.fixture
def source(tmp_path: Path, write_image: Callable[[Path, int], Path]) -> Path:
    for i in range(22):
        write_image(tmp_path / "set" / "abc"[i % 3] / f"{i:02}.png", i)
    (tmp_path / "set" / "a" / "03.png").write_bytes(b"no image")
    return tmp_path / "set"


def begin(source: Any, out: Path, engine: Any = "ray", **options: Any) -> Any:
    return score("digits", source, out, engine=engine, chunk_rows=4, rows_per_file=8, **options)


def rows_of(out: Path) -> Any:
    return pa.concat_tables([parquet.read_table(path) for path in sorted(out.glob("part-*"))]).drop(["latency_ms"])


def test_the_rows_are_those_of_the_local_engine(ray: FakeRay, source: Path, tmp_path: Path) -> None:
    told: list[Progress] = []
    summary = begin(source, tmp_path / "out", on_progress=told.append).finish()
    expected = begin(source, tmp_path / "local", "local").finish()
    assert (summary.n, summary.n_scored, summary.n_failed) == (expected.n, expected.n_scored, expected.n_failed) == (22, 21, 1)
    assert rows_of(tmp_path / "out").equals(rows_of(tmp_path / "local"))
    assert (told[-1].done, told[-1].failed) == (22, 1)
    assert all(latency_ms > 0 for latency_ms in told[-1].latencies_ms)
    assert ray.desks == []


def test_many_chunks_are_more_than_one_pipeline(
    ray: FakeRay, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ray, "MOST_AT_ONCE", 4)
    begin(source, tmp_path / "out").finish()
    assert ray.pipelines == 2
    assert rows_of(tmp_path / "out").column("row").to_pylist() == list(range(22))


def test_a_pipeline_that_breaks_is_begun_anew_with_what_is_left(ray: FakeRay, source: Path, tmp_path: Path) -> None:
    ray.break_after = [2, 1]
    begin(source, tmp_path / "out").finish()
    assert ray.pipelines == 3
    assert rows_of(tmp_path / "out").column("row").to_pylist() == list(range(22))


def test_a_pipeline_that_breaks_before_anything_is_done_ends_the_run_and_it_can_go_on(
    ray: FakeRay, source: Path, tmp_path: Path
) -> None:
    ray.break_after = [2, 0]
    with pytest.raises(ScoringError, match=r"Ray gave up: The node is gone\. \d of 22") as caught:
        begin(source, tmp_path / "out").finish()
    assert "a trace" not in str(caught.value)
    assert begin(source, tmp_path / "out", "local").finish().n_resumed <= 6
    assert rows_of(tmp_path / "out").column("row").to_pylist() == list(range(22))


def test_what_ends_a_local_run_ends_this_one_with_the_same_words(
    ray: FakeRay, fake: FakeTransport, source: Path, tmp_path: Path
) -> None:
    said = []
    refusal = AuthenticationError("who are you?")
    for engine in ("local", "ray"):
        run = begin(source, tmp_path / engine, engine, on_progress=lambda _progress: fake.failures.append(refusal))
        with pytest.raises(ScoringError) as caught:
            run.finish()
        fake.failures.clear()
        said.append(str(caught.value).replace(engine, "").split(" of 22")[0].rsplit(" ", 1)[0])
    assert "does not let this client in any more. who are you?" in said[0]
    assert said[0] == said[1]


def test_refusals_are_counted_over_chunks() -> None:
    batches = list(_ray._batches({"batches": [[2, 2, 0.0, ["InvalidRequestError", "no"]]] * 2}))
    assert [(rows.n, rows.n_failed) for rows in batches] == [(2, 2), (2, 2)]
    assert isinstance(batches[0].refused, InvalidRequestError)
    refusals = _ray.Refusals()
    for _ in range(MOST_REFUSED - 1):
        refusals.count(batches[0].refused)
    with pytest.raises(ScoringError, match=f"refused {MOST_REFUSED} batches"):
        refusals.count(batches[1].refused)


def test_errors_keep_their_kind_on_the_way() -> None:
    error = _ray._error("AuthenticationError", "no")
    assert (type(error), str(error)) == (AuthenticationError, "no")
    for name in ("Exception", "ClassVar", "annotations", "NoSuchError"):
        assert type(_ray._error(name, "no")) is ScoringError


def test_a_worker_of_another_version_is_refused(
    ray: FakeRay, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    describe = _ray._describe

    def elsewhere(*arguments: Any) -> Any:
        found = describe(*arguments)
        monkeypatch.setattr("convoy.__version__", "9.9")
        return found

    monkeypatch.setattr(_ray, "_describe", elsewhere)
    with pytest.raises(ScoringError, match=r"the Ray worker on .*: expected Convoy .*, as the driver has it, found 9\.9"):
        begin(source, tmp_path / "out").finish()


def test_a_worker_that_finds_another_model_is_refused(
    ray: FakeRay, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = _ray.Served.pin

    def another(*arguments: Any, **options: Any) -> Any:
        served = pin(*arguments, **options)
        served.digest = "b" * 64
        return served

    monkeypatch.setattr(_ray, "Served", SimpleNamespace(pin=another))
    with pytest.raises(ScoringError, match="expected the model's digest None, as the driver has it, found bbbb"):
        begin(source, tmp_path / "out").finish()


def test_a_worker_that_cannot_open_the_source_says_where_and_what_to_do(
    ray: FakeRay, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_arguments: Any, **_options: Any) -> Any:
        raise UsageError("x: cannot be read: No such file.")

    monkeypatch.setattr(_ray, "open_source", gone)
    with pytest.raises(ScoringError, match=r"the Ray worker on .* cannot open the source: x: cannot be read.* share, or URLs"):
        begin(source, tmp_path / "out").finish()


def test_the_desk_gives_nothing_new_out_once_it_is_stopped() -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, pa.schema([("key", pa.string())])) as writer:
        for name in "abc":
            writer.write_batch(pa.record_batch([[name]], ["key"]))
    data = sink.getvalue().to_pybytes()
    desk = _ray.Desk([2, 0])
    for piece in (data[:10], data[10:], b""):
        desk.take(piece)
    number, batch = desk.chunk(0)
    assert (number, batch.column("key").to_pylist()) == (2, ["c"])
    assert not desk.is_stopped()
    assert desk.stop() == {2}
    assert desk.is_stopped()
    assert desk.chunk(1) == (0, None)
    assert desk.chunk(0)[1] is not None  # begun, and given out again after a kill
    desk._file.close()


def test_a_run_that_is_stopped_keeps_what_was_begun(
    ray: FakeRay, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ray, "_WATCH_S", 0.001)
    ray.item_takes_s = 0.05
    run = begin(source, tmp_path / "out", on_progress=lambda progress: progress.done and run.stop())
    with pytest.raises(ScoringError, match="it was asked to stop"):
        run.finish()
    summary = begin(source, tmp_path / "out").finish()
    assert 0 < summary.n_resumed < 22
    assert rows_of(tmp_path / "out").column("row").to_pylist() == list(range(22))


def test_what_workers_are_told_can_be_sent() -> None:
    description = _ray._Description(
        convoy_version="1", run="r", urls=("grpc://a:1",), tls=Tls(ca_file="ca.pem"), headers={"a": "b"}, timeout_s=1.0,
        patience_s=1.0, in_flight=1, model_name="m", model_version="1", model_sha256=None, interface_sha256="i", top_k=1,
        source="s3://b/x", source_kind="folder", labels_from_folders=False, column=None, label_column=None,
        box=(1, 2, 3, 4), storage_options={"key": "k"}, chunk_rows=4,
    )  # fmt: skip
    assert pickle.loads(pickle.dumps(description)) == description


def test_wrong_use_is_said_at_once(tmp_path: Path, client: Any) -> None:
    for options, words in (({"client": client}, "client"), ({"in_process": tmp_path}, "in_process")):
        with pytest.raises(UsageError, match=words):
            begin(tmp_path, tmp_path / "out", **options)
    with pytest.raises(UsageError, match="standard input"):
        begin("-", tmp_path / "out")


def test_rays_client_is_refused(ray: FakeRay, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises((UsageError, ScoringError), match="ray job submit"):
        begin(source, tmp_path / "out").finish()


def test_without_ray_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install '\.\[ray\]'") as caught:
        begin(tmp_path, tmp_path / "out")
    assert isinstance(caught.value, ConvoyError)
