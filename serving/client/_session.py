"""What every method of a client does with its server, whatever the wire and without the I/O: see ``_steps``."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import (
    ClientError,
    DeadlineExceededError,
    ImageError,
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
from convoy.serving.client._classification import Batch, Classifier, batches, check_top_k, to_batch, to_predictions
from convoy.serving.client._crowd import AT_ONCE, Crowd
from convoy.serving.client._datatype import NUMPY_DTYPES, Array, datatype_of, encode, fits
from convoy.serving.client._flight import Flights
from convoy.serving.client._line import Chunk
from convoy.serving.client._observer import UNOBSERVED
from convoy.serving.client._request_id import part_id
from convoy.serving.client._router import Talk
from convoy.serving.client._steps import Attempt, Steps, work

if TYPE_CHECKING:
    from convoy.contract.image import ImageLike
    from convoy.contract.manifest import ModelInterface

MOST_BYTES: Final = 16 << 20
"""The most bytes of tensors in a request of a batch that is split: Triton's REST takes 64 MiB, proxies often less, and many
requests of some size keep a server as busy as few huge ones, with less memory on both sides."""

_LARGE: Final = 64 << 10
"""From this size on it may matter how large the answer will be."""

_PLAIN_DTYPES: Final = {name: dtype for name, dtype in NUMPY_DTYPES.items() if dtype.isnative}
"""Whose elements lie in memory as the wire wants them."""

_NUMBER: Final = re.compile("[1-9][0-9]{0,18}")


def is_up(talk: Talk, call: Call[bool]) -> Steps[bool]:
    """A health question: no server, and one that does not answer in time, is a no and no error."""
    try:
        return (yield from talk.ask(call))
    except (UnavailableError, DeadlineExceededError, ModelNotFoundError):
        return False


@dataclass(frozen=True)
class Classified:
    """The answer to a batch of images.

    Attributes:
        predictions: The place of each image among all of the call, and the prediction for it.
        unreadable: The places of images that cannot be read, and why.
    """

    predictions: tuple[tuple[int, Prediction], ...]
    unreadable: tuple[tuple[int, ImageError], ...]


@dataclass(frozen=True)
class Reader:
    """Turns images into requests.

    Attributes:
        size: The most images in one.
        classifier: Whom they are for.
        answer: Has images answered of which so many came before.
    """

    size: int
    classifier: Classifier
    answer: Callable[[list[ImageLike] | npt.NDArray[np.uint8], int, Talk], Steps[Classified]]

    def read(self, images: ImageLike | Iterable[ImageLike]) -> Iterator[Chunk[Classified]]:
        """The requests, one after the other, as they can be sent; images are read as far as they take.

        Raises:
            UsageError: These are no images.
        """
        start = 0
        for batch in batches(images, self.classifier, self.size):
            yield self.chunk(batch, start)
            start += len(batch)

    def chunk(self, images: list[ImageLike] | npt.NDArray[np.uint8], start: int) -> Chunk[Classified]:
        """One request."""
        return Chunk(start, len(images), lambda talk: self.answer(images, start, talk))


@dataclass(frozen=True)
class _Batching:
    """How a model takes batches.

    Attributes:
        most_rows: Its ``max_batch_size``; 0 where it takes none, or the server does not say.
        crowd: Who waits for it; None where requests of strangers are not to be merged.
    """

    most_rows: int
    crowd: Crowd | None

    @classmethod
    def of(cls, config: Mapping[str, Any], new_signal: Callable[[], Any], *, merge: bool) -> _Batching:
        """Read a model's configuration: with ``dynamic_batching`` the server merges requests itself."""
        most_rows = int(config.get("max_batch_size") or 0)
        merges = merge and most_rows > 1 and config.get("dynamic_batching") is not None
        return cls(most_rows, Crowd(most_rows, new_signal) if merges else None)


