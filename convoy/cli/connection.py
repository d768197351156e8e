"""How a command reaches its server: the options that say so, and the client that they make."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from convoy.serving.client import Client, Tls

DEFAULT_URL = "grpc://localhost:8001"

_MOST_NAMES = 20  # served models in a message
_SECURED: Final = {"grpc": "grpcs", "http": "https"}
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Connection:
    """A server, or several with the same models, and how to speak to it.

    Attributes:
        urls: Where it is.
        timeout_s: How long an answer may take, in seconds.
        headers: Sent with every request. They may be secrets: no part of what is printed.
        ca_file: Certificates of those who may vouch for the server, PEM; None: those of this machine.
    """

    urls: tuple[str, ...]
    timeout_s: float
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    ca_file: Path | None = None

    def tls(self) -> Tls:
        """Whom to trust."""
        from convoy.serving.client import Tls

        return Tls(ca_file=self.ca_file)

    def client(self) -> Client:
        """A client for the server; the caller closes it."""
        from convoy.serving.client import Client

        return Client(self.urls, timeout_s=self.timeout_s, headers=self.headers, tls=self.tls())


def server_options(function: Any) -> Any:
    """Add ``--url``, ``--tls``, ``--header``, ``--timeout`` (given on as one ``server``) and ``--model-version``."""

    @functools.wraps(function)
    def connected(
        *arguments: Any,
        urls: tuple[str, ...],
        tls: bool,
        ca_file: Path | None,
        headers: dict[str, str],
        timeout_s: float,
        **options: Any,
    ) -> Any:
        server = Connection(tuple(map(_secured, urls)) if tls else urls, timeout_s, headers, ca_file)
        return function(*arguments, server=server, **options)

    decorated: Any = connected
    for option in (
        click.option(
            "--timeout",
            "timeout_s",
            type=click.FloatRange(min=0, min_open=True),
            default=30.0,
            show_default=True,
            help="Seconds to wait for an answer.",
        ),
        click.option(
            "--header",
            "headers",
            multiple=True,
            metavar="'NAME: VALUE'",
            callback=_headers,
            help="Send a header with every request: credentials, say. May be given more than once.",
        ),
        click.option(
            "--ca",
            "ca_file",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            metavar="FILE",
            help="Certificates of those who may vouch for the server (PEM).  [default: those of this machine]",
        ),
        click.option("--tls", is_flag=True, help="Speak TLS: grpc:// becomes grpcs://, and http:// https://."),
        click.option("--model-version", default="", metavar="VERSION", help="The version to ask.  [default: the server's choice]"),
        click.option(
            "--url",
            "urls",
            multiple=True,
            default=(DEFAULT_URL,),
            show_default=True,
            metavar="URL",
            help="The server: grpc://, grpcs://, http:// or https://HOST:PORT. May be given more than once, for servers with the "
            "same models: they share the work.",
        ),
    ):
        decorated = option(decorated)
    return decorated


@contextmanager
def naming_the_served(url: str | tuple[str, ...], timeout_s: float, headers: Mapping[str, str] | None = None) -> Iterator[None]:
    """Add to the error of a model that the server does not have which ones it does have, where it tells."""
    from convoy.contract.errors import ClientError, ModelNotFoundError

    try:
        yield
    except ModelNotFoundError as error:
        try:
            urls = (url,) if isinstance(url, str) else url
            with Connection(urls, min(timeout_s, 5), headers or {}).client() as client:
                served = sorted((status.name, status.version) for status in client.models() if status.state == "READY")
        except ClientError:  # some servers do not tell; the first error is the one that counts
            raise error from None
        names = ", ".join(f"{name} (version {version})" for name, version in served[:_MOST_NAMES]) or "nothing"
        more = f" and {len(served) - _MOST_NAMES} more" if len(served) > _MOST_NAMES else ""
        raise ModelNotFoundError(f"{error} The server serves: {names}{more}.") from error


def _secured(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    return _SECURED.get(scheme, scheme) + mark + rest


def _headers(_context: click.Context, _parameter: click.Parameter, lines: tuple[str, ...]) -> dict[str, str]:
    """The headers by name. No message repeats what was given, since any part of it may be a secret."""
    headers: dict[str, str] = {}
    for i, line in enumerate(lines, 1):
        name, colon, value = (part.strip() for part in line.partition(":"))
        wrong = ""
        if not colon:
            wrong = "found no colon"
        elif not _HEADER_NAME.fullmatch(name):
            wrong = "found something else than letters, digits, '-', '_' and '.' before the colon"
        elif not value:
            wrong = "found nothing behind the colon"
        elif not (value.isascii() and value.isprintable()):
            wrong = "found a value with other than printable ASCII characters"
        elif name.lower() in headers:
            wrong = "found a name that was given before"
        if wrong:
            raise click.BadParameter(
                f"expected 'NAME: VALUE' as number {i}, {wrong}. (What was given is not shown: it may be secret.)"
            )
        headers[name.lower()] = value
    return headers
