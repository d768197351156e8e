"""The output layer of the 1998 LeNet5: squared distances from drawings of the characters."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

HEIGHT_PX: Final = 12
WIDTH_PX: Final = 7
N_UNITS: Final = HEIGHT_PX * WIDTH_PX

# Stylised digits of our own: the paper shows its targets (figure 3) but lists them nowhere. What counts is what it asks of them:
# values of +-1, well within what F6 can reach, and codes that are alike where characters look alike.
DIGITS: Final = (
    (
        ".......",
        "..###..",
        ".#...#.",
        "#.....#",
        "#.....#",
        "#.....#",
        "#.....#",
        "#.....#",
        "#.....#",
        ".#...#.",
        "..###..",
        ".......",
    ),
    (
        ".......",
        "...#...",
        "..##...",
        ".#.#...",
        "...#...",
        "...#...",
        "...#...",
        "...#...",
        "...#...",
        "...#...",
        ".#####.",
        ".......",
    ),
    (
        ".......",
        ".####..",
        "#....#.",
        "......#",
        "......#",
        ".....#.",
        "...##..",
        "..#....",
        ".#.....",
        "#......",
        "#######",
        ".......",
    ),
    (
        ".......",
        ".#####.",
        "#.....#",
        "......#",
        "......#",
        "..####.",
        "......#",
        "......#",
        "......#",
        "#.....#",
        ".#####.",
        ".......",
    ),
    (
        ".......",
        ".....#.",
        "....##.",
        "...#.#.",
        "..#..#.",
        ".#...#.",
        "#....#.",
        "#######",
        ".....#.",
        ".....#.",
        ".....#.",
        ".......",
    ),
    (
        ".......",
        "#######",
        "#......",
        "#......",
        "#......",
        "#####..",
        ".....#.",
        "......#",
        "......#",
        "#....#.",
        ".####..",
        ".......",
    ),
    (
        ".......",
        "...###.",
        "..#....",
        ".#.....",
        "#......",
        "#.###..",
        "##...#.",
        "#.....#",
        "#.....#",
        ".#...#.",
        "..###..",
        ".......",
    ),
    (
        ".......",
        "#######",
        "......#",
        ".....#.",
        ".....#.",
        "....#..",
        "....#..",
        "...#...",
        "...#...",
        "..#....",
        "..#....",
        ".......",
    ),
    (
        ".......",
        "..###..",
        ".#...#.",
        "#.....#",
        ".#...#.",
        "..###..",
        ".#...#.",
        "#.....#",
        "#.....#",
        ".#...#.",
        "..###..",
        ".......",
    ),
    (
        ".......",
        "..###..",
        ".#...#.",
        "#.....#",
        "#.....#",
        ".#...##",
        "..###.#",
        "......#",
        ".....#.",
        "....#..",
        ".###...",
        ".......",
    ),
)
"""A drawing of each digit, 12 rows of 7: ``#`` is +1, ``.`` is -1."""


class RadialBasis(nn.Module):
    """Minus the squared distance of F6 from each class's target: logits of at most 0.

    Targets are fixed: of ten classes the drawings of the digits in ``DIGITS``, of any other number +-1 drawn at random, the same
    in every network.

    Source: LeCun, Bottou, Bengio, Haffner 1998, section II.B, output layer, and equation 7.

    Attributes:
        targets: float (classes, 84), +-1; saved with the weights, not trained.
    """

    targets: Tensor

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        self.register_buffer("targets", make_targets(n_classes))

    def forward(self, x: Tensor) -> Tensor:
        """From F6, float (N, 84), to logits, float (N, classes)."""
        return -(x.unsqueeze(1) - self.targets).square().sum(dim=2)  # (N, classes, 84) -> (N, classes)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{N_UNITS}, {len(self.targets)}"


def make_targets(n_classes: int) -> Tensor:
    """The targets of ``n_classes`` classes, float (classes, 84), +-1."""
    if n_classes == len(DIGITS):
        return torch.tensor([[1.0 if pixel == "#" else -1.0 for row in drawing for pixel in row] for drawing in DIGITS])
    generator = torch.Generator().manual_seed(1998)
    return torch.randint(0, 2, (n_classes, N_UNITS), generator=generator) * 2.0 - 1.0
