"""``read_amounts``, without the I/O: images of fields to requests, and answers to amounts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import InvalidResponseError, UsageError
from convoy.serving.client._answer import Amount
from convoy.serving.client._call import Infer, Tensor
from convoy.serving.client._datatype import encode
from convoy.serving.client._deployed import Deployed, Deployments
from convoy.serving.client._images import Answered, Requests, most_images
from convoy.serving.client._inference import Inferences
from convoy.serving.client._models import Key
from convoy.serving.client._names import check_name, check_number
from convoy.serving.client._reading import alike, to_amounts, to_fields, to_tensors
from convoy.serving.client._request_id import part_id
from convoy.serving.client._router import Talk
from convoy.serving.client._steps import Steps, work

if TYPE_CHECKING:
    from convoy.contract.field import FieldPixels
    from convoy.serving.client._images import Given


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
        self, talk: Talk, model_name: str, model_version: str, *, box: tuple[int, int, int, int] | None
    ) -> Steps[Requests[Amount]]:
        """Look the model up: give what turns images into the requests that read them.

        Args:
            talk: The call.
            model_name: The model.
            model_version: The version to ask; the server's choice where it is empty.
            box: Where the field lies on each image.
        """
        key = (check_name(model_name), check_number(model_version))
        box = check_box(box)
        deployed = yield from self._deployments.of(talk, key)
        deployed.must_do("amount-reading")
        return Requests(most_images(deployed), deployed.interface.image, partial(self._read_chunk, key, deployed, box))

    def _read_chunk(
        self,
        key: Key,
        deployed: Deployed,
        box: tuple[int, int, int, int] | None,
        images: list[Given] | npt.NDArray[np.uint8],
        start: int,
        talk: Talk,
    ) -> Steps[Answered[Amount]]:
        def ask(deployed: Deployed) -> Steps[Answered[Amount]]:
            return self._read_batch(key, deployed, box, list(images), start, talk)

        return (yield from self._deployments.keep_up(talk, key, deployed, len(images), ask))

    def _read_batch(
        self, key: Key, deployed: Deployed, box: tuple[int, int, int, int] | None, images: list[Any], start: int, talk: Talk
    ) -> Steps[Answered[Amount]]:
        """A request for those of each width: the server merges those of several batches, where it may."""
        spec = deployed.interface.image
        batch = yield from work(lambda: to_fields(images, spec, start, box))
        if batch.unreadable:
            raise batch.unreadable[0][1]
        amounts: dict[int, Amount] = {}
        for group in alike(batch.fields):
            places = [batch.places[i] for i in group]
            read = yield from self._read_alike(key, deployed, [batch.fields[i] for i in group], places[0], talk)
            amounts.update(zip(places, read, strict=True))
        return Answered(tuple((place, amounts[place]) for place in batch.places), batch.unreadable)

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


def check_box(box: object) -> tuple[int, int, int, int] | None:
    """Return ``box`` where it is one.

    Raises:
        UsageError: It is not four whole numbers.
    """
    if box is None:
        return None
    numbers = tuple(box) if isinstance(box, Sequence) and not isinstance(box, (str, bytes)) else ()
    whole = all(isinstance(number, (int, np.integer)) and not isinstance(number, bool) for number in numbers)
    if len(numbers) != 4 or not whole:
        raise UsageError(f"box: expected four whole numbers (left, top, width, height) in pixels, found {box!r}.")
    left, top, width, height = map(int, numbers)
    return left, top, width, height
