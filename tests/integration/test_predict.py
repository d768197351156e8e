"""``convoy predict`` on the real Triton: a folder, stdin, a folder that is watched."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convoy.serving.client import Client
from convoy.serving.triton import TritonServer

pytestmark = pytest.mark.integration
CONVOY = [sys.executable, "-c", "from convoy.cli import main; main()"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A hundred images in two folders, and files that are none."""
    rng = np.random.default_rng(0)
    for i in range(100):
        path = tmp_path / "scans" / ("even" if i % 2 == 0 else "odd") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 7), dtype=np.uint8)).save(path)
    (tmp_path / "scans" / "bad.png").write_text("no image")
    (tmp_path / "scans" / "notes.txt").touch()
    (tmp_path / "scans" / "odd" / "up").symlink_to(tmp_path / "scans")
    return tmp_path / "scans"


def predict(*arguments: Any, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [*CONVOY, "predict", "tiny", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=120)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_folder_and_stdin_are_answered_as_the_client_would(scheme: str, triton: TritonServer, folder: Path) -> None:
    url = triton.grpc_url if scheme == "grpc" else triton.http_url
    on_stdin = (folder / "odd" / "7.png").read_bytes()
    done = predict(folder, "-", "--url", url, "--json", "--top-k", "2", "--header", "x-team: vision", stdin=on_stdin)
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    order = [folder / "bad.png", *(folder / "even" / f"{i}.png" for i in range(0, 100, 2))]
    order += [folder / "odd" / f"{i}.png" for i in range(1, 100, 2)]
    assert [line["image"] for line in lines] == [*map(str, order), "-"]
    assert "expected an image" in lines[0]["error"]
    with Client(url) as client:
        predictions = client.classify("tiny", [*order[1:], on_stdin], top_k=2)
    assert [line["label"] for line in lines[1:]] == [prediction.label for prediction in predictions]
    assert np.allclose(
        [line["probability"] for line in lines[1:]], [prediction.probability for prediction in predictions], atol=1e-6
    )
    assert {(line["model_name"], line["model_version"], len(line["top_k"])) for line in lines[1:]} == {("tiny", "1", 2)}
    said = done.stderr.decode()
    assert "left out 2 entries: 1 .txt, 1 linked in a circle." in said
    assert "1 of 102 inputs could not be read." in said


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent in another way there")
def test_a_watched_folder_is_answered_until_ctrl_c(triton: TritonServer, folder: Path) -> None:
    command = [*CONVOY, "predict", "tiny", "--watch", str(folder), "--url", triton.grpc_url, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = threading.Timer(60, process.kill)
        deadline.start()
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert "watching" in process.stderr.readline()
            (folder / "even" / "0.png").rename(folder / "moved.png")
            answer = json.loads(process.stdout.readline())
            assert (answer["image"], answer["model_version"]) == (str(folder / "moved.png"), "1")
            process.send_signal(signal.SIGINT)
            out, err = process.communicate()
        finally:
            deadline.cancel()
    assert (process.returncode, out) == (0, "")
    assert "stopped watching" in err
    assert "Traceback" not in err
