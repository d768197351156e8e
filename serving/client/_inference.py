"""How one inference is sent: straight, with those of others, or on all ways that the router knows; whether its answer is one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final, cast

from convoy.contract.errors import ClientError, InvalidRequestError, InvalidResponseError, ModelNotFoundError, UnavailableError
from convoy.serving.client._answer import InferResult
from convoy.serving.client._call import Infer
from convoy.serving.client._crowd import AT_ONCE
from convoy.serving.client._models import Model, Models
from convoy.serving.client._router import Talk
from convoy.serving.client._signature import expected_outputs
from convoy.serving.client._steps import Attempt, Steps

MOST_BYTES: Final = 16 << 20
"""The most bytes of tensors in a request of a batch that is split: Triton's REST takes 64 MiB, proxies often less, and many
requests of some size keep a server as busy as few huge ones, with less memory on both sides."""

LARGE: Final = 64 << 10
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
        model = self._models.of(key)
        batching = model.batching
        if batching is None:
            under_way = model.under_way
            under_way.append(None)
            try:
                if len(under_way) <= AT_ONCE:
                    return (yield from self._run(talk, call))
                batching = yield from self._models.batching(talk, key)
            finally:
                under_way.pop()
        if batching.crowd is None:
            return (yield from self._run(talk, call))
        return (yield from batching.crowd.infer(call, rows, talk.deadline, partial(self._run, talk), talk.observed.merged))

    def failed(self, talk: Talk, attempt: Attempt[InferResult], error: ClientError) -> Steps[InferResult]:
        """What comes after a first request on the short way that failed."""
        call = cast(Infer, attempt.call)
        try:
            return (yield from self.checked(talk, call, (yield from talk.resume(attempt, error))))
        except (InvalidRequestError, ModelNotFoundError, UnavailableError):  # what comes back may be another model
            self._models.forget((call.model_name, call.model_version))
            raise

    def checked(self, talk: Talk, call: Infer, result: InferResult) -> Steps[InferResult]:
        """An answer, where it is one to the call as the model describes itself.

        Raises:
            InvalidResponseError: It is another model's, or not what the model says that it gives.
        """
        key = (call.model_name, call.model_version)
        rows = call.inputs[0].shape[0] if call.inputs and call.inputs[0].shape else 0
        model = self._models.known(key)
        fault = self._fault(call, result, model, rows)
        if fault and model is not None and model.signature is not None:
            # What was remembered may be the model before this one.
            signature = yield from self._models.describe(talk, key)
            if signature.metadata != model.signature.metadata:
                model.batching = None
            fault = self._fault(call, result, self._models.known(key), rows)
        if fault:
            raise InvalidResponseError(f"{self._endpoint}: expected an answer of {call.subject}, found {fault}.")
        return result

    def _run(self, talk: Talk, call: Infer) -> Steps[InferResult]:
        call = self.expecting(call)
        attempt = talk.straight(call)
        if attempt is None:
            result = yield from talk.ask(call)
        else:
            try:
                result = yield attempt
            except ClientError as error:
                result = yield from talk.resume(attempt, error)
        return (yield from self.checked(talk, call, result))

    def expecting(self, call: Infer) -> Infer:
        """The call with the sizes of its outputs, where it is large and the model declares them."""
        n_bytes = 0
        for tensor in call.inputs:
            n_bytes += len(tensor.data)
        if n_bytes < LARGE:
            return call
        model = self._models.known((call.model_name, call.model_version))
        if model is None or model.signature is None:
            return call
        return replace(call, expects=expected_outputs(model.signature, call.outputs, call.inputs[0].shape[0]))

    def _fault(self, call: Infer, result: InferResult, model: Model | None, rows: int) -> str:
        """What makes an answer none; empty where nothing does."""
        if result.model_name != call.model_name and result.model_name:
            return f"an answer of model {result.model_name!r}"
        if call.model_version and result.model_version != call.model_version and result.model_version:
            return f"an answer of version {result.model_version}"
        signature = None if model is None else model.signature
        if model is not None and signature is not None:
            batching = model.batching
            has_rows = signature.is_batched and batching is not None and batching.most_rows > 0
            return signature.fault(result, call.outputs, rows if has_rows else 0)
        for name in call.outputs:
            if name not in result.outputs:
                return f"no output {name!r} but {sorted(result.outputs)}"
        return ""
