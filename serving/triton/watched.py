"""``WatchedModel``: what the supervisor knows of one model."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

from convoy.contract.errors import ConvoyError
from convoy.serving.triton.backoff import Backoff
from convoy.serving.triton.folder import Signature
from convoy.serving.triton.proof import Proof
from convoy.serving.triton.stub import Stub


@dataclass
class Loading:
    """A load that is under way.

    Attributes:
        proof: Its result.
        began: When it began.
        why: Why the model is loaded.
        before: The version that was served before; None where none was.
        was_dead: Whether the model's backend was dead.
        segments: The shared-memory segments that were there before it began.
        alone_since: Since when the model has had no living process, as far as was seen.
    """

    proof: Future[Proof]
    began: float
    why: str
    before: str | None
    was_dead: bool
    segments: frozenset[str]
    alone_since: float


@dataclass(frozen=True)
class Asking:
    """An inference that is under way.

    Attributes:
        answer: The version that answers.
        log_position: Where the server's log ended before it.
        stubs: The model's processes before it.
    """

    answer: Future[str]
    log_position: int
    stubs: tuple[Stub, ...]


@dataclass
class WatchedModel:
    """What the supervisor knows of one model.

    Attributes:
        name: Its name.
        signature: What its folder looked like.
        version: The version that the server means to serve; None where it serves none.
        instances: How many backend processes that version has; None where nobody has asked yet.
        load_because: Why it is to be loaded ("is new", "changed" ...); empty where it is not.
        backoff: When to load it again after a failure or a death.
        loading: The load that is under way.
        asking: The inference that is under way.
        next_check: When to ask it for an inference.
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
    loading: Loading | None = None
    asking: Asking | None = None
    next_check: float = 0.0
    dead: bool = False
    silent_since: float | None = None
    said: str = ""
    refusal: str = ""

    def serves(self, version: str | None, next_check: float) -> None:
        """Note which version the server serves from now on."""
        self.version = version
        self.instances = self.asking = self.silent_since = None
        self.dead = False
        self.next_check = next_check

    def refused(self, reason: str) -> str:
        """Why a load failed, and what that means for those who call."""
        served = self.version is not None and not self.dead
        stays = f"Version {self.version} stays served." if served else "It is not served."
        return f"{reason if reason.endswith(('.', '!', '?')) else f'{reason}.'} {stays}"


def says_dead(error: ConvoyError) -> bool:
    """Whether Triton says that a backend process is gone, or does not answer."""
    return "not healthy" in str(error) or "health mutex" in str(error)


def describe(proof: Proof) -> str:
    """What is served, in words: "version 2 (99.1 % on its test set; 32 golden inputs agree)"."""
    facts = [
        f"{100 * proof.test_accuracy:.2f} % right on {proof.test_split}" if proof.test_accuracy is not None else "",
        f"{proof.n_goldens} golden inputs agree" if proof.n_goldens else "",
    ]
    known = "; ".join(filter(None, facts))
    return f"version {proof.model_version}" + (f" ({known})" if known else "")
