"""The parts of the launcher that need no Triton: folders, ports, logs, processes, delays, segments."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from convoy.contract.errors import RepositoryError, ServerError, ServerFailureError, UnavailableError, UsageError
from convoy.serving.triton import TritonServer, guard, lock, segment
from convoy.serving.triton.backoff import BURST, LONGEST_DELAY_S, REFILL_S, Backoff
from convoy.serving.triton.folder import check_repository, find_models
from convoy.serving.triton.installation import Installation
from convoy.serving.triton.log import TritonLog, reason_in
from convoy.serving.triton.port import check_port, free_port
from convoy.serving.triton.runtime import PREFIX, Runtime, clear_stale, shm_lock, shm_prefix
from convoy.serving.triton.segment import ORPHANED_S, OrphanedSegments
from convoy.serving.triton.stub import Stub, find_stubs, instance_count


def wait_for(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


# The repository


def test_models_are_folders_with_a_configuration_or_a_version(tmp_path: Path) -> None:
    for name in ("configured/1", "bare/2", ".hidden/1", "notes/drafts"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "configured" / "config.pbtxt").touch()
    (tmp_path / "README.md").touch()

    assert list(find_models(tmp_path)) == ["bare", "configured"]


def test_a_replaced_configuration_or_label_file_changes_the_signature(tmp_path: Path) -> None:
    model = tmp_path / "m"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text("a")
    signatures = [find_models(tmp_path)["m"]]

    (model / ".config.pbtxt.tmp").write_text("a")
    signatures.append(find_models(tmp_path)["m"])
    (model / ".config.pbtxt.tmp").replace(model / "config.pbtxt")
    signatures.append(find_models(tmp_path)["m"])
    (model / "labels.txt").write_text("a")
    signatures.append(find_models(tmp_path)["m"])

    assert signatures[0] == signatures[1]
    assert len(set(signatures)) == 3


def test_a_model_is_not_taken_for_a_repository(tmp_path: Path) -> None:
    (tmp_path / "lenet5" / "1").mkdir(parents=True)

    with pytest.raises(RepositoryError, match=f"Give the folder above it: {tmp_path}"):
        check_repository(tmp_path / "lenet5")


def test_an_empty_repository_says_how_to_fill_it(tmp_path: Path) -> None:
    (tmp_path / "README.md").touch()

    with pytest.raises(RepositoryError, match=r"found only README.md.*convoy deploy"):
        check_repository(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        check_repository(tmp_path / "nothing")
    with pytest.raises(RepositoryError, match="Not a directory"):
        check_repository(tmp_path / "README.md")


# Ports


def test_a_busy_port_names_the_process_and_the_option() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]

        with pytest.raises(ServerError, match=rf"port {port} is busy: process {os.getpid()} .* --grpc-port"):
            check_port(port, "--grpc-port")


def test_a_free_port_is_free() -> None:
    check_port(free_port(), "--grpc-port")


@pytest.mark.parametrize("port", [-1, 65_536])
def test_what_is_no_port_is_wrong_use(port: int) -> None:
    with pytest.raises(UsageError, match="expected a port"):
        check_port(port, "--http-port")


# The log


def test_reasons_are_found_in_the_log_without_stamps_and_layers(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('E1123 18:26:02.9 1 old.cc:1] "of an earlier run"\n')
    log = TritonLog(path)
    log.file.write(
        b"""I1123 18:26:02.917894 5393 server.cc:604] "starting"
