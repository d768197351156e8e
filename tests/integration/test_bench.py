"""Loads on the real server: what the generator counts is what Triton counts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convoy.serving.client import Client
from convoy.serving.load import Closed, Open, Target, measure
from convoy.serving.load.private import private_server
from convoy.serving.triton import TritonServer

pytestmark = pytest.mark.integration

QUICK = {"window_s": 0.3, "warm_up_s": 0.1, "max_windows": 3}


def counts(url: str, model_name: str) -> dict[str, int]:
    """Triton's own counters, all versions together."""
    with Client(url) as client:
        versions = client.statistics(model_name)
    return {
        "requests": sum(version["inference_stats"]["success"]["count"] for version in versions),
        "failed": sum(version["inference_stats"]["fail"]["count"] for version in versions),
        "images": sum(version["inference_count"] for version in versions),
        "executions": sum(version["execution_count"] for version in versions),
    }


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("load", [Closed(1), Closed(16), Open(400.0)], ids=str)
def test_the_counts_are_tritons_own(protocol: str, load: Closed | Open, triton: TritonServer) -> None:
    url = triton.http_url if protocol == "http" else triton.grpc_url
    target = Target.of(url, "tiny", batch_size=3)
    before = counts(url, "tiny")
    found = measure(target, load, **QUICK)
    after = counts(url, "tiny")
    assert found.n_errors == 0
    assert found.n_total_sent == found.n_total_answered == after["requests"] - before["requests"] > 0
    assert after["images"] - before["images"] == 3 * found.n_total_sent
    assert after["failed"] == before["failed"]
    assert found.images_per_s == 3 * found.requests_per_s
    assert found.server is not None
    # Triton counts a batch and its requests one after the other: a look in between sees the one without the others.
    assert found.server.n_images == pytest.approx(3 * found.server.n_succeeded, abs=8)
    # Requests of the measured time, but for those under way when its start and its end were noted.
    assert found.server.n_succeeded == pytest.approx(found.n_requests, rel=0.15, abs=32)
    assert found.server.mean_batch_size >= 3
    assert found.latency_ms is not None
    assert found.server.queue_us + found.server.compute_infer_us < found.latency_ms.mean * 1e3
    if isinstance(load, Open):
        assert found.kept_up
        assert found.requests_per_s == pytest.approx(400, rel=0.25)


def test_both_protocols_and_both_kinds_of_client_read_the_same_statistics(triton: TritonServer) -> None:
    assert counts(triton.http_url, "tiny") == counts(triton.grpc_url, "tiny")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_what_the_server_refuses_is_counted_with_its_reason(protocol: str, triton: TritonServer) -> None:
    url = triton.http_url if protocol == "http" else triton.grpc_url
    target = Target.of(url, "tiny", inputs={"image": np.zeros((8, 4, 4, 1), np.uint8)})
    spoilt = Target(**{**vars(target), "request": target.request.replace(b"image", b"imagf")})
    before = counts(url, "tiny")
    found = measure(spoilt, Closed(2), **QUICK)
    assert found.n_errors == found.n_total_sent > 0
    assert found.n_total_answered == 0
    assert "imagf" in found.first_error
    assert counts(url, "tiny")["requests"] == before["requests"]


def test_a_private_server_serves_the_one_model_and_leaves_the_repository_as_it_was(tmp_path: Path, write_tiny_model: Any) -> None:
    for name in ("one", "two"):
        write_tiny_model(tmp_path, name)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    with private_server(tmp_path, "two") as server, Client(server.grpc_url) as client:
        assert [status.name for status in client.models()] == ["two"]
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from convoy.cli import main; main()", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


def test_the_command_measures_a_private_server_beside_the_limit(tmp_path: Path, write_tiny_model: Any) -> None:
    repository = tmp_path / "repository"
    write_tiny_model(repository)
    plot = tmp_path / "plot.png"
    ended = bench(
        *("tiny", "--repository", str(repository), "--concurrency", "1,4", "--rate", "200", "--batch-size", "2"),
        *("--window", "0.2", "--max-windows", "3", "--plot", str(plot), "--json"),
    )
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout)
    assert (document["model_name"], document["model_version"], document["private_server"]) == ("tiny", "1", True)
    assert [one["load"]["kind"] for one in document["measurements"]] == ["closed", "closed", "open"]
    for one in document["measurements"]:
        assert one["n_total_sent"] == one["n_total_answered"] > 0
        assert one["batch_size"] == 2
        assert one["share_of_limit"] == pytest.approx(one["images_per_s"] / document["limit"]["images_per_s"])
    assert [point["batch_size"] for point in document["limit"]["before"]["points"]][:4] == [1, 2, 4, 8]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "requests/s" in ended.stderr


def test_the_command_measures_a_server_that_runs(triton: TritonServer, tmp_path: Path) -> None:
    ended = bench(
        *("tiny", "--url", triton.http_url, "--repository", str(triton.repository), "--concurrency", "2"),
        *("--window", "0.2", "--max-windows", "3"),
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0].split("  ")[0] == "load"
    assert lines[1].startswith("2 in flight")
    assert f"tiny version 1 on {triton.http_url}, REST, 1 image a request" in ended.stdout
    assert "limit: " in ended.stdout
    without = bench("tiny", "--url", triton.http_url, "--repository", str(tmp_path), "--concurrency", "2", "--window", "0.2")
    assert without.returncode == 0, without.stderr
    assert "the limit of this machine is left out" in without.stderr
    assert "limit: " not in without.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["none"], 1, "not"),
        (["tiny", "--batch-size", "9"], 2, "takes batches of at most 8, found 9"),
        (["tiny", "--shape", "image=4,4,3"], 2, r"expected [4, 4, 1]"),
        (["tiny", "--concurrency", "1,x"], 2, "expected whole numbers between commas"),
        (["tiny", "--concurrency", "0"], 2, "expected 1 to 16384 requests in flight"),
        (["tiny", "--rate", "fast"], 2, "expected numbers between commas"),
        (["tiny", "--shape", "4,4,1"], 2, "expected an input and its shape"),
        (["tiny", "--plot", "plot.pdf"], 2, "ends in .png or .svg"),
    ],
)
def test_wrong_use_is_told_before_any_load(arguments: list[str], status: int, words: str, triton: TritonServer) -> None:
    ended = bench(*arguments, "--url", triton.grpc_url)
    assert ended.returncode == status
    assert words in ended.stderr
    assert ended.stdout == ""


def test_a_model_that_the_repository_lacks_is_told(tmp_path: Path, write_tiny_model: Any) -> None:
    write_tiny_model(tmp_path)
    ended = bench("other", "--repository", str(tmp_path))
    assert ended.returncode == 1
    assert "expected the model 'other', found tiny" in ended.stderr
