"""One keep-alive connection that carries one prebuilt HTTP/1.1 request at a time, without blocking."""

from __future__ import annotations

import re
from typing import Final

from convoy.serving.load.connection import Connection

_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r\n", re.IGNORECASE)
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3})(?: [^\r\n]*)?\r\n")
_LONGEST_HEAD: Final = 65_536
_SHOWN: Final = 300


class ResponseParser:
    """Finds the end of each response in a stream of bytes, which may come in pieces of any size.

    Of a response it reads the status and the length; heads that it has seen before cost one comparison.
    """

    def __init__(self) -> None:
        self._buffer = b""
        self._head = b"\0"  # the head of the last response of status 200, which most others have too
        self._total = -1  # how long a response with that head is
        self._ends = False

    @property
    def ends(self) -> bool:
        """Whether the server closes the connection after the last response."""
        return self._ends

    def feed(self, data: bytes) -> tuple[bool, str]:
        """Take in what came.

        Returns:
            Whether a response is complete, and what is wrong with it; empty where its status is 200.

        Raises:
            ValueError: It is no HTTP/1.1 response with a Content-Length.
        """
        if self._buffer:
            data = self._buffer + data
        if len(data) == self._total and data.startswith(self._head):
            self._buffer = b""
            return True, ""
        return self._slowly(data)

    def _slowly(self, data: bytes) -> tuple[bool, str]:
        self._buffer = data
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            if len(data) > _LONGEST_HEAD or not b"HTTP/1."[: len(data)].startswith(data[:7]):
                raise ValueError(f"expected an HTTP/1.1 response, found {data[:60]!r}")
            return False, ""
        head = data[:end]
        status, length = _STATUS.match(head), _LENGTH.search(head)
        if status is None:
            raise ValueError(f"expected an HTTP/1.1 response, found {data[:60]!r}")
        if length is None:
            raise ValueError("expected a response with a Content-Length, found none")
        total = end + int(length[1])
        if len(data) < total:
            return False, ""
        self._buffer = data[total:]
        if self._buffer:
            raise ValueError("expected one response a request, found more bytes")
        self._ends = b"\r\nconnection: close\r\n" in head.lower()
        if status[1] == b"200":
            if not self._ends:
                self._head, self._total = head, total
            return True, ""
        return True, f"status {status[1].decode()}: {data[end:total][:_SHOWN].decode('utf-8', 'replace').strip()}"

    def reset(self) -> None:
        """Forget what came of a response that will not be completed."""
        self._buffer, self._ends = b"", False


class HttpConnection(Connection):
    """A connection for one request at a time.

    Args:
        address: As ``Connection`` has it.
        request: The whole request, head and body.
    """

    def __init__(self, address: tuple[int, object], request: bytes) -> None:
        super().__init__(address, slots=1)
        self._request = request
        self._parser = ResponseParser()
        self._began = 0

    def start(self, began: int) -> None:
        """See ``Connection.start``."""
        self.in_flight = 1
        self._began = began
        self._outgoing.append(self._request)

    def read(self, finished: list[int], failed: list[str]) -> None:
        """See ``Connection.read``."""
        data = self._receive()
        if data is None:
            return
        try:
            complete, problem = self._parser.feed(data) if data else (False, "")
        except ValueError as error:
            self.lost = str(error)
            return
        if not data:
            self.lost = "the server closed the connection before its answer was complete"
        elif not self.in_flight:
            self.lost = "the server sent something that nobody asked for"
        elif complete:
            self.in_flight = 0
            if problem:
                failed.append(problem)
            else:
                finished.append(self._began)
            if self._parser.ends:
                self.lost = "the server closes its connections"

    def oldest(self) -> int | None:
        """See ``Connection.oldest``."""
        return self._began if self.in_flight else None

    def _reset(self) -> None:
        self._parser.reset()
