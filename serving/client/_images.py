"""``classify``, without the I/O: images to requests, and answers to predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import (
    ClientError,
    ImageError,
    InvalidRequestError,
    InvalidResponseError,
    ModelNotFoundError,
    UnavailableError,
    UsageError,
)
from convoy.serving.client._answer import Prediction
from convoy.serving.client._call import Infer, ReadConfig, Tensor
from convoy.serving.client._classification import Batch, Classifier, batches, check_top_k, to_batch, to_predictions
from convoy.serving.client._datatype import encode
from convoy.serving.client._inference import MOST_BYTES, Inferences
from convoy.serving.client._line import Chunk
from convoy.serving.client._models import Key, Models
from convoy.serving.client._names import check_name, check_number
from convoy.serving.client._request_id import part_id
from convoy.serving.client._router import Talk
from convoy.serving.client._steps import Steps, work

if TYPE_CHECKING:
    from convoy.contract.image import ImageLike
    from convoy.contract.manifest import ModelInterface


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


class Images:
    """Says what is on images. Safe under threads: entries are replaced whole.

    Args:
        endpoint: Where the server is, for messages.
        models: What is remembered of its models.
        inferences: Sends inferences.
    """

    def __init__(self, endpoint: object, models: Models, inferences: Inferences) -> None:
        self._endpoint = endpoint
        self._models = models
        self._inferences = inferences
        self._classifiers: dict[Key, tuple[Classifier, str]] = {}  # with the version that answered, "" until one did

    def interface(self, talk: Talk, model_name: str, model_version: str) -> Steps[ModelInterface]:
        """The model's labels, image rule and tensors, as the server has them now."""
        classifier = yield from self._look_up(talk, check_name(model_name), check_number(model_version))
        return classifier.interface

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
        result = yield from self._inferences.send(talk, call, len(batch.pixels))
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

    def _classifier_of(self, talk: Talk, key: tuple[str, str]) -> Steps[Classifier]:
        def known() -> Classifier | None:
            remembered = self._classifiers.get(key)
            return remembered[0] if remembered else None

        return (yield from self._models.flights.share(talk, ("classifier", key), known, lambda: self._look_up(talk, *key)))

    def _look_up(self, talk: Talk, model_name: str, model_version: str) -> Steps[Classifier]:
        self._classifiers.pop((model_name, model_version), None)
        config = yield from talk.ask(ReadConfig(model_name, model_version))
        try:
            classifier = Classifier.from_config(model_name, config)
        except (UsageError, ClientError) as error:
            raise type(error)(f"{self._endpoint}: {error}") from error
        self._classifiers[(model_name, model_version)] = (classifier, "")
        return classifier
