"""Folders of small photographs, each one different."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WriteImage = Callable[..., Path]


@pytest.fixture
def write_image(tmp_path: Path) -> WriteImage:
    """Writes an image of random pixels below ``tmp_path``; each call draws others."""
    generator = np.random.default_rng(0)

    def write(name: str, *, size: tuple[int, int] = (12, 8), mode: str = "RGB", level: int = 0) -> Path:
        pixels = generator.integers(level, 256, (size[1], size[0], 3), dtype=np.uint8)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).convert(mode).save(path)
        return path

    return write


@pytest.fixture
def photos(tmp_path: Path, write_image: WriteImage) -> Path:
    """Ten photographs of cats, ten of dogs."""
    for label in ("dog", "cat"):
        for i in range(10):
            write_image(f"photos/{label}/{i}.png")
    return tmp_path / "photos"
