"""Where a run computes."""

from __future__ import annotations

import pytest
import torch

from convoy.training.loop.hardware import Hardware, connect, numbered


@pytest.mark.parametrize(("name", "expected"), [("cuda", "cuda:2"), ("cuda:1", "cuda:1"), ("cpu", "cpu")])
def test_a_gpu_without_a_number_is_the_one_in_use(monkeypatch: pytest.MonkeyPatch, name: str, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)

    assert str(numbered(torch.device(name))) == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.gpu
@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
def test_a_gpu_is_connected_to_under_any_of_its_names(name: str) -> None:
    assert str(connect(Hardware(device=name)).device) == "cuda:0"


def test_the_cpu_is_connected_to() -> None:
    assert str(connect(Hardware(device="cpu")).device) == "cpu"
