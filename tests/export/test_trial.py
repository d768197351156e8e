"""A file is tried out in a process of its own before this one loads it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from convoy.contract.errors import ExportError
from convoy.export.gate import trial
from convoy.export.gate.trial import trial_task, try_out
from convoy.export.graph.exporting import to_onnx

IMAGES = np.zeros((1, 8, 8, 1), np.uint8)


def crash_at_extended(payload: Mapping[str, Any]) -> dict[str, Any]:
    """What native code does that a file misleads, at one optimisation level alone."""
    if "extended" in payload["levels"]:
        os.abort()
    return {}


def test_a_crash_is_an_error_that_names_provider_and_level(monkeypatch):
    monkeypatch.setattr(trial, "_TASK", "tests.export.test_trial:crash_at_extended")
    with pytest.raises(ExportError, match=r"CPUExecutionProvider, graph optimisation extended: .*crashed \(SIGABRT\)"):
        try_out(b"", {"image": IMAGES}, (1,))


def test_a_file_that_onnx_runtime_refuses_is_left_to_the_gate():
    try_out(b"no model", {"image": IMAGES}, (1, 2))


def test_every_level_and_batch_size_is_run(monkeypatch, case):
    runs = []
    monkeypatch.setattr(trial, "run_session", lambda session, inputs, size: runs.append((len(inputs["image"]), size)))
    trial_task({
        "model": to_onnx(case.classifier, case.facts.image).proto.SerializeToString(),
        "input image": case.evaluation.images[:1],
        "batch_sizes": [1, 3],
        "providers": ["CPUExecutionProvider"],
        "levels": ["disabled", "all"],
    })  # fmt: skip
    assert runs == [(1, 1), (3, 3)] * 2
