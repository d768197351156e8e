"""The parts of the LeNets of 1990 and 1998: tables of connections, subsampling, radial basis functions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from convoy.training.networks.choices import Choices
from convoy.training.networks.connection_table import TableConv2d
from convoy.training.networks.lenet1 import H3_TABLE, LeNet1
from convoy.training.networks.lenet5_1998 import C3_TABLE, LeNet5Of1998
from convoy.training.networks.radial_basis import DIGITS, HEIGHT_PX, WIDTH_PX, RadialBasis, make_targets
from convoy.training.networks.subsampling import Subsampling

TANH = Choices(activation="scaled-tanh")

# Table I of the paper, a row for each map of S2, a column for each map of C3
TABLE_I = """
X...XXX..XXXX.XX
XX...XXX..XXXX.X
XXX...XXX..X.XXX
.XXX..XXXX..X.XX
..XXX..XXXX.XX.X
...XXX..XXXX.XXX
"""


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_c3_is_connected_as_table_i_of_the_paper_says() -> None:
    rows = TABLE_I.split()
    assert tuple(tuple(below for below in range(6) if rows[below][map_] == "X") for map_ in range(16)) == C3_TABLE
    assert sum(map(len, C3_TABLE)) == 60


def test_h3_of_lenet1_sees_one_or_two_maps_and_has_twenty_connections() -> None:
    assert sorted(map(len, H3_TABLE)) == [1] * 4 + [2] * 8
    assert all(sum(below in seen for seen in H3_TABLE) == 5 for below in range(4))  # each map of H2 is seen by five


def test_the_layers_of_the_1998_lenet5_have_the_parameters_that_the_paper_counts() -> None:
    network = LeNet5Of1998(10, TANH)
    counts = {name: count(layer) for name, layer in network.named_children() if count(layer)}
    assert counts == {"c1": 156, "s2": 12, "c3": 1_516, "s4": 32, "c5": 48_120, "f6": 10_164}
    assert count(network) == 60_000


def test_the_layers_of_lenet1_add_up_to_the_papers_2578() -> None:
    network = LeNet1(10, TANH)
    counts = {name: count(layer) for name, layer in network.named_children() if count(layer)}
    assert counts == {"h1": 104, "h2": 8, "h3": 512, "h4": 24, "output": 1_930}


@pytest.mark.parametrize(("table", "channels"), [(C3_TABLE, 6), (H3_TABLE, 4)])
def test_a_map_sees_the_maps_of_its_row_and_no_others(table: tuple[tuple[int, ...], ...], channels: int) -> None:
    layer = TableConv2d(table, in_channels=channels, kernel_size=5)
    x = torch.randn(2, channels, 9, 8)
    filters = list(layer.weight)
    for map_, seen in enumerate(table):
        kernel = torch.stack([filters.pop(0) for _ in seen]).unsqueeze(0)  # (1, seen, 5, 5)
        expected = functional.conv2d(x[:, list(seen)], kernel, layer.bias[map_ : map_ + 1])
        assert torch.allclose(layer(x)[:, map_ : map_ + 1], expected, atol=1e-6)
    assert filters == []


def test_subsampling_adds_four_values_and_has_a_coefficient_and_a_bias_a_map() -> None:
    layer = Subsampling(2)
    x = torch.arange(16.0).reshape(1, 2, 2, 4)
    assert torch.equal(layer(x), functional.avg_pool2d(x, 2))  # fresh ones take the mean
    with torch.no_grad():
        layer.coefficient.copy_(torch.tensor([1.0, -2.0]))
        layer.bias.copy_(torch.tensor([0.5, 1.0]))
    sums = x.reshape(1, 2, 2, 2, 2).sum(dim=(2, 4))
    assert torch.equal(layer(x), torch.stack([sums[:, 0] + 0.5, -2 * sums[:, 1] + 1], dim=1).reshape(1, 2, 1, 2))


def test_the_logits_are_minus_the_squared_distances_from_the_targets() -> None:
    layer = RadialBasis(10)
    x = torch.randn(3, 84)
    assert torch.allclose(layer(x), -torch.cdist(x, layer.targets).square(), rtol=1e-4)
    assert torch.equal(layer(layer.targets).argmax(dim=1), torch.arange(10))
    assert torch.equal(layer(layer.targets).diagonal(), torch.zeros(10))
    assert list(layer.parameters()) == []


def test_the_targets_are_drawings_of_the_digits_that_differ_in_many_places() -> None:
    assert all(len(drawing) == HEIGHT_PX and {len(row) for row in drawing} == {WIDTH_PX} for drawing in DIGITS)
    targets = make_targets(10)
    assert set(targets.unique().tolist()) == {-1.0, 1.0}
    differing = (targets.unsqueeze(0) != targets.unsqueeze(1)).sum(dim=2) + 84 * torch.eye(10)
    assert differing.min() >= 8


def test_other_numbers_of_classes_have_random_targets_that_are_always_the_same() -> None:
    first = make_targets(26)
    torch.manual_seed(5)
    assert torch.equal(make_targets(26), first)
    assert first.shape == (26, 84)
    assert len(first.unique(dim=0)) == 26
    assert set(first.unique().tolist()) == {-1.0, 1.0}


def test_weights_are_drawn_from_2_4_over_the_number_of_inputs() -> None:
    torch.manual_seed(0)
    network = LeNet5Of1998(10, TANH)
    for layer, n_inputs in ((network.c1, 25), (network.c5, 400), (network.f6, 120)):
        assert 0.9 * 2.4 / n_inputs < layer.weight.abs().max() <= 2.4 / n_inputs
    start = 0
    for seen in C3_TABLE:
        largest = network.c3.weight[start : start + len(seen)].abs().max()
        assert 0.85 * 2.4 / (25 * len(seen)) < largest <= 2.4 / (25 * len(seen))
        start += len(seen)


def test_the_border_of_a_28x28_digit_is_carried_outwards_to_32x32() -> None:
    torch.manual_seed(0)
    network = LeNet5Of1998(10, TANH)
    large = LeNet5Of1998(10, TANH, padding=0)
    large.load_state_dict(network.state_dict())
    digit = torch.randn(1, 1, 24, 24)
    on_paper = torch.full((1, 1, 32, 32), -0.1)
    on_paper[:, :, 4:28, 4:28] = digit
    assert torch.allclose(network(on_paper[:, :, 2:30, 2:30]), large(on_paper), atol=1e-5)
