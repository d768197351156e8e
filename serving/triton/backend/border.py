"""The tensors at an ONNX file's border, held against the model's configuration, or completing it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
"""Triton's type by ONNX Runtime's. BF16 is missing: numpy, Triton's Python backend and NVIDIA's C++ backend for ONNX lack it."""

DEFAULT_MAX_BATCH_SIZE: Final = 4
"""What the C++ backend completes where the file can batch and the configuration does not say how much."""


@dataclass(frozen=True)
class BorderTensor:
    """An input or an output of the ONNX file.

    Attributes:
        name: Its name.
        datatype: Triton's name of its type.
        shape: Its whole shape; -1 where any extent will do, () for a scalar (and where the file does not say).
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Border:
    """All inputs and outputs of the ONNX file.

    Attributes:
        inputs: What it must be given.
        outputs: What it gives.
        optional: What it may be given: it has a default for these (initializers that are listed as inputs).
    """

    inputs: tuple[BorderTensor, ...]
    outputs: tuple[BorderTensor, ...]
    optional: tuple[BorderTensor, ...] = ()

    @classmethod
    def of(cls, session: Any) -> Border:
        """The border of an open ONNX Runtime session.

        Raises:
            ContractError: A tensor is of a type that the wire does not have.
        """
        defaults = [node for node in session.get_overridable_initializers() if node.type in TRITON_TYPES]
        return cls(*(tuple(map(_border_tensor, nodes)) for nodes in (session.get_inputs(), session.get_outputs(), defaults)))

    @property
    def can_batch(self) -> bool:
        """Whether the first axis of every tensor takes any extent."""
        tensors = (*self.inputs, *self.outputs)
        return bool(tensors) and all(tensor.shape[:1] == (-1,) for tensor in tensors)


def _border_tensor(node: Any) -> BorderTensor:
    if node.type not in TRITON_TYPES:
        raise ContractError(
            f"tensor '{node.name}' is a {node.type}, which no onnxruntime backend of Triton's can pass on (bfloat16, float8, 4-bit "
            "integers, complex numbers, sequences, maps). Cast it in the model."
        )
    shape = tuple(extent if isinstance(extent, int) and extent >= 0 else -1 for extent in node.shape)
    return BorderTensor(node.name, TRITON_TYPES[node.type], shape)


