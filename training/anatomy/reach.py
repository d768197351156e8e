"""Which input pixels reach which features: receptive fields along the two axes of an image, borders and holes included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Bits: TypeAlias = npt.NDArray[np.bool_]
"""bool (positions, pixels): whether the pixel reaches the feature at the position, along one axis."""

MAX_PRODUCTS: Final = 5
"""So many rectangles (grids, crosses) a feature's pixels may be the union of; from more on, their bounding product is taken."""

ROWS: Final = 0
COLUMNS: Final = 1

_Side: TypeAlias = Callable[[Bits], npt.NDArray[np.int_]]


@dataclass(frozen=True)
class Span:
    """The receptive field along one axis where it is the same at every position but for a shift, as if the image had no border.

    Attributes:
        start_px: Its first pixel at position 0; below 0 where padding is seen. None where fields are not shifted copies.
        end_px: Its last pixel at position 0, inclusive.
        jump_px: How many pixels the field moves from one position to the next (the product of strides); None where it does not
            move evenly, or there is one position only.
    """

    start_px: int | None
    end_px: int | None
    jump_px: int | None

    def window(self, *, kernel: int, stride: int, padding: int, dilation: int) -> Span:
        """Behind a window of ``kernel`` positions that moves by ``stride``."""
        if self.start_px is None or self.end_px is None or self.jump_px is None:
            return replace(self, jump_px=None if self.jump_px is None else self.jump_px * stride)
        start = self.start_px - padding * self.jump_px
        end = self.end_px + ((kernel - 1) * dilation - padding) * self.jump_px
        return Span(start, end, self.jump_px * stride)

    def union(self, other: Span) -> Span:
        """Where two branches meet: the earlier start, the later end."""
        if self.jump_px != other.jump_px:  # a map of one position has none
            known = [jump for jump in (self.jump_px, other.jump_px) if jump is not None]
            return Span(None, None, known[0] if len(known) == 1 else None)
        if self.start_px is None or self.end_px is None or other.start_px is None or other.end_px is None:
            return Span(None, None, self.jump_px)
        return Span(min(self.start_px, other.start_px), max(self.end_px, other.end_px), self.jump_px)


