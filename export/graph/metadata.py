"""What the ONNX file says of itself: who made it, from what, what goes in and what comes out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import onnx

from convoy import __version__

if TYPE_CHECKING:
    from convoy.contract.image import ImageSpec
    from convoy.contract.manifest import Preprocessing
    from convoy.contract.reading import ReadingSpec

PRODUCER_NAME: Final = "convoy"
TEMPERATURE_KEY: Final = "temperature"
LICENSE_KEY: Final = "model_license"
"""ONNX's own name for it (docs/MetadataProps.md of ONNX)."""


def annotate(
    model: onnx.ModelProto,
    *,
    labels: Sequence[str],
    image: ImageSpec,
    preprocessing: Preprocessing | None,
    weights_sha256: str,
    temperature: float = 1.0,
    licence: str | None = None,
    task: str = "image-classification",
    reading: ReadingSpec | None = None,
) -> None:
    """Write the facts of a model into its file, where ONNX Runtime and viewers show them; equal facts give equal bytes.

    Entries that the file has under other keys stay. No time, no machine and no folder is among the facts.

    Args:
        model: Changed in place.
        labels: Class names, in the order of the outputs.
        image: How any image becomes the input's pixels.
        preprocessing: What the graph does with the pixels; None where that cannot be said.
        weights_sha256: Digest of the weights that the file was made from.
        temperature: What the graph divides the logits by before the softmax; 1 is not written.
        licence: What its author allows, as an SPDX expression or in words; None where nobody said, and then the file says nothing.
        task: What the outputs mean.
        reading: What a reader of amounts answers.
    """
    model.producer_name, model.producer_version = PRODUCER_NAME, __version__
    facts: dict[str, str | None] = {
        "image": _json(image.model_dump(mode="json")),
        "labels": _json(list(labels)),
        LICENSE_KEY: licence,
        "preprocessing": None if preprocessing is None else _json(preprocessing.model_dump(mode="json")),
        "reading": None if reading is None else _json(reading.model_dump(mode="json")),
        "task": task,
        TEMPERATURE_KEY: None if temperature == 1 else _json(temperature),
        "weights_sha256": weights_sha256,
    }
    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key not in facts}
    del model.metadata_props[:]
    for key, value in sorted({**kept, **facts}.items()):
        if value is not None:
            model.metadata_props.add(key=key, value=value)


def stated_temperature(model: bytes) -> float:
    """The temperature that an ONNX file says its probabilities have; 1 where it says nothing, as files of others do."""
    try:
        proto = onnx.load_model_from_string(model)
        stated = {entry.key: entry.value for entry in proto.metadata_props}
        return float(stated.get(TEMPERATURE_KEY, "1"))
    except Exception:  # noqa: BLE001 - protobuf raises several kinds; the gate says what is wrong with the file
        return 1.0


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
