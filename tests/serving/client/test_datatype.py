from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from convoy.contract.errors import InvalidRequestError, InvalidResponseError
from convoy.serving.client._call import Infer, Tensor
from convoy.serving.client._datatype import DATATYPES, NUMPY_DTYPES, datatype_of, decode, encode, fits, from_values
from convoy.serving.client._grpc_wire import decode_response as decode_grpc
from convoy.serving.client._grpc_wire import encode_request as encode_grpc
from convoy.serving.client._http_wire import decode_response as decode_http
from convoy.serving.client._http_wire import encode_request as encode_http

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, np.ndarray]:
    """A datatype and an array of it, of any shape: scalars and empty ones too."""
    datatype = draw(st.sampled_from(DATATYPES))
    shape = draw(SHAPES)
    if datatype == "BYTES":
        array = draw(hnp.arrays(object, shape, elements=st.binary(max_size=9), fill=st.nothing()))
    elif datatype == "BF16":
        bits = draw(hnp.arrays(np.uint16, shape))
        array = bits.view(ml_dtypes.bfloat16)
    else:
        array = draw(hnp.arrays(NUMPY_DTYPES[datatype].newbyteorder("="), shape))
    return datatype, array


def same(actual: np.ndarray, expected: np.ndarray) -> bool:
    if expected.dtype.name == "bfloat16":
        expected = expected.astype(np.float32)
    equal = expected.dtype.kind == "f" and np.array_equal(actual, expected, equal_nan=True)
    return actual.shape == expected.shape and actual.dtype == expected.dtype and (equal or np.array_equal(actual, expected))


@given(tensors())
def test_every_datatype_and_shape_survives_the_codec(case: tuple[str, np.ndarray]) -> None:
    datatype, array = case
    assert datatype_of(array) == datatype
    data = bytes(encode(array, datatype))
    decoded = decode(data, datatype, array.shape)
    assert same(decoded, array)
    assert decoded.flags.writeable
    decoded.fill(decoded.dtype.type(1) if decoded.dtype != object else b"mine")  # the caller's own: nobody else's changes
    assert same(decode(data, datatype, array.shape), array)


@given(cases=st.lists(tensors(), min_size=1, max_size=3))
@settings(max_examples=60)
def test_every_datatype_and_shape_survives_both_wires(echo: dict[str, Any], cases: list[tuple[str, np.ndarray]]) -> None:
    inputs = tuple(Tensor(f"t{i}", datatype, array.shape, encode(array, datatype)) for i, (datatype, array) in enumerate(cases))
    call = Infer("echo", inputs=inputs)
    sent = encode_http(call, 1.5)
    _, headers, body = echo["http"](sent.path, dict(sent.headers), sent.body)
    for result in (decode_grpc(call, echo["grpc"](encode_grpc(call, 1.5))), decode_http(call, body, headers)):
        assert list(result.outputs) == [tensor.name for tensor in inputs]
        assert all(same(result[f"t{i}"], array) for i, (_, array) in enumerate(cases))


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=1, max_side=20)))
def test_float32_is_rounded_to_bfloat16_as_ml_dtypes_does(array: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        expected = array.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert same(decode(encode(array, "BF16"), "BF16", array.shape), expected)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [">i4", "<i4"])
def test_byte_order_and_memory_layout_do_not_show_on_the_wire(dtype: str, order: Any) -> None:
    array = np.asarray(np.arange(12).reshape(3, 4), dtype=dtype, order=order)[::2, ::-1]
    assert bytes(encode(array, "INT32")) == np.ascontiguousarray(array).astype("<i4").tobytes()


def test_text_goes_out_as_utf8_and_comes_back_as_bytes() -> None:
    for array in (np.array(["é", ""]), np.array(["é", ""], dtype=object), np.array(["é".encode(), b""])):
        assert decode(encode(array, "BYTES"), "BYTES", (2,)).tolist() == ["é".encode(), b""]


def test_a_contiguous_array_is_sent_without_a_copy() -> None:
    array = np.arange(6, dtype=np.uint8)
    data = encode(array, "UINT8")
    array[0] = 9
    assert bytes(data)[0] == 9


@pytest.mark.parametrize(
    ("array", "datatype"),
    [
        (np.zeros(1, np.float64), "FP32"),
        (np.zeros(1, np.int32), "UINT32"),
        (np.zeros(1, np.uint16), "BF16"),
        (np.zeros(1, complex), "FP32"),
        (np.zeros(1, "M8[s]"), "INT64"),
        (np.zeros(1, np.float32), "BYTES"),
    ],
)
def test_an_array_of_another_type_is_not_sent(array: np.ndarray, datatype: str) -> None:
    assert not fits(array, datatype)
    with pytest.raises(InvalidRequestError, match=f"fits {datatype}, found dtype"):
        encode(array, datatype)


def test_a_bytes_tensor_of_other_objects_is_not_sent() -> None:
    with pytest.raises(InvalidRequestError, match="found int at flat index 1"):
        encode(np.array([b"a", 1], dtype=object), "BYTES")


@pytest.mark.parametrize(
    ("data", "datatype", "shape", "message"),
    [
        (b"1234567", "FP32", (2,), "expected 8 bytes for FP32"),
        (b"123456789", "FP32", (2,), "expected 8 bytes"),
        (b"1", "BF16", (1,), "expected 2 bytes"),
        (b"", "UINT8", (-1,), "whole numbers from 0"),
        (b"", "UINT8", (1.0,), "whole numbers from 0"),
        (b"", "FP8", (0,), "found 'FP8'"),
        (b"\x05\0\0\0abc", "BYTES", (1,), "cut short in its element 0"),
        (b"\x01\0\0\0a\x01", "BYTES", (2,), "cut short in its element 1"),
        (b"\x01\0\0\0a", "BYTES", (2,), "expected 2 elements in a BYTES tensor, found 1"),
        (b"", "BYTES", (10**15,), "found 0"),
    ],
)
def test_bytes_that_do_not_fit_the_stated_shape_are_refused(data: bytes, datatype: str, shape: Any, message: str) -> None:
    with pytest.raises(InvalidResponseError, match=message):
        decode(data, datatype, shape)


def test_a_bool_byte_other_than_one_is_true() -> None:
    assert decode(b"\x00\x02", "BOOL", (2,)).tolist() == [False, True]


def test_values_without_the_binary_extension_are_read_flat_or_nested() -> None:
    assert from_values([1, 2, 3, 4], "INT16", (2, 2)).tolist() == [[1, 2], [3, 4]]
    assert from_values([[0.5], [2]], "FP16", (2, 1)).dtype == np.float16
    assert from_values([["a"], [b"b"]], "BYTES", (2, 1)).tolist() == [[b"a"], [b"b"]]
    assert from_values([], "FP32", (0, 3)).shape == (0, 3)


@pytest.mark.parametrize(
    ("values", "datatype", "shape"),
    [([1], "FP32", (2,)), (["x"], "FP32", (1,)), ([1], "BYTES", (1,)), (["a"], "BYTES", (10**15,)), ([1], "FP8", (1,))],
)
def test_values_that_do_not_fit_are_refused(values: Any, datatype: str, shape: Any) -> None:
    with pytest.raises(InvalidResponseError):
        from_values(values, datatype, shape)
