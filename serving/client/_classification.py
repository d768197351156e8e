"""From images to the tensors that a classifier takes, and from its answer to predictions. Pure: nothing here talks to a server."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import ImageError, InvalidResponseError, UsageError
from convoy.serving.client._answer import Candidate, InferResult, Prediction

if TYPE_CHECKING:
    from convoy.contract.field import FieldPixels
    from convoy.contract.image import ImageLike, ImageSpec

T = TypeVar("T")

SUM_TOLERANCE = 1e-3
"""How far probabilities may sum from 1: far above what float32 (or a half-precision model) loses, far below any real mistake."""


class Alone(list[T]):
    """The one image of a call that was given as such, not among others: messages do not number it."""


def batches(
    images: ImageLike | FieldPixels | Iterable[ImageLike | FieldPixels], spec: ImageSpec, size: int
) -> Iterator[list[ImageLike | FieldPixels] | npt.NDArray[np.uint8]]:
    """Split what a caller gave into batches.

    Args:
        images: One image, an iterable of images (read lazily), fields among them for models that read amounts, or an array of
            shape (N, H, W, C), or (N, H, W) for grey images.
        spec: The model's image.
        size: The most images in a batch.

    Yields:
        Lists of images or, where ``images`` already is the model's pixels, views of it. One image is ``Alone``.

    Raises:
        UsageError: It is none of these.
    """
    from PIL import Image

    from convoy.contract.field import FieldPixels

    if isinstance(images, np.ndarray):
        # Three axes are one image with its channels last, unless they can not be, or are grey images of just the model's size.
        grey = images.ndim == 3 and (images.shape[2] not in (1, 3, 4) or (*images.shape[1:], 1) == spec.dims)
        if grey and images.shape[0] == spec.channels == 3:
            _, height, width = images.shape
            raise UsageError(
                f"expected images with their channels last, found an array of shape {images.shape}: one image with its channels "
                f"first? Give .transpose(1, 2, 0), shape {(height, width, 3)}; or [..., None] where these are 3 grey images."
            )
        stacked = images.ndim == 4 or grey
        array: npt.NDArray[Any] = images if stacked else images[None]
        if grey:
            array = array[..., None]
        if array.dtype == np.uint8 and array.shape[1:] == spec.dims:
            for start in range(0, len(array), size):
                yield array[start : start + size]
            return
        # paths or bytes, as a column of a table has them
        listed = images.ndim == 1 and len(images) > 0 and isinstance(images[0], (str, bytes, os.PathLike, Image.Image))
        images = images.tolist() if listed else list(array) if stacked else Alone([images])  # too few axes: refused as an image
    if isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, FieldPixels)) or hasattr(images, "read"):
        images = Alone([cast("ImageLike | FieldPixels", images)])
    if isinstance(images, Alone):
        yield images
        return
    if not isinstance(images, Iterable):
        raise UsageError(f"expected an image, images, or an array of images, found {type(images).__name__}.")
    iterator = iter(cast("Iterable[ImageLike | FieldPixels]", images))
    while batch := list(islice(iterator, size)):
        yield batch


@dataclass(frozen=True)
class Batch:
    """Images that were brought to the model's pixels.

    Attributes:
        pixels: Those that can be read: uint8, shape (n, height, width, channels).
        places: Their places among all images of the call.
        unreadable: The places of the others, and why they cannot be read; the message says which it is.
    """

    pixels: npt.NDArray[np.uint8]
    places: Sequence[int]
    unreadable: tuple[tuple[int, ImageError], ...] = ()


def to_batch(images: list[ImageLike], spec: ImageSpec, start: int) -> Batch:
    """Bring images to the model's pixels.

    Args:
        images: The images of one batch; where it is ``Alone``, messages do not say which it is.
        spec: The model's image.
        start: How many images came before.
    """
    from convoy.contract.image import to_pixels

    pixels = np.empty((len(images), *spec.dims), dtype=np.uint8)
    places: list[int] = []
    unreadable: list[tuple[int, ImageError]] = []
    for place, image in enumerate(images, start):
        try:
            pixels[len(places)] = to_pixels(image, spec)
        except ImageError as error:
            unreadable.append((place, error if isinstance(images, Alone) else numbered(place, error)))
        else:
            places.append(place)
    return Batch(pixels[: len(places)], places, tuple(unreadable))


def numbered(place: int, error: ImageError) -> ImageError:
    """The error of one of many images, whose message says which it is."""
    told = ImageError(f"image {place}: {error}")
    told.__cause__ = error
    return told


def check_top_k(top_k: int, name: str = "top_k") -> int:
    """Return ``top_k`` where it is a number of candidates (or of images).

    Raises:
        UsageError: It is no whole number from 1.
    """
    if isinstance(top_k, bool) or not isinstance(top_k, (int, np.integer)) or top_k < 1:
        raise UsageError(f"{name}: expected a whole number from 1, found {top_k!r}.")
    return int(top_k)


def to_predictions(result: InferResult, labels: tuple[str, ...], n: int, top_k: int) -> list[Prediction]:
    """Check a classifier's answer and name its classes.

    Args:
        result: The answer to ``n`` images.
        labels: The model's class names.
        n: How many images were sent.
        top_k: How many candidates to list; at most the number of classes.

    Raises:
        InvalidResponseError: Shape or datatype is another, or a row is no distribution over the classes.
    """
    from convoy.contract.manifest import PROBABILITIES_NAME

    probabilities = result.outputs.get(PROBABILITIES_NAME)
    if probabilities is None:
        raise InvalidResponseError(f"expected the output {PROBABILITIES_NAME!r}, found {sorted(result.outputs)}.")
    check_probabilities(probabilities, n, len(labels))
    order, likeliest = likeliest_classes(probabilities, top_k)
    predictions = []
    for indices, values in zip(order.tolist(), likeliest.tolist(), strict=True):
        candidates = tuple(Candidate(labels[index], index, value) for index, value in zip(indices, values, strict=True))
        first = candidates[0]
        predictions.append(
            Prediction(first.label, first.index, first.probability, candidates, result.model_name, result.model_version)
        )
    return predictions


def check_probabilities(probabilities: npt.NDArray[Any], n: int, n_classes: int) -> None:
    """Make sure that an answer has a distribution over the classes for each of ``n`` images.

    Raises:
        InvalidResponseError: Shape or datatype is another, or a row is no distribution.
    """
    expected = (n, n_classes)
    if probabilities.shape != expected or probabilities.dtype.kind != "f":
        raise InvalidResponseError(
            f"expected probabilities of shape {expected} in floating point, found {probabilities.shape} {probabilities.dtype}."
        )
    sums = probabilities.sum(axis=1, dtype=np.float64)
    # Stated as what is right, so that a NaN can not slip through.
    right = (probabilities >= 0).all(axis=1) & (np.abs(sums - 1) <= SUM_TOLERANCE)
    if not right.all():
        row = int(np.flatnonzero(~right)[0])
        raise InvalidResponseError(
            f"expected probabilities from 0 that sum to 1 (within {SUM_TOLERANCE:g}), found a row {row} that sums to "
            f"{sums[row]:.6g}; {int((~right).sum())} of {n} rows are wrong."
        )


def likeliest_classes(probabilities: npt.NDArray[Any], top_k: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """The places of the likeliest classes of each row, the likeliest first, and their probabilities: both of shape (n, k)."""
    # A stable sort: of equally likely classes the first one comes first, on every machine.
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    return order, np.take_along_axis(probabilities, order, axis=1)
