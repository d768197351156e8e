"""A finite automaton over characters: deterministic, weighted, minimal."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from convoy.contract.errors import DataError

_MAX_STATES: Final = 5000
"""More are hardly an amount's: the lattice has about ten cells for each."""
_MAX_WORK: Final = 200_000
"""States of the sketch, counted once for each subset that holds them: a few seconds."""
_DIGITS: Final = 9
"""Decimals of a log-weight within which two are one."""
_NEVER: Final = -math.inf


@dataclass(frozen=True, eq=False)
class Automaton:
    """Which strings there are, each with its log-weight. State 0 is the first; from every state an end can be reached.

    Of each state and symbol at most one arc goes out, so a string has one path: sums over paths are sums over strings.

    Attributes:
        arcs: For each state, the target and the log-weight of each symbol.
        finals: For each state, the log-weight of ending in it, minus infinity where a string cannot end.
        log_weight: What every string's log-weight holds besides.
    """

    arcs: tuple[Mapping[str, tuple[int, float]], ...]
    finals: tuple[float, ...]
    log_weight: float = 0.0

    @property
    def alphabet(self) -> tuple[str, ...]:
        """The symbols in any string, sorted."""
        return tuple(sorted({symbol for arcs in self.arcs for symbol in arcs}))

    def score(self, text: str) -> float:
        """The log-weight of a string, minus infinity where it is none of the automaton's."""
        state, total = 0, self.log_weight
        for symbol in text:
            if symbol not in self.arcs[state]:
                return _NEVER
            state, log_weight = self.arcs[state][symbol]
            total += log_weight
        return total + self.finals[state]

    def max_length(self) -> int | None:
        """Symbols in the longest string, None where there is no longest."""
        longest: dict[int, int] = {}
        waiting: set[int] = set()
        stack = [(0, False)]
        while stack:
            state, done = stack.pop()
            if done:
                waiting.remove(state)
                longest[state] = max((longest[target] + 1 for target, _ in self.arcs[state].values()), default=0)
            elif state not in longest:
                waiting.add(state)
                stack.append((state, True))
                for target, _ in self.arcs[state].values():
                    if target in waiting:
                        return None
                    if target not in longest:
                        stack.append((target, False))
        return longest[0]

    def sentences(self) -> Iterator[str]:
        """Every string once, the shorter first, then in the order of the characters."""
        longest = self.max_length()
        ending = [_ends(self.finals)]  # [n]: the states that are n symbols from an end
        for length in itertools.count():
            if longest is not None and length > longest:
                return
            if length:
                near = ending[-1]
                ending.append({state for state, arcs in enumerate(self.arcs) if any(target in near for target, _ in arcs.values())})
            yield from self._strings("", 0, length, ending)

    def _strings(self, text: str, state: int, length: int, ending: Sequence[set[int]]) -> Iterator[str]:
        if state not in ending[length]:
            return
        if length == 0:
            yield text
            return
        for symbol in sorted(self.arcs[state]):
            yield from self._strings(text + symbol, self.arcs[state][symbol][0], length - 1, ending)

    def intersect(self, other: Automaton) -> Automaton | None:
        """The strings of both, their log-weights added; None where there is none."""
        numbers = {(0, 0): 0}
        pairs = [(0, 0)]
        arcs: list[dict[str, tuple[int, float]]] = []
        for mine, theirs in pairs:  # grows while it is read
            arcs.append({})
            for symbol in self.arcs[mine].keys() & other.arcs[theirs].keys():
                (left, left_weight), (right, right_weight) = self.arcs[mine][symbol], other.arcs[theirs][symbol]
                if (left, right) not in numbers:
                    numbers[left, right] = len(pairs)
                    pairs.append((left, right))
                arcs[-1][symbol] = numbers[left, right], left_weight + right_weight
        finals = [self.finals[mine] + other.finals[theirs] for mine, theirs in pairs]
        return minimised(arcs, finals, self.log_weight + other.log_weight)


def spelling(text: str, silent: frozenset[str] = frozenset()) -> Automaton:
    """The strings that spell ``text`` once silent symbols are left out; ``text`` itself must hold none of them."""
    loops = {at: dict.fromkeys(sorted(silent), (at, 0.0)) for at in range(len(text) + 1)}
    arcs = tuple({**loops[at], symbol: (at + 1, 0.0)} for at, symbol in enumerate(text))
    return Automaton((*arcs, loops[len(text)]), (*(_NEVER for _ in text), 0.0))


