"""``Supervisor``: keeps a running Triton honest. It follows the repository, and notices what Triton does not: a dead backend."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from convoy.contract.errors import (
    ClientError,
    ConvoyError,
    DeadlineExceededError,
    OverloadedError,
    RepositoryError,
    ServerFailureError,
    UnavailableError,
)
from convoy.serving.triton.backoff import Backoff
from convoy.serving.triton.folder import Signature, find_models
from convoy.serving.triton.proof import Proof, ask, prove
from convoy.serving.triton.segment import OrphanedSegments
from convoy.serving.triton.server import END_WITHIN_S, TritonServer
from convoy.serving.triton.stub import Stub, find_stubs, instance_count

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
        version: The version that it serves; None where it serves none.
        instances: How many backend processes that version has; None where nobody has asked yet.
        load_because: Why it is to be loaded ("is new", "changed" ...); empty where it is not.
        backoff: When to load it again after a failure or a death.
        next_check: When to ask it for an inference.
        suspect: Whether a process was missing at the last look.
        silent_since: Since when it has not answered in time.
        said: What was last said about it, so that nothing is said twice in a row.
        refusal: Why it could not be loaded, as last said.
    """

    name: str
    signature: Signature
    version: str | None = None
    instances: int | None = None
    load_because: str = ""
    backoff: Backoff = field(default_factory=Backoff)
    next_check: float = 0.0
    suspect: bool = False
    silent_since: float | None = None
    said: str = ""
    refusal: str = ""


class Supervisor:
    """Watches a started server from the thread that calls ``run``.

    - The server's process ends: ``run`` raises ``ServerError`` with its last words.
    - A model's backend process dies, which Triton neither mends nor shows: the model is loaded again and proven, at growing
      intervals where it keeps dying.
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
        self._repository_problem = ""
        self._models = {name: _Model(name, signature) for name, signature in find_models(server.repository).items()}
        for name, reason in server.served.failures.items():
            if name in self._models:
                self._models[name].load_because, self._models[name].refusal = "is tried again", reason
                self._models[name].backoff.attempted(time.monotonic())
        for proof in server.served.proofs:
            if proof.model_name in self._models:
                self._note(self._models[proof.model_name], proof)

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
        self._look_at_repository()
        pid = self._server.pid()
        stubs = find_stubs(pid) if pid is not None else []
        self._segments.clear([stub.shm_name for stub in stubs], time.monotonic())
        for model in list(self._models.values()):
            try:
                if model.load_because and model.backoff.is_due(time.monotonic()):
                    self._load(model)
                elif model.version is not None:
                    self._check(model, stubs)
            except ClientError as error:
                self._check_server(error)
                self._say_once(model, f"{model.name}: the server does not answer: {error}")

    def _check_server(self, error: ConvoyError | None = None) -> None:
        """Raise where the server has ended; where ``error`` came because it is just ending, that is what to say."""
        if not self._server.running or (isinstance(error, UnavailableError) and self._server.ends_within(END_WITHIN_S)):
            raise self._server.died() from error

    # The repository

    def _look_at_repository(self) -> None:
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

    def _load(self, model: _Model) -> None:
        before, why = model.version, model.load_because
        try:
            self._server.load(model.name)
            proof = prove(self._server.client, self._server.repository, model.name)
        except ConvoyError as error:
            self._check_server(error)
            model.backoff.attempted(time.monotonic())
            model.load_because = "is tried again"
            self._say_refusal(model, f"{model.name} {why}, but cannot be loaded", error)
            return
        model.load_because = model.said = model.refusal = ""
        self._note(model, proof)
        now = "still" if before == proof.model_version else "now"
        self._say(f"{model.name} {why}: {now} serving {describe(proof)}.")

    # The models

    def _check(self, model: _Model, stubs: list[Stub]) -> None:
        if model.instances is None:
            model.instances = instance_count(self._server.client.config(model.name))
        alive = sum(stub.model_name == model.name and stub.model_version == model.version for stub in stubs)
        if alive < model.instances and self._is_served(model):
            if model.suspect:  # twice in a row: no change that is just under way
                self._heal(model, "its backend process died")
            model.suspect = True
            return
        model.suspect = False
        if time.monotonic() >= model.next_check:
            self._ask(model, stubs)

    def _ask(self, model: _Model, stubs: list[Stub]) -> None:
        model.next_check = time.monotonic() + CHECK_EVERY_S
        try:
            version = ask(self._server.client, model.name, ANSWER_WITHIN_S)
        except (DeadlineExceededError, OverloadedError) as error:
            now = time.monotonic()
            model.silent_since = model.silent_since or now
            if now - model.silent_since > _SILENT_S:
                self._say_once(model, f"{model.name}: no answer for more than {_SILENT_S:.0f} s: overloaded, or stuck. {error}")
        except ServerFailureError as error:
            if "not healthy" in str(error):
                _kill([stub for stub in stubs if stub.model_name == model.name and f"'{stub.instance_name}'" in str(error)])
                self._heal(model, "its backend process does not answer")
            else:
                self._say_once(model, f"{model.name}: an inference fails: {error}")
        except ClientError as error:
            if self._is_served(model):
                self._say_once(model, f"{model.name}: an inference fails: {error}")
        else:
            model.silent_since, model.said = None, ""
            if version and version != model.version:
                self._note(model, Proof(model.name, version, 0, None))

    def _is_served(self, model: _Model) -> bool:
        """Whether the server means to serve the version; notes where somebody else has changed or unloaded it."""
        statuses = self._server.client.models()
        ready = [status.version for status in statuses if status.name == model.name and status.state == "READY"]
        if model.version in ready:
            return True
        if ready:
            self._note(model, Proof(model.name, max(ready, key=int), 0, None))
        elif not any(status.name == model.name and status.state in ("LOADING", "UNLOADING") for status in statuses):
            model.version = None
            self._say(f"{model.name}: somebody unloaded it. It is loaded again when its configuration changes.")
        return False

    def _heal(self, model: _Model, what: str) -> None:
        began = time.monotonic()
        if not model.backoff.is_due(began):
            self._say_once(model, f"{model.name}: {what} again; it is loaded again in {model.backoff.next_at - began:.0f} s.")
            return
        self._say(f"{model.name}: {what}; loading it again.")
        try:
            self._server.client.unload(model.name)
            self._server.load(model.name)
            proof = prove(self._server.client, self._server.repository, model.name)
        except ConvoyError as error:
            self._check_server(error)
            model.version, model.load_because = None, "is tried again"
            self._say_refusal(model, f"{model.name}: cannot be loaded again", error)
        else:
            model.said = model.refusal = ""
            self._note(model, proof)
            self._say(f"{model.name}: answers again after {time.monotonic() - began:.1f} s: {describe(proof)}.")
        model.backoff.attempted(time.monotonic())

    def _note(self, model: _Model, proof: Proof) -> None:
        """Note what a model serves now."""
        model.version = proof.model_version
        model.instances = None
        model.suspect, model.silent_since = False, None
        model.next_check = time.monotonic() + CHECK_EVERY_S

    def _say_refusal(self, model: _Model, what: str, error: ConvoyError) -> None:
        """Say why a model cannot be loaded, unless that was the last thing said about its loading."""
        if model.refusal != str(error):
            model.refusal = str(error)
            stays = f"Version {model.version} stays served." if model.version is not None else "It is not served."
            self._say(f"{what}: {_sentence(error)} {stays} It is tried again, ever less often.")

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


def _sentence(error: Exception) -> str:
    text = str(error)
    return text if text.endswith((".", "!", "?")) else f"{text}."
