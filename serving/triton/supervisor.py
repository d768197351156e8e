"""``Supervisor``: keeps a running Triton honest. It follows the repository, and notices what Triton does not: a dead backend."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from convoy.contract.errors import (
    ClientError,
    ConvoyError,
    DeadlineExceededError,
    ModelNotFoundError,
    OverloadedError,
    RepositoryError,
    UnavailableError,
)
from convoy.serving.triton.backoff import Backoff
from convoy.serving.triton.folder import Signature, find_models
from convoy.serving.triton.proof import Proof, ask, prove
from convoy.serving.triton.segment import OrphanedSegments
from convoy.serving.triton.server import END_WITHIN_S, TritonServer
from convoy.serving.triton.stub import Stub, find_stubs, instance_count

if TYPE_CHECKING:
    from convoy.serving.client import ModelStatus

TICK_S = 0.5
CHECK_EVERY_S = 2.0
"""How often each model is asked for an inference; its processes are looked at on each tick."""

ANSWER_WITHIN_S = 10.0
_SILENT_S = 30.0


@dataclass
class _Model:
    """What the supervisor knows of one model.

    Attributes:
        name: Its name.
        signature: What its folder looked like.
        version: The version that the server means to serve; None where it serves none.
        instances: How many backend processes that version has; None where nobody has asked yet.
        load_because: Why it is to be loaded ("is new", "changed" ...); empty where it is not.
        backoff: When to load it again after a failure or a death.
        next_check: When to ask it for an inference.
        suspect: Whether a process was missing at the last look.
        dead: Whether its backend is known to be dead. Triton still calls it ready, and cannot load it before it is unloaded.
        silent_since: Since when it has not answered in time.
        said: What was last said about it, so that nothing is said twice in a row.
        refusal: What was last said of a load that failed.
    """

    name: str
    signature: Signature
    version: str | None = None
    instances: int | None = None
    load_because: str = ""
    backoff: Backoff = field(default_factory=Backoff)
    next_check: float = 0.0
    suspect: bool = False
    dead: bool = False
    silent_since: float | None = None
    said: str = ""
    refusal: str = ""


class Supervisor:
    """Watches a started server from the thread that calls ``run``.

    - The server's process ends: ``run`` raises ``ServerError`` with its last words.
    - A model's backend process dies, which Triton neither mends nor shows: the model is unloaded, loaded again and proven, at
      growing intervals where it keeps dying.
    - Somebody loads or unloads a model through the server: that is respected; what is served is watched.
    - The repository changes: the model is loaded and its golden inputs are replayed. Where it cannot be loaded, what was served
      stays served, and it is tried again.

    Args:
        server: A started server.
        say: Told what happens, one message at a time.
    """

    def __init__(self, server: TritonServer, say: Callable[[str], None]) -> None:
        self._server = server
        self._say = say
        self._segments = OrphanedSegments(server.shm_prefix)
        self._repository_problem = self._server_problem = ""
        self._models = {name: _Model(name, signature) for name, signature in find_models(server.repository).items()}
        for name, reason in server.served.failures.items():
            if name in self._models:
                self._models[name].load_because = "is tried again"
                self._models[name].refusal = _refusal(self._models[name], reason)
                self._models[name].backoff.attempted(time.monotonic())
        for proof in server.served.proofs:
            if proof.model_name in self._models:
                self._note(self._models[proof.model_name], proof.model_version)

    def run(self, stop: threading.Event) -> None:
        """Watch until ``stop`` is set.

        Raises:
            ServerError: The server's process has ended.
        """
        while not stop.wait(TICK_S):
            self.tick()

    def tick(self) -> None:
        """Look once at everything.

        Raises:
            ServerError: The server's process has ended.
        """
        self._check_server()
        self._follow_repository()
        try:
            statuses = self._server.client.models(timeout_s=ANSWER_WITHIN_S)
        except ClientError as error:
            self._check_server(error)
            if self._server_problem != str(error):
                self._server_problem = str(error)
                self._say(f"The server does not answer: {error}")
            return
        self._server_problem = ""
        pid = self._server.pid()
        stubs = find_stubs(pid) if pid is not None else []
        self._segments.clear([stub.shm_name for stub in stubs], time.monotonic())
        for model in self._models.values():
            try:
                self._follow_server(model, statuses)
                self._check(model, stubs)
                if model.load_because and model.backoff.is_due(time.monotonic()):
                    self._load(model)
            except (ModelNotFoundError, UnavailableError):
                continue  # just unloaded, or the server is ending: the next tick sees which
            except ClientError as error:
                self._check_server(error)
                self._say_once(model, f"{model.name}: the server does not answer: {error}")

    def _check_server(self, error: ConvoyError | None = None) -> None:
        """Raise where the server has ended; where ``error`` came because it is just ending, that is what to say."""
        if not self._server.running or (isinstance(error, UnavailableError) and self._server.ends_within(END_WITHIN_S)):
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
            model = self._models.setdefault(name, _Model(name, (), load_because="is new"))
            if model.signature != signature:
                model.load_because = "changed" if model.signature else "is new"
                model.signature = signature
                model.refusal = ""
                model.backoff.reset()
        for name in self._models.keys() - found.keys():
            model = self._models.pop(name)
            if model.version is not None:
                try:
                    self._server.client.unload(name)
                    self._say(f"{name}: gone from the repository; unloaded.")
                except ClientError as error:
                    self._check_server(error)
                    self._say(f"{name}: gone from the repository, but cannot be unloaded: {error}")

    def _follow_server(self, model: _Model, statuses: Sequence[ModelStatus]) -> None:
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

    # The models

    def _check(self, model: _Model, stubs: list[Stub]) -> None:
        """Is the model's backend alive? Where it is not, it is to be loaded again."""
        if model.version is None or model.dead:
            return
        if model.instances is None:
            model.instances = instance_count(self._server.client.config(model.name))
        alive = sum(stub.model_name == model.name and stub.model_version == model.version for stub in stubs)
        if alive < model.instances:
            if model.suspect:  # twice in a row: no change that is just under way
                self._bury(model, "its backend process died")
            model.suspect = True
            return
        model.suspect = False
        if time.monotonic() >= model.next_check:
            self._ask(model, stubs)

    def _ask(self, model: _Model, stubs: list[Stub]) -> None:
        model.next_check = time.monotonic() + CHECK_EVERY_S
        since = self._server.log.position()
        try:
            version = ask(self._server.client, model.name, ANSWER_WITHIN_S)
        except (DeadlineExceededError, OverloadedError, ModelNotFoundError, UnavailableError) as error:
            now = time.monotonic()
            model.silent_since = model.silent_since or now
            if now - model.silent_since > _SILENT_S:
                self._say_once(model, f"{model.name}: no answer for more than {_SILENT_S:.0f} s: overloaded, or stuck. {error}")
        except ClientError as error:
            if _says_dead(error):
                _kill([stub for stub in stubs if stub.model_name == model.name and f"'{stub.instance_name}'" in str(error)])
                self._bury(model, "its backend process does not answer")
            else:
                self._say_once(model, f"{model.name}: an inference fails: {self._server.explain(error, since)}")
        else:
            model.silent_since, model.said = None, ""
            if version and version != model.version:
                self._note(model, version)

    def _bury(self, model: _Model, what: str) -> None:
        """Note that the model's backend is dead: it is to be loaded again, at once where this is the first time."""
        model.dead = True
        if model.load_because:  # a change that could not be loaded; what was served until now is gone, too
            model.backoff.reset()
        wait_s = model.backoff.next_at - time.monotonic()
        when = "loading it again" if wait_s <= 0 else f"it died not long ago, too; it is loaded again in {wait_s:.0f} s"
        model.load_because = what
        self._say(f"{model.name}: {what}; {when}.")

    def _load(self, model: _Model) -> None:
        began = time.monotonic()
        before, why, was_dead = model.version, model.load_because, model.dead
        try:
            if model.dead or model.suspect:
                self._server.client.unload(model.name)
                self._note(model, None)
            self._server.load(model.name)
            proof = prove(self._server.client, self._server.repository, model.name)
        except ConvoyError as error:
            self._check_server(error)
            model.dead = model.version is not None and _says_dead(error)
            model.load_because = "is tried again"
            what = f"{model.name}: cannot be loaded again" if was_dead else f"{model.name} {why}, but cannot be loaded"
            self._say_refusal(model, what, error)
        else:
            model.load_because = model.said = model.refusal = ""
            self._note(model, proof.model_version)
            now = "still" if before == proof.model_version else "now"
            if was_dead:
                self._say(f"{model.name}: answers again after {time.monotonic() - began:.1f} s: {describe(proof)}.")
            else:
                self._say(f"{model.name} {why}: {now} serving {describe(proof)}.")
                return
        model.backoff.attempted(time.monotonic())

    def _note(self, model: _Model, version: str | None) -> None:
        """Note which version the server serves now."""
        model.version = version
        model.instances = None
        model.suspect, model.dead, model.silent_since = False, False, None
        model.next_check = time.monotonic() + CHECK_EVERY_S

    def _say_refusal(self, model: _Model, what: str, error: ConvoyError) -> None:
        """Say why a model cannot be loaded, unless that was the last thing said about its loading."""
        refusal = _refusal(model, str(error))
        if model.refusal != refusal:
            model.refusal = refusal
            self._say(f"{what}: {refusal} It is tried again, ever less often.")

    def _say_once(self, model: _Model, message: str) -> None:
        if model.said != message:
            model.said = message
            self._say(message)


def _kill(stubs: list[Stub]) -> None:
    """Kill backend processes that hang: Triton gives them up, but does not end them."""
    for stub in stubs:
        with contextlib.suppress(ProcessLookupError):
            os.kill(stub.pid, signal.SIGKILL)


def describe(proof: Proof) -> str:
    """What is served, in words: "version 2 (99.1 % on its test set; 32 golden inputs agree)"."""
    facts = [
        f"{100 * proof.test_accuracy:.2f} % right on its test set" if proof.test_accuracy is not None else "",
        f"{proof.n_goldens} golden inputs agree" if proof.n_goldens else "",
    ]
    known = "; ".join(filter(None, facts))
    return f"version {proof.model_version}" + (f" ({known})" if known else "")


def _refusal(model: _Model, reason: str) -> str:
    served = model.version is not None and not model.dead
    stays = f"Version {model.version} stays served." if served else "It is not served."
    return f"{reason if reason.endswith(('.', '!', '?')) else f'{reason}.'} {stays}"


def _says_dead(error: ConvoyError) -> bool:
    """Whether Triton says that a backend process is gone, or does not answer."""
    return "not healthy" in str(error)
