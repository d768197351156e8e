"""From images of fields to what a network takes that is swept over them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from convoy.contract.errors import ImageError
from convoy.contract.field import Box, FieldPixels, to_field
from convoy.contract.image import ImageSpec

SPEC = ImageSpec(height_px=8, width_px=64, channels=1, resize="height", widths_px=(16, 32, 64))


def writing(width: int = 30, height: int = 8) -> np.ndarray:
    """Something that looks another way from each side."""
    return np.linspace(0, 255, width * height).reshape(height, width).astype(np.uint8)


def shown(field: FieldPixels) -> np.ndarray:
    return field.pixels[:, : field.width_px, 0]


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@given(width=st.integers(1, 400), height=st.integers(1, 60))
def test_any_field_comes_to_the_models_height_and_the_narrowest_width_that_holds_it(width: int, height: int) -> None:
    image = writing(width, height)
    if round(width * 8 / height) > 64:
        with pytest.raises(ImageError, match="at most 8 times as wide as high"):
            to_field(image, SPEC)
        return
    field = to_field(image, SPEC)
    assert field.width_px == max(1, round(width * 8 / height))
    assert field.pixels.shape == (8, min(bucket for bucket in SPEC.widths_px if bucket >= field.width_px), 1)
    assert field.pixels.dtype == np.uint8
    assert not field.pixels[:, field.width_px :].any()
    assert round(field.width_px / field.scale) == width
    assert field.left_px == 0


def test_a_field_of_the_models_height_is_left_as_it_is() -> None:
    assert (shown(to_field(writing(), SPEC)) == writing()).all()


@given(
    box=st.tuples(st.integers(-2, 42), st.integers(-2, 22), st.integers(-1, 45), st.integers(-1, 25)),
)
def test_a_box_is_cut_out_or_refused(box: tuple[int, int, int, int]) -> None:
    form = np.random.default_rng(0).integers(0, 256, (20, 40), dtype=np.uint8)
    left, top, width, height = box
    inside = left >= 0 and top >= 0 and width > 0 and height > 0 and left + width <= 40 and top + height <= 20
    if not inside:
        with pytest.raises(ImageError, match="on the image of 40x20 pixels"):
            to_field(form, SPEC, box)
    elif round(width * 8 / height) > 64:
        with pytest.raises(ImageError, match="times as wide as high"):
            to_field(form, SPEC, box)
    else:
        field, cut = to_field(form, SPEC, Box(*box)), to_field(form[top : top + height, left : left + width], SPEC)
        assert (field.pixels == cut.pixels).all()
        assert (field.width_px, field.scale, field.left_px) == (cut.width_px, cut.scale, left)


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_a_photograph_that_lies_on_its_side_is_read_upright_and_boxes_are_those_of_what_is_seen(
    orientation: int, turns: int
) -> None:
    lying = np.rot90(writing(), -turns)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(lying)), exif=exif)
    assert (shown(to_field(data, SPEC)) == writing()).all()
    assert (shown(to_field(data, SPEC, Box(10, 0, 12, 8))) == writing()[:, 10:22]).all()


def test_light_ink_on_dark_is_left_to_the_graph() -> None:
    assert (shown(to_field(255 - writing(), SPEC)) == 255 - writing()).all()


def test_colour_sixteen_bits_and_transparency_become_grey() -> None:
    grey = Image.fromarray(writing())
    assert (shown(to_field(grey.convert("RGB"), SPEC)) == writing()).all()
    deep = Image.fromarray(writing().astype(np.uint16) << 8)
    assert (shown(to_field(encoded(deep), SPEC)) == writing()).all()
    ink = Image.new("RGBA", (30, 8), (0, 0, 0, 0))
    ink.paste((0, 0, 0, 255), (0, 0, 10, 8))
    found = shown(to_field(encoded(ink), SPEC))
    assert (found[:, :10] == 0).all()
    assert (found[:, 10:] == 255).all()


def test_a_single_pixel_is_a_field() -> None:
    field = to_field(np.array([[77]], np.uint8), SPEC)
    assert (field.width_px, field.scale) == (8, 8)
    assert (shown(field) == 77).all()


def test_an_image_that_is_empty_damaged_or_far_too_wide_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "field.png"
    path.touch()
    with pytest.raises(ImageError, match=r"field\.png: expected an image"):
        to_field(path, SPEC)
    path.write_bytes(encoded(Image.fromarray(writing()))[:-30])
    with pytest.raises(ImageError, match=r"field\.png: cannot be read"):
        to_field(path, SPEC)
    Image.fromarray(writing(10_000, 20)).save(path)
    with pytest.raises(ImageError, match=r"field\.png: .* at most 8 times as wide as high, found 10000x20 pixels\.") as caught:
        to_field(path, SPEC)
    assert str(caught.value).endswith("Cut the amount out, or say where it is (box in Python, --box on the command line).")
    assert to_field(path, SPEC, Box(9_900, 0, 100, 20)).left_px == 9_900
    for array in (np.zeros((0, 5), np.uint8), np.zeros((5, 5), np.float32)):
        with pytest.raises(ImageError, match="expected an image array"):
            to_field(array, SPEC)