@dataclass
class Sketch:
    """An automaton in the making: any number of arcs for a symbol, and arcs that read nothing.

    Attributes:
        arcs: For each state, (symbol or None, target, log-weight); log-weights are at most 0.
        n_arcs: How many there are.
    """

    arcs: list[list[tuple[str | None, int, float]]] = field(default_factory=list)
    n_arcs: int = 0

    def add_state(self) -> int:
        """A new state's number."""
        self.arcs.append([])
        return len(self.arcs) - 1

    def add_arc(self, source: int, target: int, symbol: str | None = None, log_weight: float = 0.0) -> None:
        """Join two states, reading ``symbol``, or nothing where it is None."""
        self.arcs[source].append((symbol, target, log_weight))
        self.n_arcs += 1

    def determinise(self, start: int, end: int) -> Automaton | None:
        """The strings from ``start`` to ``end``; a string with several paths has the weight of the best.

        Source: Mohri, "Finite-State Transducers in Language and Speech Processing" (1997), section 3, in max and plus.

        Returns:
            The minimal automaton; None where there is no string.

        Raises:
            DataError: It would have too many states.
        """
        useful = _reaching([[target for _, target, _ in arcs] for arcs in self.arcs], {end})
        if start not in useful:
            return None
        first, _ = _normalised(self._closure({start: 0.0}))  # the closure's best is start itself, 0
        numbers = {first: 0}
        subsets = [first]
        size = len(first)
        arcs: list[dict[str, tuple[int, float]]] = []
        finals: list[float] = []
        for subset in subsets:  # grows while it is read
            reached: dict[str, dict[int, float]] = {}
            for state, rest in subset:
                for symbol, target, log_weight in self.arcs[state]:
                    if symbol is not None and target in useful:
                        best = reached.setdefault(symbol, {})
                        best[target] = max(best.get(target, _NEVER), rest + log_weight)
            arcs.append({})
            finals.append(max((rest for state, rest in subset if state == end), default=_NEVER))
            for symbol in sorted(reached):
                following, log_weight = _normalised(self._closure(reached[symbol]))
                if following not in numbers:
                    numbers[following] = len(subsets)
                    subsets.append(following)
                arcs[-1][symbol] = numbers[following], log_weight
                size += len(following)
            if len(subsets) > _MAX_STATES or size > _MAX_WORK:
                raise DataError(
                    f"expected at most {_MAX_STATES} states, found more: lower the numbers in {{m,n}}, or leave out weights "
                    "in loops that compete for the same strings."
                )
        return minimised(arcs, finals, 0.0)

    def _closure(self, states: Mapping[int, float]) -> dict[int, float]:
        """The best log-weight of each state that is reached without reading anything."""
        best: dict[int, float] = {}
        heap = [(-log_weight, state) for state, log_weight in states.items()]
        heapq.heapify(heap)
        while heap:
            cost, state = heapq.heappop(heap)
            if state in best:
                continue
            best[state] = -cost
            for symbol, target, log_weight in self.arcs[state]:
                if symbol is None and target not in best:
                    heapq.heappush(heap, (cost - log_weight, target))
        return best


def _normalised(states: Mapping[int, float]) -> tuple[tuple[tuple[int, float], ...], float]:
    """The states with what they lag behind the best, and the best."""
    best = max(states.values())
    return tuple((state, round(states[state] - best, _DIGITS) + 0.0) for state in sorted(states)), best


def _ends(finals: Sequence[float]) -> set[int]:
    """The states in which a string can end."""
    return {state for state, final in enumerate(finals) if final > _NEVER}


def _reaching(targets: Sequence[Sequence[int]], ends: set[int]) -> set[int]:
    """The states from which one of ``ends`` can be reached."""
    sources: list[list[int]] = [[] for _ in targets]
    for source, reached in enumerate(targets):
        for target in reached:
            sources[target].append(source)
    found, waiting = set(ends), list(ends)
    while waiting:
        for source in sources[waiting.pop()]:
            if source not in found:
                found.add(source)
                waiting.append(source)
    return found


def minimised(arcs: Sequence[Mapping[str, tuple[int, float]]], finals: Sequence[float], log_weight: float) -> Automaton | None:
    """The smallest deterministic automaton with the same strings and weights; None where there is no string.

    Weights are pushed forward first (from each state the best way to an end costs nothing), then states that behave alike are
    joined: Mohri 1997, section 3.4; Moore's refinement, quadratic at worst.

    Args:
        arcs: As an ``Automaton`` has them; state 0 is the first.
        finals: The same.
        log_weight: The same.
    """
    useful = _reaching([[target for target, _ in row.values()] for row in arcs], _ends(finals))
    if 0 not in useful:
        return None
    kept = {state: {symbol: arc for symbol, arc in arcs[state].items() if arc[0] in useful} for state in useful}
    ahead = _best_ends(kept, finals)
    ends = {state: round(finals[state] - ahead[state], _DIGITS) + 0.0 for state in useful}
    pushed = {
        state: {s: (target, round(weight + ahead[target] - ahead[state], _DIGITS) + 0.0) for s, (target, weight) in row.items()}
        for state, row in kept.items()
    }
    block = dict.fromkeys(useful, 0)
    n_blocks = 0
    while True:
        keys: dict[object, int] = {}
        block = {
            state: keys.setdefault(
                (block[state], ends[state], frozenset((s, block[target], w) for s, (target, w) in pushed[state].items())), len(keys)
            )
            for state in sorted(useful)
        }
        if len(keys) == n_blocks:
            break
        n_blocks = len(keys)
    order = {block[0]: 0}
    members = [0]
    rows: list[dict[str, tuple[int, float]]] = []
    for state in members:  # grows while it is read
        rows.append({})
        for symbol in sorted(pushed[state]):
            target, weight = pushed[state][symbol]
            if block[target] not in order:
                order[block[target]] = len(members)
                members.append(target)
            rows[-1][symbol] = order[block[target]], weight
    return Automaton(tuple(rows), tuple(ends[state] for state in members), log_weight + ahead[0])


def _best_ends(arcs: Mapping[int, Mapping[str, tuple[int, float]]], finals: Sequence[float]) -> dict[int, float]:
    """From each state the log-weight of the best way to an end; log-weights are at most 0, so that Dijkstra's search finds it."""
    into: dict[int, list[tuple[int, float]]] = {state: [] for state in arcs}
    for state, row in arcs.items():
        for target, weight in row.values():
            into[target].append((state, weight))
    best: dict[int, float] = {}
    heap = [(-finals[state], state) for state in arcs if finals[state] > _NEVER]
    heapq.heapify(heap)
    while heap:
        cost, state = heapq.heappop(heap)
        if state not in best:
            best[state] = -cost
            for source, weight in into[state]:
                heapq.heappush(heap, (cost - weight, source))
    return best
