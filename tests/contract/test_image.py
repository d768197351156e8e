"""From any image to a model's pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from convoy.contract.errors import ImageError
from convoy.contract.image import ImageSpec, to_pixels

GREY = ImageSpec(height_px=28, width_px=28, channels=1)
RGB = ImageSpec(height_px=20, width_px=30, channels=3)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_an_image_of_the_models_size_is_left_as_it_is(tmp_path):
    pixels = noise(28, 28)
    path = tmp_path / "digit.png"
    Image.fromarray(pixels).save(path)
    for form in (path, str(path), path.read_bytes(), Image.open(path), pixels, pixels[..., None]):
        np.testing.assert_array_equal(to_pixels(form, GREY)[..., 0], pixels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
@pytest.mark.parametrize("spec", [GREY, RGB])
def test_every_mode_of_pil_becomes_the_models_pixels(mode, spec):
    pixels = to_pixels(Image.new(mode, (50, 33)), spec)
    assert pixels.shape == spec.dims
    assert pixels.dtype == np.uint8


def test_transparency_is_paper():
    for colour in ((0, 0, 0, 0), (255, 255, 255, 0)):
        assert to_pixels(Image.new("RGBA", (28, 28), colour), GREY).min() == 255


def ink(luminance: int, *, mode: str = "RGBA") -> bytes:
    """A stroke on a transparent page, its edge half transparent."""
    image = Image.new("RGBA", (28, 28), (255 - luminance,) * 3 + (0,))
    image.paste((luminance,) * 3 + (128,), (9, 4, 19, 24))
    image.paste((luminance,) * 3 + (255,), (10, 4, 18, 24))
    return png(image.convert(mode))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize(("luminance", "paper"), [(0, 255), (100, 255), (127, 255), (128, 0), (200, 0), (255, 0)])
def test_ink_on_a_transparent_page_can_be_seen_whether_it_is_dark_or_light(luminance, paper, mode):
    if mode == "P":
        image = Image.open(io.BytesIO(ink(luminance))).quantize(8, method=Image.Quantize.FASTOCTREE)
        assert image.mode == "P"
        assert "transparency" in Image.open(io.BytesIO(png(image))).info
        pixels = to_pixels(png(image), GREY)[..., 0].astype(int)
    else:
        pixels = to_pixels(ink(luminance, mode=mode), GREY)[..., 0].astype(int)
    assert abs(pixels[0, 0] - paper) <= 1
    assert abs(pixels[14, 14] - luminance) <= 1


def test_a_light_page_with_dark_ink_and_a_transparent_margin_gets_a_white_margin():
    image = Image.new("RGBA", (28, 28), (0, 0, 0, 0))
    image.paste((250, 250, 250, 255), (4, 4, 24, 24))
    image.paste((10, 10, 10, 255), (12, 8, 14, 18))
    pixels = to_pixels(png(image), GREY)[..., 0]
    assert pixels[0, 0] == 255
    assert pixels[12, 13] == 10


def test_sixteen_bits_keep_their_upper_eight():
    deep = (noise(28, 28).astype(np.uint16) << 8) + 77
    np.testing.assert_array_equal(to_pixels(png(Image.fromarray(deep)), GREY)[..., 0], deep >> 8)


def test_fit_keeps_the_aspect_ratio_and_pads_with_the_border():
    image = np.full((10, 40), 200, np.uint8)
    image[4:6, 10:30] = 0
    pixels = to_pixels(image, GREY)[..., 0]
    assert (pixels[:10] == 200).all()
    assert (pixels[18:] == 200).all()
    assert pixels.min() < 100


def test_crop_and_stretch_fill_the_frame():
    image = np.zeros((10, 40), np.uint8)
    image[:, :15] = 255
    crop = to_pixels(image, GREY.model_copy(update={"resize": "crop"}))[..., 0]
    stretch = to_pixels(image, GREY.model_copy(update={"resize": "stretch"}))[..., 0]
    assert crop[:, 5:].max() < 128
    assert stretch[:, :8].min() > 200
    assert stretch[:, 15:].max() < 60


def test_a_photo_is_turned_upright():
    image = Image.fromarray(np.concatenate([np.zeros((14, 28), np.uint8), np.full((14, 28), 255, np.uint8)]))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    assert to_pixels(buffer.getvalue(), GREY)[0].mean() > 200


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_the_smallest_and_the_thinnest_images_work(size):
    assert to_pixels(Image.new("L", size, 90), GREY).shape == (28, 28, 1)


@pytest.mark.parametrize(
    ("hostile", "message"),
    [
        (b"", r"the image: expected an image, found empty data \(zero bytes\)"),
        (io.BytesIO(), r"the image: expected an image, found empty data \(zero bytes\)"),
        (b"not an image at all", "expected an image"),
        (png(Image.fromarray(noise(200, 200)))[:9000], "truncated"),
        (np.zeros((4, 4), np.float32), "uint8"),
        (np.zeros((0, 4), np.uint8), "uint8"),
        (np.zeros((4, 4, 2), np.uint8), "uint8"),
    ],
)
def test_what_is_not_an_image_is_refused(hostile, message):
    with pytest.raises(ImageError, match=message):
        to_pixels(hostile, GREY)


def test_a_path_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"nothing\.png: no such file"):
        to_pixels(tmp_path / "nothing.png", GREY)
    with pytest.raises(ImageError, match="found a folder"):
        to_pixels(tmp_path, GREY)
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match=r"empty\.png: expected an image, found an empty file \(zero bytes\)\.$"):
        to_pixels(tmp_path / "empty.png", GREY)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr("convoy.contract.image.MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="pixels are more than"):
        to_pixels(png(Image.new("L", (100, 100))), GREY)
