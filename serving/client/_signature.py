"""What a model says that it takes and gives, made ready to hold every call and every answer against."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from convoy.serving.client._answer import InferResult, ModelMetadata
from convoy.serving.client._datatype import NUMPY_DTYPES

ANY: Final = -1
"""An extent of a declared shape that may be any."""

_ANSWERED: Final = {
    **{datatype: dtype.newbyteorder("=") for datatype, dtype in NUMPY_DTYPES.items()},
    "BF16": np.dtype(np.float32),
    "BYTES": np.dtype(object),
}


class Signature:
    """The tensors of one model as its server describes them.

    Args:
        metadata: The description.

    Attributes:
        metadata: Likewise.
        is_batched: Whether the first axis of each input is one of any extent, as that of a batch is.
    """

    __slots__ = ("_outputs", "is_batched", "metadata")

    def __init__(self, metadata: ModelMetadata) -> None:
        self.metadata = metadata
        self.is_batched = bool(metadata.inputs) and all(tensor.shape[:1] == (ANY,) for tensor in metadata.inputs)
        self._outputs = {
            tensor.name: (tensor.datatype, _ANSWERED.get(tensor.datatype), len(tensor.shape), tensor.shape)
            for tensor in metadata.outputs
        }

    def fault(self, result: InferResult, wanted: tuple[str, ...], rows: int) -> str:
        """What an answer has that the model does not give, or lacks; empty where it is as declared.

        Args:
            result: The answer.
            wanted: The outputs that were asked for; none: all.
            rows: How many rows each batched output must have; 0: any number.
        """
        declared, found = self._outputs, result.outputs
        for name in wanted or declared:
            array = found.get(name)
            if array is None:
                return f"no output {name!r} but {sorted(found)}"
            if name not in declared:  # of a server that does not say what its models give
                continue
            datatype, dtype, rank, shape = declared[name]
            if array.dtype is not dtype and dtype is not None and array.dtype != dtype:
                return f"output {name!r} of dtype {array.dtype}, declared as {datatype}"
            if array.ndim != rank or not _agree(array.shape, shape, rows):
                rows_too = f" and {rows} rows sent" if rows else ""
                return f"output {name!r} of shape {list(array.shape)}, declared as {list(shape)} (-1: any){rows_too}"
        if declared and len(found) > len(wanted or declared) and (others := sorted(found.keys() - declared.keys())):
            return f"an output {others[0]!r} besides the declared {sorted(declared)}"
        return ""


def _agree(found: tuple[int, ...], declared: tuple[int, ...], rows: int) -> bool:
    """Whether a shape is the declared one; on the way of every call, where a generator costs as much as the rest."""
    if rows and declared[:1] == (ANY,) and found[0] != rows:
        return False
    for have, want in zip(found, declared):  # noqa: B905, SIM110  # the ranks are the same
        if want not in (ANY, have):
            return False
    return True


def expected_outputs(signature: Signature, wanted: tuple[str, ...], rows: int) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """The outputs whose sizes are known before they come: name, datatype and shape.

    Args:
        signature: The model's.
        wanted: The outputs that are asked for; none: all.
        rows: How many rows are sent.
    """
    expects: list[Any] = []
    for tensor in signature.metadata.outputs:
        full = (rows, *tensor.shape[1:]) if signature.is_batched and tensor.shape[:1] == (ANY,) else tensor.shape
        if tensor.datatype in NUMPY_DTYPES and min(full, default=1) > 0 and (not wanted or tensor.name in wanted):
            expects.append((tensor.name, tensor.datatype, full))
    return tuple(expects)
