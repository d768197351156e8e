"""TCP ports on this machine: free ones, taken ones, and who has taken them."""

from __future__ import annotations

import errno
import socket

from convoy.contract.errors import ServerError, UsageError

HOST = "127.0.0.1"


def free_port() -> int:
    """A port on which nobody listens at the moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def is_open(port: int) -> bool:
    """Whether somebody on this machine takes connections at ``port``."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((HOST, port)) == 0


def check_port(port: int, option: str) -> None:
    """Make sure that a server can listen on ``port`` of 127.0.0.1.

    Args:
        port: The port.
        option: The option that names it, for the message ("--http-port").

    Raises:
        UsageError: It is no port.
        ServerError: It is taken, or may not be used; the message says by whom and what to do.
    """
    if not 0 < port < 65_536:
        raise UsageError(f"{option}: expected a port from 1 to 65535, or 0 for any free one, found {port}.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that are winding down do not count
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno == errno.EACCES:
                raise ServerError(f"{option}: port {port} needs root. Choose one above 1023, or 0 for any free one.") from error
            if error.errno != errno.EADDRINUSE:
                raise
            raise ServerError(
                f"port {port} is busy: {holder_of(port)} listens on it. Stop it, or choose another port with {option} "
                "(0 for any free one)."
            ) from error


def holder_of(port: int) -> str:
    """Who listens on ``port``, as far as this user may know: "process 1234 (tritonserver)"."""
    try:
        import psutil
    except ImportError:
        return "another process"
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port and connection.pid:
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        return "another process"
    return "a process of another user"
