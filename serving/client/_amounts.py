"""``read_amounts``, without the I/O: images of fields to requests, and answers to amounts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import ImageError, InvalidRequestError, InvalidResponseError, UsageError
from convoy.serving.client._answer import Amount
from convoy.serving.client._call import Infer, Tensor
from convoy.serving.client._classification import Alone, check_top_k
from convoy.serving.client._datatype import encode
from convoy.serving.client._deployed import Deployed, Deployments
from convoy.serving.client._images import Answered, Requests, most_images
from convoy.serving.client._inference import Inferences
from convoy.serving.client._line import Chunk
from convoy.serving.client._models import Key
from convoy.serving.client._names import check_name, check_number
from convoy.serving.client._reading import alike, to_amounts, to_fields, to_tensors
from convoy.serving.client._request_id import part_id
from convoy.serving.client._router import Talk
from convoy.serving.client._steps import Steps, work

if TYPE_CHECKING:
    from convoy.contract.field import FieldPixels
    from convoy.contract.image import ImageSpec
    from convoy.serving.client._base import OnUnreadable
    from convoy.serving.client._images import Given

_BATCHES_AHEAD: Final = 4  # of fields that wait for others of their width: what batches are fuller by, memory and delay pay for
_BATCHES_BEHIND: Final = 16  # so far a field of a rare width stays behind the others, whose amounts may wait for its
_MOST_PREPARED: Final = 16  # images that are made fields of in one piece of work

PIECES_AT_ONCE: Final = 4
"""So many pieces of that work are under way: decoding keeps as many processors busy, and images are read no further ahead."""


@dataclass(frozen=True)
class Prepared:
    """Images that were brought to the model's height.

    Attributes:
        fields: What they are now.
        images: What they were, in the same order; None where that may be large, so that it is let go of.
        places: Their places among all images of the call, likewise.
    """

    fields: tuple[FieldPixels, ...]
    images: tuple[Any, ...]
    places: tuple[int, ...]

    def some(self, among: Sequence[int]) -> Prepared:
        """Those of some numbers."""
        return Prepared(
            tuple(self.fields[i] for i in among), tuple(self.images[i] for i in among), tuple(self.places[i] for i in among)
        )


class Groups:
    """Gathers fields of equal widths into requests, as full as can be without waiting for too many others.

    Args:
        size: The most fields in a request.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._waiting: dict[int, Prepared] = {}  # by width

    def add(self, prepared: Prepared) -> Iterator[Prepared]:
        """Take some more: gives what can be sent now."""
        for group in alike(prepared.fields):
            width = prepared.fields[group[0]].pixels.shape[1]
            before = self._waiting.pop(width, Prepared((), (), ()))
            some = prepared.some(group)
            joined = Prepared(before.fields + some.fields, before.images + some.images, before.places + some.places)
            n = len(joined.fields)
            for start in range(0, n - self._size + 1, self._size):
                yield joined.some(range(start, start + self._size))
            if n % self._size:
                self._waiting[width] = joined.some(range(n - n % self._size, n))
        while sum(len(some.fields) for some in self._waiting.values()) > _BATCHES_AHEAD * self._size:
            yield self._waiting.pop(max(self._waiting, key=lambda width: len(self._waiting[width].fields)))
        oldest_first = sorted(self._waiting, key=lambda width: self._waiting[width].places[0])
        for width in oldest_first:
            if prepared.places[-1] - self._waiting[width].places[0] > _BATCHES_BEHIND * self._size:
                yield self._waiting.pop(width)

    def rest(self) -> Iterator[Prepared]:
        """There are no more: gives what is left."""
        while self._waiting:
            yield self._waiting.pop(next(iter(self._waiting)))


