"""Who listens on which TCP port of this machine, as ``/proc`` tells it."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"


@dataclass(frozen=True)
class Listener:
    """One listening socket.

    Attributes:
        address: The address that it is bound to, "127.0.0.1", "0.0.0.0", "::".
        port: Its port.
        inode: What the kernel calls it.
    """

    address: str
    port: int
    inode: str

    @property
    def reach(self) -> str:
        """Who can connect: "this machine", "every address", or the one address that it is bound to."""
        address = ipaddress.ip_address(self.address)
        address = getattr(address, "ipv4_mapped", None) or address
        if address.is_loopback:
            return "this machine"
        return "every address" if address.is_unspecified else str(address)


@dataclass(frozen=True)
class Process:
    """A process that holds a socket.

    Attributes:
        pid: Its number.
        name: Its program.
        words: Its command line.
    """

    pid: int
    name: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"process {self.pid} ({self.name})"


def listeners(proc: Path) -> list[Listener]:
    """All listening TCP sockets; none where ``/proc`` does not tell."""
    found = []
    for table in ("net/tcp", "net/tcp6"):
        try:
            lines = (proc / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            if len(words) > 9 and words[3] == _LISTEN:
                address, _, port = words[1].partition(":")
                found.append(Listener(_address(address), int(port, 16), words[9]))
    return found


def holder(proc: Path, listener: Listener) -> Process | None:
    """The process that holds a socket; None where it belongs to another user, or is gone."""
    link = f"socket:[{listener.inode}]"
    for folder in proc.glob("[0-9]*"):
        if link in _open_files(folder / "fd"):
            try:
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                name = (folder / "comm").read_text().strip()
            except OSError:
                return None
            return Process(int(folder.name), name, tuple(word for word in words if word))
    return None


def _open_files(folder: Path) -> Iterator[str]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        try:
            yield str(Path(entry.path).readlink())
        except OSError:
            continue


def _address(text: str) -> str:
    """An address as the kernel writes it: words of 32 bits in the machine's order, in hexadecimal."""
    data = b"".join(bytes.fromhex(text[start : start + 8])[::-1] for start in range(0, len(text), 8))
    address = ipaddress.ip_address(data)
    return str(getattr(address, "ipv4_mapped", None) or address)
