from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from convoy.training.anatomy import Anatomy, examine, outline
from convoy.training.anatomy.outline import MAX_ROWS
from convoy.training.networks import LeNet5


def examine_photo(name: str) -> Anatomy:
    def build() -> nn.Module:
        return torchvision.models.get_model(name, weights=None)  # type: ignore[no-any-return]

    return examine(build, channels=3, height_px=224, width_px=224)


@pytest.mark.parametrize("name", ["vgg19_bn", "resnet50", "resnet152", "densenet121"])
def test_a_deep_network_fits_a_screen_and_no_parameter_is_lost(name: str) -> None:
    anatomy = examine_photo(name)
    rows = outline(anatomy)
    assert 3 < len(rows) <= MAX_ROWS
    for chosen in (rows, outline(anatomy, 1), outline(anatomy, 9)):
        assert sum(row.parameters for row in chosen) == anatomy.parameters
        assert sum(row.macs for row in chosen) == anatomy.macs
        assert chosen[-1].dims == (1000,)


def test_blocks_are_rows_at_their_depth() -> None:
    anatomy = examine_photo("resnet50")
    stages = {row.name: row.kind for row in outline(anatomy, 1) if row.name.startswith("layer")}
    assert stages == {f"layer{i}": f"{n} x Bottleneck" for i, n in zip(range(1, 5), (3, 4, 6, 3), strict=True)}
    blocks = [row for row in outline(anatomy, 2) if row.name.startswith("layer")]
    assert len(blocks) == 16
    assert {row.kind for row in blocks} == {"Bottleneck"}
    convolutions = [row for row in outline(anatomy, 3) if row.kind.startswith("Conv-")]
    assert len(convolutions) == 53


def test_norms_and_activations_stand_beside_their_layer() -> None:
    (first, *_) = outline(examine_photo("resnet50"))
    assert (first.name, first.kind) == ("conv1", "Conv-64 7x7 /2 pad 3, BN, ReLU")
    assert first.formula == "64 (7*7*3) + 2*64 = 9,536"
    assert [row.name for row in outline(examine(LeNet5, channels=1, height_px=28, width_px=28))] == [
        *("c1", "s2.pool", "c3", "s4.pool", "", "c5", "f6", "output")
    ]


def test_a_norm_on_the_way_around_a_block_is_not_told_beside_the_block() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(1, 1, 3, padding=1)
            self.norm, self.nothing = nn.BatchNorm2d(1), nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.convolution(x) + self.norm(x) + self.nothing(x)

    rows = outline(examine(Around, channels=1, height_px=8, width_px=8))
    assert [row.kind for row in rows] == ["Conv-1 3x3 pad 1", "BN", "add", "add"]
    assert [row.field.size_px for row in rows if row.field] == [(3, 3), (1, 1), (3, 3), (3, 3)]
    assert sum(row.parameters for row in rows) == 10 + 2
