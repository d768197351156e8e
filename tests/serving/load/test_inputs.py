"""Random inputs that a model can take."""

from __future__ import annotations

import numpy as np
import pytest

from convoy.contract.errors import UsageError
from convoy.serving.client import TensorMetadata
from convoy.serving.client._datatype import DATATYPES, encode
from convoy.serving.load.inputs import make_inputs


def make(*tensors: TensorMetadata, **options: object) -> dict[str, np.ndarray]:
    return make_inputs(tensors, **{"batch_size": 2, "shapes": {}, "ranges": {}, "seed": 0, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_can_be_made_and_sent(datatype: str) -> None:
    tensor = TensorMetadata("x", datatype, (-1, 3, 5))
    array = make(tensor)["x"]
    assert array.shape == (2, 3, 5)
    assert len(encode(array, datatype)) > 0
    assert make(tensor)["x"].tolist() == array.tolist()
    assert make(tensor, seed=1)["x"].tolist() != array.tolist()


@pytest.mark.parametrize(
    ("datatype", "limits"), [("UINT8", (10, 20)), ("FP32", (-3.0, 4.0)), ("INT64", (0, 999)), ("INT8", (-500, 500))]
)
def test_values_lie_in_the_range_that_is_stated(datatype: str, limits: tuple[float, float]) -> None:
    array = make(TensorMetadata("x", datatype, (-1, 5000)), ranges={"x": limits})["x"]
    assert limits[0] <= array.min() < array.max() <= limits[1]
    assert len(np.unique(array)) > 10


def test_bytes_take_every_value_and_wider_numbers_may_be_indices() -> None:
    arrays = make(TensorMetadata("pixels", "UINT8", (-1, 20_000)), TensorMetadata("index", "INT64", (-1, 20_000)))
    assert len(np.unique(arrays["pixels"])) == 256
    assert np.unique(arrays["index"]).tolist() == [0, 1]


def test_models_without_a_batch_axis_get_their_own_shape() -> None:
    assert make(TensorMetadata("x", "FP32", (7,)), batch_size=None)["x"].shape == (7,)
    assert make(TensorMetadata("x", "FP32", ()), batch_size=None)["x"].shape == ()


def test_an_open_extent_needs_a_shape() -> None:
    tensor = TensorMetadata("x", "FP32", (-1, 3, -1, -1))
    with pytest.raises(UsageError, match=r"input 'x' has the dims \[3, -1, -1\].*--shape x=3,N,N"):
        make(tensor)
    assert make(tensor, shapes={"x": (3, 8, 9)})["x"].shape == (2, 3, 8, 9)


@pytest.mark.parametrize("shape", [(3, 8), (4, 8, 9), (3, -1, 9), (2, 3, 8, 9)])
def test_a_shape_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"expected \[3, -1, -1\]"):
        make(TensorMetadata("x", "FP32", (-1, 3, -1, -1)), shapes={"x": shape})


def test_a_shape_of_no_input_is_refused() -> None:
    with pytest.raises(UsageError, match=r"expected one of the inputs \['x'\], found 'y'"):
        make(TensorMetadata("x", "FP32", (-1, 3)), shapes={"y": (3,)})
