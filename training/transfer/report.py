"""What was taken over from a network that was trained on other data."""

from __future__ import annotations

from typing import Literal

from convoy.contract.files import Document
from convoy.contract.manifest import Sha256

_NAMES_SHOWN = 4


class NewTensor(Document):
    """A tensor of the head, which starts at random.

    Attributes:
        name: Its name in the network.
        shape: Its shape there, which the number of classes decides.
        found: The shape of the one in its place among the weights; None where there is none.
    """

    name: str
    shape: tuple[int, ...]
    found: tuple[int, ...] | None


class BlockTakeOver(Document):
    """A block of the network, in the order in which images pass them; the head is last.

    Attributes:
        name: The module that it begins with.
        n_parameters: How many numbers it learns or could learn.
        n_taken_over: How many of them come from the weights.
        factor: What its learning rate is multiplied by; 0: it is frozen, with its batch norms' statistics.
    """

    name: str
    n_parameters: int
    n_taken_over: int
    factor: float


class TakeOver(Document):
    """The report: where weights come from and what became of them.

    Attributes:
        weights: ``imagenet``, ``file``, or ``none``: everything starts at random.
        source: The name of torchvision's weights, a file's name, or the id of a run; None with ``none``.
        sha256: The digest of the file; None with ``none``.
        n_tensors: How many tensors were taken over, statistics of batch norms among them.
        share: The share of all parameters that were taken over, in [0, 1].
        summed: Taken over with the sum of its red, green and blue weights, for grey images.
        replaced: The head, which is new.
        missing: Tensors of the network that the weights have not and that are not the head's: they start at random.
        unexpected: Tensors among the weights that the network has not.
        blocks: Block by block.
        notes: What a person should know, in sentences.
    """

    weights: Literal["imagenet", "file", "none"]
    source: str | None = None
    sha256: Sha256 | None = None
    n_tensors: int = 0
    share: float = 0.0
    summed: tuple[str, ...] = ()
    replaced: tuple[NewTensor, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    blocks: tuple[BlockTakeOver, ...] = ()
    notes: tuple[str, ...] = ()

    def describe(self) -> tuple[str, ...]:
        """The report for people, a line each."""
        if self.weights == "none":
            return ("weights: none, everything starts at random",)
        learning = [block for block in self.blocks if block.factor > 0]
        n_frozen = len(self.blocks) - len(learning)
        lines = [
            f"weights: {self.source}, SHA-256 {(self.sha256 or '')[:16]}...",
            f"taken over: {self.n_tensors:,} tensors, {self.share:.1%} of the parameters",
            *(f"new: {_say(tensor)}" for tensor in self.replaced),
        ]
        if self.summed:
            lines.append(f"summed over red, green and blue: {_some(self.summed)}")
        if self.missing:
            lines.append(f"missing among the weights, random: {_some(self.missing)}")
        if self.unexpected:
            lines.append(f"not of this network, left out: {_some(self.unexpected)}")
        frozen = "none" if n_frozen == 0 else f"{self.blocks[0].name} to {self.blocks[n_frozen - 1].name}"
        lines.append(
            f"blocks: {len(self.blocks)}; frozen: {n_frozen} ({frozen}); learning: {len(learning)}, from {learning[0].factor:.2g} "
            f"of the rate at {learning[0].name} to all of it at the head"
        )
        return (*lines, *self.notes)


def _say(tensor: NewTensor) -> str:
    before = "" if tensor.found is None else f" in place of {list(tensor.found)}"
    return f"{tensor.name} {list(tensor.shape)}{before}"


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
