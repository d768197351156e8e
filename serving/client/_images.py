"""``classify``, without the I/O: images to requests, and answers to predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import ImageError, InvalidResponseError
from convoy.serving.client._answer import Prediction
from convoy.serving.client._call import Infer, Tensor
from convoy.serving.client._classification import Batch, batches, check_top_k, to_batch, to_predictions
from convoy.serving.client._datatype import encode
from convoy.serving.client._deployed import Deployed, Deployments
from convoy.serving.client._inference import MOST_BYTES, Inferences
from convoy.serving.client._line import Chunk
from convoy.serving.client._models import Key
from convoy.serving.client._names import check_name, check_number
from convoy.serving.client._request_id import part_id
from convoy.serving.client._router import Talk
from convoy.serving.client._steps import Steps, work

if TYPE_CHECKING:
    from typing import TypeAlias

    from convoy.contract.field import FieldPixels
    from convoy.contract.image import ImageLike, ImageSpec
    from convoy.contract.manifest import ModelInterface

    Given: TypeAlias = ImageLike | FieldPixels
    """What a caller gives as one image."""

    Givens: TypeAlias = Given | Iterable[Given]
    """What a caller gives as images."""

A = TypeVar("A")


@dataclass(frozen=True)
class Answered(Generic[A]):
    """The answer to a batch of images.

    Attributes:
        answers: The place of each image among all of the call, and what the model says of it.
        unreadable: The places of images that cannot be read, and why.
    """

    answers: tuple[tuple[int, A], ...]
    unreadable: tuple[tuple[int, ImageError], ...]


@dataclass(frozen=True)
class Requests(Generic[A]):
    """Turns images into requests.

    Attributes:
        size: The most images in one.
        spec: The model's image.
        answer: Has images answered of which so many came before.
    """

    size: int
    spec: ImageSpec
    answer: Callable[[list[Given] | npt.NDArray[np.uint8], int, Talk], Steps[Answered[A]]]

    def read(self, images: Givens) -> Iterator[Chunk[Answered[A]]]:
        """The requests, one after the other, as they can be sent; images are read as far as they take.

        Raises:
            UsageError: These are no images.
        """
        start = 0
        for batch in batches(images, self.spec, self.size):
            yield self.chunk(batch, start)
            start += len(batch)

    def chunk(self, images: list[Given] | npt.NDArray[np.uint8], start: int) -> Chunk[Answered[A]]:
        """One request."""
        return Chunk(start, len(images), lambda talk: self.answer(images, start, talk))


def most_images(deployed: Deployed) -> int:
    """How many images a request may carry."""
    return min(deployed.max_batch_size, max(1, MOST_BYTES // prod(deployed.interface.image.dims)))


class Images:
    """Says what is on images. Safe under threads.

    Args:
        endpoint: Where the server is, for messages.
        deployments: What is remembered of its models.
        inferences: Sends inferences.
    """

    def __init__(self, endpoint: object, deployments: Deployments, inferences: Inferences) -> None:
        self._endpoint = endpoint
        self._deployments = deployments
        self._inferences = inferences

    def interface(self, talk: Talk, model_name: str, model_version: str) -> Steps[ModelInterface]:
        """The model's labels, image rule and tensors, as the server has them now."""
        deployed = yield from self._deployments.look_up(talk, (check_name(model_name), check_number(model_version)))
        return deployed.interface

    def classify(
        self, talk: Talk, model_name: str, model_version: str, *, top_k: int, batch_size: int | None, tolerant: bool
    ) -> Steps[Requests[Prediction]]:
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
        deployed = yield from self._deployments.of(talk, key)
        deployed.must_do("image-classification")
        size = most_images(deployed)
        if batch_size is not None:
            size = min(size, check_top_k(batch_size, "batch_size"))
        return Requests(size, deployed.interface.image, partial(self._classify_chunk, key, deployed, top_k, tolerant))

    def _classify_chunk(
        self,
        key: Key,
        deployed: Deployed,
        top_k: int,
        tolerant: bool,
        images: list[Given] | npt.NDArray[np.uint8],
        start: int,
        talk: Talk,
    ) -> Steps[Answered[Prediction]]:
        def ask(deployed: Deployed) -> Steps[Answered[Prediction]]:
            return self._classify_batch(key, deployed, top_k, tolerant, images, start, talk)

        return (yield from self._deployments.keep_up(talk, key, deployed, len(images), ask))

    def _classify_batch(
        self,
        key: Key,
        deployed: Deployed,
        top_k: int,
        tolerant: bool,
        images: list[Given] | npt.NDArray[np.uint8],
        start: int,
        talk: Talk,
    ) -> Steps[Answered[Prediction]]:
        from convoy.contract.manifest import INPUT_NAME, PROBABILITIES_NAME

        spec = deployed.interface.image
        if isinstance(images, np.ndarray) and images.shape[1:] == spec.dims:
            batch = Batch(images, range(start, start + len(images)))
        else:
            several: list[Any] = images if isinstance(images, list) else list(images)
            batch = yield from work(lambda: to_batch(several, spec, start))
        if batch.unreadable and not tolerant:
            raise batch.unreadable[0][1]
        if not len(batch.pixels):
            return Answered((), batch.unreadable)
        tensor = Tensor(INPUT_NAME, "UINT8", batch.pixels.shape, encode(batch.pixels, "UINT8"))
        call = Infer(*key, inputs=(tensor,), outputs=(PROBABILITIES_NAME,), request_id=part_id(talk.request_id, start))
        result = yield from self._inferences.send(talk, call, len(batch.pixels))
        deployed = yield from self._deployments.answered(talk, key, deployed, result.model_version)
        try:
            predictions = to_predictions(result, deployed.interface.labels, len(batch.pixels), top_k)
        except InvalidResponseError as error:
            raise InvalidResponseError(f"{self._endpoint}: {call.subject}: {error}") from error
        return Answered(tuple(zip(batch.places, predictions, strict=True)), batch.unreadable)
