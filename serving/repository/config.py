"""What Convoy writes into a model's ``config.pbtxt``, and what of it is a person's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from pydantic import ValidationError

from convoy.contract.errors import RepositoryError
from convoy.contract.manifest import DIGEST_PARAMETER, INTERFACE_PARAMETER, ModelInterface
from convoy.serving.repository.configuration import (
    ConfigText,
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
    ModelParameter,
    ModelVersionPolicy,
    ModelWarmup,
)
from convoy.serving.repository.configuration.schema import differs, only
from convoy.serving.repository.configuration.tensor import DataType
from convoy.serving.repository.configuration.text import CONFIG_FILE as CONFIG_FILE
from convoy.serving.repository.configuration.version import Specific
from convoy.serving.repository.configuration.warmup import WarmupInput

if TYPE_CHECKING:
    from convoy.contract.manifest import Manifest, TensorSpec

LABELS_FILE: Final = "labels.txt"
PREVIOUS_VERSION_PARAMETER: Final = "convoy_previous_version"

_NEVER_THEIRS: Final = {"name", "input", "output", "version_policy"}

_HEADER = (
    "# Written by `convoy deploy`. Edits to batching, instances, optimization, warm-up and parameters survive the next\n"
    "# deployment, and so do comments; the name, the tensors, the version policy and convoy's own parameters are written anew.\n"
)


def make_config(manifest: Manifest, model_name: str, version: int) -> ModelConfig:
    """The ``ModelConfig`` of a model that has never been deployed.

    Dynamic batching with no added delay (while one batch runs, the next gathers by itself), one instance wherever the server runs
    best (``KIND_AUTO``), and a warm-up with the smallest and the largest batch, so that no caller meets a cold model; of a reader
    that is one of the narrowest images, and as many as go together of the widest.

    Args:
        manifest: What is deployed.
        model_name: The name to serve it under.
        version: The version to serve.
    """
    inputs = tuple(ModelInput(name=one.name, data_type=_data_type(one), dims=one.dims) for one in manifest.inputs)
    labels = LABELS_FILE if manifest.reading is None else ""
    return ModelConfig(
        name=model_name,
        backend="onnxruntime",
        max_batch_size=manifest.max_batch_size,
        input=inputs,
        output=tuple(
            ModelOutput(name=one.name, data_type=_data_type(one), dims=one.dims, label_filename=labels) for one in manifest.outputs
        ),
        dynamic_batching=ModelDynamicBatching(),
        instance_group=(ModelInstanceGroup(count=1, kind="KIND_AUTO"),),
        model_warmup=_warmups(manifest, inputs),
        version_policy=ModelVersionPolicy(specific=Specific(versions=(version,))),
        parameters={name: ModelParameter(string_value=value) for name, value in _own_parameters(manifest).items()},
    )


def _warmups(manifest: Manifest, inputs: tuple[ModelInput, ...]) -> tuple[ModelWarmup, ...]:
    """The smallest and the largest batch, of zeros; axes of any size, which a warm-up may not have, are at their least and most."""
    widths = manifest.image.widths_px or (manifest.image.width_px,)
    warmups = []
    for size, width in dict.fromkeys(((1, widths[0]), (manifest.max_batch_size, widths[-1]))):
        sample = {
            one.name: WarmupInput(
                data_type=one.data_type, dims=tuple(width if dim < 0 else dim for dim in one.dims), zero_data=True
            )
            for one in inputs
        }
        columns = f", {width} columns" if len(widths) > 1 else ""
        warmups.append(ModelWarmup(name=f"batch of {size}{columns}", batch_size=size, inputs=sample))
    return tuple(warmups)


def first_config(manifest: Manifest, model_name: str, version: int) -> ConfigText:
    """The ``config.pbtxt`` of a model that has never been deployed, with a line on what of it a person may change."""
    return ConfigText(_HEADER + make_config(manifest, model_name, version).to_text().text)


def update_config(current: ConfigText, before: Manifest, manifest: Manifest, version: int) -> ConfigText:
    """The ``config.pbtxt`` for the next version of a deployed model: what a person wrote in the current one stays, to the byte.

    A field that differs from what ``make_config`` writes for the version before was set by a person and is taken over; the others
    get today's values. No batch (warm-up and preferred ones too) is larger than what was validated.

    Args:
        current: The configuration in force.
        before: The manifest of the version that it serves.
        manifest: What is deployed.
        version: The version to serve.

    Raises:
        RepositoryError: The configuration in force is one that Triton refuses.
    """
    served = served_version(current.message)
    name = current.message.name
    written = make_config(before, name, served or 1).to_message()
    target = make_config(manifest, name, version).to_message()
    for field in target.DESCRIPTOR.fields:
        if field.name not in _NEVER_THEIRS and differs(current.message, written, field.name):
            target.ClearField(field.name)
            target.MergeFrom(only(current.message, field.name))
    target.max_batch_size = min(target.max_batch_size, manifest.max_batch_size)
    _cap(target)
    for key, value in _own_parameters(manifest).items():
        target.parameters[key].string_value = value
    target.parameters.pop(PREVIOUS_VERSION_PARAMETER, None)
    if served is not None:
        target.parameters[PREVIOUS_VERSION_PARAMETER].string_value = str(served)
    ModelConfig.from_message(target).check(current.where)
    return current.edit(target)


def _cap(config: Any) -> None:
    """No batch of the configuration is larger than its largest one: Triton refuses the model otherwise."""
    for warmup in config.model_warmup:
        warmup.batch_size = min(warmup.batch_size, config.max_batch_size)
    preferred = config.dynamic_batching.preferred_batch_size if config.HasField("dynamic_batching") else []
    if any(size > config.max_batch_size for size in preferred):
        preferred[:] = [size for size in preferred if size <= config.max_batch_size]


def _own_parameters(manifest: Manifest) -> dict[str, str]:
    return {INTERFACE_PARAMETER: manifest.interface.model_dump_json(), DIGEST_PARAMETER: manifest.model_sha256}


def _data_type(tensor: TensorSpec) -> DataType:
    return cast("DataType", f"TYPE_{'STRING' if tensor.datatype == 'BYTES' else tensor.datatype}")


def load_config(path: Path) -> Any:
    """Read a ``config.pbtxt`` as protobuf's message.

    Raises:
        RepositoryError: It is missing, or Triton's schema does not know what it says (with line and column).
    """
    return ConfigText.load(path).message


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
