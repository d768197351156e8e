"""The supervisor's judgement, with a server that does what the test says."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from convoy.contract.errors import DeadlineExceededError, ServerError, ServerFailureError, UnavailableError
from convoy.serving.client import ModelStatus
from convoy.serving.triton import guard
from convoy.serving.triton import supervisor as module
from convoy.serving.triton.proof import Proof
from convoy.serving.triton.server import Served
from convoy.serving.triton.stub import Stub
from convoy.serving.triton.supervisor import STUCK_S, Supervisor
from convoy.serving.triton.watched import describe


@dataclass
class FakeServer:
    """A server of one model, ``m``, in version 1; stands for its client too."""

    repository: Path
    served: Served = field(default_factory=lambda: Served((Proof("m", "1", 0, None),), {}))
    running: bool = True
    crashed: bool = False
    shm_prefix: str = "convoy_no_such_server_"
    ready: str = "1"
    stubs: int = 1
    generation: int = 0
    refusal: str = ""
    answer: Exception | None = None
    log_text: str = ""
    calls: list[str] = field(default_factory=list)

    @property
    def client(self) -> Any:
        return self

    def pid(self) -> int:
        return 1

    def died(self) -> ServerError:
        return ServerError("tritonserver was killed by signal 9.")

    def ends_within(self, timeout_s: float) -> bool:
        return not self.running

    @property
    def log(self) -> Any:
        return self

    def position(self) -> int:
        return 0

    def explain(self, error: Exception, since: int) -> str:
        return f"{error}{self.log_text}"

    def models(self, timeout_s: float) -> list[ModelStatus]:
        return [ModelStatus("m", self.ready or "1", "READY" if self.ready else "UNAVAILABLE", "" if self.ready else "unloaded")]

    def restart(self, models: list[str]) -> Served:
        self.calls.append(f"restart with {models}")
        self.running = True
        self.stubs, self.ready, self.answer = 1, "1", None
        self.generation += 1
        return self.served

    def config(self, name: str) -> dict[str, Any]:
        return {"instance_group": [{"count": 1}]}

    def find_stubs(self, pid: int) -> list[Stub]:
        return [Stub(10 + self.generation, "m", "1", "m_0", f"segment {self.generation}")] * self.stubs

    def unload(self, name: str) -> None:
        self.calls.append(f"unload {name}")
        self.stubs, self.ready = 0, ""

    def load(self, name: str) -> None:
        self.calls.append(f"load {name}")
        if self.refusal:
            raise ServerError(self.refusal)
        if self.ready and not self.stubs:
            raise ServerError("Stub process 'm_0' is not healthy.")
        self.stubs, self.ready, self.answer = 1, "1", None
        self.generation += 1


class Inline(Executor):
    """Does at once what it is given, unless it is held up: then when it is let go."""

    def __init__(self) -> None:
        self.held: list[Callable[[], None]] | None = None

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def carry_out() -> None:
            try:
                future.set_result(work(*arguments, **options))
            except BaseException as error:
                future.set_exception(error)

        if self.held is None:
            carry_out()
        else:
            self.held.append(carry_out)
        return future

    def let_go(self) -> None:
        held, self.held = self.held or [], None
        for carry_out in held:
            carry_out()


class Clock:
    """``time`` for the supervisor."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class Scene:
    server: FakeServer
    supervisor: Supervisor
    clock: Clock
    said: list[str]
    killed: list[int]
    workers: Inline
    memory: Path

    def ticks(self, n: int, seconds: float = 0.5) -> list[str]:
        """Let time pass; returns what was said meanwhile."""
        before = len(self.said)
        for _ in range(n):
            self.clock.now += seconds
            self.supervisor.tick()
        return self.said[before:]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scene]:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "config.pbtxt").write_text("one")

    def make(**changes: Any) -> Scene:
        server, clock, said = FakeServer(tmp_path, **changes), Clock(), list[str]()

        def ask(client: Any, name: str, timeout_s: float) -> str:
            if server.answer is not None:
                raise server.answer
            return server.ready

        monkeypatch.setattr(module, "time", clock)
        monkeypatch.setattr(module, "ask", ask)
        monkeypatch.setattr(module, "prove", lambda client, repository, name: Proof(name, server.ready, 0, None))
        monkeypatch.setattr(module, "find_stubs", server.find_stubs)
        killed: list[int] = []
        monkeypatch.setattr(module.os, "kill", lambda pid, number: killed.append(pid))
        workers, memory = Inline(), tmp_path.with_name(f"{tmp_path.name}-memory")
        memory.mkdir()
        monkeypatch.setattr(guard, "SHM", memory)
        supervisor = Supervisor(server, said.append, workers)  # type: ignore[arg-type]
        return Scene(server, supervisor, clock, said, killed, workers, memory)

    return make