@dataclass(frozen=True)
class Readings:
    """Turns images into fields, and fields into requests.

    Attributes:
        requests: Turns images into the work that makes fields of them, some at a time.
        size: The most fields in a request.
        answer: Has fields answered.
    """

    requests: Requests[Prepared]
    size: int
    answer: Callable[[Prepared, Talk], Steps[Answered[Amount]]]

    def groups(self) -> Groups:
        """What gathers the fields of a call."""
        return Groups(self.size)

    def chunks(self, groups: Groups, some: Answered[Prepared]) -> Iterator[Chunk[Answered[Amount]]]:
        """The requests that can be sent once some more images are prepared; what could not be read goes along, and asks nobody."""
        if some.unreadable:
            told: Answered[Amount] = Answered((), some.unreadable)
            yield Chunk(some.unreadable[0][0], len(some.unreadable), partial(_say, told), asks=False)
        for _, prepared in some.answers:
            for group in groups.add(prepared):
                yield self.chunk(group)

    def chunk(self, prepared: Prepared) -> Chunk[Answered[Amount]]:
        """One request."""
        return Chunk(prepared.places[0], len(prepared.fields), lambda talk: self.answer(prepared, talk))


class Amounts:
    """Reads amounts. Safe under threads.

    Args:
        endpoint: Where the server is, for messages.
        deployments: What is remembered of its models.
        inferences: Sends inferences.
    """

    def __init__(self, endpoint: object, deployments: Deployments, inferences: Inferences) -> None:
        self._endpoint = endpoint
        self._deployments = deployments
        self._inferences = inferences

    def read(
        self,
        talk: Talk,
        model_name: str,
        model_version: str,
        *,
        box: tuple[int, int, int, int] | None,
        batch_size: int | None = None,
        tolerant: bool = False,
    ) -> Steps[Readings]:
        """Look the model up: give what turns images into the requests that read them.

        Args:
            talk: The call.
            model_name: The model.
            model_version: The version to ask; the server's choice where it is empty.
            box: Where the field lies on each image.
            batch_size: The most fields in a request; as many as the model takes where it is None.
            tolerant: Whether images that cannot be read are left out, and told of.
        """
        key = (check_name(model_name), check_number(model_version))
        box = check_box(box)
        deployed = yield from self._deployments.of(talk, key)
        deployed.must_do("amount-reading")
        spec = deployed.interface.image
        size = most_images(deployed)
        if batch_size is not None:
            size = min(size, check_top_k(batch_size, "batch_size"))
        requests = Requests(min(size, _MOST_PREPARED), spec, partial(_prepare, spec, box, tolerant))
        return Readings(requests, size, partial(self._read_prepared, key, deployed, box))

    def _read_prepared(
        self, key: Key, deployed: Deployed, box: tuple[int, int, int, int] | None, prepared: Prepared, talk: Talk
    ) -> Steps[Answered[Amount]]:
        made_for = deployed.interface.image

        def ask(deployed: Deployed) -> Steps[Answered[Amount]]:
            some = prepared
            if deployed.interface.image != made_for:
                if any(image is None for image in prepared.images):
                    raise InvalidRequestError(
                        f"{self._endpoint}: model {deployed.model_name!r} takes images of another size since this call began: call "
                        "again."
                    )
                some, _ = yield from _made(prepared.images, prepared.places, deployed.interface.image, box)
            amounts: list[tuple[int, Amount]] = []
            for group in alike(some.fields):  # one, but for those of a model that is another by now
                places = [some.places[i] for i in group]
                read = yield from self._read_alike(key, deployed, [some.fields[i] for i in group], places[0], talk)
                amounts += zip(places, read, strict=True)
            return Answered(tuple(amounts), ())

        return (yield from self._deployments.keep_up(talk, key, deployed, len(prepared.fields), ask))

    def _read_alike(
        self, key: Key, deployed: Deployed, fields: Sequence[FieldPixels], start: int, talk: Talk
    ) -> Steps[list[Amount]]:
        from convoy.contract.manifest import INPUT_NAME
        from convoy.contract.reading import OUTPUT_NAMES, WIDTH_NAME

        pixels, widths = to_tensors(fields)
        tensors = (
            Tensor(INPUT_NAME, "UINT8", pixels.shape, encode(pixels, "UINT8")),
            Tensor(WIDTH_NAME, "INT64", widths.shape, encode(widths, "INT64")),
        )
        call = Infer(*key, inputs=tensors, outputs=OUTPUT_NAMES, request_id=part_id(talk.request_id, start))
        result = yield from self._inferences.send(talk, call, len(fields))
        deployed = yield from self._deployments.answered(talk, key, deployed, result.model_version)
        try:
            return to_amounts(result, deployed.interface, fields)
        except InvalidResponseError as error:
            raise InvalidResponseError(f"{self._endpoint}: {call.subject}: {error}") from error


