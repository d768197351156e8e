"""``infer``, without the I/O: tensors to requests, and answers to tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from convoy.contract.errors import InvalidRequestError, InvalidResponseError, ModelNotFoundError, UnavailableError, UsageError
from convoy.serving.client._answer import InferResult, ModelMetadata
from convoy.serving.client._call import Infer, Placed, Tensor
from convoy.serving.client._datatype import NUMPY_DTYPES, Array, datatype_of, encode, fits
from convoy.serving.client._inference import MOST_BYTES, Inferences
from convoy.serving.client._line import Chunk
from convoy.serving.client._models import Models
from convoy.serving.client._names import check_name, check_version
from convoy.serving.client._request_id import part_id
from convoy.serving.client._router import Talk
from convoy.serving.client._steps import Steps, work

if TYPE_CHECKING:
    from convoy.serving.client._gpu_tensor import GpuTensor

Arrays: TypeAlias = "Mapping[str, Array | GpuTensor]"


class Tensors:
    """Runs models on tensors: checks them, splits them, joins the answers. Safe under threads.

    Args:
        endpoint: Where the server is, for messages.
        models: What is remembered of its models.
        inferences: Sends inferences.
        least_on_gpu: From how many bytes on the servers may be sent tensors that stay on a GPU; gives None where none may.
    """

    def __init__(self, endpoint: object, models: Models, inferences: Inferences, least_on_gpu: Callable[[], int | None]) -> None:
        self._endpoint = endpoint
        self._models = models
        self._inferences = inferences
        self._least_on_gpu = least_on_gpu

    def infer(
        self, talk: Talk, model_name: str, inputs: Mapping[str, Any], outputs: Iterable[str] | None, model_version: str
    ) -> Steps[InferResult | list[Chunk[InferResult]]]:
        """Check the inputs against the server's own description and have them answered, or give the requests that they take."""
        key = (check_name(model_name), check_version(model_version))
        wanted = tuple(outputs or ())
        arrays, on_gpu = _as_arrays(inputs)
        if on_gpu:
            yield from work(partial(_wait_for, on_gpu))
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
            return (yield from self._infer_chunk(key, arrays, bool(on_gpu), 0, datatypes, wanted, n, talk))
        parts = ((start, {name: array[start : start + rows] for name, array in arrays.items()}) for start in range(0, n, rows))
        return [
            Chunk(start, min(rows, n - start), partial(self._infer_chunk, key, part, bool(on_gpu), start, datatypes, wanted, 0))
            for start, part in parts
        ]

    def join(
        self,
        talk: Talk,
        model_name: str,
        inputs: Mapping[str, Any],
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

    def _rows_a_request(self, talk: Talk, key: tuple[str, str], arrays: Arrays) -> Steps[int]:
        """How many rows of a batch a request may carry; 0 where that is not known, and everything is sent at once.

        A request carries no more rows than ``max_batch_size``, and no more than ``MOST_BYTES`` where it has several.
        """
        most = (yield from self._models.batching(talk, key)).most_rows
        n_bytes = max(1, sum(prod(array.shape[1:]) * array.itemsize for array in arrays.values()))
        return min(most, max(1, MOST_BYTES // n_bytes))

    def _infer_chunk(
        self,
        key: tuple[str, str],
        arrays: Arrays,
        on_gpu: bool,
        start: int,
        datatypes: Mapping[str, str],
        wanted: tuple[str, ...],
        rows: int,
        talk: Talk,
    ) -> Steps[InferResult]:
        placed: Placed | None = None
        if on_gpu:
            from convoy.serving.client._gpu_tensor import to_wire

            tensors, placed = yield from work(lambda: to_wire(arrays, datatypes, least_bytes=self._least_on_gpu()))
        else:
            tensors = tuple(
                [
                    Tensor(name, datatypes[name], array.shape, encode(array, datatypes[name]))
                    for name, array in cast("Mapping[str, Array]", arrays).items()
                ]
            )
        try:
            call = Infer(*key, inputs=tensors, outputs=wanted, request_id=part_id(talk.request_id, start), placed=placed)
            return (yield from self._inferences.send(talk, call, rows))
        except (InvalidRequestError, ModelNotFoundError, UnavailableError):  # what comes back may be another model
            self._models.forget(key)
            raise

    def _check_inputs(self, metadata: ModelMetadata, arrays: Arrays, outputs: tuple[str, ...], model_version: str) -> None:
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


def _common_length(arrays: Arrays) -> int:
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


def _as_arrays(inputs: Mapping[str, Any]) -> tuple[dict[str, Array | GpuTensor], list[GpuTensor]]:
    """The inputs as arrays, and those among them that are on a GPU."""
    if not isinstance(inputs, Mapping):
        raise UsageError(f"inputs: expected a mapping of input names to arrays, found {type(inputs).__name__}.")
    if not inputs:
        raise UsageError("inputs: expected a mapping of input names to arrays, found an empty one.")
    arrays: dict[str, Array | GpuTensor] = {}
    on_gpu: list[GpuTensor] = []
    for name, array in inputs.items():
        if isinstance(array, (np.ndarray, np.generic)):
            arrays[name] = np.asarray(array)
            continue
        from convoy.serving.client._foreign_tensor import take
        from convoy.serving.client._gpu_tensor import GpuTensor

        taken = arrays[name] = take(name, array)
        if isinstance(taken, GpuTensor):
            on_gpu.append(taken)
    return arrays, on_gpu


def _wait_for(tensors: list[GpuTensor]) -> None:
    for tensor in tensors:
        tensor.wait()
