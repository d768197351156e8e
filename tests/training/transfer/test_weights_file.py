from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as save_safetensors
from torch import nn

from convoy.contract.errors import ContractError, UsageError
from convoy.training.transfer.weights_file import read_weights

TENSORS = {"conv.weight": torch.arange(12.0).reshape(3, 4), "conv.bias": torch.ones(3)}


class Runs:
    """Runs a command when it is unpickled by a reader that is not careful."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_a_command_is_refused_and_runs_none(tmp_path: Path, zipped: bool) -> None:
    path, trace = tmp_path / "w.pth", tmp_path / "trace"
    torch.save({**TENSORS, "x": Runs(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ContractError, match=r"builds other Python objects \(it asks for posix\.system\).*not read"):
        read_weights(path)
    assert not trace.exists()


def test_a_bare_pickle_that_would_run_a_command_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Runs(tmp_path / "trace")))
    with pytest.raises(ContractError, match=r"w\.pth"):
        read_weights(tmp_path / "w.pth")
    assert not (tmp_path / "trace").exists()


def test_a_whole_network_in_a_pickle_is_refused_with_what_to_save_instead(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(ContractError, match=r"expected tensors alone.*torch\.save\(network\.state_dict\(\), FILE\)"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**TENSORS, "epoch": 3}, "found a value of type int under 'epoch'"),
        ({1: torch.ones(1)}, "found a value of type Tensor under 1"),
        ([torch.ones(1)], "found a value of type list"),
        (torch.ones(1), "found a value of type Tensor"),
        ({}, "found nothing"),
        ({"state_dict": {}}, "found nothing"),
        ({"state_dict": {"w": "text"}}, "found a value of type str under 'w'"),
        ({"w": torch.ones(2, 2).to_sparse()}, "found a torch.float32 tensor of another kind under 'w'"),
        ({"w": torch.ones(2, device="meta")}, "tensor of another kind under 'w'"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "found a torch.complex64 tensor of another kind"),
    ],
)
def test_what_holds_no_plain_tensors_by_name_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ContractError, match=message):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "data", [b"", b"PK", b"hello", b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1", b"\0" * 64]
)
def test_a_file_that_is_no_file_of_weights_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(data)
    with pytest.raises(ContractError, match=r"expected weights that torch\.save or safetensors wrote"):
        read_weights(tmp_path / "w.pth")


def test_nothing_and_a_folder_that_is_no_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--weights .*expected a file with weights or a run folder: No such file"):
        read_weights(tmp_path / "w.pth")
    with pytest.raises(ContractError, match="run"):
        read_weights(tmp_path)


def write(kind: str, path: Path) -> bytes:
    if kind == "safetensors":
        path.write_bytes(save_safetensors(TENSORS))
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=kind == "zip")
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_the_kind_is_told_by_the_content_not_by_the_name(tmp_path: Path, kind: str) -> None:
    write(kind, tmp_path / "w.any")
    found = read_weights(tmp_path / "w.any").tensors
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@settings(max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 0.999))
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, kind: str, cut: float) -> None:
    path = tmp_path / "w"
    data = write(kind, path)
    path.write_bytes(data[: int(cut * len(data))])
    with pytest.raises(ContractError):
        read_weights(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@settings(max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 0.999), value=st.integers(0, 255))
def test_a_file_with_a_changed_byte_is_read_or_refused(tmp_path: Path, kind: str, place: float, value: int) -> None:
    path = tmp_path / "w"
    data = bytearray(write(kind, path))
    data[int(place * len(data))] = value
    path.write_bytes(data)
    with contextlib.suppress(ContractError):  # no other error, and no crash
        read_weights(path)
