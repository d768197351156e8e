"""Ways in which an exported file can be wrong: each changes one place of an ONNX graph and says which nodes are right to blame."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from benchmarks._mutation_site import Site, edit_weight, get_attribute, is_of, kind, set_attribute

CONTRACTIONS = ("Conv", "Gemm", "MatMul")
ACTIVATIONS = ("Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Erf", "Tanh", "Gelu", "Softmax")
POOLS = {"MaxPool": "AveragePool", "AveragePool": "MaxPool", "GlobalAveragePool": "GlobalMaxPool"}


@kind("a weight off by a little")
def _(site: Site) -> set[str] | None:
    def change(weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
        i = tuple(site.rng.integers(0, size) for size in weight.shape)
        weight[i] *= 1 + 2.0 ** -int(site.rng.integers(3, 12))
        return weight

    return edit_weight(site, 1, change) if is_of(site, *CONTRACTIONS) else None


@kind("a weight off by a bit")
def _(site: Site) -> set[str] | None:
    def change(weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
        i = tuple(site.rng.integers(0, size) for size in weight.shape)
        bits = weight.view(np.uint32)
        bits[i] ^= np.uint32(1 << int(site.rng.integers(0, 32)))
        return weight

    return edit_weight(site, 1, change) if is_of(site, *CONTRACTIONS) else None


@kind("a weight off by much")
def _(site: Site) -> set[str] | None:
    def change(weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
        i = tuple(site.rng.integers(0, size) for size in weight.shape)
        weight[i] += np.float32(10 * (np.abs(weight).max() + 0.1))
        return weight

    return edit_weight(site, 1, change) if is_of(site, *CONTRACTIONS) else None


@kind("weights scaled")
def _(site: Site) -> set[str] | None:
    return edit_weight(site, 1, lambda weight: weight * np.float32(1.25)) if is_of(site, *CONTRACTIONS) else None


def _swap(weight: npt.NDArray[Any], axis: int, rng: np.random.Generator) -> npt.NDArray[Any] | None:
    if axis >= weight.ndim or weight.shape[axis] < 2:
        return None
    order = np.arange(weight.shape[axis])
    first, second = rng.choice(len(order), 2, replace=False)
    order[[first, second]] = order[[second, first]]
    taken: npt.NDArray[Any] = np.take(weight, order, axis=axis)
    return taken


@kind("output channels swapped")
def _(site: Site) -> set[str] | None:
    return edit_weight(site, 1, lambda weight: _swap(weight, 0, site.rng)) if is_of(site, "Conv", "Gemm") else None


@kind("input channels swapped")
def _(site: Site) -> set[str] | None:
    return edit_weight(site, 1, lambda weight: _swap(weight, 1, site.rng)) if is_of(site, *CONTRACTIONS) else None


@kind("bias off")
def _(site: Site) -> set[str] | None:
    def change(bias: npt.NDArray[Any]) -> npt.NDArray[Any]:
        bias[site.rng.integers(0, bias.size)] += np.float32(0.1 + np.abs(bias).max())
        return bias

    return edit_weight(site, 2, change) if is_of(site, "Conv", "Gemm", "LayerNormalization") else None


@kind("NaN in a bias")
def _(site: Site) -> set[str] | None:
    def change(bias: npt.NDArray[Any]) -> npt.NDArray[Any]:
        bias[site.rng.integers(0, bias.size)] = np.nan
        return bias

    return edit_weight(site, 2, change) if is_of(site, "Conv", "Gemm", "LayerNormalization") else None


@kind("padding moved")
def _(site: Site) -> set[str] | None:
    pads = list(get_attribute(site.node, "pads", [])) if is_of(site, "Conv", "MaxPool", "AveragePool") else []
    if len(pads) != 4 or not any(pads):
        return None
    return set_attribute(site.node, "pads", [pads[0] + pads[2], pads[1], 0, pads[3]])


@kind("padding lost")
def _(site: Site) -> set[str] | None:
    pads = list(get_attribute(site.node, "pads", [])) if is_of(site, "Conv") else []
    return set_attribute(site.node, "pads", [0] * len(pads)) if any(pads) else None


@kind("stride changed")
def _(site: Site) -> set[str] | None:
    if not is_of(site, "Conv", "MaxPool", "AveragePool"):
        return None
    strides = list(get_attribute(site.node, "strides", [1, 1]))
    return set_attribute(site.node, "strides", [2 if stride == 1 else 1 for stride in strides])


@kind("dilation changed")
def _(site: Site) -> set[str] | None:
    """Pads grow with it, so that only the values change."""
    if not is_of(site, "Conv"):
        return None
    kernel, pads = list(get_attribute(site.node, "kernel_shape", [])), list(get_attribute(site.node, "pads", [0, 0, 0, 0]))
    if len(kernel) != 2 or min(kernel) < 2 or list(get_attribute(site.node, "dilations", [1, 1])) != [1, 1]:
        return None
    grown = [
        pad + extra
        for pad, extra in zip(pads, [(k - 1) // 2 for k in kernel] + [k - 1 - (k - 1) // 2 for k in kernel], strict=True)
    ]
    set_attribute(site.node, "pads", grown)
    return set_attribute(site.node, "dilations", [2, 2])


@kind("epsilon wrong")
def _(site: Site) -> set[str] | None:
    if is_of(site, "LayerNormalization", "BatchNormalization", "InstanceNormalization"):
        return set_attribute(site.node, "epsilon", 0.05)
    return None


def _unfold(site: Site, *, epsilon: float, training: bool) -> set[str] | None:
    """Put a batch norm behind a convolution that keeps what it makes, but for the fault: its statistics are the true ones."""
    truth = site.values.get(site.node.output[0]) if is_of(site, "Conv") else None
    if truth is None or site.is_output() or truth.shape[0] * truth.shape[2] * truth.shape[3] < 4:
        return None
    axes = (0, 2, 3)
    mean, variance = (1.1 * truth.mean(axis=axes)).astype(np.float32), (1.2 * truth.var(axis=axes) + 1e-3).astype(np.float32)
    scale = np.sqrt(variance.astype(np.float64) + 1e-5).astype(np.float32)
    names = [site.add_constant(array) for array in (scale, mean, mean, variance)]
    node = helper.make_node("BatchNormalization", ["", *names], [""], epsilon=epsilon)
    if training:
        node.attribute.append(helper.make_attribute("training_mode", 1))
        node.output.extend(["mutation_mean", "mutation_variance"])
    return site.insert_after([node])


@kind("batch norm in training mode")
def _(site: Site) -> set[str] | None:
    return _unfold(site, epsilon=1e-5, training=True)


@kind("batch norm with another epsilon")
def _(site: Site) -> set[str] | None:
    return _unfold(site, epsilon=0.1, training=False)


@kind("dropout in training mode")
def _(site: Site) -> set[str] | None:
    truth = site.values.get(site.node.output[0])
    if truth is None or truth.dtype != np.float32 or truth.ndim < 2 or site.is_output():
        return None
    names = [site.add_constant(np.array(0.3, dtype=np.float32)), site.add_constant(np.array(True))]
    return site.insert_after([helper.make_node("Dropout", ["", *names], [""])])


@kind("axes swapped by a Transpose")
def _(site: Site) -> set[str] | None:
    """Two axes of one length, so that the file still runs."""
    truth = site.values.get(site.node.output[0])
    if truth is None or truth.dtype != np.float32 or site.is_output():
        return None
    pairs = [(a, b) for a in range(1, truth.ndim) for b in range(a + 1, truth.ndim) if truth.shape[a] == truth.shape[b] > 1]
    if not pairs:
        return None
    first, second = pairs[site.rng.integers(0, len(pairs))]
    perm = list(range(truth.ndim))
    perm[first], perm[second] = second, first
    return site.insert_after([helper.make_node("Transpose", [""], [""], perm=perm)])


@kind("another perm")
def _(site: Site) -> set[str] | None:
    perm = list(get_attribute(site.node, "perm", [])) if is_of(site, "Transpose") else []
    if len(perm) < 3:
        return None
    first, second = site.rng.choice(np.arange(1, len(perm)), 2, replace=False)
    perm[first], perm[second] = perm[second], perm[first]
    return set_attribute(site.node, "perm", perm)


@kind("Gemm's weights not transposed")
def _(site: Site) -> set[str] | None:
    if not is_of(site, "Gemm") or not get_attribute(site.node, "transB", 0):
        return None
    return edit_weight(site, 1, lambda weight: weight.T.reshape(weight.shape))


@kind("preprocessing doubled")
def _(site: Site) -> set[str] | None:
    """The node, and what follows it up to where the image is laid out or convolved, once more."""
    if not _preprocessing(site) or site.node.op_type == "Cast":
        return None
    chain = [site.node]
    while len(readers := site.readers(chain[-1].output[0])) == 1 and readers[0].op_type in ("Div", "Sub", "Mul"):
        chain.append(readers[0])
    twins = []
    for node in chain:
        twin = onnx.NodeProto()
        twin.CopyFrom(node)
        twin.input[0], twin.output[0] = "", ""
        if any(name and name not in {tensor.name for tensor in site.graph.initializer} for name in twin.input):
            return None
        twins.append(twin)
    return replace(site, node=chain[-1]).insert_after(twins)


@kind("preprocessing missing")
def _(site: Site) -> set[str] | None:
    return _bypass(site) if _preprocessing(site) and site.node.op_type != "Cast" else None


def _preprocessing(site: Site) -> bool:
    before = []
    for node in site.graph.node:
        if node.op_type in CONTRACTIONS:
            break
        before.append(node.name)
    data = list(site.node.input[:1])
    return (
        site.node.name in before and is_of(site, "Div", "Sub", "Mul", "Cast") and data[0] in (site.values.keys() | {"image"})
        and site.values.get(site.node.output[0], np.zeros(0)).ndim == 4
    )  # fmt: skip


def _bypass(site: Site) -> set[str] | None:
    """Take the node out; its readers read what it read."""
    value, source = site.node.output[0], site.node.input[0]
    readers = site.readers(value)
    if site.is_output() or not readers or site.values[source].shape != site.values[value].shape:
        return None
    for reader in readers:
        for i, name in enumerate(reader.input):
            if name == value:
                reader.input[i] = source
    site.graph.node.remove(site.node)
    return {reader.name for reader in readers}


@kind("activation removed")
def _(site: Site) -> set[str] | None:
    if not is_of(site, *ACTIVATIONS) or site.values.get(site.node.input[0]) is None:
        return None
    return _bypass(site)


@kind("activation replaced")
def _(site: Site) -> set[str] | None:
    if not is_of(site, *ACTIVATIONS):
        return None
    others = [name for name in ("Relu", "Sigmoid", "Tanh", "Identity", "HardSwish") if name != site.node.op_type]
    site.node.op_type = str(site.rng.choice(others))
    del site.node.attribute[:]
    del site.node.input[1:]
    return {site.node.name}


@kind("residual edge rewired")
def _(site: Site) -> set[str] | None:
    if not is_of(site, "Add", "Concat", "Mul"):
        return None
    dynamic = [i for i, name in enumerate(site.node.input) if site.values.get(name) is not None and site.values[name].ndim >= 3]
    if len(dynamic) < 2:
        return None
    place = int(site.rng.choice(dynamic))
    now = site.node.input[place]
    earlier: list[str] = []
    for node in site.graph.node:
        if node.name == site.node.name:
            break
        earlier.extend(node.output)
    same = [
        name
        for name in earlier
        if name and name != now and name in site.values and site.values[name].shape == site.values[now].shape
    ]
    same = [name for name in same if site.values[name].dtype == site.values[now].dtype]
    if not same:
        return None
    site.node.input[place] = str(site.rng.choice(same))
    return {site.node.name}


@kind("pooling of another kind")
def _(site: Site) -> set[str] | None:
    if site.node.op_type not in POOLS:
        if not is_of(site, "ReduceMean"):
            return None
        site.node.op_type = "ReduceMax"
        return {site.node.name}
    site.node.op_type = POOLS[site.node.op_type]
    kept = [
        attribute
        for attribute in site.node.attribute
        if attribute.name in ("kernel_shape", "pads", "strides", "ceil_mode", "auto_pad")
    ]
    del site.node.attribute[:]
    site.node.attribute.extend(kept)
    return {site.node.name}


@kind("batch axis frozen in a Reshape")
def _(site: Site) -> set[str] | None:
    truth = site.values.get(site.node.output[0]) if is_of(site, "Reshape") else None
    if truth is None or truth.shape[0] != site.values["image"].shape[0]:
        return None
    shape = np.array(truth.shape, dtype=np.int64)
    shape[0] = site.rng.choice([1, 2, 4])
    site.node.input[1] = site.add_constant(shape)
    del site.graph.value_info[:]
    return {site.node.name}


@kind("batch axis frozen at the border")
def _(site: Site) -> set[str] | None:
    if site.node.name != site.graph.node[0].name:
        return None
    size = int(site.rng.choice([1, 2, 4]))
    names = set()
    for value in (*site.graph.input, *site.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = size
        names.add(value.name)
    del site.graph.value_info[:]
    return names


@kind("outputs swapped")
def _(site: Site) -> set[str] | None:
    if not site.is_output() or not is_of(site, "Softmax"):
        return None
    first, second = (value.name for value in site.graph.output)
    makers = {node.name for node in site.graph.node if node.output[0] in (first, second)}
    swap = {first: second, second: first}
    for node in site.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = swap.get(name, name)
    return makers


@kind("float16 overflow")
def _(site: Site) -> set[str] | None:
    """A detour through float16, scaled as a loss scale would, beyond what float16 holds."""
    truth = site.values.get(site.node.output[0])
    if truth is None or truth.dtype != np.float32 or truth.ndim < 2 or site.is_output() or not np.abs(truth).max() > 0:
        return None
    factor = np.float32(2.0 ** np.ceil(np.log2(1e5 / np.abs(truth).max())))
    up = helper.make_node("Mul", ["", site.add_constant(np.array(factor))], [""])
    down = helper.make_node("Mul", ["", site.add_constant(np.array(1 / factor))], [""])
    half, whole = (helper.make_node("Cast", [""], [""], to=to) for to in (TensorProto.FLOAT16, TensorProto.FLOAT))
    chain = [up, half, whole, down]
    site.insert_after(chain)
    return {half.name}
