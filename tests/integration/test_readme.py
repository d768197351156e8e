"""The README's tour, block by block, as a reader would run it: in an empty folder, with a real server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
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
    url = f"grpc://localhost:{ports['8001']}"
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    server: subprocess.Popen[str] | None = None
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
                    options = [f"--{kind}-port={port}" for kind, port in zip(("http", "grpc", "metrics"), ports.values(), strict=True)]
                    server = start([*line.split(), *options], tmp_path, environment)
                    continue
                line = re.sub(r"^convoy (predict|score) (.*)$", rf"convoy \1 \2 --url {url}", line)
                done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
                assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
                said[line.split(" --url")[0]] = done.stdout
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 0
    assert "validation passed" in said["python my_network.py"]
    assert "my-network" in said["convoy models"]
    assert "version 1" in said["python call_it.py"]
    assert (tmp_path / "scores.parquet").exists()


def start(command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start `convoy serve` and wait until it says that it serves."""
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    heard = []
    assert process.stdout is not None
    for line in process.stdout:
        heard.append(line)
        if "grpc://" in line:
            break
    else:
        pytest.fail(f"convoy serve ended: {''.join(heard)}")
    watchdog.cancel()
    threading.Thread(target=process.stdout.read, daemon=True).start()  # or a full pipe would stop the server
    return process
