from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from convoy.contract.errors import UsageError
from convoy.training.networks import ImageClassifier
from convoy.training.recipes import Recipe, get_recipe
from convoy.training.transfer import Plan

Make = Callable[..., Recipe]
ROW = ["conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "linear"]


def optimizer(classifier: ImageClassifier, plan: Plan, kind: str = "adamw") -> Optimizer:
    """As the loop makes it: a group a parameter, none for what never learns; weight decay strong enough to be seen."""
    groups: list[dict[str, Any]] = [
        {"params": [parameter], "lr": 0.05 * plan.factor(name)}
        for name, parameter in classifier.named_parameters()
        if plan.factor(name) > 0
    ]
    return AdamW(groups, weight_decay=0.5) if kind == "adamw" else SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.5)


def step(classifier: ImageClassifier, chosen: Optimizer, n: int = 3) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(n):
        images = torch.randint(0, 256, (8, 8, 8, 3), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 10, (8,), generator=generator)
        chosen.zero_grad()
        torch.nn.functional.cross_entropy(classifier(images), labels).backward()  # type: ignore[no-untyped-call]
        chosen.step()


def copy(classifier: ImageClassifier) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in classifier.network.state_dict().items()}


def changed(before: dict[str, Tensor], classifier: ImageClassifier) -> set[str]:
    """Names of the blocks in which a bit is not what it was."""
    moved = {name for name, tensor in classifier.network.state_dict().items() if not torch.equal(tensor, before[name])}
    row = ["conv1", "bn1", *ROW[1:]]
    return {"conv1" if block == "bn1" else block for block in row for name in moved if name.startswith(f"{block}.")}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_what_is_frozen_stays_bit_for_bit_with_its_statistics_and_the_rest_learns(
    small: ImageClassifier, transfer_recipe: Make, kind: str
) -> None:
    plan = Plan(small, transfer_recipe(frozen_fraction=0.4, head_epochs=0))
    assert plan.n_frozen == 2
    chosen = optimizer(small, plan, kind)
    before = copy(small)
    plan.begin_epoch(1)
    step(small, chosen)
    assert changed(before, small) == set(ROW[2:])
    assert not torch.equal(before["layer1.1.bn1.running_mean"], small.network.state_dict()["layer1.1.bn1.running_mean"])


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_head_learns_alone_until_the_phase_ends_then_the_blocks_that_are_not_frozen(
    small: ImageClassifier, transfer_recipe: Make, kind: str
) -> None:
    plan = Plan(small, transfer_recipe(frozen_fraction=0.4, head_epochs=2))
    assert plan.has_phases
    chosen = optimizer(small, plan, kind)
    learns = []
    for epoch in range(1, 5):
        before = copy(small)
        plan.begin_epoch(epoch)
        step(small, chosen)
        learns.append(changed(before, small))
    assert learns == [{"linear"}, {"linear"}, set(ROW[2:]), set(ROW[2:])]


def test_a_gradient_of_an_earlier_epoch_does_not_move_what_is_frozen(small: ImageClassifier, transfer_recipe: Make) -> None:
    plan = Plan(small, transfer_recipe(frozen_fraction=0, head_epochs=2))
    chosen = optimizer(small, plan, "sgd")
    plan.begin_epoch(3)
    step(small, chosen)
    before = copy(small)
    plan.begin_epoch(1)
    chosen.step()  # before any zero_grad
    assert changed(before, small) == {"linear"}


def test_a_parameter_has_no_optimizer_state_before_it_learns(small: ImageClassifier, transfer_recipe: Make) -> None:
    plan = Plan(small, transfer_recipe(frozen_fraction=0, head_epochs=1))
    chosen = optimizer(small, plan)
    plan.begin_epoch(1)
    step(small, chosen)
    head, trunk = small.network.get_parameter("linear.weight"), small.network.get_parameter("conv1.weight")
    assert head in chosen.state
    assert trunk not in chosen.state
    plan.begin_epoch(2)
    step(small, chosen, n=1)
    assert chosen.state[trunk]["step"] == 1


def test_nothing_is_dropped_out_where_nothing_learns(small: ImageClassifier, transfer_recipe: Make) -> None:
    plan = Plan(small, transfer_recipe(frozen_fraction=0.4, head_epochs=1))
    plan.begin_epoch(2)
    modes = {name: module.training for name, module in small.network.named_modules() if name.endswith("dropout")}
    assert modes == {"layer1.0.dropout": False, "layer1.1.dropout": True, "layer2.0.dropout": True, "layer2.1.dropout": True}
    small.eval()
    plan.begin_epoch(1)
    assert [name for name, module in small.network.named_children() if module.training and not list(module.children())] == [
        "linear"
    ]


def test_rates_decay_from_the_head_to_the_input(small: ImageClassifier, transfer_recipe: Make) -> None:
    plan = Plan(small, transfer_recipe(frozen_fraction=0.2, layer_decay=0.5))
    factors = {name: plan.factor(name) for name, _ in small.named_parameters()}
    assert factors["network.linear.weight"] == factors["network.linear.bias"] == 1.0
    assert factors["network.layer2.1.conv2.weight"] == factors["network.layer2.1.bn1.bias"] == 0.5
    assert factors["network.layer1.0.conv1.weight"] == 0.5**4
    assert factors["network.conv1.weight"] == factors["network.bn1.weight"] == 0


@pytest.mark.parametrize(("fraction", "n_frozen"), [(0, 0), (0.09, 0), (0.1, 1), (0.5, 3), (0.89, 4), (1, 5)])
def test_the_fraction_counts_blocks_before_the_head(
    small: ImageClassifier, transfer_recipe: Make, fraction: float, n_frozen: int
) -> None:
    plan = Plan(small, transfer_recipe(frozen_fraction=float(fraction), head_epochs=1))
    assert plan.n_frozen == n_frozen
    assert plan.has_phases == (n_frozen < 5)
    assert {name.split(".")[1] for name, p in small.named_parameters() if not p.requires_grad} <= {
        "conv1",
        "bn1",
        "layer1",
        "layer2",
    }
    assert plan.factor("network.linear.weight") == 1.0


@pytest.mark.parametrize("weights", ["none", None])
def test_from_scratch_everything_learns_alike_from_the_first_epoch_on(
    small: ImageClassifier, transfer_recipe: Make, weights: str | None
) -> None:
    recipe = get_recipe("lenet5") if weights is None else transfer_recipe(weights=weights, frozen_fraction=0.5)
    plan = Plan(small, recipe)
    assert not plan.has_phases
    small.eval()
    plan.begin_epoch(1)
    assert all(module.training for module in small.modules())
    assert all(parameter.requires_grad and plan.factor(name) == 1.0 for name, parameter in small.named_parameters())


def test_a_parameter_that_is_not_there_is_refused(small: ImageClassifier, transfer_recipe: Make) -> None:
    with pytest.raises(UsageError, match=r"such as network\.conv1\.weight, found 'conv1\.weight'"):
        Plan(small, transfer_recipe()).factor("conv1.weight")
