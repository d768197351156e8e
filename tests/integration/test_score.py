"""Batch scoring and the commands on the real Triton: whatever is killed, the rows are those of a run that nothing befell."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convoy.contract.errors import ClientError, ScoringError, UsageError
from convoy.serving.client import Client
from convoy.serving.scoring import score
from convoy.serving.triton import TritonServer
from convoy.serving.triton.port import free_port

pytestmark = pytest.mark.integration
parquet = pytest.importorskip("pyarrow.parquet")

N = 16_000
SMALL: dict[str, Any] = {"chunk_rows": 250, "rows_per_file": 2_500}
PROGRAM = [sys.executable, "-c", "from convoy.cli import main; main()"]


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


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many images, each another one."""
    path = tmp_path_factory.mktemp("images") / "x.npy"
    np.save(path, np.random.default_rng(1).integers(0, 256, (N, 4, 4), dtype=np.uint8))
    return path


@pytest.fixture(scope="module")
def unbroken(triton: TritonServer, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What is scored where nothing happens."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    score("tiny", images, out, url=triton.grpc_url, **SMALL).finish()
    return parquet.read_table(out)


def convoy(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60)


def check_equal(out: Path, unbroken: Any) -> None:
    """Every column but latency is that of the unbroken run, probabilities within tolerance."""
    found = parquet.read_table(out)
    assert found.schema.names == unbroken.schema.names
    for name in found.schema.names:
        if name == "probability":
            assert np.allclose(found.column(name).to_numpy(), unbroken.column(name).to_numpy(), atol=1e-6)
        elif name == "top_k":
            flat = [table.column(name).combine_chunks().flatten() for table in (found, unbroken)]
            assert flat[0].field("label").equals(flat[1].field("label"))
            assert np.allclose(*(values.field("probability").to_numpy() for values in flat), atol=1e-6)
        elif name != "latency_ms":
            assert found.column(name).equals(unbroken.column(name)), name


def committed(out: Path) -> int:
    """How many rows are on disk."""
    n = SMALL["chunk_rows"] * len(list(out.glob("_convoy/chunk-*.arrow")))
    return n + SMALL["rows_per_file"] * len(list(out.glob("part-*.parquet")))


class Server:
    """A Triton that may be killed and come back, always at the same address."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._ports = {name: free_port() for name in ("http_port", "grpc_port", "metrics_port")}
        self.server = TritonServer(repository, **self._ports, stop_timeout_s=3)
        self.server.start()

    def kill(self) -> None:
        pid = self.server.pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def come_back(self) -> None:
        self.server.stop()
        self.server = TritonServer(self._repository, **self._ports, stop_timeout_s=3)
        self.server.start()


@pytest.fixture(scope="module")
def server(triton: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Triton of the same model that tests may kill; each leaves it serving."""
    repository = tmp_path_factory.mktemp("killed") / "repository"
    shutil.copytree(triton.repository, repository)
    found = Server(repository)
    yield found
    found.server.stop()


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_folder_with_damaged_files_is_scored_as_the_client_would(
    scheme: str, triton: TritonServer, folder: Path, tmp_path: Path
) -> None:
    url = triton.grpc_url if scheme == "grpc" else triton.http_url
    summary = score("tiny", folder, tmp_path / "out", url=url, top_k=3).finish()
    rows = parquet.read_table(tmp_path / "out").to_pylist()
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

    scored = convoy("score", "tiny", folder, tmp_path / "out", "--url", triton.grpc_url, "--json")
    assert scored.returncode == 1
    assert json.loads(scored.stdout)["n_scored"] == 20
    again = convoy("score", "tiny", folder, tmp_path / "out", "--url", triton.grpc_url, "--json")
    assert again.returncode == 1
    assert json.loads(again.stdout)["n_resumed"] == 24
    another = convoy("score", "tiny", folder, tmp_path / "out", "--url", triton.grpc_url, "--top-k", 1)
    assert another.returncode == 2
    assert "another run was begun here" in another.stderr


def test_without_a_server_the_commands_say_what_to_start(folder: Path, tmp_path: Path) -> None:
    for arguments in (("predict", "tiny", folder / "00.png"), ("score", "tiny", folder, tmp_path / "out")):
        patience = ("--patience", "1") if arguments[0] == "score" else ()
        done = convoy(*arguments, *patience, "--url", "grpc://127.0.0.1:1")
        assert (done.returncode, done.stdout) == (1, "")
        assert "Is `convoy serve` running" in done.stderr
        assert not patience or "Waiting up to 1 s for the server" in done.stderr
    assert not (tmp_path / "out").exists()


def begun(process: subprocess.Popen[str], out: Path, n: int) -> None:
    """Wait until ``n`` more rows are on disk, or the run has ended."""
    deadline, wanted = time.monotonic() + 60, committed(out) + n
    while committed(out) < wanted and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_signal_stops_a_run_after_the_chunks_in_flight_and_the_printed_command_goes_on(
    triton: TritonServer, images: Path, unbroken: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    small = ["--chunk-rows", "250", "--rows-per-file", "2500"]
    arguments = ["score", "tiny", str(images), str(out), "--url", triton.grpc_url, *small]
    with subprocess.Popen([*PROGRAM, *arguments], stderr=subprocess.PIPE, text=True) as process:
        begun(process, out, 500)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the run stopped: it was asked to stop." in err
    assert "Traceback" not in err
    n = committed(out)
    assert 0 < n < N
    assert f" {n:,} of {N:,} inputs have their row" in err
    command = shlex.split(err.splitlines()[-1])
    assert command == ["convoy", *arguments]
    done = convoy(*command[1:], "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["n_resumed"] == n
    check_equal(out, unbroken)


def after(n: int, then: Callable[[], None]) -> Callable[[Any], None]:
    """Does something in a thread of its own, once, when ``n`` inputs are done."""
    did = threading.Event()

    def tell(progress: Any) -> None:
        if progress.done >= n and not did.is_set():
            did.set()
            threading.Thread(target=then).start()

    return tell


@pytest.mark.parametrize(("scheme", "how"), [("grpc", "killed"), ("http", "killed"), ("grpc", "stopped in order")])
def test_a_server_that_goes_and_comes_back_costs_no_row(
    scheme: str, how: str, server: Server, images: Path, unbroken: Any, tmp_path: Path
) -> None:
    url = server.server.grpc_url if scheme == "grpc" else server.server.http_url
    back = threading.Event()

    def go() -> None:
        if how == "killed":
            server.kill()
        server.come_back()
        back.set()

    summary = score("tiny", images, tmp_path / "out", url=url, on_progress=after(3_000, go), **SMALL).finish()
    assert back.wait(60)
    assert (summary.n, summary.n_failed, summary.n_resumed) == (N, 0, 0)
    check_equal(tmp_path / "out", unbroken)


def test_a_server_that_stays_away_stops_the_run_which_goes_on_when_it_is_back(
    server: Server, images: Path, unbroken: Any, tmp_path: Path
) -> None:
    out, url = tmp_path / "out", server.server.grpc_url
    with pytest.raises(ScoringError, match=rf"the run stopped: .* of {N:,} inputs have their row"):
        score("tiny", images, out, url=url, patience_s=0.5, on_progress=after(3_000, server.kill), **SMALL).finish()
    n = committed(out)
    assert 0 < n < N
    server.come_back()
    summary = score("tiny", images, out, url=url, **SMALL).finish()
    assert (summary.n_failed, summary.n_resumed) == (0, n)
    check_equal(out, unbroken)


def test_scorer_and_server_may_be_killed_at_any_instant(server: Server, images: Path, unbroken: Any, tmp_path: Path) -> None:
    out, chance = tmp_path / "out", random.Random(2)
    arguments = ["score", "tiny", str(images), str(out), "--url", server.server.grpc_url, "--in-flight", "2"]
    arguments += ["--chunk-rows", "250", "--rows-per-file", "2500"]
    n_killed, process, down = 0, None, False
    try:
        while True:
            if process is None:
                if down:
                    server.come_back()
                    down = False
                process = subprocess.Popen([*PROGRAM, *arguments], stderr=subprocess.PIPE, text=True)
            if n_killed < 10:
                begun(process, out, 250)
                time.sleep(chance.uniform(0, 0.03))
            else:
                process.wait(60)
            if process.poll() is not None:
                assert process.communicate()[1] == ""
                break
            what = ("scorer", "server", "both")[n_killed % 3]
            n_killed += 1
            if what != "scorer":
                server.kill()
                down = True
            if what != "server":
                process.kill()
                process.communicate()
                process = None
            elif down:
                server.come_back()
                down = False
    finally:
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
        if down:
            server.come_back()
    assert process is not None
    assert process.returncode == 0
    assert n_killed >= 8
    check_equal(out, unbroken)


def test_a_version_that_is_unloaded_in_the_middle_stops_the_run(
    server: Server, images: Path, unbroken: Any, tmp_path: Path
) -> None:
    out, url = tmp_path / "out", server.server.grpc_url
    with Client(url) as control:
        with pytest.raises(ScoringError, match=r"'tiny' version 1.*(is being loaded or unloaded|is not served any more)"):
            score(
                "tiny", images, out, url=url, patience_s=1, on_progress=after(3_000, lambda: control.unload("tiny")), **SMALL
            ).finish()
        n = committed(out)
        assert 0 < n < N
        with pytest.raises((ScoringError, ClientError), match="version 1"):
            score("tiny", images, out, url=url, patience_s=1, **SMALL).finish()
        control.load("tiny")
        assert score("tiny", images, out, url=url, **SMALL).finish().n_resumed == n
    check_equal(out, unbroken)


def test_another_file_under_the_same_number_stops_the_run(
    images: Path, tmp_path: Path, write_tiny_model: Callable[..., Path]
) -> None:
    def digest(value: str) -> str:
        return f'parameters {{ key: "convoy_model_sha256" value {{ string_value: "{value * 64}" }} }}'

    repository, aside, out = tmp_path / "repository", tmp_path / "aside", tmp_path / "out"
    folder = write_tiny_model(repository, extra=digest("a"))
    other = write_tiny_model(aside, versions=(2,), extra=digest("b"))
    with TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0) as triton, Client(triton.grpc_url) as control:
        url = triton.grpc_url

        def replace() -> None:
            (other / "2" / "model.onnx").replace(folder / "1" / "model.onnx")
            text = (other / "config.pbtxt").read_text().replace("versions: [ 2 ]", "versions: [ 1 ]")
            (folder / "config.pbtxt").write_text(text)
            control.load("tiny")

        with pytest.raises(ScoringError, match=r"version 1 was replaced during the run|version 1 is not served any more"):
            score("tiny", images, out, url=url, on_progress=after(3_000, replace), **SMALL).finish()
        until = time.monotonic() + 10
        while not control.ready("tiny") and time.monotonic() < until:
            time.sleep(0.05)
        with pytest.raises(
            UsageError, match=r"another run was begun here: the model's file \(its digest\) was 'aaaa.* and is 'bbbb"
        ):
            score("tiny", images, out, url=url, **SMALL).finish()
    digests = {value for path in out.glob("part-*") for value in parquet.read_table(path).column("model_sha256").to_pylist()}
    assert digests == {"a" * 64}
