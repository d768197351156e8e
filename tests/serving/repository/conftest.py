"""Bundles whose files are small but true to their digests; the repository never looks inside the ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from convoy.contract.agreement import Tolerance
from convoy.contract.bundle import GOLDENS_FILE, MODEL_FILE, Bundle
from convoy.contract.goldens import Goldens
from convoy.contract.image import ImageSpec
from convoy.contract.manifest import Manifest, Preprocessing, TensorSpec, TrainingFacts
from convoy.contract.validation import Check, ValidationReport
from convoy.serving.repository import Repository

MakeBundle = Callable[..., Bundle]


def write_bundle(
    folder: Path, model: bytes = b"model one", *, verdict: str = "passed", labels=("a", "b"), size: int = 4, most: int = 8
) -> Bundle:
    folder.mkdir(parents=True)
    (folder / MODEL_FILE).write_bytes(model)
    zeros = np.zeros((2, len(labels)), np.float32)
    Goldens.of_classes(np.zeros((2, size, size, 1), np.uint8), zeros, zeros, np.zeros(2, np.int64)).save(folder / GOLDENS_FILE)
    checks = (Check(name="a check", verdict=verdict, expected="x", found="y"),)
    tolerances = {name: Tolerance(atol=1e-5, rtol=1e-6) for name in ("logits", "probabilities")}
    manifest = Manifest(
        model_name="tiny",
        labels=labels,
        image=ImageSpec(height_px=size, width_px=size, channels=1),
        preprocessing=Preprocessing(polarity="as-is", scale=1 / 255, mean=(0.0,), std=(1.0,)),
        inputs=(TensorSpec(name="image", datatype="UINT8", dims=(size, size, 1)),),
        outputs=tuple(TensorSpec(name=name, datatype="FP32", dims=(len(labels),)) for name in ("logits", "probabilities")),
        max_batch_size=most,
        opset_version=18,
        ir_version=10,
        weights_sha256="0" * 64,
        training=TrainingFacts(
            run_id="run", recipe="tiny", dataset="noise", seed=0, epochs=1, best_epoch=1, n_parameters=1, n_train=1, n_validation=1,
            n_test=1, validation_top1_error=0.1, test_top1_error=0.1,
        ),
        accuracy=None,
        versions={},
    )  # fmt: skip
    report = ValidationReport(model_name="tiny", verdict=verdict, checks=checks, tolerances=tolerances, accuracy=None, versions={})
    return Bundle.seal(folder, manifest, report)


def onnx_bytes(*, size: int = 4, n_labels: int = 2, bias: float = 0.0) -> bytes:
    """A real classifier of the bundles' shape: the pixels' sum, plus ``bias``, for every class."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "weights", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", size, size, 1])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", n_labels]) for name in ("logits", "probabilities")],
        [
            numpy_helper.from_array(np.ones((size * size, n_labels), np.float32), "weights"),
            numpy_helper.from_array(np.full(n_labels, bias, np.float32), "bias"),
        ],
    )
    model: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    return model


@pytest.fixture
def make_onnx() -> Callable[..., bytes]:
    """Makes a real ONNX file of the bundles' shape."""
    return onnx_bytes


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    count = 0

    def make(*args: object, **options: object) -> Bundle:
        nonlocal count
        count += 1
        return write_bundle(tmp_path / f"export-{count}", *args, **options)

    return make


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")
