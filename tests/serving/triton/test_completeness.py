"""Which configurations Triton need not complete."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from convoy.serving.triton.completeness import is_complete

WHOLE = """name: "m" backend: "onnxruntime"
input { name: "x" data_type: TYPE_FP32 dims: 2 }
output { name: "y" data_type: TYPE_FP32 dims: 2 }"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WHOLE, True),
        (WHOLE.replace("dims: 2", "reshape { } ", 1), True),
        (WHOLE.replace('backend: "onnxruntime"', ""), False),
        (WHOLE.replace("dims: 2", "", 1), False),
        (WHOLE.replace("data_type: TYPE_FP32", "", 1), False),
        (WHOLE.split("output", maxsplit=1)[0], False),
        ("no configuration {", True),
        (WHOLE.replace("TYPE_FP32", "TYPE_INVALID", 1), False),
        (WHOLE.replace("dims: 2", "dims: [ ]", 1), False),
        (WHOLE.replace("dims: 2", "dims: [ -1, 2 ]", 1), True),
        (WHOLE.replace("input {", "input < ").replace("dims: 2 }", "dims: 2 >", 1), True),
        (WHOLE.replace("input { ", "input [ { ").replace("2 }", '2 }, { name: "z" data_type: 11 dims: [2] } ]', 1), True),
        (WHOLE.replace("input { ", "input: [ { ").replace("2 }", '2 }, { name: "z" dims: [2] } ]', 1), False),
        (WHOLE.replace('backend: "onnxruntime"', '# backend: "onnxruntime"\n'), False),
        (WHOLE.replace('backend: "onnxruntime"', "backend: ''"), False),
        (WHOLE + 'parameters { key: "backend: }" value { string_value: "it\'s \\"quoted\\" { input" } };', True),
        (WHOLE.replace('name: "m" ', 'name: "m", ') + "model_warmup [ { inputs { key: 'x' value { dims: [ 1 ] } } } ]", True),
        ('parameters { key: "name" value { string_value: "backend" } }', False),
    ],
)
def test_a_configuration_is_complete_with_backend_and_every_tensor(tmp_path: Path, text: str, expected: bool) -> None:
    (tmp_path / "config.pbtxt").write_text(text)

    assert is_complete(tmp_path) is expected
    assert _is_complete_by_protobuf(text) is expected


def _is_complete_by_protobuf(text: str) -> bool:
    try:
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError:
        return True
    tensors = (*config.input, *config.output)
    whole = all(tensor.data_type and (tensor.dims or tensor.HasField("reshape")) for tensor in tensors)
    return bool(config.name and config.backend and config.input and config.output and whole)


def test_the_example_is_complete() -> None:
    assert is_complete(Path(__file__).parents[3] / "model_repository" / "lenet5")


def test_a_model_without_a_configuration_is_not(tmp_path: Path) -> None:
    assert not is_complete(tmp_path)
