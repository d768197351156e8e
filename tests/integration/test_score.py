"""Batch scoring and the commands on the real Triton."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convoy.contract.errors import ScoringError
from convoy.serving.client import Client
from convoy.serving.scoring import score
from convoy.serving.triton import TritonServer

pytestmark = pytest.mark.integration
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty images, and files that are none."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (9, 7), dtype=np.uint8)).save(folder / f"{i:02}.png")
    whole = (folder / "00.png").read_bytes()
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("no image")
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "gone.png").symlink_to(folder / "nowhere")
    (folder / "notes.txt").write_text("no input")
    return folder


def convoy(*arguments: Any) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from convoy.cli import main; main()", *map(str, arguments)]
    return subprocess.run(program, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_folder_with_damaged_files_is_scored_as_the_client_would(
    scheme: str, triton: TritonServer, folder: Path, tmp_path: Path
) -> None:
    url = triton.grpc_url if scheme == "grpc" else triton.http_url
    summary = score("tiny", folder, tmp_path / "out.parquet", url=url, top_k=3)
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert (summary.n, summary.n_scored, summary.n_failed, summary.model_version) == (24, 20, 4, "1")
    good = [row for row in rows if row["error"] is None]
    assert {row["source"] for row in rows if row["error"]} == {"empty.png", "text.jpg", "truncated.png", "gone.png"}
    with Client(url) as client:
        predictions = client.classify("tiny", [folder / row["source"] for row in good], top_k=3)
    assert [row["label"] for row in good] == [prediction.label for prediction in predictions]
    assert np.allclose([row["probability"] for row in good], [prediction.probability for prediction in predictions], atol=1e-6)
    assert all(sum(candidate["probability"] for candidate in row["top_k"]) == pytest.approx(1, abs=1e-5) for row in good)


def test_the_commands_answer_from_the_running_server(triton: TritonServer, folder: Path, tmp_path: Path) -> None:
    predicted = convoy("predict", "tiny", folder / "00.png", folder / "empty.png", "--url", triton.http_url, "--json")
    assert predicted.returncode == 1
    first, second = map(json.loads, predicted.stdout.splitlines())
    assert (first["model_version"], first["error"], second["label"]) == ("1", None, None)
    assert "empty.png" in second["error"]
    assert "1 of 2 inputs could not be read" in predicted.stderr

    shown = convoy("predict", "tiny", folder / "00.png", "--url", triton.grpc_url)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert first["label"] in shown.stdout

    scored = convoy("score", "tiny", folder, tmp_path / "out.parquet", "--url", triton.grpc_url, "--json")
    assert scored.returncode == 1
    assert json.loads(scored.stdout)["n_scored"] == 20
    again = convoy("score", "tiny", folder, tmp_path / "out.parquet", "--url", triton.grpc_url)
    assert again.returncode == 2
    assert "--force" in again.stderr


def test_without_a_server_the_commands_say_what_to_start(folder: Path, tmp_path: Path) -> None:
    for arguments in (("predict", "tiny", folder / "00.png"), ("score", "tiny", folder, tmp_path / "out.parquet")):
        done = convoy(*arguments, "--url", "grpc://127.0.0.1:1")
        assert (done.returncode, done.stdout) == (1, "")
        assert "Is `convoy serve` running" in done.stderr
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_run_and_leaves_nothing(number: int, triton: TritonServer, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((400_000, 4, 4), np.uint8))
    program = "from convoy.cli import main; main()"
    arguments = ["score", "tiny", str(tmp_path / "x.npy"), str(tmp_path / "out.parquet"), "--url", triton.grpc_url]
    with subprocess.Popen([sys.executable, "-c", program, *arguments], stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob(".out.parquet.*.tmp")):
            assert time.monotonic() < deadline
            assert process.poll() is None
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


@pytest.mark.parametrize("what", ["killed", "unloaded"])
def test_a_server_that_goes_in_the_middle_stops_the_run_and_nothing_is_written(
    what: str, triton: TritonServer, tmp_path: Path
) -> None:
    shutil.copytree(triton.repository, tmp_path / "repository")
    (tmp_path / "here").mkdir()
    np.save(tmp_path / "here" / "x.npy", np.zeros((200_000, 4, 4), np.uint8))
    with TritonServer(tmp_path / "repository", http_port=0, grpc_port=0, metrics_port=0) as server:
        going = threading.Event()

        def go(done: int, total: int) -> None:
            if done > 200 and not going.is_set():
                going.set()
                if what == "killed":
                    pid = server.pid()
                    assert pid is not None
                    os.kill(pid, signal.SIGKILL)
                else:
                    with Client(server.grpc_url) as control:
                        control.unload("tiny")

        with pytest.raises(ScoringError, match=r"stopped after \d+ of 200000 inputs and wrote nothing") as caught:
            score(
                "tiny",
                tmp_path / "here" / "x.npy",
                tmp_path / "here" / "out.parquet",
                url=server.grpc_url,
                on_progress=go,
                timeout_s=10,
            )
    assert "version 1 is not served any more" in str(caught.value)
    assert ("not ready: it is being loaded or unloaded" in str(caught.value)) == (what == "unloaded")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["x.npy"]
