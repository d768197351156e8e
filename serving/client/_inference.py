"""How one inference is sent: straight, with those of others, or on all ways that the router knows; whether its answer is one."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from typing import Any, Final, cast

from convoy.contract.errors import ClientError, InvalidRequestError, InvalidResponseError, ModelNotFoundError, UnavailableError
from convoy.serving.client._answer import InferResult
from convoy.serving.client._call import Call, Infer
from convoy.serving.client._crowd import AT_ONCE
from convoy.serving.client._datatype import NUMPY_DTYPES
from convoy.serving.client._models import Key, Models
from convoy.serving.client._router import Talk
from convoy.serving.client._steps import Attempt, Steps

MOST_BYTES: Final = 16 << 20
"""The most bytes of tensors in a request of a batch that is split: Triton's REST takes 64 MiB, proxies often less, and many
requests of some size keep a server as busy as few huge ones, with less memory on both sides."""

_LARGE: Final = 64 << 10
"""From this size on it may matter how large the answer will be."""


class Inferences:
    """Sends the inferences of one client, each by itself or with those of others. Safe under threads.

    Args:
        endpoint: Where the server is, for messages.
        models: What is remembered of its models.
    """

    def __init__(self, endpoint: object, models: Models) -> None:
        self._endpoint = endpoint
        self._models = models
        self._lock = threading.Lock()
        self._under_way: dict[Key, int] = {}  # of models of whose batches nothing is known yet, or of callers who are alone

    def leave_parent(self) -> None:
        """This is a child process: what is under way in the parent is nothing to us."""
        self._lock = threading.Lock()
        self._under_way = {}

    def send(self, talk: Talk, call: Infer, rows: int) -> Steps[InferResult]:
        """Have an inference answered: with those of others, where many wait and the model's rows are each other's strangers.

        Args:
            talk: The call.
            call: The inference.
            rows: Its rows; 0 where it is to be sent as it is.
        """
        key = (call.model_name, call.model_version)
        if not rows or not self._models.merge:
            return (yield from self._run(talk, call))
        batching = self._models.known_batching(key)
        if batching is None:
            with self._lock:
                under_way = self._under_way[key] = self._under_way.get(key, 0) + 1
            try:
                if under_way <= AT_ONCE:
                    return (yield from self._run(talk, call))
                batching = yield from self._models.batching(talk, key)
            finally:
                self._leave(call)
        if batching.crowd is None:
            return (yield from self._run(talk, call))
        return (yield from batching.crowd.infer(call, rows, talk.deadline, partial(self._run, talk), talk.observed.merged))

    def is_crowded(self, key: Key) -> bool:
        """Whether so many inferences of a model are under way that another waits for company."""
        batching = self._models.known_batching(key)
        crowd = None if batching is None else batching.crowd
        return crowd is not None and crowd.n_under_way >= AT_ONCE

    def start_straight(self, talk: Talk, call: Infer, rows: int) -> Attempt[InferResult] | None:
        """The request of a caller who is alone; None where there is something to choose from, or others are under way.

        After it comes ``arrived``, ``failed`` or ``gone``, in any case.
        """
        key = (call.model_name, call.model_version)
        batching = self._models.known_batching(key)
        if rows > 1 and (batching is None or rows > batching.most_rows or sum(len(t.data) for t in call.inputs) > MOST_BYTES):
            return None
        with self._lock:
            under_way = self._under_way.get(key, 0)
            if self._models.merge and under_way >= AT_ONCE:
                return None
            self._under_way[key] = under_way + 1
        attempt = talk.straight(self._expecting(call))
        if attempt is None:
            self._leave(call)
        return attempt

    def arrived(self, attempt: Attempt[InferResult], result: InferResult) -> InferResult:
        """The answer to a straight request, where it is one.

        Raises:
            InvalidResponseError: It is not.
        """
        self._leave(attempt.call)
        return self._checked(cast(Infer, attempt.call), result)

    def gone(self, attempt: Attempt[InferResult]) -> None:
        """The caller of a straight request does not wait for its answer any more."""
        self._leave(attempt.call)

    def failed(self, talk: Talk, attempt: Attempt[InferResult], error: ClientError) -> Steps[InferResult]:
        """What ``infer`` does after a straight request that failed."""
        self._leave(attempt.call)
        call = cast(Infer, attempt.call)
        try:
            return self._checked(call, (yield from talk.resume(attempt, error)))
        except (InvalidRequestError, ModelNotFoundError, UnavailableError):  # what comes back may be another model
            self._models.forget((call.model_name, call.model_version))
            raise

    def _leave(self, call: Call[Any]) -> None:
        with self._lock:
            key = (call.model_name, call.model_version)
            self._under_way[key] = max(0, self._under_way.get(key, 0) - 1)

    def _expecting(self, call: Infer) -> Infer:
        """The call with the sizes of its outputs, where it is large and the model declares them."""
        n_bytes = 0
        for tensor in call.inputs:
            n_bytes += len(tensor.data)
        if n_bytes < _LARGE:
            return call
        metadata = self._models.known_metadata((call.model_name, call.model_version))
        if metadata is None:
            return call
        rows = call.inputs[0].shape[0]
        batched = all(tensor.shape[:1] == (-1,) for tensor in metadata.inputs)
        expects = []
        for name, datatype, shape in ((tensor.name, tensor.datatype, tensor.shape) for tensor in metadata.outputs):
            full = (rows, *shape[1:]) if batched and shape[:1] == (-1,) else shape
            if datatype in NUMPY_DTYPES and min(full, default=1) > 0 and (not call.outputs or name in call.outputs):
                expects.append((name, datatype, full))
        return replace(call, expects=tuple(expects))

    def _run(self, talk: Talk, call: Infer) -> Steps[InferResult]:
        call = self._expecting(call)
        attempt = talk.straight(call)
        if attempt is None:
            result = yield from talk.ask(call)
        else:
            try:
                result = yield attempt
            except ClientError as error:
                result = yield from talk.resume(attempt, error)
        return self._checked(call, result)

    def _checked(self, call: Infer, result: InferResult) -> InferResult:
        found = ""
        if result.model_name and result.model_name != call.model_name:
            found = f"an answer of model {result.model_name!r}"
        elif call.model_version and result.model_version and result.model_version != call.model_version:
            found = f"an answer of version {result.model_version}"
        elif missing := [name for name in call.outputs if name not in result.outputs]:
            found = f"no output {missing[0]!r} but {sorted(result.outputs)}"
        if found:
            raise InvalidResponseError(f"{self._endpoint}: expected an answer of {call.subject}, found {found}.")
        return result
