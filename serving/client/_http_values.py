"""Tensors as JSON's values, for REST servers that take no binary tensors.

==============================  ===============================================================================================
datatype                        in JSON
==============================  ===============================================================================================
``BOOL``                        ``true`` and ``false``
``UINT8`` to ``INT64``          numbers; 64 bits are written in full (who reads them as doubles loses some, which is theirs)
``FP16`` ``BF16`` ``FP32``      numbers: the double that equals the element, so that nothing is lost on the way
``FP64``                        numbers: the shortest that are read back as the same double
``BYTES``                       text; elements that are not UTF-8 cannot be sent
==============================  ===============================================================================================

JSON has no NaN and no infinity: neither can be sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from convoy.contract.errors import InvalidRequestError, InvalidResponseError
from convoy.serving.client._call import Tensor
from convoy.serving.client._datatype import Array, decode, from_values

_INSTEAD = "Send it over gRPC, or to a server that lists binary_tensor_data among its extensions (GET /v2)."


def to_json(tensor: Tensor) -> list[Any]:
    """The elements of an input in C order.

    Raises:
        InvalidRequestError: JSON cannot carry one of them.
    """
    array = decode(tensor.data, tensor.datatype, tensor.shape).reshape(-1)
    if tensor.datatype == "BYTES":
        return _texts(tensor.name, array)
    if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        index = int(np.argmin(finite))
        raise InvalidRequestError(
            f"input {tensor.name!r}: expected finite numbers, found {array[index]} at flat index {index}: this REST server takes "
            f"tensors as JSON alone, which has neither NaN nor infinity. {_INSTEAD}"
        )
    values: list[Any] = array.tolist()
    return values


def from_json(values: Any, datatype: str, shape: Sequence[int]) -> Array:
    """The array behind an output's elements, flat or nested.

    Raises:
        InvalidResponseError: They are not as many, or not of the kind, that datatype and shape say; or one is ``null``.
    """
    array = from_values(values, datatype, shape)
    # numpy reads null as NaN; servers write it for infinity as well.
    if array.dtype.kind == "f" and np.isnan(array).any() and _holds_null(values):
        raise InvalidResponseError(
            "expected numbers, found null, which servers write for NaN and for infinity alike. gRPC carries both as they are."
        )
    return array


def _texts(name: str, elements: Array) -> list[str]:
    texts = []
    for index, element in enumerate(elements.tolist()):
        try:
            texts.append(element.decode())
        except UnicodeDecodeError as error:
            raise InvalidRequestError(
                f"input {name!r}: expected UTF-8 in each element, found other bytes at flat index {index}: this REST server takes "
                f"tensors as JSON alone, which has only text. {_INSTEAD}"
            ) from error
    return texts


def _holds_null(values: Any) -> bool:
    return any(_holds_null(value) if isinstance(value, list) else value is None for value in values)
