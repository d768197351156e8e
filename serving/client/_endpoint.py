"""Where a server is: the URL that the caller gave, taken apart and checked."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit

from convoy.contract.errors import UsageError

DEFAULT_URL: Final = "grpc://localhost:8001"

_DEFAULT_PORTS: Final = {"grpc": 8001, "http": 8000, "grpcs": 443, "https": 443}
_ACCEPTED: Final = "Accepted: grpc://HOST[:8001], http://HOST[:8000], grpcs://HOST[:443] or https://HOST[:443]."


@dataclass(frozen=True)
class Endpoint:
    """One server's address and protocol.

    Attributes:
        scheme: ``grpc``, ``grpcs``, ``http`` or ``https``.
        host: A name or an address; IPv6 without brackets.
        port: 1 to 65535.
        ip: One of the addresses behind ``host``, where this one is meant; else empty.
    """

    scheme: str
    host: str
    port: int
    ip: str = ""

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """Take a URL apart.

        Args:
            url: ``SCHEME://HOST[:PORT]``. The port may be left out: 8001 for ``grpc``, 8000 for ``http`` (Triton's own), 443 for
                ``grpcs`` and ``https`` (TLS stands in a proxy before the server).

        Raises:
            UsageError: It is no such URL.
        """
        if not isinstance(url, str) or "://" not in url:
            hint = f" Did you mean grpc://{url}?" if isinstance(url, str) and url and "/" not in url else ""
            raise UsageError(f"{url!r} is no server URL: the scheme is missing.{hint} {_ACCEPTED}")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UsageError(f"{url!r} is no server URL: {error}. {_ACCEPTED}") from error
        found = ""
        if parts.scheme not in _DEFAULT_PORTS:
            found = f"unknown scheme {parts.scheme!r}"
        elif parts.username is not None or parts.password is not None:
            found = "it holds credentials; pass them as headers={'authorization': ...}"
        elif not parts.hostname or any(character.isspace() for character in parts.netloc):
            found = "the host is missing" if not parts.hostname else "the host holds white space"
        elif parts.path not in ("", "/") or parts.query or parts.fragment:
            found = f"nothing may follow the port, found {url.split(parts.netloc, 1)[1]!r}"
        elif port == 0:
            found = "port 0 is no address"
        if found:
            raise UsageError(f"{url!r} is no server URL: {found}. {_ACCEPTED}")
        assert parts.hostname is not None
        return cls(parts.scheme, parts.hostname, port if port is not None else _DEFAULT_PORTS[parts.scheme])

    @property
    def uses_grpc(self) -> bool:
        """Whether the server is spoken to by gRPC (else by REST)."""
        return self.scheme in ("grpc", "grpcs")

    @property
    def secure(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme in ("grpcs", "https")

    @property
    def authority(self) -> str:
        """``HOST:PORT`` as the URL has it, IPv6 in brackets."""
        return _joined(self.host, self.port)

    @property
    def address(self) -> str:
        """What is connected to: ``HOST:PORT``, or the one address that is meant."""
        return _joined(self.ip or self.host, self.port)

    @property
    def name(self) -> str:
        """The URL, the port written out."""
        return f"{self.scheme}://{self.authority}"

    @property
    def shares_memory(self) -> bool:
        """Whether its address is this machine's own, and the machine has memory that can be shared."""
        host = self.ip or self.host
        return sys.platform == "linux" and (host in ("localhost", "::1") or host.startswith("127."))

    def at(self, ip: str) -> Endpoint:
        """One of the addresses behind this name."""
        return replace(self, ip=ip)

    def __str__(self) -> str:
        return f"{self.name} ({self.ip})" if self.ip else self.name


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
