"""The settings that make sense for a model on a machine, axis by axis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Final

from convoy.serving.tuning.setting import Setting

DELAYS_US: Final = (0, 50, 100, 200, 500, 1000, 2000, 5000)
"""Up to what a caller would notice."""

SMALLEST_LARGEST_BATCH: Final = 4
MOST_GPU_INSTANCES: Final = 4


@dataclass(frozen=True)
class Axis:
    """One thing to choose, with its choices.

    Attributes:
        name: What it is.
        choices: What each choice changes of a setting.
        ordered: Whether neighbours are alike, so that a search may stop where it gets worse.
    """

    name: str
    choices: tuple[Mapping[str, Any], ...]
    ordered: bool

    def of(self, setting: Setting) -> list[Setting]:
        """The settings that differ from ``setting`` along this axis only, itself among them where it is a choice."""
        return [_consistent(replace(setting, **choice)) for choice in self.choices]


def space(start: Setting, *, cores: int, largest_batch: int, n_gpus: int = 0, most_callers: int | None = None) -> tuple[Axis, ...]:
    """The axes, the one that matters most first.

    Args:
        start: The setting in force.
        cores: How many cores the server may use.
        largest_batch: The largest batch that the model was validated with; 0 for one without batch axis.
        n_gpus: How many GPUs the model runs on; 0 for none.
        most_callers: How many requests of one image are in flight at the most. No batch grows larger, so that larger sizes are all
            alike, and only noise would tell them apart.
    """
    axes = [Axis("instances and threads", tuple(_computing(cores, n_gpus)), ordered=False)]
    if largest_batch and start.max_batch_size:
        axes.append(Axis("queue delay", tuple({"max_queue_delay_microseconds": delay} for delay in DELAYS_US), ordered=True))
        sizes, most = _sizes(largest_batch), most_callers or largest_batch
        largest = [size for size in sizes if size < most or size == start.max_batch_size]
        if largest_batch <= most and largest_batch not in largest:
            largest.append(largest_batch)
        if len(largest) > 1:
            axes.append(Axis("largest batch", tuple({"max_batch_size": size} for size in largest), ordered=True))
        preferred = [(), *((size,) for size in sizes if size <= most and size < largest_batch)]
        if len(preferred) > 1:
            axes.append(Axis("preferred batch", tuple({"preferred_batch_size": sizes} for sizes in preferred), ordered=True))
    return tuple(axes)


def grid(start: Setting, axes: tuple[Axis, ...]) -> list[Setting]:
    """Every combination of the choices of all axes, each once."""
    found: dict[Setting, None] = {}
    for choices in product(*(axis.choices for axis in axes)):
        changes: dict[str, Any] = {}
        for choice in choices:
            changes.update(choice)
        found[_consistent(replace(start, **changes))] = None
    return list(found)


def _computing(cores: int, n_gpus: int) -> Iterator[Mapping[str, Any]]:
    """Instances and threads: together they use the cores once, or some of them."""
    if n_gpus:
        for count in range(1, MOST_GPU_INSTANCES + 1):
            yield {"instance_count": count}
        return
    counts = sorted({1, *(2**power for power in range(1, 10) if 2**power < cores), cores})
    for instances in counts:
        for threads in counts:
            if instances * threads <= cores:
                yield {"instance_count": instances, "intra_op_thread_count": threads}


def _sizes(largest: int) -> list[int]:
    """Powers of two up to the largest, and the largest itself."""
    sizes = [2**power for power in range(2, 13) if SMALLEST_LARGEST_BATCH <= 2**power < largest]
    return [*sizes, largest]


def _consistent(setting: Setting) -> Setting:
    """No preferred batch is larger than the largest."""
    fitting = tuple(size for size in setting.preferred_batch_size if size <= setting.max_batch_size)
    return setting if fitting == setting.preferred_batch_size else replace(setting, preferred_batch_size=fitting)
