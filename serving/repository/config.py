"""``config.pbtxt``: Triton's ``ModelConfig``, written and read through Triton's own protobuf schema."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import text_format
from pydantic import ValidationError
from tritonclient.grpc import model_config_pb2

from convoy.contract.errors import RepositoryError
from convoy.contract.manifest import DIGEST_PARAMETER, INTERFACE_PARAMETER, ModelInterface

if TYPE_CHECKING:
    from convoy.contract.manifest import Manifest, TensorSpec

CONFIG_FILE: Final = "config.pbtxt"
LABELS_FILE: Final = "labels.txt"
PREVIOUS_VERSION_PARAMETER: Final = "convoy_previous_version"

_NEVER_THEIRS: Final = {"name", "input", "output", "version_policy"}

_HEADER = (
    "# Written by `convoy deploy`. Edits to batching, instances, optimization, warm-up and parameters survive the next\n"
    "# deployment; the name, the tensors, the version policy and convoy's own parameters are written anew.\n"
)


def make_config(manifest: Manifest, model_name: str, version: int) -> Any:
    """The ``ModelConfig`` of a model that has never been deployed.

    Dynamic batching with no added delay (while one batch runs, the next gathers by itself), one instance wherever the server runs
    best (``KIND_AUTO``), and a warm-up with the smallest and the largest batch, so that no caller meets a cold model.

    Args:
        manifest: What is deployed.
        model_name: The name to serve it under.
        version: The version to serve.
    """
    config = model_config_pb2.ModelConfig(
        name=model_name,
        backend="onnxruntime",
        max_batch_size=manifest.max_batch_size,
        input=[_tensor(model_config_pb2.ModelInput, tensor) for tensor in manifest.inputs],
        output=[_tensor(model_config_pb2.ModelOutput, tensor) for tensor in manifest.outputs],
        instance_group=[model_config_pb2.ModelInstanceGroup(count=1, kind=model_config_pb2.ModelInstanceGroup.KIND_AUTO)],
    )
    config.dynamic_batching.SetInParent()
    for output in config.output:
        output.label_filename = LABELS_FILE
    for batch_size in sorted({1, manifest.max_batch_size}):
        warmup = config.model_warmup.add(name=f"batch of {batch_size}", batch_size=batch_size)
        for tensor in config.input:
            sample = warmup.inputs[tensor.name]
            sample.data_type = tensor.data_type
            sample.dims.extend(tensor.dims)
            sample.zero_data = True
    _own(config, manifest, version, previous=None)
    return config


def update_config(current: Any, before: Manifest, manifest: Manifest, version: int) -> Any:
    """The ``ModelConfig`` for the next version of a deployed model: what a person set in the current one stays.

    A field that differs from what ``make_config`` writes for the version before was set by a person and is taken over; the others
    are written anew. No batch (warm-up and preferred ones too) is larger than what was validated.

    Args:
        current: The configuration in force.
        before: The manifest of the version that it serves.
        manifest: What is deployed.
        version: The version to serve.
    """
    served = served_version(current)
    written = make_config(before, current.name, served or 1)
    config = make_config(manifest, current.name, version)
    for field in config.DESCRIPTOR.fields:
        theirs = _only(current, field.name)
        if field.name not in _NEVER_THEIRS and theirs != _only(written, field.name):
            config.ClearField(field.name)
            config.MergeFrom(theirs)
    config.max_batch_size = min(config.max_batch_size, manifest.max_batch_size)
    _cap(config)
    _own(config, manifest, version, previous=served)
    return config


def _only(config: Any, name: str) -> Any:
    """A copy with the one field."""
    copy = model_config_pb2.ModelConfig()
    copy.CopyFrom(config)
    for other in config.DESCRIPTOR.fields:
        if other.name != name:
            copy.ClearField(other.name)
    return copy


def _cap(config: Any) -> None:
    """No batch of the configuration is larger than its largest one: Triton refuses the model otherwise."""
    for warmup in config.model_warmup:
        warmup.batch_size = min(warmup.batch_size, config.max_batch_size)
    preferred = config.dynamic_batching.preferred_batch_size if config.HasField("dynamic_batching") else []
    if any(size > config.max_batch_size for size in preferred):
        preferred[:] = [size for size in preferred if size <= config.max_batch_size]


def _own(config: Any, manifest: Manifest, version: int, previous: int | None) -> None:
    """Write the fields that are Convoy's."""
    config.ClearField("version_policy")
    config.version_policy.specific.versions.append(version)
    config.parameters[INTERFACE_PARAMETER].string_value = manifest.interface.model_dump_json()
    config.parameters[DIGEST_PARAMETER].string_value = manifest.model_sha256
    if previous is None:
        config.parameters.pop(PREVIOUS_VERSION_PARAMETER, None)
    else:
        config.parameters[PREVIOUS_VERSION_PARAMETER].string_value = str(previous)


def _tensor(kind: Any, tensor: TensorSpec) -> Any:
    datatype = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    return kind(name=tensor.name, data_type=model_config_pb2.DataType.Value(f"TYPE_{datatype}"), dims=tensor.dims)


def to_text(config: Any) -> bytes:
    """A configuration as the bytes of a ``config.pbtxt``."""
    return (_HEADER + str(text_format.MessageToString(config))).encode()


def load_config(path: Path) -> Any:
    """Read a ``config.pbtxt``.

    Raises:
        RepositoryError: It is missing, or Triton's schema does not know what it says (with line and column).
    """
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError) as error:
        raise RepositoryError(f"{path}: cannot be read: {error}") from error
    except text_format.ParseError as error:
        said = str(error).rstrip(".")
        raise RepositoryError(f"{path}:{said}. Mend the line, or restore the file from the version's folder.") from error


def served_version(config: Any) -> int | None:
    """The one version that the configuration names; None where it leaves the choice to Triton."""
    versions = list(config.version_policy.specific.versions)
    return int(versions[0]) if len(versions) == 1 else None


def previous_version(config: Any) -> int | None:
    """The version that was served before the configuration's own; None where there is none."""
    if PREVIOUS_VERSION_PARAMETER not in config.parameters:
        return None
    return int(config.parameters[PREVIOUS_VERSION_PARAMETER].string_value)


def interface_of(config: Any, path: Path) -> ModelInterface | None:
    """What clients rely on, as the configuration states it; None for a model that Convoy did not deploy.

    Raises:
        RepositoryError: The statement is damaged.
    """
    if INTERFACE_PARAMETER not in config.parameters:
        return None
    try:
        return ModelInterface.model_validate_json(config.parameters[INTERFACE_PARAMETER].string_value)
    except ValidationError as error:
        raise RepositoryError(f"{path}: the parameter {INTERFACE_PARAMETER} is damaged: {error}") from error
