"""A running Triton on a small repository, for every integration test that only talks to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from convoy.contract.image import ImageSpec
from convoy.contract.manifest import INTERFACE_PARAMETER, ModelInterface, TensorSpec
from convoy.serving.triton import TritonServer

TINY_LABELS = ("ant", "bee", "cat")
TINY_IMAGE = ImageSpec(height_px=4, width_px=4, channels=1, resize="stretch")


def write_tiny_onnx(path: Path, *, bias: float = 0.0) -> None:
    """A classifier of 4x4 grey images into three classes: logits are the sums of pixels in three regions, plus ``bias``."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    weights = rng.normal(scale=0.01, size=(16, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["pixels"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "weights", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 4, 4, 1])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("logits", "probabilities")],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.full(3, bias, np.float32), "bias")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def tiny_config(name: str = "tiny", *, version: int = 1, max_batch_size: int = 8, extra: str = "") -> str:
    """The ``config.pbtxt`` of the tiny classifier, as ``convoy deploy`` would write it."""
    tensor = {"datatype": "FP32", "dims": (3,)}
    interface = ModelInterface(
        labels=TINY_LABELS,
        image=TINY_IMAGE,
        inputs=(TensorSpec(name="image", datatype="UINT8", dims=(4, 4, 1), value_range=(0, 255)),),
        outputs=(TensorSpec(name="logits", **tensor), TensorSpec(name="probabilities", **tensor)),
    )
    escaped = interface.model_dump_json().replace("\\", "\\\\").replace('"', '\\"')
    return f"""
name: "{name}"
backend: "onnxruntime"
max_batch_size: {max_batch_size}
input [ {{ name: "image" data_type: TYPE_UINT8 dims: [ 4, 4, 1 ] }} ]
output [
  {{ name: "logits" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" }},
  {{ name: "probabilities" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" }}
]
instance_group [ {{ count: 1 kind: KIND_AUTO }} ]
version_policy {{ specific {{ versions: [ {version} ] }} }}
dynamic_batching {{ }}
parameters {{ key: "{INTERFACE_PARAMETER}" value {{ string_value: "{escaped}" }} }}
{extra}
"""


def write_tiny_model_folder(repository: Path, name: str = "tiny", *, versions: tuple[int, ...] = (1,), extra: str = "") -> Path:
    """Write the tiny classifier into a repository; version N has the bias N. The last version is served."""
    folder = repository / name
    for version in versions:
        (folder / str(version)).mkdir(parents=True)
        write_tiny_onnx(folder / str(version) / "model.onnx", bias=float(version))
    (folder / "labels.txt").write_text("\n".join(TINY_LABELS) + "\n")
    (folder / "config.pbtxt").write_text(tiny_config(name, version=versions[-1], extra=extra))
    return folder


def write_tiny_config_file(folder: Path, *, version: int) -> None:
    """Replace the tiny classifier's ``config.pbtxt`` in one step, as ``convoy deploy`` does."""
    aside = folder / ".config.pbtxt.tmp"
    aside.write_text(tiny_config(folder.name, version=version))
    aside.replace(folder / "config.pbtxt")


@pytest.fixture(scope="session")
def write_tiny_model() -> Callable[..., Path]:
    """Writes the tiny classifier into a repository: ``(repository, name="tiny", *, versions=(1,), extra="")`` -> its folder."""
    return write_tiny_model_folder


@pytest.fixture(scope="session")
def write_tiny_config() -> Callable[..., None]:
    """Replaces the tiny classifier's configuration: ``(folder, *, version)``."""
    return write_tiny_config_file


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A Triton that serves the model ``tiny`` for the whole session: talk to it, do not change it."""
    repository = tmp_path_factory.mktemp("repository")
    write_tiny_model_folder(repository)
    with TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0) as server:
        yield server
