"""The repository of the backend contract, and a server on it.

Here the wheel's server with Convoy's backend answers. To hold another server to the same contract (NVIDIA's container, say), write
the repository, serve it there, and name the server::

    python tests/integration/backend_contract/conftest.py /models
    CONVOY_CONTRACT_URL=grpc://host:8001 python -m pytest tests/integration/backend_contract
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from convoy.serving.client import Client
from convoy.serving.triton import TritonServer

TYPES = {
    "BOOL": "BOOL", "UINT8": "UINT8", "UINT16": "UINT16", "UINT32": "UINT32", "UINT64": "UINT64", "INT8": "INT8", "INT16": "INT16",
    "INT32": "INT32", "INT64": "INT64", "FP16": "FLOAT16", "FP32": "FLOAT", "FP64": "DOUBLE", "STRING": "STRING",
}  # fmt: skip
"""ONNX's name of each of Triton's types."""

ONE_INSTANCE = "instance_group [ { count: 1 kind: KIND_CPU } ]"


def write_onnx(
    path: Path, nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], constants: dict[str, Any] | None = None
) -> None:
    graph = helper.make_graph(
        nodes,
        "contract",
        [helper.make_tensor_value_info(name, *value) for name, value in inputs.items()],
        [helper.make_tensor_value_info(name, *value) for name, value in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    path.parent.mkdir(parents=True)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def write_config(
    folder: Path, inputs: dict[str, Any], outputs: dict[str, Any], *, max_batch_size: int = 8, extra: str = ""
) -> None:
    def tensors(specs: dict[str, Any]) -> str:
        return ", ".join(f'{{ name: "{name}" data_type: TYPE_{kind} dims: {dims} }}' for name, (kind, dims) in specs.items())

    (folder / "config.pbtxt").write_text(
        f'name: "{folder.name}"\nbackend: "onnxruntime"\nmax_batch_size: {max_batch_size}\n'
        f"input [ {tensors(inputs)} ]\noutput [ {tensors(outputs)} ]\n{ONE_INSTANCE}\n{extra}\n"
    )


def write_repository(root: Path) -> None:
    """Write the models that the contract is about."""
    fp32 = TensorProto.FLOAT
    pair = (fp32, ["n", 2])

    names = {kind: (f"in_{kind}", f"out_{kind}") for kind in TYPES}
    onnx = {kind: (getattr(TensorProto, name), ["n", 2]) for kind, name in TYPES.items()}
    write_onnx(
        root / "types" / "1" / "model.onnx",
        [helper.make_node("Identity", [names[kind][0]], [names[kind][1]]) for kind in TYPES],
        {names[kind][0]: onnx[kind] for kind in TYPES},
        {names[kind][1]: onnx[kind] for kind in TYPES},
    )
    write_config(
        root / "types", {names[k][0]: (k, [2]) for k in TYPES}, {names[k][1]: (k, [2]) for k in TYPES}, extra="dynamic_batching { }"
    )

    write_onnx(
        root / "several" / "1" / "model.onnx",
        [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])],
        {"a": pair, "b": pair},
        {"sum": pair, "difference": pair},
    )
    both = ("FP32", [2])
    write_config(root / "several", {"b": both, "a": both}, {"difference": both, "sum": both}, extra="dynamic_batching { }")

    write_onnx(
        root / "lookup" / "1" / "model.onnx",
        [helper.make_node("Gather", ["table", "index"], ["value"])],
        {"index": (TensorProto.INT64, ["n", 1])},
        {"value": (fp32, ["n", 1])},
        {"table": np.array([10, 20, 30, 40], np.float32)},
    )
    delay = "dynamic_batching { max_queue_delay_microseconds: 100000 preferred_batch_size: [ 8 ] }"
    write_config(root / "lookup", {"index": ("INT64", [1])}, {"value": ("FP32", [1])}, extra=delay)

    lengths = (fp32, ["n", "m"])
    write_onnx(root / "lengths" / "1" / "model.onnx", [helper.make_node("Neg", ["x"], ["y"])], {"x": lengths}, {"y": lengths})
    write_config(root / "lengths", {"x": ("FP32", [-1])}, {"y": ("FP32", [-1])}, extra="dynamic_batching { }")

    square = (fp32, [2, 2])
    write_onnx(root / "unbatched" / "1" / "model.onnx", [helper.make_node("Neg", ["x"], ["y"])], {"x": square}, {"y": square})
    write_config(root / "unbatched", {"x": ("FP32", [2, 2])}, {"y": ("FP32", [2, 2])}, max_batch_size=0)

    write_onnx(root / "bare" / "1" / "model.onnx", [helper.make_node("Neg", ["x"], ["y"])], {"x": pair}, {"y": pair})

    for version, op in ((1, "Neg"), (2, "Identity")):
        write_onnx(root / "dressed" / str(version) / "net.onnx", [helper.make_node(op, ["x"], ["y"])], {"x": pair}, {"y": pair})
    (root / "dressed" / "notes").mkdir()
    (root / "dressed" / ".3.staging").mkdir()
    (root / "dressed" / "labels.txt").write_text("left\nright\n")
    warmup = 'inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 2 ] zero_data: true } }'
    (root / "dressed" / "config.pbtxt").write_text(
        f"""name: "dressed" backend: "onnxruntime" max_batch_size: 8 default_model_filename: "net.onnx"
input [ {{ name: "x" data_type: TYPE_FP32 dims: [ 2 ] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "labels.txt" }} ]
instance_group [ {{ count: 2 kind: KIND_AUTO }} ]
version_policy {{ specific {{ versions: [ 1 ] }} }}
dynamic_batching {{ }}
optimization {{ graph {{ level: 1 }} }}
model_warmup [ {{ name: "one" batch_size: 1 {warmup} }}, {{ name: "most" batch_size: 8 {warmup} }} ]
parameters {{ key: "intra_op_thread_count" value {{ string_value: "1" }} }}
parameters {{ key: "a_word_of_mine" value {{ string_value: "x" }} }}
"""
    )


@pytest.fixture(scope="session")
def contract(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of the server that is held to the contract."""
    url = os.environ.get("CONVOY_CONTRACT_URL")
    if url:
        with Client(url) as client:
            yield client
        return
    root = tmp_path_factory.mktemp("contract")
    write_repository(root)
    with TritonServer(root, http_port=0, grpc_port=0, metrics_port=0) as server, Client(server.grpc_url) as client:
        yield client


if __name__ == "__main__":
    write_repository(Path(sys.argv[1]))
