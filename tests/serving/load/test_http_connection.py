"""Responses in pieces, and responses that are none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.serving.load.http_connection import ResponseParser

HEAD = "HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\ncontent-length: {length}\r\n\r\n"


def respond(body: bytes, status: str = "200 OK") -> bytes:
    return HEAD.format(status=status, length=len(body)).encode() + body


@given(
    st.lists(st.tuples(st.binary(max_size=300), st.sampled_from(["200 OK", "503 Busy", "200", "404 Not Found"])), min_size=1),
    st.data(),
)
def test_responses_are_found_however_they_are_cut(responses: list[tuple[bytes, str]], data: st.DataObject) -> None:
    parser = ResponseParser()
    for body, status in responses:
        whole = respond(body, status)
        cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=5)))
        pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
        for piece in pieces[:-1]:
            assert parser.feed(piece) == (False, "")
        complete, problem = parser.feed(pieces[-1])
        assert complete
        assert (problem == "") == status.startswith("200")
        if problem:
            assert problem.startswith(f"status {status[:3]}: ")


def test_the_words_of_a_refusal_are_kept() -> None:
    assert ResponseParser().feed(respond(b'{"error":"too busy"}', "503 Service Unavailable")) == (
        True,
        'status 503: {"error":"too busy"}',
    )


def test_a_response_of_another_length_is_not_taken_for_the_last_one() -> None:
    parser = ResponseParser()
    assert parser.feed(respond(b"four")) == (True, "")
    assert parser.feed(respond(b"five!")) == (True, "")
    assert parser.feed(respond(b"four")[:-1]) == (False, "")
    assert parser.feed(b"r") == (True, "")


def test_a_server_that_closes_is_noticed() -> None:
    parser = ResponseParser()
    parser.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    assert parser.ends
    parser.reset()
    parser.feed(respond(b"x"))
    assert not parser.ends


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "expected an HTTP/1.1 response, found b'SSH"),
        (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", "expected an HTTP/1.1 response"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 abc\r\nContent-Length: 1\r\n\r\nx", "expected an HTTP/1.1 response"),
        (respond(b"one") + b"two", "one response a request"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000, "expected an HTTP/1.1 response"),
    ],
)
def test_what_is_no_response_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ResponseParser().feed(data)
