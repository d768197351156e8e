"""What every method of a client does with its server, whatever the wire and without the I/O: see ``_steps``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import (
    ClientError,
    DeadlineExceededError,
    InvalidRequestError,
    InvalidResponseError,
    ModelNotFoundError,
    UnavailableError,
    UsageError,
)
from convoy.serving.client._answer import InferResult, ModelMetadata, Prediction
from convoy.serving.client._call import (
    Call,
    DescribeModel,
    Infer,
    ModelReady,
    ReadConfig,
    ServerReady,
    Tensor,
)
from convoy.serving.client._classification import Classifier, batches, check_top_k, to_batch, to_predictions
from convoy.serving.client._datatype import NUMPY_DTYPES, Array, datatype_of, encode, fits
from convoy.serving.client._line import Chunk
from convoy.serving.client._router import Talk
from convoy.serving.client._steps import Steps, work

if TYPE_CHECKING:
    from convoy.contract.image import ImageLike
    from convoy.contract.manifest import ModelInterface

MOST_BYTES: Final = 16 << 20
"""The most bytes of tensors in a request of a batch that is split: Triton's REST takes 64 MiB, proxies often less, and many
requests of some size keep a server as busy as few huge ones, with less memory on both sides."""

_NUMBER: Final = re.compile("[1-9][0-9]{0,18}")


def is_up(talk: Talk, call: Call[bool]) -> Steps[bool]:
    """A health question: no server, and one that does not answer in time, is a no and no error."""
    try:
        return (yield from talk.ask(call))
    except (UnavailableError, DeadlineExceededError, ModelNotFoundError):
        return False


class Session:
    """What one client remembers of its server. Safe under threads: entries are replaced whole.

    Args:
        endpoint: Where the server is, for messages.
    """

    def __init__(self, endpoint: object) -> None:
        self._endpoint = endpoint
        self._classifiers: dict[tuple[str, str], tuple[Classifier, str]] = {}  # with the version that answered, "" until one did
        self._metadata: dict[tuple[str, str], ModelMetadata] = {}
        self._batch_sizes: dict[tuple[str, str], int] = {}  # max_batch_size; 0 where a model takes no batches, or nobody says

    def ready(self, talk: Talk, model_name: str | None, model_version: str) -> Steps[bool]:
        """Whether the server, or one model, takes requests."""
        if model_name is None:
            if model_version:
                raise UsageError("ready: a model_version was given without a model_name.")
            return (yield from is_up(talk, ServerReady()))
        return (yield from is_up(talk, ModelReady(check_name(model_name), check_version(model_version))))

    def interface(self, talk: Talk, model_name: str, model_version: str) -> Steps[ModelInterface]:
        """The model's labels, image rule and tensors, as the server has them now."""
        classifier = yield from self._look_up(talk, check_name(model_name), check_number(model_version))
        return classifier.interface

    def infer(
        self, talk: Talk, model_name: str, inputs: Mapping[str, Array], outputs: Iterable[str] | None, model_version: str
    ) -> Steps[InferResult | list[Chunk[InferResult]]]:
        """Check the inputs against the server's own description and have them answered, or give the requests that they take."""
        key = (check_name(model_name), check_version(model_version))
        wanted = tuple(outputs or ())
        arrays = _as_arrays(inputs)
        known = self._metadata.get(key)
        metadata = known or (yield from self._describe(talk, *key))
        try:
            self._check_inputs(metadata, arrays, wanted, model_version)
        except InvalidRequestError:
            if known is None:
                raise
            # What was remembered may be the model before this one: ask again before the caller is told off.
            metadata = yield from self._describe(talk, *key)
            self._check_inputs(metadata, arrays, wanted, model_version)
        datatypes = {tensor.name: tensor.datatype for tensor in metadata.inputs}
        rows = yield from self._rows_a_request(talk, key, metadata, arrays)
        if rows is None:
            return (yield from self._infer_chunk(key, arrays, datatypes, wanted, talk))
        n = len(next(iter(arrays.values())))
        parts = ((start, {name: array[start : start + rows] for name, array in arrays.items()}) for start in range(0, n, rows))
        return [
            Chunk(start, min(rows, n - start), partial(self._infer_chunk, key, part, datatypes, wanted)) for start, part in parts
        ]

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

    def classify(
        self, talk: Talk, model_name: str, images: ImageLike | Iterable[ImageLike], model_version: str, top_k: int
    ) -> Steps[Iterator[Chunk[list[Prediction]]]]:
        """Look the model up; give the requests that bring images to its pixels and name the classes, read lazily."""
        key = (check_name(model_name), check_number(model_version))
        top_k = check_top_k(top_k)
        remembered = self._classifiers.get(key)
        classifier = remembered[0] if remembered else (yield from self._look_up(talk, *key))
        return self._classify_chunks(key, classifier, images, top_k)

    def _classify_chunks(
        self, key: tuple[str, str], classifier: Classifier, images: ImageLike | Iterable[ImageLike], top_k: int
    ) -> Iterator[Chunk[list[Prediction]]]:
        start = 0
        for batch in batches(images, classifier, MOST_BYTES):
            yield Chunk(start, len(batch), partial(self._classify_chunk, key, classifier, batch, start, top_k))
            start += len(batch)

    def _classify_chunk(
        self,
        key: tuple[str, str],
        classifier: Classifier,
        batch: list[ImageLike] | npt.NDArray[np.uint8],
        start: int,
        top_k: int,
        talk: Talk,
    ) -> Steps[list[Prediction]]:
        classifier = self._classifiers.get(key, (classifier, ""))[0]  # another version may have answered since
        try:
            return (yield from self._classify_batch(key, classifier, batch, start, top_k, talk))
        except (InvalidRequestError, InvalidResponseError) as error:
            # The model may have been replaced by one with other labels or another image since it was looked up.
            renewed = yield from self._look_up(talk, *key)
            if renewed.interface == classifier.interface:
                raise
            if len(batch) > renewed.max_batch_size:
                raise InvalidRequestError(f"{error} The model's configuration changed during the call: call again.") from error
            return (yield from self._classify_batch(key, renewed, batch, start, top_k, talk))
        except (ModelNotFoundError, UnavailableError):  # what comes back may be another model
            self._classifiers.pop(key, None)
            raise

    def _classify_batch(
        self,
        key: tuple[str, str],
        classifier: Classifier,
        batch: list[ImageLike] | npt.NDArray[np.uint8],
        start: int,
        top_k: int,
        talk: Talk,
    ) -> Steps[list[Prediction]]:
        from convoy.contract.manifest import INPUT_NAME, PROBABILITIES_NAME

        spec = classifier.interface.image
        if isinstance(batch, np.ndarray) and batch.shape[1:] == spec.dims:
            pixels = batch
        else:
            images: list[ImageLike] = list(batch)
            pixels = yield from work(lambda: to_batch(images, spec, start))
        tensor = Tensor(INPUT_NAME, "UINT8", pixels.shape, encode(pixels, "UINT8"))
        call = Infer(*key, inputs=(tensor,), outputs=(PROBABILITIES_NAME,))
        result = yield from self._run(talk, call)
        version = result.model_version
        seen = self._classifiers.get(key, (classifier, ""))[1]
        if seen != version:
            if seen:  # another version answers than the one that was looked up: its labels are what counts
                classifier = yield from self._look_up(talk, *key)
            self._classifiers[key] = (classifier, version)
        try:
            return to_predictions(result, classifier.interface.labels, len(pixels), top_k)
        except InvalidResponseError as error:
            raise InvalidResponseError(f"{self._endpoint}: {call.subject}: {error}") from error

    def _look_up(self, talk: Talk, model_name: str, model_version: str) -> Steps[Classifier]:
        self._classifiers.pop((model_name, model_version), None)
        config = yield from talk.ask(ReadConfig(model_name, model_version))
        try:
            classifier = Classifier.from_config(model_name, config)
        except (UsageError, ClientError) as error:
            raise type(error)(f"{self._endpoint}: {error}") from error
        self._classifiers[(model_name, model_version)] = (classifier, "")
        return classifier

    def _describe(self, talk: Talk, model_name: str, model_version: str) -> Steps[ModelMetadata]:
        metadata = yield from talk.ask(DescribeModel(model_name, model_version))
        self._metadata[(model_name, model_version)] = metadata
        return metadata

    def _run(self, talk: Talk, call: Infer) -> Steps[InferResult]:
        result = yield from talk.ask(call)
        found = ""
        if result.model_name and result.model_name != call.model_name:
            found = f"an answer of model {result.model_name!r}"
        elif call.model_version and result.model_version and result.model_version != call.model_version:
            found = f"an answer of version {result.model_version}"
        elif missing := [name for name in call.outputs if name not in result.outputs]:
            found = f"no output {missing[0]!r} but {sorted(result.outputs)}"
        if found:
            raise InvalidResponseError(f"{self._endpoint}: expected an answer of {call.subject}, found {found}.")
        return result

    def _rows_a_request(
        self, talk: Talk, key: tuple[str, str], metadata: ModelMetadata, arrays: Mapping[str, Array]
    ) -> Steps[int | None]:
        """How many rows of a batch a request may carry; None where the inputs are sent as they are.

        Split is what is more than ``max_batch_size`` rows, or more than ``MOST_BYTES``, of a model that takes batches. Servers that
        tell nothing of batches get everything at once.
        """
        n = _common_length(arrays)
        if n < 2 or any(tensor.shape[:1] != (-1,) for tensor in metadata.inputs):
            return None
        if key not in self._batch_sizes:
            try:
                config = yield from talk.ask(ReadConfig(*key))
                self._batch_sizes[key] = int(config.get("max_batch_size") or 0)
            except (InvalidRequestError, ModelNotFoundError, TypeError, ValueError):  # a server without configurations
                self._batch_sizes[key] = 0
        most = self._batch_sizes[key]
        if most < 1:
            return None
        n_bytes = max(1, sum(prod(array.shape[1:]) * array.itemsize for array in arrays.values()))
        rows = min(most, max(1, MOST_BYTES // n_bytes))
        return rows if rows < n else None

    def _infer_chunk(
        self, key: tuple[str, str], arrays: Mapping[str, Array], datatypes: Mapping[str, str], wanted: tuple[str, ...], talk: Talk
    ) -> Steps[InferResult]:
        tensors = tuple(
            Tensor(name, datatypes[name], array.shape, encode(array, datatypes[name])) for name, array in arrays.items()
        )
        try:
            return (yield from self._run(talk, Infer(*key, inputs=tensors, outputs=wanted)))
        except (InvalidRequestError, ModelNotFoundError, UnavailableError):  # what comes back may be another model
            self._metadata.pop(key, None)
            self._batch_sizes.pop(key, None)
            raise

    def _check_inputs(
        self, metadata: ModelMetadata, arrays: Mapping[str, Array], outputs: tuple[str, ...], model_version: str
    ) -> None:
        known = {tensor.name: tensor for tensor in metadata.inputs}
        for name, array in arrays.items():
            found = ""
            if name not in known:
                found = f"expected the inputs {sorted(known)}, found {name!r}."
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


def check_name(model_name: str) -> str:
    """Return ``model_name`` where it can be one.

    Raises:
        UsageError: It is no text or is empty. (Other servers' names may be longer or odder than Convoy's own.)
    """
    if not isinstance(model_name, str) or not model_name:
        raise UsageError(f"model_name: expected a model's name, found {model_name!r}.")
    return model_name


def check_version(model_version: str) -> str:
    """Return ``model_version`` where it can be one.

    Raises:
        UsageError: It is no text; versions are strings on the wire.
    """
    if not isinstance(model_version, str):
        raise UsageError(f"model_version: expected text such as '3', or '' for the server's choice, found {model_version!r}.")
    return model_version


def check_number(model_version: str) -> str:
    """Return ``model_version`` where Triton can have a version of that name, as it can of any model that ``convoy deploy`` wrote.

    Raises:
        UsageError: It is neither empty nor a positive whole number. Triton takes "v1" for a failure of its own, and "1.5" for 1.
    """
    if check_version(model_version) and not _NUMBER.fullmatch(model_version):
        raise UsageError(
            f"model_version: expected a positive whole number such as '3', or '' for the server's choice, found {model_version!r}."
        )
    return model_version


def _as_arrays(inputs: Mapping[str, Array]) -> dict[str, Array]:
    if not isinstance(inputs, Mapping) or not inputs:
        raise UsageError(
            "inputs: expected a mapping of input names to numpy arrays, found "
            + (type(inputs).__name__ if inputs else "none")
            + "."
        )
    for name, array in inputs.items():
        if not isinstance(array, (np.ndarray, np.generic)):
            raise UsageError(f"input {name!r}: expected a numpy array, found {type(array).__name__}.")
    return {name: np.asarray(array) for name, array in inputs.items()}
