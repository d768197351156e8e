"""``manifest.json``: what a model is, what it takes and gives, and where it comes from."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)
from typing_extensions import Self

from convoy.contract.errors import UsageError
from convoy.contract.files import Document, sha256_bytes
from convoy.contract.image import ImageSpec
from convoy.contract.reading import ReadingSpec

MODEL_NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"

ModelName = Annotated[str, StringConstraints(pattern=MODEL_NAME_PATTERN)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Label = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\r\n\x00]+$")]
Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64", "BYTES"
]

Precision = Literal["fp32", "fp16", "int8"]
Task = Literal["image-classification", "amount-reading"]

NO_DIGEST: Final = "0" * 64
"""Stands for a digest until ``Bundle.seal`` fills it in."""

INPUT_NAME: Final = "image"
LOGITS_NAME: Final = "logits"
PROBABILITIES_NAME: Final = "probabilities"


def check_model_name(name: str) -> str:
    """Return ``name`` where it is one that a repository can hold.

    Raises:
        UsageError: It is empty, too long, or has characters that could leave the repository's folder.
    """
    if not re.fullmatch(MODEL_NAME_PATTERN[1:-1], name):
        raise UsageError(
            f"{name!r} is no model name: expected 1 to 128 letters, digits, '.', '_' or '-', the first a letter or a digit."
        )
    return name


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorSpec(_Part):
    """A tensor at the model's border.

    Attributes:
        name: Its name in the ONNX graph and on the wire.
        datatype: The wire's name of its type.
        dims: Its shape without the batch axis; -1 where an axis may have any size.
        value_range: The smallest and the largest value that makes sense, where there is such a range.
    """

    name: str
    datatype: Datatype
    dims: tuple[int, ...]
    value_range: tuple[float, float] | None = None


class Preprocessing(_Part):
    """What the graph does with the pixels before the network (for people: the graph itself is what counts).

    Attributes:
        polarity: ``auto`` turns images with a light border (ink on paper) into light strokes on dark; ``as-is`` leaves them.
        scale: The factor that takes uint8 pixels to [0, 1].
        mean: Subtracted after scaling, one value a channel.
        std: Divided by after that, one value a channel.
    """

    polarity: Literal["as-is", "auto"]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


class TrainingFacts(_Part):
    """Where the weights come from. Errors are fractions in [0, 1]."""

    run_id: str
    recipe: str
    dataset: str
    seed: int
    epochs: int
    best_epoch: int
    n_parameters: int
    n_train: int
    n_validation: int
    n_test: int
    validation_top1_error: float
    test_top1_error: float


class Origin(_Part):
    """What Convoy took up that others made.

    Attributes:
        kind: An ONNX file, or the weights of a PyTorch network.
        file: Its name, without a folder.
        sha256: Its digest.
        producer: What an ONNX file says of who wrote it, or "module:factory" of a PyTorch network; empty where unknown.
    """

    kind: Literal["onnx", "torch"]
    file: str
    sha256: Sha256
    producer: str = ""


class Accuracy(_Part):
    """Top-1 accuracy, or the share of whole amounts read right, on one and the same labelled split: fractions in [0, 1].

    Attributes:
        split: Which images ("mnist test").
        n: How many; of fields those whose amounts are known.
        pytorch: Of the network that was trained.
        onnxruntime: Of the ONNX file.
    """

    split: str
    n: int
    pytorch: float
    onnxruntime: float


class Manifest(Document):
    """The one contract between export, repository, server and client.

    Attributes:
        schema_version: The version of this document's form.
        model_name: The name under which the model is served unless ``convoy deploy --name`` gives another.
        task: What the outputs mean.
        labels: Class names, in the order of the outputs' last axis; of a reader of amounts the characters, in their order.
        image: How any image becomes the input's pixels; the client's one job.
        reading: What a reader of amounts answers; None for a classifier.
        preprocessing: What the graph does with the pixels then; None where the network came from elsewhere.
        temperature: The probabilities are softmax(logits / temperature).
        inputs: The model's input tensors.
        outputs: The model's output tensors.
        max_batch_size: The largest batch that was validated and that the server may form.
        precision: The arithmetic of the weights.
        opset_version: The ONNX operator set of the file.
        ir_version: The ONNX file format's version.
        model_sha256: Digest of ``model.onnx``.
        weights_sha256: Digest of the weights.
        goldens_sha256: Digest of ``goldens.npz``.
        validation_sha256: Digest of ``validation.json``.
        origin: The file that others made and Convoy took up; None where the network was in memory, or trained by Convoy.
        training: Where the weights come from; None where they were trained elsewhere.
        accuracy: Measured by the gate; None only where it failed before it got so far.
        versions: The versions of Python and the libraries that made the file.
    """

    schema_version: Literal[4] = 4
    model_name: ModelName
    task: Task = "image-classification"
    labels: Annotated[tuple[Label, ...], Field(min_length=2)]
    image: ImageSpec
    reading: ReadingSpec | None = None
    preprocessing: Preprocessing | None = None
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    inputs: Annotated[tuple[TensorSpec, ...], Field(min_length=1)]
    outputs: Annotated[tuple[TensorSpec, ...], Field(min_length=1)]
    max_batch_size: int = Field(ge=1, le=4096)
    precision: Precision = "fp32"
    opset_version: int
    ir_version: int
    model_sha256: Sha256 = NO_DIGEST
    weights_sha256: Sha256
    goldens_sha256: Sha256 = NO_DIGEST
    validation_sha256: Sha256 = NO_DIGEST
    origin: Origin | None = None
    training: TrainingFacts | None = None
    accuracy: Accuracy | None
    versions: dict[str, str]

    @classmethod
    def migrate(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Version 1 knew float32 networks of PyTorch alone, and no origin beside training; 2 no temperature; 3 no readers."""
        return {**fields, "schema_version": 4} if fields.get("schema_version") in (1, 2, 3) else fields

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: each must differ from the others")
        names = [tensor.name for tensor in (*self.inputs, *self.outputs)]
        if len(set(names)) != len(names):
            raise ValueError("inputs and outputs: each name must differ from the others")
        if (self.task == "amount-reading") != (self.reading is not None):
            raise ValueError("reading: goes with task 'amount-reading', and with no other")
        return self

    @staticmethod
    def digest(document: bytes) -> str:
        """The SHA-256 digest of a ``manifest.json`` but for the digest of the report that it names: the report names this one."""
        return sha256_bytes(re.sub(rb'("validation_sha256": ")[0-9a-f]{64}"', rb"\g<1>" + NO_DIGEST.encode() + b'"', document))

    @property
    def interface(self) -> ModelInterface:
        """What clients rely on: but for a reader's operating point it may not change under one model name."""
        return ModelInterface(
            task=self.task, labels=self.labels, image=self.image, reading=self.reading, inputs=self.inputs, outputs=self.outputs
        )


