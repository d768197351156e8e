from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from convoy.training.check_reader.building import load_handwriting
from convoy.training.check_reader.field_image import SyntheticFields


@pytest.fixture(scope="session")
def write_fields() -> Callable[[Path, int], Path]:
    """Writes a folder of so many fields as a person has them: images, and a table of their digits."""

    def write(folder: Path, n: int) -> Path:
        drawing = SyntheticFields(load_handwriting("digits"), "digits", 9)
        with (folder / "amounts.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["file", "amount"])
            for index in range(n):
                field = drawing.draw(index)
                Image.fromarray(field.image).save(folder / f"{index:03}.png")
                table.writerow([f"{index:03}.png", field.digits])
        return folder

    return write
