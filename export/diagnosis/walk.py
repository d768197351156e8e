"""A walk over a file's nodes in topological order, each on true inputs: which is the first that gives something else?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from convoy.export.diagnosis.difference import agree, find_permutation, max_abs_diff
from convoy.export.diagnosis.running import NodeError, as_datatype, run_node
from convoy.export.diagnosis.structure import Node, Structure, opset_version
from convoy.export.diagnosis.trace import Trace
from convoy.export.diagnosis.values import Values

Value = npt.NDArray[Any]
_MATCH_FACTOR = 4
"""How many times the allowed difference a value whose inputs are not all true may lie from the truth that it is taken for."""
_MILD_FACTOR = 16
"""How many times the allowed difference a node of the fresh export may depart before it counts at once."""
_MATCH_SIZE = 8
"""The fewest elements by which a value can be told from others."""


@dataclass(frozen=True)
class Meaning:
    """Which true value a value of the file is.

    Attributes:
        name: The true value.
        axes: The permutation of its axes that the file's value has; None for none.
        shape: The shape that the file's value has.
    """

    name: str
    axes: tuple[int, ...] | None
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Departure:
    """The node at which a file departs.

    Attributes:
        node: The node.
        output: Which of its values.
        expected: The true value that it should be; empty where there is none (a node that the source does not have).
        actual: What it makes; None where it fails.
        error: ONNX Runtime's words where it fails.
        suspects: Other nodes that could be it.
        inserted: The source has no such node.
    """

    node: Node
    output: str
    expected: str
    actual: Value | None
    error: str = ""
    suspects: tuple[Node, ...] = ()
    inserted: bool = False


class Walk:
    """One walk of one file along one trace.

    Each node is fed what its inputs *should* be, so that its output shows what the node itself adds, to within one operator's
    rounding. A bisection of the whole file's own values would be quicker where intermediate values are dear, but it relies on a
    difference staying a difference further down, and it does not: ReLU, max pooling, softmax and rounding hide it, and rounding
    that has piled up over the layers before hides a small one. One node at a time costs about as much as running the file once.

    Names are believed where most of the named nodes have the operator and the inputs that they have in the trace; values of other
    names, or all where names are not believed, are told by what they hold: a true value, in some order of axes or another shape. A
    value that is no true value is passed on as it is; where a true value departs further down, the nodes in between are asked
    backwards which of them gives the right answer once its inputs are put right.

    Args:
        file: The file under test.
        trace: The truth.
    """

    def __init__(self, file: Structure, trace: Trace) -> None:
        self.file = file
        self.trace = trace
        self.trusted = names_are_shared(file, trace)
        self.meanings: dict[str, Meaning] = {}
        self.uncovered: list[Node] = []
        self.mild: Departure | None = None
        """The first node that departs a little in the fresh export itself: rounding most likely, unless nothing else is found."""
        self.shares: dict[int, float] = {}
        """By node, what it adds as a share of what is allowed, for nodes that are not the fresh export's own."""
        self._own = Values()
        self._means: dict[int, list[tuple[str, float, float]]] = {}
        self._outputs = (
            dict(zip(file.outputs, trace.structure.outputs, strict=False))
            if set(file.outputs) != set(trace.structure.outputs)
            else {}
        )

    def run(self) -> Departure | None:
        """Walk until a node departs; None where none does."""
        for node in self.file.nodes:
            if self._is_own(node) and all(name not in self.trace.departing for name in node.makes):
                self.meanings.update({name: Meaning(name, None, self.trace.values[name].shape) for name in node.makes})
                continue
            if (error := self._step(node)) is not None:
                return error
        return None

    def value(self, name: str) -> Value:
        """What a value of the file should be, or is where there is no truth for it, in the file's datatype.

        Raises:
            KeyError: Nothing made it.
        """
        if name in self.file.inputs:
            return as_datatype(self.trace.images, self.file.datatypes.get(name))
        if name not in self.meanings:
            return self._own[name]
        meaning = self.meanings[name]
        truth = self.trace.values[meaning.name]
        truth = truth if meaning.axes is None else truth.transpose(meaning.axes)
        return np.ascontiguousarray(as_datatype(truth, self.file.datatypes.get(name))).reshape(meaning.shape)

    def feeds(self, node: Node) -> dict[str, Value]:
        """A node's inputs, as far as they are there."""
        return {name: self.value(name) for name in node.reads if self._is_there(name)}

    def counterpart(self, expected: str) -> Node | None:
        """The trace's own node for a true value."""
        return self.trace.structure.makers.get(expected)

    def expected(self, output: str) -> str:
        """The true value that a value of the file must be by its name; empty where its name does not say."""
        name = self._outputs.get(output, output)
        believed = self.trusted or output in self.file.outputs
        return name if believed and name in self.trace.proven else ""

    def _step(self, node: Node) -> Departure | None:
        expected = next(filter(None, map(self.expected, node.makes)), "")
        output = next((name for name in node.makes if self.expected(name)), node.makes[0] if node.makes else "")
        if any(name in self.file.makers and not self._is_there(name) for name in node.reads) and node.index not in self.file.cyclic:
            self._skip(node)  # it reads what is no tensor, or what could not be computed
            return None
        try:
            made = run_node(self.file, node, self.feeds(node))
        except NodeError as error:
            return self._blame(Departure(node, output, expected, None, str(error)))
        for name, value in made.items():
            if self._departs(node, name, value):
                if self._is_mild(node, name, value):
                    self.mild = self.mild or Departure(node, name, name, value)
                    self.meanings[name] = Meaning(name, None, value.shape)
                    continue
                return self._blame(Departure(node, name, self.expected(name), value))
        return None

    def _skip(self, node: Node) -> None:
        self.uncovered.append(node)
        for name in node.makes:
            if expected := self.expected(name):
                self.meanings[name] = Meaning(expected, None, self.trace.values[expected].shape)

    def _departs(self, node: Node, name: str, value: Value) -> bool:
        """Settle what a value is; whether it is not what its name promises."""
        truth_name = self.expected(name)
        helper = "" if truth_name or not self.trusted or name not in self.trace.values else name
        if truth_name or helper:
            truth, allowed = self.trace.values[truth_name or helper], self.trace.allowed[truth_name or helper]
            if truth.shape == value.shape:
                diff = max_abs_diff(truth, value)
                if diff <= allowed:
                    self.meanings[name] = Meaning(truth_name or helper, None, value.shape)
                    self.shares[node.index] = max(self.shares.get(node.index, 0.0), diff / allowed if allowed else 0.0)
                    return False
            if truth_name and (name in self.file.outputs or not _is_relaid(truth, value, allowed)):
                return True
        elif (meaning := self._find(value)) is not None:
            self.meanings[name] = meaning
            return False
        self._own.add(name, value)
        return False

    def _is_mild(self, node: Node, name: str, value: Value) -> bool:
        """Whether a departure is a small one of the fresh export itself."""
        if name not in self.trace.departing or not self._is_own(node) or value.shape != self.trace.values[name].shape:
            return False
        return max_abs_diff(self.trace.values[name], value) <= _MILD_FACTOR * self.trace.allowed[name]

    def _is_own(self, node: Node) -> bool:
        """Whether the node is the fresh export's own, on the same values, which all have a truth."""
        if not self.trusted or not self._same_operators or not node.makes:
            return False
        fresh = self.counterpart(node.makes[0])
        return (
            fresh is not None
            and fresh.makes == node.makes
            and fresh.reads == node.reads
            and all(name in self.trace.values for name in node.makes)
            and all(self._is_plain(name) for name in node.reads)
            and self.trace.structure.signature(fresh) == self.file.signature(node)
        )

    @cached_property
    def _same_operators(self) -> bool:
        return opset_version(self.file.model) == opset_version(self.trace.structure.model)

    def _is_there(self, name: str) -> bool:
        return name in self.meanings or name in self._own or name in self.file.inputs

    def _is_plain(self, name: str) -> bool:
        """Whether a value is a true one as it stands, and, where names are believed, the one that it is named after."""
        if name in self.file.inputs:
            return True
        meaning = self.meanings.get(name)
        if meaning is None or (self.trusted and meaning.name != self._outputs.get(name, name)):
            return False
        return meaning.axes is None and meaning.shape == self.trace.values[meaning.name].shape

    def _blame(self, first: Departure) -> Departure:
        """Ask backwards, from a departing node over inputs that are no true values, which node it was."""
        found: list[Departure] = []
        seen: set[int] = set()
        work = [first]
        while work:
            departure = work.pop()
            if departure.node.index in seen:
                continue
            seen.add(departure.node.index)
            blamed, earlier = self._ask(departure)
            found.extend(blamed)
            work.extend(earlier)
        return min(found, key=lambda departure: departure.node.index)

    def _ask(self, departure: Departure) -> tuple[list[Departure], list[Departure]]:
        """Whom to blame for one departing node, and whom to ask next."""
        node = departure.node
        doubtful = [place for place, name in enumerate(node.reads) if not self._is_plain(name)]
        fresh = self.counterpart(departure.expected)
        if not doubtful:
            return [self._with_novelty(departure, fresh)], []
        if fresh is None or fresh.op_type != node.op_type or len(fresh.reads) != len(node.reads):
            return [self._first_unknown(departure)], []
        truths = {place: fresh.reads[place] for place in doubtful}
        if any(name not in self.trace.values for name in truths.values()):
            others = tuple(other for other in self._unknown_before(node) if other.index != node.index)
            return [Departure(node, departure.output, departure.expected, departure.actual, departure.error, others)], []
        if not self._is_right_on(departure, fresh, truths):
            return [departure], []
        earlier = []
        for place, truth_name in truths.items():
            name = node.reads[place]
            maker = self.file.makers.get(name)
            allowed = _MATCH_FACTOR * self.trace.allowed[truth_name]
            actual = self.value(name) if self._is_there(name) else None
            if maker is not None and (actual is None or not agree(self.trace.values[truth_name], actual, allowed)):
                earlier.append(Departure(maker, name, truth_name, actual))
        return ([] if earlier else [departure]), earlier

    def _is_right_on(self, departure: Departure, fresh: Node, truths: Mapping[int, str]) -> bool:
        """Whether a node gives the truth once the inputs at the given places are put right."""
        node, feeds = departure.node, self.feeds(departure.node)
        for place, truth_name in truths.items():
            name = node.reads[place]
            feeds[name] = as_datatype(self.trace.values[truth_name], self.file.datatypes.get(name))
        try:
            made = run_node(self.file, node, feeds)
        except NodeError:
            return False
        place = fresh.makes.index(departure.expected)
        if place >= len(node.makes) or node.makes[place] not in made:
            return False
        allowed = _MATCH_FACTOR * self.trace.allowed[departure.expected]
        return agree(self.trace.values[departure.expected], made[node.makes[place]], allowed)

    def _with_novelty(self, departure: Departure, fresh: Node | None) -> Departure:
        known = fresh is not None and (fresh.op_type == departure.node.op_type or self.expected(departure.output))
        if known:
            return departure
        return Departure(departure.node, departure.output, departure.expected, departure.actual, departure.error, (), inserted=True)

    def _first_unknown(self, departure: Departure) -> Departure:
        """Among nodes that the source does not have: the first that makes NaN or infinity of finite values, else the first."""
        nodes = self._unknown_before(departure.node)
        chosen = next(filter(self._breaks, nodes), nodes[0])
        others = tuple(node for node in nodes if node.index != chosen.index)
        if chosen.index == departure.node.index:
            return Departure(chosen, departure.output, departure.expected, departure.actual, departure.error, others)
        output = next(iter(chosen.makes), "")
        return Departure(chosen, output, "", self._own.get(output), "", others, inserted=True)

    def _unknown_before(self, node: Node) -> list[Node]:
        """The node and those before it whose values are no true ones, in topological order."""
        found = {node.index: node}
        stack = [node]
        while stack:
            for name in stack.pop().reads:
                maker = self.file.makers.get(name)
                if maker is not None and maker.index not in found and not self._is_plain(name):
                    found[maker.index] = maker
                    stack.append(maker)
        return [found[index] for index in sorted(found)]

    def _breaks(self, node: Node) -> bool:
        made = [self._own[name] for name in node.makes if name in self._own]
        return not all(map(_is_finite, made)) and all(_is_finite(value) for value in self.feeds(node).values())

    def _find(self, value: Value) -> Meaning | None:
        """The true value that an array holds, whatever its name."""
        if value.dtype.kind != "f" or value.size < _MATCH_SIZE or not _is_finite(value):
            return None
        mean, mean_abs = float(value.mean(dtype=np.float64)), float(np.abs(value).mean(dtype=np.float64))
        for name, true_mean, true_mean_abs in self._of_size(value.size):
            allowed = _MATCH_FACTOR * self.trace.allowed[name]
            if abs(true_mean - mean) > allowed or abs(true_mean_abs - mean_abs) > allowed:
                continue
            truth = self.trace.values[name]
            if agree(truth, value, allowed) or agree(truth.reshape(value.shape), value, allowed):
                return Meaning(name, None, value.shape)
            if (axes := find_permutation(truth, value, allowed)) is not None:
                return Meaning(name, axes, value.shape)
        return None

    def _of_size(self, size: int) -> list[tuple[str, float, float]]:
        """The true floating values of so many elements, each with its mean and the mean of its absolute."""
        if size not in self._means:
            truths = ((name, self.trace.values[name]) for name in self._names_of_size.get(size, ()))
            self._means[size] = [(name, float(truth.mean()), float(np.abs(truth).mean())) for name, truth in truths]
        return self._means[size]

    @cached_property
    def _names_of_size(self) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for name in _in_order(self.trace):
            truth = self.trace.values[name]
            if truth.dtype.kind == "f" and truth.size >= _MATCH_SIZE:
                found.setdefault(truth.size, []).append(name)
        return found


def names_are_shared(file: Structure, trace: Trace) -> bool:
    """Whether a file's values are named as in the trace: most nodes of such names have the trace's operator or inputs."""
    named = [(node, trace.structure.makers[name]) for node in file.nodes for name in node.makes if name in trace.structure.makers]
    alike = sum(node.op_type == fresh.op_type and node.reads == fresh.reads for node, fresh in named)
    return 2 * alike > len(named)


def _in_order(trace: Trace) -> Iterable[str]:
    """All true values, those that the trace's graph makes first: they are what a file's values can be."""
    made = [name for node in trace.structure.nodes for name in node.makes if name in trace.values]
    return dict.fromkeys((*made, *trace.values))


def _is_relaid(truth: Value, value: Value, allowed: float) -> bool:
    """Whether a value holds a true one in another order of axes or another shape."""
    if truth.size != value.size:
        return False
    return agree(truth.reshape(value.shape), value, allowed) or find_permutation(truth, value, allowed) is not None


def _is_finite(value: Value) -> bool:
    return value.dtype.kind != "f" or bool(np.isfinite(value).all())