def test_all_well_is_silence(scene: Callable[..., Scene]) -> None:
    it = scene()

    assert it.ticks(20) == []
    assert it.server.calls == []


def test_a_dead_server_ends_the_supervision(scene: Callable[..., Scene]) -> None:
    it = scene()
    it.server.running = False

    with pytest.raises(ServerError, match="killed by signal 9"):
        it.supervisor.run(threading.Event())


def test_a_server_that_crashes_is_started_again_but_not_a_fourth_time_within_a_minute(scene: Callable[..., Scene]) -> None:
    it = scene(crashed=True)
    for _ in range(3):
        it.server.running = False
        said = it.ticks(1)

        assert said[0] == "tritonserver was killed by signal 9.\nStarting it again."
        assert said[1].endswith("and serves m.")
        assert it.ticks(3) == []

    it.server.running = False
    with pytest.raises(ServerError):
        it.ticks(1)
    it.clock.now += 60
    it.ticks(1)
    assert it.server.calls == ["restart with ['m']"] * 4


def test_a_load_that_a_crash_cuts_short_is_forgotten(scene: Callable[..., Scene]) -> None:
    it = scene(crashed=True)
    it.workers.held = []
    it.server.stubs = 0
    it.ticks(1)

    it.server.running = False
    it.ticks(1)
    it.workers.let_go()

    assert it.ticks(3) == []
    assert it.server.calls[:2] == ["unload m", "restart with ['m']"]


def test_a_dead_process_is_healed_at_the_first_look(scene: Callable[..., Scene]) -> None:
    it = scene()
    it.server.stubs = 0

    said = it.ticks(1)

    assert it.server.calls == ["unload m", "load m"]
    assert "m: its backend process died; loading it again." in said
    assert "m: answers again" in said[1]


def test_a_process_that_hangs_is_killed_and_healed(scene: Callable[..., Scene]) -> None:
    it = scene()
    it.server.answer = ServerFailureError("Stub process 'm_0' is not healthy.")

    said = it.ticks(5)

    assert it.killed == [10]
    assert "does not answer; loading it again" in said[0]
    assert it.server.calls == ["unload m", "load m"]


def test_one_that_keeps_dying_is_loaded_ever_less_often_and_never_given_up(scene: Callable[..., Scene]) -> None:
    it = scene()
    loads: list[float] = []
    start = it.clock.now
    for _ in range(800):
        before = it.server.calls.count("load m")
        it.server.stubs = 0
        it.ticks(1)
        if it.server.calls.count("load m") > before:
            loads.append(it.clock.now - start)

    gaps = [later - earlier for earlier, later in itertools.pairwise(loads)]
    assert gaps[:11] == [0.5, 0.5, 0.5, 0.5, 0.5, 1, 2, 4, 8, 16, 32]
    assert gaps[-1] == 60
    assert "m: its backend process died; it died not long ago, too; it is loaded again in 2 s." in it.said
    assert len(it.said) < 3 * len(loads), "a death and its mending are said once each"


def test_one_that_is_to_wait_is_unloaded_at_once_so_that_callers_are_refused(scene: Callable[..., Scene]) -> None:
    it = scene()
    while "not long ago" not in "".join(it.said):
        it.server.stubs = 0
        it.ticks(1)

    assert it.server.calls[-1] == "unload m"
    assert it.server.ready == ""
    assert it.ticks(3)[-1].startswith("m: answers again")


def test_a_load_whose_process_died_before_its_first_word_ends_in_a_restart(scene: Callable[..., Scene]) -> None:
    it = scene()
    it.workers.held = []
    it.server.stubs = 0
    it.ticks(1)
    (it.memory / f"{it.server.shm_prefix}1").touch()

    assert it.ticks(int(2 * STUCK_S) - 1) == []
    said = it.ticks(2)

    assert it.server.calls == ["unload m", "restart with ['m']"]
    assert said[0] == "m: its backend process died as it started, and Triton waits for it; starting the server again."
    assert said[1].startswith("The server answers again after")
    it.workers.let_go()
    assert it.ticks(5) == []
    assert it.server.calls.count("load m") == 1, "that of the load which was given up"


