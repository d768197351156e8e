"""What is chosen about a network, with nothing left open, and the refusal of what it does not offer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from torch import nn

from convoy.contract.errors import UsageError
from convoy.training.recipes.recipe import Activation, Architecture, BatchNorm


@dataclass(frozen=True)
class Choices:
    """``Architecture`` without nulls; what a network does not offer it does not read.

    Attributes:
        activation: As in ``Architecture``, and so are the others.
        pooling: Likewise.
        downsampling: Likewise.
        batch_norm: Likewise.
        dropout: Likewise.
    """

    activation: Activation = "relu"
    pooling: Literal["max", "average"] = "max"
    downsampling: Literal["pool", "stride"] = "pool"
    batch_norm: BatchNorm = "none"
    dropout: float = 0.0

    def make_dropout(self) -> nn.Module:
        """Dropout of hidden units; where it is 0, a module that draws no random numbers."""
        return nn.Dropout(self.dropout) if self.dropout else nn.Identity()


def choose(network: str, architecture: Architecture, offered: Architecture, *, batch_norms: Collection[BatchNorm] = ()) -> Choices:
    """What a network is built with.

    Args:
        network: Its name, for the message.
        architecture: What was chosen; null where nothing was.
        offered: What the network offers, with the value that it has without a choice; null what it does not offer.
        batch_norms: The places that it offers for batch normalisation; empty for all.

    Raises:
        UsageError: Something was chosen that it does not offer.
    """
    chosen, defaults = architecture.model_dump(exclude_none=True), offered.model_dump(exclude_none=True)
    for name, value in chosen.items():
        if name not in defaults:
            known = f"its choices are {', '.join(defaults)}" if defaults else "it has no choices"
            raise UsageError(f"network {network!r} offers no choice of {name}, found {name}={value}: {known}.")
    batch_norm = chosen.get("batch_norm")
    if batch_norm is not None and batch_norms and batch_norm not in batch_norms:
        raise UsageError(f"network {network!r}: expected batch_norm to be one of {', '.join(batch_norms)}, found {batch_norm}.")
    return Choices(**{**defaults, **chosen})
