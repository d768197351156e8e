"""The README's tour, block by block, as a reader would run it: in an empty folder, with a real server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convoy.serving.triton.port import free_port

README = Path(__file__).parents[2] / "README.md"
BIN = Path(sys.executable).parent


def blocks() -> list[tuple[str, str]]:
    """Language and text of each block that can be run, in order."""
    found = re.findall(r"^```(python|sh)\n(.*?)^```$", README.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert [language for language, _ in found].count("python") >= 2
    return found


@pytest.mark.integration
def test_every_block_of_the_tour_runs(tmp_path):
    ports = {"8000": free_port(), "8001": free_port(), "8002": free_port()}
    options = [f"--{kind}-port={port}" for kind, port in zip(("http", "grpc", "metrics"), ports.values(), strict=True)]
    url = f"grpc://localhost:{ports['8001']}"
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    server: subprocess.Popen[bytes] | None = None
    said: dict[str, str] = {}
    try:
        for language, text in blocks():
            for default, port in ports.items():
                text = text.replace(f"localhost:{default}", f"localhost:{port}")
            if language == "python":
                name = re.match(r"# (\w+\.py)\n", text)
                assert name, text
                (tmp_path / name[1]).write_text(text)
                continue
            for line in text.splitlines():
                if line.startswith("convoy serve"):
                    server = start([*line.split(), *options], tmp_path, environment)
                    continue
                line = re.sub(r"^convoy (predict|score) (.*)$", rf"convoy \1 \2 --url {url}", line)
                command = ["bash", "-c", line]
                done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
                assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
                said[line.split(" --url")[0]] = done.stdout
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 0
    assert "validation passed" in said["python my_network.py"]
    assert "my-network" in said["convoy models"]
    assert "version 1" in said["python call_it.py"]
    assert list((tmp_path / "scores").glob("part-*.parquet"))
    assert "<html" in (tmp_path / "scores.html").read_text()


def start(command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start `convoy serve` and wait until it says that it serves."""
    log = folder / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while "grpc://" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return process