+---+
E1123 18:26:02.918101 5393 server.cc:241] "CudaDriverHelper has not been initialized."
[libprotobuf ERROR /x/text_format.cc:337] Error parsing text-format inference.ModelConfig: 2:5: no field named "foo".
E1123 18:26:03.0 1 a.cc:1] "failed to load 'tiny' version 1: Internal: TritonModelException: model is \\"bad\\"\\n\\nAt:\\n  x\\n"
error: creating server: Internal - failed to load all models
"""
    )

    assert log.errors() == ['2:5: no field named "foo".', 'model is "bad"', "failed to load all models"]
    assert len(log.tail(2)) == 2
    assert "CudaDriverHelper" not in "".join(log.tail())
    position = log.position()
    log.file.write(b"E1123 18:26:02.9 1 new.cc:1] later\n")
    assert log.errors(position) == ["later"]
    log.close()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "load failed for model 'm': version 1 is at UNAVAILABLE state: Internal: TritonModelException: cut short\n\nAt:\n a\n;",
            "cut short",
        ),
        ("Poll failed for model directory 'm': unexpected name", "unexpected name"),
        ("nothing to strip", "nothing to strip"),
    ],
)
def test_only_the_reason_is_left_of_what_triton_says(said: str, reason: str) -> None:
    assert reason_in(said) == reason


def test_the_log_can_be_followed_and_outlives_its_file(tmp_path: Path) -> None:
    log = TritonLog(tmp_path / "log")
    lines: list[str] = []
    stop = threading.Event()
    thread = threading.Thread(target=log.follow, args=(lines.append, stop))
    thread.start()

    log.file.write(b"one\ntw")
    wait_for(lambda: lines == ["one"])
    (tmp_path / "log").unlink()
    log.file.write(b"o\n")
    stop.set()
    thread.join()

    assert lines == ["one", "two"]
    log.close()


# The runtime folder


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_runtime_folder_has_both_backends_and_an_overlay_of_this_environment(temporary: Path) -> None:
    installation = Installation.find()

    runtime = Runtime.create(installation)

    try:
        for name in ("python", "onnxruntime"):
            assert os.access(runtime.backends / name / "triton_python_backend_stub", os.X_OK)
            assert (runtime.backends / name / "libtriton_python.so").is_file()
        assert (runtime.backends / "onnxruntime" / "model.py").is_file()
        program = runtime.folder / "python" / "bin" / "python3"
        found = subprocess.run(
            [str(program), "-I", "-c", "import convoy, numpy, onnxruntime, sys; print(sys.prefix)"],
            capture_output=True,
            text=True,
            check=True,
            env={},
            cwd=runtime.cwd,
        )
        assert Path(found.stdout.strip()) == runtime.folder / "python"
        assert runtime.environment(installation)["PATH"].startswith(str(program.parent))
        assert runtime.environment(installation)["ORT_DISABLE_TELEMETRY"] == "1"
    finally:
        runtime.remove()
    assert list(temporary.iterdir()) == []


@pytest.fixture
def memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("shm")
    monkeypatch.setattr("convoy.serving.triton.runtime.SHM", folder)
    return folder


def leave(temporary: Path, token: str, *, lock_of_memory: bool = True) -> Path:
    """What a server leaves behind that was killed with all its processes."""
    folder = temporary / f"{PREFIX}{token}"
    folder.mkdir()
    (folder / "lock").touch()
    if lock_of_memory:
        shm_lock(folder).touch()
    shm_lock(folder).with_name(f"{shm_prefix(folder)}1").touch()
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_only_dead_servers_are_cleared_away(temporary: Path, memory: Path) -> None:
    dead, alive = leave(temporary, "0" * 12), leave(temporary, "1" * 12)
    foreign = temporary / "convoy-other"
    foreign.mkdir()
    (foreign / "lock").touch()
    kept = ["convoy_nobody.lock", "convoy_nobody_1", "triton_python_backend_shm_region_5", "sem.other", f"convoy_{'2' * 12}_1"]
    for name in kept:
        (memory / name).touch()
    with (alive / "lock").open() as lock_of_folder, shm_lock(alive).open() as lock_of_memory:
        fcntl.flock(lock_of_folder, fcntl.LOCK_EX)
        fcntl.flock(lock_of_memory, fcntl.LOCK_EX)

        removed = clear_stale()

    assert removed == [dead, memory / f"convoy_{'0' * 12}.lock"]
    assert names(temporary) == ["convoy-other", alive.name]
    assert names(memory) == sorted([*kept, f"convoy_{'1' * 12}.lock", f"convoy_{'1' * 12}_1"])


def test_the_memory_of_a_dead_server_is_cleared_where_its_folder_is_gone(temporary: Path, memory: Path) -> None:
    shutil.rmtree(leave(temporary, "0" * 12))

    assert clear_stale() == [memory / f"convoy_{'0' * 12}.lock"]
    assert names(memory) == []


def test_the_memory_of_a_server_from_before_it_had_a_lock_is_cleared_with_its_folder(temporary: Path, memory: Path) -> None:
    leave(temporary, "0" * 12, lock_of_memory=False)

    clear_stale()

    assert names(temporary) == names(memory) == []


def test_what_belongs_to_another_user_is_left_alone(temporary: Path, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(temporary, "0" * 12)
    before = names(temporary), names(memory)
    monkeypatch.setattr(lock.os, "getuid", lambda: os.geteuid() + 1)

    assert clear_stale() == []
    assert (names(temporary), names(memory)) == before


def test_links_are_not_followed(temporary: Path, memory: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    leave(elsewhere, "0" * 12)
    (memory / f"convoy_{'0' * 12}.lock").unlink()
    (memory / f"convoy_{'0' * 12}.lock").symlink_to(elsewhere / f"{PREFIX}{'0' * 12}" / "lock")
    (temporary / f"{PREFIX}{'0' * 12}").symlink_to(elsewhere / f"{PREFIX}{'0' * 12}")

    assert clear_stale() == []
    assert (memory / f"convoy_{'0' * 12}_1").exists()


def test_a_runtime_holds_both_locks_until_it_is_removed(temporary: Path, memory: Path) -> None:
    runtime = Runtime.create(Installation.find())
    (memory / f"{runtime.shm_prefix}1").touch()

    assert clear_stale() == []
    assert len(names(memory)) == 2
    runtime.remove()
    assert names(temporary) == names(memory) == []


def test_a_start_survives_somebody_who_clears_up_in_the_instant_before_its_lock(
    temporary: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, cleared = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if not cleared:
            cleared.append(True)
            cleared.extend(clear_stale())
        flock(descriptor, operation)

    monkeypatch.setattr(lock.fcntl, "flock", late)

    runtime = Runtime.create(Installation.find())

    assert len(cleared) == 2, "the first folder was taken for a dead server's"
    assert cleared[1] != runtime.folder
    assert runtime.cwd.is_dir()
    monkeypatch.undo()
    runtime.remove()


# Processes


@pytest.fixture
def guarded(tmp_path: Path) -> Callable[..., subprocess.Popen[bytes]]:
    """Starts a shell program under the guard."""

    def start(script: str, stop_timeout_s: float = 5.0) -> subprocess.Popen[bytes]:
        held = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
        (tmp_path / "folder").mkdir()
        words = [str(held), str(stop_timeout_s), "convoy_no_such_prefix_", str(tmp_path / "folder"), "--", "/bin/sh", "-c", script]
        program = [sys.executable, "-I", "-S", guard.__file__, *words]
        process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[held])
        os.close(held)
        return process

    return start


def first_line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def finish(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(10)
    finally:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def exists(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_the_guard_ends_with_the_status_of_its_program(guarded: Callable[..., subprocess.Popen[bytes]], tmp_path: Path) -> None:
    assert finish(guarded("exit 7")) == 7
    assert (tmp_path / "folder").exists()


def test_the_guard_stops_the_program_and_its_children_when_its_starter_dies(
    guarded: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    process = guarded("trap 'exit 0' TERM; (trap '' TERM; sleep 60) & echo $!; wait")
    grandchild = int(first_line(process))

    assert process.stdin is not None
    process.stdin.close()

    assert finish(process) == 0
    assert not exists(grandchild)
    assert not (tmp_path / "folder").exists()


def test_the_guard_kills_a_program_that_does_not_stop(guarded: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = guarded("trap '' TERM; echo ready; while :; do sleep 0.05; done", stop_timeout_s=0.2)
    first_line(process)

    process.terminate()

    assert finish(process) == 128 + signal.SIGKILL


def test_the_guard_keeps_to_the_deadline_that_it_is_told(guarded: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = guarded("trap '' TERM; echo ready; while :; do sleep 0.05; done", stop_timeout_s=60)
    first_line(process)
    assert process.stdin is not None

    process.stdin.write(b"stop 0.2")
    process.stdin.close()

    assert finish(process) == 128 + signal.SIGKILL


def test_the_guard_does_not_wait_for_a_program_whose_children_have_all_ended(
    guarded: Callable[..., subprocess.Popen[bytes]],
) -> None:
    process = guarded("trap '' TERM; sleep 1 & echo ready; while :; do :; done", stop_timeout_s=60)
    first_line(process)
    began = time.monotonic()

    process.terminate()

    assert finish(process) == 128 + signal.SIGKILL
    assert time.monotonic() - began > guard.LINGER_S + 0.5, "the child was given the time that it took"


def test_the_program_ends_when_the_guard_is_killed(guarded: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = guarded("echo $$; exec sleep 60")
    child = int(first_line(process))

    process.kill()
    finish(process)

    wait_for(lambda: not exists(child))


def test_backend_processes_are_told_by_their_arguments(tmp_path: Path) -> None:
    model = tmp_path / "lenet5" / "3" / "model.onnx"
    model.parent.mkdir(parents=True)
    model.write_text("read line")  # a shell stands in for the stub: it runs what its first argument names
    words = [str(tmp_path / "triton_python_backend_stub"), str(model), "/convoy_x_1", *"34567", "lenet5_0"]
    stub = subprocess.Popen(words, executable="/bin/sh", stdin=subprocess.PIPE)
    other = subprocess.Popen(["other", str(model), "/convoy_x_2"], executable="/bin/sh", stdin=subprocess.PIPE)
    try:
        wait_for(lambda: find_stubs(os.getpid()))

        assert find_stubs(os.getpid()) == [Stub(stub.pid, "lenet5", "3", "lenet5_0", "convoy_x_1")]
        stub.kill()
        wait_for(lambda: not exists(stub.pid))
        assert find_stubs(os.getpid()) == []  # it has ended, though nobody has asked for its status yet
    finally:
        other.communicate(b"\n", timeout=10)
        stub.communicate(timeout=10)


def test_instances_of_all_groups_and_gpus_are_counted() -> None:
    assert instance_count({"instance_group": [{"count": 2, "gpus": []}, {"count": 1, "gpus": [0, 1]}]}) == 4
    assert instance_count({}) == 0


# Delays and segments


def test_what_dies_now_and_then_is_mended_at_once() -> None:
    backoff = Backoff()

    for now in range(0, 1000, int(REFILL_S)):
        assert backoff.is_due(now)
        backoff.attempted(now)

    assert backoff.delay_s == 0


def test_what_dies_again_and_again_waits_up_to_a_minute_and_is_mended_at_once_after_calm() -> None:
    backoff = Backoff()
    delays, now = [], 1.0
    for _ in range(BURST + 9):
        assert backoff.is_due(now)
        backoff.attempted(now)
        delays.append(backoff.delay_s)
        assert not backoff.is_due(backoff.next_at - 0.01)
        now = backoff.next_at

    assert delays == [0] * BURST + [1, 2, 4, 8, 16, 32, 60, 60, LONGEST_DELAY_S]
    backoff.attempted(now + REFILL_S)
    assert backoff.delay_s == 0


def test_what_fails_is_not_tried_again_at_once() -> None:
    backoff = Backoff()

    backoff.attempted(1.0, failed=True)
    assert backoff.next_at == 2
    backoff.attempted(2.0, failed=True)
    assert backoff.next_at == 4
    backoff.reset()
    assert backoff.is_due(2.0)


def test_segments_are_removed_when_nobody_has_used_them_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment.guard, "SHM", tmp_path)
    for name in ("ours_used", "ours_dead", "others"):
        (tmp_path / name).touch()
    segments = OrphanedSegments("ours_")

    assert segments.clear(["ours_used"], now=0) == []
    assert segments.clear(["ours_used"], now=ORPHANED_S - 1) == []
    assert segments.clear(["ours_used"], now=ORPHANED_S) == ["ours_dead"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["others", "ours_used"]


# What is refused before anything starts


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "m" / "1").mkdir(parents=True)
    return tmp_path


def test_two_equal_ports_are_wrong_use(repository: Path) -> None:
    with pytest.raises(UsageError, match="must differ"):
        TritonServer(repository, http_port=8123, grpc_port=8123, metrics_port=0).check()


def test_no_time_to_start_is_wrong_use(repository: Path) -> None:
    with pytest.raises(UsageError, match="--start-timeout: expected more than 0"):
        TritonServer(repository, start_timeout_s=0).check()


def test_a_log_in_no_folder_is_wrong_use(repository: Path) -> None:
    with pytest.raises(UsageError, match="--log: expected a file in a folder that exists"):
        TritonServer(repository, log_path=repository / "none" / "triton.log").check()


@pytest.mark.parametrize("kept", [True, False])
def test_an_error_that_refers_to_the_log_says_what_stands_there_and_where_it_is_kept(tmp_path: Path, kept: bool) -> None:
    path = tmp_path / "triton.log"
    server = TritonServer(tmp_path, log_path=path if kept else None)
    server._log = TritonLog(path)
    since = server.log.position()
    path.write_text('E1123 18:26:02.9 1 a.cc:1] "some operator failed."\n')

    said = server.explain(ServerFailureError("it failed. The server's log says more."), since)
    server.log.close()

    place = f" It is {path}." if kept else ""
    assert said == f"it failed. The server's log says more. There: some operator failed.{place}"
    assert server.explain(UnavailableError("no answer."), since) == "no answer."
