"""``infer``, without the I/O: tensors to requests, and answers to tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, Final

import numpy as np

from convoy.contract.errors import InvalidRequestError, InvalidResponseError, ModelNotFoundError, UnavailableError, UsageError
from convoy.serving.client._answer import InferResult, ModelMetadata
from convoy.serving.client._call import Infer, Tensor
from convoy.serving.client._datatype import NUMPY_DTYPES, Array, datatype_of, encode, fits
from convoy.serving.client._inference import MOST_BYTES, Inferences, Straight
from convoy.serving.client._line import Chunk
from convoy.serving.client._models import Models
from convoy.serving.client._names import check_name, check_version
from convoy.serving.client._observer import UNOBSERVED
from convoy.serving.client._request_id import part_id
from convoy.serving.client._router import Talk
from convoy.serving.client._signature import ANY, Signature
from convoy.serving.client._steps import Steps

_PLAIN_DTYPES: Final = {name: dtype for name, dtype in NUMPY_DTYPES.items() if dtype.isnative}
"""Whose elements lie in memory as the wire wants them."""

_MOST_LANES: Final = 1024


@dataclass(frozen=True, slots=True)
class Lane:
    """What is the same in all calls of one model that want the same outputs.

    Attributes:
        signature: The model's, from which this was made.
        inputs: Name, datatype, dtype and the shape of a row of each input.
    """

    signature: Signature
    inputs: tuple[tuple[str, str, Any, tuple[int, ...]], ...]


class Tensors:
    """Runs models on tensors: checks them, splits them, joins the answers. Safe under threads.

    Args:
        endpoint: Where the server is, for messages.
        models: What is remembered of its models.
        inferences: Sends inferences.
    """

    def __init__(self, endpoint: object, models: Models, inferences: Inferences) -> None:
        self._endpoint = endpoint
        self._models = models
        self._inferences = inferences
        self._lanes: dict[tuple[str, str, tuple[str, ...]], Lane] = {}

    def infer(
        self, talk: Talk, model_name: str, inputs: Mapping[str, Array], outputs: Iterable[str] | None, model_version: str
    ) -> Steps[InferResult | list[Chunk[InferResult]]]:
        """Check the inputs against the server's own description and have them answered, or give the requests that they take."""
        key = (check_name(model_name), check_version(model_version))
        wanted = tuple(outputs or ())
        arrays = _as_arrays(inputs)
        model = self._models.known(key)
        known = None if model is None else model.signature
        signature = known or (yield from self._models.signature(talk, key))
        try:
            self._check_inputs(signature.metadata, arrays, wanted, model_version)
        except InvalidRequestError:
            if known is None:
                raise
            # What was remembered may be the model before this one: ask again before the caller is told off.
            signature = yield from self._models.describe(talk, key)
            self._check_inputs(signature.metadata, arrays, wanted, model_version)
        datatypes = {name: datatype_of(array) or "" for name, array in arrays.items()}  # where the server declares none
        datatypes |= {tensor.name: tensor.datatype for tensor in signature.metadata.inputs}
        n = _common_length(arrays) if signature.is_batched else 0
        rows = 0 if n < 2 else (yield from self._rows_a_request(talk, key, arrays))
        if not 0 < rows < n:
            return (yield from self._infer_chunk(key, arrays, 0, datatypes, wanted, n, talk))
        parts = ((start, {name: array[start : start + rows] for name, array in arrays.items()}) for start in range(0, n, rows))
        return [
            Chunk(start, min(rows, n - start), partial(self._infer_chunk, key, part, start, datatypes, wanted, 0))
            for start, part in parts
        ]

    def straight(
        self, talk: Talk, model_name: str, inputs: Mapping[str, Array], outputs: tuple[str, ...], model_version: str
    ) -> Straight | None:
        """The request that ``infer`` comes down to for a caller who calls again and again, and alone.

        That is one of the same model, with inputs of the same kind as an earlier one, of few enough rows, to the one server, while
        few others are under way and nobody listens. None where it is not: ``infer`` takes everything. Here the cost of a call is
        decided, which is mostly that of the lines of Python between the caller and the wire.
        """
        if talk.observed is not UNOBSERVED or type(inputs) is not dict:
            return None
        try:
            lane = self._lanes.get((model_name, model_version, outputs))
        except TypeError:  # no name can be looked up like that: `infer` says so
            return None
        model = self._models.known((model_name, model_version))
        if lane is None or model is None or lane.signature is not model.signature:
            if model is None or model.signature is None or (lane := self._open_lane(model.signature, outputs)) is None:
                return None
            self._lanes[model_name, model_version, outputs] = lane
        if len(inputs) != len(lane.inputs):
            return None
        tensors, rows, n_bytes = [], 0, 0
        for name, datatype, dtype, tail in lane.inputs:
            array = inputs.get(name)
            if type(array) is not np.ndarray or array.dtype is not dtype or not array.flags.c_contiguous:
                return None
            shape = array.shape
            if shape[1:] != tail or not shape or not array.nbytes or (rows and shape[0] != rows):
                return None
            rows = shape[0]
            n_bytes += array.nbytes
            tensors.append(Tensor(name, datatype, shape, array.data.cast("B")))
        call = Infer.quickly(model_name, model_version, tuple(tensors), outputs, talk.request_id)
        return self._inferences.start_straight(talk, call, model, rows, n_bytes)

    def _open_lane(self, signature: Signature, outputs: tuple[str, ...]) -> Lane | None:
        """What is the same in all calls of a model; None where it has inputs that want a closer look each time."""
        offered = [tensor.name for tensor in signature.metadata.outputs]
        dtypes = [_PLAIN_DTYPES.get(tensor.datatype) for tensor in signature.metadata.inputs]
        anyhow = [tensor for tensor in signature.metadata.inputs if ANY in tensor.shape[1:]]
        if not signature.is_batched or anyhow or None in dtypes or not all(name in offered for name in outputs):
            return None
        if len(self._lanes) >= _MOST_LANES:
            self._lanes.clear()
        specs = zip(signature.metadata.inputs, dtypes, strict=True)
        return Lane(signature, tuple((tensor.name, tensor.datatype, dtype, tensor.shape[1:]) for tensor, dtype in specs))

    def join(
        self,
        talk: Talk,
        model_name: str,
        inputs: Mapping[str, Array],
        outputs: Iterable[str] | None,
        results: Sequence[InferResult],
    ) -> Steps[InferResult]:
        """The answer behind those of all chunks; where versions changed in between, what the older one answered is asked again."""
        versions = {result.model_version for result in results}
        if len(versions) > 1:
            newest = max(versions, key=lambda version: (len(version), version))
            again = yield from self.infer(talk, model_name, inputs, outputs, newest)
            if isinstance(again, InferResult):  # its batches became larger
                return again
            results = list(results)
            for i, chunk in enumerate(again):
                if results[i].model_version != newest:
                    results[i] = yield from chunk.begin(talk)
        first = results[0]
        for result in results:
            if result.outputs.keys() != first.outputs.keys():
                raise InvalidResponseError(
                    f"{self._endpoint}: model {model_name!r}: expected the outputs {sorted(first.outputs)} of every part, "
                    f"found {sorted(result.outputs)}."
                )
        joined = {name: np.concatenate([result.outputs[name] for result in results]) for name in first.outputs}
        return InferResult(first.model_name, first.model_version, joined)

    def _rows_a_request(self, talk: Talk, key: tuple[str, str], arrays: Mapping[str, Array]) -> Steps[int]:
        """How many rows of a batch a request may carry; 0 where that is not known, and everything is sent at once.

        A request carries no more rows than ``max_batch_size``, and no more than ``MOST_BYTES`` where it has several.
        """
        most = (yield from self._models.batching(talk, key)).most_rows
        n_bytes = max(1, sum(prod(array.shape[1:]) * array.itemsize for array in arrays.values()))
        return min(most, max(1, MOST_BYTES // n_bytes))

    def _infer_chunk(
        self,
        key: tuple[str, str],
        arrays: Mapping[str, Array],
        start: int,
        datatypes: Mapping[str, str],
        wanted: tuple[str, ...],
        rows: int,
        talk: Talk,
    ) -> Steps[InferResult]:
        tensors = tuple(
            [Tensor(name, datatypes[name], array.shape, encode(array, datatypes[name])) for name, array in arrays.items()]
        )
        try:
            call = Infer(*key, inputs=tensors, outputs=wanted, request_id=part_id(talk.request_id, start))
            return (yield from self._inferences.send(talk, call, rows))
        except (InvalidRequestError, ModelNotFoundError, UnavailableError):  # what comes back may be another model
            self._models.forget(key)
            raise

    def _check_inputs(
        self, metadata: ModelMetadata, arrays: Mapping[str, Array], outputs: tuple[str, ...], model_version: str
    ) -> None:
        known = {tensor.name: tensor for tensor in metadata.inputs}
        for name, array in arrays.items():
            found = ""
            if not known:  # a server that does not say what its models take
                found = "" if datatype_of(array) else f"input {name!r}: expected an array of a datatype, found dtype {array.dtype}."
            elif name not in known:
                found = f"expected the inputs {sorted(known)}, found {sorted(arrays)}."
            elif not fits(array, known[name].datatype):
                datatype = known[name].datatype
                dtype = NUMPY_DTYPES[datatype].name if datatype in NUMPY_DTYPES else {"BF16": "float32"}.get(datatype, "object")
                found = (
                    f"input {name!r}: expected {datatype}, found dtype {array.dtype} ({datatype_of(array) or 'no datatype'}). "
                    f"Convert it, with .astype({dtype!r}) say."
                )
            elif not _matches(array.shape, known[name].shape):
                found = f"input {name!r}: expected shape {list(known[name].shape)} (-1: any), found {list(array.shape)}."
            if found:
                where = f"{self._endpoint}: {Infer(metadata.name, model_version, inputs=()).subject}"
                raise InvalidRequestError(f"{where}: {found} Nothing was sent.")
        offered = [tensor.name for tensor in metadata.outputs]
        if offered and (unknown := [name for name in outputs if name not in offered]):
            where = f"{self._endpoint}: {Infer(metadata.name, model_version, inputs=()).subject}"
            raise InvalidRequestError(f"{where}: expected outputs among {offered}, found {unknown[0]!r}. Nothing was sent.")


def _common_length(arrays: Mapping[str, Array]) -> int:
    """How many rows all arrays have; 0 where they have not equally many."""
    n = -1
    for array in arrays.values():
        rows = array.shape[0] if array.ndim else 0
        if n not in (-1, rows):
            return 0
        n = rows
    return n


def _matches(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    if len(shape) != len(wanted):
        return False
    for have, want in zip(shape, wanted):  # noqa: B905, SIM110  # checked; on the way of every call, where a generator costs as much
        if want not in (-1, have):
            return False
    return True


def _as_arrays(inputs: Mapping[str, Array]) -> dict[str, Array]:
    if not isinstance(inputs, Mapping):
        raise UsageError(f"inputs: expected a mapping of input names to numpy arrays, found {type(inputs).__name__}.")
    if not inputs:
        raise UsageError("inputs: expected a mapping of input names to numpy arrays, found an empty one.")
    for name, array in inputs.items():
        if not isinstance(array, (np.ndarray, np.generic)):
            raise UsageError(f"input {name!r}: expected a numpy array, found {type(array).__name__}.")
    return {name: np.asarray(array) for name, array in inputs.items()}
