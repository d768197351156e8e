"""What lies between a client and its server on a bad day: a TCP proxy that does harm by a seed, and TLS before a server."""

from __future__ import annotations

import contextlib
import datetime
import enum
import ipaddress
import math
import random
import selectors
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import Self

_STEP_S = 0.05


class Harm(enum.Enum):
    """What may befall a connection, at any byte of either direction; the first byte included."""

    DELAY = "bytes come later"
    CUT = "both sides are told that the other has ended (FIN)"
    RESET = "both sides are told that the connection is no more (RST)"
    STALL = "not a byte comes any more this way, and the connection stays open"
    DOUBLE = "some bytes come twice"
    FLIP = "some bits are others"
    LOSE = "some bytes never come, though later ones do"


CUTTING = (Harm.CUT, Harm.RESET)
"""Which a client notices at once."""
HONEST = (Harm.DELAY, Harm.CUT, Harm.RESET, Harm.STALL)
"""Which TCP itself may do: bytes that come are right."""
DISHONEST = (Harm.DOUBLE, Harm.FLIP, Harm.LOSE)
"""Which TCP's checksum misses once in a while, and a bad proxy does."""


class _EndedError(Exception):
    """The connection is over."""


class ChaosProxy:
    """A proxy before a port of this machine; a context manager.

    Each direction of each connection draws when it is harmed next, and how, from a stream of its own: the same seed does the same
    harm at the same bytes, however the bytes come.

    Args:
        to_port: Where the server listens.
        harms: What may happen.
        seed: Of all draws.
        every_bytes: How far apart harms lie, on average.
        at_once: How many connections of ten are harmed before their first byte.
        lasts_s: How long a connection lasts at the most; then it is reset.

    Attributes:
        port: Where the proxy listens.
        harms: What may happen from now on; may be changed at any time.
        done: How often each has happened.
    """

    def __init__(
        self,
        to_port: int,
        harms: Sequence[Harm],
        *,
        seed: int,
        every_bytes: int = 3000,
        at_once: int = 1,
        lasts_s: float = math.inf,
    ) -> None:
        self.harms = tuple(harms)
        self.done: Counter[Harm] = Counter()
        self.port = 0
        self._to_port = to_port
        self._seed = seed
        self._every_bytes = every_bytes
        self._at_once = at_once
        self._lasts_s = lasts_s
        self._n_connections = 0
        self._stop = threading.Event()
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []

    def accept(self) -> None:
        """Take connections, on the same port as before."""
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self.port = self._listener.getsockname()[1]
        self._start(self._accept_all, self._listener)

    def refuse(self) -> None:
        """Take no connections any more; those that there are live on."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread, which closes it
            self._listener = None

    def __enter__(self) -> Self:
        self.accept()
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()
        self._stop.set()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _start(self, run: object, *args: object) -> None:
        thread = threading.Thread(target=run, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept_all(self, listener: socket.socket) -> None:
        with listener:
            while not self._stop.is_set():
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                self._n_connections += 1
                self._start(self._carry, client, self._n_connections)

    def _carry(self, client: socket.socket, number: int) -> None:
        until_s = time.monotonic() + self._lasts_s
        with client, contextlib.suppress(OSError, _EndedError):
            client.settimeout(5)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with socket.create_connection(("127.0.0.1", self._to_port), 5) as server, selectors.DefaultSelector() as ready:
                server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                ways = (
                    _Way(self, client, server, random.Random(f"{self._seed} {number} to")),
                    _Way(self, server, client, random.Random(f"{self._seed} {number} from")),
                )
                for way in ways:
                    ready.register(way.source, selectors.EVENT_READ, way)
                while ready.get_map() and not self._stop.is_set() and time.monotonic() < until_s:
                    for key, _ in ready.select(_STEP_S):
                        if not key.data.pass_on():
                            ready.unregister(key.fileobj)
                _reset(client, server)

    def draw(self, chance: random.Random, *, first: bool) -> int:
        """How many bytes pass before the next harm."""
        if first and chance.random() * 10 < self._at_once:
            return 0
        return int(chance.expovariate(1 / self._every_bytes))

    def pause(self, seconds: float) -> None:
        """Wait, unless the proxy is closed."""
        self._stop.wait(seconds)


class _Way:
    """One direction of a connection."""

    def __init__(self, proxy: ChaosProxy, source: socket.socket, sink: socket.socket, chance: random.Random) -> None:
        self.source = source
        self._proxy = proxy
        self._sink = sink
        self._chance = chance
        self._until = proxy.draw(chance, first=True)
        self._stalled = False

    def pass_on(self) -> bool:
        """Carry what is there to the other side, harmed where harm is due; False at the end."""
        data = self.source.recv(1 << 16)
        if not data:
            self._sink.shutdown(socket.SHUT_WR)
            return False
        if self._stalled:
            return True
        while len(data) > self._until:
            self._sink.sendall(data[: self._until])
            data = self._harm(data[self._until :])
            self._until = self._proxy.draw(self._chance, first=False)
        self._sink.sendall(data)
        self._until -= len(data)
        return True

    def _harm(self, data: bytes) -> bytes:
        if not self._proxy.harms:
            return data
        harm = self._chance.choice(self._proxy.harms)
        n = min(len(data), self._chance.randint(1, 64))
        self._proxy.done[harm] += 1
        if harm is Harm.DELAY:
            self._proxy.pause(self._chance.uniform(0, 0.1))
        elif harm is Harm.STALL:
            self._stalled = True
            return b""
        elif harm in CUTTING:
            if harm is Harm.RESET:
                _reset(self.source, self._sink)
            raise _EndedError
        elif harm is Harm.DOUBLE:
            return data[:n] + data
        elif harm is Harm.LOSE:
            return data[n:]
        elif harm is Harm.FLIP:
            return bytes(byte ^ self._chance.randint(1, 255) for byte in data[:n]) + data[n:]
        return data


def _reset(*sockets: socket.socket) -> None:
    """Have sockets say that the connection is no more when they are closed."""
    for one in sockets:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def write_certificate(folder: Path) -> ssl.SSLContext:
    """A certificate for 127.0.0.1 that vouches for itself (``ca.pem``); the context of who shows it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now = datetime.datetime.now(datetime.timezone.utc)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "ca.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "ca.key").write_bytes(key.private_bytes(*pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.pem", folder / "ca.key")
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@contextlib.contextmanager
def behind_tls(to_port: int, context: ssl.SSLContext) -> Iterator[int]:
    """TLS before a port of this machine; gives its own port."""
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def accept(listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=carry, args=(client,), daemon=True))
            threads[-1].start()

    def carry(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):  # peers that break the rules of TLS are what it is for
            client.settimeout(5)
            with (
                context.wrap_socket(client, server_side=True) as outside,
                socket.create_connection(("127.0.0.1", to_port), 5) as inside,
                selectors.DefaultSelector() as ready,
            ):
                for one in (outside, inside):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                ready.register(outside, selectors.EVENT_READ, inside)
                ready.register(inside, selectors.EVENT_READ, outside)
                while not stop.is_set():
                    for key, _ in ready.select(_STEP_S):
                        if not pass_on(key.fileobj, key.data):
                            return

    def pass_on(source: Any, sink: socket.socket) -> bool:
        source.settimeout(0)  # a record may have come by half
        try:
            data = source.recv(1 << 16)  # a record at the most
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        finally:
            source.settimeout(5)
        sink.sendall(data)
        return bool(data)

    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        accepting = threading.Thread(target=accept, args=(listener,), daemon=True)
        accepting.start()
        try:
            yield listener.getsockname()[1]
        finally:
            stop.set()
            listener.shutdown(socket.SHUT_RDWR)
            for thread in (accepting, *threads):
                thread.join(10)
                assert not thread.is_alive()
