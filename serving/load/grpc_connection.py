"""One HTTP/2 connection that carries many unary gRPC calls with one prebuilt message, without blocking.

A client library spends 200 microseconds and more of Python on a call; the frames of a call whose bytes never change are a handful
of bytes around them, and cost a tenth of that. Frames: RFC 9113; gRPC's use of them: its "gRPC over HTTP2".
"""

from __future__ import annotations

from collections import deque
from struct import Struct
from typing import Final
from urllib.parse import unquote

from convoy.serving.load.connection import Connection
from convoy.serving.load.header_block import decode, encode

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_HEADER_TABLE_SIZE, _ENABLE_PUSH, _MAX_CONCURRENT, _INITIAL_WINDOW, _MAX_FRAME = 1, 2, 3, 4, 5
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_WINDOW: Final = 65_535  # what both sides may send at first
_LARGEST: Final = 2**31 - 1
_FRAME: Final = 16_384  # the largest payload of a frame unless the server takes larger ones
_REFILL: Final = 2**30
_REFUSED: Final = b"\0\0\0\7"

_HEAD: Final = Struct(">IBI")  # length and type, flags, stream
_WORD: Final = Struct(">I")
_SETTING: Final = Struct(">HI")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame."""
    return _HEAD.pack(len(payload) << 8 | kind, flags, stream) + payload


class GrpcConnection(Connection):
    """A connection for unary calls of one method with one message.

    Args:
        address: As ``Connection`` has it.
        authority: ``HOST:PORT``, for the server.
        method: ``/package.Service/Method``.
        message: The serialised request.
        slots: How many calls it may carry at once.
    """

    def __init__(self, address: tuple[int, object], authority: str, method: str, message: bytes, slots: int) -> None:
        super().__init__(address, slots)
        self._block = encode(
            [
                (":method", "POST"), (":scheme", "http"), (":path", method), (":authority", authority),
                ("content-type", "application/grpc"), ("te", "trailers"), ("user-agent", "convoy-load"),
            ]
        )  # fmt: skip
        self._body = b"\0" + len(message).to_bytes(4, "big") + message  # not compressed, then its length
        self._known: dict[bytes, bool] = {}  # header blocks that say nothing but "well"
        self._reset()

    def _reset(self) -> None:
        self._streams: dict[int, int] = {}  # calls under way: stream -> began
        self._next = 1
        self._buffer = b""
        self._block_parts: list[bytes] = []
        self._received = 0
        # What the server lets us send, on the connection and on each stream; no call before it has said how many.
        self._window, self._initial, self._frame, self._limit = _WINDOW, _WINDOW, _FRAME, 0
        self._waiting: deque[int] = deque()  # began of calls for which the server has no stream left
        self._unsent: dict[int, list[int]] = {}  # stream -> how much of the body was sent, how much more may be
        self._pieces = self._cut()

    @property
    def established(self) -> bool:
        """See ``Connection.established``."""
        return self.connected and self._limit > 0

    def open(self) -> None:
        """See ``Connection.open``."""
        super().open()
        settings = ((_HEADER_TABLE_SIZE, 0), (_ENABLE_PUSH, 0), (_INITIAL_WINDOW, _LARGEST), (_MAX_FRAME, 2**24 - 1))
        self._outgoing += [
            _PREFACE,
            frame(_SETTINGS, 0, 0, b"".join(_SETTING.pack(*setting) for setting in settings)),
            frame(_WINDOW_UPDATE, 0, 0, _WORD.pack(_LARGEST - _WINDOW)),
        ]

    def start(self, began: int) -> None:
        """See ``Connection.start``."""
        self.in_flight += 1
        if len(self._streams) >= self._limit:
            self._waiting.append(began)
            return
        stream = self._next
        self._next += 2
        self._streams[stream] = began
        size = len(self._body)
        if size <= self._window and size <= self._initial and not self._unsent:
            self._window -= size
            self._outgoing.append(_WORD.pack(stream).join(self._pieces))
        else:
            self._outgoing.append(_HEAD.pack(len(self._block) << 8 | _HEADERS, _END_HEADERS, stream) + self._block)
            self._unsent[stream] = [0, self._initial]
            self._send_more()

    def read(self, finished: list[int], failed: list[str]) -> None:
        """See ``Connection.read``."""
        data = self._receive()
        if data is None:
            return
        if not data:
            self.lost = "the server closed the connection"
            return
        buffer = self._buffer + data if self._buffer else data
        at, size = 0, len(buffer)
        try:
            while size - at >= 9:
                head, flags, stream = _HEAD.unpack_from(buffer, at)
                length, kind = head >> 8, head & 0xFF
                end = at + 9 + length
                if end > size:
                    break
                if kind == _DATA:
                    self._received += length
                    if flags & _END_STREAM:
                        self._end(stream, "the server ended the call without a status", finished, failed)
                elif kind == _HEADERS:
                    self._headers(flags, stream, buffer[at + 9 : end], finished, failed)
                else:
                    self._control(kind, flags, stream, buffer[at + 9 : end], finished, failed)
                at = end
        except ValueError as error:
            self.lost = str(error)
        self._buffer = buffer[at:]
        if self._received > _REFILL:
            self._outgoing.append(frame(_WINDOW_UPDATE, 0, 0, _WORD.pack(self._received)))
            self._received = 0
        while self._waiting and len(self._streams) < self._limit:
            self.in_flight -= 1
            self.start(self._waiting.popleft())

    def oldest(self) -> int | None:
        """See ``Connection.oldest``."""
        return min((*self._streams.values(), *self._waiting), default=None)

    def _headers(self, flags: int, stream: int, payload: bytes, finished: list[int], failed: list[str]) -> None:
        if flags & (_PADDED | _PRIORITY):
            padding = payload[0] if flags & _PADDED else 0
            payload = payload[bool(flags & _PADDED) + (5 if flags & _PRIORITY else 0) : len(payload) - padding]
        if not flags & _END_HEADERS:
            self._block_parts = [bytes([flags & _END_STREAM]), payload]
            return
        if flags & _END_STREAM:
            self._end(stream, "" if payload in self._known else self._problem(payload, trailers=True), finished, failed)
        elif payload not in self._known:
            problem = self._problem(payload, trailers=False)
            if problem:
                self._end(stream, problem, finished, failed)

    def _problem(self, block: bytes, *, trailers: bool) -> str:
        """What a header block says is wrong; empty where nothing is."""
        headers = decode(block)
        status = headers.get(":status", "200")
        if status != "200":
            return f"status {status}"
        code = headers.get("grpc-status")
        if code == "0" or (code is None and not trailers):
            self._known[block] = True
            return ""
        if code is None:
            return "the server ended the call without a status"
        return f"gRPC status {code}: {unquote(headers.get('grpc-message', 'no details'))}"

    def _end(self, stream: int, problem: str, finished: list[int], failed: list[str]) -> None:
        began = self._streams.pop(stream, None)
        if began is None:
            return  # it had failed before
        self.in_flight -= 1
        if self._unsent:
            self._unsent.pop(stream, None)
        if problem:
            failed.append(problem)
        else:
            finished.append(began)

    def _control(self, kind: int, flags: int, stream: int, payload: bytes, finished: list[int], failed: list[str]) -> None:
        if kind == _WINDOW_UPDATE:
            more = _WORD.unpack(payload)[0] & _LARGEST
            if not stream:
                self._window += more
            elif stream in self._unsent:
                self._unsent[stream][1] += more
            if self._unsent:
                self._send_more()
        elif kind == _PING:
            if not flags & _ACK:
                self._outgoing.append(frame(_PING, _ACK, 0, payload))
        elif kind == _SETTINGS:
            if not flags & _ACK:
                self._settle(payload)
                self._outgoing.append(frame(_SETTINGS, _ACK, 0))
        elif kind == _RST_STREAM and payload == _REFUSED and stream in self._streams:
            # The server had no room for the call and has not looked at it: it may be sent again (RFC 9113, section 8.7).
            self._waiting.appendleft(self._streams.pop(stream))
            self._unsent.pop(stream, None)
        elif kind == _RST_STREAM:
            self._end(stream, f"the server reset the call (HTTP/2 error {_WORD.unpack(payload)[0]})", finished, failed)
        elif kind == _GOAWAY:
            said = payload[8:].decode("utf-8", "replace")
            self.lost = f"the server closes the connection (HTTP/2 error {_WORD.unpack_from(payload, 4)[0]}{said and ': '}{said})"
        elif kind == _CONTINUATION:
            if not self._block_parts:
                raise ValueError("expected a frame of HTTP/2 that may stand here, found a CONTINUATION")
            self._block_parts.append(payload)
            if flags & _END_HEADERS:
                first, *parts = self._block_parts
                self._block_parts = []
                self._headers(_END_HEADERS | first[0], stream, b"".join(parts), finished, failed)

    def _settle(self, payload: bytes) -> None:
        """Take the server's settings over."""
        self._limit = self._limit or _LARGEST
        for name, value in _SETTING.iter_unpack(payload):
            if name == _INITIAL_WINDOW:
                for unsent in self._unsent.values():
                    unsent[1] += value - self._initial
                self._initial = value
            elif name == _MAX_FRAME:
                self._frame = value
                self._pieces = self._cut()
            elif name == _MAX_CONCURRENT:
                self._limit = value
        if self._unsent:
            self._send_more()

    def _send_more(self) -> None:
        """Send of the bodies that did not fit into the server's windows what fits now."""
        for stream in list(self._unsent):
            sent, allowed = self._unsent[stream]
            while sent < len(self._body):
                size = min(self._frame, len(self._body) - sent, self._window, allowed - sent)
                if size <= 0:
                    break
                flags = _END_STREAM if sent + size == len(self._body) else 0
                self._outgoing.append(frame(_DATA, flags, stream, self._body[sent : sent + size]))
                sent += size
                self._window -= size
            if sent == len(self._body):
                del self._unsent[stream]
            else:
                self._unsent[stream][0] = sent
            if self._window <= 0:
                return

    def _cut(self) -> list[bytes]:
        """A whole call's frames, cut where the stream's number stands."""
        pieces = [_HEAD.pack(len(self._block) << 8 | _HEADERS, _END_HEADERS, 0)[:5]]
        before = self._block
        for start in range(0, len(self._body), self._frame):
            chunk = self._body[start : start + self._frame]
            flags = _END_STREAM if start + len(chunk) == len(self._body) else 0
            pieces.append(before + _HEAD.pack(len(chunk) << 8 | _DATA, flags, 0)[:5])
            before = chunk
        return [*pieces, before]
