"""A person's own ``nn.Module``: found, built, given its weights."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from convoy.contract.errors import DataError, ExportError, UsageError

_NESTS: Final = ("state_dict", "model_state_dict", "model", "module", "network", "net")
_PREFIXES: Final = ("module.", "_orig_mod.")
_MAX_NAMED: Final = 5


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with its weights.

    Attributes:
        module: On the CPU, in evaluation mode, in float32.
        remarks: What was done to the weights to make them fit, for people.
    """

    module: nn.Module
    remarks: tuple[str, ...]


def load_torch(factory: str, weights: Path | None) -> LoadedNetwork:
    """Build a network and load its weights.

    The person's own code runs here: it is trusted as such. The weights are not: they are read by safetensors, or by ``torch.load``
    with ``weights_only=True``, which runs no code from the file.

    Args:
        factory: ``package.module:factory`` or ``path/to/file.py:factory``: what is called without arguments and gives an
            ``nn.Module``, or such a module itself. The working folder is looked in first.
        weights: A ``.safetensors`` file, or what ``torch.save`` wrote: a state dict, alone or under ``state_dict``, ``model``,
            ``model_state_dict`` and the like. None where the factory loads them itself.

    Raises:
        UsageError: There is no such module or factory, it wants arguments, or gives no ``nn.Module``.
        DataError: The weights cannot be read, or hold code.
        ExportError: The weights are another network's: tensors are missing, left over or of other shapes.
    """
    module = _build(factory)
    remarks: list[str] = []
    if weights is None:
        remarks.append("no --weights: the network has those that the factory gave it, random ones where it loads none")
    else:
        state = _fitting(_read(weights, remarks), module, remarks)
        _load(module, state, factory, weights)
    if any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in module.state_dict().values()):
        dtypes = sorted({str(tensor.dtype) for tensor in module.state_dict().values() if tensor.is_floating_point()})
        remarks.append(f"weights in {', '.join(dtypes)} were taken to float32")
    return LoadedNetwork(module.cpu().float().eval(), tuple(remarks))


def _build(factory: str) -> nn.Module:
    where, colon, name = factory.rpartition(":")
    if not colon or not where or not name.isidentifier():
        raise UsageError(f"expected package.module:factory or path/to/file.py:factory, found {factory!r}.")
    found = getattr(_import(where), name, None)
    if found is None:
        raise UsageError(f"{factory}: {where} has no {name}.")
    if not isinstance(found, nn.Module):
        if not callable(found):
            raise UsageError(f"{factory}: expected a function or a class that gives an nn.Module, found {type(found).__name__}.")
        try:
            found = found()
        except Exception as error:  # whatever a stranger's factory raises
            raise UsageError(
                f"{factory}: expected a factory that is called without arguments; it failed: {type(error).__name__}: {error}"
            ) from error
    if not isinstance(found, nn.Module):
        raise UsageError(f"{factory}: expected an nn.Module, found {type(found).__name__}.")
    return found


def _import(where: str) -> Any:
    path = Path(where)
    inserted = str(path.parent.resolve() if path.suffix == ".py" else Path.cwd())
    if inserted not in sys.path:
        sys.path.insert(0, inserted)
    try:
        if path.suffix != ".py":
            return importlib.import_module(where)
        if not path.is_file():
            raise UsageError(f"{where}: no such file.")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise UsageError(f"{where}: cannot be imported as Python.")
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)  # dataclasses and pickles look their module up
        spec.loader.exec_module(module)
        return module
    except UsageError:
        raise
    except Exception as error:  # whatever a stranger's module raises while it is imported
        raise UsageError(f"{where}: cannot be imported: {type(error).__name__}: {error}") from error


def _read(weights: Path, remarks: list[str]) -> dict[str, torch.Tensor]:
    try:
        if weights.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(weights))
        found = torch.load(weights, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(f"{weights}: no such file of weights.") from error
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{weights}: expected tensors alone, found other objects, whose loading could run code. Save the state dict "
            f"(torch.save(model.state_dict(), ...)) or a .safetensors file instead.{_culprit(error)}"
        ) from error
    except Exception as error:  # zip, pickle, safetensors and torch have many kinds for a damaged file
        raise DataError(
            f"{weights}: expected a .safetensors file or what torch.save wrote, found a file that cannot be read "
            f"({type(error).__name__}: {_first(error)}): it is damaged, or another kind of file."
        ) from error
    return _state_of(found, weights, remarks)


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _culprit(error: Exception) -> str:
    """The object that torch refused to load, where its message names one; the rest of it advises to load unsafely."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    return f" (It holds a {named[1]}.)" if named else ""


def _state_of(found: Any, weights: Path, remarks: list[str]) -> dict[str, torch.Tensor]:
    """The state dict, perhaps under a key of a checkpoint."""
    if isinstance(found, Mapping) and not _is_state(found):
        for key in _NESTS:
            if isinstance(found.get(key), Mapping) and _is_state(found[key]):
                others = ", ".join(str(name) for name in list(found) if name != key)
                remarks.append(f"weights taken from {key!r} of the checkpoint{f' (left out: {others})' if others else ''}")
                return {str(name): tensor for name, tensor in found[key].items()}
    if not isinstance(found, Mapping) or not _is_state(found):
        what = f"the keys {', '.join(map(str, list(found)[:_MAX_NAMED]))}" if isinstance(found, Mapping) else type(found).__name__
        raise DataError(f"{weights}: expected a state dict, alone or under one of {', '.join(_NESTS)}; found {what}.")
    return {str(name): tensor for name, tensor in found.items()}


def _is_state(found: Mapping[Any, Any]) -> bool:
    return len(found) > 0 and all(isinstance(value, torch.Tensor) for value in found.values())


def _fitting(state: dict[str, torch.Tensor], module: nn.Module, remarks: list[str]) -> dict[str, torch.Tensor]:
    """The state without the prefixes that wrappers (DataParallel, torch.compile, a trainer) put before every name."""
    expected = set(module.state_dict())
    while state and not expected.issuperset(state):
        prefix = next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in state)), None)
        if prefix is None:
            first = {name.partition(".")[0] + "." for name in state}
            stripped = {name.partition(".")[2] for name in state}
            prefix = next(iter(first)) if len(first) == 1 and stripped == expected else None
        if prefix is None:
            break
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        remarks.append(f"the prefix {prefix!r} before every weight's name was left out")
    return state


def _load(module: nn.Module, state: dict[str, torch.Tensor], factory: str, weights: Path) -> None:
    expected = module.state_dict()
    missing, unexpected = [name for name in expected if name not in state], [name for name in state if name not in expected]
    shapes = [
        f"{name} {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    faults = [
        f"{len(names)} {what} ({', '.join(names[:_MAX_NAMED])}{', ...' if len(names) > _MAX_NAMED else ''})"
        for what, names in (("missing", missing), ("left over", unexpected), ("of another shape", shapes))
        if names
    ]
    if faults:
        raise ExportError(
            f"{weights}: expected the {len(expected)} tensors of the network that {factory} builds, found {'; '.join(faults)}. "
            "Build the network as it was trained (number of classes, variant), or name the weights of this one."
        )
    module.load_state_dict(state, strict=True)
