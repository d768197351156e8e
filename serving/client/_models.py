"""What a client remembers of a server's models: their tensors, and how they take batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from convoy.contract.errors import InvalidRequestError, ModelNotFoundError
from convoy.serving.client._answer import ModelMetadata
from convoy.serving.client._call import DescribeModel, ReadConfig
from convoy.serving.client._crowd import Crowd
from convoy.serving.client._flight import Flights
from convoy.serving.client._router import Talk
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


class Models:
    """What one client remembers of its server's models. Safe under threads: entries are replaced whole.

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
        self._metadata: dict[Key, ModelMetadata] = {}
        self._batchings: dict[Key, Batching] = {}

    def leave_parent(self) -> None:
        """This is a child process: who waits for whom in the parent is nothing to us."""
        self.flights = Flights(self._new_signal)
        self._batchings = {}

    def known_metadata(self, key: Key) -> ModelMetadata | None:
        """What is remembered of a model's tensors."""
        return self._metadata.get(key)

    def metadata(self, talk: Talk, key: Key) -> Steps[ModelMetadata]:
        """A model's tensors, asked once."""
        return (
            yield from self.flights.share(
                talk, ("metadata", key), lambda: self._metadata.get(key), lambda: self.describe(talk, key)
            )
        )

    def describe(self, talk: Talk, key: Key) -> Steps[ModelMetadata]:
        """A model's tensors, as the server has them now."""
        metadata = yield from talk.ask(DescribeModel(*key))
        self._metadata[key] = metadata
        return metadata

    def known_batching(self, key: Key) -> Batching | None:
        """What is remembered of how a model takes batches."""
        return self._batchings.get(key)

    def batching(self, talk: Talk, key: Key) -> Steps[Batching]:
        """How a model takes batches, asked once."""

        def ask() -> Steps[Batching]:
            try:
                config = yield from talk.ask(ReadConfig(*key))
                batching = Batching.of(config, self._new_signal, merge=self.merge)
            except (InvalidRequestError, ModelNotFoundError, TypeError, ValueError):  # a server without configurations
                batching = Batching(0, None)
            self._batchings[key] = batching
            return batching

        return (yield from self.flights.share(talk, ("batching", key), lambda: self._batchings.get(key), ask))

    def forget(self, key: Key) -> None:
        """What comes back may be another model."""
        self._metadata.pop(key, None)
        self._batchings.pop(key, None)
