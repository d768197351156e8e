"""The contained process: whatever it does to itself, the caller gets an answer or one error."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from convoy.contract.errors import ContractError, ExportError
from convoy.export.adopt.frames import decode, encode
from convoy.export.adopt.limits import Limits
from convoy.export.adopt.sandbox import run_contained

TASKS = """
import ctypes, os, signal, sys, time
from pathlib import Path
import numpy as np
from convoy.contract.errors import ExportError, UsageError

def echo(payload): return payload
def double(payload): return {"array": payload["array"] * 2}
def refuse(payload): raise ExportError("expected a, found b: do c. \\x1b[31m")
def fail(payload): raise ValueError("something else")
def segfault(payload): ctypes.string_at(0)
def abort(payload): os.abort()
def leave(payload): os._exit(7)
def leave_well(payload): os._exit(0)
def hunger(payload): return {"size": len(bytearray(2**40))}
def creeping_hunger(payload):
    kept = []
    while True: kept.append(bytearray(2**24))
def native_hunger(payload):
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    return {"address": libc.malloc(2**33)}
def spin(payload):
    while True: pass
def sleep(payload):
    time.sleep(600)
def deaf(payload):
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
    time.sleep(600)
def spawn(payload):
    import subprocess
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", payload["path"]])
    Path(payload["path"]).touch()
    time.sleep(600)
def garbage(payload):
    os.write(find_answer(), b"garbage")
    os._exit(0)
def flood(payload):
    descriptor = find_answer()
    while True: os.write(descriptor, bytes(2**20))
def lie(payload):
    header = b'{"values": {}, "blobs": [{"name": "a", "dtype": "float32", "shape": [1000000000]}]}'
    os.write(find_answer(), b"CVYF" + len(header).to_bytes(4, "little") + header)
    os._exit(0)
def find_answer():
    # The frame's descriptor is a copy of what was standard output; only it is a pipe besides 0, 1 and 2.
    import stat
    return next(fd for fd in range(3, 64) if valid(fd) and stat.S_ISFIFO(os.fstat(fd).st_mode))
def valid(fd):
    try: os.fstat(fd)
    except OSError: return False
    return True
def noise(payload):
    print("to standard output"); os.write(1, b"natively\\n"); print("to standard error", file=sys.stderr)
    return {"ok": True}
def much_noise(payload):
    for _ in range(2000): os.write(2, b"x" * 10_000)
    os.abort()
def surroundings(payload):
    return {"environment": dict(os.environ), "folder": os.getcwd(), "files": os.listdir("."),
            "modules": [name for name in ("torch", "onnx") if name in sys.modules],
            "open": sorted(int(n) for n in os.listdir("/proc/self/fd"))}
def write(payload):
    Path("file").write_bytes(b"x")
def unsendable(payload): return {"object": object()}
def deep(payload):
    value = []
    for _ in range(100_000): value = [value]
    return {"value": value}
"""


@pytest.fixture(autouse=True)
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "contained_tasks.py").write_text(TASKS)
    monkeypatch.syspath_prepend(tmp_path)


def run(task: str, payload: dict[str, object] | None = None, **limits: float) -> dict[str, object]:
    return run_contained(f"contained_tasks:{task}", payload or {}, limits=Limits(**limits))  # type: ignore[arg-type]


def test_values_bytes_and_arrays_go_and_come_back():
    sent = {
        "number": 1.5,
        "list": [1, "two", None, {"three": True}],
        "bytes": bytes(range(256)) * 10_000,
        "array": np.arange(12, dtype=np.int64).reshape(3, 4),
    }
    reply = run("echo", sent)
    array = reply.pop("array")
    np.testing.assert_array_equal(array, sent.pop("array"))
    assert reply == sent
    np.testing.assert_array_equal(run("double", {"array": array})["array"], np.asarray(array) * 2)


def test_a_refusal_keeps_its_words_but_not_their_control_characters():
    with pytest.raises(ExportError) as told:
        run("refuse")
    assert str(told.value) == "expected a, found b: do c. ?[31m"


linux = pytest.mark.skipif(sys.platform != "linux", reason="the limits are Linux's")


@pytest.mark.parametrize(
    ("task", "match"),
    [
        ("fail", "failed: ValueError: something else"),
        ("segfault", r"crashed \(SIGSEGV\).*Fatal Python error: Segmentation fault"),
        ("abort", r"crashed \(SIGABRT\)"),
        ("leave", r"crashed \(exit code 7\)"),
        ("leave_well", "found none: expected a frame"),
        ("garbage", "expected a frame, found b'garbage'"),
        ("lie", "a blob of 4,000,000,000 bytes where 0 are left"),
        ("unsendable", "failed: ContractError: .*object|expected JSON-like values"),
        ("deep", "failed|crashed"),
        ("absent", "failed: AttributeError"),
        ("much_noise", r"crashed \(SIGABRT\)"),
    ],
)
def test_a_process_that_fails_is_one_error(task, match):
    with pytest.raises(ExportError, match=match) as told:
        run(task)
    assert len(str(told.value)) < 2000


@linux
@pytest.mark.parametrize("task", ["hunger", "creeping_hunger"])
def test_hunger_is_stopped_by_the_system_and_named(task):
    with pytest.raises(ExportError, match="ran out of its memory"):
        run(task, memory_bytes=2**28)


@linux
def test_hunger_of_native_code_is_refused_by_the_system():
    assert run("native_hunger", memory_bytes=2**28)["address"] is None


@linux
def test_work_without_end_is_stopped_by_processor_time():
    with pytest.raises(ExportError, match="used more than 1 s of processor time"):
        run("spin", cpu_s=1)


@pytest.mark.parametrize("task", ["sleep", "deaf", "spin"])
def test_silence_ends_at_the_deadline(task):
    started = time.monotonic()
    with pytest.raises(ExportError, match=r"end within 1\.5 s, found it still at work"):
        run(task, deadline_s=1.5)
    assert time.monotonic() - started < 10


@linux
def test_what_the_process_started_ends_with_it(tmp_path):
    flag = tmp_path / "started"
    with pytest.raises(ExportError, match="still at work"):
        run("spawn", {"path": str(flag)}, deadline_s=5)
    assert flag.exists()
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(flag).encode() in _read(path)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_an_answer_that_never_ends_is_cut_off():
    with pytest.raises(ExportError, match=r"at most 10,000,000 bytes .* found more"):
        run("flood", max_reply_bytes=10_000_000)


def test_what_the_process_prints_does_not_reach_the_answer(capfd):
    assert run("noise") == {"ok": True}
    assert capfd.readouterr() == ("", "")


def test_the_process_knows_little_of_its_caller(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    read, write = os.pipe()
    try:
        found = run("surroundings")
    finally:
        os.close(read)
        os.close(write)
    environment = found["environment"]
    assert isinstance(environment, dict)
    assert "AWS_SECRET_ACCESS_KEY" not in environment
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"
    assert found["files"] == []
    assert found["modules"] == []
    assert not Path(str(found["folder"])).exists()
    assert isinstance(found["open"], list)
    assert len(found["open"]) <= 6  # three standard ones, the answer's, and those of listing itself


@linux
def test_the_process_can_write_no_file():
    with pytest.raises(ExportError, match="File too large"):
        run("write")


@linux
def test_the_process_ends_when_its_parent_is_killed(tmp_path):
    script = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from convoy.export.adopt.sandbox import run_contained
        print("ready", flush=True)
        run_contained("contained_tasks:sleep", {{"mark": "of this test"}})
    """)
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    children = _until(lambda: _children(parent.pid))
    assert len(children) == 1
    _until(lambda: [1] if b"convoy.export.adopt.child" in _read(Path(f"/proc/{children[0]}/cmdline")) else [])
    _until(lambda: [1] if _limited(children[0]) else [])
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert _until(lambda: [1] if not _alive(children[0]) else [])


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _limited(pid: int) -> bool:
    """Whether the process has set its limits, which it does after it has asked to end with its parent."""
    return any(
        line.split()[3:5] == ["0", "0"] for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "Max file size" in line
    )


