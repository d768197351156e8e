"""Ways in which an exported file can be wrong: each changes one place of an ONNX graph and says which nodes are right to blame."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

CONTRACTIONS = ("Conv", "Gemm", "MatMul")
ACTIVATIONS = ("Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Erf", "Tanh", "Gelu", "Softmax")
POOLS = {"MaxPool": "AveragePool", "AveragePool": "MaxPool", "GlobalAveragePool": "GlobalMaxPool"}


@dataclass(frozen=True)
class Site:
    """Where a mutation can be put.

    Attributes:
        model: A copy of the export that may be changed.
        node: The node in it.
        values: For a few images, what each value holds in the export, by name.
        rng: For all choices.
    """

    model: onnx.ModelProto
    node: onnx.NodeProto
    values: Mapping[str, npt.NDArray[Any]]
    rng: np.random.Generator

    @property
    def graph(self) -> onnx.GraphProto:
        """The graph that the node stands in."""
        return self.model.graph

    def initializer(self, place: int) -> onnx.TensorProto | None:
        """The weight that the node reads at ``place``, where no other node reads it; None where there is none."""
        if place >= len(self.node.input):
            return None
        name = self.node.input[place]
        readers = sum(list(node.input).count(name) for node in self.graph.node)
        return next((tensor for tensor in self.graph.initializer if tensor.name == name and readers == 1), None)

    def add_constant(self, array: npt.NDArray[Any]) -> str:
        """A new weight; its name."""
        name = f"mutation_{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def insert_after(self, nodes: list[onnx.NodeProto]) -> set[str]:
        """Put a chain of nodes between the node and those that read its first output; the chain's names.

        Each node of the chain gets its data input and its output here; further inputs are already there, behind an empty first one.
        """
        value = self.node.output[0]
        last = f"{value}_mutated"
        for other in self.graph.node:
            for i, name in enumerate(other.input):
                if name == value:
                    other.input[i] = last
        source = value
        place = list(self.graph.node).index(self.node) + 1
        for i, node in enumerate(nodes):
            node.name = f"mutation_{i}_{node.op_type}"
            node.input[0] = source
            source = last if i == len(nodes) - 1 else f"{value}_mutation_{i}"
            node.output[0] = source
            self.graph.node.insert(place + i, node)
        del self.graph.value_info[:]
        return {node.name for node in nodes}

    def readers(self, value: str) -> list[onnx.NodeProto]:
        """The nodes that read a value."""
        return [node for node in self.graph.node if value in node.input]

    def is_output(self) -> bool:
        """Whether the graph gives the node's first output to the caller."""
        return self.node.output[0] in {value.name for value in self.graph.output}


Mutation = Callable[[Site], "set[str] | None"]
"""Changes the model at a site; the names of the nodes that are right to blame, or None where the site does not allow it."""

KINDS: dict[str, Mutation] = {}


def kind(name: str) -> Callable[[Mutation], Mutation]:
    """Register a mutation under its name."""

    def register(mutation: Mutation) -> Mutation:
        KINDS[name] = mutation
        return mutation

    return register


def _edit(site: Site, place: int, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any] | None]) -> set[str] | None:
    tensor = site.initializer(place)
    if tensor is None or tensor.data_type != TensorProto.FLOAT:
        return None
    before = numpy_helper.to_array(tensor)
    after = change(before.copy())
    if after is None or (after.shape == before.shape and after.tobytes() == before.tobytes()):
        return None
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(after), tensor.name))
    return {site.node.name}


def _of(site: Site, *op_types: str) -> bool:
    return site.node.op_type in op_types


