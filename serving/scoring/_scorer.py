"""One batch of a run: read, brought to the model's pixels, answered, turned into rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

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
from convoy.contract.manifest import INPUT_NAME, PROBABILITIES_NAME
from convoy.serving.scoring._backend import Backend
from convoy.serving.scoring._table import Answered, RowMaker, join
from convoy.serving.scoring.source import Entry, Source, printable

T = TypeVar("T")

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

    @property
    def batch_rows(self) -> int:
        """The inputs that are scored together."""
        return self.backend.batch_rows

    def score(self, start: int, entries: Sequence[Entry]) -> Rows:
        """Make everyone's row.

        Args:
            start: The place of the first input in the source.
            entries: The inputs, at most ``batch_rows``.

        Raises:
            ClientError: The run cannot go on.
            SourceChangedError: The source is another one by now.
        """
        n = len(entries)
        images, places, errors = self._read(start, entries)
        answers: list[Any] = []
        latencies_ms = np.zeros(n, np.float32)
        answered = list(places)
        refused: ClientError | None = None
        if len(images):
            try:
                answer, took_ms = self._infer(images)
                answers.append(answer)
                latencies_ms[answered] = took_ms
            except ENDS_THE_RUN:
                raise
            except ClientError as error:
                answered = []
                for some, answer, took_ms in self._one_by_one(images, places, error, errors):
                    answered += some
                    answers.append(answer)
                    latencies_ms[list(some)] = took_ms
                refused = None if answered else error
        latency_ms = float(latencies_ms.max(initial=0.0))
        return Rows(n, n - len(answered), latency_ms, refused, Answered(n, answered, join(answers), latencies_ms, errors))

    def _read(self, start: int, entries: Sequence[Entry]) -> tuple[Any, Sequence[int], dict[int, str]]:
        """The pixels of those that can be read, their places in the batch, and the errors of the others."""
        spec = self.backend.interface.image
        n = len(entries)
        block = self.source.block(start, start + n)
        if block is not None:
            shaped = block[..., None] if block.ndim == 3 else block
            if shaped.shape[1:] == spec.dims:
                return shaped, range(n), {}
        pixels = np.empty((n, *spec.dims), np.uint8)
        places: list[int] = []
        errors: dict[int, str] = {}
        for place, read in self._each(block, entries, errors, lambda image: to_pixels(image, spec)):
            pixels[len(places)] = read
            places.append(place)
        return pixels[: len(places)], places, errors

    def _each(
        self,
        block: npt.NDArray[np.uint8] | None,
        entries: Sequence[Entry],
        errors: dict[int, str],
        read: Callable[[ImageLike], T],
    ) -> Iterator[tuple[int, T]]:
        """What is read of each input, with its place in the batch; why one cannot be read goes into ``errors``."""
        images: Iterable[ImageLike | ImageError]
        images = self.source.load(entries) if block is None else iter(block[..., None] if block.ndim == 3 else block)
        for place, image in enumerate(images):
            if isinstance(image, ImageError):
                errors[place] = printable(str(image))
                continue
            try:
                made = read(image)
            except ImageError as error:
                errors[place] = printable(f"{entries[place].key}: {_ITS_NAME.sub('', str(error))}")
            else:
                yield place, made

    def _infer(self, images: Any) -> tuple[Any, float | list[float]]:
        """The answers to images, and how long they took: all of them, or each."""
        outputs, latency_ms = self.backend.infer({INPUT_NAME: images}, (PROBABILITIES_NAME,))
        self.maker.check(outputs[PROBABILITIES_NAME], len(images))
        return outputs[PROBABILITIES_NAME], latency_ms

    def _one_by_one(
        self, images: Any, places: Sequence[int], error: ClientError, errors: dict[int, str]
    ) -> Iterable[tuple[Sequence[int], Any, float | list[float]]]:
        """The answers to the halves of a batch that was refused, and to theirs: one image's fault is not that of the others.

        A server that is too slow is not asked more often for it.
        """
        if len(places) == 1 or isinstance(error, DeadlineExceededError):
            errors.update(dict.fromkeys(places, printable(str(error))))
            return
        half = len(places) // 2
        for part, some in ((images[:half], places[:half]), (images[half:], places[half:])):
            try:
                answer, latency_ms = self._infer(part)
            except ENDS_THE_RUN:
                raise
            except ClientError as failed:
                yield from self._one_by_one(part, some, failed, errors)
            else:
                yield some, answer, latency_ms
