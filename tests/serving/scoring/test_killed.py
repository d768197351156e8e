"""Scoring runs that are killed, at each of their failpoints and at random."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow.parquet")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


def killed(tmp_path: Path, *runs: tuple[object, ...]) -> list[dict[str, Any]]:
    """Run the program that kills, several at once; gives what each says at its end. What it says before is what went wrong."""
    processes = []
    for i, arguments in enumerate(runs):
        (folder := tmp_path / str(i)).mkdir()
        words = [sys.executable, str(Path(__file__).with_name("killed.py")), str(folder), *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        processes.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment))
    ends = []
    for process in processes:
        out, _ = process.communicate(timeout=280)
        assert process.returncode == 0, out
        *wrong, end = map(json.loads, out.splitlines())
        assert not wrong
        ends.append(end)
    return ends


def test_a_run_that_is_killed_at_any_failpoint_ends_as_one_that_is_not(tmp_path: Path) -> None:
    ends = killed(tmp_path, ("every", 0, 2), ("every", 1, 2))
    n_calls = ends[0]["calls"]
    assert n_calls > 50
    # Before and after each call, and within each write; some runs have a call or two fewer.
    assert sum(end["killed"] for end in ends) >= 2 * n_calls


def test_runs_that_are_killed_many_times_at_random_end_as_one_that_is_not(tmp_path: Path) -> None:
    ends = killed(tmp_path, ("random", 1, 75), ("random", 2, 75, "jsonl"))
    assert sum(end["killed"] for end in ends) >= 150
