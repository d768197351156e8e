"""Which layers learn in which epoch, and how fast."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from torch import nn

from convoy.contract.errors import UsageError
from convoy.training.networks.classifier import ImageClassifier
from convoy.training.recipes.recipe import Recipe, Transfer
from convoy.training.transfer.blocks import Block, Blocks, find_blocks

NETWORK: Final = "network."
"""What ``classifier.named_parameters()`` writes before the network's own names."""


def block_factors(n_blocks: int, transfer: Transfer) -> tuple[float, ...]:
    """What the learning rate of each block is multiplied by, in the order of the blocks; 0 for those that never learn.

    Args:
        n_blocks: How many there are, the head included.
        transfer: Which share stays frozen, and by how much a block learns slower than the one behind it.
    """
    n_before_head = n_blocks - 1
    n_frozen = math.floor(transfer.frozen_fraction * n_before_head + 0.5)
    return tuple(0.0 if place < n_frozen else transfer.layer_decay ** (n_before_head - place) for place in range(n_blocks))


class Plan:
    """What a recipe's ``transfer`` asks for, on one classifier; without it every layer learns alike from the first epoch on.

    Of n blocks before the head (``find_blocks``) the first ``frozen_fraction * n``, rounded, never learn. In the first
    ``head_epochs`` epochs the head alone learns, after them the blocks that are not frozen too: the rate of the block d blocks
    before the head is ``layer_decay ** d`` times the head's. What does not learn is in evaluation mode: batch norms use the
    statistics they came with and do not change them, and nothing is dropped out.

    Parameters that do not learn in an epoch take no gradient, and an optimizer passes over those without one: it decays no
    weight of theirs and builds no momentum up. Those that begin to learn later start with fresh optimizer state, warm-up of
    AdamW's averages included.

    With ``weights=none`` there is nothing to keep: the network learns from scratch as without ``transfer``, to compare with.

    Attributes:
        blocks: The network's blocks; None where all of it learns alike.
        n_frozen: How many of them, from the input on, never learn.
    """

    def __init__(self, classifier: ImageClassifier, recipe: Recipe) -> None:
        """Find the blocks and take what never learns out of training for good.

        Raises:
            UsageError: There is nothing in the network that learns.
        """
        self._classifier = classifier
        self.blocks: Blocks | None = None
        self.n_frozen = 0
        self._head_epochs = 0
        self._factors: Mapping[str, float] = MappingProxyType({})
        transfer = recipe.transfer
        if transfer is None or transfer.weights == "none":
            return
        channels = len(classifier.preprocessing.facts.mean)
        self.blocks = find_blocks(classifier.network, channels=channels, image_size_px=recipe.image_size_px)
        self._head_epochs = transfer.head_epochs
        factors = block_factors(len(self.blocks.row), transfer)
        self.n_frozen = factors.count(0.0)
        self._factors = MappingProxyType(
            {NETWORK + name: factor for block, factor in zip(self.blocks.row, factors, strict=True) for name in block.parameters}
        )
        # before the optimizer and a distributed wrapper look at the parameters: these they shall not count
        for name, parameter in classifier.named_parameters():
            if self._factors[name] == 0:
                parameter.requires_grad_(False)

    @property
    def has_phases(self) -> bool:
        """Whether parameters that learn later take no gradient in the first epochs: what waits for all gradients must know."""
        return self.blocks is not None and self._head_epochs > 0 and self.n_frozen < len(self.blocks.row) - 1

    def factor(self, name: str) -> float:
        """What the learning rate of a parameter is multiplied by; 0 for one that never learns.

        Args:
            name: As ``classifier.named_parameters()`` has it.

        Raises:
            UsageError: The classifier has no such parameter.
        """
        if self.blocks is None:
            return 1.0
        if name not in self._factors:
            raise UsageError(f"expected a parameter of the classifier, such as {next(iter(self._factors))}, found {name!r}.")
        return self._factors[name]

    def begin_epoch(self, epoch: int) -> None:
        """Put the classifier into training mode for an epoch: frozen layers take no gradients and keep their statistics.

        Args:
            epoch: From 1.
        """
        self._classifier.train()
        if self.blocks is None:
            return
        first_to_learn = len(self.blocks.row) - 1 if epoch <= self._head_epochs else self.n_frozen
        for place, block in enumerate(self.blocks.row):
            self._set(block, learns=place >= first_to_learn)

    def _set(self, block: Block, *, learns: bool) -> None:
        network: nn.Module = self._classifier.network
        for name in block.parameters:
            parameter = network.get_parameter(name)
            parameter.requires_grad_(learns)
            if not learns:
                parameter.grad = None  # one of an earlier epoch would go on moving it
        if not learns:
            for name in block.modules:
                network.get_submodule(name).eval()
