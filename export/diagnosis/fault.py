"""The first node at which a file departs from the network that it came from, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import ExportError
from convoy.contract.validation import Fault
from convoy.export.diagnosis.cause import find_cause
from convoy.export.diagnosis.difference import differences
from convoy.export.diagnosis.structure import Structure
from convoy.export.diagnosis.trace import Images, Trace
from convoy.export.diagnosis.walk import Departure, Walk
from convoy.export.diagnosis.whole import check_border, check_whole


def find_fault(
    model: bytes, trace: Trace, images: Images, image_names: Sequence[str], *, failing_batch_size: int | None = None
) -> Fault | None:
    """The first node, in topological order, that gives something else than the network does although its inputs are right.

    Every node is run by itself on true inputs, so that nothing that went wrong before hides or excuses it (``Walk`` says why this
    is done rather than a bisection). A value departs where it is not finite though the truth is, has another shape, or lies
    further from the truth than ``Trace.allowed``. A file whose nodes all agree is then looked at as a whole: what it promises at
    its border, whether it loads, whether its outputs agree without and with ONNX Runtime's graph optimisations.

    Args:
        model: The file's bytes; any change of the export, or another export of the same network.
        trace: The truth for some images, two at least.
        images: Those images first, then others that batches of other sizes are filled with; uint8, shape (n, H, W, C).
        image_names: One for each of ``images``.
        failing_batch_size: A batch size at which the file is known to fail. Where nothing is found with the traced images, one
            image more is traced, then as many as that.

    Returns:
        The fault; None where every node and the whole file agree.

    Raises:
        ExportError: The truth for another batch size cannot be computed.
    """
    try:
        file = Structure.of(model)
    except ExportError as error:
        return Fault(
            node="", op_type="", module="", output="", max_abs_diff=None, allowed=None, image=image_names[0], cause=f"{error}"
        )
    fault = _find(file, model, trace, image_names)
    if fault is not None or failing_batch_size is None:
        return fault
    n = len(trace.images)
    for size in dict.fromkeys((1 if failing_batch_size == 1 else n + 1, failing_batch_size)):
        if size == n:
            continue
        chosen = np.resize(np.arange(len(images)), size)
        fault = _find(file, model, trace.retrace(images[chosen]), [image_names[i] for i in chosen])
        if fault is not None:
            return fault.model_copy(update={"cause": f"{fault.cause} It shows in batches of {size}, not of {n}."})
    return None


def _find(file: Structure, model: bytes, trace: Trace, image_names: Sequence[str]) -> Fault | None:
    walk = Walk(file, trace)
    departure = walk.run()
    if departure is not None:
        return _report(walk, departure, image_names)
    fault = check_border(file, trace, image_names[0]) or check_whole(walk, model, image_names)
    return fault if fault is None or walk.mild is None else _report(walk, walk.mild, image_names)


def _report(walk: Walk, departure: Departure, image_names: Sequence[str]) -> Fault:
    trace, node = walk.trace, departure.node
    truth = trace.values.get(departure.expected)
    diff = _differences(truth, departure.actual)
    largest = None if diff is None else float(diff.max(initial=0.0))
    fresh = walk.counterpart(departure.expected)
    return Fault(
        node=node.name,
        op_type=node.op_type,
        module=trace.modules.get(departure.expected, "") or node.module or (fresh.module if fresh else ""),
        output=departure.output,
        max_abs_diff=largest if largest is not None and np.isfinite(largest) else None,
        allowed=trace.allowed.get(departure.expected),
        image=_worst(diff, image_names),
        cause=find_cause(walk, departure),
        suspects=tuple(suspect.name for suspect in departure.suspects),
    )


def _differences(truth: npt.NDArray[Any] | None, actual: npt.NDArray[Any] | None) -> npt.NDArray[np.float64] | None:
    if truth is None or actual is None or truth.shape != actual.shape:
        return None
    return differences(truth, actual)


def _worst(diff: npt.NDArray[np.float64] | None, image_names: Sequence[str]) -> str:
    """The image with the largest difference; the first where the batch is not the value's first axis."""
    if diff is None or diff.ndim < 2 or not diff.size or len(diff) % len(image_names):
        return image_names[0]
    return image_names[int(diff.reshape(len(image_names), -1).max(axis=1).argmax())]
