"""From fields to the tensors that a reader of amounts takes, from its answer to amounts. Pure: nothing here talks to a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import ImageError, InvalidResponseError
from convoy.serving.client._answer import Alternative, Amount, Character, InferResult
from convoy.serving.client._classification import Alone, numbered

if TYPE_CHECKING:
    from convoy.contract.field import FieldPixels
    from convoy.contract.image import ImageSpec
    from convoy.contract.manifest import ModelInterface

SUM_TOLERANCE = 1e-3
"""How far the posteriors of a field may sum above 1: what float32 loses, and far below any real mistake."""


@dataclass(frozen=True)
class Fields:
    """Images that were brought to the model's height.

    Attributes:
        fields: Those that can be read.
        places: Their places among all images of the call.
        unreadable: The places of the others, and why they cannot be read; the message says which it is.
    """

    fields: tuple[FieldPixels, ...]
    places: tuple[int, ...]
    unreadable: tuple[tuple[int, ImageError], ...] = ()


def to_fields(images: Sequence[Any], spec: ImageSpec, places: Sequence[int], box: tuple[int, int, int, int] | None) -> Fields:
    """Bring images to the model's height.

    Args:
        images: Images, or fields that ``to_field`` has made of some; where it is ``Alone``, messages do not say which it is.
        spec: The model's image.
        places: Their places among all images of the call.
        box: Where the field lies on each of them; None: all of it is the field.
    """
    from convoy.contract.field import FieldPixels, to_field

    fields: list[FieldPixels] = []
    read: list[int] = []
    unreadable: list[tuple[int, ImageError]] = []
    for place, image in zip(places, images, strict=True):
        try:
            field = image if isinstance(image, FieldPixels) else to_field(image, spec, box)
            if field is image:
                _check_field(field, spec, box)
        except ImageError as error:
            unreadable.append((place, error if isinstance(images, Alone) else numbered(place, error)))
        else:
            fields.append(field)
            read.append(place)
    return Fields(tuple(fields), tuple(read), tuple(unreadable))


def alike(fields: Sequence[FieldPixels]) -> list[list[int]]:
    """The places of those that are equally wide with what was added to them, so that they can share a request; none is left out."""
    groups: dict[int, list[int]] = {}
    for place, field in enumerate(fields):
        groups.setdefault(field.pixels.shape[1], []).append(place)
    return list(groups.values())


def to_tensors(fields: Sequence[FieldPixels]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The inputs of a request: pixels (n, height, width, 1) and widths (n, 1) of fields that are ``alike``."""
    return np.stack([field.pixels for field in fields]), np.array([[field.width_px] for field in fields], np.int64)


def check_readings(outputs: Mapping[str, npt.NDArray[Any]], interface: ModelInterface, n: int, width_px: int) -> None:
    """Make sure that an answer has amounts for each of ``n`` fields; see ``convoy.contract.reading`` for what these are.

    Args:
        outputs: By name.
        interface: The model's.
        n: How many fields were sent.
        width_px: How wide they were, with what was added to them.

    Raises:
        InvalidResponseError: A shape or datatype is another, or a value makes no sense.
    """
    from convoy.contract import reading

    spec = interface.reading
    assert spec is not None
    found = {name: outputs.get(name) for name in reading.OUTPUT_NAMES}
    if missing := [name for name, array in found.items() if array is None]:
        raise InvalidResponseError(f"expected the output {missing[0]!r}, found {sorted(outputs)}.")
    characters, n_characters, positions, posteriors, confidence = (outputs[name] for name in reading.OUTPUT_NAMES)
    most = characters.shape[2] if characters.ndim == 3 else 0
    if not 1 <= most <= spec.max_characters:
        raise InvalidResponseError(
            f"expected {reading.CHARACTERS_NAME} of shape ({n}, {spec.n_best}, 1 to {spec.max_characters}), found "
            f"{characters.shape}."
        )
    amounts = (n, spec.n_best)
    for name, shape, dtype in (
        (reading.CHARACTERS_NAME, (*amounts, most), np.int64),
        (reading.N_CHARACTERS_NAME, amounts, np.int64),
        (reading.POSITIONS_NAME, (*amounts, most, 2), np.int64),
        (reading.POSTERIORS_NAME, amounts, np.float32),
        (reading.CONFIDENCE_NAME, (n, 1), np.float32),
    ):
        array = outputs[name]
        if array.shape != shape or array.dtype != dtype:
            raise InvalidResponseError(f"expected {name} of shape {shape} in {np.dtype(dtype)}, found {array.shape} {array.dtype}.")
    # Each rule stated as what is right, so that a NaN can not slip through.
    _must_hold(n_characters >= 0, n_characters, f"{reading.N_CHARACTERS_NAME} from 0 to {most}")
    _must_hold(n_characters <= most, n_characters, f"{reading.N_CHARACTERS_NAME} from 0 to {most}")
    _must_hold((posteriors >= 0) & (posteriors <= 1), posteriors, f"{reading.POSTERIORS_NAME} from 0 to 1")
    _must_hold((confidence >= 0) & (confidence <= 1), confidence, f"a {reading.CONFIDENCE_NAME} from 0 to 1")
    sums = posteriors.sum(axis=1, dtype=np.float64)
    _must_hold(sums <= 1 + SUM_TOLERANCE, sums, f"{reading.POSTERIORS_NAME} that sum to 1 at most (within {SUM_TOLERANCE:g})")
    inside = np.arange(most) < n_characters[:, :, None]
    known = (characters >= 0) & (characters < len(interface.labels))
    _must_hold(
        np.where(inside, known, characters == -1),
        characters,
        f"{reading.CHARACTERS_NAME} from 0 to {len(interface.labels) - 1}, and -1 behind an amount's last",
    )
    left, right = positions[..., 0], positions[..., 1]
    _must_hold(
        np.where(inside, (left >= 0) & (left < right) & (right <= width_px), (left == -1) & (right == -1)),
        left,
        f"{reading.POSITIONS_NAME} of columns from 0 to {width_px}, the first before the one behind the last, and -1 behind an "
        "amount's last character",
    )