class Outlet:
    """Gives the amounts of a call with their places, and tells of the images that cannot be read.

    Args:
        in_order: Whether an amount is held back until all before it are there.
        on_unreadable: Is told of an image that cannot be read; None: there are none.

    Attributes:
        in_order: Likewise.
    """

    def __init__(self, *, in_order: bool, on_unreadable: OnUnreadable | None = None) -> None:
        self.in_order, self._on_unreadable = in_order, on_unreadable
        self._next = 0
        self._held: dict[int, Amount | ImageError] = {}

    def take(self, answered: Answered[Amount]) -> Iterator[tuple[int, Amount]]:
        """Take a request's answer: gives the amounts whose turn it is."""
        self._held.update(answered.answers)
        self._held.update(answered.unreadable)
        for place in self._due():
            found = self._held.pop(place)
            if isinstance(found, Amount):
                yield place, found
            elif self._on_unreadable is not None:
                self._on_unreadable(place, found)

    def _due(self) -> Iterator[int]:
        if not self.in_order:
            yield from sorted(self._held)
            return
        while self._next in self._held:
            self._next += 1
            yield self._next - 1


def _say(answered: Answered[Amount], talk: Talk) -> Steps[Answered[Amount]]:  # noqa: ARG001  # nobody is asked
    yield from ()
    return answered


def _prepare(
    spec: ImageSpec,
    box: tuple[int, int, int, int] | None,
    tolerant: bool,
    images: list[Given] | npt.NDArray[np.uint8],
    start: int,
    talk: Talk,  # noqa: ARG001  # nobody is asked
) -> Steps[Answered[Prepared]]:
    prepared, unreadable = yield from _made(images, range(start, start + len(images)), spec, box, tolerant=tolerant)
    if len(images) > 1:
        kept = tuple(image if isinstance(image, (str, os.PathLike)) else None for image in prepared.images)
        prepared = replace(prepared, images=kept)
    return Answered(((start, prepared),) if prepared.fields else (), unreadable)


def _made(
    images: Iterable[Any],
    places: Sequence[int],
    spec: ImageSpec,
    box: tuple[int, int, int, int] | None,
    *,
    tolerant: bool = False,
) -> Steps[tuple[Prepared, tuple[tuple[int, ImageError], ...]]]:
    """Fields of images, and those that cannot be read: the first of them ends the call, where it is not tolerant."""
    by_place = dict(zip(places, images, strict=True))
    several = Alone(by_place.values()) if isinstance(images, Alone) else tuple(by_place.values())
    made = yield from work(lambda: to_fields(several, spec, tuple(by_place), box))
    if made.unreadable and not tolerant:
        raise made.unreadable[0][1]
    return Prepared(made.fields, tuple(by_place[place] for place in made.places), made.places), made.unreadable


def check_box(box: object) -> tuple[int, int, int, int] | None:
    """Return ``box`` where it is one.

    Raises:
        UsageError: It is not four whole numbers.
    """
    if box is None:
        return None
    given = box.tolist() if isinstance(box, np.ndarray) else box
    numbers = tuple(given) if isinstance(given, Sequence) and not isinstance(given, (str, bytes)) else ()
    whole = all(isinstance(number, (int, np.integer)) and not isinstance(number, bool) for number in numbers)
    if len(numbers) != 4 or not whole:
        raise UsageError(f"box: expected four whole numbers (left, top, width, height) in pixels, found {box!r}.")
    left, top, width, height = map(int, numbers)
    return left, top, width, height
