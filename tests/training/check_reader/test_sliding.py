from __future__ import annotations

import numpy as np
import pytest
import torch

from convoy.contract.errors import UsageError
from convoy.training.check_reader.building import build_network
from convoy.training.check_reader.sliding import ResidualSliding, SlidingLeNet5, SlidingNetwork
from convoy.training.check_reader.standardising import FieldStandardising, frames_within
from convoy.training.networks.lenet5 import LeNet5
from convoy.training.recipes.reader import READER_RECIPES

NETWORKS = {
    "lenet5": lambda: SlidingLeNet5(12),
    "lenet5 with batch norm": lambda: SlidingLeNet5(12, batch_norm=True),
    "residual": lambda: ResidualSliding(12, channels=(8, 12, 16, 20)),
}


def made(name: str) -> SlidingNetwork:
    """A network whose batch norms have seen something."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    network.train()
    with torch.no_grad():
        network(torch.randn(8, 1, network.height_px, 96), torch.full((8,), 96))
    return network.eval()


def image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (1, height, width, 1), np.uint8))


@pytest.mark.parametrize("size", [28, 32])
def test_on_a_window_the_swept_network_is_the_classifier(size: int) -> None:
    torch.manual_seed(1)
    classifier = LeNet5(10, padding=(32 - size) // 2).eval()
    swept = SlidingLeNet5.from_classifier(classifier, [None, *range(10)]).eval()
    digits = torch.randn(5, 1, size, size)
    windows = torch.nn.functional.pad(digits, ((32 - size) // 2,) * 4)
    with torch.no_grad():
        found = swept.window(windows)
        assert found.shape == (5, 11, 1, 1)
        assert torch.allclose(found[:, 1:, 0, 0], classifier(digits), atol=1e-5)


def test_on_a_field_each_frame_is_the_classifier_on_its_window() -> None:
    torch.manual_seed(2)
    swept = SlidingLeNet5.from_classifier(LeNet5(10).eval(), list(range(10))).eval()
    field = torch.randn(2, 1, 32, 80)
    padded = torch.nn.functional.pad(field, (14, 17))
    with torch.no_grad():
        frames = swept(field, torch.tensor([80, 80]))
        assert frames.shape == (2, 20, 10)
        for place in range(20):
            alone = swept.window(padded[:, :, :, 4 * place : 4 * place + 32])[:, :, 0, 0]
            assert torch.allclose(frames[:, place], alone, atol=1e-5)


def test_another_network_is_refused() -> None:
    with pytest.raises(UsageError, match="grey digits"):
        SlidingLeNet5.from_classifier(LeNet5(10, channels=3), [None])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("width", [1, 3, 4, 31, 60, 96])
def test_padding_changes_no_score(name: str, width: int) -> None:
    network, standardising = made(name), FieldStandardising()
    field, columns = image(network.height_px, width), torch.tensor([width])
    n_frames = int(frames_within(columns, 4))
    found = []
    with torch.no_grad():
        for padding, level in ((-width % 4, 0), (-width % 4 + 64, 0), (-width % 4 + 200, 255)):
            padded = torch.nn.functional.pad(field, (0, 0, 0, padding), value=level)
            scores = network(standardising(padded, columns), columns)
            assert scores.shape == (1, (width + padding) // 4, 12)
            found.append(scores[:, :n_frames])
    assert torch.allclose(found[0], found[1], atol=1e-5)
    assert torch.allclose(found[0], found[2], atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_company_changes_no_score(name: str) -> None:
    network = made(name)
    widths = torch.tensor([96, 40, 7])
    fields = torch.cat([image(network.height_px, 96, seed) for seed in range(3)])
    with torch.no_grad():
        together = network(FieldStandardising()(fields, widths), widths)
        for row, width in enumerate(widths.tolist()):
            alone = network(FieldStandardising()(fields[row : row + 1], widths[row : row + 1]), widths[row : row + 1])
            n_frames = -(-width // 4)
            assert torch.allclose(together[row, :n_frames], alone[0, :n_frames], atol=1e-5)


def test_light_and_dark_faint_and_strong_ink_look_alike() -> None:
    generator = np.random.default_rng(3)
    ink = (generator.random((1, 32, 64, 1)) < 0.15).astype(np.float64)
    width = torch.tensor([64])

    def seen(levels: np.ndarray) -> torch.Tensor:
        return FieldStandardising()(torch.from_numpy(levels.astype(np.uint8)), width)

    dark, light, faint = seen(230 - 200 * ink), seen(20 + 200 * ink), seen(200 - 50 * ink)
    assert torch.allclose(dark, light, atol=1e-4)
    assert torch.allclose(dark, faint, atol=1e-4)
    assert dark.mean().abs() < 1e-5
    assert abs(float(dark.std(unbiased=False)) - 1) < 1e-5
    assert dark.max() > 2


@pytest.mark.parametrize("level", [0, 7, 255])
def test_empty_paper_stays_empty(level: int) -> None:
    field = torch.full((1, 32, 40, 1), level, dtype=torch.uint8)
    assert FieldStandardising()(field, torch.tensor([33])).abs().max() == 0


def test_the_small_recipe_and_the_lectures_network_have_fewer_than_100_000_parameters_the_large_one_fewer_than_a_million() -> None:
    counts = {
        name: sum(parameter.numel() for parameter in build_network(recipe, 21).parameters())
        for name, recipe in READER_RECIPES.items()
    }
    assert counts["check-reader-small"] < 100_000
    assert counts["check-reader-lenet5"] == 61_706 + 11 * 85  # LeNet5 with 21 classes
    assert counts["check-reader"] < 1_000_000


def test_a_height_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UsageError, match="multiple of 8, found 30"):
        ResidualSliding(12, height_px=30)
