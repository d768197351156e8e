"""Every error that Convoy raises on purpose, as one tree.

::

    ConvoyError                     the root: catch this to catch them all
    ├── UsageError                  the call itself is wrong (exit 2)
    ├── MissingDependencyError      an extra, a library or a system part is not installed (exit 2)
    ├── DataError                   a data set cannot be found or read
    │   ├── ImageError              one image cannot be read
    │   └── SourceChangedError      what is scored changed after the run began
    ├── TrainingError               training cannot go on
    ├── ContractError               a file that stages exchange is missing, damaged or of another version
    │   ├── DigestMismatchError     a file is not the one that its digest names
    │   └── SignatureError          an export is not signed, or not by the key that was expected, or was changed since
    ├── ExportError                 a network cannot be turned into an ONNX file that loads everywhere
    ├── ValidationFailedError       the ONNX file does not decide as the network does
    ├── RepositoryError             a model repository refuses a change
    │   ├── NotValidatedError       no passed validation report stands behind the file
    │   └── IncompatibleModelError  labels, dims or datatypes would change under one model name
    ├── ServerError                 the Triton process cannot start, or did not stay up
    ├── ScoringError                a scoring run cannot go on
    └── ClientError                 a call to a server failed
        ├── InvalidRequestError     the server refused what was sent (INVALID_ARGUMENT, 400)
        ├── ModelNotFoundError      the server has no such model or version (NOT_FOUND, 404)
        ├── AuthenticationError     the server wants other credentials (UNAUTHENTICATED, 401, 403)
        ├── DeadlineExceededError   no answer in time (DEADLINE_EXCEEDED, 504)
        ├── UnavailableError        no server, or one that is not ready (UNAVAILABLE, 503)
        ├── OverloadedError         the server sheds load (RESOURCE_EXHAUSTED, 429)
        ├── InvalidResponseError    the answer is not what the protocol or the model promises
        └── ServerFailureError      the server failed while it worked (INTERNAL, 500)

Each message says what was expected, what was found and what to do.
"""

from __future__ import annotations

from typing import ClassVar


class ConvoyError(Exception):
    """The root of Convoy's errors.

    Attributes:
        exit_code: What the command line exits with: 1 the work failed, 2 the call was wrong.
    """

    exit_code: ClassVar[int] = 1


class UsageError(ConvoyError):
    """The call itself is wrong: a bad name, an unknown option, values that exclude each other."""

    exit_code = 2


class MissingDependencyError(ConvoyError):
    """An extra, a shared library or a system part that the work needs is not installed."""

    exit_code = 2


class DataError(ConvoyError):
    """A data set cannot be found or read."""


class ImageError(DataError):
    """One image cannot be read, or cannot be brought to the model's size."""


class SourceChangedError(DataError):
    """A file that holds many inputs is no longer the one that was listed."""


class TrainingError(ConvoyError):
    """Training cannot go on."""


class ContractError(ConvoyError):
    """A file that stages exchange is missing, damaged or of another version."""


class DigestMismatchError(ContractError):
    """A file is not the one that its recorded SHA-256 digest names."""


class SignatureError(ContractError):
    """An export is not signed, is signed by another key than the one expected, or was changed since."""


class ExportError(ConvoyError):
    """A network cannot be turned into an ONNX file that loads on every target server."""


class ValidationFailedError(ConvoyError):
    """The ONNX file does not decide as the PyTorch network does."""


class RepositoryError(ConvoyError):
    """A model repository refuses a change, or is not what it should be."""


class NotValidatedError(RepositoryError):
    """No passed validation report stands behind the file that was to be deployed."""


class IncompatibleModelError(RepositoryError):
    """Labels, dims or datatypes would change under one model name."""


class ServerError(ConvoyError):
    """The Triton process cannot start, or did not stay up."""


class ScoringError(ConvoyError):
    """A scoring run cannot go on."""


class ClientError(ConvoyError):
    """A call to a server failed."""


class InvalidRequestError(ClientError):
    """The server refused what was sent."""


class ModelNotFoundError(ClientError):
    """The server has no such model, or no such version of it."""


class AuthenticationError(ClientError):
    """The server wants other credentials."""


class DeadlineExceededError(ClientError):
    """No answer came in time."""


class UnavailableError(ClientError):
    """No server answers at the address, or it is not ready."""


class OverloadedError(ClientError):
    """The server sheds load: it took no work on."""


class InvalidResponseError(ClientError):
    """The answer is not what the protocol, or the model's own description, promises."""


class ServerFailureError(ClientError):
    """The server failed while it worked on the request."""
