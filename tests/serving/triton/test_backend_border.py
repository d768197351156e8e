"""The file's tensors and the configuration's: held against each other, and the one completed from the other."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from convoy.contract.errors import ContractError
from convoy.serving.triton.backend.border import Border, BorderTensor, check, complete, input_names, is_complete
from convoy.serving.triton.backend.options import Options
from convoy.serving.triton.backend.session import open_session

BORDER = Border(
    (BorderTensor("x", "TYPE_FP32", (-1, 2)),), (BorderTensor("y", "TYPE_FP32", (-1, 2)), BorderTensor("z", "TYPE_FP32", (-1, 2)))
)


def tensor(name: str, dims: list[int], data_type: str = "TYPE_FP32") -> dict[str, Any]:
    return {"name": name, "data_type": data_type, "dims": dims}


def config(max_batch_size: int = 8, **changes: Any) -> dict[str, Any]:
    return {"max_batch_size": max_batch_size, "input": [tensor("x", [2])], "output": [tensor("y", [2])], **changes}


@pytest.mark.parametrize(
    "good",
    [
        config(),
        config(output=[tensor("z", [2]), tensor("y", [2])]),
        config(0, input=[tensor("x", [-1, 2])], output=[tensor("y", [-1, 2])]),
        config(0, input=[tensor("x", [3, 2])], output=[tensor("y", [-1, 2])]),
        config(
            input=[{**tensor("x", [2, 1]), "reshape": {"shape": [2]}}], output=[{**tensor("y", [1, 2]), "reshape": {"shape": [2]}}]
        ),
    ],
)
def test_a_configuration_that_fits_the_file_is_taken(good: dict[str, Any]) -> None:
    check(BORDER, good)


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (config(input=[tensor("image", [2])]), r"unknown \['image'\]; missing \['x'\]"),
        (config(output=[tensor("w", [2])]), r"outputs \['w'\], the ONNX file has \['y', 'z'\]"),
        (config(output=[]), r"names no outputs, the ONNX file has \['y', 'z'\]"),
        (config(input=[tensor("x", [3])]), r"dims \[3\], the ONNX file has \[2\]"),
        (config(input=[tensor("x", [2, 1])]), r"dims \[2, 1\], the ONNX file has \[2\]"),
        (config(input=[tensor("x", [-1])]), r"dims \[-1\], the ONNX file has \[2\]"),
        (config(0, input=[tensor("x", [-1, 2])], output=[tensor("y", [3, 2])]), r"dims \[3, 2\], the ONNX file has \[-1, 2\]"),
        (config(input=[{**tensor("x", [2]), "reshape": {"shape": [1, 2]}}]), r"reshape \[1, 2\], the ONNX file has \[2\]"),
        (config(input=[{**tensor("x", [2]), "optional": True}]), "NVIDIA's C\\+\\+ backend takes optional inputs only without"),
        (config(0, input=[{**tensor("x", [-1, 2]), "optional": True}]), r"\['x'\] are optional .* has no default"),
        (config(output=[tensor("y", [2], "TYPE_INT8")]), "TYPE_INT8, the ONNX file has TYPE_FP32"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_with_what_the_file_has(bad: dict[str, Any], expected: str) -> None:
    with pytest.raises(ContractError, match=expected):
        check(BORDER, bad)


def test_batching_needs_a_dynamic_first_axis() -> None:
    fixed = Border((BorderTensor("x", "TYPE_FP32", (4, 2)),), (BorderTensor("y", "TYPE_FP32", (4, 2)),))

    with pytest.raises(ContractError, match=r"the first axis of input 'x' \[4, 2\] is not dynamic"):
        check(fixed, config())


def test_batching_needs_a_dynamic_first_axis_of_the_outputs_too() -> None:
    fixed = Border((BorderTensor("x", "TYPE_FP32", (-1, 2)),), (BorderTensor("y", "TYPE_FP32", (4, 2)),))

    with pytest.raises(ContractError, match=r"the first axis of output 'y' \[4, 2\] is not dynamic"):
        check(fixed, config())


WITH_DEFAULT = Border(
    (BorderTensor("x", "TYPE_FP32", (-1, 2)),),
    (BorderTensor("y", "TYPE_FP32", (-1, 2)),),
    (BorderTensor("bias", "TYPE_FP32", (2,)),),
)
OPTIONAL = {**tensor("bias", [2]), "optional": True}


@pytest.mark.parametrize("inputs", [[tensor("x", [-1, 2])], [tensor("x", [-1, 2]), OPTIONAL]], ids=["left out", "optional"])
def test_an_input_with_a_default_may_be_left_out_or_be_optional(inputs: list[dict[str, Any]]) -> None:
    check(WITH_DEFAULT, config(0, input=inputs, output=[tensor("y", [-1, 2])]))


def test_an_input_with_a_default_may_not_be_required() -> None:
    with pytest.raises(ContractError, match="input 'bias' has a default in the ONNX file: say optional: true"):
        check(WITH_DEFAULT, config(0, input=[tensor("x", [-1, 2]), tensor("bias", [2])], output=[tensor("y", [-1, 2])]))


def test_defaults_are_read_from_the_file(onnx_file: Any) -> None:
    value = (TensorProto.FLOAT, ["n", 2])
    bias = numpy_helper.from_array(np.ones(2, np.float32), "bias")
    path = onnx_file("Add", inputs={"x": value, "bias": (TensorProto.FLOAT, [2])}, outputs={"y": value}, constants=[bias])

    assert Border.of(open_session(path, Options(intra_op_threads=1)).session) == WITH_DEFAULT


SCALARS = Border((BorderTensor("x", "TYPE_FP32", ()),), (BorderTensor("y", "TYPE_FP32", ()),))


@pytest.mark.parametrize("dims", [[1], [1, 1]])
def test_a_scalar_is_configured_as_ones(dims: list[int]) -> None:
    check(SCALARS, config(0, input=[tensor("x", dims)], output=[tensor("y", dims)]))


def test_a_scalar_has_no_two_elements() -> None:
    with pytest.raises(ContractError, match="a scalar"):
        check(SCALARS, config(0, input=[tensor("x", [2])], output=[tensor("y", [1])]))


def test_controls_of_a_sequence_are_inputs() -> None:
    border = Border((*BORDER.inputs, BorderTensor("START", "TYPE_INT32", (-1, 1))), BORDER.outputs)
    sequences = {"control_input": [{"name": "START", "control": [{"kind": "CONTROL_SEQUENCE_START", "int32_false_true": [0, 1]}]}]}

    check(border, config(sequence_batching=sequences))

    assert input_names(config(sequence_batching=sequences)) == ("x", "START")
    with pytest.raises(ContractError, match=r"missing \['START'\]"):
        check(border, config())


def test_every_type_of_the_wire_is_recognised(onnx_file: Any) -> None:
    types = {
        "BOOL": "TYPE_BOOL", "UINT8": "TYPE_UINT8", "UINT16": "TYPE_UINT16", "UINT32": "TYPE_UINT32", "UINT64": "TYPE_UINT64",
        "INT8": "TYPE_INT8", "INT16": "TYPE_INT16", "INT32": "TYPE_INT32", "INT64": "TYPE_INT64", "FLOAT16": "TYPE_FP16",
        "FLOAT": "TYPE_FP32", "DOUBLE": "TYPE_FP64", "STRING": "TYPE_STRING",
    }  # fmt: skip
    for name, expected in types.items():
        value = (getattr(TensorProto, name), ["n", 2])
        path = onnx_file("Identity", inputs={"x": value}, outputs={"y": value})

        border = Border.of(open_session(path, Options(intra_op_threads=1)).session)

        assert border == Border((BorderTensor("x", expected, (-1, 2)),), (BorderTensor("y", expected, (-1, 2)),))


def test_a_type_that_the_wire_does_not_have_is_refused(onnx_file: Any) -> None:
    value = (TensorProto.BFLOAT16, ["n", 2])
    path = onnx_file("Identity", inputs={"x": value}, outputs={"y": value})

    with pytest.raises(ContractError, match="bfloat16"):
        Border.of(open_session(path, Options(intra_op_threads=1)).session)


def completed(pb: Any, said: dict[str, Any], border: Border = BORDER) -> dict[str, Any]:
    model_config = pb.ModelConfig(json.dumps({"name": "m", "max_batch_size": 0, "input": [], "output": [], **said}))
    complete(model_config, border)
    result: dict[str, Any] = model_config.as_dict()
    return result


def test_a_bare_file_that_can_batch_gets_tensors_and_dynamic_batching(pb: Any) -> None:
    result = completed(pb, {})

    assert result["max_batch_size"] == 4
    assert result["dynamic_batching"] == {}
    assert result["input"] == [tensor("x", [2])]
    assert [entry["name"] for entry in result["output"]] == ["y", "z"]


def test_a_bare_file_that_cannot_batch_keeps_all_its_axes(pb: Any) -> None:
    fixed = Border((BorderTensor("x", "TYPE_FP32", (1, 2)),), (BorderTensor("y", "TYPE_FP32", (1, 2)),))

    result = completed(pb, {}, fixed)

    assert (result["max_batch_size"], result["input"]) == (0, [tensor("x", [1, 2])])


def test_dims_that_name_every_axis_are_left_without_batching(pb: Any) -> None:
    assert completed(pb, {"input": [tensor("x", [-1, 2])]})["max_batch_size"] == 0


def test_what_a_person_said_stays(pb: Any) -> None:
    result = completed(pb, {"max_batch_size": 16, "output": [tensor("z", [2])]})

    assert result["max_batch_size"] == 16
    assert result["output"] == [tensor("z", [2])]


def test_one_number_a_row_gets_dims_of_one_and_a_reshape(pb: Any) -> None:
    border = Border((BorderTensor("x", "TYPE_FP32", (-1,)),), (BorderTensor("y", "TYPE_FP32", (-1,)),))
    expected = {**tensor("x", [1]), "reshape": {"shape": []}}

    result = completed(pb, {}, border)

    assert (result["max_batch_size"], result["input"]) == (4, [expected])
    check(border, result)


def test_a_scalar_gets_dims_of_one_and_no_reshape(pb: Any) -> None:
    result = completed(pb, {}, SCALARS)

    assert (result["max_batch_size"], result["input"]) == (0, [tensor("x", [1])])
    check(SCALARS, result)


@pytest.mark.parametrize(
    ("said", "expected"),
    [({"max_batch_size": 1}, False), ({"max_batch_size": 2}, True), ({"max_batch_size": 8, "sequence_batching": {}}, False)],
)
def test_dynamic_batching_is_added_where_there_is_something_to_batch(pb: Any, said: dict[str, Any], expected: bool) -> None:
    assert ("dynamic_batching" in completed(pb, said)) is expected


def test_an_optional_input_is_completed_where_it_is_named(pb: Any) -> None:
    named = {"name": "bias", "data_type": "TYPE_INVALID", "dims": [], "optional": True}

    assert completed(pb, {"input": [named, tensor("x", [-1, 2])]}, WITH_DEFAULT)["input"][0] == OPTIONAL
    assert [entry["name"] for entry in completed(pb, {}, WITH_DEFAULT)["input"]] == ["x"]


def test_a_contradiction_is_an_error(pb: Any) -> None:
    with pytest.raises(ValueError, match="TYPE_INT8"):
        completed(pb, {"input": [tensor("x", [2], "TYPE_INT8")]})


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (config(), True),
        ({"input": [], "output": []}, False),
        (config(input=[{"name": "x", "data_type": "TYPE_INVALID", "dims": [2]}]), False),
        (config(output=[{"name": "y", "data_type": "TYPE_FP32", "dims": []}]), False),
    ],
)
def test_a_complete_configuration_needs_no_look_into_the_file(said: dict[str, Any], expected: bool) -> None:
    assert is_complete(said) is expected
