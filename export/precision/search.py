"""Which layers do not stand quantisation: measured one by one, then kept in float32, as few as will do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from convoy.export.precision.fidelity import Fidelity, HeldOut
from convoy.export.precision.structure import Layer

MAX_GROUPS: Final = 64
"""A network with more layers is searched in groups of neighbours."""
MAX_TRIALS: Final = MAX_GROUPS + 14
"""64 to rank, then at most 7 to double and 6 to bisect, and one to start with."""
_N_RANKING_IMAGES: Final = 64


@dataclass(frozen=True)
class SearchResult:
    """What the search found.

    Attributes:
        model: The conversion that keeps the fewest layers in float32 and is good enough; the best one where none is.
        in_float32: By node, why it stays in float32.
        n_layers: How many layers that are.
        fidelity: Of ``model`` on the held-out images.
        n_trials: How many conversions were made.
    """

    model: bytes
    in_float32: dict[str, str]
    n_layers: int
    fidelity: Fidelity
    n_trials: int


def search_sensitive(
    layers: tuple[Layer, ...],
    convert: Callable[[list[str]], bytes],
    held_out: HeldOut,
    max_disagreement: float,
    *,
    on_progress: Callable[[str], None] = lambda _: None,
) -> SearchResult:
    """Keep the layers in float32 whose quantisation hurts, until the answers agree.

    Each layer (of more than ``MAX_GROUPS``: each group of neighbours) is quantised alone; the noise that this puts into the logits
    ranks them. Then the 1, 2, 4, ... noisiest stay in float32 until the disagreement is small enough, and bisection finds how few
    of them do. The same arguments give the same result.

    Args:
        layers: The layers, in the graph's order.
        convert: Quantises all but the nodes that it is given by name.
        held_out: Images with float32 logits; the ranges were not measured on them.
        max_disagreement: The share of them that may be answered otherwise.
        on_progress: Told what is being done.

    Returns:
        The result; look at its ``fidelity``: at least one group is always quantised, and that may still be too much.

    Raises:
        ExportError: A conversion fails.
    """
    size = -(-len(layers) // MAX_GROUPS)
    groups = [layers[i : i + size] for i in range(0, len(layers), size)]
    few = held_out.first(_N_RANKING_IMAGES)
    noise = []
    for i, group in enumerate(groups):
        on_progress(f"int8: layer {group[0].name} alone ({i + 1} of {len(groups)})")
        noise.append(few.measure(convert(_nodes(groups, set(range(len(groups))) - {i}))).noise)
    ranked = sorted(range(len(groups)), key=lambda i: (-noise[i], i))

    tried: dict[int, tuple[Fidelity, bytes]] = {}

    def fits(count: int) -> bool:
        if count not in tried:
            on_progress(f"int8: the {count} most sensitive layers in float32")
            model = convert(_nodes(groups, set(ranked[:count])))
            tried[count] = (held_out.measure(model), model)
        return tried[count][0].disagreement <= max_disagreement

    most = len(groups) - 1
    low, high = 0, min(1, most)
    while not fits(high) and high < most:
        low, high = high, min(2 * high, most)
    while fits(high) and high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    chosen = high if fits(high) else min(tried, key=lambda count: (*tried[count][0].badness, count))
    fidelity, model = tried[chosen]
    kept = {
        node: f"sensitive: layer {layer.name}, quantised alone, puts {noise[i]:.2%} of noise into the logits"
        for i in ranked[:chosen]
        for layer in groups[i]
        for node in layer.nodes
    }
    return SearchResult(model, kept, sum(len(groups[i]) for i in ranked[:chosen]), fidelity, len(groups) + len(tried))


def _nodes(groups: list[tuple[Layer, ...]], chosen: set[int]) -> list[str]:
    return [node for i in sorted(chosen) for layer in groups[i] for node in layer.nodes]
