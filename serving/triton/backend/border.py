"""The tensors at an ONNX file's border, held against the model's configuration, or completing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from convoy.contract.errors import ContractError

TRITON_TYPES: Final = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}
"""Triton's type by ONNX Runtime's. BF16 is missing: neither numpy nor Triton's Python backend has it."""

DEFAULT_MAX_BATCH_SIZE: Final = 4
"""What the C++ backend completes where the file can batch and the configuration does not say how much."""


@dataclass(frozen=True)
class BorderTensor:
    """An input or an output of the ONNX file.

    Attributes:
        name: Its name.
        datatype: Triton's name of its type.
        shape: Its whole shape; -1 where any extent will do.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Border:
    """All inputs and outputs of the ONNX file."""

    inputs: tuple[BorderTensor, ...]
    outputs: tuple[BorderTensor, ...]

    @classmethod
    def of(cls, session: Any) -> Border:
        """The border of an open ONNX Runtime session.

        Raises:
            ContractError: A tensor is of a type that the wire does not have.
        """
        return cls(tuple(map(_border_tensor, session.get_inputs())), tuple(map(_border_tensor, session.get_outputs())))

    @property
    def can_batch(self) -> bool:
        """Whether the first axis of every tensor takes any extent."""
        tensors = (*self.inputs, *self.outputs)
        return bool(tensors) and all(tensor.shape[:1] == (-1,) for tensor in tensors)


def _border_tensor(node: Any) -> BorderTensor:
    if node.type not in TRITON_TYPES:
        raise ContractError(
            f"tensor '{node.name}' is a {node.type}, which this backend cannot pass on (bfloat16, sequences, maps)."
        )
    shape = tuple(extent if isinstance(extent, int) and extent >= 0 else -1 for extent in node.shape)
    return BorderTensor(node.name, TRITON_TYPES[node.type], shape)


def check(border: Border, config: Mapping[str, Any]) -> None:
    """Hold the configuration against the file.

    Every input of the file must be in the configuration; of its outputs, any may be left out.

    Raises:
        ContractError: They do not belong together; the message says what the file has.
    """
    batched = int(config.get("max_batch_size", 0)) > 0
    if batched and not all(tensor.shape[:1] == (-1,) for tensor in border.inputs):
        fixed = next(tensor for tensor in border.inputs if tensor.shape[:1] != (-1,))
        raise ContractError(
            f"max_batch_size is {config['max_batch_size']}, but the first axis of input '{fixed.name}' {list(fixed.shape)} is not "
            "dynamic. Export the model with a dynamic batch axis, or set max_batch_size to 0."
        )
    if not config.get("output"):
        raise ContractError(f"config.pbtxt names no outputs, the ONNX file has {sorted(tensor.name for tensor in border.outputs)}.")
    for what, tensors, entries in (
        ("input", border.inputs, config.get("input", [])),
        ("output", border.outputs, config.get("output", [])),
    ):
        by_name = {tensor.name: tensor for tensor in tensors}
        listed = [entry["name"] for entry in entries]
        unknown = [name for name in listed if name not in by_name]
        missing = [name for name in by_name if name not in listed] if what == "input" else []
        if unknown or missing:
            raise ContractError(
                f"config.pbtxt names the {what}s {sorted(listed)}, the ONNX file has {sorted(by_name)}: "
                + "; ".join(f"{how} {names}" for how, names in (("unknown", unknown), ("missing", missing)) if names)
                + "."
            )
        for entry in entries:
            _check_tensor(what, by_name[entry["name"]], entry, batched)


def _check_tensor(what: str, tensor: BorderTensor, entry: Mapping[str, Any], batched: bool) -> None:
    if entry.get("data_type") != tensor.datatype:
        raise ContractError(
            f"{what} '{tensor.name}': config.pbtxt says {entry.get('data_type')}, the ONNX file has {tensor.datatype}."
        )
    dims = [int(extent) for extent in entry.get("dims", [])]
    shape = [-1, *dims] if batched else dims
    fits = len(shape) == len(tensor.shape) and all(
        have in (-1, want) or want == -1 for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        expected = list(tensor.shape[1:] if batched else tensor.shape)
        raise ContractError(f"{what} '{tensor.name}': config.pbtxt says dims {dims}, the ONNX file has {expected}.")


def is_complete(config: Mapping[str, Any]) -> bool:
    """Whether a configuration names every tensor with type and dims, so that the file need not be opened to complete it."""
    entries: Sequence[Mapping[str, Any]] = (*config.get("input", []), *config.get("output", []))
    return (
        bool(config.get("input"))
        and bool(config.get("output"))
        and all(entry.get("data_type", "TYPE_INVALID") != "TYPE_INVALID" and entry.get("dims") for entry in entries)
    )


def complete(config: Any, border: Border) -> None:
    """Fill in what a configuration leaves out: inputs, outputs, and batching where the file can batch.

    A configuration without tensors and without ``max_batch_size`` gets 4, as with the C++ backend; one whose tensors are there
    with all the file's axes is left without batching.

    Args:
        config: Triton's ``ModelConfig`` object of the Python backend.
        border: The file's border.

    Raises:
        ValueError: Triton's object refuses what the file says, since the configuration says otherwise.
    """
    said = config.as_dict()
    max_batch_size = int(said.get("max_batch_size", 0))
    if max_batch_size == 0 and border.can_batch and _leaves_room_for_batch(said, border):
        max_batch_size = DEFAULT_MAX_BATCH_SIZE
        config.set_max_batch_size(max_batch_size)
        config.set_dynamic_batching()
    skip = 1 if max_batch_size > 0 else 0
    for tensors, entries, add, all_of_them in (
        (border.inputs, said.get("input", []), config.add_input, True),
        (border.outputs, said.get("output", []), config.add_output, False),
    ):
        named = {entry["name"]: entry for entry in entries}
        for tensor in tensors:
            entry = named.get(tensor.name)
            if entry is None and named and not all_of_them:
                continue  # a person listed the outputs: the others are not wanted
            dims = [int(extent) for extent in (entry or {}).get("dims") or tensor.shape[skip:]]
            add({"name": tensor.name, "data_type": tensor.datatype, "dims": dims})


def _leaves_room_for_batch(said: Mapping[str, Any], border: Border) -> bool:
    ranks = {tensor.name: len(tensor.shape) for tensor in (*border.inputs, *border.outputs)}
    entries = [entry for entry in (*said.get("input", []), *said.get("output", [])) if entry.get("dims")]
    return all(len(entry["dims"]) == ranks.get(entry["name"], 0) - 1 for entry in entries)
