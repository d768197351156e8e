"""Questions about servers and models: who they are, whether they live and take requests, what they have counted."""

from __future__ import annotations

from typing import Any

from convoy.contract.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    ServerFailureError,
    UnavailableError,
    UsageError,
)
from convoy.serving.client._call import Call, DescribeModel, ModelReady, ReadStatistics, ServerReady
from convoy.serving.client._failure import NOT_OFFERED
from convoy.serving.client._names import check_name, check_version
from convoy.serving.client._router import Talk
from convoy.serving.client._steps import Steps


def is_up(talk: Talk, call: Call[bool]) -> Steps[bool]:
    """A health question: no server, one that fails, and one that does not answer in time, is a no and no error."""
    try:
        return (yield from talk.ask(call))
    except (UnavailableError, DeadlineExceededError, ModelNotFoundError, OverloadedError, ServerFailureError):
        return False


def ready(talk: Talk, model_name: str | None, model_version: str) -> Steps[bool]:
    """Whether the server, or one model, takes requests."""
    if model_name is None:
        if model_version:
            raise UsageError("ready: a model_version was given without a model_name.")
        return (yield from is_up(talk, ServerReady()))
    return (yield from is_up(talk, ModelReady(check_name(model_name), check_version(model_version))))


def statistics(talk: Talk, model_name: str, model_version: str) -> Steps[list[dict[str, Any]]]:
    """What a server counted of a model. Triton refuses the question where it has no such model, and does not say that it is so."""
    name, version = check_name(model_name), check_version(model_version)
    try:
        return (yield from talk.ask(ReadStatistics(name, version)))
    except InvalidRequestError as error:
        if NOT_OFFERED in str(error):
            raise
        yield from talk.ask(DescribeModel(name, version))  # which says so
        raise
