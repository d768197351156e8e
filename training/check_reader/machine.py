"""A grammar composed with the topology of frames: the static tables that every pass over a lattice reads.

A path gives each frame a class: the blank, or a character. Characters that repeat in neighbouring frames are one, and blanks are
left out, so that between two equal characters there is at least one blank (Graves, Fernandez, Gomez, Schmidhuber, "Connectionist
temporal classification", 2006, section 3). A cell of the machine is a state of the grammar and the class of the last frame. From a
cell (q, c) the next frame may hold the blank, leading to (q, blank); c itself, staying there; or any other character that the
grammar reads in q. All cells of q are left alike but for the one character that is theirs, so passes sum over the arcs out of q
once, and for each character without it: with D arcs out of a state this costs O(D) for each state where arcs between cells, listed
one by one, would cost O(D^2).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from convoy.contract.errors import DataError
from convoy.training.check_reader.automaton import Automaton

BLANK: Final = 0
"""The class of frames that show no character; the alphabet's first character is class 1."""
DEAD: Final = 0
"""The cell, and the state, that nothing reaches: what tables are padded with."""
START: Final = 1
"""The cell before the first frame: the grammar's first state, with nothing read."""

_Table = npt.NDArray[np.int64]
_Weights = npt.NDArray[np.float32]


class Machine(NamedTuple):
    """The tables; N cells, Q states, D arcs out of a state and G cells of a state at most, A ways into cells in all.

    Where each field has a machine of its own, the tables have an axis of fields behind all others. Fields come last in all passes:
    the tables then gather rows of fields, not single numbers.

    Attributes:
        classes: int64 (N,), what a frame shows that leads into the cell.
        states: int64 (N,), the cell's state.
        blanks: int64 (N,), the cell of the same state after a blank.
        selves: int64 (N,), the cell itself, where a frame may repeat a character; else ``DEAD``.
        finals: float (N,), the log-weight of ending in the cell.
        outs: int64 (Q, D), the cells after each character that the state reads.
        out_weights: float (Q, D), the arcs' log-weights.
        leaves: int64 (N,), where in (Q, D + 1), flattened, the sum over all arcs out of the cell stands: entry j of a row is the
            sum without arc j, the last the sum over all.
        groups: int64 (Q, G), the cells of each state.
        enters: int64 (A,), where in (Q, G + 1), flattened in the same way, a sum over cells stands that lead into a cell.
        enter_cells: int64 (A,), the cell that they lead into.
        enter_weights: float (A,), the arc's log-weight.
        log_weight: float (), what every path's log-score holds besides.
    """

    classes: Tensor
    states: Tensor
    blanks: Tensor
    selves: Tensor
    finals: Tensor
    outs: Tensor
    out_weights: Tensor
    leaves: Tensor
    groups: Tensor
    enters: Tensor
    enter_cells: Tensor
    enter_weights: Tensor
    log_weight: Tensor

    @property
    def batched(self) -> bool:
        """Whether each field has tables of its own."""
        return self.classes.dim() == 2

    def weigh(self, weights: Tensor) -> Tensor:
        """Weights of this machine with an axis for the fields."""
        return weights if self.batched else weights.unsqueeze(-1)

    def take(self, values: Tensor, table: Tensor) -> Tensor:
        """What stands in values, (V, B), at the places that a table of this machine names, (...): (..., B)."""
        if self.batched:
            return values.gather(0, table.flatten(0, -2)).reshape(table.shape)
        return functional.embedding(table, values)  # rows: one ONNX Gather, and no reshaping around it

    def to(self, scores: Tensor) -> Machine:
        """The same, its weights of the dtype of ``scores``, all on its device."""
        return Machine(*(table.to(scores.device, scores.dtype if table.is_floating_point() else torch.int64) for table in self))


def compose(automaton: Automaton, alphabet: str) -> Machine:
    """The machine of one automaton, for all fields.

    Args:
        automaton: What may be read.
        alphabet: The characters that the network knows, in the order of its classes after the blank.

    Raises:
        DataError: The automaton reads a character that the alphabet lacks.
    """
    return Machine(*(table[..., 0].contiguous() for table in compose_each([automaton], alphabet)))


