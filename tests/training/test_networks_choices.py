"""What can be chosen about a network really changes it, and what it does not offer is refused."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from convoy.contract.errors import UsageError
from convoy.contract.image import ImageSpec
from convoy.training.networks import LeNet5, build_network
from convoy.training.networks.activation import ACTIVATIONS, make_activation
from convoy.training.networks.choices import Choices
from convoy.training.networks.stage import after_convolution
from convoy.training.recipes import Architecture, get_recipe, recipe_names
from convoy.training.recipes.recipe import Activation, BatchNorm

VALUES: dict[str, tuple[Any, ...]] = {
    "activation": get_args(Activation),
    "pooling": ("max", "average"),
    "downsampling": ("pool", "stride"),
    "batch_norm": get_args(BatchNorm),
    "dropout": (0.0, 0.25),
}
DIGIT = ImageSpec(height_px=28, width_px=28, channels=1)
SMALL = ImageSpec(height_px=32, width_px=32, channels=3)


def built(name: str, architecture: Architecture | None) -> str:
    """What ``print`` shows of a network; without numbers, which cost time."""
    recipe = get_recipe(name)
    with torch.device("meta"):
        network = build_network(
            recipe.network, image=DIGIT if recipe.data == "digits" else SMALL, n_classes=10, architecture=architecture
        )
    return repr(network)


@pytest.mark.parametrize("name", recipe_names())
def test_every_choice_that_a_recipe_offers_changes_the_network_and_every_other_is_refused(name: str) -> None:
    chosen = get_recipe(name).architecture
    for field, values in VALUES.items():
        value = getattr(chosen, field)
        if value is None:
            with pytest.raises(UsageError, match=f"offers no choice of {field}"):
                built(name, chosen.model_copy(update={field: values[0]}))
            continue
        base = chosen.model_copy(update={"downsampling": "pool"}) if field == "pooling" else chosen  # strides have no pools
        seen = {built(name, base)}
        for other in set(values) - {value}:
            changed = base.model_copy(update={field: other})
            if field == "batch_norm" and chosen.activation is None and other != "conv-bn-relu":
                with pytest.raises(UsageError, match="expected batch_norm to be one of none, conv-bn-relu"):
                    built(name, changed)  # deep networks offer the paper's place alone
                continue
            seen.add(built(name, changed))
        assert len(seen) >= 2, field


@pytest.mark.parametrize("name", [n for n in recipe_names() if n not in ("transfer", "lenet5-fast", "lenet5-best")])
def test_a_recipe_says_what_its_network_is_without_a_choice(name: str) -> None:
    assert built(name, get_recipe(name).architecture) == built(name, None)


def test_every_value_of_every_choice_of_lenet5_gives_another_network_that_works() -> None:
    seen = set()
    for field, values in VALUES.items():
        for value in values:
            network = build_network("lenet5", image=DIGIT, n_classes=10, architecture=Architecture(**{field: value}))
            assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
            seen.add(repr(network))
    assert len(seen) == 1 + sum(len(values) - 1 for values in VALUES.values())


def test_a_stride_keeps_the_shapes_of_a_pool() -> None:
    for name in ("lenet5", "lenet300-conv-pool", "lenet300-conv-pool2"):
        by_pool, by_stride = (
            build_network(name, image=DIGIT, n_classes=10, architecture=Architecture(downsampling=how))
            for how in ("pool", "stride")
        )
        shapes = [{key: value.shape for key, value in network.state_dict().items()} for network in (by_pool, by_stride)]
        assert shapes[0] == shapes[1]
        assert not any(isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)) for layer in by_stride.modules())


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("none", ["ReLU", "MaxPool2d"]),
        ("conv-bn-relu", ["BatchNorm2d", "ReLU", "MaxPool2d"]),
        ("conv-relu-pool-bn", ["ReLU", "MaxPool2d", "BatchNorm2d"]),
        ("conv-pool-bn-relu", ["MaxPool2d", "BatchNorm2d", "ReLU"]),
    ],
)
def test_batch_norm_stands_where_its_order_says(order: BatchNorm, expected: list[str]) -> None:
    assert [type(layer).__name__ for layer in after_convolution(6, Choices(batch_norm=order))] == expected


def test_the_default_lenet5_draws_its_weights_as_its_five_layers_in_a_row_do() -> None:
    torch.manual_seed(3)
    network = LeNet5()
    torch.manual_seed(3)
    layers = (nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5), nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10))
    expected = [tensor for layer in layers for tensor in (layer.weight, layer.bias)]
    assert list(network.state_dict()) == [
        f"{name}.{part}" for name in ("c1", "c3", "c5", "f6", "output") for part in ("weight", "bias")
    ]
    assert all(torch.equal(*pair) for pair in zip(network.parameters(), expected, strict=True))


def test_dropout_leaves_out_hidden_units_in_training_alone() -> None:
    torch.manual_seed(0)
    for name in ("lenet5", "cifar-resnet20"):
        image = DIGIT if name == "lenet5" else ImageSpec(height_px=8, width_px=8, channels=3)
        network = build_network(name, image=image, n_classes=10, architecture=Architecture(dropout=0.5))
        network.train()
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()  # whose statistics would change the answer too
        batch = torch.randn(2, image.channels, image.height_px, image.width_px)
        assert not torch.equal(network(batch), network(batch))
        network.eval()
        assert torch.equal(network(batch), network(batch))


FORMULAS = {
    "identity": lambda x: x,
    "logistic": lambda x: 1 / (1 + torch.exp(-x)),
    "tanh": lambda x: (torch.exp(x) - torch.exp(-x)) / (torch.exp(x) + torch.exp(-x)),
    "scaled-tanh": lambda x: 1.7159 * torch.tanh(2 * x / 3),
    "relu": lambda x: x.clamp(min=0),
    "leaky-relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "parametric-relu": lambda x: torch.where(x > 0, x, 0.25 * x),
    "elu": lambda x: torch.where(x > 0, x, torch.exp(x) - 1),
    "softplus": lambda x: torch.log(1 + torch.exp(x)),
}


@pytest.mark.parametrize("name", get_args(Activation))
def test_an_activation_is_its_formula(name: Activation) -> None:
    x = torch.linspace(-4, 4, 81)
    expected: Tensor = FORMULAS[name](x)
    assert torch.allclose(make_activation(name)(x), expected, atol=1e-6)


def test_there_is_an_activation_for_every_name_and_scaled_tanh_passes_through_one() -> None:
    assert set(ACTIVATIONS) == set(get_args(Activation))
    assert make_activation("scaled-tanh")(torch.ones(1)).item() == pytest.approx(1, abs=1e-4)


def test_a_parametric_relu_learns_a_slope_for_each_place() -> None:
    network = build_network("lenet5", image=DIGIT, n_classes=10, architecture=Architecture(activation="parametric-relu"))
    assert sum(parameter.numel() for parameter in network.parameters()) == 61_706 + 4
