"""What an ONNX file is compared with: the network that it came from, or the foreign file that was taken up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Outputs: TypeAlias = "Mapping[str, npt.NDArray[np.float32]]"
"""By output name (``logits``, ``probabilities``): float32, shape (n, K)."""


@dataclass(frozen=True)
class Truth:
    """The answers in float64, which float32 is measured by.

    Attributes:
        outputs: By output name: float64, shape (``n_images``, K), for the first ``n_images`` of the images that were asked for.
            Empty where there is no truth.
        n_images: For how many images it could be computed.
        uncovered: What could not be computed, for people: operators that the evaluator lacks, time that ran out.
    """

    outputs: Mapping[str, npt.NDArray[np.float64]]
    n_images: int
    uncovered: tuple[str, ...] = ()


class Source(Protocol):
    """Where the expected answers come from. All images are raw pixels, uint8 (n, H, W, C)."""

    @property
    def kind(self) -> Literal["pytorch", "onnx"]:
        """A PyTorch network, or somebody's ONNX file by other means than the ones under test."""

    @property
    def title(self) -> str:
        """Its name in reports: "PyTorch", "squeezenet.onnx as it came"."""

    def float32(self, images: npt.NDArray[np.uint8], batch_size: int) -> Outputs:
        """The answers in float32, in batches of ``batch_size``.

        Raises:
            ExportError: The source cannot answer.
        """

    def float64(self, images: npt.NDArray[np.uint8], batch_size: int) -> Truth:
        """The answers in float64, as far as they can be had.

        Raises:
            ExportError: The source cannot answer.
        """
