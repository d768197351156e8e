"""Weights that were trained elsewhere, read from a file without running what is in it."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from convoy.contract.errors import ContractError, UsageError
from convoy.contract.files import sha256_file
from convoy.contract.manifest import Preprocessing

_NESTS: Final = ("state_dict", "model_state_dict", "model")
"""Where checkpoints keep the weights beside an optimizer, an epoch and so on."""

_ZIP: Final = b"PK\x03\x04"
_PICKLE: Final = b"\x80"
_ADVICE: Final = "Save the weights alone, with torch.save(network.state_dict(), FILE) or safetensors.torch.save_file."


@dataclass(frozen=True)
class Weights:
    """Tensors by name, and where they come from.

    Attributes:
        source: A file's name, the name of torchvision's weights, or the id of a run.
        sha256: The digest of the file.
        tensors: By name, on the CPU; each is dense.
        preprocessing: What the network saw when it learnt them; None where nobody says.
        image_size_px: The size of the images that it saw; None where nobody says.
    """

    source: str
    sha256: str
    tensors: Mapping[str, Tensor]
    preprocessing: Preprocessing | None = None
    image_size_px: int | None = None


def read_weights(path: Path) -> Weights:
    """Read a state dict that ``torch.save`` wrote (``.pt``, ``.pth``, ``.th``), a ``.safetensors`` file or a run folder.

    The kind is told by the content. A state dict may lie in a checkpoint, under ``state_dict``, ``model_state_dict`` or
    ``model``. Pickles are read by torch's restricted reader (``weights_only``), which builds tensors and plain containers alone.

    Raises:
        UsageError: There is nothing at ``path``.
        ContractError: It holds no weights, is damaged, or asks for code to be run.
    """
    if path.is_dir():
        return _of_run(path)
    try:
        with path.open("rb") as file:
            begin = file.read(9)
    except OSError as error:
        raise UsageError(f"--weights {path}: expected a file with weights or a run folder: {error.strerror or error}.") from error
    if begin.startswith((_ZIP, _PICKLE)):
        content = _unpickle(path)
    elif begin[8:] == b"{":
        try:
            content = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise ContractError(f"{path}: expected a safetensors file, but it is damaged or cut short: {error}.") from error
    else:
        raise ContractError(
            f"{path}: expected weights that torch.save or safetensors wrote, found a file that begins with {begin[:4]!r}. {_ADVICE}"
        )
    return Weights(path.name, sha256_file(path), _tensors(content, path))


def _unpickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an archive of TorchScript, which is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        found = "a pickle of another kind"
        if asked:
            found = f"a pickle that builds other Python objects (it asks for {asked[1]}), which could run any code"
        raise ContractError(f"{path}: expected tensors alone, found {found}: not read. {_ADVICE}") from error
    except Exception as error:  # torch's reader meets damage with whatever its parts raise
        reason = " ".join(str(error).split())[:200]
        raise ContractError(
            f"{path}: expected weights that torch.save wrote, but the file is damaged or cut short "
            f"({type(error).__name__}: {reason}). Fetch it again."
        ) from error


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in _NESTS:
        nest = next((name for name in _NESTS if isinstance(content, Mapping) and isinstance(content.get(name), Mapping)), None)
        content = content if nest is None else content[nest]
    if not isinstance(content, Mapping) or not content:
        raise ContractError(f"{path}: expected tensors by name, found {_name(content)}. {_ADVICE}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ContractError(f"{path}: expected tensors by name, found {_name(value)} under {name!r}. {_ADVICE}")
        if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_complex():
            raise ContractError(f"{path}: expected plain numbers, found a {value.dtype} tensor of another kind under {name!r}.")
    return dict(content)


def _name(value: Any) -> str:
    return "nothing" if isinstance(value, Mapping) else f"a value of type {type(value).__name__}"


def _of_run(folder: Path) -> Weights:
    from convoy.training.run_folder import load_run  # which, by way of the loop, imports this package

    loaded = load_run(folder)
    return Weights(
        source=loaded.run.run_id,
        sha256=loaded.run.weights_sha256,
        tensors=loaded.classifier.network.state_dict(),
        preprocessing=loaded.run.preprocessing,
        image_size_px=loaded.run.image.height_px,
    )
