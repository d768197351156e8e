"""Convoy: from a PyTorch convolutional network to a validated ONNX file, a Triton server and its callers.

``from convoy import Client, AsyncClient, score``, with what their callers name: options and errors. Everything else is reached
through its stage: ``convoy.training``, ``convoy.export``, ``convoy.serving``. Nothing is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convoy.contract.errors import AuthenticationError as AuthenticationError
    from convoy.contract.errors import ClientError as ClientError
    from convoy.contract.errors import ConvoyError as ConvoyError
    from convoy.contract.errors import DeadlineExceededError as DeadlineExceededError
    from convoy.contract.errors import ImageError as ImageError
    from convoy.contract.errors import InvalidRequestError as InvalidRequestError
    from convoy.contract.errors import InvalidResponseError as InvalidResponseError
    from convoy.contract.errors import ModelNotFoundError as ModelNotFoundError
    from convoy.contract.errors import OverloadedError as OverloadedError
    from convoy.contract.errors import ServerFailureError as ServerFailureError
    from convoy.contract.errors import UnavailableError as UnavailableError
    from convoy.contract.errors import UsageError as UsageError
    from convoy.serving.client import Amount as Amount
    from convoy.serving.client import AsyncClient as AsyncClient
    from convoy.serving.client import Client as Client
    from convoy.serving.client import InferResult as InferResult
    from convoy.serving.client import Prediction as Prediction
    from convoy.serving.client import Retry as Retry
    from convoy.serving.client import Tls as Tls
    from convoy.serving.scoring import score as score

__version__ = "0.1.0"
__all__ = [
    "Amount",
    "AsyncClient",
    "AuthenticationError",
    "Client",
    "ClientError",
    "ConvoyError",
    "DeadlineExceededError",
    "ImageError",
    "InferResult",
    "InvalidRequestError",
    "InvalidResponseError",
    "ModelNotFoundError",
    "OverloadedError",
    "Prediction",
    "Retry",
    "ServerFailureError",
    "Tls",
    "UnavailableError",
    "UsageError",
    "__version__",
    "score",
]

_ERRORS = (
    "AuthenticationError",
    "ClientError",
    "ConvoyError",
    "DeadlineExceededError",
    "ImageError",
    "InvalidRequestError",
    "InvalidResponseError",
    "ModelNotFoundError",
    "OverloadedError",
    "ServerFailureError",
    "UnavailableError",
    "UsageError",
)
_HOME = {
    **dict.fromkeys(_ERRORS, "convoy.contract.errors"),
    **dict.fromkeys(("Amount", "AsyncClient", "Client", "InferResult", "Prediction", "Retry", "Tls"), "convoy.serving.client"),
    "score": "convoy.serving.scoring",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'convoy' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
