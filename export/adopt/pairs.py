"""Reference pairs that published models come with: inputs, and the outputs that their makers got."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from convoy.contract.errors import DataError, ExportError
from convoy.contract.validation import Check
from convoy.export.adopt.names import real_inputs
from convoy.export.adopt.running import open_plain, run_plain
from convoy.export.adopt.sandbox import run_contained

RTOL: Final = 1e-3
ATOL_OF_LARGEST: Final = 1e-4
"""Absolute tolerance, in units of the largest expected value: makers compute on other machines, in other orders."""
_MAX_BYTES: Final = 1 << 30


@dataclass(frozen=True)
class Pair:
    """Inputs of a model with its outputs, at its own border.

    Attributes:
        name: Where it comes from ("test_data_set_0").
        inputs: In the order of the graph's inputs, initialisers left out.
        outputs: In the order of the graph's outputs.
        input_names: What the file calls them; empty names where it does not.
        output_names: As ``input_names``.
    """

    name: str
    inputs: tuple[npt.NDArray[Any], ...]
    outputs: tuple[npt.NDArray[Any], ...]
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()


def reference_pairs(path: Path) -> tuple[Pair, ...]:
    """Read the pairs in a folder.

    Two forms: ONNX's own, ``test_data_set_*/input_0.pb`` with ``output_0.pb`` (serialised TensorProto); ``.npz`` files with the
    arrays ``inputs`` and ``outputs``, whose first axis counts the graph's, or ``input_0`` ... and ``output_0`` ....

    Args:
        path: A folder that holds them (beside the model, say), one ``test_data_set_*`` folder itself, or one ``.npz`` file.

    Returns:
        The pairs in the order of their names; none where there are none.

    Raises:
        DataError: A pair is damaged or lacks a half.
    """
    if path.is_file():
        return (_from_npz(path),)
    if any(path.glob("input_*.pb")):
        return (_from_tensors(path),)
    folders = [folder for folder in path.glob("test_data_set_*") if folder.is_dir()]
    files = list(path.glob("test_data*.npz"))
    pairs = [_from_tensors(folder) for folder in folders] + [_from_npz(file) for file in files]
    return tuple(sorted(pairs, key=lambda pair: (len(pair.name), pair.name)))


def _from_tensors(folder: Path) -> Pair:
    inputs, outputs = (_numbered(folder, half) for half in ("input", "output"))
    return Pair(
        folder.name,
        tuple(array for _, array in inputs),
        tuple(array for _, array in outputs),
        tuple(name for name, _ in inputs),
        tuple(name for name, _ in outputs),
    )


def _numbered(folder: Path, half: str) -> list[tuple[str, npt.NDArray[Any]]]:
    found: list[tuple[str, npt.NDArray[Any]]] = []
    while (file := folder / f"{half}_{len(found)}.pb").is_file():
        if file.stat().st_size > _MAX_BYTES:
            raise DataError(f"{file}: expected a tensor of at most {_MAX_BYTES} bytes, found {file.stat().st_size}.")
        try:
            tensor = onnx.TensorProto.FromString(file.read_bytes())
            if onnx.external_data_helper.uses_external_data(tensor):
                raise DataError(f"{file}: expected a tensor with its data, found one that points to another file.")
            found.append((tensor.name, numpy_helper.to_array(tensor)))
        except (DecodeError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{file}: expected a serialised ONNX tensor, found something else: {error}") from error
    if not found:
        raise DataError(f"{folder}: expected {half}_0.pb, found none: the pair lacks a half.")
    return found


def _from_npz(file: Path) -> Pair:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            stored = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{file}: expected arrays of inputs and outputs, found a file that cannot be read: {error}") from error
    inputs, outputs = (_half(stored, half) for half in ("input", "output"))
    if not inputs or not outputs:
        raise DataError(f"{file}: expected the arrays inputs and outputs (or input_0 and output_0), found {', '.join(stored)}.")
    return Pair(file.name, inputs, outputs)


def _half(stored: Mapping[str, npt.NDArray[Any]], half: str) -> tuple[npt.NDArray[Any], ...]:
    if f"{half}s" in stored:
        return tuple(stored[f"{half}s"])  # the first axis counts the graph's inputs, as the model zoo writes them
    if half in stored:
        return (stored[half],)
    return tuple(stored[f"{half}_{i}"] for i in range(len(stored)) if f"{half}_{i}" in stored)


def check_pairs(model: bytes, pairs: tuple[Pair, ...]) -> tuple[Check, ...]:
    """Replay pairs on a foreign file at its own border, in ONNX Runtime without graph optimisation, in a contained process.

    An output passes where it is finite, of the expected shape, ``|actual - expected| <= atol + 1e-3 |expected|`` with atol 1e-4 of
    the largest expected value, and its largest element is at the same place in each row (the last axis longer than 1 holds the
    classes) but for ties inside that bound.

    Args:
        model: The foreign file.
        pairs: From ``reference_pairs``.

    Returns:
        A check for each pair. A pair that does not fit the model, or on which it fails, is a failed check.
    """
    return tuple(_check_pair(model, pair) for pair in pairs)


def _check_pair(model: bytes, pair: Pair) -> Check:
    name = f"reference pair {pair.name}"
    expected = f"finite, |actual - expected| <= {ATOL_OF_LARGEST:g} max |expected| + {RTOL:g} |expected|, decisions equal"
    payload: dict[str, Any] = {"model": model, "input_names": list(pair.input_names), "n_inputs": len(pair.inputs)}
    try:
        payload.update({f"input {i}": np.ascontiguousarray(array) for i, array in enumerate(pair.inputs)})
        reply = run_contained(f"{__name__}:replay_task", payload)
    except (ExportError, TypeError, ValueError) as error:
        return Check(name=name, verdict="failed", expected=expected, found=str(error))
    names = [str(entry) for entry in reply["names"]]
    if len(names) != len(pair.outputs):
        found = f"{len(names)} outputs in the model, {len(pair.outputs)} in the pair"
        return Check(name=name, verdict="failed", expected=f"one expected array for each of {names}", found=found)
    places = _places(names, pair)
    verdicts = [
        _compare(output, pair.outputs[place], reply.get(f"output {i}"))
        for i, (output, place) in enumerate(zip(names, places, strict=True))
    ]
    failures = [text for passed, text, _, _ in verdicts if not passed]
    limit, measured = max(
        ((limit, measured) for _, _, limit, measured in verdicts), key=lambda both: both[1] / both[0] if both[0] else 0
    )
    return Check(
        name=name,
        verdict="failed" if failures else "passed",
        expected=expected,
        found="; ".join(failures or [text for _, text, _, _ in verdicts]),
        limit=limit if np.isfinite(limit) else None,
        measured=measured if np.isfinite(measured) else None,
    )


def _places(names: list[str], pair: Pair) -> list[int]:
    """Which array of the pair belongs to each output: by name where the pair names them all, else in order."""
    if set(pair.output_names) == set(names) and len(pair.output_names) == len(names):
        return [pair.output_names.index(name) for name in names]
    return list(range(len(names)))


def _compare(output: str, expected: npt.NDArray[Any], actual: npt.NDArray[Any] | None) -> tuple[bool, str, float, float]:
    """Whether an output passes; what was found; the bound and the largest difference."""
    if actual is None or actual.shape != expected.shape or actual.dtype.kind != expected.dtype.kind:
        found = "no tensor" if actual is None else f"{actual.dtype} {list(actual.shape)}"
        return False, f"{output!r} is {found}, expected {expected.dtype} {list(expected.shape)}", 0.0, float("inf")
    if expected.dtype.kind not in "fiu" or not expected.size:
        same = bool((actual == expected).all())
        return same, f"{output!r} is {'equal' if same else 'another'}", 0.0, 0.0 if same else float("inf")
    wide, found_wide = expected.astype(np.float64), actual.astype(np.float64)
    if not np.isfinite(found_wide).all() or not np.isfinite(wide).all():
        return False, f"{output!r} is not finite everywhere", 0.0, float("inf")
    diff = np.abs(found_wide - wide)
    atol = ATOL_OF_LARGEST * float(np.abs(wide).max())
    allowed = atol + RTOL * np.abs(wide)
    n_outside, n_other = int((diff > allowed).sum()), _other_decisions(wide, found_wide, allowed)
    text = f"{output!r}: max_abs_diff {diff.max():.3g}, {n_outside} of {diff.size} outside, {n_other} other decisions"
    worst = np.unravel_index(int((diff - allowed).argmax()), diff.shape)
    return n_outside == 0 and n_other == 0, text, float(allowed[worst]), float(diff[worst])


def _other_decisions(expected: npt.NDArray[Any], actual: npt.NDArray[Any], allowed: npt.NDArray[Any]) -> int:
    classes = max((axis for axis in range(expected.ndim) if expected.shape[axis] > 1), default=0)
    rows = [np.moveaxis(array, classes, -1).reshape(-1, array.shape[classes]) for array in (expected, actual, allowed)]
    index = np.arange(len(rows[0]))
    first, second = rows[0].argmax(axis=1), rows[1].argmax(axis=1)
    tied = rows[0][index, first] - rows[0][index, second] <= rows[2][index, first] + rows[2][index, second]
    return int(((first != second) & ~tied).sum())


def replay_task(payload: Mapping[str, Any]) -> dict[str, Any]:
    """One pair's inputs through a foreign file, in a contained process."""
    model = onnx.load_model_from_string(payload["model"])
    inputs = [payload[f"input {i}"] for i in range(payload["n_inputs"])]
    names = [value.name for value in real_inputs(model.graph)]
    if len(names) != len(inputs):
        raise ExportError(f"expected a pair with {len(names)} inputs ({', '.join(names)}), found {len(inputs)}")
    told = list(payload["input_names"])
    order = [told.index(name) for name in names] if set(told) == set(names) else range(len(names))
    session = open_plain(payload["model"])
    found = run_plain(session, {name: inputs[place] for name, place in zip(names, order, strict=True)})
    outputs = [value.name for value in model.graph.output]
    return {"names": outputs, **{f"output {i}": found[name] for i, name in enumerate(outputs) if name in found}}
