"""What every method of a client does, step by step, without the I/O: generators that yield calls and are sent their answers.

``Client`` and ``AsyncClient`` drive the same generators; only how a step is carried out differs between them::

    steps = session.classify("lenet5", images, ...)      # yields Call or Work, is sent what it gave, returns the result
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar

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
    R,
    ReadConfig,
    ServerReady,
    Tensor,
)
from convoy.serving.client._classification import Classifier, batches, check_top_k, to_batch, to_predictions
from convoy.serving.client._datatype import NUMPY_DTYPES, Array, datatype_of, encode, fits

if TYPE_CHECKING:
    from convoy.contract.image import ImageLike
    from convoy.contract.manifest import ModelInterface

T = TypeVar("T")

_NUMBER: Final = re.compile("[1-9][0-9]{0,18}")


@dataclass(frozen=True)
class Work(Generic[T]):
    """A step that keeps a processor busy (decoding images): an event loop gives it to a thread."""

    run: Callable[[], T]


Steps: TypeAlias = Generator["Call[Any] | Work[Any]", Any, T]


def ask(call: Call[R]) -> Steps[R]:
    """One call as steps of their own, so that its answer keeps its type."""
    answer: R = yield call
    return answer


def work(run: Callable[[], T]) -> Steps[T]:
    """One piece of work as steps of their own, so that its result keeps its type."""
    result: T = yield Work(run)
    return result


def is_up(call: Call[bool]) -> Steps[bool]:
    """A health question: no server, and one that does not answer in time, is a no and no error."""
    try:
        return (yield from ask(call))
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

    def ready(self, model_name: str | None, model_version: str) -> Steps[bool]:
        """Whether the server, or one model, takes requests."""
        if model_name is None:
            if model_version:
                raise UsageError("ready: a model_version was given without a model_name.")
            return (yield from is_up(ServerReady()))
        return (yield from is_up(ModelReady(check_name(model_name), check_version(model_version))))

    def interface(self, model_name: str, model_version: str) -> Steps[ModelInterface]:
        """The model's labels, image rule and tensors, as the server has them now."""
        classifier = yield from self._look_up(check_name(model_name), check_number(model_version))
        return classifier.interface

    def infer(
        self, model_name: str, inputs: Mapping[str, Array], outputs: Iterable[str] | None, model_version: str
    ) -> Steps[InferResult]:
        """Check the inputs against the server's own description, run the model, check the answer."""
        key = (check_name(model_name), check_version(model_version))
        wanted = tuple(outputs or ())
        arrays = _as_arrays(inputs)
        known = self._metadata.get(key)
        metadata = known or (yield from self._describe(*key))
        try:
            tensors = self._tensors(metadata, arrays, wanted, model_version)
        except InvalidRequestError:
            if known is None:
                raise
            # What was remembered may be the model before this one: ask again before the caller is told off.
            tensors = self._tensors((yield from self._describe(*key)), arrays, wanted, model_version)
        try:
            return (yield from self._run(Infer(*key, inputs=tensors, outputs=wanted)))
        except (InvalidRequestError, ModelNotFoundError, UnavailableError):  # what comes back may be another model
            self._metadata.pop(key, None)
            raise

    def classify(
        self, model_name: str, images: ImageLike | Iterable[ImageLike], model_version: str, top_k: int
    ) -> Steps[list[Prediction]]:
        """Bring images to the model's pixels, send them batch by batch, name the classes."""
        key = (check_name(model_name), check_number(model_version))
        top_k = check_top_k(top_k)
        remembered = self._classifiers.get(key)
        classifier = remembered[0] if remembered else (yield from self._look_up(*key))
        predictions: list[Prediction] = []
        for batch in batches(images, classifier):
            try:
                answered = yield from self._classify_batch(key, classifier, batch, len(predictions), top_k)
            except (InvalidRequestError, InvalidResponseError) as error:
                # The model may have been replaced by one with other labels or another image since it was looked up.
                renewed = yield from self._look_up(*key)
                if renewed.interface == classifier.interface:
                    raise
                if len(batch) > renewed.max_batch_size:
                    raise InvalidRequestError(f"{error} The model's configuration changed during the call: call again.") from error
                answered = yield from self._classify_batch(key, renewed, batch, len(predictions), top_k)
            except (ModelNotFoundError, UnavailableError):  # what comes back may be another model
                self._classifiers.pop(key, None)
                raise
            predictions += answered
            classifier = self._classifiers.get(key, (classifier, ""))[0]  # another version may answer from here on
        return predictions

    def _classify_batch(
        self,
        key: tuple[str, str],
        classifier: Classifier,
        batch: list[ImageLike] | npt.NDArray[np.uint8],
        start: int,
        top_k: int,
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
        result = yield from self._run(call)
        version = result.model_version
        seen = self._classifiers.get(key, (classifier, ""))[1]
        if seen != version:
            if seen:  # another version answers than the one that was looked up: its labels are what counts
                classifier = yield from self._look_up(*key)
            self._classifiers[key] = (classifier, version)
        try:
            return to_predictions(result, classifier.interface.labels, len(pixels), top_k)
        except InvalidResponseError as error:
            raise InvalidResponseError(f"{self._endpoint}: {call.subject}: {error}") from error

    def _look_up(self, model_name: str, model_version: str) -> Steps[Classifier]:
        self._classifiers.pop((model_name, model_version), None)
        config = yield from ask(ReadConfig(model_name, model_version))
        try:
            classifier = Classifier.from_config(model_name, config)
        except (UsageError, ClientError) as error:
            raise type(error)(f"{self._endpoint}: {error}") from error
        self._classifiers[(model_name, model_version)] = (classifier, "")
        return classifier

    def _describe(self, model_name: str, model_version: str) -> Steps[ModelMetadata]:
        metadata = yield from ask(DescribeModel(model_name, model_version))
        self._metadata[(model_name, model_version)] = metadata
        return metadata

    def _run(self, call: Infer) -> Steps[InferResult]:
        result = yield from ask(call)
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

    def _tensors(
        self, metadata: ModelMetadata, arrays: dict[str, Array], outputs: tuple[str, ...], model_version: str
    ) -> tuple[Tensor, ...]:
        """The inputs in the wire's form, where the model takes them."""
        where = f"{self._endpoint}: {Infer(metadata.name, model_version, inputs=()).subject}"
        known = {tensor.name: tensor for tensor in metadata.inputs}
        tensors = []
        for name, array in arrays.items():
            if name not in known:
                raise InvalidRequestError(f"{where}: expected the inputs {sorted(known)}, found {name!r}. Nothing was sent.")
            datatype, shape = known[name].datatype, known[name].shape
            if not fits(array, datatype):
                dtype = NUMPY_DTYPES[datatype].name if datatype in NUMPY_DTYPES else {"BF16": "float32"}.get(datatype, "object")
                raise InvalidRequestError(
                    f"{where}: input {name!r}: expected {datatype}, found dtype {array.dtype} "
                    f"({datatype_of(array) or 'no datatype'}). Convert it, with .astype({dtype!r}) say. Nothing was sent."
                )
            if len(shape) != array.ndim or any(want not in (-1, have) for want, have in zip(shape, array.shape, strict=True)):
                raise InvalidRequestError(
                    f"{where}: input {name!r}: expected shape {list(shape)} (-1: any), found {list(array.shape)}. Nothing was sent."
                )
            tensors.append(Tensor(name, datatype, array.shape, encode(array, datatype)))
        offered = [tensor.name for tensor in metadata.outputs]
        if offered and (unknown := [name for name in outputs if name not in offered]):
            raise InvalidRequestError(f"{where}: expected outputs among {offered}, found {unknown[0]!r}. Nothing was sent.")
        return tuple(tensors)


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
