"""Where a foreign graph decides: which of its values are the logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx

from convoy.contract.errors import ExportError, UsageError
from convoy.export.adopt.names import attribute, makers, opset_version, title
from convoy.export.adopt.running import open_plain, run_plain, with_outputs

Form: TypeAlias = Literal["logits", "probabilities"]

TINY: Final = float(np.finfo(np.float32).tiny)
"""Added to probabilities before their logarithm is taken: 2^-126, the smallest normal float32."""

_VIEWS: Final = {"Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}
_FLOATS: Final = ("float16", "float32", "float64")


@dataclass(frozen=True)
class OutputBorder:
    """Where the logits are in a foreign graph.

    Attributes:
        output: The file's own output that was chosen.
        value: The value, perhaps inside the graph, that holds ``form``; its elements are one row of K after the other.
        form: ``logits``, or ``probabilities`` where no softmax is to be seen that made them: logits are then ``log(p + 2^-126)``.
        dtype: numpy's name of the type of ``value``.
        shape: Of ``value``, at the batch of the file (1 where that is open).
        probabilities: The value of the graph that holds the file's own probabilities, where it has them.
        remarks: What was left out or taken another way, for people.
    """

    output: str
    value: str
    form: Form
    dtype: str
    shape: tuple[int, ...]
    probabilities: str | None = None
    remarks: tuple[str, ...] = ()


@dataclass
class _Chain:
    """The way back from one output: views, and perhaps the softmax before them."""

    output: str
    value: str
    softmax: str | None = None
    passed: set[str] = field(default_factory=set)


def find_decision(
    model: onnx.ModelProto, feeds: dict[str, npt.NDArray[Any]], batch: int, n_classes: int, output_name: str | None
) -> OutputBorder:
    """The logits of a classifier.

    An output is a candidate where it holds ``n_classes`` floating-point values for each image and no axis but the batch and the
    classes is longer than 1. From there the way goes back over views (Reshape, Flatten, Squeeze, ...) and one Softmax.

    Args:
        model: The foreign model.
        feeds: Real or random images at its border, ``batch`` of them.
        batch: How many.
        n_classes: How many class names there are.
        output_name: Which output decides; None where one only can.

    Raises:
        ExportError: No output fits the class names, or the one that does is no choice of one class.
        UsageError: Several outputs fit, or there is none of that name.
    """
    names = [value.name for value in model.graph.output]
    if output_name is not None and output_name not in names:
        raise UsageError(f"expected an output named {output_name!r}, found: {', '.join(map(repr, names))}.")
    chains = {name: _walk_back(model, name) for name in names}
    wanted = dict.fromkeys([*names, *(chain.value for chain in chains.values())])
    wanted.update(dict.fromkeys(chain.softmax for chain in chains.values() if chain.softmax))
    found = run_plain(open_plain(with_outputs(model, list(wanted))), feeds)
    chosen = _choose(names if output_name is None else [output_name], found, chains, batch, n_classes)
    chain = chains[chosen]
    _check_choice(model, chain, found[chain.softmax or chosen].shape, n_classes)
    remarks = []
    value = found[chain.value]
    if others := [name for name in names if name != chosen]:
        remarks.append(f"outputs left out: {', '.join(map(repr, others))}")
    if chain.softmax is not None:
        remarks.append(f"logits are {chain.value!r}, what goes into the softmax of {chosen!r}")
        return OutputBorder(chosen, chain.value, "logits", str(value.dtype), value.shape, chain.softmax, tuple(remarks))
    if _are_probabilities(found[chosen].reshape(batch, n_classes)):
        remarks.append(
            f"output {chosen!r} gives probabilities (each row sums to 1) without a Softmax node: logits are log(p + 2^-126)"
        )
        return OutputBorder(chosen, chain.value, "probabilities", str(value.dtype), value.shape, chain.value, tuple(remarks))
    return OutputBorder(chosen, chain.value, "logits", str(value.dtype), value.shape, None, tuple(remarks))


def _walk_back(model: onnx.ModelProto, output: str) -> _Chain:
    """Back over views, and over one softmax, as far as the rows stay the same."""
    made_by = makers(model.graph)
    chain = _Chain(output, _behind_views(made_by, output))
    node = made_by.get(chain.value)
    if node is not None and node.op_type == "Softmax" and node.domain in ("", "ai.onnx"):
        chain.softmax = chain.value
        chain.value = _behind_views(made_by, node.input[0])
    return chain


def _behind_views(made_by: dict[str, onnx.NodeProto], name: str) -> str:
    while (node := made_by.get(name)) is not None and node.op_type in _VIEWS and node.domain in ("", "ai.onnx"):
        if node.op_type == "Cast" and attribute(node, "to") not in (1, 10, 11):
            break
        if node.op_type == "Dropout" and (node.output[0] != name or (len(node.input) > 2 and node.input[2])):
            break  # a mask, or a training mode that is told
        if not _is_made(made_by, node.input[0]):
            break
        name = node.input[0]
    return name


def _is_made(made_by: dict[str, onnx.NodeProto], name: str) -> bool:
    return name in made_by


def _choose(names: Sequence[str], found: dict[str, npt.NDArray[Any]], chains: dict[str, _Chain], batch: int, n_classes: int) -> str:
    fitting = [name for name in names if name in found and _fits(found[name], batch, n_classes)]
    if not fitting:
        raise ExportError(_nothing_fits(names, found, batch, n_classes))
    # Logits beside the softmax of the same logits are one decision: the softmaxed output is kept, since it shows both.
    decisions: dict[str, str] = {}
    for name in fitting:
        value = chains[name].value
        if value not in decisions or chains[name].softmax is not None:
            decisions[value] = name
    if len(decisions) > 1:
        listed = ", ".join(f"{name!r} {list(found[name].shape)}" for name in fitting)
        raise UsageError(
            f"expected one output that holds {n_classes} classes, found {len(fitting)}: {listed}. Name the one "
            "that decides (--output)."
        )
    return next(iter(decisions.values()))


def _fits(value: npt.NDArray[Any], batch: int, n_classes: int) -> bool:
    if value.dtype not in _FLOATS or value.size != batch * n_classes:
        return False
    long = [dim for dim in value.shape if dim != 1]
    return long == [dim for dim in (batch, n_classes) if dim != 1]


def _nothing_fits(names: Sequence[str], found: dict[str, npt.NDArray[Any]], batch: int, n_classes: int) -> str:
    listed = "; ".join(
        f"{name!r} {found[name].dtype} {list(found[name].shape)}" if name in found else f"{name!r}, which is no tensor"
        for name in names
    )
    message = f"expected an output with {n_classes} values an image, one for each class name; found for {batch} images: {listed}."
    sizes = {
        value.size // batch
        for name, value in found.items()
        if name in names and value.dtype in _FLOATS and sum(dim > 1 for dim in value.shape) <= 2 and value.size % batch == 0
    }
    if n_classes + 1 in sizes:
        message += (
            f" A network with {n_classes + 1} classes for {n_classes} names often has one for the background (index 0 in "
            "TensorFlow's ImageNet models): put a name for it at its place in the labels file."
        )
    elif n_classes - 1 in sizes:
        message += f" The labels file has one name more than the network has classes ({n_classes - 1}): a header line, perhaps?"
    elif sizes:
        message += f" Is it the labels file of another network? It has {n_classes} names."
    return message


def _are_probabilities(rows: npt.NDArray[Any]) -> bool:
    wide = rows.astype(np.float64)
    slack = 1e-2 if rows.dtype == np.float16 else 1e-3
    return bool(np.isfinite(wide).all() and (wide >= 0).all() and (np.abs(wide.sum(axis=1) - 1) <= slack).all())


def _check_choice(model: onnx.ModelProto, chain: _Chain, shape: Sequence[int], n_classes: int) -> None:
    """The graph must choose one class: no sigmoids, and a softmax over the classes alone."""
    made_by = makers(model.graph)
    node = made_by.get(chain.value)
    if chain.softmax is None and node is not None and node.op_type in ("Sigmoid", "HardSigmoid"):
        raise ExportError(
            f"output {chain.output!r} ends in {title(node)}: each class is answered yes or no by itself (multi-label). Convoy "
            "serves classifiers that choose one class; a softmax over such scores would mean something else."
        )
    if chain.softmax is None:
        return
    version = opset_version(model)
    axis = attribute(made_by[chain.softmax], "axis", 1 if version < 13 else -1)
    axis = (axis if isinstance(axis, int) else 0) % max(len(shape), 1)
    normalised = int(np.prod(shape[axis:])) if version < 13 else int(shape[axis])  # before opset 13 all axes from there on
    if normalised != n_classes:
        raise ExportError(
            f"{title(made_by[chain.softmax])}: expected a softmax over the {n_classes} classes, found one over {normalised} values "
            f"(axis {axis} of {list(shape)} at opset {version}): its result does not depend on the classes as it should."
        )
