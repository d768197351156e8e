from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from convoy.contract.errors import DataError, UsageError
from convoy.contract.image import ImageSpec
from convoy.contract.manifest import Preprocessing
from convoy.training.data import Dataset
from convoy.training.networks import PixelPreprocessing, build_classifier
from convoy.training.networks.preprocessing import has_light_border, measure

PLAIN = Preprocessing(polarity="as-is", scale=1 / 255, mean=(0.0,), std=(1.0,))
AUTO = PLAIN.model_copy(update={"polarity": "auto", "mean": (0.1307,), "std": (0.3081,)})


def random_images(n: int, height: int = 28, width: int = 28, channels: int = 1, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, height, width, channels), dtype=np.uint8))


def test_it_equals_the_formula_in_float64() -> None:
    images = random_images(4, 5, 6, 3)
    facts = Preprocessing(polarity="as-is", scale=1 / 255, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    expected = (images.numpy() / 255 - np.array(facts.mean)) / np.array(facts.std)
    actual = PixelPreprocessing(facts)(images)
    assert actual.dtype == torch.float32
    assert actual.shape == (4, 3, 5, 6)
    np.testing.assert_allclose(actual.permute(0, 2, 3, 1).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_double_makes_a_float64_reference() -> None:
    images = random_images(8)
    single, double = PixelPreprocessing(AUTO), PixelPreprocessing(AUTO).double()
    assert double(images).dtype == torch.float64
    torch.testing.assert_close(single(images).double(), double(images), rtol=1e-5, atol=1e-6)


def test_auto_polarity_reads_ink_on_paper_like_light_on_dark(digits: Dataset) -> None:
    images = torch.from_numpy(digits.test.images)
    module = PixelPreprocessing(AUTO)
    assert torch.equal(module(images), module(255 - images))


def test_as_is_polarity_leaves_light_images_alone() -> None:
    white = torch.full((1, 28, 28, 1), 255, dtype=torch.uint8)
    assert PixelPreprocessing(PLAIN)(white).min() == 1.0


def test_a_border_of_exactly_half_is_not_light() -> None:
    pixels = torch.zeros(3, 1, 4, 4)
    pixels[:, :, :, :2] = 255  # the left half: each edge is half light, or one is light and one is dark
    pixels[1, 0, 0, 3] = 1
    pixels[2, 0, 0, 0] = 254
    assert has_light_border(pixels).tolist() == [False, True, False]


def test_the_decision_does_not_look_at_the_middle() -> None:
    pixels = torch.zeros(1, 3, 9, 7)
    pixels[:, :, 1:-1, 1:-1] = 255
    assert has_light_border(pixels).tolist() == [False]
    assert has_light_border(255 - pixels).tolist() == [True]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (5, 1), (2, 2)])
def test_the_smallest_images_have_a_border_too(height: int, width: int) -> None:
    pixels = torch.full((1, 1, height, width), 255.0)
    assert has_light_border(pixels).tolist() == [True]
    assert has_light_border(pixels - 255).tolist() == [False]


def test_the_decision_is_exact_in_any_order_of_addition() -> None:
    # 4 edges of 512 values whose sum is one above half: a rounded sum would lose it
    pixels = torch.full((1, 3, 512, 512), 127.0)
    pixels[:, :, ::2, :] = 128
    pixels[:, :, 1:-1, 1:-1] = 0
    on_edges = torch.cat([pixels[:, :, 0], pixels[:, :, -1], pixels[:, :, :, 0], pixels[:, :, :, -1]], dim=2).sum()
    assert on_edges == 127.5 * 3 * 4 * 512
    assert has_light_border(pixels).tolist() == [False]
    pixels[0, 0, 0, 5] += 1
    assert has_light_border(pixels).tolist() == has_light_border(pixels.double()).tolist() == [True]


def test_an_image_does_not_depend_on_the_others_of_its_batch() -> None:
    images = torch.cat([random_images(5), 255 - random_images(5, seed=1) // 4])
    module = PixelPreprocessing(AUTO)
    together = module(images)
    for index in range(len(images)):
        assert torch.equal(together[index], module(images[index : index + 1])[0])


def test_its_constants_are_no_weights() -> None:
    assert PixelPreprocessing(AUTO).state_dict() == {}


def test_measured_constants_give_mean_0_and_deviation_1() -> None:
    images = torch.cat([random_images(7, channels=3), 255 - random_images(6, channels=3) // 2])
    normalised = PixelPreprocessing(measure(images, polarity="auto", batch_size=4)).double()(images)
    assert normalised.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert (normalised.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-4


def test_images_without_contrast_cannot_be_normalised() -> None:
    with pytest.raises(DataError, match="some contrast"):
        measure(torch.full((3, 4, 4, 1), 9, dtype=torch.uint8), polarity="as-is")


def test_constants_for_other_channels_are_refused() -> None:
    facts = PLAIN.model_copy(update={"mean": (0.0,) * 3, "std": (1.0,) * 3})
    with pytest.raises(UsageError, match="each of 1 channels, found 3 and 3"):
        build_classifier("lenet5", image=ImageSpec(height_px=28, width_px=28, channels=1), n_classes=10, preprocessing=facts)


@pytest.mark.filterwarnings("default")  # the exporter's own deprecations are not ours
def test_it_exports_with_a_dynamic_batch_axis(tmp_path: Path, digits: Dataset) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    module = PixelPreprocessing(AUTO).eval()
    images = digits.test.images[:7].copy()
    images[::2] = 255 - images[::2]
    program = torch.onnx.export(
        module,
        (torch.from_numpy(images[:2]),),
        dynamo=True,
        opset_version=21,
        dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1, max=64)}},
        input_names=["image"],
        verbose=False,
    )
    assert program is not None
    program.save(str(tmp_path / "model.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for n in (1, 7):
        (actual,) = session.run(None, {"image": images[:n]})
        np.testing.assert_allclose(actual, module(torch.from_numpy(images[:n])).numpy(), rtol=0, atol=1e-6)
