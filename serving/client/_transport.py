"""How calls reach a server: the two protocols that the client asks for, and who fulfils them for which URL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from convoy.contract.errors import UsageError
from convoy.serving.client._call import Call, R
from convoy.serving.client._endpoint import Endpoint

if TYPE_CHECKING:
    import ssl  # where it is needed it is imported: most clients do without it


class Transport(Protocol):
    """Sends calls and waits for their answers. Safe under threads."""

    def send(self, call: Call[R], timeout_s: float) -> R:
        """Ask the server.

        Args:
            call: The question.
            timeout_s: How long the answer may take, at most; told to the server too.

        Raises:
            ClientError: No answer, or one that is none.
        """
        ...

    def close(self) -> None:
        """Let go of every connection; calls under way may fail."""
        ...


class AsyncTransport(Protocol):
    """``Transport`` for coroutines."""

    async def send(self, call: Call[R], timeout_s: float) -> R:
        """Ask the server; see ``Transport.send``."""
        ...

    async def close(self) -> None:
        """Let go of every connection; calls under way may fail."""
        ...


@dataclass(frozen=True)
class Tls:
    """Whom to trust, and who we are, where TLS stands before the server.

    Attributes:
        ca_file: Certificates of those who may vouch for the server, PEM; None: those of this machine.
        certificate_file: Our own certificate and those that vouch for it, PEM; None: we show none.
        key_file: Its key, PEM, without a password.

    Raises:
        UsageError: A certificate is without its key, or the other way round.
    """

    ca_file: Path | str | None = None
    certificate_file: Path | str | None = None
    key_file: Path | str | None = None

    def __post_init__(self) -> None:
        if (self.certificate_file is None) != (self.key_file is None):
            raise UsageError("tls: certificate_file and key_file go together: give both, or neither.")

    def context(self) -> ssl.SSLContext:
        """What OpenSSL makes of it.

        Raises:
            UsageError: A file cannot be read, or is no PEM.
        """
        import ssl

        for file in (self.ca_file, self.certificate_file, self.key_file):
            try:
                if file is not None:
                    Path(file).open("rb").close()
            except OSError as error:
                raise UsageError(f"tls: expected a PEM file, {file} cannot be read: {error.strerror or error}.") from error
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.certificate_file is not None and self.key_file is not None:
                context.load_cert_chain(self.certificate_file, self.key_file, password=_no_password)
        except (OSError, ValueError) as error:  # ssl's own errors are OSErrors
            given = ", ".join(str(file) for file in (self.ca_file, self.certificate_file, self.key_file) if file is not None)
            raise UsageError(
                f"tls: expected PEM files with certificates and a key, found otherwise in {given}: {error}."
            ) from error
        return context


def _no_password() -> str:
    raise UsageError("tls: expected a key without a password.")


@dataclass(frozen=True)
class Options:
    """What holds for every request to every server.

    Attributes:
        headers: Headers, names in lower case.
        tls: Of ``grpcs`` and ``https``.
        shared_memory: Whether large tensors may go by way of shared memory.
        compression: How messages are made smaller: ``gzip``, or None.
    """

    headers: Mapping[str, str]
    tls: Tls
    shared_memory: bool = True
    compression: str | None = None


def open_transport(endpoint: Endpoint, options: Options) -> Transport:
    """The transport for an endpoint. Nothing is connected yet; grpc or httpcore is imported here, whichever is needed."""
    if endpoint.uses_grpc:
        from convoy.serving.client._grpc_channel import GrpcTransport

        transport = GrpcTransport(endpoint, options)
        if not (options.shared_memory and endpoint.shares_memory):
            return transport
        from convoy.serving.client._shared_memory import SharedMemoryTransport  # needs a POSIX system

        return SharedMemoryTransport(endpoint, transport)
    from convoy.serving.client._http_connection import HttpTransport

    return HttpTransport(endpoint, options)


def open_async_transport(endpoint: Endpoint, options: Options) -> AsyncTransport:
    """``open_transport`` for coroutines."""
    if endpoint.uses_grpc:
        from convoy.serving.client._grpc_channel import AsyncGrpcTransport

        transport = AsyncGrpcTransport(endpoint, options)
        if not (options.shared_memory and endpoint.shares_memory):
            return transport
        from convoy.serving.client._shared_memory import AsyncSharedMemoryTransport

        return AsyncSharedMemoryTransport(endpoint, transport)
    from convoy.serving.client._http_connection import AsyncHttpTransport

    return AsyncHttpTransport(endpoint, options)


_OURS = frozenset(("content-length", "content-type", "content-encoding", "transfer-encoding", "connection", "te", "grpc-timeout"))


def check_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Headers for every call, names in lower case.

    Raises:
        UsageError: A name or a value is no header's: not text, not ASCII, or with a control character in it.
    """
    checked: dict[str, str] = {}
    if headers is not None and not isinstance(headers, Mapping):
        raise UsageError(f"headers: expected a mapping of names to values, found {type(headers).__name__}.")
    for name, value in (headers or {}).items():
        if not (isinstance(name, str) and isinstance(value, str)):
            raise UsageError(f"headers: expected text for names and values, found {name!r}: {type(value).__name__}.")
        if not name or not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or not name.isascii():
            raise UsageError(f"headers: {name!r} is no header name: expected letters, digits, '-', '_' and '.'.")
        if not value.isascii() or not value.isprintable():
            raise UsageError(f"headers: the value of {name!r} may hold printable ASCII characters only.")
        if name.lower() in _OURS or name.lower().endswith("-bin"):
            raise UsageError(f"headers: {name!r} is the client's own, or for bytes: leave it out.")
        if value != value.strip():
            raise UsageError(f"headers: the value of {name!r} may not begin or end with blanks. (Is a token empty?)")
        checked[name.lower()] = value
    return checked
