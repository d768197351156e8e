"""The shipped model answers alike in the oldest and the newest ONNX Runtime of the servers; a wrong file is seen to be wrong."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from benchmarks.onnxruntime_versions import NEWEST, OLDEST, default_cache, fresh_exports, replay
from convoy.contract.bundle import Bundle

SHIPPED = Path(__file__).parents[2] / "model_repository" / "lenet5" / "1"


@pytest.mark.integration
@pytest.mark.parametrize(
    "version",
    [
        OLDEST,
        pytest.param(
            NEWEST, marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="ONNX Runtime 1.27 has no wheel for 3.10")
        ),
    ],
)
def test_the_shipped_model_answers_alike(version, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(SHIPPED, damaged)
    model = onnx.load(damaged / "model.onnx")
    bias = next(tensor for tensor in model.graph.initializer if tensor.dims == [10])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 0.01, bias.name))
    onnx.save(model, damaged / "model.onnx")

    answer = replay(version, [SHIPPED, damaged], default_cache())
    assert answer["version"].startswith(version)
    right, wrong = (answer["exports"][str(folder)]["outputs"] for folder in (SHIPPED, damaged))
    assert all(found["n_outside"] == found["n_decisions"] == 0 for found in right.values()), right
    assert wrong["logits"]["n_outside"] > 0


def test_every_precision_is_exported_anew(tmp_path):
    made = list(fresh_exports(["lenet5"], ["fp32", "fp16"], tmp_path))
    assert [Bundle.open(folder).manifest.precision for folder in made] == ["fp32", "fp16"]
