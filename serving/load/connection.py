"""What a connection of the generator is, whatever the protocol: requests go out and answers come in, and nothing ever waits."""

from __future__ import annotations

import errno
import os
import socket
from abc import ABC, abstractmethod
from typing import Any, Final

_CHUNK: Final = 262_144


class Connection(ABC):
    """A non-blocking connection that carries up to ``slots`` requests at once.

    Attributes:
        slots: How many requests it may carry at once.
        in_flight: How many it carries.
        lost: Why the connection cannot be used any more; empty while it can.
        is_open: Whether it has a socket.
        watched: Which events the caller's selector watches; the caller's to keep.

    Args:
        address: The address family, and the address as the socket module has it.
        slots: How many requests it may carry at once.
    """

    def __init__(self, address: tuple[int, object], slots: int) -> None:
        self._family, self._address = address
        self._socket: socket.socket | None = None
        self._outgoing: list[bytes | memoryview] = []
        self._connecting = False
        self.slots = slots
        self.in_flight = 0
        self.lost = ""
        self.watched = 0

    @property
    def is_open(self) -> bool:
        """Whether it has a socket."""
        return self._socket is not None

    @property
    def connected(self) -> bool:
        """Whether the server has taken the connection."""
        return self._socket is not None and not self._connecting and not self.lost

    @property
    def established(self) -> bool:
        """Whether requests can be sent on it."""
        return self.connected

    @property
    def pending(self) -> bool:
        """Whether bytes wait until they can be sent."""
        return self._connecting or bool(self._outgoing)

    def fileno(self) -> int:
        """The socket's descriptor."""
        assert self._socket is not None
        return self._socket.fileno()

    def open(self) -> None:
        """Begin to connect; ``flush`` finishes it."""
        self.lost = ""
        self._socket = socket.socket(self._family, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = self._socket.connect_ex(self._address)  # type: ignore[arg-type]
        self._connecting = code == errno.EINPROGRESS
        if code and not self._connecting:
            self.lost = os.strerror(code)

    def close(self) -> int:
        """Drop the connection and what it carries.

        Returns:
            How many requests it carried.
        """
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        dropped, self.in_flight = self.in_flight, 0
        self._outgoing.clear()
        self._connecting = False
        self._reset()
        return dropped

    @abstractmethod
    def start(self, began: int) -> None:
        """Queue a request; ``flush`` sends it.

        Args:
            began: From when its latency counts, in ns.
        """

    def flush(self) -> None:
        """Send what is queued, as far as it can be sent now."""
        sock = self._socket
        if self.lost or sock is None:
            return
        try:
            if self._connecting:
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    self.lost = os.strerror(code)
                    return
                try:
                    sock.getpeername()
                except OSError:
                    return  # not yet
                self._connecting = False
            if not self._outgoing:
                return
            data: bytes | memoryview[Any] = self._outgoing[0] if len(self._outgoing) == 1 else b"".join(self._outgoing)
            sent = sock.send(data)
            if sent == len(data):
                self._outgoing.clear()
            else:
                self._outgoing[:] = [memoryview(data)[sent:]]
        except BlockingIOError:
            pass
        except OSError as error:
            self.lost = error.strerror or str(error)

    @abstractmethod
    def read(self, finished: list[int], failed: list[str]) -> None:
        """Take in what has come.

        Args:
            finished: For each request that was answered, its ``began`` is appended.
            failed: For each request that the server refused, its reason is appended.
        """

    @abstractmethod
    def oldest(self) -> int | None:
        """The ``began`` of the request that has waited longest; None where it carries none."""

    @abstractmethod
    def _reset(self) -> None:
        """Forget the state of the connection that was closed."""

    def _receive(self) -> bytes | None:
        """What has come; empty at the end of the stream; None where nothing has, or the connection broke."""
        assert self._socket is not None
        try:
            return self._socket.recv(_CHUNK)
        except BlockingIOError:
            return None
        except OSError as error:
            self.lost = error.strerror or str(error)
            return None
