"""The models that the contract is about, and those that no backend may load; as a program it writes the first into a folder.

Each function writes one model: its ONNX file, and the configuration that it is served with.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

TYPES = {
    "BOOL": "BOOL", "UINT8": "UINT8", "UINT16": "UINT16", "UINT32": "UINT32", "UINT64": "UINT64", "INT8": "INT8", "INT16": "INT16",
    "INT32": "INT32", "INT64": "INT64", "FP16": "FLOAT16", "FP32": "FLOAT", "FP64": "DOUBLE", "STRING": "STRING",
}  # fmt: skip
"""ONNX's name of each of Triton's types."""

ON_CPU = "instance_group [ { count: 1 kind: KIND_CPU } ]"
FP32 = TensorProto.FLOAT
PAIR = (FP32, ["n", 2])
"""Rows of two numbers."""

Tensors = Mapping[str, tuple[str, Sequence[int]]]
"""Triton's type and dims by tensor."""


def write_onnx(
    path: Path,
    nodes: Sequence[Any],
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    constants: Mapping[str, Any] | None = None,
) -> None:
    """Write a file of ``nodes``; tensors are ONNX's type and shape by name."""
    graph = helper.make_graph(
        nodes,
        "contract",
        [helper.make_tensor_value_info(name, *value) for name, value in inputs.items()],
        [helper.make_tensor_value_info(name, *value) for name, value in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    path.parent.mkdir(parents=True)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def write_neg(path: Path, shape: Sequence[Any] = ("n", 2), out: Sequence[Any] | None = None) -> None:
    """Write a file whose ``y`` is minus its ``x``."""
    write_onnx(
        path,
        [helper.make_node("Neg", ["x"], ["y"])],
        {"x": (FP32, list(shape))},
        {"y": (FP32, list(shape if out is None else out))},
    )


def write_config(
    folder: Path, inputs: Tensors, outputs: Tensors, *, max_batch_size: int = 8, extra: str = "dynamic_batching { }"
) -> None:
    """Write ``config.pbtxt``; extra text follows the tensors."""

    def tensors(specs: Tensors) -> str:
        return ", ".join(f'{{ name: "{name}" data_type: TYPE_{kind} dims: {list(dims)} }}' for name, (kind, dims) in specs.items())

    write_text(
        folder, f"max_batch_size: {max_batch_size}\ninput [ {tensors(inputs)} ]\noutput [ {tensors(outputs)} ]\n{ON_CPU}\n{extra}\n"
    )


def write_text(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(f'name: "{folder.name}"\nbackend: "onnxruntime"\n{text}')


def every_type(root: Path) -> None:
    names = {kind: (f"in_{kind}", f"out_{kind}") for kind in TYPES}
    onnx = {kind: (getattr(TensorProto, name), ["n", 2]) for kind, name in TYPES.items()}
    write_onnx(
        root / "types" / "1" / "model.onnx",
        [helper.make_node("Identity", [names[kind][0]], [names[kind][1]]) for kind in TYPES],
        {names[kind][0]: onnx[kind] for kind in TYPES},
        {names[kind][1]: onnx[kind] for kind in TYPES},
    )
    write_config(root / "types", {names[k][0]: (k, [2]) for k in TYPES}, {names[k][1]: (k, [2]) for k in TYPES})


def several_tensors(root: Path) -> None:
    write_onnx(
        root / "several" / "1" / "model.onnx",
        [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])],
        {"a": PAIR, "b": PAIR},
        {"sum": PAIR, "difference": PAIR},
    )
    both = ("FP32", [2])
    write_config(root / "several", {"b": both, "a": both}, {"difference": both, "sum": both})


def lookup(root: Path) -> None:
    """A table of four; an index beyond it spoils the run that it is in. Warmed up with an index from a file, waits for batches."""
    write_onnx(
        root / "lookup" / "1" / "model.onnx",
        [helper.make_node("Gather", ["table", "index"], ["value"])],
        {"index": (TensorProto.INT64, ["n", 1])},
        {"value": (FP32, ["n", 1])},
        {"table": np.array([10, 20, 30, 40], np.float32)},
    )
    sample = '{ key: "index" value { data_type: TYPE_INT64 dims: [ 1 ] input_data_file: "index" } }'
    extra = f"""dynamic_batching {{ max_queue_delay_microseconds: 100000 preferred_batch_size: [ 8 ] }}
model_warmup [ {{ name: "from a file" batch_size: 1 inputs {sample} }} ]"""
    write_config(root / "lookup", {"index": ("INT64", [1])}, {"value": ("FP32", [1])}, extra=extra)
    (root / "lookup" / "warmup").mkdir()
    (root / "lookup" / "warmup" / "index").write_bytes(np.array([3], np.int64).tobytes())


def any_length(root: Path) -> None:
    write_neg(root / "lengths" / "1" / "model.onnx", ["n", "m"])
    write_config(root / "lengths", {"x": ("FP32", [-1])}, {"y": ("FP32", [-1])})


def text(root: Path) -> None:
    strings = (TensorProto.STRING, ["n", "m"])
    write_onnx(root / "text" / "1" / "model.onnx", [helper.make_node("Identity", ["x"], ["y"])], {"x": strings}, {"y": strings})
    write_config(root / "text", {"x": ("STRING", [-1])}, {"y": ("STRING", [-1])})


def picture(root: Path) -> None:
    """The mean colour of a picture of any size."""
    write_onnx(
        root / "picture" / "1" / "model.onnx",
        [
            helper.make_node("Cast", ["image"], ["pixels"], to=FP32),
            helper.make_node("ReduceMean", ["pixels"], ["colour"], axes=[1, 2], keepdims=0),
        ],
        {"image": (TensorProto.UINT8, ["n", "h", "w", 3])},
        {"colour": (FP32, ["n", 3])},
    )
    write_config(root / "picture", {"image": ("UINT8", [-1, -1, 3])}, {"colour": ("FP32", [3])})


def reshaped(root: Path) -> None:
    """Callers see 2 x 3 and 3 x 2, the file has 6; they see [n, 1], the file [n]; they see any length x 1, the file any length."""
    six, rows, line = (FP32, ["n", 6]), (FP32, ["n"]), (FP32, ["n", "m"])
    write_onnx(
        root / "reshaped" / "1" / "model.onnx",
        [helper.make_node("Neg", [f"{name}_in"], [f"{name}_out"]) for name in ("six", "rows", "line")],
        {"six_in": six, "rows_in": rows, "line_in": line},
        {"six_out": six, "rows_out": rows, "line_out": line},
    )

    def tensor(name: str, dims: str, shape: str) -> str:
        return f'{{ name: "{name}" data_type: TYPE_FP32 dims: [ {dims} ] reshape {{ shape: [ {shape} ] }} }}'

    write_text(
        root / "reshaped",
        f"""max_batch_size: 8 {ON_CPU} dynamic_batching {{ }}
input [ {tensor("six_in", "2, 3", "6")}, {tensor("rows_in", "1", "")}, {tensor("line_in", "-1, 1", "-1")} ]
output [ {tensor("six_out", "3, 2", "6")}, {tensor("rows_out", "1", "")}, {tensor("line_out", "-1, 1", "-1")} ]
""",
    )


def scalars(root: Path) -> None:
    """The product of two scalars, and how many axes the first one has: none."""
    none = (FP32, [])
    write_onnx(
        root / "scalars" / "1" / "model.onnx",
        [
            helper.make_node("Mul", ["a", "b"], ["product"]),
            helper.make_node("Shape", ["a"], ["shape"]),
            helper.make_node("Size", ["shape"], ["rank"]),
        ],
        {"a": none, "b": none},
        {"product": none, "rank": (TensorProto.INT64, [])},
    )
    one = ("FP32", [1])
    write_config(root / "scalars", {"a": one, "b": one}, {"product": one, "rank": ("INT64", [1])}, max_batch_size=0, extra="")


def optional(root: Path) -> None:
    """``y`` is ``x`` times ``factor``, plus ``bias``, which are 2 and [10, 20] where they are not sent."""
    write_onnx(
        root / "optional" / "1" / "model.onnx",
        [helper.make_node("Mul", ["x", "factor"], ["product"]), helper.make_node("Add", ["product", "bias"], ["y"])],
        {"x": PAIR, "factor": (FP32, [1]), "bias": (FP32, [2])},
        {"y": PAIR},
        {"factor": np.array([2], np.float32), "bias": np.array([10, 20], np.float32)},
    )

    def tensor(name: str, dims: str, extra: str = "optional: true") -> str:
        return f'{{ name: "{name}" data_type: TYPE_FP32 dims: [ {dims} ] {extra} }}'

    write_text(
        root / "optional",
        f"""max_batch_size: 0 {ON_CPU}
input [ {tensor("factor", "1")}, {tensor("x", "-1, 2", "")}, {tensor("bias", "2")} ]
output [ {tensor("y", "-1, 2", "")} ]
""",
    )


def unbatched(root: Path) -> None:
    write_neg(root / "unbatched" / "1" / "model.onnx", [2, 2])
    write_config(root / "unbatched", {"x": ("FP32", [2, 2])}, {"y": ("FP32", [2, 2])}, max_batch_size=0, extra="")


def axisless(root: Path) -> None:
    """Its output says that it has rows, and has the first one however many come."""
    write_onnx(
        root / "axisless" / "1" / "model.onnx",
        [helper.make_node("Compress", ["x", "first"], ["y"], axis=0)],
        {"x": PAIR},
        {"y": PAIR},
        {"first": np.array([True])},
    )
    write_config(root / "axisless", {"x": ("FP32", [2])}, {"y": ("FP32", [2])})


def bare(root: Path) -> None:
    """Files without a configuration: with rows, without, of one number a row, and in a folder."""
    write_neg(root / "bare" / "1" / "model.onnx")
    write_neg(root / "bare_fixed" / "1" / "model.onnx", [3, 2])
    write_neg(root / "bare_rows" / "1" / "model.onnx", ["n"])
    write_neg(root / "bare_folder" / "1" / "model.onnx" / "model.onnx")


def partly_written(root: Path) -> None:
    """Configurations that leave tensors out."""
    write_neg(root / "partly_batch" / "1" / "model.onnx")
    write_text(root / "partly_batch", f"max_batch_size: 16 {ON_CPU}")
    both = {"y": PAIR, "z": PAIR}
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Identity", ["x"], ["z"])]
    write_onnx(root / "partly_output" / "1" / "model.onnx", nodes, {"x": PAIR}, both)
    write_text(root / "partly_output", f'max_batch_size: 2 output [ {{ name: "z" data_type: TYPE_FP32 dims: [ 2 ] }} ] {ON_CPU}')


def dressed(root: Path) -> None:
    """A configuration with a bit of everything; version 1 negates, version 2 is not to be served."""
    for version, op in ((1, "Neg"), (2, "Identity")):
        write_onnx(root / "dressed" / str(version) / "net.onnx", [helper.make_node(op, ["x"], ["y"])], {"x": PAIR}, {"y": PAIR})
    (root / "dressed" / "notes").mkdir()
    (root / "dressed" / ".3.staging").mkdir()
    (root / "dressed" / "labels.txt").write_text("left\nright\n")

    def warmup(name: str, rows: int, how: str) -> str:
        sample = f'{{ key: "x" value {{ data_type: TYPE_FP32 dims: [ 2 ] {how} }} }}'
        return f'{{ name: "{name}" batch_size: {rows} count: 2 inputs {sample} }}'

    write_text(
        root / "dressed",
        f"""max_batch_size: 8 default_model_filename: "net.onnx"
input [ {{ name: "x" data_type: TYPE_FP32 dims: [ 2 ] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "labels.txt" }} ]
instance_group [ {{ count: 2 kind: KIND_AUTO }} ]
version_policy {{ specific {{ versions: [ 1 ] }} }}
dynamic_batching {{ preserve_ordering: true }}
response_cache {{ enable: true }}
optimization {{ graph {{ level: 1 }} }}
model_warmup [ {warmup("one", 1, "zero_data: true")}, {warmup("most", 8, "random_data: true")} ]
parameters {{ key: "intra_op_thread_count" value {{ string_value: "1" }} }}
parameters {{ key: "execution_mode" value {{ string_value: "1" }} }}
parameters {{ key: "enable_mem_arena" value {{ string_value: "1" }} }}
parameters {{ key: "memory.enable_memory_arena_shrinkage" value {{ string_value: "cpu:0" }} }}
parameters {{ key: "a_word_of_mine" value {{ string_value: "x" }} }}
""",
    )


def versions(root: Path) -> None:
    """Version N multiplies by N."""
    for name, policy in (("latest_two", "latest { num_versions: 2 }"), ("all_versions", "all { }")):
        for version in (1, 2, 10):
            write_onnx(
                root / name / str(version) / "model.onnx",
                [helper.make_node("Mul", ["x", "factor"], ["y"])],
                {"x": PAIR},
                {"y": PAIR},
                {"factor": np.array([version], np.float32)},
            )
        write_config(root / name, {"x": ("FP32", [2])}, {"y": ("FP32", [2])}, extra=f"version_policy {{ {policy} }}")


def priorities(root: Path) -> None:
    """Slow enough for a queue: some milliseconds a row, one row at a time."""
    size = 256
    nodes = [helper.make_node("MatMul", [f"h{i}" if i else "x", "weights"], [f"h{i + 1}" if i < 9 else "y"]) for i in range(10)]
    wide = (FP32, ["n", size, size])
    write_onnx(
        root / "priorities" / "1" / "model.onnx", nodes, {"x": wide}, {"y": wide}, {"weights": np.eye(size, dtype=np.float32)}
    )
    levels = "dynamic_batching { priority_levels: 2 default_priority_level: 2 }"
    write_config(root / "priorities", {"x": ("FP32", [size, size])}, {"y": ("FP32", [size, size])}, max_batch_size=1, extra=levels)


def sequences(root: Path) -> None:
    """``y`` is ``x``, negated on the first request of a sequence."""
    write_onnx(
        root / "sequences" / "1" / "model.onnx",
        [
            helper.make_node("Cast", ["START"], ["first"], to=FP32),
            helper.make_node("Mul", ["first", "minus_two"], ["scaled"]),
            helper.make_node("Add", ["scaled", "one"], ["sign"]),
            helper.make_node("Mul", ["x", "sign"], ["y"]),
        ],
        {"x": PAIR, "START": (TensorProto.INT32, ["n", 1])},
        {"y": PAIR},
        {"minus_two": np.array([-2], np.float32), "one": np.array([1], np.float32)},
    )
    control = '{ name: "START" control [ { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } ] }'
    extra = f"sequence_batching {{ max_sequence_idle_microseconds: 60000000 control_input [ {control} ] }}"
    write_config(root / "sequences", {"x": ("FP32", [2])}, {"y": ("FP32", [2])}, extra=extra)


MODELS = (
    every_type, several_tensors, lookup, any_length, text, picture, reshaped, scalars, optional, unbatched, axisless, bare,
    partly_written, dressed, versions, priorities, sequences,
)  # fmt: skip


def write_repository(root: Path) -> None:
    """Write the models that the contract is about."""
    for write in MODELS:
        write(root)


def write_broken(root: Path) -> dict[str, str]:
    """Write models that cannot be loaded, one fault in each.

    Returns:
        By model, what its error says here (a regular expression).
    """
    pair = {"x": ("FP32", [2])}, {"y": ("FP32", [2])}
    errors: dict[str, str] = {}

    def broken(name: str, error: str, inputs: Tensors = pair[0], outputs: Tensors = pair[1], **config: Any) -> Path:
        folder = root / name
        if not (folder / "1").exists():
            write_neg(folder / "1" / "model.onnx")
        write_config(folder, inputs, outputs, **config)
        errors[name] = error
        return folder / "1" / "model.onnx"

    def parameter(key: str, value: str) -> str:
        return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'

    cut = broken("cut_short", r"model\.onnx \(version 1\) cannot be loaded: .* cut short")
    cut.write_bytes(cut.read_bytes()[:30])
    broken("not_onnx", r"cannot be loaded").write_bytes(b"This is no model.")
    broken("empty", r"cannot be loaded").write_bytes(b"")
    broken("no_file", r"model\.onnx: no such file").unlink()
    broken("other_file", r"net\.onnx: no such file", extra='default_model_filename: "net.onnx"')
    broken("outside", r"default_model_filename: expected a file in the version's folder", extra='default_model_filename: "../../a"')
    broken("wrong_dims", r"input 'x': config\.pbtxt says dims \[3\], the ONNX file has \[2\]", {"x": ("FP32", [3])})
    broken("wrong_rank", r"input 'x': config\.pbtxt says dims \[1, 2\], the ONNX file has \[2\]", {"x": ("FP32", [1, 2])})
    broken("open_dims", r"output 'y': config\.pbtxt says dims \[-1\], the ONNX file has \[2\]", outputs={"y": ("FP32", [-1])})
    broken("wrong_type", r"input 'x': config\.pbtxt says TYPE_INT32, the ONNX file has TYPE_FP32", {"x": ("INT32", [2])})
    broken("wrong_name", r"unknown \['image'\]; missing \['x'\]", {"image": ("FP32", [2])})
    broken("no_such_output", r"unknown \['z'\]", outputs={"z": ("FP32", [2])})
    broken("too_many_inputs", r"unknown \['w'\]", {"x": ("FP32", [2]), "w": ("FP32", [2])})
    broken("bad_threads", r"parameter 'intra_op_thread_count': .* found 'many'", extra=parameter("intra_op_thread_count", "many"))
    broken("bad_mode", r"parameter 'execution_mode': .* found '2'", extra=parameter("execution_mode", "2"))
    broken("bad_arena", r"parameter 'enable_mem_arena': expected 0 or 1", extra=parameter("enable_mem_arena", "maybe"))
    broken(
        "bad_accelerator",
        r"expected openvino as cpu_execution_accelerator, found 'magic'",
        extra='optimization { execution_accelerators { cpu_execution_accelerator [ { name: "magic" } ] } }',
    )
    broken("decoupled", r"decoupled: true", extra="model_transaction_policy { decoupled: true }")
    broken("ragged", r"allow_ragged_batch of tensor 'x'")
    write_text(
        root / "ragged",
        f"""max_batch_size: 8 {ON_CPU}
input [ {{ name: "x" data_type: TYPE_FP32 dims: [ 2 ] allow_ragged_batch: true }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [ 2 ] }} ]""",
    )
    write_neg(root / "fixed_batch" / "1" / "model.onnx", [4, 2])
    broken("fixed_batch", r"the first axis of input 'x' \[4, 2\] is not dynamic")
    bfloat = (TensorProto.BFLOAT16, ["n", 2])
    write_onnx(root / "bfloat16" / "1" / "model.onnx", [helper.make_node("Identity", ["x"], ["y"])], {"x": bfloat}, {"y": bfloat})
    broken("bfloat16", r"tensor 'x' is a tensor\(bfloat16\)", {"x": ("BF16", [2])}, {"y": ("BF16", [2])})
    write_onnx(
        root / "no_operator" / "1" / "model.onnx", [helper.make_node("NoSuchOperator", ["x"], ["y"])], {"x": PAIR}, {"y": PAIR}
    )
    broken("no_operator", r"NoSuchOperator")
    return errors


def write_bad_warm_up(root: Path) -> None:
    """Write a model that refuses its own warm-up sample."""
    write_onnx(
        root / "bad_warm_up" / "1" / "model.onnx",
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        {"x": (TensorProto.INT64, ["n", 1])},
        {"y": (FP32, ["n", 1])},
        {"table": np.zeros(4, np.float32)},
    )
    (root / "bad_warm_up" / "warmup").mkdir()
    (root / "bad_warm_up" / "warmup" / "x").write_bytes(np.array([99], np.int64).tobytes())
    sample = '{ key: "x" value { data_type: TYPE_INT64 dims: [ 1 ] input_data_file: "x" } }'
    extra = f'model_warmup [ {{ name: "beyond" batch_size: 1 inputs {sample} }} ]'
    write_config(root / "bad_warm_up", {"x": ("INT64", [1])}, {"y": ("FP32", [1])}, extra=extra)


if __name__ == "__main__":
    write_repository(Path(sys.argv[1]))
