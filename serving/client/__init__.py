"""The client: the pleasant way to call a Triton server, or any that speaks KServe v2, from Python.

``Client`` and ``AsyncClient`` have the same methods. ``classify`` is for people with images, ``read_amount`` for those with amounts
on images, ``infer`` for tensors. Every failure is a ``ClientError``; the tree is drawn in ``convoy.contract.errors``.

Example:
    >>> from convoy import Client
    >>> with Client("grpc://localhost:8001") as client:
    ...     for prediction in client.classify("lenet5", ["a.png", "b.png"]):
    ...         prediction.label, prediction.probability
"""

from __future__ import annotations

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
from convoy.serving.client._answer import Alternative as Alternative
from convoy.serving.client._answer import Amount as Amount
from convoy.serving.client._answer import Candidate as Candidate
from convoy.serving.client._answer import Character as Character
from convoy.serving.client._answer import InferResult as InferResult
from convoy.serving.client._answer import ModelMetadata as ModelMetadata
from convoy.serving.client._answer import ModelStatus as ModelStatus
from convoy.serving.client._answer import Prediction as Prediction
from convoy.serving.client._answer import ServerMetadata as ServerMetadata
from convoy.serving.client._answer import TensorMetadata as TensorMetadata
from convoy.serving.client._async_client import AsyncClient as AsyncClient
from convoy.serving.client._client import Client as Client
from convoy.serving.client._endpoint import DEFAULT_URL as DEFAULT_URL
from convoy.serving.client._retry import Retry as Retry
from convoy.serving.client._transport import Tls as Tls
