"""``Supervisor``: keeps a running Triton honest. It follows the repository, and notices what Triton does not: a dead backend."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING

from convoy.contract.errors import (
    ClientError,
    ConvoyError,
    DeadlineExceededError,
    ModelNotFoundError,
    OverloadedError,
    RepositoryError,
    ServerError,
    UnavailableError,
)
from convoy.serving.client._shared_memory import sweep
from convoy.serving.triton.abandoned import AbandonedStubs
from convoy.serving.triton.folder import find_models
from convoy.serving.triton.proof import Proof, ask, prove
from convoy.serving.triton.segment import OrphanedSegments
from convoy.serving.triton.server import END_WITHIN_S, TritonServer
from convoy.serving.triton.stub import Stub, find_stubs, instance_count
from convoy.serving.triton.watch import ProcessWatch
from convoy.serving.triton.watched import Asking, Loading, WatchedModel, describe, says_dead

if TYPE_CHECKING:
    from convoy.serving.client import ModelStatus

TICK_S = 0.5
"""How often everything is looked at; the end of a process is noticed at once."""

CHECK_EVERY_S = 2.0
"""How often each model is asked for an inference."""

ANSWER_WITHIN_S = 10.0
STUCK_S = 10.0
"""How long a load may stand still whose process has died; Triton gives up after one second, where it notices at all."""

CRASHES_ALLOWED = 3
CRASHES_WITHIN_S = 60.0
_SILENT_S = 30.0
_STOP_POLL_S = 0.1
_SWEEP_EVERY_S = 60.0


class Supervisor:
    """Watches a started server from the thread that calls ``run``.

    - The server's process ends: ``run`` raises ``ServerError`` with its last words. Where it crashed, which Triton now and then
      does when a backend process dies at a bad moment, or was killed, as the system does where memory runs out, it is started
      again; not a fourth time within a minute.
    - A model's backend process dies, which Triton neither mends nor shows: the model is unloaded at once, so that Triton itself
      refuses calls as unavailable instead of letting them wait, loaded again and proven, at growing intervals where it keeps dying.
    - Triton hangs in a load, because a process died before it had said its first word: the server is started again.
    - Somebody loads or unloads a model through the server: that is respected; what is served is watched.
    - A client on this machine dies while it shares memory with the server: the server is told to forget it.
    - The repository changes: the model is loaded and its golden inputs are replayed. Where it cannot be loaded, what was served
      stays served, and it is tried again.

    What takes its time (loads, inferences) is done by other threads: a death is noticed while another model is being loaded.

    Args:
        server: A started server.
        say: Told what happens, one message at a time, from the thread that calls ``run``.
        workers: Carries out loads and inferences; threads of its own where None.
    """

    def __init__(self, server: TritonServer, say: Callable[[str], None], workers: Executor | None = None) -> None:
        self._server = server
        self._say = say
        self._workers = workers or ThreadPoolExecutor(32, thread_name_prefix="supervisor")
        self._watch = ProcessWatch()
        self._segments = OrphanedSegments(server.shm_prefix)
        self._abandoned = AbandonedStubs()
        self._swept_s = time.monotonic()
        self._crashes: list[float] = []
        self._repository_problem = self._server_problem = ""
        self._models = {name: WatchedModel(name, signature) for name, signature in find_models(server.repository).items()}
        self._take_in_served()

    def run(self, stop: threading.Event) -> None:
        """Watch until ``stop`` is set.

        Raises:
            ServerError: The server's process has ended.
        """
        try:
            while not stop.is_set():
                self.tick()
                self._wait(stop)
        finally:
            self._workers.shutdown(wait=False, cancel_futures=True)
            self._watch.close()

    def tick(self) -> None:
        """Look once at everything.

        Raises:
            ServerError: The server's process has ended.
        """
        try:
            self._look()
        except ServerError as error:
            now = time.monotonic()
            self._crashes = [at for at in self._crashes if now - at < CRASHES_WITHIN_S]
            if self._server.running or not self._server.crashed or len(self._crashes) >= CRASHES_ALLOWED:
                raise
            self._crashes.append(now)
            self._restart(f"{error}\nStarting it again.")

    def _look(self) -> None:
        self._check_server()
        self._follow_repository()
        stubs = self._stubs()
        self._watch.watch([stub.pid for stub in stubs] + [pid for pid in [self._server.pid()] if pid is not None])
        try:
            statuses = self._server.client.models(timeout_s=ANSWER_WITHIN_S)
        except ClientError as error:
            self._check_server(error)
            if self._server_problem != str(error):
                self._server_problem = str(error)
                self._say(f"The server does not answer: {error}")
            return
        self._server_problem = ""
        if time.monotonic() - self._swept_s >= _SWEEP_EVERY_S:
            self._swept_s = time.monotonic()
            self._workers.submit(sweep, self._server.client)
        for model in list(self._models.values()):
            try:
                self._look_at(model, stubs, statuses)
            except (ModelNotFoundError, UnavailableError):
                continue  # just unloaded, or the server is ending: the next tick sees which
            except ClientError as error:
                self._check_server(error)
                self._say_once(model, f"{model.name}: the server does not answer: {error}")

    def _wait(self, stop: threading.Event) -> None:
        """Until something ends, or it is time for the next look."""
        until = time.monotonic() + TICK_S
        while not stop.is_set() and (left_s := until - time.monotonic()) > 0:
            if self._watch.wait(min(left_s, _STOP_POLL_S)):
                return

    def _look_at(self, model: WatchedModel, stubs: list[Stub], statuses: Sequence[ModelStatus]) -> None:
        if model.loading is not None and not self._take_in_load(model, model.loading, stubs):
            return
        if model.asking is not None:
            self._take_in_answer(model, model.asking)
        self._follow_server(model, statuses)
        self._check(model, stubs)
        if model.load_because and model.backoff.is_due(time.monotonic()):
            self._load(model)

    def _stubs(self) -> list[Stub]:
        """The backend processes that are alive, without those that were given up."""
        pid = self._server.pid()
        alive = find_stubs(pid) if pid is not None else []
        now = time.monotonic()
        self._segments.clear([stub.shm_name for stub in alive], now)
        for stub in self._abandoned.clear(alive, now):
            self._say(f"{stub.model_name}: ended a process of it that Triton had forgotten.")
        return self._abandoned.rest(alive)

    def _check_server(self, error: ConvoyError | None = None) -> None:
        """Raise where the server has ended; where ``error`` came because it is just ending, that is what to say."""
        unreachable = isinstance(error, UnavailableError) and not says_dead(error)
        if not self._server.running or (unreachable and self._server.ends_within(END_WITHIN_S)):
            raise self._server.died() from error

    # What others change

    def _follow_repository(self) -> None:
        try:
            found = find_models(self._server.repository)
        except RepositoryError as error:
            if self._repository_problem != str(error):
                self._repository_problem = str(error)
                self._say(f"{error} What is loaded stays served.")
            return
        self._repository_problem = ""
        for name, signature in found.items():
            model = self._models.setdefault(name, WatchedModel(name, (), load_because="is new"))
            if model.signature != signature:
                model.load_because = "changed" if model.signature else "is new"
                model.signature = signature
                model.refusal = ""
                model.backoff.reset()
        for name in self._models.keys() - found.keys():
            if self._models[name].loading is not None:
                continue  # Triton refuses to unload what it is loading
            model = self._models.pop(name)
            if model.version is not None:
                try:
                    self._server.client.unload(name)
                    self._say(f"{name}: gone from the repository; unloaded.")
                except ClientError as error:
                    self._check_server(error)
                    self._say(f"{name}: gone from the repository, but cannot be unloaded: {error}")

    def _follow_server(self, model: WatchedModel, statuses: Sequence[ModelStatus]) -> None:
        """Note where somebody else has loaded or unloaded the model, or changed its version."""
        ours = [status for status in statuses if status.name == model.name]
        ready = [status.version for status in ours if status.state == "READY"]
        if model.version in ready or any(status.state in ("LOADING", "UNLOADING") for status in ours):
            return
        before, version = model.version, max(ready, key=int, default=None)
        if version == before:
            return
        self._note(model, version)
        if model.load_because:
            return
        if version is None:
            self._say(
                f'{model.name}: somebody unloaded it. It comes back with `client.load("{model.name}")`, or with a change of its '
                "folder in the repository."
            )
        elif before is None:
            self._say(f"{model.name}: somebody loaded it: version {version} is served, and watched again.")

    # Is it alive?

    def _check(self, model: WatchedModel, stubs: list[Stub]) -> None:
        """Is the model's backend alive? Where it is not, it is to be loaded again."""
        if model.version is None or model.dead:
            return
        if model.instances is None:
            model.instances = instance_count(self._server.client.config(model.name))
        if _alive(model, stubs) < model.instances:
            if self._has_died(model):
                self._bury(model, "its backend process died")
        elif time.monotonic() >= model.next_check and model.asking is None:
            since = self._server.log.position()
            answer = self._workers.submit(ask, self._server.client, model.name, ANSWER_WITHIN_S)
            model.asking = Asking(answer, since, tuple(stub for stub in stubs if stub.model_name == model.name))
            answer.add_done_callback(lambda _: self._watch.wake())
            self._take_in_answer(model, model.asking)

    def _has_died(self, model: WatchedModel) -> bool:
        """Look again, after Triton has called the model ready, and let it say so once more.

        A process that ends in order does so a second after Triton has stopped calling its model ready, and one that was just loaded
        stands before Triton calls it ready: one that is missing in between has died.
        """
        model.instances = instance_count(self._server.client.config(model.name))
        if _alive(model, self._stubs()) >= model.instances:
            return False
        statuses = self._server.client.models(timeout_s=ANSWER_WITHIN_S)
        return any(status.name == model.name and status.version == model.version and status.state == "READY" for status in statuses)

    def _take_in_answer(self, model: WatchedModel, asking: Asking) -> None:
        if not asking.answer.done():
            return
        model.asking = None
        model.next_check = time.monotonic() + CHECK_EVERY_S
        try:
            version = asking.answer.result()
        except ClientError as error:
            self._judge(model, asking, error)
        else:
            model.silent_since, model.said = None, ""
            if version and version != model.version:
                self._note(model, version)

    def _judge(self, model: WatchedModel, asking: Asking, error: ClientError) -> None:
        """What an inference that failed says of its model."""
        if says_dead(error):
            _kill([stub for stub in asking.stubs if f"'{stub.instance_name}'" in str(error)])
            self._bury(model, "its backend process does not answer")
        elif isinstance(error, (DeadlineExceededError, OverloadedError, ModelNotFoundError, UnavailableError)):
            now = time.monotonic()
            model.silent_since = model.silent_since or now
            if now - model.silent_since > _SILENT_S:
                self._say_once(model, f"{model.name}: no answer for more than {_SILENT_S:.0f} s: overloaded, or stuck. {error}")
        else:
            self._say_once(model, f"{model.name}: an inference fails: {self._server.explain(error, asking.log_position)}")

    def _bury(self, model: WatchedModel, what: str) -> None:
        """Note that the model's backend is dead: it is to be loaded again, at once where this is the first time."""
        model.dead, model.asking = True, None
        if model.load_because:  # a change that could not be loaded; what was served until now is gone, too
            model.backoff.reset()
        wait_s = model.backoff.next_at - time.monotonic()
        when = "loading it again" if wait_s <= 0 else f"it died not long ago, too; it is loaded again in {wait_s:.0f} s"
        model.load_because = what
        self._say(f"{model.name}: {what}; {when}.")
        if wait_s > 0:  # until then nobody shall wait for a dead process
            self._unload(model)

    # Loads

    def _unload(self, model: WatchedModel) -> None:
        """Unload a model whose backend is dead."""
        self._abandoned.add([stub for stub in self._stubs() if stub.model_name == model.name], time.monotonic())
        self._server.client.unload(model.name)
        self._note(model, None)
        model.dead = True

    def _load(self, model: WatchedModel) -> None:
        why, before, was_dead = model.load_because, model.version, model.dead
        if was_dead and before is not None:
            self._unload(model)
        began = time.monotonic()
        model.load_because = ""
        proof = self._workers.submit(self._load_and_prove, model.name)
        model.loading = Loading(proof, began, why, before, was_dead, self._segments.names(), began)
        proof.add_done_callback(lambda _: self._watch.wake())
        self._take_in_load(model, model.loading, [])

    def _load_and_prove(self, model_name: str) -> Proof:
        self._server.load(model_name)
        return prove(self._server.client, self._server.repository, model_name)

    def _take_in_load(self, model: WatchedModel, loading: Loading, stubs: list[Stub]) -> bool:
        """Take in what a load has brought. Returns whether it has ended."""
        now = time.monotonic()
        if not loading.proof.done():
            if any(stub.model_name == model.name for stub in stubs):
                loading.alone_since = now
            elif now - loading.alone_since >= STUCK_S and self._segments.names() - loading.segments:
                self._restart(
                    f"{model.name}: its backend process died as it started, and Triton waits for it; starting the server again."
                )
            return False
        model.loading = None
        failed = False
        try:
            proof = loading.proof.result()
        except ConvoyError as error:
            self._check_server(error)
            failed = not says_dead(error)  # a process that was killed while it started may be luckier the next time
            model.dead = says_dead(error) and (model.version is not None or loading.was_dead)
            model.load_because = model.load_because or "is tried again"
            again = f"{model.name}: cannot be loaded again"
            self._say_refusal(model, again if loading.was_dead else f"{model.name} {loading.why}, but cannot be loaded", error)
        else:
            model.said = model.refusal = ""
            self._note(model, proof.model_version)
            if not loading.was_dead:
                kept = "still" if loading.before == proof.model_version else "now"
                self._say(f"{model.name} {loading.why}: {kept} serving {describe(proof)}.")
                return True
            self._say(f"{model.name}: answers again after {now - loading.began:.1f} s: {describe(proof)}.")
        model.backoff.attempted(now, failed=failed)
        return True

    def _restart(self, why: str) -> None:
        """Start the server anew: nothing less ends a load that waits for a process that is dead."""
        self._say(why)
        began = time.monotonic()
        wanted = [model.name for model in self._models.values() if model.version or model.loading or model.load_because]
        try:
            served = self._server.restart(wanted)
        except ServerError as error:
            if not self._server.running:  # it says itself why it cannot be
                raise
            self._say(f"{error}\nStarting it once more.")
            served = self._server.restart(wanted)
        for model in self._models.values():
            model.loading = None
            model.load_because = ""
            self._note(model, None)
        self._take_in_served()
        names = ", ".join(proof.model_name for proof in served.proofs) or "no model"
        self._say(f"The server answers again after {time.monotonic() - began:.1f} s and serves {names}.")

    def _take_in_served(self) -> None:
        """Note what the server serves after its start, and what it could not load."""
        for name, reason in self._server.served.failures.items():
            if name in self._models:
                self._models[name].load_because = "is tried again"
                self._models[name].refusal = self._models[name].refused(reason)
                self._models[name].backoff.attempted(time.monotonic(), failed=True)
        for proof in self._server.served.proofs:
            if proof.model_name in self._models:
                self._note(self._models[proof.model_name], proof.model_version)

    def _note(self, model: WatchedModel, version: str | None) -> None:
        model.serves(version, next_check=time.monotonic() + CHECK_EVERY_S)

    def _say_refusal(self, model: WatchedModel, what: str, error: ConvoyError) -> None:
        """Say why a model cannot be loaded, unless that was the last thing said about its loading."""
        refusal = model.refused(str(error))
        if model.refusal != refusal:
            model.refusal = refusal
            self._say(f"{what}: {refusal} It is tried again, ever less often.")

    def _say_once(self, model: WatchedModel, message: str) -> None:
        if model.said != message:
            model.said = message
            self._say(message)


def _alive(model: WatchedModel, stubs: list[Stub]) -> int:
    return sum(stub.model_name == model.name and stub.model_version == model.version for stub in stubs)


def _kill(stubs: list[Stub]) -> None:
    """Kill backend processes that hang: Triton gives them up, but does not end them."""
    for stub in stubs:
        with contextlib.suppress(ProcessLookupError):
            os.kill(stub.pid, signal.SIGKILL)
