"""A setting read from a configuration, written into one, and the space around it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelConfig

from convoy.contract.errors import RepositoryError
from convoy.serving.tuning.setting import Setting
from convoy.serving.tuning.space import grid, space

BY_HAND = """
name: "m" max_batch_size: 32
dynamic_batching { preferred_batch_size: [ 8 ] max_queue_delay_microseconds: 100 priority_levels: 3 }
instance_group [ { count: 2 kind: KIND_CPU } ]
parameters { key: "execution_mode" value { string_value: "1" } }
model_warmup [ { name: "most" batch_size: 32 } ]
"""

settings = st.builds(
    Setting,
    max_batch_size=st.integers(1, 256),
    preferred_batch_size=st.lists(st.integers(1, 64), max_size=3).map(tuple),
    max_queue_delay_microseconds=st.integers(0, 10**6),
    instance_count=st.integers(1, 8),
    intra_op_thread_count=st.none() | st.integers(0, 64),
)


def parse(text: str) -> ModelConfig:
    return text_format.Parse(text, ModelConfig())


def test_what_a_person_wrote_is_read_and_all_that_is_not_tuned_stays() -> None:
    config = parse(BY_HAND)

    setting = Setting.of(config)
    changed = replace(setting, max_batch_size=16, instance_count=1, intra_op_thread_count=2).applied_to(config)

    assert setting == Setting(32, (8,), 100, 2, None)
    assert changed.dynamic_batching.priority_levels == 3
    assert changed.instance_group[0].kind == config.instance_group[0].kind
    assert changed.parameters["execution_mode"].string_value == "1"
    assert changed.parameters["intra_op_thread_count"].string_value == "2"
    assert changed.model_warmup[0].batch_size == 16
    assert config == parse(BY_HAND)


@given(settings)
def test_what_is_written_is_read_again(setting: Setting) -> None:
    assert Setting.of(setting.applied_to(parse(BY_HAND))) == setting


def test_the_same_setting_changes_nothing() -> None:
    config = parse(BY_HAND)

    assert Setting.of(config).applied_to(config) == config


def test_several_instance_groups_are_a_persons_choice() -> None:
    with pytest.raises(RepositoryError, match=r"expected one instance_group, found 2.*Leave one"):
        Setting.of(parse('name: "m" instance_group [ { count: 1 }, { count: 1 } ]'))


@pytest.mark.parametrize(("cores", "n_computing"), [(1, 1), (2, 3), (4, 6), (6, 8)])
def test_instances_and_threads_never_want_more_than_the_cores(cores: int, n_computing: int) -> None:
    computing = space(Setting(8, (), 0, 1, None), cores=cores, largest_batch=8)[0]

    assert len(computing.choices) == n_computing
    assert all(one["instance_count"] * one["intra_op_thread_count"] <= cores for one in computing.choices)


def test_on_a_gpu_instances_are_tried_and_threads_are_not() -> None:
    computing = space(Setting(8, (), 0, 1, None), cores=16, largest_batch=8, n_gpus=1)[0]

    assert [dict(one) for one in computing.choices] == [{"instance_count": n} for n in (1, 2, 3, 4)]


def test_a_model_without_batch_axis_has_no_batching_to_tune() -> None:
    axes = space(Setting(0, (), 0, 1, None), cores=2, largest_batch=0)

    assert [axis.name for axis in axes] == ["instances and threads"]
    assert not Setting(0, (), 0, 2, 1).applied_to(parse('name: "m"')).HasField("dynamic_batching")


def test_no_batch_is_larger_than_the_largest() -> None:
    start = Setting(64, (), 0, 1, None)
    every = grid(start, space(start, cores=2, largest_batch=48))

    assert {setting.max_batch_size for setting in every} == {4, 8, 16, 32, 48}
    assert all(size <= setting.max_batch_size for setting in every for size in setting.preferred_batch_size)
    assert len(every) == len(set(every))


@pytest.mark.parametrize(
    ("callers", "largest", "preferred"),
    [(1, None, None), (4, None, {4}), (16, {4, 8, 64}, {4, 8, 16}), (64, {4, 8, 16, 32, 64}, {4, 8, 16, 32})],
)
def test_batches_that_the_callers_cannot_fill_are_not_tried(
    callers: int, largest: set[int] | None, preferred: set[int] | None
) -> None:
    axes = space(Setting(64, (), 0, 1, None), cores=2, largest_batch=64, most_callers=callers)
    found = {axis.name: axis.choices for axis in axes}

    sizes = {choice["max_batch_size"] for choice in found["largest batch"]} if "largest batch" in found else None
    assert sizes == largest
    tried = {size for choice in found.get("preferred batch", ()) for size in choice["preferred_batch_size"]} or None
    assert tried == preferred
