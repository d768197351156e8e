from __future__ import annotations

import pytest

from convoy.contract.errors import UsageError
from convoy.serving.client import Client
from convoy.serving.client._endpoint import Endpoint


@pytest.mark.parametrize(
    ("url", "written_out"),
    [
        ("grpc://localhost:8001", "grpc://localhost:8001"),
        ("grpc://localhost", "grpc://localhost:8001"),
        ("http://10.0.0.7", "http://10.0.0.7:8000"),
        ("http://host:80/", "http://host:80"),
        ("grpcs://host", "grpcs://host:443"),
        ("https://host:8443", "https://host:8443"),
        ("grpc://[::1]:9", "grpc://[::1]:9"),
        ("GRPC://Host", "grpc://host:8001"),
    ],
)
def test_a_url_is_taken_apart_with_tritons_ports_as_defaults(url: str, written_out: str) -> None:
    assert str(Endpoint.parse(url)) == written_out


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("", "scheme is missing"),
        ("localhost:8001", "Did you mean grpc://localhost:8001?"),
        ("ftp://host", "unknown scheme 'ftp'"),
        ("grpc://", "host is missing"),
        ("grpc://:8001", "host is missing"),
        ("http://host/v2", "found '/v2'"),
        ("http://host?x=1", "nothing may follow"),
        ("http://host:99999", "Port out of range"),
        ("http://host:x", "Port could not be cast"),
        ("http://host:0", "port 0"),
        ("http://user:secret@host", "credentials"),
        ("http://my host", "white space"),
        ("grpc://[::1", "Invalid IPv6"),
        (None, "scheme is missing"),
    ],
)
def test_a_url_that_is_none_is_refused_with_what_is_accepted(url: str, found: str) -> None:
    with pytest.raises(UsageError, match="Accepted: grpc://HOST") as caught:
        Client(url)
    assert found in str(caught.value)