@pytest.mark.parametrize("seen", ["a process", "no segment"])
def test_a_load_that_only_takes_long_is_waited_for(scene: Callable[..., Scene], seen: str) -> None:
    it = scene()
    it.workers.held = []
    it.server.stubs = 0
    it.ticks(1)
    if seen == "a process":
        (it.memory / f"{it.server.shm_prefix}1").touch()
        it.server.stubs, it.server.generation = 1, 1

    assert it.ticks(500) == []
    it.workers.let_go()
    assert it.ticks(1)[0].startswith("m: answers again after 250")


def test_a_change_during_a_load_is_loaded_after_it(scene: Callable[..., Scene]) -> None:
    it = scene()
    (it.server.repository / "m" / "config.pbtxt").write_text("another")
    it.workers.held = []
    it.ticks(1)

    (it.server.repository / "m" / "config.pbtxt").write_text("and another")
    it.ticks(1)
    it.workers.let_go()

    assert it.ticks(1) == ["m changed: still serving version 1.", "m changed: still serving version 1."]


def test_an_answer_from_before_a_death_kills_nobody(scene: Callable[..., Scene]) -> None:
    it = scene()
    it.workers.held = []
    it.ticks(5)
    it.server.stubs = 0
    it.server.answer = ServerFailureError("Stub process 'm_0' is not healthy.")
    asked = it.workers.held
    it.workers.held = None
    it.ticks(1)

    for carry_out in asked:
        carry_out()
    it.ticks(3)

    assert it.killed == []
    assert it.server.calls == ["unload m", "load m"]


def test_an_answer_that_takes_long_is_not_a_death(scene: Callable[..., Scene]) -> None:
    it = scene()
    it.server.answer = DeadlineExceededError("no answer within 10 s.")

    said = it.ticks(200)

    assert it.server.calls == []
    assert len(said) == 1
    assert "overloaded, or stuck" in said[0]


def test_a_model_that_fails_on_zeros_is_said_so_once_and_not_reloaded(scene: Callable[..., Scene]) -> None:
    it = scene()
    it.server.answer = ServerFailureError("some operator failed. The server's log says more.")
    it.server.log_text = " It is triton.log."

    said = it.ticks(50)

    assert it.server.calls == []
    assert said == ["m: an inference fails: some operator failed. The server's log says more. It is triton.log."]


def test_a_changed_configuration_is_loaded(scene: Callable[..., Scene]) -> None:
    it = scene()
    (it.server.repository / "m" / "config.pbtxt").write_text("another")

    assert it.ticks(1) == ["m changed: still serving version 1."]
    assert it.server.calls == ["load m"]


def test_one_that_cannot_be_loaded_is_said_once_and_tried_until_it_can(scene: Callable[..., Scene]) -> None:
    it = scene()
    it.server.refusal = "cut short."
    (it.server.repository / "m" / "config.pbtxt").write_text("another")

    said = it.ticks(100)

    assert said == ["m changed, but cannot be loaded: cut short. Version 1 stays served. It is tried again, ever less often."]
    assert 4 < len(it.server.calls) < 10

    it.server.refusal = ""
    assert it.ticks(130) == ["m is tried again: still serving version 1."]


def test_one_that_cannot_be_loaded_again_after_a_death_is_tried_until_it_can(scene: Callable[..., Scene]) -> None:
    it = scene()
    it.server.stubs, it.server.refusal = 0, "cut short."

    said = it.ticks(20)

    assert said[1] == "m: cannot be loaded again: cut short. It is not served. It is tried again, ever less often."
    it.server.refusal = ""
    assert it.ticks(130) == ["m is tried again: now serving version 1."]


def test_one_that_failed_at_the_start_is_tried_again(scene: Callable[..., Scene]) -> None:
    it = scene(served=Served((), {"m": "cut short"}), ready="", stubs=0)

    assert it.ticks(4) == ["m is tried again: now serving version 1."]


