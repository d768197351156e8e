"""PyTorch's answers: float32, as trained, and float64, as the truth that float32 is measured by."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from convoy.contract.agreement import FloatArray, Tolerance
from convoy.contract.errors import ExportError
from convoy.contract.manifest import LOGITS_NAME, PROBABILITIES_NAME
from convoy.export.graph.servable import Servable

if TYPE_CHECKING:
    from torch import nn

_EPS = float(np.finfo(np.float32).eps)
OWN_ERROR_FACTOR = 16
"""How many times PyTorch's own float32 error another float32 implementation may lie away from it."""
FLOOR_EPS = 16
"""The least tolerance, in units of float32's epsilon times the largest expected value."""


@dataclass(frozen=True)
class Reference:
    """PyTorch's outputs for some images.

    Attributes:
        logits: float32, shape (n, K).
        probabilities: float32, shape (n, K).
    """

    logits: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]

    def outputs(self) -> dict[str, npt.NDArray[np.float32]]:
        """By output name."""
        return {LOGITS_NAME: self.logits, PROBABILITIES_NAME: self.probabilities}


def run_pytorch(classifier: nn.Module, images: npt.NDArray[np.uint8], batch_size: int) -> Reference:
    """PyTorch's float32 answers.

    Args:
        classifier: In evaluation mode.
        images: uint8, shape (n, H, W, C).
        batch_size: Images a call.
    """
    logits, probabilities = _run(Servable(classifier).eval(), images, batch_size)
    return Reference(logits.astype(np.float32), probabilities.astype(np.float32))


def derive_tolerances(
    classifier: nn.Module, images: npt.NDArray[np.uint8], reference: Reference, batch_size: int
) -> dict[str, Tolerance]:
    """The tolerance of each output, from how far PyTorch's float32 lies from its own float64.

    ``atol = max(16 * max |float32 - float64|, 16 * eps * max |float64|)`` and ``rtol = 16 * eps``, with eps = 2^-23: two float32
    implementations sum in different orders, each about as far from the truth as the other.

    Args:
        classifier: In evaluation mode.
        images: uint8, shape (n, H, W, C).
        reference: ``run_pytorch`` on the same images.
        batch_size: Images a call.
    """
    double = Servable(copy.deepcopy(classifier).double()).eval()
    try:
        with in_float64():
            truths = dict(zip((LOGITS_NAME, PROBABILITIES_NAME), _run(double, images, batch_size), strict=True))
    except RuntimeError as error:
        raise ExportError(f"the network cannot be run in float64, which the tolerances are derived from: {error}") from error
    tolerances = {}
    for name, actual in reference.outputs().items():
        truth = truths[name]
        own_error = float(np.abs(actual.astype(np.float64) - truth).max())
        floor = FLOOR_EPS * _EPS * float(np.abs(truth).max())
        atol = max(OWN_ERROR_FACTOR * own_error, floor)
        # A non-finite reference must fail the gate, not widen it without bound.
        tolerances[name] = Tolerance(atol=atol if np.isfinite(atol) else 0.0, rtol=FLOOR_EPS * _EPS)
    return tolerances


class _Widened(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch has no types here
    """Turns requests for float32 (``x.float()``, ``x.to(torch.float32)``) into requests for float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        wide = [torch.float64 if arg is torch.float32 else arg for arg in args]
        return func(*wide, **{key: torch.float64 if arg is torch.float32 else arg for key, arg in (kwargs or {}).items()})


@contextmanager
def in_float64() -> Iterator[None]:
    """Compute in float64 also where a network's code names float32, or relies on it being the default."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Widened():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.set_default_dtype(default)


def _run(servable: nn.Module, images: npt.NDArray[np.uint8], batch_size: int) -> tuple[FloatArray, FloatArray]:
    starts = range(0, len(images), batch_size)
    with torch.inference_mode():
        parts = [[output.numpy() for output in servable(torch.from_numpy(images[i : i + batch_size]))] for i in starts]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
