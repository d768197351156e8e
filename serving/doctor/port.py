"""The ports that a server takes by default: free, or taken by whom."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping

from convoy.serving.doctor.listener import holder, listeners
from convoy.serving.doctor.world import World
from convoy.serving.triton.finding import Finding, info, ok, warning

DEFAULT_PORTS: Mapping[str, int] = {"--http-port": 8000, "--grpc-port": 8001, "--metrics-port": 8002}


def examine(world: World, ports: Mapping[str, int] = DEFAULT_PORTS) -> list[Finding]:
    """Say for each port whether a server could listen on it at 127.0.0.1."""
    return [_port(world, option, port) for option, port in ports.items()]


def _port(world: World, option: str, port: int) -> Finding:
    name = f"port {port}"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that are winding down do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                advice = f"Choose a port above 1023 with {option} (0: any free one)."
                return warning(name, f"cannot be used: {error.strerror}", advice, expected="a port to listen on")
        else:
            return ok(name, "free")
    proc = world.root / "proc"
    found = [listener for listener in listeners(proc) if listener.port == port]
    process = next((process for listener in found if (process := holder(proc, listener))), None)
    who = str(process) if process else "a process of another user (`sudo ss -ltnp` names it)"
    if process is not None and process.name == "tritonserver":
        return info(name, f"a Triton server listens: {process}", f"A second one needs another port: {option} (0: any free one).")
    return warning(
        name, f"taken by {who}", f"Stop it, or choose another port with {option} (0: any free one).", expected="a free port"
    )