@dataclass(frozen=True, eq=False)
class Reach:
    """The pixels that reach each feature of a map.

    The feature at (i, j) sees the union, over all products, of the pixels (y, x) with ``rows[i, y] and columns[j, x]``: one
    product is a rectangle or a grid, two can be the cross of a 1x7 beside a 7x1 convolution. Features of several channels at one
    place count together.

    Attributes:
        products: Pairs (rows, columns), bool (positions, pixels) each.
        spans: The fields without a border along rows and columns.
        is_exact: False where there were too many products, so that some pixels are counted which do not reach.
    """

    products: tuple[tuple[Bits, Bits], ...]
    spans: tuple[Span, Span]
    is_exact: bool = True

    @classmethod
    def of_image(cls, height_px: int, width_px: int) -> Reach:
        """That of the image itself: each pixel reaches its own place."""
        return cls(((np.eye(height_px, dtype=np.bool_), np.eye(width_px, dtype=np.bool_)),), (Span(0, 0, 1), Span(0, 0, 1)))

    def n_positions(self, axis: int) -> int:
        """How many positions the map has along ``axis``."""
        return int(self.products[0][axis].shape[0])

    @property
    def dims_px(self) -> tuple[int, int]:
        """Height and width of the image."""
        rows, columns = self.products[0]
        return rows.shape[1], columns.shape[1]

    def window(self, axis: int, *, kernel: int, stride: int, padding: int, dilation: int, n_out: int) -> Reach:
        """Behind a convolution or a pool along ``axis``; what it sees outside the map is padding, not pixels."""
        n = self.n_positions(axis)
        taps = np.arange(n_out)[:, None] * stride - padding + np.arange(kernel) * dilation  # (n_out, kernel)
        span = self.spans[axis].window(kernel=kernel, stride=stride, padding=padding, dilation=dilation)
        return self._gather(axis, np.where(taps < n, taps, -1), span)

    def pick(self, axis: int, *, start: int, step: int, n_out: int) -> Reach:
        """Every ``step``-th of the positions from ``start`` on."""
        span = self.spans[axis].window(kernel=1, stride=step, padding=-start, dilation=1)
        return self._gather(axis, (start + np.arange(n_out) * step)[:, None], span)

    def pad(self, axis: int, *, before: int, after: int, mode: Literal["constant", "reflect", "edge"]) -> Reach:
        """With ``before`` and ``after`` positions more; negative numbers cut positions off."""
        positions = np.arange(-before, self.n_positions(axis) + after)
        n = self.n_positions(axis)
        if mode == "reflect":
            inner = np.abs(positions)
            positions_in = np.where(inner >= n, 2 * (n - 1) - inner, inner)
        elif mode == "edge":
            positions_in = positions.clip(0, n - 1)
        else:
            positions_in = np.where((positions < 0) | (positions >= n), -1, positions)
        span = self.spans[axis].window(kernel=1, stride=1, padding=before, dilation=1)
        return self._gather(axis, positions_in[:, None], span)

    def bins(self, axis: int, n_out: int) -> Reach:
        """Behind an adaptive pool to ``n_out``: position i pools from floor(i n / n_out) up to ceil((i + 1) n / n_out)."""
        n = self.n_positions(axis)
        if n % n_out == 0:
            size = n // n_out
            return self.window(axis, kernel=size, stride=size, padding=0, dilation=1, n_out=n_out)
        index = np.arange(n_out)
        starts, ends = index * n // n_out, -(-(index + 1) * n // n_out)
        taps = starts[:, None] + np.arange((ends - starts).max())
        return self._gather(axis, np.where(taps < ends[:, None], taps, -1), Span(None, None, None))

    def collapse(self, axis: int) -> Reach:
        """All positions along ``axis`` seen by one."""
        n = self.n_positions(axis)
        return self.window(axis, kernel=n, stride=1, padding=0, dilation=1, n_out=1)._without_jump(axis)

    def repeat(self, axis: int, n_out: int) -> Reach:
        """The one position along ``axis`` seen by ``n_out``."""
        return self if n_out == 1 else self._gather(axis, np.zeros((n_out, 1), dtype=np.int_), Span(None, None, None))

    def union(self, other: Reach) -> Reach:
        """Where two branches meet; a map of one position is seen from every position of the other."""
        mine, theirs = self, other
        spans = []
        for axis in (ROWS, COLUMNS):
            n = max(mine.n_positions(axis), theirs.n_positions(axis))
            same = mine.n_positions(axis) == theirs.n_positions(axis)
            mine = mine if mine.n_positions(axis) == n else mine.repeat(axis, n)
            theirs = theirs if theirs.n_positions(axis) == n else theirs.repeat(axis, n)
            union = mine.spans[axis].union(theirs.spans[axis])
            spans.append(union if same else replace(union, start_px=None, end_px=None))
        products = _prune((*mine.products, *theirs.products))
        is_exact = mine.is_exact and theirs.is_exact
        if len(products) > MAX_PRODUCTS:
            rows, columns = (np.logical_or.reduce([product[axis] for product in products]) for axis in (ROWS, COLUMNS))
            products, is_exact = ((rows, columns),), False
        return Reach(products, (spans[ROWS], spans[COLUMNS]), is_exact)

    def is_uniform(self) -> bool:
        """Whether all positions see the same pixels."""
        return all(bool((bits == bits[:1]).all()) for product in self.products for bits in product)

    def mask(self, row: int, column: int) -> Bits:
        """The pixels that reach the feature at (row, column), bool (height, width)."""
        mask: Bits = np.logical_or.reduce([np.outer(rows[row], columns[column]) for rows, columns in self.products])
        return mask

    def pixels_per_feature(self) -> npt.NDArray[np.int64]:
        """How many pixels reach each feature, int64 (rows, columns)."""
        return self._count(lambda bits: bits.sum(axis=1))

    def features_per_pixel(self) -> npt.NDArray[np.int64]:
        """How many features each pixel reaches, int64 (height, width)."""
        return self._count(lambda bits: bits.sum(axis=0))

    def size_px(self, axis: int) -> int:
        """How far a receptive field extends along ``axis``: as if there were no border where that is known, else the largest."""
        span = self.spans[axis]
        if span.start_px is not None and span.end_px is not None and span.jump_px is not None:
            return span.end_px - span.start_px + 1
        return self.largest_px(axis)

    def largest_px(self, axis: int) -> int:
        """How far the largest receptive field extends along ``axis`` within the image."""
        bits = np.logical_or.reduce([product[axis] for product in self.products])
        ends = bits.shape[1] - bits[:, ::-1].argmax(axis=1)
        return int(np.where(bits.any(axis=1), ends - bits.argmax(axis=1), 0).max())

    def _count(self, side: _Side) -> npt.NDArray[np.int64]:
        # inclusion and exclusion over the products, each of which counts as rows times columns
        total: npt.NDArray[np.int64] | None = None
        for size in range(1, len(self.products) + 1):
            for chosen in combinations(self.products, size):
                rows, columns = (np.logical_and.reduce([product[axis] for product in chosen]) for axis in (ROWS, COLUMNS))
                counts = np.outer(side(rows), side(columns)).astype(np.int64) * (-1) ** (size + 1)
                total = counts if total is None else total + counts
        assert total is not None  # there is at least one product
        return total

    def _gather(self, axis: int, taps: npt.NDArray[np.int_], span: Span) -> Reach:
        """Positions that each see those of a row of ``taps``, int (positions, taps), where -1 and less are none."""
        products = []
        for product in self.products:
            bits = np.zeros((len(taps), product[axis].shape[1]), dtype=np.bool_)
            for tap in taps.T:
                inside = tap >= 0
                bits[inside] |= product[axis][tap[inside]]
            products.append((bits, product[COLUMNS]) if axis == ROWS else (product[ROWS], bits))
        spans = (span, self.spans[COLUMNS]) if axis == ROWS else (self.spans[ROWS], span)
        return Reach(_prune(tuple(products)), spans, self.is_exact)

    def _without_jump(self, axis: int) -> Reach:
        spans = [replace(span, jump_px=None) if index == axis else span for index, span in enumerate(self.spans)]
        return replace(self, spans=(spans[ROWS], spans[COLUMNS]))


def _prune(products: Sequence[tuple[Bits, Bits]]) -> tuple[tuple[Bits, Bits], ...]:
    """Without what lies in another product; two that agree along one axis become one."""
    kept: list[tuple[Bits, Bits]] = []
    for product in products:
        kept = _join(kept, product)
    return tuple(kept)


def _join(kept: list[tuple[Bits, Bits]], new: tuple[Bits, Bits]) -> list[tuple[Bits, Bits]]:
    for index, old in enumerate(kept):
        rows_alike, columns_alike = (np.array_equal(new[axis], old[axis]) for axis in (ROWS, COLUMNS))
        if rows_alike or columns_alike or _lies_in(old, new):
            return _join(kept[:index] + kept[index + 1 :], (old[ROWS] | new[ROWS], old[COLUMNS] | new[COLUMNS]))
        if _lies_in(new, old):
            return kept
    return [*kept, new]


def _lies_in(inner: tuple[Bits, Bits], outer: tuple[Bits, Bits]) -> bool:
    return not any(bool((a & ~b).any()) for a, b in zip(inner, outer, strict=True))
