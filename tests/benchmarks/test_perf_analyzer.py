"""NVIDIA's perf_analyzer as benchmarks run it: found, started, read; a script stands in for the program."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.peers import perf_analyzer
from benchmarks.peers.perf_analyzer import REQUIREMENT, PerfAnalyzer
from convoy.contract.errors import ConvoyError, MissingDependencyError

TABLE = "Concurrency,Inferences/Second,p50 latency,p90 latency,p95 latency,p99 latency\\n4,2606.62,1346,1914,2126,3069\\n"
WRITES = f"""#!/bin/sh
echo "$@" > "$(dirname "$0")/arguments"
echo "$LD_LIBRARY_PATH" > "$(dirname "$0")/libraries"
while [ "$1" != "-f" ]; do shift; done
printf '{TABLE}' > "$2"
"""
FAILS = "#!/bin/sh\necho 'error: failed to get model metadata' >&2\nexit 1\n"


def install(cache: Path, script: str) -> PerfAnalyzer:
    folder = cache / REQUIREMENT.replace("==", "-") / "bin"
    folder.mkdir(parents=True)
    (folder / "perf_analyzer").write_text(script)
    return PerfAnalyzer.ready(cache)


@pytest.fixture(autouse=True)
def libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = tmp_path / "libcudart-0.so.12.6"
    library.touch()
    monkeypatch.setattr(perf_analyzer, "_cuda_runtime", lambda: library)
    monkeypatch.setattr(perf_analyzer, "_loads", lambda _: True)


def test_its_figures_are_read(tmp_path: Path) -> None:
    program = install(tmp_path, WRITES)
    found = program.measure("grpc://127.0.0.1:8001", "lenet5", in_flight=4, window_s=1.5, mode="sync")
    assert (found.rate_per_s, found.p50_ms, found.p99_ms) == (2606.62, 1.346, 3.069)
    said = (program.path.parent / "arguments").read_text()
    assert "-m lenet5 -i grpc -u 127.0.0.1:8001 --sync -b 1 --concurrency-range 4:4 -p 1500 -r 3" in said
    libraries = Path((program.path.parent / "libraries").read_text().strip())
    assert (libraries / "libcudart.so.12").resolve() == (tmp_path / "libcudart-0.so.12.6").resolve()


def test_its_failure_is_told_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(ConvoyError, match="failed to get model metadata"):
        install(tmp_path, FAILS).measure("http://127.0.0.1:8000", "lenet5", in_flight=1, window_s=1)


def test_a_missing_library_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perf_analyzer, "_loads", lambda _: False)
    monkeypatch.setattr(perf_analyzer.ctypes.util, "find_library", lambda _: None)
    with pytest.raises(MissingDependencyError, match="apt-get install libb64-0d"):
        PerfAnalyzer.ready(tmp_path)
