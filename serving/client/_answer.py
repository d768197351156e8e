"""What calls answer: plain frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy.typing as npt


@dataclass(frozen=True)
class Candidate:
    """One class and how likely it is.

    Attributes:
        label: The class's name.
        index: Its place in the model's outputs.
        probability: In [0, 1].
    """

    label: str
    index: int
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image.

    Attributes:
        label: The most likely class's name.
        index: Its place in the model's outputs.
        probability: In [0, 1].
        top_k: The most likely classes, the first one included, the likeliest first.
        model_name: The model that answered.
        model_version: The version of it that answered.
    """

    label: str
    index: int
    probability: float
    top_k: tuple[Candidate, ...]
    model_name: str
    model_version: str


@dataclass(frozen=True)
class Character:
    """One character of an amount, and where it stands.

    Attributes:
        character: The character.
        left_px: Its first column on the image that was given, upright; of a field on a form that of the form.
        right_px: The column behind its last.
    """

    character: str
    left_px: int
    right_px: int


@dataclass(frozen=True)
class Alternative:
    """One amount that a field may say.

    Attributes:
        text: The amount as written.
        value: The number that it says; None where it has no digit.
        posterior: Its share of all that the grammar allows, in [0, 1].
    """

    text: str
    value: Decimal | None
    posterior: float


@dataclass(frozen=True)
class Amount:
    """What the model reads in one field.

    Attributes:
        value: The number that the amount says; None where nothing was read, or nothing with a digit.
        text: The amount as written, such as ``$ 1.234,56``; empty where nothing was read.
        characters: Its characters, from left to right, with their places on the image.
        confidence: The probability that the amount is right, in [0, 1], as calibrated on held-back fields.
        accepted: Whether the confidence reaches the threshold that the model was given; False for a model without one. Amounts
            that are not accepted are for a person to read.
        alternatives: The amounts that come next, the one read included, as the first of them. Their order is that of the likeliest
            way to read each, and their posteriors, which sum over all ways, may be in another. None where the field has room for
            no amount.
        model_name: The model that answered.
        model_version: The version of it that answered.
    """

    value: Decimal | None
    text: str
    characters: tuple[Character, ...]
    confidence: float
    accepted: bool
    alternatives: tuple[Alternative, ...]
    model_name: str
    model_version: str


@dataclass(frozen=True, eq=False)
class InferResult:
    """What a model answered to tensors.

    Attributes:
        model_name: The model that answered.
        model_version: The version of it that answered; empty where the server does not say.
        outputs: The output tensors by name. The arrays are the caller's own. FP16 comes as float16, BF16 as float32 (exact), BYTES
            as an object array of bytes.
    """

    model_name: str
    model_version: str
    outputs: dict[str, npt.NDArray[Any]]

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.outputs[name]


@dataclass(frozen=True)
class ModelStatus:
    """One version of a model as the server sees it.

    Attributes:
        name: The model.
        version: Its version; empty where the server has not loaded any.
        state: ``READY``, ``UNAVAILABLE``, ``LOADING``, ``UNLOADING``, or empty where it was never loaded.
        reason: Why it is in that state; empty where nothing is wrong.
    """

    name: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True)
class ServerMetadata:
    """A server as it describes itself.

    Attributes:
        name: What it is: ``triton``, ``mlserver``.
        version: Its version.
        extensions: What it offers beyond the protocol's core: ``binary_tensor_data``, ``model_repository``.
    """

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True)
class TensorMetadata:
    """One tensor at a model's border as the server describes it.

    Attributes:
        name: Its name.
        datatype: The wire's name of its type.
        shape: Its shape with the batch axis; -1 where any extent will do.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelMetadata:
    """A model as the server describes it.

    Attributes:
        name: The model.
        versions: The versions that are ready.
        platform: What runs it.
        inputs: Its input tensors.
        outputs: Its output tensors.
    """

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