def input_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The inputs that requests bring: those that the configuration lists, and the controls of its sequences."""
    return (*(entry["name"] for entry in config.get("input", [])), *_controls(config))


def check(border: Border, config: Mapping[str, Any]) -> None:
    """Hold the configuration against the file, as strictly as the C++ backend does.

    Every input of the file must be in the configuration; of its outputs, any may be left out. An extent that the file fixes must be
    the configuration's too; one that it leaves open may be fixed by the configuration for an input, not for an output.

    Raises:
        ContractError: They do not belong together; the message says what the file has.
    """
    batched = int(config.get("max_batch_size", 0)) > 0
    if not config.get("output"):
        raise ContractError(f"config.pbtxt names no outputs, the ONNX file has {sorted(tensor.name for tensor in border.outputs)}.")
    _check_names(border, config, batched)
    for what, tensors, entries in (
        ("input", (*border.inputs, *border.optional), config.get("input", [])),
        ("output", border.outputs, config.get("output", [])),
    ):
        by_name = {tensor.name: tensor for tensor in tensors}
        for entry in entries:
            _check_tensor(what, by_name[entry["name"]], entry, batched)
    if batched and (tensor := next((each for each in border.inputs if each.shape[:1] != (-1,)), None)):
        raise _no_batch_axis("input", tensor)  # a control of sequences: the others have been looked at


def _check_names(border: Border, config: Mapping[str, Any], batched: bool) -> None:
    required = [entry["name"] for entry in config.get("input", []) if not entry.get("optional")]
    optional = [entry["name"] for entry in config.get("input", []) if entry.get("optional")]
    with_default = {tensor.name for tensor in border.optional}
    for name in required:
        if name in with_default:
            raise ContractError(
                f"input '{name}' has a default in the ONNX file: say optional: true in config.pbtxt, or leave it out."
            )
    if batched and optional:
        raise ContractError(
            f"inputs {optional} are optional and max_batch_size is {config['max_batch_size']}: NVIDIA's C++ backend takes optional "
            "inputs only without batching. Set max_batch_size to 0."
        )
    inputs, outputs = {tensor.name for tensor in border.inputs}, {tensor.name for tensor in border.outputs}
    no_default = [name for name in optional if name in inputs]
    if no_default:
        raise ContractError(
            f"inputs {no_default} are optional in config.pbtxt, but the ONNX file has no default for them (an initializer that is "
            "listed as an input)."
        )
    _compare("input", [*required, *_controls(config)], optional, inputs, with_default)
    _compare("output", [], [entry["name"] for entry in config["output"]], set(), outputs)


def _compare(what: str, must: Sequence[str], may: Sequence[str], needed: set[str], allowed: set[str]) -> None:
    unknown = [name for name in (*must, *may) if name not in needed | allowed]
    missing = sorted(name for name in needed if name not in must)
    if unknown or missing:
        raise ContractError(
            f"config.pbtxt names the {what}s {sorted([*must, *may])}, the ONNX file has {sorted(needed | allowed)}: "
            + "; ".join(f"{how} {names}" for how, names in (("unknown", unknown), ("missing", missing)) if names)
            + "."
        )


def _controls(config: Mapping[str, Any]) -> Iterator[str]:
    for control in config.get("sequence_batching", {}).get("control_input", []):
        yield control["name"]


def _check_tensor(what: str, tensor: BorderTensor, entry: Mapping[str, Any], batched: bool) -> None:
    if entry.get("data_type") != tensor.datatype:
        raise ContractError(
            f"{what} '{tensor.name}': config.pbtxt says {entry.get('data_type')}, the ONNX file has {tensor.datatype}."
        )
    dims, said = dims_of(entry), "reshape" if "reshape" in entry else "dims"
    if not tensor.shape and not (batched and what == "input"):
        if any(extent != 1 for extent in dims):
            raise ContractError(
                f"{what} '{tensor.name}': config.pbtxt says {said} {list(dims)}, the ONNX file has a scalar (or does not say): "
                f"expected dims of 1 only."
            )
        return
    if batched and tensor.shape[:1] != (-1,):
        raise _no_batch_axis(what, tensor)
    have = tensor.shape[1:] if batched else tensor.shape
    open_too = what == "input"
    if len(have) != len(dims) or any(h != d and not (open_too and h == -1) for h, d in zip(have, dims, strict=True)):
        raise ContractError(f"{what} '{tensor.name}': config.pbtxt says {said} {list(dims)}, the ONNX file has {list(have)}.")


def _no_batch_axis(what: str, tensor: BorderTensor) -> ContractError:
    return ContractError(
        f"max_batch_size is set, but the first axis of {what} '{tensor.name}' {list(tensor.shape)} is not dynamic. Export the "
        "model with a dynamic batch axis, or set max_batch_size to 0."
    )


def dims_of(entry: Mapping[str, Any]) -> tuple[int, ...]:
    """The dims that the model sees of a tensor of the configuration: its reshape, which Triton itself does, where it has one."""
    said = entry["reshape"].get("shape", []) if "reshape" in entry else entry.get("dims", [])
    return tuple(int(extent) for extent in said)


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

    A configuration without ``max_batch_size`` gets 4, as with the C++ backend, unless the tensors that are there have all the axes;
    one that batches and names no scheduler gets dynamic batching. One number a row becomes dims of [1] and a reshape.

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
    if max_batch_size > 1 and not {"sequence_batching", "ensemble_scheduling"} & said.keys():
        config.set_dynamic_batching()
    for key, tensors, add in (
        ("input", (*border.inputs, *border.optional), config.add_input),
        ("output", border.outputs, config.add_output),
    ):
        named = {entry["name"]: entry for entry in said.get(key, [])}
        left_out = {tensor.name for tensor in border.optional} | set(_controls(said))
        for tensor in tensors:
            entry = named.get(tensor.name)
            if entry is None and (tensor.name in left_out or (named and key == "output")):
                continue  # a person listed the outputs: the others are not wanted
            _complete_tensor(said[key], add, tensor, entry, batched=max_batch_size > 0)


def _complete_tensor(
    entries: list[dict[str, Any]], add: Any, tensor: BorderTensor, entry: Mapping[str, Any] | None, *, batched: bool
) -> None:
    dims = [int(extent) for extent in (entry or {}).get("dims") or tensor.shape[1 if batched else 0 :]]
    add({"name": tensor.name, "data_type": tensor.datatype, "dims": dims or [1]})
    if not dims and batched:  # Triton's object knows no reshape, its configuration does
        next(each for each in entries if each["name"] == tensor.name).setdefault("reshape", {"shape": []})


def _leaves_room_for_batch(said: Mapping[str, Any], border: Border) -> bool:
    ranks = {tensor.name: len(tensor.shape) for tensor in (*border.inputs, *border.outputs)}
    entries = [entry for entry in (*said.get("input", []), *said.get("output", [])) if entry.get("dims")]
    return all(len(dims_of(entry)) == ranks.get(entry["name"], 0) - 1 for entry in entries)
