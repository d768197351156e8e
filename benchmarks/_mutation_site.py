"""A place in an exported graph that a mutation changes, and the register of mutations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper


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


def edit_weight(site: Site, place: int, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any] | None]) -> set[str] | None:
    """Change the weight that the node alone reads at ``place``; None where there is none, or nothing changes."""
    tensor = site.initializer(place)
    if tensor is None or tensor.data_type != TensorProto.FLOAT:
        return None
    before = numpy_helper.to_array(tensor)
    after = change(before.copy())
    if after is None or (after.shape == before.shape and after.tobytes() == before.tobytes()):
        return None
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(after), tensor.name))
    return {site.node.name}


def is_of(site: Site, *op_types: str) -> bool:
    """Whether the node has one of these operators."""
    return site.node.op_type in op_types


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> set[str]:
    """Set an attribute; the node's name."""
    for i, attribute in enumerate(node.attribute):
        if attribute.name == name:
            del node.attribute[i]
            break
    node.attribute.append(helper.make_attribute(name, value))
    return {node.name}


def get_attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """An attribute's value, or ``default``."""
    return next((helper.get_attribute_value(attribute) for attribute in node.attribute if attribute.name == name), default)
