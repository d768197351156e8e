"""The tester of the gate: its mutations are real changes, and its own judge tells those that matter from those that do not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks import mutations
from benchmarks._mutation_site import KINDS, Site


@pytest.fixture(scope="module")
def subject():
    return mutations.prepare("lenet5", seed=3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mutation_changes_the_file_and_blames_what_is_in_it(subject, kind):
    rng = np.random.default_rng(0)
    unchanged = subject.graph.proto.SerializeToString()
    n_possible = 0
    for place in range(len(subject.graph.proto.graph.node)):
        model = onnx.load_model_from_string(unchanged)
        blame = KINDS[kind](Site(model, model.graph.node[place], subject.values, rng))
        if blame is None:
            continue
        n_possible += 1
        assert model.SerializeToString() != unchanged
        border = {value.name for value in (*model.graph.input, *model.graph.output)}
        assert blame
        assert blame <= {node.name for node in model.graph.node} | border
    has_none = {"epsilon wrong", "residual edge rewired"}  # LeNet5 has neither
    assert bool(n_possible) is (kind not in has_none)


def test_the_judge_lets_rounding_pass_and_no_more(subject):
    unchanged = subject.graph.proto.SerializeToString()
    assert not mutations.matters(unchanged, subject)
    for step, matters in ((1e-9, False), (1e-2, True), (np.nan, True)):
        model = onnx.load_model_from_string(unchanged)
        bias = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("output.bias"))
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(step), bias.name))
        assert mutations.matters(model.SerializeToString(), subject) is matters
    assert mutations.matters(unchanged[:1000], subject)


def test_what_was_broken_is_caught_and_located(subject):
    outcomes = list(mutations.mutate(subject, count=6, seed=1))
    assert len(outcomes) == 6
    assert all(outcome.caught and outcome.located for outcome in outcomes if outcome.matters), outcomes
    figures = {figure.name: figure for figure in mutations.score(outcomes, n_false_alarms=0)}
    assert figures["caught"].value == 1
    assert figures["mutations that matter"].holds is False  # six are too few


def test_the_same_seed_gives_the_same_mutations(subject):
    first, second = ([outcome.story for outcome in mutations.mutate(subject, count=3, seed=5)] for _ in range(2))
    assert first == second
