"""What the file says of itself."""

from __future__ import annotations

import json

import onnx
import onnxruntime
import pytest
from torch import nn

from convoy import __version__
from convoy.contract.manifest import Preprocessing
from convoy.export.graph.exporting import to_onnx
from convoy.export.graph.metadata import annotate

from .networks import IMAGE, Classifier, pixels, run

FACTS = {
    "labels": ("Brot", "Käse", "two\nlines", "4", "5"),
    "image": IMAGE,
    "preprocessing": Preprocessing(polarity="as-is", scale=1 / 255, mean=(0.4, 0.5, 0.6), std=(1.0, 1.0, 1.0)),
    "weights_sha256": "0123456789abcdef" * 4,
}


@pytest.fixture(scope="module")
def plain() -> bytes:
    return to_onnx(Classifier(nn.Conv2d(3, 4, 3), 4).eval(), IMAGE).proto.SerializeToString(deterministic=True)


def annotated(plain: bytes, **changes: object) -> onnx.ModelProto:
    model = onnx.load_from_string(plain)
    annotate(model, **{**FACTS, **changes})
    return model


def test_onnx_runtime_shows_the_facts(plain):
    model = annotated(plain, licence="Apache-2.0")
    meta = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).get_modelmeta()
    found = meta.custom_metadata_map
    assert meta.producer_name == "convoy"
    assert model.producer_version == __version__
    assert found["model_license"] == "Apache-2.0"
    assert found["task"] == "image-classification"
    assert found["weights_sha256"] == FACTS["weights_sha256"]
    assert tuple(json.loads(found["labels"])) == FACTS["labels"]
    assert json.loads(found["image"])["height_px"] == IMAGE.height_px
    assert Preprocessing.model_validate_json(found["preprocessing"]) == FACTS["preprocessing"]


def test_what_nobody_said_is_not_in_the_file(plain):
    keys = [entry.key for entry in annotated(plain, preprocessing=None).metadata_props]
    assert keys == ["image", "labels", "task", "weights_sha256"]


def test_equal_facts_give_equal_bytes_however_often_they_are_written(plain):
    once = annotated(plain)
    annotate(once, **FACTS)
    assert once.SerializeToString(deterministic=True) == annotated(plain).SerializeToString(deterministic=True)


def test_the_facts_of_others_stay(plain):
    model = onnx.load_from_string(plain)
    model.metadata_props.add(key="author", value="someone")
    annotate(model, **FACTS)
    assert {entry.key: entry.value for entry in model.metadata_props}["author"] == "someone"


def test_the_answers_stay(plain):
    assert (run(onnx.load_from_string(plain), pixels(3)) == run(annotated(plain, licence="MIT"), pixels(3))).all()
