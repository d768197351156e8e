"""The report of several loads: shares of the limit, and its plot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from convoy.contract.errors import MissingDependencyError, UsageError
from convoy.serving.load import Closed, Measurement, Open, Percentiles
from convoy.serving.load.benching import is_local
from convoy.serving.load.limit import Limit, LimitPoint
from convoy.serving.load.plot import plot
from convoy.serving.load.report import BenchReport, MachineLimit


def measurement(load: Closed | Open, rate: float, *, p50: float | None = 1.0, n_errors: int = 0) -> Measurement:
    return Measurement(
        load=load, protocol="grpc", batch_size=2, n_requests=int(rate), n_errors=n_errors, first_error="no" * bool(n_errors),
        duration_s=1.0, requests_per_s=rate, images_per_s=2 * rate, window_s=1.0, windows=(), stable=p50 != 2.0,
        latency_ms=None if p50 is None else Percentiles(p50, p50, p50, p50, p50 * 3, p50 * 4, p50 * 5), lag_ms=None, n_held=0,
        n_unsent=0, generator_cpu=0.95, n_processes=1, server=None, n_total_sent=int(rate), n_total_answered=int(rate),
    )  # fmt: skip


def report(*measurements: Measurement, limit: bool = True) -> BenchReport:
    machine = MachineLimit(
        Limit("m.onnx", (), (LimitPoint(1, 1, 500.0, 2.0), LimitPoint(2, 8, 1100.0, 7.0))), LimitPoint(2, 8, 900.0, 9.0)
    )
    return BenchReport("grpc://127.0.0.1:1", "m", "3", True, measurements, machine if limit else None)


def test_shares_are_of_the_mean_of_the_limit_before_and_after(as_json: Any) -> None:
    found = report(measurement(Closed(1), 100.0), measurement(Open(50.0), 50.0, n_errors=3))
    assert found.limit is not None
    assert found.limit.images_per_s == 1000.0
    assert found.limit.drift == pytest.approx(9 / 11)
    assert found.share_of_limit(found.measurements[0]) == 0.2
    assert (found.n_errors, found.first_error) == (3, "no")
    document = as_json(found.as_dict())
    assert document["measurements"][0]["share_of_limit"] == 0.2
    assert document["measurements"][0]["load"] == {"kind": "closed", "concurrency": 1}
    assert document["measurements"][1]["load"] == {"kind": "open", "rate_per_s": 50.0, "max_outstanding": 512}
    assert document["limit"]["before"]["best"]["threads"] == 2
    assert report(limit=False).as_dict()["limit"] is None


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_plot_is_drawn_and_is_the_same_each_time(suffix: str, tmp_path: Path) -> None:
    loads = (measurement(Closed(4), 100.0), measurement(Closed(1), 50.0, p50=2.0), measurement(Open(20.0), 20.0))
    paths = [tmp_path / f"{name}{suffix}" for name in ("one", "two")]
    for path in paths:
        plot(report(*loads, measurement(Closed(64), 0.0, p50=None)), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert len(paths[0].read_bytes()) > 10_000
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"one{suffix}", f"two{suffix}"]


def test_plots_without_a_limit_are_drawn(tmp_path: Path) -> None:
    plot(report(measurement(Closed(1), 100.0), limit=False), tmp_path / "one.svg")
    assert "in process" not in (tmp_path / "one.svg").read_text()


@pytest.mark.parametrize(("name", "words"), [("plot.pdf", "ends in .png or .svg"), ("none/plot.png", "no such folder")])
def test_a_plot_that_cannot_be_written_is_refused(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        plot(report(measurement(Closed(1), 100.0)), tmp_path / name)


def test_nothing_is_drawn_where_nothing_was_answered(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to draw"):
        plot(report(measurement(Closed(1), 0.0, p50=None)), tmp_path / "plot.png")
    assert not list(tmp_path.iterdir())


def test_a_missing_matplotlib_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import util

    real = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == "matplotlib" else real(name, *rest))
    with pytest.raises(MissingDependencyError, match="pip install matplotlib"):
        plot(report(measurement(Closed(1), 100.0)), tmp_path / "plot.png")


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("grpc://localhost:8001", True),
        ("http://127.0.0.1:8000", True),
        ("http://[::1]:8000", True),
        ("grpc://gpu-box", False),
        ("grpc://10.0.0.1", False),
    ],
)
def test_only_loopback_is_this_machine(url: str, local: bool) -> None:
    assert is_local(url) == local


def test_the_generators_process_loads_little() -> None:
    """It must start at once, and share no lock with what the caller has loaded."""
    code = "import sys, convoy.serving.load.generator; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & {"grpc", "httpx", "pydantic", "tritonclient", "onnxruntime", "matplotlib", "rich", "torch"}
