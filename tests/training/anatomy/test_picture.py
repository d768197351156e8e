from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from torch import nn

from convoy.contract.errors import UsageError
from convoy.training.anatomy import examine, outline
from convoy.training.anatomy.picture import draw_fields, sample_image
from convoy.training.networks import LeNet5


def test_a_panel_is_drawn_for_each_map() -> None:
    anatomy = examine(LeNet5, channels=1, height_px=28, width_px=28)
    picture = Image.open(io.BytesIO(draw_fields(anatomy, outline(anatomy), title="lenet5")))
    assert picture.format == "PNG"
    frame = (np.asarray(picture.convert("RGB")) == (0xC2, 0x41, 0x0C)).all(axis=2).any(axis=0)
    starts = int(np.count_nonzero(np.diff(frame.astype(int)) == 1))
    assert starts == 4  # a frame in each of four panels


@pytest.mark.parametrize(("height_px", "width_px", "channels"), [(28, 28, 1), (48, 32, 3), (32, 317, 1), (40, 4, 1)])
def test_the_image_has_the_size_that_is_asked_for(height_px: int, width_px: int, channels: int) -> None:
    image = sample_image(height_px, width_px, channels)
    assert (image.shape, image.dtype) == ((height_px, width_px, channels), np.uint8)
    assert image.std() > 20


def test_a_network_without_maps_cannot_be_drawn() -> None:
    anatomy = examine(lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), channels=1, height_px=28, width_px=28)
    with pytest.raises(UsageError, match="found none"):
        draw_fields(anatomy, outline(anatomy), title="linear")