def to_amounts(result: InferResult, interface: ModelInterface, fields: Sequence[FieldPixels]) -> list[Amount]:
    """Check a reader's answer, and say what it means.

    Args:
        result: The answer to fields that are ``alike``.
        interface: The model's.
        fields: The fields that were sent.

    Raises:
        InvalidResponseError: See ``check_readings``.
    """
    from convoy.contract import reading

    check_readings(result.outputs, interface, len(fields), fields[0].pixels.shape[1])
    spec = interface.reading
    assert spec is not None
    lists = [result.outputs[name].tolist() for name in reading.OUTPUT_NAMES]
    amounts = []
    for field, places, lengths, positions, posteriors, (confidence,) in zip(fields, *lists, strict=True):
        texts = ["".join(interface.labels[place] for place in row[:length]) for row, length in zip(places, lengths, strict=True)]
        alternatives = tuple(
            Alternative(text, reading.value_of(text, spec.decimal), posterior)
            for text, posterior in zip(texts, posteriors, strict=True)
            if text or posterior
        )
        characters = tuple(
            Character(interface.labels[place], *_on_image(left, right, field))
            for place, (left, right) in zip(places[0][: lengths[0]], positions[0][: lengths[0]], strict=True)
        )
        accepted = bool(texts[0]) and spec.accept is not None and confidence >= spec.accept.threshold
        value = reading.value_of(texts[0], spec.decimal)
        amounts.append(
            Amount(value, texts[0], characters, confidence, accepted, alternatives, result.model_name, result.model_version)
        )
    return amounts


def _on_image(left: int, right: int, field: FieldPixels) -> tuple[int, int]:
    """Columns of the image behind columns of the field: at least one, and within the field."""
    end = round(field.width_px / field.scale)
    first = min(round(left / field.scale), end - 1)
    return field.left_px + first, field.left_px + max(first + 1, min(round(right / field.scale), end))


def _check_field(field: FieldPixels, spec: ImageSpec, box: tuple[int, int, int, int] | None) -> None:
    if box is not None:
        raise ImageError("expected an image with a box, found a field that was cut out of one already: leave the box out.")
    height, width, channels = field.pixels.shape
    if (height, channels) != (spec.height_px, spec.channels) or width not in spec.widths_px or not 0 < field.width_px <= width:
        raise ImageError(
            f"expected a field of height {spec.height_px}, {spec.channels} channels and a width among {spec.widths_px}, found "
            f"{field.pixels.shape} of which {field.width_px} columns are the field: it was made for another model."
        )


def _must_hold(right: npt.NDArray[np.bool_], values: npt.NDArray[Any], expected: str) -> None:
    if not right.all():
        place = tuple(int(axis[0]) for axis in np.nonzero(~right))
        where = f"field {place[0]}" + (f", amount {place[1]}" if len(place) > 1 and right.shape[1] > 1 else "")
        raise InvalidResponseError(f"expected {expected}, found {values[place]} in {where}.")
