"""One batch of a run: read, brought to the model's pixels, answered, turned into rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import (
    AuthenticationError,
    ClientError,
    DeadlineExceededError,
    ImageError,
    ModelNotFoundError,
    OverloadedError,
    UnavailableError,
)
from convoy.contract.image import ImageLike, to_pixels
from convoy.serving.scoring._backend import Backend
from convoy.serving.scoring._table import Answered, RowMaker
from convoy.serving.scoring.source import Entry, Source, printable

ENDS_THE_RUN: Final = (UnavailableError, OverloadedError, AuthenticationError, ModelNotFoundError)
"""No batch after these can fare better. Any other failure of a request becomes the error of its rows."""

_ITS_NAME: Final = re.compile(r"^the image( \(\d+ bytes\))?: ")
"""What bytes are called whose name is not known; here it is."""


@dataclass(frozen=True)
class Rows:
    """What becomes the rows of one batch.

    Attributes:
        n: How many.
        n_failed: Rows with an error.
        latency_ms: How long the request took; 0 where there was none.
        refused: Why the server did not answer, where it answered nothing of the batch.
        answered: What became of the inputs; None where the rows were made elsewhere.
    """

    n: int
    n_failed: int
    latency_ms: float
    refused: ClientError | None
    answered: Answered | None


@dataclass(frozen=True)
class Scorer:
    """Scores batches with one version of one model. Safe under threads."""

    backend: Backend
    source: Source
    maker: RowMaker

    def score(self, start: int, entries: Sequence[Entry]) -> Rows:
        """Make everyone's row.

        Args:
            start: The place of the first input in the source.
            entries: The inputs, at most as many as a request carries.

        Raises:
            ClientError: The run cannot go on.
            SourceChangedError: The source is another one by now.
        """
        pixels, places, errors = self._read(start, entries)
        probabilities: list[npt.NDArray[Any]] = []
        latency_ms = 0.0
        answered = list(places)
        refused: ClientError | None = None
        if len(pixels):
            try:
                answer, latency_ms = self._infer(pixels)
                probabilities.append(answer)
            except ENDS_THE_RUN:
                raise
            except ClientError as error:
                answered = []
                for some, answer, took_ms in self._one_by_one(pixels, places, error, errors):
                    answered += some
                    probabilities.append(answer)
                    latency_ms = max(latency_ms, took_ms)
                refused = None if answered else error
        joined = np.concatenate(probabilities) if probabilities else None
        n = len(entries)
        return Rows(n, n - len(answered), latency_ms, refused, Answered(n, answered, joined, latency_ms, errors))

    def _read(self, start: int, entries: Sequence[Entry]) -> tuple[npt.NDArray[np.uint8], Sequence[int], dict[int, str]]:
        """The pixels of those that can be read, their places in the batch, and the errors of the others."""
        spec = self.backend.interface.image
        n = len(entries)
        images: Iterable[ImageLike | ImageError]
        block = self.source.block(start, start + n)
        if block is None:
            images = self.source.load(entries)
        else:
            shaped = block[..., None] if block.ndim == 3 else block
            if shaped.shape[1:] == spec.dims:
                return shaped, range(n), {}
            images = iter(shaped)
        pixels = np.empty((n, *spec.dims), np.uint8)
        places: list[int] = []
        errors: dict[int, str] = {}
        for place, image in enumerate(images):
            if isinstance(image, ImageError):
                errors[place] = printable(str(image))
                continue
            try:
                pixels[len(places)] = to_pixels(image, spec)
                places.append(place)
            except ImageError as error:
                errors[place] = printable(f"{entries[place].key}: {_ITS_NAME.sub('', str(error))}")
        return pixels[: len(places)], places, errors

    def _infer(self, pixels: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[Any], float]:
        answer, latency_ms = self.backend.infer(pixels)
        self.maker.check(answer, len(pixels))
        return answer, latency_ms

    def _one_by_one(
        self, pixels: npt.NDArray[np.uint8], places: Sequence[int], error: ClientError, errors: dict[int, str]
    ) -> Iterable[tuple[Sequence[int], npt.NDArray[Any], float]]:
        """The answers to the halves of a batch that was refused, and to theirs: one image's fault is not that of the others.

        A server that is too slow is not asked more often for it.
        """
        if len(places) == 1 or isinstance(error, DeadlineExceededError):
            errors.update(dict.fromkeys(places, printable(str(error))))
            return
        half = len(places) // 2
        for part, some in ((pixels[:half], places[:half]), (pixels[half:], places[half:])):
            try:
                answer, latency_ms = self._infer(part)
            except ENDS_THE_RUN:
                raise
            except ClientError as failed:
                yield from self._one_by_one(part, some, failed, errors)
            else:
                yield some, answer, latency_ms