@kind("a weight off by a little")
def _(site: Site) -> set[str] | None:
    def change(weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
        i = tuple(site.rng.integers(0, size) for size in weight.shape)
        weight[i] *= 1 + 2.0 ** -int(site.rng.integers(3, 12))
        return weight

    return _edit(site, 1, change) if _of(site, *CONTRACTIONS) else None


@kind("a weight off by a bit")
def _(site: Site) -> set[str] | None:
    def change(weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
        i = tuple(site.rng.integers(0, size) for size in weight.shape)
        bits = weight.view(np.uint32)
        bits[i] ^= np.uint32(1 << int(site.rng.integers(0, 32)))
        return weight

    return _edit(site, 1, change) if _of(site, *CONTRACTIONS) else None


@kind("a weight off by much")
def _(site: Site) -> set[str] | None:
    def change(weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
        i = tuple(site.rng.integers(0, size) for size in weight.shape)
        weight[i] += np.float32(10 * (np.abs(weight).max() + 0.1))
        return weight

    return _edit(site, 1, change) if _of(site, *CONTRACTIONS) else None


@kind("weights scaled")
def _(site: Site) -> set[str] | None:
    return _edit(site, 1, lambda weight: weight * np.float32(1.25)) if _of(site, *CONTRACTIONS) else None


def _swap(weight: npt.NDArray[Any], axis: int, rng: np.random.Generator) -> npt.NDArray[Any] | None:
    if axis >= weight.ndim or weight.shape[axis] < 2:
        return None
    order = np.arange(weight.shape[axis])
    first, second = rng.choice(len(order), 2, replace=False)
    order[[first, second]] = order[[second, first]]
    return np.take(weight, order, axis=axis)


@kind("output channels swapped")
def _(site: Site) -> set[str] | None:
    return _edit(site, 1, lambda weight: _swap(weight, 0, site.rng)) if _of(site, "Conv", "Gemm") else None


@kind("input channels swapped")
def _(site: Site) -> set[str] | None:
    return _edit(site, 1, lambda weight: _swap(weight, 1, site.rng)) if _of(site, *CONTRACTIONS) else None


@kind("bias off")
def _(site: Site) -> set[str] | None:
    def change(bias: npt.NDArray[Any]) -> npt.NDArray[Any]:
        bias[site.rng.integers(0, bias.size)] += np.float32(0.1 + np.abs(bias).max())
        return bias

    return _edit(site, 2, change) if _of(site, "Conv", "Gemm", "LayerNormalization") else None


@kind("NaN in a bias")
def _(site: Site) -> set[str] | None:
    def change(bias: npt.NDArray[Any]) -> npt.NDArray[Any]:
        bias[site.rng.integers(0, bias.size)] = np.nan
        return bias

    return _edit(site, 2, change) if _of(site, "Conv", "Gemm", "LayerNormalization") else None


def _set(node: onnx.NodeProto, name: str, value: Any) -> set[str]:
    for i, attribute in enumerate(node.attribute):
        if attribute.name == name:
            del node.attribute[i]
            break
    node.attribute.append(helper.make_attribute(name, value))
    return {node.name}


def _get(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(attribute) for attribute in node.attribute if attribute.name == name), default)


@kind("padding moved")
def _(site: Site) -> set[str] | None:
    pads = list(_get(site.node, "pads", [])) if _of(site, "Conv", "MaxPool", "AveragePool") else []
    if len(pads) != 4 or not any(pads):
        return None
    return _set(site.node, "pads", [pads[0] + pads[2], pads[1], 0, pads[3]])


@kind("padding lost")
def _(site: Site) -> set[str] | None:
    pads = list(_get(site.node, "pads", [])) if _of(site, "Conv") else []
    return _set(site.node, "pads", [0] * len(pads)) if any(pads) else None


@kind("stride changed")
def _(site: Site) -> set[str] | None:
    if not _of(site, "Conv", "MaxPool", "AveragePool"):
        return None
    strides = list(_get(site.node, "strides", [1, 1]))
    return _set(site.node, "strides", [2 if stride == 1 else 1 for stride in strides])


@kind("dilation changed")
def _(site: Site) -> set[str] | None:
    """Pads grow with it, so that only the values change."""
    if not _of(site, "Conv"):
        return None
    kernel, pads = list(_get(site.node, "kernel_shape", [])), list(_get(site.node, "pads", [0, 0, 0, 0]))
    if len(kernel) != 2 or min(kernel) < 2 or list(_get(site.node, "dilations", [1, 1])) != [1, 1]:
        return None
    grown = [
        pad + extra
        for pad, extra in zip(pads, [(k - 1) // 2 for k in kernel] + [k - 1 - (k - 1) // 2 for k in kernel], strict=True)
    ]
    _set(site.node, "pads", grown)
    return _set(site.node, "dilations", [2, 2])


@kind("epsilon wrong")
def _(site: Site) -> set[str] | None:
    if _of(site, "LayerNormalization", "BatchNormalization", "InstanceNormalization"):
        return _set(site.node, "epsilon", 0.05)
    return None


def _unfold(site: Site, *, epsilon: float, training: bool) -> set[str] | None:
    """Put a batch norm behind a convolution that keeps what it makes, but for the fault: its statistics are the true ones."""
    truth = site.values.get(site.node.output[0]) if _of(site, "Conv") else None
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
    perm = list(_get(site.node, "perm", [])) if _of(site, "Transpose") else []
    if len(perm) < 3:
        return None
    first, second = site.rng.choice(np.arange(1, len(perm)), 2, replace=False)
    perm[first], perm[second] = perm[second], perm[first]
    return _set(site.node, "perm", perm)


@kind("Gemm's weights not transposed")
def _(site: Site) -> set[str] | None:
    if not _of(site, "Gemm") or not _get(site.node, "transB", 0):
        return None
    return _edit(site, 1, lambda weight: weight.T.reshape(weight.shape))


@kind("preprocessing doubled")
def _(site: Site) -> set[str] | None:
    """The node and, where they follow as a chain, the rest of the preprocessing once more."""
    if not _preprocessing(site) or site.node.op_type == "Cast":
        return None
    chain = [site.node]
    twins = []
    for node in chain:
        twin = onnx.NodeProto()
        twin.CopyFrom(node)
        twin.input[0], twin.output[0] = "", ""
        if any(name and name not in {tensor.name for tensor in site.graph.initializer} for name in twin.input):
            return None
        twins.append(twin)
    return site.insert_after(twins) | {site.node.name}


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
        site.node.name in before and _of(site, "Div", "Sub", "Mul", "Cast") and data[0] in (site.values.keys() | {"image"})
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
    if not _of(site, *ACTIVATIONS) or site.values.get(site.node.input[0]) is None:
        return None
    return _bypass(site)


@kind("activation replaced")
def _(site: Site) -> set[str] | None:
    if not _of(site, *ACTIVATIONS):
        return None
    others = [name for name in ("Relu", "Sigmoid", "Tanh", "Identity", "HardSwish") if name != site.node.op_type]
    site.node.op_type = str(site.rng.choice(others))
    del site.node.attribute[:]
    del site.node.input[1:]
    return {site.node.name}


@kind("residual edge rewired")
def _(site: Site) -> set[str] | None:
    if not _of(site, "Add", "Concat", "Mul"):
        return None
    dynamic = [i for i, name in enumerate(site.node.input) if site.values.get(name) is not None and site.values[name].ndim >= 3]
    if len(dynamic) < 2:
        return None
    place = int(site.rng.choice(dynamic))
    now = site.node.input[place]
    earlier = []
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
        if not _of(site, "ReduceMean"):
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
    truth = site.values.get(site.node.output[0]) if _of(site, "Reshape") else None
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
    if not site.is_output() or not _of(site, "Softmax"):
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


def mutations_at(model: onnx.ModelProto) -> Iterator[tuple[str, int]]:
    """All pairs of kind and node of a model; not every pair is possible."""
    for name in KINDS:
        for i in range(len(model.graph.node)):
            yield name, i
