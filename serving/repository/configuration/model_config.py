"""``ModelConfig``: the parts of Triton's model configuration that ONNX models use, typed, with the rules that hold between them.

Fields have the names of Triton's schema. What the schema has and these classes have not (``sequence_batching`` and
``ensemble_scheduling``, say) is carried along and written back unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

from pydantic import Field, TypeAdapter, ValidationError
from tritonclient.grpc import model_config_pb2
from typing_extensions import Self

from convoy.contract.errors import RepositoryError, UsageError
from convoy.serving.repository.configuration.batching import ModelDynamicBatching
from convoy.serving.repository.configuration.instance import ModelInstanceGroup
from convoy.serving.repository.configuration.optimization import ModelOptimizationPolicy
from convoy.serving.repository.configuration.part import Part, Parts, Violation, error, warning
from convoy.serving.repository.configuration.schema import CONFIG
from convoy.serving.repository.configuration.tensor import (
    BatchInput,
    BatchOutput,
    BatchTensor,
    ModelInput,
    ModelOutput,
    Tensor,
    repeated,
)
from convoy.serving.repository.configuration.text import ConfigText
from convoy.serving.repository.configuration.version import ModelVersionPolicy
from convoy.serving.repository.configuration.warmup import ModelWarmup

ENSEMBLE: Final = "ensemble"
TENSORRT: Final = "tensorrt_plan"


class ModelParameter(Part):
    """A parameter for the backend."""

    kind_: ClassVar[Any] = model_config_pb2.ModelParameter

    string_value: str = ""


class ModelResponseCache(Part):
    """Whether answers may be kept; it counts only where the server was started with ``--cache-config``."""

    kind_: ClassVar[Any] = model_config_pb2.ModelResponseCache

    enable: bool = False


class ModelTransactionPolicy(Part):
    """Whether a request may have any number of answers."""

    kind_: ClassVar[Any] = model_config_pb2.ModelTransactionPolicy

    decoupled: bool = False


class ModelConfig(Part):
    """A model's configuration.

    Attributes:
        name: The model's name; its folder's where empty.
        platform: ``onnxruntime_onnx``, ``ensemble``; Triton fills it in where empty.
        backend: ``onnxruntime``; Triton finds it by the file where empty.
        runtime: The backend's library, or the Python file of a Python-based backend.
        version_policy: Which versions are served; the highest where None.
        max_batch_size: The largest batch; 0 for a model that does not batch.
        input: The inputs; taken from the ONNX file where empty.
        output: The outputs; taken from the ONNX file where empty.
        batch_input: Tensors that Triton makes of a batch.
        batch_output: How outputs of a ragged batch are taken apart.
        optimization: What may make the model faster.
        dynamic_batching: How requests are joined; None where each goes alone.
        instance_group: Where the model runs, and how often.
        default_model_filename: The file in the version's folder; ``model.onnx`` where empty.
        parameters: Parameters for the backend.
        model_warmup: What is run before an instance is ready.
        model_transaction_policy: Whether a request may have any number of answers.
        response_cache: Whether answers may be kept.
    """

    kind_: ClassVar[Any] = CONFIG
    parts_: ClassVar[Parts] = {
        "version_policy": ModelVersionPolicy,
        "input": ModelInput,
        "output": ModelOutput,
        "batch_input": BatchInput,
        "batch_output": BatchOutput,
        "optimization": ModelOptimizationPolicy,
        "dynamic_batching": ModelDynamicBatching,
        "instance_group": ModelInstanceGroup,
        "parameters": ModelParameter,
        "model_warmup": ModelWarmup,
        "model_transaction_policy": ModelTransactionPolicy,
        "response_cache": ModelResponseCache,
    }

    name: str = ""
    platform: str = ""
    backend: str = ""
    runtime: str = ""
    version_policy: ModelVersionPolicy | None = None
    max_batch_size: int = 0
    input: tuple[ModelInput, ...] = ()
    output: tuple[ModelOutput, ...] = ()
    batch_input: tuple[BatchInput, ...] = ()
    batch_output: tuple[BatchOutput, ...] = ()
    optimization: ModelOptimizationPolicy | None = None
    dynamic_batching: ModelDynamicBatching | None = None
    instance_group: tuple[ModelInstanceGroup, ...] = ()
    default_model_filename: str = ""
    parameters: Mapping[str, ModelParameter] = Field(default_factory=dict)
    model_warmup: tuple[ModelWarmup, ...] = ()
    model_transaction_policy: ModelTransactionPolicy | None = None
    response_cache: ModelResponseCache | None = None

    @classmethod
    def from_text(cls, text: ConfigText) -> Self:
        """The typed form of a ``config.pbtxt``; rules are not applied."""
        return cls.from_message(text.message)

    def to_text(self) -> ConfigText:
        """A ``config.pbtxt`` that says this, as protobuf prints it. ``ConfigText.edit`` changes one that there is."""
        return ConfigText.of(self.to_message())

    def replace(self, **changes: Any) -> Self:
        """A copy with other values of some fields. What has no effect but stood there before is no reason to refuse it.

        Args:
            changes: Values by the name of their field.

        Raises:
            UsageError: There is no such field, or the value is not of its type.
            RepositoryError: Triton would refuse the copy.
        """
        fields = type(self).model_fields
        for name, value in changes.items():
            if name not in fields:
                raise UsageError(f"ModelConfig has no field {name!r}; it has {', '.join(fields)}.")
            annotation: Any = fields[name].annotation
            try:
                TypeAdapter(annotation).validate_python(value, strict=True)
            except ValidationError as broken:
                raise UsageError(f"{name}: {broken.errors(include_url=False)[0]['msg']}, found {value!r}.") from broken
        copy = self.model_copy(update=changes)
        copy.check()
        return copy

    def check(self, where: str = "") -> None:
        """Refuse what Triton would refuse.

        Args:
            where: What the error begins with: the file's name, say.

        Raises:
            RepositoryError: A rule is broken; the message has all that are.
        """
        broken = [one.message for one in self.violations() if one.severity == "error"]
        if broken:
            raise RepositoryError(f"{where}: {' '.join(broken)}" if where else " ".join(broken))

    @property
    def message(self) -> Any:
        """The protobuf message."""
        return self.to_message()

    def rules(self) -> Iterator[Violation]:
        """What holds between the parts."""
        if self.max_batch_size < 0:
            yield error(
                "max_batch_size",
                f"max_batch_size: expected 0 (no batching) or more, found {self.max_batch_size}. Set it to 0 or more.",
            )
        yield from self._platform_rules()
        yield from self._tensor_rules()
        yield from self._batching_rules()
        yield from self._instance_rules()
        for index, warmup in enumerate(self.model_warmup):
            yield from (one.under(f"model_warmup[{index}]") for one in self._warmup_rules(warmup))
        if self.response_cache is not None and self.response_cache.enable:
            yield from self._cache_rules()

    def _has(self, name: str) -> bool:
        """Whether a message that is carried along is there."""
        return bool(self.kind_.FromString(self.carried).HasField(name))

    def _platform_rules(self) -> Iterator[Violation]:
        if self.platform == ENSEMBLE and self.backend:
            yield error("backend", f"backend: expected none for an ensemble, found {self.backend!r}. Remove it.")
        known = {"onnxruntime": "onnxruntime_onnx", "tensorrt": TENSORRT}
        expected = known.get(self.backend)
        if expected and self.platform not in ("", expected, ENSEMBLE):
            yield error(
                "platform", f"platform: expected {expected!r} for the backend {self.backend!r}, found {self.platform!r}. Remove it."
            )
        scheduled = self._has("ensemble_scheduling")
        if scheduled and self.platform != ENSEMBLE:
            yield error(
                "ensemble_scheduling",
                f"ensemble_scheduling: expected platform: 'ensemble' beside it, found {self.platform!r}. Say so.",
            )
        if self.platform == ENSEMBLE and not scheduled:
            yield error("platform", "platform: 'ensemble' expects an ensemble_scheduling, found none. Write its steps.")
        if scheduled:
            for name in ("instance_group", "optimization", "model_warmup"):
                value = getattr(self, name)
                if value is not None and value != ():
                    yield error(
                        name, f"{name}: expected none for an ensemble, which runs nowhere by itself. Move it to its models."
                    )

    def _tensor_rules(self) -> Iterator[Violation]:
        tensors: Sequence[tuple[str, Sequence[Tensor]]] = (("input", self.input), ("output", self.output))
        for what, entries in tensors:
            names = [tensor.name for tensor in entries]
            for name in repeated(names):
                index = len(names) - 1 - names[::-1].index(name)
                yield warning(f"{what}[{index}].name", f"{what}: expected each name once, found {name!r} twice. Remove one.")
            for index, tensor in enumerate(entries):
                if self.platform != TENSORRT:
                    for flag in ("is_shape_tensor", "is_non_linear_format_io"):
                        if getattr(tensor, flag):
                            yield error(f"{what}[{index}].{flag}", f"{flag}: only TensorRT has it. Remove it.")
                if tensor.reshape is not None and not tensor.reshape.shape and self.max_batch_size == 0:
                    yield error(
                        f"{what}[{index}].reshape",
                        "reshape: expected a shape, found an empty one: a model that does not batch has no scalars. Remove it.",
                    )
        yield from self._source_rules()

    def _source_rules(self) -> Iterator[Violation]:
        inputs, outputs = {tensor.name for tensor in self.input}, {tensor.name for tensor in self.output}
        made: tuple[tuple[str, Sequence[BatchTensor]], ...]
        made = (("batch_input", self.batch_input), ("batch_output", self.batch_output))
        for what, entries in made:
            for index, entry in enumerate(entries):
                unknown = [name for name in entry.source_input if name not in inputs]
                if isinstance(entry, BatchOutput):
                    unknown += [name for name in entry.target_name if name not in outputs]
                if unknown:
                    yield error(f"{what}[{index}]", f"{what}: expected names of the model's tensors, found {unknown}. Mend them.")

    def _batching_rules(self) -> Iterator[Violation]:
        batching, most = self.dynamic_batching, self.max_batch_size
        if batching is None:
            return
        if most == 0 and not batching.preferred_batch_size:
            yield warning(
                "dynamic_batching",
                "dynamic_batching: expected a max_batch_size of at least 1 beside it, found 0: requests are not joined. "
                "Set max_batch_size, or remove it.",
            )
        for index, size in enumerate(batching.preferred_batch_size):
            if size > max(most, 0):
                yield error(
                    f"dynamic_batching.preferred_batch_size[{index}]",
                    f"preferred_batch_size: expected at most max_batch_size, {most}, found {size}. Remove it, or raise that.",
                )

    def _instance_rules(self) -> Iterator[Violation]:
        for index, group in enumerate(self.instance_group):
            path = f"instance_group[{index}]"
            if group.profile and self.platform != TENSORRT:
                yield error(f"{path}.profile", "profile: only TensorRT has it. Remove it.")
        if self.instance_group and all(group.passive for group in self.instance_group):
            yield warning(
                "instance_group[0].passive", "passive: every instance is passive, so that no request is answered. Remove it."
            )
        for name in repeated([group.name for group in self.instance_group if group.name]):
            index = [group.name for group in self.instance_group].index(name)
            yield warning(
                f"instance_group[{index}].name", f"instance_group: expected each name once, found {name!r} twice. Change one."
            )

    def _warmup_rules(self, warmup: ModelWarmup) -> Iterator[Violation]:
        if warmup.batch_size > self.max_batch_size > 0:
            yield error(
                "batch_size",
                f"batch_size: expected at most max_batch_size, {self.max_batch_size}, found {warmup.batch_size}. "
                "Lower it: a warm-up that fails is a model that is not loaded.",
            )
        if not self.input:
            return
        known = {tensor.name: tensor for tensor in self.input}
        missing = [name for name, tensor in known.items() if not tensor.optional and name not in warmup.inputs]
        if missing and warmup.batch_size:
            yield error(
                "inputs" if warmup.inputs else "",
                f"inputs: expected the model's inputs {list(known)}, missing {missing}. Add them.",
            )
        for name, sample in warmup.inputs.items():
            path = f'inputs["{name}"]'
            wrong = sample.fits(known[name]) if name in known else ""
            if wrong:
                yield error(path, f"inputs: {name!r}: {wrong}. Mend it.")
            elif name not in known:
                yield warning(path, f"inputs: expected the model's inputs {list(known)}, found {name!r}. Remove it.")

    def _cache_rules(self) -> Iterator[Violation]:
        if self.model_transaction_policy is not None and self.model_transaction_policy.decoupled:
            yield error("response_cache", "response_cache: expected none beside decoupled: true, found one. Remove one of the two.")
        if self._has("sequence_batching"):
            yield error(
                "response_cache", "response_cache: expected none beside sequence_batching, found one. Remove one of the two."
            )
