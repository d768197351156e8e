"""``goldens.npz``: real inputs with PyTorch's outputs, replayed wherever the model runs."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import ContractError
from convoy.contract.files import write_bytes
from convoy.contract.manifest import INPUT_NAME, LOGITS_NAME, PROBABILITIES_NAME
from convoy.contract.reading import (
    CHARACTERS_NAME,
    CONFIDENCE_NAME,
    N_CHARACTERS_NAME,
    POSITIONS_NAME,
    POSTERIORS_NAME,
    WIDTH_NAME,
)

Arrays: TypeAlias = "Mapping[str, npt.NDArray[Any]]"
"""By tensor name, a row for each golden."""


class _Form(NamedTuple):
    """What an array of the file must be: its dtype begins so, and axes that share a name have one size."""

    dtype: str
    axes: tuple[str, ...]


class _Layout(NamedTuple):
    """The arrays of one kind of model, in the order in which they are written."""

    inputs: dict[str, _Form]
    outputs: dict[str, _Form]
    truth: tuple[str, _Form]

    @property
    def forms(self) -> dict[str, _Form]:
        return {**self.inputs, **self.outputs, self.truth[0]: self.truth[1]}


_IMAGE: Final = _Form("uint8", ("n", "height", "width", "channels"))
_CLASSES: Final = _Layout(
    {INPUT_NAME: _IMAGE},
    {LOGITS_NAME: _Form("float32", ("n", "classes")), PROBABILITIES_NAME: _Form("float32", ("n", "classes"))},
    ("label", _Form("", ("n",))),
)
_AMOUNTS: Final = _Layout(
    {INPUT_NAME: _IMAGE, WIDTH_NAME: _Form("int64", ("n", "1"))},
    {
        CHARACTERS_NAME: _Form("int64", ("n", "best", "length")),
        N_CHARACTERS_NAME: _Form("int64", ("n", "best")),
        POSITIONS_NAME: _Form("int64", ("n", "best", "length", "2")),
        POSTERIORS_NAME: _Form("float32", ("n", "best")),
        CONFIDENCE_NAME: _Form("float32", ("n", "1")),
    },
    ("text", _Form("str", ("n",))),
)


@dataclass(frozen=True)
class Goldens:
    """Golden inputs and what the source (PyTorch, or the ONNX file that was taken up) answered at export. Never regenerated.

    Attributes:
        inputs: By name: ``image``, uint8 (n, height, width, channels); of a reader of amounts ``width`` too.
        outputs: By name, as the manifest says: ``logits`` and ``probabilities``, or those of ``convoy.contract.reading``.
        truth: What the images show: of a classifier int64 (n,), -1 where nobody knows; of a reader the texts, empty where nobody
            knows.
    """

    inputs: Arrays
    outputs: Arrays
    truth: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.truth)

    @classmethod
    def of_classes(
        cls,
        image: npt.NDArray[np.uint8],
        logits: npt.NDArray[np.float32],
        probabilities: npt.NDArray[np.float32],
        label: npt.NDArray[np.int64],
    ) -> Goldens:
        """The goldens of a classifier: uint8 (n, H, W, C), float32 (n, K) twice, int64 (n,)."""
        return cls({INPUT_NAME: image}, {LOGITS_NAME: logits, PROBABILITIES_NAME: probabilities}, label)

    def batches(self, size: int) -> list[dict[str, npt.NDArray[Any]]]:
        """The inputs in batches of at most ``size``."""
        return [{name: values[start : start + size] for name, values in self.inputs.items()} for start in range(0, len(self), size)]

    def save(self, path: Path) -> None:
        """Write the goldens to ``path``, whole or not at all; equal goldens give equal bytes."""
        layout = _CLASSES if LOGITS_NAME in self.outputs else _AMOUNTS
        arrays = {**self.inputs, **self.outputs, layout.truth[0]: self.truth}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for key in layout.forms:
                array = io.BytesIO()
                np.save(array, np.ascontiguousarray(arrays[key]), allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(f"{key}.npy", (1980, 1, 1, 0, 0, 0)), array.getvalue(), zipfile.ZIP_DEFLATED)
        write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Goldens:
        """Read and check goldens.

        Raises:
            ContractError: The file is missing or damaged, or its arrays do not belong together.
        """
        layout = _CLASSES
        try:
            # read whole first: numpy leaves a damaged file open
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
                layout = _AMOUNTS if CHARACTERS_NAME in archive.files else _CLASSES
                arrays = {key: archive[key] for key in layout.forms}
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ContractError(f"{path}: expected golden inputs and outputs ({', '.join(layout.forms)}): {error}") from error
        if not _belong_together(arrays, layout):
            found = {key: (array.dtype.name, array.shape) for key, array in arrays.items()}
            raise ContractError(f"{path}: the arrays of the golden inputs and outputs do not belong together: {found}")
        return cls(
            {key: arrays[key] for key in layout.inputs}, {key: arrays[key] for key in layout.outputs}, arrays[layout.truth[0]]
        )


def _belong_together(arrays: Arrays, layout: _Layout) -> bool:
    sizes: dict[str, int] = {"1": 1, "2": 2}
    for key, form in layout.forms.items():
        array = arrays[key]
        if array.ndim != len(form.axes) or not array.dtype.name.startswith(form.dtype):
            return False
        if any(sizes.setdefault(axis, size) != size for axis, size in zip(form.axes, array.shape, strict=True)):
            return False
    return sizes["n"] > 0
