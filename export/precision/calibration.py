"""The ranges of the values inside a network, measured on training images: what fixes the quantisation."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import onnx

from convoy.contract.errors import ExportError, UsageError
from convoy.export.gate.runtime import open_session

Method = Literal["minmax", "percentile", "entropy"]
METHODS: Final[tuple[Method, ...]] = ("minmax", "percentile", "entropy")
MIN_IMAGES: Final = 32
MAX_RANGE_IMAGES: Final = 512
"""More images move the ranges no further that matters."""
MAX_HELD_OUT: Final = 1024
MAX_HISTOGRAM_VALUES: Final = 500_000_000
"""``percentile`` and ``entropy`` sort every value into bins: they look at no more than this, or not at all."""
_BATCH_SIZE: Final = 16
QUANTISED_OPERATORS: Final = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "MaxPool", "AveragePool",
    "GlobalAveragePool", "Concat", "Split", "Pad", "Resize", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose",
)  # fmt: skip
"""Operators that have an 8-bit form in ONNX Runtime's CPU provider. Softmax and the normalisations stay in float32."""


@dataclass(frozen=True)
class CalibrationImages:
    """Training images in two parts: one fixes the ranges, the other measures what a choice costs.

    Attributes:
        ranges: uint8, shape (n, H, W, C).
        held_out: uint8, shape (m, H, W, C); none of them is among ``ranges``.
    """

    ranges: npt.NDArray[np.uint8]
    held_out: npt.NDArray[np.uint8]

    @classmethod
    def split(cls, images: npt.NDArray[np.uint8]) -> CalibrationImages:
        """Every third image is held out; of either part at most ``MAX_RANGE_IMAGES`` and ``MAX_HELD_OUT``, spread evenly.

        Args:
            images: Training images, uint8, shape (n, H, W, C).

        Raises:
            UsageError: They are not that, or fewer than ``MIN_IMAGES``.
        """
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4:
            found = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
            raise UsageError(
                f"calibration images: expected raw pixels, uint8 of shape (n, height, width, channels), found {found}."
            )
        if len(images) < MIN_IMAGES:
            raise UsageError(
                f"calibration: expected at least {MIN_IMAGES} training images to measure the ranges of int8 on, "
                f"found {len(images)}. Give more (some hundred, of all classes), or export in fp16 or fp32."
            )
        held_out = np.arange(len(images)) % 3 == 2
        return cls(_spread(images[~held_out], MAX_RANGE_IMAGES), _spread(images[held_out], MAX_HELD_OUT))


def _spread(images: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.uint8]:
    if len(images) <= count:
        return images
    return images[np.linspace(0, len(images) - 1, count).round().astype(np.int64)]


def measure_ranges(model: onnx.ModelProto, images: npt.NDArray[np.uint8], method: Method) -> Any:
    """The range of each tensor that could be quantised, by ONNX Runtime's calibrators.

    Args:
        model: The float32 model.
        images: Training images, uint8, shape (n, H, W, C).
        method: ``minmax`` takes all values, ``percentile`` all but 0.001 %, ``entropy`` the range that keeps most of the
            distribution.

    Returns:
        ONNX Runtime's ``TensorsData``, sorted by tensor.

    Raises:
        ExportError: The calibrator cannot run the model.
    """
    input_name = open_session(model.SerializeToString(), level="disabled").get_inputs()[0].name
    from onnxruntime.quantization import CalibrationMethod, TensorsData, create_calibrator

    known = {
        "minmax": (CalibrationMethod.MinMax, {}),
        "percentile": (CalibrationMethod.Percentile, {"percentile": 99.999, "symmetric": False}),
        "entropy": (CalibrationMethod.Entropy, {"symmetric": False}),
    }
    chosen, options = known[method]
    with tempfile.TemporaryDirectory(prefix="convoy-calibration-") as folder, quiet():
        path = Path(folder) / "model.onnx"
        onnx.save_model(model, str(path))
        try:
            calibrator = create_calibrator(
                path, list(QUANTISED_OPERATORS), str(Path(folder) / "augmented.onnx"), chosen, extra_options=options
            )
            for start in range(0, len(images), _BATCH_SIZE):  # in parts: the calibrators keep all that they are given at once
                calibrator.collect_data(_Batch(input_name, images[start : start + _BATCH_SIZE]))
            found = calibrator.compute_data()
        except Exception as error:  # whatever the calibrators raise
            raise ExportError(f"ONNX Runtime cannot measure the ranges inside this model ({method}): {error}") from error
    return TensorsData(chosen, {name: found[name] for name in sorted(found.keys())})


def affordable_images(method: Method, values_per_image: int, n: int) -> int:
    """How many of n images a method can look at; 0 where it would be fewer than make sense.

    Args:
        method: The method.
        values_per_image: How many values the network computes for an image.
        n: The images at hand.
    """
    if method == "minmax":
        return n
    count = min(n, MAX_HISTOGRAM_VALUES // max(1, values_per_image))
    return count if count >= min(n, MIN_IMAGES) else 0


class _Batch:
    """One batch, in the form that ONNX Runtime's calibrators read."""

    def __init__(self, input_name: str, images: npt.NDArray[np.uint8]) -> None:
        self._feeds = [{input_name: images}]

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        return self._feeds.pop() if self._feeds else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep ONNX Runtime's quantisation from writing its advice to the root logger, which it would configure, and to stdout."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
