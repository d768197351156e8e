"""Ports: free, taken, by whom; and who listens where."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from convoy.serving.doctor import port
from convoy.serving.doctor.listener import Listener, holder, listeners

from .conftest import Machine

PROC = Path("/proc")


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_free_port_is_in_order(machine: Machine, taken: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]

    (finding,) = port.examine(machine.world, {"--http-port": free})

    assert (finding.level, finding.name, finding.found) == ("ok", f"port {free}", "free")


def test_a_taken_port_names_its_holder_and_the_option(machine: Machine, taken: int) -> None:
    machine.real_proc()

    (finding,) = port.examine(machine.world, {"--grpc-port": taken})

    assert finding.level == "warning"
    assert f"process {os.getpid()}" in finding.found
    assert "--grpc-port" in finding.advice


def test_a_holder_that_proc_does_not_show_is_unknown(machine: Machine, taken: int) -> None:
    (finding,) = port.examine(machine.world, {"--http-port": taken})

    assert finding.level == "warning"
    assert "another user" in finding.found


def test_a_triton_that_listens_is_no_stranger(machine: Machine, tmp_path: Path) -> None:
    machine.real_proc()
    code = (
        "import socket, sys, ctypes; ctypes.CDLL(None).prctl(15, b'tritonserver', 0, 0, 0); s = socket.socket(); "
        "s.bind(('127.0.0.1', 0)); s.listen(); print(s.getsockname()[1], flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        number = int(process.stdout.readline())
        (finding,) = port.examine(machine.world, {"--http-port": number})
        process.communicate("")

    assert finding.level == "info"
    assert f"process {process.pid} (tritonserver)" in finding.found


@pytest.mark.skipif(os.getuid() == 0, reason="root may listen on every port")
def test_a_port_that_needs_root_is_said_to(machine: Machine) -> None:
    (finding,) = port.examine(machine.world, {"--http-port": 80})

    assert "above 1023" in finding.advice


@pytest.mark.parametrize(
    ("family", "address", "reach"),
    [
        (socket.AF_INET, "127.0.0.1", "this machine"),
        (socket.AF_INET, "0.0.0.0", "every address"),
        (socket.AF_INET6, "::1", "this machine"),
        (socket.AF_INET6, "::", "every address"),
    ],
)
def test_the_kernels_tables_are_read_as_it_means_them(family: socket.AddressFamily, address: str, reach: str) -> None:
    with socket.socket(family) as listener:
        try:
            listener.bind((address, 0))
        except OSError as error:
            pytest.skip(f"no IPv6 here: {error}")
        listener.listen()
        number = listener.getsockname()[1]

        (found,) = [one for one in listeners(PROC) if one.port == number]

        assert (found.address, found.reach) == (address, reach)
        process = holder(PROC, found)
        assert process is not None
        assert process.pid == os.getpid()


def test_one_address_of_the_network_is_named() -> None:
    assert Listener("192.168.1.7", 8000, "1").reach == "192.168.1.7"
    assert Listener("::ffff:127.0.0.1", 8000, "1").reach == "this machine"


def test_sockets_that_are_gone_have_no_holder() -> None:
    assert holder(PROC, Listener("127.0.0.1", 8000, "0")) is None


def test_a_machine_without_proc_has_no_listeners(tmp_path: Path) -> None:
    assert listeners(tmp_path) == []
