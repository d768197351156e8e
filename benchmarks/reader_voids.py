"""What the shipped check reader says of fields that hold no amount (``python -m benchmarks.reader_voids``).

Four kinds: synthetic ones, written with digits that it did not learn from; what stands beside the boxed digits in real fields of
``CONVOY_DATA/orand_car_a``, which may hold signs; photos of ``CONVOY_DATA/trashnet``; and bare images. Right is to read nothing; to
accept an amount is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import onnxruntime

from benchmarks.harness import Figure, benchmark
from convoy.contract.bundle import Bundle
from convoy.contract.errors import DataError
from convoy.contract.field import to_field
from convoy.contract.reading import CONFIDENCE_NAME, N_CHARACTERS_NAME, WIDTH_NAME
from convoy.training.check_reader.building import load_handwriting
from convoy.training.check_reader.field_image import SyntheticFields
from convoy.training.check_reader.fields import load_orand
from convoy.training.check_reader.judging import wilson

_MODEL: Final = Path(__file__).resolve().parent.parent / "model_repository" / "check-reader" / "1"
_N_SYNTHETIC: Final = 1_000
_SEED: Final = 77
_MARGIN_PX: Final = 3
_LEAST_PX: Final = 24
_MOST_PHOTOS: Final = 300


def synthetic() -> list[Any]:
    """Synthetic voids, with the edges of digits that nobody has learnt from."""
    drawing = SyntheticFields(load_handwriting("digits", "test"), "chilean", _SEED, void_share=1.0)
    return [drawing.draw(index).image for index in range(_N_SYNTHETIC)]


def beside(root: Path) -> list[Any]:
    """What real fields show left and right of their digits, where that is wide enough."""
    found = []
    for field in load_orand(root):
        if not field.boxes:
            continue
        left = int(min(box.left_px for box in field.boxes)) - _MARGIN_PX
        right = int(max(box.left_px + box.width_px for box in field.boxes)) + _MARGIN_PX
        found += [part for part in (field.image[:, : max(left, 0)], field.image[:, right:]) if part.shape[1] >= _LEAST_PX]
    return found


def bare() -> list[Any]:
    """White, grey and black, high and wide."""
    shapes = ((48, 96), (60, 300), (40, 900), (1, 1))
    return [np.full(shape, level, np.uint8) for shape in shapes for level in (0, 128, 255)]


@benchmark("reader_voids", packages=("onnxruntime-gpu", "numpy", "pillow"))
@click.option("--model", type=click.Path(path_type=Path, exists=True, file_okay=False), default=_MODEL, show_default=True)
def command(model: Path) -> Iterator[Figure]:
    """Read fields that hold no amount with the shipped check reader."""
    data = os.environ.get("CONVOY_DATA")
    if not data or not (Path(data) / "orand_car_a").is_dir() or not (Path(data) / "trashnet").is_dir():
        raise DataError("expected orand_car_a and trashnet in $CONVOY_DATA, found no such folders.")
    photos: Sequence[Any] = sorted((Path(data) / "trashnet").rglob("*.jpg"))
    photos = photos[:: max(1, len(photos) // _MOST_PHOTOS)]
    kinds = {
        "synthetic voids": synthetic(),
        "beside the digits of real fields": beside(Path(data) / "orand_car_a"),
        "photos": photos,
        "bare images": bare(),
    }
    for kind, images in kinds.items():
        empty, accepted = read(Bundle.open(model), images)
        n = len(images)
        share, low, high = (100 * value for value in wilson(accepted, n))
        yield Figure(name=f"{kind}: how many", value=n)
        yield Figure(name=f"{kind}: nothing is read", value=100 * empty / n, unit="%")
        yield Figure(name=f"{kind}: an amount is accepted", value=share, low=low, high=high, unit="%")


def read(bundle: Bundle, images: Sequence[Any]) -> tuple[int, int]:
    """How often nothing is read, and how often an amount is accepted."""
    session = onnxruntime.InferenceSession(str(bundle.model_path))
    reading = bundle.manifest.reading
    assert reading is not None
    n_empty = n_accepted = 0
    for image in images:
        field = to_field(image, bundle.manifest.image)
        feed = {"image": field.pixels[None], WIDTH_NAME: np.array([[field.width_px]], np.int64)}
        n_characters, confidence = session.run([N_CHARACTERS_NAME, CONFIDENCE_NAME], feed)
        is_empty = n_characters[0, 0] == 0
        n_empty += int(is_empty)
        n_accepted += int(not is_empty and reading.accept is not None and confidence[0, 0] >= reading.accept.threshold)
    return n_empty, n_accepted


if __name__ == "__main__":
    command()