def test_a_vanished_model_is_unloaded_and_a_vanished_repository_is_not(scene: Callable[..., Scene]) -> None:
    it = scene()
    aside = it.server.repository.with_name("aside")

    it.server.repository.rename(aside)
    said = it.ticks(5)
    assert len(said) == 1
    assert "What is loaded stays served" in said[0]
    aside.rename(it.server.repository)

    (it.server.repository / "m").rename(aside)
    assert it.ticks(5) == ["m: gone from the repository; unloaded."]
    assert it.server.calls == ["unload m"]


def test_one_that_somebody_unloaded_is_left_alone(scene: Callable[..., Scene]) -> None:
    it = scene()
    it.server.ready, it.server.stubs = "", 0

    (message,) = it.ticks(20)

    assert message.startswith('m: somebody unloaded it. It comes back with `client.load("m")`, or with a change of its folder')
    assert it.server.calls == []


def test_one_that_somebody_loads_again_is_watched_again(scene: Callable[..., Scene]) -> None:
    it = scene()
    it.server.ready, it.server.stubs = "", 0
    it.ticks(4)

    it.server.ready, it.server.stubs = "1", 1
    assert it.ticks(1) == ["m: somebody loaded it: version 1 is served, and watched again."]

    it.server.stubs = 0
    assert "answers again" in it.ticks(3)[-1]
    assert it.server.calls == ["unload m", "load m"]


def test_an_unload_that_is_just_under_way_is_not_taken_for_a_failure(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = scene()

    def config(name: str) -> dict[str, Any]:
        it.server.ready, it.server.stubs = "", 0
        raise UnavailableError("'m' has no available versions.")

    monkeypatch.setattr(it.server, "config", config)

    (message,) = it.ticks(10)
    assert "somebody unloaded it" in message


def test_one_that_dies_before_its_return_is_noticed_is_healed_too(scene: Callable[..., Scene]) -> None:
    it = scene()
    it.server.ready, it.server.stubs = "", 0
    it.ticks(4)

    it.server.ready = "1"

    assert "answers again" in it.ticks(3)[-1]


def test_a_change_that_meets_a_dead_backend_unloads_it_first(scene: Callable[..., Scene]) -> None:
    it = scene()
    it.server.stubs = 0
    (it.server.repository / "m" / "config.pbtxt").write_text("another")

    assert it.ticks(1) == ["m: its backend process died; loading it again.", "m: answers again after 0.0 s: version 1."]
    assert it.server.calls == ["unload m", "load m"]


def test_a_backend_that_triton_calls_dead_at_the_load_is_unloaded_at_the_next(scene: Callable[..., Scene]) -> None:
    it = scene()
    it.server.refusal = "Stub process 'm_0' is not healthy."
    (it.server.repository / "m" / "config.pbtxt").write_text("another")

    (said,) = it.ticks(1)
    assert "It is not served" in said

    it.server.refusal = ""
    assert "answers again" in it.ticks(3)[-1]
    assert it.server.calls == ["load m", "unload m", "load m"]


def test_a_death_beside_a_bad_configuration_is_said_truly_and_mended_by_the_repair(scene: Callable[..., Scene]) -> None:
    it = scene()
    path = it.server.repository / "m" / "config.pbtxt"
    it.server.refusal = "no field named garbage"
    path.write_text("garbage")
    assert "Version 1 stays served." in it.ticks(1)[0]

    it.server.stubs = 0
    assert it.ticks(100) == [
        "m: its backend process died; loading it again.",
        "m: cannot be loaded again: no field named garbage. It is not served. It is tried again, ever less often.",
    ]

    it.server.refusal = ""
    path.write_text("mended")
    assert it.ticks(1) == ["m changed: now serving version 1."]


def test_a_control_call_that_fails_is_said_and_survived(scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch) -> None:
    it = scene()
    it.server.stubs = 0

    def models(timeout_s: float) -> list[ModelStatus]:
        raise UnavailableError("no server answers.")

    monkeypatch.setattr(it.server, "models", models)

    assert it.ticks(10) == ["The server does not answer: no server answers."]


@pytest.mark.parametrize(
    ("proof", "expected"),
    [
        (Proof("m", "3", 0, None), "version 3"),
        (Proof("m", "3", 32, 0.9912), "version 3 (99.12 % right on its test set; 32 golden inputs agree)"),
        (Proof("m", "3", 0, 0.906, "synthetic amounts, held back"), "version 3 (90.60 % right on synthetic amounts, held back)"),
    ],
)
def test_what_is_served_is_described_with_what_is_known(proof: Proof, expected: str) -> None:
    assert describe(proof) == expected
