"""Real amount fields: grey images with the digits that they show, and folds that keep a writer on one side."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import DataError, ImageError
from convoy.contract.image import open_flat

_AMOUNTS: Final = "amounts.csv"
_BOXES: Final = "digit_boxes.json"
_DIGITS: Final = re.compile(r"[0-9]+")
_TEN: Final = "0123456789"
_MOST_NAMED: Final = 5
_EXPORT_SUFFIX: Final = re.compile(r"_(?:png|jpe?g)\.rf\.[0-9a-f]+$")  # what Roboflow's export adds to a name
GAP: Final = 20
"""Fields left out between training and test, on each side: 40 of 1,080.

In ORAND-CAR-A two fields 1 to 5 apart show the same amount in 1.2 % of pairs, 20 apart in 0.3 %, 30 or more apart in 0.1 %; the
contrast of ink correlates by 0.2 up to 15 apart and by 0.12 at 20.
"""


class DigitBox(NamedTuple):
    """A digit and where it stands, in pixels from the top left corner."""

    digit: str
    left_px: float
    top_px: float
    width_px: float
    height_px: float


@dataclass(frozen=True, eq=False)
class Field:
    """One amount.

    Attributes:
        name: The file's, without folder, ending and what an export added.
        image: uint8 (height, width), dark ink on lighter paper.
        digits: Its digits from left to right; points, dashes and signs are not among them.
        boxes: Its digits by eye, from left to right; empty where nobody drew any. The amounts of ORAND-CAR-A were made of its
            boxes: what is wrong in one is wrong in the other.
    """

    name: str
    image: npt.NDArray[np.uint8]
    digits: str
    boxes: tuple[DigitBox, ...] = ()
    text: str = ""

    @property
    def label(self) -> str:
        """What is known of the amount: all of it, or its digits."""
        return self.text or self.digits


@dataclass(frozen=True, eq=False)
class Fields(Sequence[Field]):
    """Amounts, sorted by name.

    Attributes:
        name: The set's name.
        items: The fields.
    """

    name: str
    items: tuple[Field, ...]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Field]:
        return iter(self.items)

    @overload
    def __getitem__(self, key: int, /) -> Field: ...
    @overload
    def __getitem__(self, key: slice, /) -> Fields: ...
    def __getitem__(self, key: int | slice, /) -> Field | Fields:
        return Fields(self.name, self.items[key]) if isinstance(key, slice) else self.items[key]

    def take(self, indices: npt.NDArray[np.intp]) -> Fields:
        """The fields at ``indices``, in their order."""
        return Fields(self.name, tuple(self.items[i] for i in indices.tolist()))


class Fold(NamedTuple):
    """Indices of the fields to learn from and to measure on, intp, each ascending."""

    train: npt.NDArray[np.intp]
    test: npt.NDArray[np.intp]


def load_orand(root: Path, *, boxes: bool = True) -> Fields:
    """ORAND-CAR-A: courtesy amounts of Chilean checks (ICFHR 2014 competition on handwritten digit strings, Diem et al.).

    The folder holds ``amounts.csv`` (columns ``file`` and ``amount``, the digits alone), the images that it names, and
    ``digit_boxes.json`` in the COCO format, whose categories are named by the digits.

    Args:
        root: The folder, such as ``orand_car_a`` in ``CONVOY_DATA``.
        boxes: Read the boxes too.

    Raises:
        DataError: A file is missing or damaged, a label holds more than digits, or a name comes twice.
    """
    labels = _read_amounts(root / _AMOUNTS, digits_alone=True)
    boxed = _read_boxes(root / _BOXES) if boxes else {}
    fields = {}
    for file, digits in labels.items():
        path = root / file
        name = _EXPORT_SUFFIX.sub("", path.stem)
        if name in fields:
            raise DataError(f"{root / _AMOUNTS}: expected each field once, found {name} twice; remove one.")
        if boxes and path.name not in boxed:
            raise DataError(f"{root / _BOXES}: expected the image {path.name}, found none of this name.")
        fields[name] = Field(name, _read_image(path), digits, boxed.get(path.name, ()))
    return Fields(root.name, tuple(fields[name] for name in sorted(fields)))


def load_fields(root: Path) -> Fields:
    """A person's own fields.

    The folder holds ``amounts.csv`` (columns ``file`` and ``amount``) and the images that it names. An amount of digits alone
    says nothing of the signs and separators that are written; any other is taken to be the amount as it is written.

    Args:
        root: The folder.

    Raises:
        DataError: A file is missing or damaged, an amount has no digit, or a file comes twice.
    """
    amounts = sorted(_read_amounts(root / _AMOUNTS, digits_alone=False).items())
    if missing := [file for file, _ in amounts if not (root / file).is_file()]:
        some = ", ".join(missing[:_MOST_NAMED]) + (", ..." if len(missing) > _MOST_NAMED else "")
        raise DataError(f"{root / _AMOUNTS}: expected the files that it names, found {len(missing):,} missing: {some}.")
    fields = []
    for file, amount in amounts:
        digits = "".join(character for character in amount if character in _TEN)
        fields.append(Field(file, _read_image(root / file), digits, text="" if amount == digits else amount))
    return Fields(root.name, tuple(fields))


def block_folds(fields: Sequence[Field], k: int, seed: int = 0, *, gap: int = GAP) -> tuple[Fold, ...]:
    """Folds for cross-validation whose test parts are blocks of neighbours.

    Neighbouring numbers of real fields share writers, often the very amount, so that a random fold measures what the model
    remembers. Here each test part is a run of the sorted names, and ``gap`` fields on each side of it are in neither part, as
    a writer's run may go on across the border. Each field is in exactly one test part.

    Args:
        fields: Sorted by name.
        k: How many folds, 2 or more.
        seed: Moves the borders between blocks by up to a quarter of a block, for repeated cross-validation; 0 leaves them.
        gap: Fields left out on each side.

    Raises:
        DataError: The names are not sorted, or there are too few fields for so many folds with such gaps.
    """
    n = len(fields)
    names = [field.name for field in fields]
    if names != sorted(names):
        raise DataError("expected fields sorted by name, as neighbours share writers; found another order: sort them.")
    if k < 2 or gap < 0 or n < k or n <= -(-n // k) * 3 // 2 + 2 * gap:
        raise DataError(f"expected 2 folds or more with fields left to learn from, found {n:,} fields, k={k}, gap={gap}.")
    borders = np.linspace(0, n, k + 1)
    if seed:
        borders[1:-1] += np.random.default_rng(seed).uniform(-0.25, 0.25, k - 1) * n / k
    cuts = np.rint(borders).astype(np.intp)
    every = np.arange(n, dtype=np.intp)
    return tuple(
        Fold(every[(every < start - gap) | (every >= stop + gap)], every[start:stop])
        for start, stop in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)
    )


def _read_amounts(path: Path, *, digits_alone: bool) -> dict[str, str]:
    """The amounts by file, as the file names them; each has a digit at least, or nothing but digits."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets put a mark before the header
            table = csv.reader(file)
            rows = [(table.line_num, [cell.strip() for cell in row]) for row in table if any(map(str.strip, row))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: expected a readable table of files and amounts: {error}") from error
    if not rows or rows[0][1] != ["file", "amount"]:
        raise DataError(f"{path}: expected the header file,amount, found {','.join(rows[0][1]) if rows else 'an empty file'}.")
    labels: dict[str, str] = {}
    for line, row in rows[1:]:
        if len(row) != 2 or not row[0]:
            raise DataError(f"{path}, line {line}: expected a file and an amount, found {','.join(row)!r}.")
        file_name, digits = row
        if digits_alone and not _DIGITS.fullmatch(digits):
            raise DataError(f"{path}, line {line}: expected an amount of the digits 0 to 9 alone, found {digits!r}.")
        if not any(character in _TEN for character in digits):
            raise DataError(f"{path}, line {line}: expected an amount with digits, found {digits!r}.")
        if file_name in labels:
            raise DataError(f"{path}, line {line}: expected each file once, found {file_name} again.")
        labels[file_name] = digits
    if not labels:
        raise DataError(f"{path}: expected amounts below the header, found none.")
    return labels


def _read_image(path: Path) -> npt.NDArray[np.uint8]:
    """Grey, upright and without transparency, as a client reads it."""
    try:
        return np.array(open_flat(path, 1), dtype=np.uint8)
    except ImageError as error:
        raise DataError(str(error)) from error


def _read_boxes(path: Path) -> dict[str, tuple[DigitBox, ...]]:
    """The boxes by the name of the image's file, from left to right."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected a readable file of COCO annotations: {error}") from error
    try:
        digits = {category["id"]: str(category["name"]) for category in found["categories"]}
        files = {image["id"]: str(image["file_name"]) for image in found["images"]}
        boxes: dict[str, list[DigitBox]] = {file: [] for file in files.values()}
        for annotation in found["annotations"]:
            boxes[files[annotation["image_id"]]].append(_box(digits[annotation["category_id"]], annotation["bbox"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: expected categories, images and annotations of COCO, digits with boxes of four numbers; "
            f"found something else: {type(error).__name__}: {error}"
        ) from error
    return {file: tuple(sorted(those, key=lambda box: box.left_px)) for file, those in boxes.items()}


def _box(digit: str, numbers: Any) -> DigitBox:
    left, top, width, height = (float(number) for number in numbers)
    if not (len(digit) == 1 and _DIGITS.fullmatch(digit) and np.isfinite((left, top)).all() and width > 0 and height > 0):
        raise ValueError(f"{digit!r} at {numbers}")
    return DigitBox(digit, left, top, width, height)
