"""``goldens.npz``: real inputs with PyTorch's outputs, replayed wherever the model runs."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import ContractError
from convoy.contract.files import write_bytes

_KEYS = ("image", "logits", "probabilities", "label")


@dataclass(frozen=True)
class Goldens:
    """Golden inputs and what the source (PyTorch, or the ONNX file that was taken up) answered at export. Never regenerated.

    Attributes:
        image: uint8, shape (n, height, width, channels).
        logits: float32, shape (n, classes).
        probabilities: float32, shape (n, classes).
        label: int64, shape (n,): the true classes; -1 where nobody knows.
    """

    image: npt.NDArray[np.uint8]
    logits: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]
    label: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.image)

    def save(self, path: Path) -> None:
        """Write the goldens to ``path``, whole or not at all; equal goldens give equal bytes."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for key in _KEYS:
                array = io.BytesIO()
                np.save(array, np.ascontiguousarray(getattr(self, key)), allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(f"{key}.npy", (1980, 1, 1, 0, 0, 0)), array.getvalue(), zipfile.ZIP_DEFLATED)
        write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Goldens:
        """Read and check goldens.

        Raises:
            ContractError: The file is missing or damaged, or its arrays do not belong together.
        """
        try:
            # read whole first: numpy leaves a damaged file open
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in _KEYS}
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ContractError(f"{path}: expected golden inputs and outputs ({', '.join(_KEYS)}): {error}") from error
        goldens = cls(**arrays)
        shapes = {key: array.shape for key, array in arrays.items()}
        n, classes = len(goldens.image), goldens.logits.shape[-1:]
        well_formed = (
            goldens.image.dtype == np.uint8
            and goldens.image.ndim == 4
            and goldens.logits.dtype == goldens.probabilities.dtype == np.float32
            and goldens.logits.shape == goldens.probabilities.shape == (n, *classes)
            and goldens.label.shape == (n,)
            and n > 0
        )
        if not well_formed:
            raise ContractError(f"{path}: the arrays of the golden inputs and outputs do not belong together: {shapes}")
        return goldens
