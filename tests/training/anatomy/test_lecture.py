from __future__ import annotations

import pytest
from torch import nn

from convoy.contract.image import ImageSpec
from convoy.training.anatomy import examine
from convoy.training.anatomy.lecture import LECTURE, Comparison, compare
from convoy.training.networks import build_network
from convoy.training.networks.registry import NETWORKS


def two_pools() -> nn.Module:
    """The lecture's convolutional LeNet300 with two pools."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10)),
    )


def no_pool() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 6, 5, padding=2), nn.Flatten(), nn.Linear(4704, 100), nn.Linear(100, 10))


def comparisons(name: str, network: nn.Module) -> dict[str, Comparison]:
    found = compare(name, examine(lambda: network, channels=1, height_px=28, width_px=28), 10)
    assert found is not None
    return {comparison.subject: comparison for comparison in found}


def test_where_the_lecture_is_off_it_is_said_why() -> None:
    found = comparisons("lenet300-conv-pool2", two_pools())
    conv_16 = found["parameters of Conv-16 (5x5)"]
    assert (conv_16.lecture_formula, conv_16.lecture) == ("(5x5 + 1) * 6", "156")
    assert (conv_16.exact_formula, conv_16.exact, conv_16.agrees) == ("16 (5*5*6 + 1)", 2_416, False)
    assert "there are 16, each on 6 channels" in conv_16.remark
    assert {subject for subject, comparison in found.items() if not comparison.agrees} == {conv_16.subject}
    assert found["parameters"].exact == 82_082
    assert found["receptive field behind the last pool, px"].exact == 16

    total = comparisons("lenet300-conv", no_pool())["parameters"]
    assert (total.lecture, total.exact, total.agrees) == ("400k+", 471_666, False)
    assert total.remark


def test_a_network_that_is_not_the_lectures_does_not_pass_for_it() -> None:
    wrong = comparisons("lenet300-conv-pool2", no_pool())
    assert not wrong["parameters"].agrees
    assert not wrong["receptive field behind the last pool, px"].agrees


def test_numbers_are_for_the_lectures_images_and_classes_alone() -> None:
    anatomy = examine(two_pools, channels=1, height_px=28, width_px=28)
    assert compare("lenet300-conv-pool2", anatomy, 26) is None
    assert compare("a network of one's own", anatomy, 10) is None


EXACT = {
    "linear": 7_850,
    "lenet300-1": 238_510,
    "lenet300": 266_610,
    "lenet300-conv": 471_666,
    "lenet300-conv-pool": 118_866,
    "lenet300-conv-pool2": 82_082,
    "lenet5": 61_706,
    "lenet5-1998": 60_000,
    "alexnet": 62_378_344,
}
OFF = {"lenet300", "lenet300-conv", "lenet300-conv-pool", "lenet300-conv-pool2"}


@pytest.mark.parametrize("name", [name for name in LECTURE if name in NETWORKS])
def test_the_networks_of_the_lecture_are_what_it_says(name: str) -> None:
    facts = LECTURE[name]
    channels, height_px, width_px = facts.image_dims
    spec = ImageSpec(height_px=height_px, width_px=width_px, channels=1 if channels == 1 else 3)
    anatomy = examine(
        lambda: build_network(name, image=spec, n_classes=facts.n_classes),
        channels=channels,
        height_px=height_px,
        width_px=width_px,
    )
    found = compare(name, anatomy, facts.n_classes)
    assert found is not None
    assert len(found) == len(facts.statements)
    assert all(comparison.agrees == (not comparison.remark) for comparison in found)
    assert any(not comparison.agrees for comparison in found) == (name in OFF)
    if name in EXACT:
        assert anatomy.parameters == EXACT[name]
