"""PyTorch's answers: float32, as trained, and float64, as the truth that float32 is measured by."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from convoy.contract.agreement import FloatArray
from convoy.contract.errors import ExportError
from convoy.contract.manifest import LOGITS_NAME, PROBABILITIES_NAME
from convoy.export.gate.source import Outputs, Truth
from convoy.export.graph.servable import Servable

if TYPE_CHECKING:
    from torch import nn


class TorchSource:
    """A PyTorch network as the source of the expected answers.

    Args:
        classifier: On the CPU, in evaluation mode; uint8 (N, H, W, C) to logits (N, K).
        temperature: What its logits are divided by before the softmax.
    """

    kind: Literal["pytorch", "onnx"] = "pytorch"
    title = "PyTorch"

    def __init__(self, classifier: nn.Module, temperature: float = 1.0) -> None:
        self.classifier = classifier
        self.temperature = temperature

    def float32(self, images: npt.NDArray[np.uint8], batch_size: int) -> Outputs:
        """The network's answers in the precision that it was trained in, as float32."""
        try:
            outputs = _run(Servable(self.classifier, self.temperature).eval(), images, batch_size)
        except Exception as error:  # whatever a stranger's forward() raises
            raise ExportError(f"the network fails on a batch of {batch_size} images: {error}") from error
        return {name: output.astype(np.float32) for name, output in outputs.items()}

    def float64(self, images: npt.NDArray[np.uint8], batch_size: int) -> Truth:
        """The network's answers with its weights, and everything that its code computes, in float64."""
        double = Servable(copy.deepcopy(self.classifier).double(), self.temperature).eval()
        try:
            with in_float64():
                outputs = _run(double, images, batch_size)
        except Exception as error:  # noqa: BLE001 as above: custom operators may know float32 alone
            return Truth({}, 0, (f"the network cannot be run in float64: {type(error).__name__}: {error}",))
        if not all(output.dtype == np.float64 for output in outputs.values()):
            return Truth({}, 0, ("the network computes in another type than float64 when it is asked for float64",))
        return Truth({name: output.astype(np.float64) for name, output in outputs.items()}, len(images))


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


def _run(servable: nn.Module, images: npt.NDArray[np.uint8], batch_size: int) -> dict[str, FloatArray]:
    starts = range(0, len(images), batch_size)
    with torch.inference_mode():
        parts = [[output.numpy() for output in servable(torch.from_numpy(images[i : i + batch_size]))] for i in starts]
    return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate((LOGITS_NAME, PROBABILITIES_NAME))}
