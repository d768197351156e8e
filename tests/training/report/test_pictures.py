from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from torch import nn

from convoy.contract.image import ImageSpec
from convoy.training.loop import EpochRecord
from convoy.training.report.confusion import draw_confusion
from convoy.training.report.curves import draw_curves
from convoy.training.report.exhibits import Mistake
from convoy.training.report.filters import draw_filters, first_layer
from convoy.training.report.mistakes import draw_mistakes
from convoy.training.report.pictures import draw_pictures
from convoy.training.report.predictions import Predictions
from convoy.training.report.reliability import draw_reliability
from convoy.training.run import TrainedRun


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def share_of(picture: np.ndarray, colour: tuple[int, int, int], within: int = 40) -> float:
    return float((np.abs(picture - colour).max(axis=2) <= within).mean())


@pytest.fixture(scope="module")
def pictures(trained: TrainedRun) -> dict[str, bytes]:
    return draw_pictures(trained)


def test_a_run_has_six_pictures(pictures: dict[str, bytes]) -> None:
    assert sorted(pictures) == ["augmentation.png", "calibration.png", "confusion.png", "curves.png", "filters.png", "mistakes.png"]
    for png in pictures.values():
        picture = pixels(png)
        assert 400 < picture.shape[1] < 1600
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


def test_what_is_not_there_to_see_is_not_drawn(trained: TrainedRun, pictures: dict[str, bytes]) -> None:
    bare = replace(trained, exhibits=replace(trained.exhibits, mistakes=(), augmented=None))
    assert pictures.keys() - draw_pictures(bare).keys() == {"mistakes.png", "augmentation.png"}


def test_the_same_run_gives_the_same_pictures(trained: TrainedRun, pictures: dict[str, bytes]) -> None:
    assert draw_pictures(trained) == pictures


@pytest.mark.parametrize("n", [2, 6, 10, 21, 100, 400])
def test_the_confusion_matrix_fits_a_page_for_any_number_of_classes(n: int) -> None:
    rng = np.random.default_rng(n)
    confusion = np.diag(np.full(n, 5000)) + rng.integers(0, 2, (n, n))
    names = [f"a class with a name that is rather long, number {i}" for i in range(n)]
    picture = pixels(draw_confusion(confusion, names, title="Confusion"))
    assert 500 < picture.shape[0] < 1400
    assert 500 < picture.shape[1] < 1400
    assert share_of(picture, (8, 48, 107), 12) > 0.5 / n * 0.3  # the diagonal, in the darkest blue


def test_a_mistake_in_a_hundred_can_be_seen() -> None:
    right = np.diag([300, 300, 300])
    wrong = right.copy()
    wrong[0, 2] = 3
    clean, seen = (pixels(draw_confusion(matrix, ["a", "b", "c"], title="t")) for matrix in (right, wrong))
    assert clean.shape == seen.shape
    assert (np.abs(clean - seen).max(axis=2) > 15).mean() > 0.01  # a whole cell, not the digit in it alone


def test_a_class_without_images_is_drawn() -> None:
    draw_confusion(np.array([[0, 0], [1, 5]]), ["a", "b"], title="t")


@pytest.mark.parametrize("name", ["$x^2$", "$", r"\frac{", "分類", "line\nbreak", "", "a" * 300, "<b>"])
def test_class_names_are_drawn_letter_by_letter(name: str) -> None:
    draw_confusion(np.diag([3, 4]), [name, "other"], title=name)
    image = np.zeros((28, 28, 1), dtype=np.uint8)
    draw_mistakes([Mistake(0, image, name, "other", 0.5)], title=name)


@pytest.mark.parametrize("shape", [(28, 28, 1), (1, 1, 3), (192, 256, 3), (700, 9, 1), (8, 300, 3)])
def test_images_of_any_size_fit_the_contact_sheet(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, *shape), dtype=np.uint8)
    sheet = pixels(draw_mistakes([Mistake(i, image, "cat", "dog", 0.9) for i, image in enumerate(images)], title="t"))
    assert sheet.shape[1] < 1200
    assert sheet.shape[0] < 1200
    one = pixels(draw_mistakes([Mistake(0, images[0], "cat", "dog", 0.9)], title="t"))
    assert one.shape[0] < sheet.shape[0]


