"""The first half of an export: from a module to a program of PyTorch operators that holds for every number of images."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch
from torch import nn

from convoy.contract.errors import ExportError
from convoy.training.check_reader.sliding import STRIDE

_EXAMPLE_BATCH: Final = 3
"""Images in the example: 1 would be taken for a constant axis, and 2 stands too often for something else."""
MIN_READER_WIDTH_PX: Final = 32
MAX_READER_WIDTH_PX: Final = 4096
_ANSI: Final = re.compile(r"\x1b\[[0-9;]*m")
# What torch's messages hold: where a guard came from, that the batch was fixed, which batches a guard allows, the batch's symbol.
_CALL: Final = re.compile(r'The following call raised this error:\n  File "(.+)", line (\d+), in \w+\n(.+)')
_CAUSE: Final = re.compile(r"Caused by: .*\(([^():]+):(\d+) in \w+\)")
_FIXED: Final = re.compile(r"specialized it to be a constant \((\d+)\)")
_GUARD: Final = re.compile(r"generated guard (.+)")
_SIZE: Final = re.compile(r"L\['image'\]\.size\(\)\[0\]")
_SYMBOL: Final = re.compile(r"\bs\d+\b")
_PER_IMAGE: Final = (
    "what it does must not depend on the number of images (write -1 or x.shape[0] in shapes, no branch or loop over them)"
)
_BY_VALUE: Final = (
    "what it does must not depend on the values in the images (torch.where chooses element by element; a branch that one image "
    "takes would decide for its whole batch)"
)


def capture(servable: nn.Module, dims: tuple[int, int, int]) -> torch.export.ExportedProgram:
    """Trace a module over a batch of any size.

    Nothing is guessed where torch finds that the program would hold for some batches alone: an exporter that goes on with the
    example's branch or batch size gives a file that is right for the example.

    Args:
        servable: In evaluation mode; takes uint8 images of shape (N, H, W, C).
        dims: (H, W, C).

    Raises:
        ExportError: Its computation depends on the values in the images or on their number, or torch cannot trace it.
    """
    example = torch.zeros((_EXAMPLE_BATCH, *dims), dtype=torch.uint8)
    try:
        return _trace(servable, example, strict=False)
    except Exception as error:  # noqa: BLE001 torch raises its own many kinds, and whatever forward() raises under tracing
        first = error
    try:
        return _trace(servable, example, strict=True)  # reads the code: it gets through len(x), and some of numpy's and Python's
    except Exception as error:  # noqa: BLE001 the same
        told = _explain(first) or _explain(error) or f"torch cannot trace it: {root_cause(first)}"
        raise ExportError(f"this network cannot be exported: {told}") from first


def capture_reader(reader: nn.Module, height_px: int) -> torch.export.ExportedProgram:
    """Trace a reader of amounts over batches of any size and fields of any width that is a multiple of 4.

    Args:
        reader: In evaluation mode; takes uint8 (B, H, W, 1) and int64 (B, 1), as ``convoy.contract.reading`` says.
        height_px: H.

    Raises:
        ExportError: torch cannot trace it, or its computation depends on the values in the images or on their number.
    """
    example = torch.zeros((_EXAMPLE_BATCH, height_px, 160, 1), dtype=torch.uint8), torch.full((_EXAMPLE_BATCH, 1), 100)
    batch = torch.export.Dim("batch")
    frames = torch.export.Dim("frames", min=MIN_READER_WIDTH_PX // STRIDE, max=MAX_READER_WIDTH_PX // STRIDE)
    columns = STRIDE * frames  # the graph holds for no other widths
    try:
        with quiet():
            return torch.export.export(reader, example, dynamic_shapes=({0: batch, 2: columns}, {0: batch}), strict=False)
    except Exception as error:
        told = _explain(error) or f"torch cannot trace it: {root_cause(error)}"
        raise ExportError(f"this reader cannot be exported: {told}") from error


def _trace(servable: nn.Module, example: torch.Tensor, *, strict: bool) -> torch.export.ExportedProgram:
    with quiet():
        shapes = {"image": {0: torch.export.Dim("batch")}}
        return torch.export.export(servable, (example,), dynamic_shapes=shapes, strict=strict)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's exporter from telling stdout, stderr and the log about its own internals."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


def root_cause(error: BaseException) -> str:
    """The first cause in one line, without the terminal's colours: exporters wrap it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = _ANSI.sub("", str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _explain(error: BaseException) -> str | None:
    """What was expected of the network, and what was found; None where it is about neither values nor the number of images."""
    text = _ANSI.sub("", str(error))
    if "data-dependent" in text.lower():
        return f"{_BY_VALUE}; found {_place(text) or root_cause(error)}."
    if fixed := _FIXED.search(text):
        return f"{_PER_IMAGE}; found that it works for {fixed[1]} images alone, as in the example."
    if guards := [guard.strip(" .") for guard in _GUARD.findall(text)]:
        return f"{_PER_IMAGE}; found a condition: {_SIZE.sub('batch', guards[0])}."
    if _SYMBOL.search(text):
        return f"{_PER_IMAGE}; found {_SYMBOL.sub('batch', root_cause(error))}."
    return None


def _place(text: str) -> str:
    """The line of the network's code that torch names, with its file's name but not its folder."""
    if call := _CALL.search(text):
        return f"`{call[3].strip()}` ({Path(call[1]).name}, line {call[2]})"
    if cause := _CAUSE.search(text):
        return f"line {cause[2]} of {Path(cause[1]).name}"
    return ""
