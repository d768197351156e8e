"""What the backend would say: is it one that the server has, and does it take the configuration?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from google.protobuf import json_format

from convoy.contract.errors import ConvoyError
from convoy.serving.repository.configuration.part import Severity
from convoy.serving.repository.configuration.schema import CONFIG, is_map, is_message, is_repeated
from convoy.serving.repository.lint.subject import Subject
from convoy.serving.triton.backend import border
from convoy.serving.triton.backend.options import Options
from convoy.serving.triton.runtime import BACKENDS

NOT_IN_THE_WHEEL: Final = ("model_metrics", "ensemble_scheduling.max_inflight_requests")
"""Fields that the schema gained after the server of the wheel, 2.51, was built: it refuses them as unknown."""

_ONLY_IN_THE_CONTAINER: Final = ("tensorrt", "pytorch", "tensorflow", "openvino", "dali", "fil", "vllm", "tensorrtllm")


def check_backend(subject: Subject) -> None:
    """The server that ``convoy serve`` starts has the backend, and knows every field."""
    message = subject.message
    if message.model_repository_agents.agents:
        _no_agents(subject)
    for field in NOT_IN_THE_WHEEL:
        if _is_set(message, field):
            subject.report(
                "error",
                f"{field}: the server that `convoy serve` starts does not know it. Remove it, or serve with NVIDIA's container.",
                at=field,
            )
    if subject.is_ensemble:
        return
    if not message.backend:
        found = f"platform {message.platform!r}" if message.platform else "neither, and no file that tells"
        subject.report(
            "error", f'expected a backend ("onnxruntime"), found {found}. Name it.', at="platform" if message.platform else ""
        )
    elif message.backend not in BACKENDS and not _brings(subject, f"libtriton_{message.backend}.so"):
        where = "NVIDIA's container has it" if message.backend in _ONLY_IN_THE_CONTAINER else "nor is it known elsewhere"
        subject.report(
            "error",
            f"backend: expected {' or '.join(BACKENDS)}, found {message.backend!r}, which the server of `convoy serve` does "
            f"not have ({where}). Mend the name.",
            at="backend",
        )
    if message.runtime and not _brings(subject, message.runtime) and message.runtime not in ("model.py", "libtriton_python.so"):
        subject.report(
            "error", f"runtime: expected a file of the model's folder, found {message.runtime!r}. Remove it.", at="runtime"
        )
    for index, group in enumerate(message.instance_group):
        _check_kind(subject, f"instance_group[{index}]", subject.typed.instance_group[index].kind, list(group.gpus))


def _no_agents(subject: Subject) -> None:
    names = [agent.name for agent in subject.message.model_repository_agents.agents]
    subject.report(
        "error",
        f"model_repository_agents: expected none, found {names}: the server of `convoy serve` has none. Remove them.",
        at="model_repository_agents",
    )


def _check_kind(subject: Subject, path: str, kind: str, gpus: list[int]) -> None:
    if kind == "KIND_GPU" or (kind == "KIND_AUTO" and gpus):
        said = kind if kind == "KIND_GPU" else f"gpus {gpus}"
        subject.report(
            "warning", f"{said}: a server without that GPU refuses the model; KIND_AUTO without gpus runs on any machine.", at=path
        )


def _brings(subject: Subject, library: str) -> bool:
    """Whether the model's folder holds the backend's library itself."""
    folders = [subject.folder, *(subject.folder / str(version) for version in subject.versions)]
    return any((folder / library).is_file() for folder in folders)


def _is_set(message: Any, path: str) -> bool:
    first, _, rest = path.partition(".")
    if message.DESCRIPTOR.fields_by_name.get(first) is None:
        return False  # an older schema than this table
    if not rest:
        return bool(message.HasField(first))
    return bool(message.HasField(first) and getattr(getattr(message, first), rest))


def complete(subject: Subject, found: border.Border) -> None:
    """Complete the configuration from the file, as the backend does."""
    said = as_json(subject.message)
    if border.is_complete(said):
        return
    try:
        border.complete(_Completion(said), found)
    except (ConvoyError, ValueError) as error:
        subject.report("error", str(error), at=_place(str(error), subject.message))
        return
    subject.message = json_format.ParseDict(said, CONFIG())


def check_border(subject: Subject, found: border.Border) -> None:
    """Hold the configuration against the file."""
    try:
        border.check(found, as_json(subject.message))
    except ConvoyError as error:
        subject.report("error", str(error).replace("config.pbtxt", "the configuration"), at=_place(str(error), subject.message))


def check_options(subject: Subject) -> None:
    """Read the backend's options on every kind of instance that the configuration allows.

    What has no effect on one kind of machine alone (``KIND_AUTO``) is no problem.
    """
    config = as_json(subject.message)
    kinds = {group.kind for group in subject.typed.instance_group} or {"KIND_AUTO"}
    told: set[str] = set()
    for kind in sorted(kinds):
        resolved = ("CPU", "GPU") if kind == "KIND_AUTO" else (kind.removeprefix("KIND_"),)
        each: list[set[str]] = []
        for index, one in enumerate(resolved):
            try:
                each.append(set(Options.read(config, kind=one).warnings))
            except ConvoyError as error:
                if str(error) not in told:
                    told.add(str(error))
                    severity: Severity = "error" if index == 0 else "warning"
                    subject.report(severity, str(error), at=_place(str(error), subject.message))
                each.append(set())
        for text in sorted(set.intersection(*each)):
            subject.report("warning", f"{text.rstrip('.')}.", at=_place(text, subject.message))


def _place(text: str, message: Any) -> str:
    """The field that a message of the backend is about."""
    key = re.search(r"parameter '([^']+)'", text)
    if key and key.group(1) in message.parameters:
        return f'parameters["{key.group(1)}"]'
    if "execution_accelerator" in text:
        return "optimization.execution_accelerators"
    for what in ("input", "output"):
        names = [tensor.name for tensor in getattr(message, what)]
        tensor = re.search(rf"(?:{what}|of tensor) '([^']+)'", text)
        if tensor and tensor.group(1) in names:
            return f"{what}[{names.index(tensor.group(1))}]"
        if f"the {what}s [" in text or re.search(rf"\b{what}s\b", text):
            return what
    first = re.match(r"(?:config\.pbtxt asks for )?(\w+)", text)
    return first.group(1) if first and first.group(1) in CONFIG.DESCRIPTOR.fields_by_name else ""


class _Completion:
    """Triton's ``ModelConfig`` object of the Python backend, over a configuration in JSON form: it adds, and never contradicts."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config

    def as_dict(self) -> dict[str, Any]:
        return self._config

    def set_max_batch_size(self, size: int) -> None:
        self._config["max_batch_size"] = size

    def set_dynamic_batching(self) -> None:
        if not {"dynamic_batching", "sequence_batching", "ensemble_scheduling"} & self._config.keys():
            self._config["dynamic_batching"] = {}

    def add_input(self, tensor: Mapping[str, Any]) -> None:
        self._add("input", tensor)

    def add_output(self, tensor: Mapping[str, Any]) -> None:
        self._add("output", tensor)

    def _add(self, what: str, tensor: Mapping[str, Any]) -> None:
        for entry in self._config[what]:
            if entry["name"] != tensor["name"]:
                continue
            if entry["data_type"] not in ("TYPE_INVALID", tensor["data_type"]):
                raise ValueError(
                    f"{what} '{tensor['name']}': expected {tensor['data_type']}, as in the ONNX file, found {entry['data_type']}."
                )
            entry.update(data_type=tensor["data_type"], dims=entry["dims"] or list(tensor["dims"]))
            return
        self._config[what].append(dict(tensor))


def as_json(message: Any) -> dict[str, Any]:
    """A message as Triton hands it to backends: fields without presence are always there, 64-bit integers are numbers."""
    said: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if is_map(field):
            said[field.name] = {str(key): as_json(value[key]) if hasattr(value[key], "DESCRIPTOR") else value[key] for key in value}
        elif is_repeated(field):
            said[field.name] = [_one(field, item) for item in value]
        elif not field.has_presence or message.HasField(field.name):
            said[field.name] = _one(field, value)
    return said


def _one(field: Any, value: Any) -> Any:
    if is_message(field):
        return as_json(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    return value


def python_files(subject: Subject) -> None:
    """Each served version of a model of the backend ``python`` has its file."""
    for version in subject.served:
        path: Path = subject.folder / str(version) / subject.message.default_model_filename
        if not path.is_file():
            subject.report(
                "error", "no such file. Each version that is served needs it (default_model_filename names it).", at=path
            )
