from __future__ import annotations

import pytest
import torch
from torch import Tensor

from convoy.training.data import Augment, Dataset
from convoy.training.data.augmentation import geometry
from convoy.training.recipes import Augmentation


def augment(amounts: Augmentation, images: Tensor, seed: int = 0) -> Tensor:
    return Augment(amounts, torch.Generator().manual_seed(seed))(images)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def fields(amounts: Augmentation, n: int, height: int, width: int) -> Tensor:
    """Displacements along x and y in pixels: (N, H, W, 2)."""
    drawn = geometry.draw_elastic(amounts, n, height, width, torch.Generator().manual_seed(0))
    return geometry._field(drawn, amounts, height, width).permute(0, 2, 3, 1) * torch.tensor([width / 2, height / 2])


@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0, 20.0])
def test_elastic_displacements_have_the_asked_deviation_at_every_pixel(sigma: float) -> None:
    field = fields(Augmentation(elastic_px=1.5, elastic_sigma_px=sigma), 4000, 20, 28)
    assert field.shape == (4000, 20, 28, 2)
    assert field.mean(dim=0).abs().max() < 0.12  # five standard errors
    deviation = field.std(dim=0)
    # borders and corners included: nothing is damped there
    assert (deviation - 1.5).abs().max() < 0.1


def test_elastic_displacements_are_as_smooth_as_a_gaussian_of_sigma_makes_noise() -> None:
    # white noise under a Gaussian of sigma is correlated by exp(-d^2 / (4 sigma^2)) at distance d
    field = fields(Augmentation(elastic_px=1.0, elastic_sigma_px=4.0), 4000, 28, 28)
    for distance in (1, 4, 8, 12):
        expected = torch.tensor(-(distance**2) / 64).exp().item()
        for one, other in ((field[:, :, :-distance], field[:, :, distance:]), (field[:, :-distance], field[:, distance:])):
            correlation = (one * other).mean(dim=0) / (one.std(dim=0) * other.std(dim=0))
            assert correlation.mean().item() == pytest.approx(expected, abs=0.02)
    x, y = field[..., 0], field[..., 1]
    assert ((x * y).mean(dim=0)).abs().max() < 0.1  # along x and along y are independent


def test_elastic_distortion_bends_images_and_not_their_amount_of_ink(digits: Dataset) -> None:
    images = torch.from_numpy(digits.train.images[:64])
    bent = augment(Augmentation(elastic_px=1.4), images)
    assert (bent.int() - images.int()).abs().float().mean() > 5
    ink = bent.double().sum(dim=(1, 2, 3)) / images.double().sum(dim=(1, 2, 3))
    assert 0.95 < ink.mean() < 1.05
    assert torch.equal(augment(Augmentation(elastic_px=1e-9), images), images)


def test_a_padded_crop_is_a_shift_by_whole_pixels_each_equally_often() -> None:
    images = noise(1, 9, 11, 3).expand(4000, -1, -1, -1)
    moved = augment(Augmentation(crop_px=2), images)
    counts = []
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            inner = images[:, 2 + dy : 7 + dy, 2 + dx : 9 + dx]
            counts.append((moved[:, 2:7, 2:9] == inner).flatten(1).all(dim=1).sum().item())
    assert sum(counts) == 4000
    assert min(counts) > 100  # 160 expected, 12 of standard deviation
    assert max(counts) < 220


def test_a_padded_crop_lets_in_the_background() -> None:
    images = torch.full((50, 9, 9, 1), 77, dtype=torch.uint8)
    images[:, 4, 4] = 200
    moved = augment(Augmentation(crop_px=6), images)
    assert set(moved.unique().tolist()) == {77, 200}
    assert (moved == 200).sum(dim=(1, 2, 3)).max() == 1


def test_flips_mirror_and_are_their_own_inverse() -> None:
    images = noise(16, 9, 12, 3)
    always = Augmentation(flip_probability=1.0)
    flipped = augment(always, images)
    assert torch.equal(flipped, images.flip(2))
    assert torch.equal(augment(always, flipped), images)


def test_flips_are_as_often_as_asked() -> None:
    images = noise(1, 4, 4, 1).expand(4000, -1, -1, -1)
    flipped = augment(Augmentation(flip_probability=0.3), images)
    is_flipped = (flipped == images.flip(2)).flatten(1).all(dim=1)
    assert ((flipped == images).flatten(1).all(dim=1) ^ is_flipped).all()
    assert is_flipped.float().mean().item() == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize(("height", "width"), [(40, 40), (20, 60)])
@pytest.mark.parametrize("smallest", [0.08, 0.9])
def test_a_resized_crop_is_a_part_of_the_asked_area_within_the_image(height: int, width: int, smallest: float) -> None:
    # images whose values are their own coordinates tell which part was taken
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    images = torch.stack([x, y], dim=2).to(torch.uint8).expand(500, -1, -1, -1)
    part = augment(Augmentation(crop_area_fraction=smallest), images).float()
    middle = part[:, 8:-8, 8:-8]
    # slopes away from the border, where the background mixes in
    across = (middle[:, 0, -1, 0] - middle[:, 0, 0, 0]) / (middle.shape[2] - 1)
    down = (middle[:, -1, 0, 1] - middle[:, 0, 0, 1]) / (middle.shape[1] - 1)
    area = across * down
    slack = 0.3 if smallest < 0.5 else 0.35  # whole numbers on a few pixels
    assert area.max() <= 1 + slack
    assert area.min() >= smallest * (1 - slack)
    assert area.std() > 0.01
    drawn = torch.rand(2000, 4, generator=torch.Generator().manual_seed(0))
    size, centre = geometry._resized_crop(drawn, Augmentation(crop_area_fraction=smallest))
    assert (size.prod(dim=1) >= smallest - 1e-5).all()
    assert (centre.abs() + size <= 1 + 1e-5).all()
    assert (size[:, 0] / size[:, 1]).max() <= 4 / 3 + 1e-5


def test_a_part_of_the_whole_area_is_the_whole_image() -> None:
    images = noise(8, 12, 12, 1)
    assert torch.equal(augment(Augmentation(crop_area_fraction=1 - 1e-9), images), images)


def test_what_moves_is_resampled_once_however_much_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    resample = geometry.grid_sample
    monkeypatch.setattr(geometry, "grid_sample", lambda *a, **k: calls.append(1) or resample(*a, **k))
    everything = Augmentation(shift_px=2, elastic_px=1, crop_px=2, crop_area_fraction=0.5, flip_probability=0.5)
    augment(everything, noise(8, 12, 12, 1))
    assert len(calls) == 1


def test_maps_are_joined_in_their_order() -> None:
    # moved first, then cropped, then mirrored: what moved right by 3 is mirrored to the left
    images = torch.zeros(1, 21, 21, 1, dtype=torch.uint8)
    images[:, 10, 10] = 255
    amounts = Augmentation(shift_px=3, flip_probability=1)
    distort = Augment(amounts, torch.Generator())
    draws = distort.draw(1, height_px=21, width_px=21)
    assert draws.affine is not None
    draws.affine[:] = torch.tensor([[0, 0, 0, 0, -1.0, 0]])  # the source lies 3 px to the left: it moves right
    assert distort.apply(images, draws)[0, 10, 7] == 255


@pytest.mark.parametrize("size", [1, 2])
def test_the_smallest_images_are_no_exception(size: int) -> None:
    images = noise(4, size, size, 3)
    everything = Augmentation(shift_px=2, elastic_px=1, crop_px=2, crop_area_fraction=0.5, flip_probability=0.5)
    assert augment(everything, images).shape == images.shape