class ModelInterface(Document):
    """What clients rely on; it travels in the served configuration, so that a client needs the server alone.

    Attributes:
        task: What the outputs mean.
        labels: Class names, in the order of the outputs' last axis; of a reader of amounts the characters, in their order.
        image: How any image becomes the input's pixels.
        reading: What a reader of amounts answers; None for a classifier.
        inputs: The model's input tensors.
        outputs: The model's output tensors.
    """

    task: Task = "image-classification"
    labels: tuple[Label, ...]
    image: ImageSpec
    reading: ReadingSpec | None = None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def changes(self, new: ModelInterface) -> tuple[str, ...]:
        """The fields in which ``new`` asks other things of clients, or says others; an operating point is chosen by each training.

        Args:
            new: What would be served under the same name.
        """
        return tuple(name for name in type(self).model_fields if self._lasting(name) != new._lasting(name))

    def _lasting(self, name: str) -> Any:
        """A field, without what may change from version to version."""
        value = getattr(self, name)
        return value.model_copy(update={"accept": None}) if isinstance(value, ReadingSpec) else value

    @model_serializer(mode="wrap")
    def _serialize(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what a classifier does not have: clients from before there were readers read it too."""
        fields: dict[str, Any] = handler(self)
        if self.reading is None:
            fields.pop("reading", None)
        return fields


INTERFACE_PARAMETER: Final = "convoy_interface"
"""The key of ``config.pbtxt``'s ``parameters`` under which the ``ModelInterface`` travels, as one line of JSON."""

DIGEST_PARAMETER: Final = "convoy_model_sha256"
"""The key under which the SHA-256 digest of the served ``model.onnx`` travels."""