def compose_each(automata: Sequence[Automaton], alphabet: str) -> Machine:
    """The machines of several automata, one for each field, padded to the largest.

    Raises:
        DataError: As ``compose``.
    """
    layouts = [_layout(automaton, alphabet) for automaton in automata]
    n_cells = max(len(layout.classes) for layout in layouts)
    n_states = max(len(layout.outs) for layout in layouts)
    n_out = max(1, *(len(row) for layout in layouts for row in layout.outs))  # the empty string's automaton has no arc
    n_group = max(len(row) for layout in layouts for row in layout.groups)
    n_enter = max(len(layout.enters) for layout in layouts)
    total = n_group  # entry 0 * (G + 1) + G: the sum over the cells of the state that nothing reaches
    machines: list[tuple[_Table | _Weights, ...]] = []
    for layout in layouts:
        leaves = [state * (n_out + 1) + (n_out if slot is None else slot) for state, slot in layout.leaves]
        enters = [state * (n_group + 1) + (n_group if slot is None else slot) for state, slot, _, _ in layout.enters]
        machines.append(
            (
                _row(layout.classes, n_cells, BLANK),
                _row(layout.states, n_cells, DEAD),
                _row(layout.blanks, n_cells, DEAD),
                _row(layout.selves, n_cells, DEAD),
                _weights([layout.finals], (1, n_cells))[0],
                _table([[cell for cell, _ in row] for row in layout.outs], (n_states, n_out), DEAD),
                _weights([[weight for _, weight in row] for row in layout.outs], (n_states, n_out)),
                _row(leaves, n_cells, n_out),
                _table(layout.groups, (n_states, n_group), DEAD),
                _row(enters, n_enter, total),
                _row([cell for _, _, cell, _ in layout.enters], n_enter, DEAD),
                _weights([[weight for _, _, _, weight in layout.enters]], (1, n_enter))[0],
                np.asarray(layout.log_weight, np.float32),
            )
        )
    return Machine(*(torch.from_numpy(np.stack(tables, -1)) for tables in zip(*machines, strict=True)))


@lru_cache(maxsize=65_536)  # a data set's labels come again in each epoch
def _layout(automaton: Automaton, alphabet: str) -> _Layout:
    return _Layout(automaton, alphabet)


class _Layout:
    """The cells of one automaton, and the ragged tables between them."""

    def __init__(self, automaton: Automaton, alphabet: str) -> None:
        number = {symbol: place for place, symbol in enumerate(alphabet, start=1)}
        if strangers := [symbol for symbol in automaton.alphabet if symbol not in number]:
            raise DataError(f"expected a grammar of the network's characters {alphabet!r}, found {''.join(strangers)!r} besides.")
        pairs = [(target, symbol) for arcs in automaton.arcs for symbol, (target, _) in arcs.items()]
        letters = sorted(set(pairs), key=lambda pair: (pair[0], number[pair[1]]))
        n_states = len(automaton.arcs)
        cells = {pair: place for place, pair in enumerate(letters, start=n_states + 1)}  # behind the dead cell and the blanks
        self.log_weight = automaton.log_weight
        self.states = [DEAD, *range(1, n_states + 1), *(state + 1 for state, _ in letters)]
        self.blanks = list(self.states)  # the cell of state q after a blank has the number of the state
        self.classes = [BLANK] * (n_states + 1) + [number[symbol] for _, symbol in letters]
        self.selves = [DEAD] * (n_states + 1) + list(cells.values())
        self.finals = [-np.inf, *automaton.finals, *(automaton.finals[state] for state, _ in letters)]
        self.outs: list[list[tuple[int, float]]] = [[]]
        self.groups: list[list[int]] = [[DEAD]]
        self.leaves: list[tuple[int, int | None]] = [(DEAD, None)] * len(self.classes)  # state, and the arc that is left out
        self.enters: list[tuple[int, int | None, int, float]] = []  # the same for the cells of a state; where to, and a log-weight
        for state, arcs in enumerate(automaton.arcs):
            reads = {symbol: slot for slot, symbol in enumerate(arcs)}
            self.outs.append([(cells[target, symbol], weight) for symbol, (target, weight) in arcs.items()])
            self.groups.append([state + 1])
            self.leaves[state + 1] = (state + 1, None)
            self.enters.append((state + 1, None, state + 1, 0.0))
            last: dict[str, int] = {}
            for symbol in alphabet:
                if (state, symbol) in cells:
                    last[symbol] = len(self.groups[-1])
                    self.groups[-1].append(cells[state, symbol])
                    self.leaves[cells[state, symbol]] = (state + 1, reads.get(symbol))
            for symbol, (target, weight) in arcs.items():
                self.enters.append((state + 1, last.get(symbol), cells[target, symbol], weight))


def _row(values: Sequence[int], size: int, padding: int) -> _Table:
    return _table([values], (1, size), padding).reshape(size)


def _table(rows: Sequence[Sequence[int]], shape: tuple[int, int], padding: int) -> _Table:
    table = np.full(shape, padding, np.int64)
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    return table


def _weights(rows: Sequence[Sequence[float]], shape: tuple[int, int]) -> _Weights:
    table = np.full(shape, -np.inf, np.float32)
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    return table