class Session:
    """What one client remembers of its server. Safe under threads: entries are replaced whole.

    Args:
        endpoint: Where the server is, for messages.
        new_signal: Makes what a caller waits for: has ``set`` and ``wait``, as ``threading.Event`` has.
        merge: Whether callers who wait for one model share requests.
    """

    def __init__(self, endpoint: object, new_signal: Callable[[], Any], *, merge: bool) -> None:
        self._endpoint = endpoint
        self._new_signal = new_signal
        self._merge = merge
        self._flights = Flights(new_signal)
        self._lock = threading.Lock()
        self._classifiers: dict[tuple[str, str], tuple[Classifier, str]] = {}  # with the version that answered, "" until one did
        self._metadata: dict[tuple[str, str], ModelMetadata] = {}
        self._batchings: dict[tuple[str, str], _Batching] = {}
        self._under_way: dict[tuple[str, str], int] = {}  # inferences of models of whose batches nothing is known yet

    def leave_parent(self) -> None:
        """This is a child process: who waits for whom in the parent is nothing to us."""
        self._flights = Flights(self._new_signal)
        self._lock = threading.Lock()
        self._batchings = {}
        self._under_way = {}

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
        metadata = known or (yield from self._metadata_of(talk, key))
        try:
            self._check_inputs(metadata, arrays, wanted, model_version)
        except InvalidRequestError:
            if known is None:
                raise
            # What was remembered may be the model before this one: ask again before the caller is told off.
            metadata = yield from self._describe(talk, *key)
            self._check_inputs(metadata, arrays, wanted, model_version)
        datatypes = {name: datatype_of(array) or "" for name, array in arrays.items()}  # where the server declares none
        datatypes |= {tensor.name: tensor.datatype for tensor in metadata.inputs}
        n = _common_length(arrays) if metadata.inputs and all(tensor.shape[:1] == (-1,) for tensor in metadata.inputs) else 0
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
    ) -> Attempt[InferResult] | None:
        """The request that ``infer`` comes down to for a caller who calls again and again, and alone.

        That is one of the same model, with inputs of the same kind as an earlier one, of few enough rows, to the one server, while
        few others are under way and nobody listens. None where it is not: ``infer`` takes everything. After it comes ``arrived``,
        ``failed`` or ``gone``, in any case. Here the cost of a call is decided, which is mostly that of the lines of Python between
        the caller and the wire.
        """
        key = (model_name, model_version)
        metadata = self._metadata.get(key)
        observed = talk.observed is not UNOBSERVED
        if metadata is None or observed or type(inputs) is not dict or len(inputs) != len(metadata.inputs):
            return None
        tensors, rows = [], 0
        for tensor in metadata.inputs:
            array, shape = inputs.get(tensor.name), tensor.shape
            if (
                type(array) is not np.ndarray
                or array.dtype is not _PLAIN_DTYPES.get(tensor.datatype)
                or not array.flags.c_contiguous
                or not shape
                or shape[0] != -1
                or array.shape[1:] != shape[1:]
                or (rows and len(array) != rows)
                or not len(array)
            ):
                return None
            rows = len(array)
            tensors.append(Tensor(tensor.name, tensor.datatype, array.shape, array.reshape(-1).view(np.uint8).data))
        offered = [tensor.name for tensor in metadata.outputs]
        for name in outputs:
            if name not in offered:
                return None
        call = Infer(model_name, model_version, inputs=tuple(tensors), outputs=outputs, request_id=talk.request_id)
        return self._start_straight(talk, call, rows)

    def _start_straight(self, talk: Talk, call: Infer, rows: int) -> Attempt[InferResult] | None:
        key = (call.model_name, call.model_version)
        batching = self._batchings.get(key)
        if rows > 1 and (batching is None or rows > batching.most_rows or sum(len(t.data) for t in call.inputs) > MOST_BYTES):
            return None
        if batching is not None and batching.crowd is not None and batching.crowd.n_under_way >= AT_ONCE:
            return None
        with self._lock:
            under_way = self._under_way.get(key, 0)
            if self._merge and under_way >= AT_ONCE:
                return None
            self._under_way[key] = under_way + 1
        attempt = talk.straight(self._expecting(call))
        if attempt is None:
            self._leave(call)
        return attempt

    def arrived(self, attempt: Attempt[InferResult], result: InferResult) -> InferResult:
        """The answer to a straight request, where it is one.

        Raises:
            InvalidResponseError: It is not.
        """
        self._leave(attempt.call)
        return self._checked(cast(Infer, attempt.call), result)

    def gone(self, attempt: Attempt[InferResult]) -> None:
        """The caller of a straight request does not wait for its answer any more."""
        self._leave(attempt.call)

    def failed(self, talk: Talk, attempt: Attempt[InferResult], error: ClientError) -> Steps[InferResult]:
        """What ``infer`` does after a straight request that failed."""
        self._leave(attempt.call)
        call = cast(Infer, attempt.call)
        try:
            return self._checked(call, (yield from talk.resume(attempt, error)))
        except (InvalidRequestError, ModelNotFoundError, UnavailableError):  # what comes back may be another model
            self._forget((call.model_name, call.model_version))
            raise

    def _leave(self, call: Call[Any]) -> None:
        with self._lock:
            key = (call.model_name, call.model_version)
            self._under_way[key] = max(0, self._under_way.get(key, 0) - 1)

    def _forget(self, key: tuple[str, str]) -> None:
        self._metadata.pop(key, None)
        self._batchings.pop(key, None)

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
        self, talk: Talk, model_name: str, model_version: str, *, top_k: int, batch_size: int | None, tolerant: bool
    ) -> Steps[Reader]:
        """Look the model up: give what turns images into the requests that name their classes.

        Args:
            talk: The call.
            model_name: The model.
            model_version: The version to ask; the server's choice where it is empty.
            top_k: How many candidates a prediction lists.
            batch_size: The most images in a request; as many as the model takes where it is None.
            tolerant: Whether images that cannot be read are left out, and told of.
        """
        key = (check_name(model_name), check_number(model_version))
        top_k = check_top_k(top_k)
        remembered = self._classifiers.get(key)
        classifier = remembered[0] if remembered else (yield from self._classifier_of(talk, key))
        size = min(classifier.max_batch_size, max(1, MOST_BYTES // prod(classifier.interface.image.dims)))
        if batch_size is not None:
            size = min(size, check_top_k(batch_size, "batch_size"))
        return Reader(size, classifier, partial(self._classify_chunk, key, classifier, top_k, tolerant))

    def _classify_chunk(
        self,
        key: tuple[str, str],
        classifier: Classifier,
        top_k: int,
        tolerant: bool,
        images: list[ImageLike] | npt.NDArray[np.uint8],
        start: int,
        talk: Talk,
    ) -> Steps[Classified]:
        classifier = self._classifiers.get(key, (classifier, ""))[0]  # another version may have answered since
        try:
            return (yield from self._classify_batch(key, classifier, top_k, tolerant, images, start, talk))
        except (InvalidRequestError, InvalidResponseError) as error:
            # The model may have been replaced by one with other labels or another image since it was looked up.
            renewed = yield from self._look_up(talk, *key)
            if renewed.interface == classifier.interface:
                raise
            if len(images) > renewed.max_batch_size:
                raise InvalidRequestError(f"{error} The model's configuration changed during the call: call again.") from error
            return (yield from self._classify_batch(key, renewed, top_k, tolerant, images, start, talk))
        except (ModelNotFoundError, UnavailableError):  # what comes back may be another model
            self._classifiers.pop(key, None)
            raise

    def _classify_batch(
        self,
        key: tuple[str, str],
        classifier: Classifier,
        top_k: int,
        tolerant: bool,
        images: list[ImageLike] | npt.NDArray[np.uint8],
        start: int,
        talk: Talk,
    ) -> Steps[Classified]:
        from convoy.contract.manifest import INPUT_NAME, PROBABILITIES_NAME

        spec = classifier.interface.image
        if isinstance(images, np.ndarray) and images.shape[1:] == spec.dims:
            batch = Batch(images, range(start, start + len(images)))
        else:
            several: list[ImageLike] = list(images)
            batch = yield from work(lambda: to_batch(several, spec, start))
        if batch.unreadable and not tolerant:
            raise batch.unreadable[0][1]
        if not len(batch.pixels):
            return Classified((), batch.unreadable)
        tensor = Tensor(INPUT_NAME, "UINT8", batch.pixels.shape, encode(batch.pixels, "UINT8"))
        call = Infer(*key, inputs=(tensor,), outputs=(PROBABILITIES_NAME,), request_id=part_id(talk.request_id, start))
        result = yield from self._send(talk, call, len(batch.pixels))
        version = result.model_version
        seen = self._classifiers.get(key, (classifier, ""))[1]
        if seen != version:
            if seen:  # another version answers than the one that was looked up: its labels are what counts
                classifier = yield from self._look_up(talk, *key)
            self._classifiers[key] = (classifier, version)
        try:
            predictions = to_predictions(result, classifier.interface.labels, len(batch.pixels), top_k)
        except InvalidResponseError as error:
            raise InvalidResponseError(f"{self._endpoint}: {call.subject}: {error}") from error
        return Classified(tuple(zip(batch.places, predictions, strict=True)), batch.unreadable)

    def _look_up(self, talk: Talk, model_name: str, model_version: str) -> Steps[Classifier]:
        self._classifiers.pop((model_name, model_version), None)
        config = yield from talk.ask(ReadConfig(model_name, model_version))
        try:
            classifier = Classifier.from_config(model_name, config)
        except (UsageError, ClientError) as error:
            raise type(error)(f"{self._endpoint}: {error}") from error
        self._classifiers[(model_name, model_version)] = (classifier, "")
        return classifier

    def _classifier_of(self, talk: Talk, key: tuple[str, str]) -> Steps[Classifier]:
        def known() -> Classifier | None:
            remembered = self._classifiers.get(key)
            return remembered[0] if remembered else None

        return (yield from self._flights.share(talk, ("classifier", key), known, lambda: self._look_up(talk, *key)))

    def _metadata_of(self, talk: Talk, key: tuple[str, str]) -> Steps[ModelMetadata]:
        def known() -> ModelMetadata | None:
            return self._metadata.get(key)

        return (yield from self._flights.share(talk, ("metadata", key), known, lambda: self._describe(talk, *key)))

    def _describe(self, talk: Talk, model_name: str, model_version: str) -> Steps[ModelMetadata]:
        metadata = yield from talk.ask(DescribeModel(model_name, model_version))
        self._metadata[(model_name, model_version)] = metadata
        return metadata

    def _expecting(self, call: Infer) -> Infer:
        """The call with the sizes of its outputs, where it is large and the model declares them."""
        if sum([len(tensor.data) for tensor in call.inputs]) < _LARGE:
            return call
        metadata = self._metadata.get((call.model_name, call.model_version))
        if metadata is None:
            return call
        rows = call.inputs[0].shape[0]
        batched = all(tensor.shape[:1] == (-1,) for tensor in metadata.inputs)
        expects = []
        for name, datatype, shape in ((tensor.name, tensor.datatype, tensor.shape) for tensor in metadata.outputs):
            full = (rows, *shape[1:]) if batched and shape[:1] == (-1,) else shape
            if datatype in NUMPY_DTYPES and min(full, default=1) > 0 and (not call.outputs or name in call.outputs):
                expects.append((name, datatype, full))
        return replace(call, expects=tuple(expects))

    def _run(self, talk: Talk, call: Infer) -> Steps[InferResult]:
        call = self._expecting(call)
        attempt = talk.straight(call)
        if attempt is None:
            result = yield from talk.ask(call)
        else:
            try:
                result = yield attempt
            except ClientError as error:
                result = yield from talk.resume(attempt, error)
        return self._checked(call, result)

    def _checked(self, call: Infer, result: InferResult) -> InferResult:
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

    def _send(self, talk: Talk, call: Infer, rows: int) -> Steps[InferResult]:
        """Have an inference answered: with those of others, where many wait and the model's rows are each other's strangers.

        Args:
            talk: The call.
            call: The inference.
            rows: Its rows; 0 where it is to be sent as it is.
        """
        key = (call.model_name, call.model_version)
        if not rows or not self._merge:
            return (yield from self._run(talk, call))
        batching = self._batchings.get(key)
        if batching is None:
            with self._lock:
                under_way = self._under_way[key] = self._under_way.get(key, 0) + 1
            try:
                if under_way <= AT_ONCE:
                    return (yield from self._run(talk, call))
                batching = yield from self._batching(talk, key)
            finally:
                self._leave(call)
        if batching.crowd is None:
            return (yield from self._run(talk, call))
        return (yield from batching.crowd.infer(call, rows, talk.deadline, partial(self._run, talk), talk.observed.merged))

    def _batching(self, talk: Talk, key: tuple[str, str]) -> Steps[_Batching]:
        """What the server says of the model's batches, asked once."""

        def ask() -> Steps[_Batching]:
            try:
                config = yield from talk.ask(ReadConfig(*key))
                batching = _Batching.of(config, self._new_signal, merge=self._merge)
            except (InvalidRequestError, ModelNotFoundError, TypeError, ValueError):  # a server without configurations
                batching = _Batching(0, None)
            self._batchings[key] = batching
            return batching

        return (yield from self._flights.share(talk, ("batching", key), lambda: self._batchings.get(key), ask))

    def _rows_a_request(self, talk: Talk, key: tuple[str, str], arrays: Mapping[str, Array]) -> Steps[int]:
        """How many rows of a batch a request may carry; 0 where that is not known, and everything is sent at once.

        A request carries no more rows than ``max_batch_size``, and no more than ``MOST_BYTES`` where it has several.
        """
        most = (yield from self._batching(talk, key)).most_rows
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
            return (yield from self._send(talk, call, rows))
        except (InvalidRequestError, ModelNotFoundError, UnavailableError):  # what comes back may be another model
            self._forget(key)
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
