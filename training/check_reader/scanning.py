"""A loop over frames: Python's where PyTorch runs it, one ONNX ``Scan`` where it is exported."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan as scan_operator

Carry = tuple[Tensor, ...]
Step = Callable[[Carry, Carry], tuple[Carry, Carry]]


def scan(step: Step, carry: Carry, frames: Carry, *, reverse: bool = False) -> tuple[Carry, Carry]:
    """Go through frames one after the other.

    Args:
        step: From what is carried and what belongs to a frame to what is carried on and what the frame gives.
        carry: What the first step gets; its shapes and dtypes stay.
        frames: Tensors (T, ...) with T of at least 1, sliced along their first axis.
        reverse: Begin with the last frame.

    Returns:
        What the last step carries on, and what the frames give, (T, ...) each, in the order of the frames.
    """
    if torch.compiler.is_exporting():

        def fresh_step(carry: Carry, frame: Carry) -> tuple[Carry, Carry]:
            carried, given = step(carry, frame)
            return _fresh(carried), _fresh(given)

        last, stacked = scan_operator(fresh_step, _fresh(carry), frames, dim=0, reverse=reverse)
        return tuple(last), tuple(stacked)
    results: list[Carry] = []
    places = range(len(frames[0]))
    for place in reversed(places) if reverse else places:
        carry, given = step(carry, tuple(value[place] for value in frames))
        results.append(given)
    if reverse:
        results.reverse()
    return carry, tuple(torch.stack(values) for values in zip(*results, strict=True))


def _fresh(values: Carry) -> Carry:
    """Copies: the exported loop takes no value twice, and wants what it carries to be laid out in memory alike in each step."""
    return tuple(value.clone(memory_format=torch.contiguous_format) for value in values)