def _alive(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def _until(condition, deadline_s: float = 30.0) -> list[int]:
    end = time.monotonic() + deadline_s
    while not (found := condition()):
        if time.monotonic() > end:
            pytest.fail(f"not so within {deadline_s} s")
        os.sched_yield()
    return found


def test_an_unsendable_payload_is_an_error_of_the_caller():
    with pytest.raises(ContractError, match="JSON-like"):
        run("echo", {"object": object()})
    with pytest.raises(ContractError, match="expected an array of bool"):
        run("echo", {"array": np.array(["text"])})


arrays = hnp.arrays(
    dtype=st.sampled_from(["bool", "int8", "uint8", "int64", "uint16", "float16", "float32", "float64", ">f4"]),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


@given(
    st.dictionaries(st.text(max_size=5), st.one_of(st.binary(max_size=50), arrays, st.none(), st.integers(), st.text()), max_size=5)
)
def test_a_frame_is_read_as_it_was_written(message):
    read = decode(encode(message))
    assert read.keys() == message.keys()
    for name, value in message.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(read[name], value)
            assert read[name].dtype.name == value.dtype.name
            assert read[name].shape == value.shape
        else:
            assert read[name] == value


FRAME = encode({"array": np.arange(6, dtype=np.float32).reshape(2, 3), "text": "a", "bytes": b"abc"})


@given(st.integers(0, len(FRAME) - 1), st.binary(max_size=12), st.integers(0, 12))
def test_a_damaged_frame_is_read_or_refused(at, inserted, removed):
    damaged = FRAME[:at] + inserted + FRAME[at + removed :]
    with suppress(ContractError):
        assert isinstance(decode(damaged), dict)


@pytest.mark.parametrize(
    "header",
    [
        b"[]", b"{}", b"[" * 100_000, b'{"values": 1, "blobs": []}', b'{"values": {}, "blobs": [{}]}',
        b'{"values": {}, "blobs": [1]}',
        b'{"values": {}, "blobs": [{"name": "a", "dtype": "object", "shape": []}]}',
        b'{"values": {}, "blobs": [{"name": "a", "dtype": "float32", "shape": [-1]}]}',
        b'{"values": {}, "blobs": [{"name": "a", "dtype": "float32", "shape": [4611686018427387904, 4]}]}',
        b'{"values": {}, "blobs": [{"name": "a", "dtype": "float32", "shape": 3}]}',
        b'{"values": {}, "blobs": [{"name": [], "dtype": "bytes", "shape": [0]}]}',
        b'{"values": {"a": 1}, "blobs": [{"name": "a", "dtype": "bytes", "shape": [0]}]}',
        b'{"values": {"a": ' + b"9" * 5000 + b'}, "blobs": []}',
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(header):
    with pytest.raises(ContractError, match="expected a frame"):
        decode(b"CVYF" + len(header).to_bytes(4, "little") + header)


def test_bytes_that_no_blob_names_are_refused():
    with pytest.raises(ContractError, match="4 bytes that no blob names"):
        decode(FRAME + b"more")
