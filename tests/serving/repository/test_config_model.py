"""The typed configuration: nothing is lost on the way through it, and every rule has its breach."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from convoy.contract.errors import RepositoryError, UsageError
from convoy.serving.repository.configuration import (
    ConfigText,
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelInstanceGroup,
    ModelVersionPolicy,
)
from convoy.serving.repository.configuration.part import Part
from convoy.serving.repository.configuration.version import Specific


def classes(part: type[Part]) -> list[type[Part]]:
    return [part, *(other for sub in part.parts_.values() for other in classes(sub))]


def test_field_names_are_those_of_the_schema():
    for part in classes(ModelConfig):
        for name in part.model_fields:
            assert name == "carried" or name.rstrip("_") in part.kind_.DESCRIPTOR.fields_by_name, (part, name)


def test_what_the_classes_do_not_have_is_carried_along():
    text = 'sequence_batching { oldest { max_candidate_sequences: 3 } } metric_tags { key: "a" value: "b" }'
    typed = ModelConfig.from_text(ConfigText(text))
    changed = typed.replace(max_batch_size=4).to_message()
    assert changed.sequence_batching.oldest.max_candidate_sequences == 3
    assert changed.metric_tags["a"] == "b"
    assert changed.max_batch_size == 4


def breaches(text: str) -> dict[str, str]:
    return {found.path: found.severity for found in ModelConfig.from_text(ConfigText(text)).violations()}


X = "input { name: 'x' data_type: TYPE_FP32 dims: [ 2 ] }"


LATE = "timeout_action: DELAY default_timeout_microseconds: 1"


def warm(what: str) -> str:
    return f"max_batch_size: 4 {X} model_warmup {{ name: 'w' {what} }}"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("max_batch_size: -1", "max_batch_size"),
        ("max_batch_size: 4 dynamic_batching { preferred_batch_size: [ 2, 8 ] }", "dynamic_batching.preferred_batch_size[1]"),
        ("max_batch_size: 4 dynamic_batching { preferred_batch_size: 0 }", "dynamic_batching.preferred_batch_size[0]"),
        ("max_batch_size: 4 dynamic_batching { priority_levels: 2 }", "dynamic_batching.priority_levels"),
        (
            "max_batch_size: 4 dynamic_batching { priority_levels: 2 default_priority_level: 3 }",
            "dynamic_batching.default_priority_level",
        ),
        (
            "max_batch_size: 4 dynamic_batching { priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 3 } }",
            "dynamic_batching.priority_queue_policy[3]",
        ),
        (
            "max_batch_size: 4 dynamic_batching { preserve_ordering: true priority_levels: 2 default_priority_level: 1 }",
            "dynamic_batching.preserve_ordering",
        ),
        (
            "dynamic_batching { preserve_ordering: true default_queue_policy { " + LATE + " } }",
            "dynamic_batching.default_queue_policy.timeout_action",
        ),
        ("instance_group { kind: KIND_CPU gpus: 0 }", "instance_group[0].gpus"),
        ("instance_group { kind: KIND_MODEL gpus: 0 }", "instance_group[0].gpus"),
        ("instance_group { kind: KIND_GPU gpus: -1 }", "instance_group[0].gpus"),
        ("instance_group { profile: '0' }", "instance_group[0].profile"),
        ("instance_group { kind: 9 }", "instance_group[0].kind"),
        ("input { data_type: TYPE_FP32 dims: 2 }", "input[0].name"),
        ("input { name: 'x' dims: [ 2, 0 ] }", "input[0].dims"),
        ("input { name: 'x' dims: [ -2 ] }", "input[0].dims"),
        ("input { name: 'x' dims: [ 2, 2 ] format: FORMAT_NHWC }", "input[0].format"),
        ("input { name: 'x' dims: [ 2, 2 ] is_shape_tensor: true }", "input[0].is_shape_tensor"),
        ("output { name: 'y' dims: [ 2, 2 ] is_non_linear_format_io: true }", "output[0].is_non_linear_format_io"),
        ("output { name: 'y' dims: [ 4 ] reshape { shape: [ 3 ] } }", "output[0].reshape"),
        ("output { name: 'y' dims: [ 2, -1, 6 ] reshape { shape: [ 12, -1 ] } }", "output[0].reshape"),
        ("output { name: 'y' dims: [ 1 ] reshape { shape: [ ] } }", "output[0].reshape"),
        ("output { name: 'y' dims: [ 4 ] label_filename: '../labels.txt' }", "output[0].label_filename"),
        ("version_policy { specific { } }", "version_policy.specific.versions"),
        ("version_policy { latest { } }", "version_policy.latest.num_versions"),
        ("response_cache { enable: true } sequence_batching { }", "response_cache"),
        ("response_cache { enable: true } model_transaction_policy { decoupled: true }", "response_cache"),
        (
            warm("batch_size: 8 inputs { key: 'x' value { data_type: TYPE_FP32 dims: 2 zero_data: true } }"),
            "model_warmup[0].batch_size",
        ),
        (warm("batch_size: 1"), "model_warmup[0]"),
        (
            warm("batch_size: 1 inputs { key: 'x' value { data_type: TYPE_FP16 dims: 2 zero_data: true } }"),
            'model_warmup[0].inputs["x"]',
        ),
        (
            warm("batch_size: 1 inputs { key: 'x' value { data_type: TYPE_FP32 dims: 3 zero_data: true } }"),
            'model_warmup[0].inputs["x"]',
        ),
        (warm("batch_size: 1 inputs { key: 'x' value { data_type: TYPE_FP32 dims: 2 } }"), 'model_warmup[0].inputs["x"]'),
        (
            warm("batch_size: 1 inputs { key: 'x' value { data_type: TYPE_FP32 dims: -1 zero_data: true } }").replace(
                "[ 2 ]", "[ -1 ]"
            ),
            'model_warmup[0].inputs["x"].dims',
        ),
        ("backend: 'onnxruntime' platform: 'tensorrt_plan'", "platform"),
        ("platform: 'ensemble'", "platform"),
        ("ensemble_scheduling { }", "ensemble_scheduling"),
        ("platform: 'ensemble' backend: 'onnxruntime' ensemble_scheduling { }", "backend"),
        ("platform: 'ensemble' ensemble_scheduling { } optimization { }", "optimization"),
        (X + " batch_input { target_name: 'n' data_type: TYPE_INT32 source_input: 'z' }", "batch_input[0]"),
        (X + " batch_input { target_name: 'n' data_type: TYPE_INT32 }", "batch_input[0].source_input"),
        (X + " batch_input { target_name: 'n' data_type: TYPE_UINT8 source_input: 'x' }", "batch_input[0].data_type"),
        (X + " batch_output { target_name: ['y', 'y'] source_input: 'x' }", "batch_output[0].target_name"),
    ],
)
def test_what_triton_refuses_is_an_error_at_its_field(text, path):
    assert breaches(text).get(path) == "error", breaches(text)
    with pytest.raises(RepositoryError, match=r"expect|only TensorRT"):
        ModelConfig.from_text(ConfigText(text)).check()


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("dynamic_batching { }", "dynamic_batching"),
        ("max_batch_size: 4 dynamic_batching { default_priority_level: 1 }", "dynamic_batching.default_priority_level"),
        ("max_batch_size: 4 dynamic_batching { priority_queue_policy { key: 1 } }", "dynamic_batching.priority_queue_policy"),
        ("instance_group { count: -1 }", "instance_group[0].count"),
        ("instance_group { passive: true }", "instance_group[0].passive"),
        ("instance_group { name: 'a' } instance_group { name: 'a' }", "instance_group[0].name"),
        (f"{X} {X}", "input[1].name"),
        (warm("batch_size: 0"), "model_warmup[0].batch_size"),
        (
            warm(
                "batch_size: 1 inputs { key: 'x' value { data_type: TYPE_FP32 dims: 2 zero_data: true } } "
                "inputs { key: 'z' value { zero_data: true } }"
            ),
            'model_warmup[0].inputs["z"]',
        ),
    ],
)
def test_what_triton_accepts_but_does_not_do_is_a_warning(text, path):
    assert breaches(text) == {path: "warning"}
    ModelConfig.from_text(ConfigText(text)).check()


@pytest.mark.parametrize(
    "text",
    [
        "max_batch_size: 4 dynamic_batching { preferred_batch_size: [ 4, 4 ] preserve_ordering: true }",
        "output { name: 'y' dims: [ 2, 4, -1, 6 ] reshape { shape: [ 8, -1, 1, 6 ] } }",
        "max_batch_size: 1 output { name: 'y' dims: [ 1 ] reshape { shape: [ ] } }",
        "instance_group { kind: KIND_GPU gpus: [ 0, 1 ] count: 2 }",
        "input { name: 'x' dims: [ 4, 4, 1 ] format: FORMAT_NHWC optional: true }",
        "platform: 'tensorrt_plan' backend: 'tensorrt' instance_group { profile: '0' }",
        warm("batch_size: 4 inputs { key: 'x' value { data_type: TYPE_FP32 dims: 2 random_data: true } }"),
        "",
    ],
)
def test_what_is_in_order_breaks_nothing(text):
    assert breaches(text) == {}


def test_code_cannot_make_what_breaks_a_rule():
    with pytest.raises(ValidationError, match=r"expected at most max_batch_size, 4, found 8\. Remove it"):
        ModelConfig(name="m", max_batch_size=4, dynamic_batching=ModelDynamicBatching(preferred_batch_size=(8,)))
    with pytest.raises(ValidationError, match="max_batch_size of at least 1"):
        ModelConfig(name="m", dynamic_batching=ModelDynamicBatching())
    with pytest.raises(ValidationError, match="expected none with KIND_CPU"):
        ModelInstanceGroup(kind="KIND_CPU", gpus=(0,))
    with pytest.raises(ValidationError, match="KIND_TPU"):
        ModelInstanceGroup(kind="KIND_TPU")  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        ModelConfig(max_batch_sise=4)  # type: ignore[call-arg]
    with pytest.raises(RepositoryError, match="found 9"):
        ModelConfig(max_batch_size=4).replace(dynamic_batching=ModelDynamicBatching(preferred_batch_size=(9,)))


def test_a_copy_takes_only_fields_that_there_are_and_values_of_their_type():
    config = ModelConfig(max_batch_size=4)
    with pytest.raises(UsageError, match="no field 'max_batch_sise'"):
        config.replace(max_batch_sise=8)
    with pytest.raises(UsageError, match=r"max_batch_size: .*'eight'"):
        config.replace(max_batch_size="eight")
    read = ModelConfig.from_text(ConfigText("dynamic_batching { default_priority_level: 1 } max_batch_size: 2"))
    assert read.replace(max_batch_size=8).max_batch_size == 8


def test_parts_that_code_makes_reach_the_text():
    config = ModelConfig(
        name="m",
        backend="onnxruntime",
        max_batch_size=4,
        input=(ModelInput(name="x", data_type="TYPE_FP32", dims=(2,)),),
        dynamic_batching=ModelDynamicBatching(),
        instance_group=(ModelInstanceGroup(count=1),),
    )
    message: Any = config.to_text().message
    assert message.HasField("dynamic_batching")
    assert message.input[0].data_type == 11
    assert message.instance_group[0].kind == 0


@pytest.mark.parametrize(
    ("policy", "present", "served"),
    [
        (ModelVersionPolicy(), (1, 3, 2), (3,)),
        (ModelVersionPolicy(specific=Specific(versions=(2, 7))), (1, 2), (2,)),
        (ModelVersionPolicy(), (), ()),
    ],
)
def test_the_versions_that_a_policy_serves(policy, present, served):
    assert policy.chosen(present) == served