def test_the_sheet_shows_the_pixels_as_they_are() -> None:
    image = np.zeros((2, 2, 3), dtype=np.uint8)
    image[0, 0], image[1, 1] = (255, 0, 0), (0, 0, 255)
    sheet = pixels(draw_mistakes([Mistake(0, image, "cat", "dog", 0.9)], title="t"))
    tile = sheet[44:164, 16:136]
    for quarter, colour in ((tile[:60, :60], (255, 0, 0)), (tile[60:, 60:], (0, 0, 255)), (tile[:60, 60:], (0, 0, 0))):
        assert share_of(quarter, colour, 0) == 1


def test_the_weights_that_touch_the_pixels_are_found() -> None:
    grey, colour = ImageSpec(height_px=6, width_px=5, channels=1), ImageSpec(height_px=6, width_px=5, channels=3)
    conv = nn.Sequential(nn.Identity(), nn.Conv2d(3, 4, (3, 2)), nn.Conv2d(4, 4, 1))
    weights = first_layer(conv, colour)
    assert weights is not None
    assert weights.shape == (4, 3, 2, 3)
    assert weights[2, 0, 1, 2] == conv[1].weight[2, 2, 0, 1].item()
    dense = nn.Sequential(nn.Flatten(), nn.Linear(30, 7), nn.Linear(7, 2))
    weights = first_layer(dense, grey)
    assert weights is not None
    assert weights.shape == (7, 6, 5, 1)
    assert weights[3, 2, 4, 0] == dense[1].weight[3, 2 * 5 + 4].item()
    assert first_layer(conv, grey) is None
    assert first_layer(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)), colour) is None
    assert first_layer(nn.Flatten(), grey) is None


def test_filters_are_red_above_zero_blue_below_and_white_at_it() -> None:
    weights = np.zeros((1, 3, 1, 1), dtype=np.float32)
    weights[0, 0], weights[0, 2] = 0.002, -0.002  # small weights show as large ones do
    column = pixels(draw_filters(weights, title="t"))[44:164, 16:56]
    assert share_of(column[:39], (178, 24, 43), 2) == 1
    assert share_of(column[41:79], (255, 255, 255), 2) == 1
    assert share_of(column[81:119], (33, 102, 172), 2) == 1
    pixels(draw_filters(np.zeros((300, 28, 28, 1), dtype=np.float32), title="dead"))


def test_the_reliability_diagram_has_a_second_half_where_there_is_a_temperature() -> None:
    rng = np.random.default_rng(0)
    predictions = Predictions(rng.normal(0, 3, (200, 10)).astype(np.float32), rng.integers(0, 10, 200))
    one, two = (pixels(draw_reliability(predictions, temperature, title="t")) for temperature in (1.0, 2.5))
    assert two.shape[1] == pytest.approx(2 * one.shape[1], rel=0.02)
    assert share_of(one, (194, 65, 12)) > 0.001  # the gap is marked
    single = Predictions(np.array([[9.0, 0.0]], dtype=np.float32), np.array([0]))
    pixels(draw_reliability(single, 1.0, title="one image"))


@pytest.mark.parametrize("n_epochs", [1, 3, 60])
def test_curves_are_drawn_for_any_number_of_epochs_and_errors_of_nothing(n_epochs: int) -> None:
    history = [
        EpochRecord(
            epoch=epoch, train_loss=2 / epoch, train_top1_error=0.0, validation_loss=3 / epoch, validation_top1_error=0.0,
            learning_rate=0.1, seconds=1.0,
        )
        for epoch in range(1, n_epochs + 1)
    ]  # fmt: skip
    assert pixels(draw_curves(history, best_epoch=n_epochs, test_top1_error=0.0, title="t")).shape[:2] == (528, 1320)
