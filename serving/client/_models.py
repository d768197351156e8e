"""What a client remembers of a server's models: their tensors, how they take batches, how much of them is under way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from convoy.contract.errors import InvalidRequestError, ModelNotFoundError
from convoy.serving.client._call import DescribeModel, ReadConfig
from convoy.serving.client._crowd import Crowd
from convoy.serving.client._flight import Flights
from convoy.serving.client._router import Talk
from convoy.serving.client._signature import Signature
from convoy.serving.client._steps import Steps

Key: TypeAlias = "tuple[str, str]"
"""A model and the version that is asked for; empty for the server's choice."""


@dataclass(frozen=True)
class Batching:
    """How a model takes batches.

    Attributes:
        most_rows: Its ``max_batch_size``; 0 where it takes none, or the server does not say.
        crowd: Who waits for it; None where requests of strangers are not to be merged.
    """

    most_rows: int
    crowd: Crowd | None

    @classmethod
    def of(cls, config: Mapping[str, Any], new_signal: Callable[[], Any], *, merge: bool) -> Batching:
        """Read a model's configuration: with ``dynamic_batching`` the server merges requests itself."""
        most_rows = int(config.get("max_batch_size") or 0)
        merges = merge and most_rows > 1 and config.get("dynamic_batching") is not None
        return cls(most_rows, Crowd(most_rows, new_signal) if merges else None)


class Model:
    """What is remembered of one model.

    Attributes:
        signature: Its tensors; None until somebody asked.
        batching: How it takes batches; None until somebody asked.
        under_way: One element an inference of those that are counted: of a caller who is alone, or while nothing is known of its
            batches. A list, since to append and to pop need no lock.
    """

    __slots__ = ("batching", "signature", "under_way")

    def __init__(self) -> None:
        self.signature: Signature | None = None
        self.batching: Batching | None = None
        self.under_way: list[None] = []


class Models:
    """What one client remembers of its server's models. Safe under threads: what is remembered is replaced whole.

    Args:
        new_signal: Makes what a caller waits for: has ``set`` and ``wait``, as ``threading.Event`` has.
        merge: Whether callers who wait for one model share requests.

    Attributes:
        merge: Likewise.
        flights: Has what many want to know at once asked once.
    """

    def __init__(self, new_signal: Callable[[], Any], *, merge: bool) -> None:
        self.merge = merge
        self._new_signal = new_signal
        self.flights = Flights(new_signal)
        self._models: dict[Key, Model] = {}

    def leave_parent(self) -> None:
        """This is a child process: who waits for whom in the parent is nothing to us."""
        self.flights = Flights(self._new_signal)
        for model in self._models.values():
            model.batching = None
            model.under_way = []

    def known(self, key: Key) -> Model | None:
        """What is remembered of a model; None where nothing is."""
        return self._models.get(key)

    def of(self, key: Key) -> Model:
        """What is remembered of a model, if only that it was asked for."""
        return self._models.get(key) or self._models.setdefault(key, Model())

    def signature(self, talk: Talk, key: Key) -> Steps[Signature]:
        """A model's tensors, asked once."""

        def known() -> Signature | None:
            model = self._models.get(key)
            return None if model is None else model.signature

        return (yield from self.flights.share(talk, ("metadata", key), known, lambda: self.describe(talk, key)))

    def describe(self, talk: Talk, key: Key) -> Steps[Signature]:
        """A model's tensors, as the server has them now."""
        signature = self.of(key).signature = Signature((yield from talk.ask(DescribeModel(*key))))
        return signature

    def batching(self, talk: Talk, key: Key) -> Steps[Batching]:
        """How a model takes batches, asked once."""

        def known() -> Batching | None:
            model = self._models.get(key)
            return None if model is None else model.batching

        def ask() -> Steps[Batching]:
            try:
                config = yield from talk.ask(ReadConfig(*key))
                batching = Batching.of(config, self._new_signal, merge=self.merge)
            except (InvalidRequestError, ModelNotFoundError, TypeError, ValueError):  # a server without configurations
                batching = Batching(0, None)
            self.of(key).batching = batching
            return batching

        return (yield from self.flights.share(talk, ("batching", key), known, ask))

    def forget(self, key: Key) -> None:
        """What comes back may be another model."""
        model = self._models.pop(key, None)
        if model is not None:  # others may hold it still
            model.signature = model.batching = None
