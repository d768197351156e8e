"""The document that every benchmark prints, and what its goals decide."""

from __future__ import annotations

import json
import math

import click
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from benchmarks.harness import Document, Figure, benchmark, document, interleave, meets, ratios
from convoy.contract.errors import ExportError, UsageError


@pytest.mark.parametrize(
    ("value", "goal", "holds"),
    [
        (1.3, ">= 1.3", True), (1.29, ">= 1.3", False), (0, "== 0", True), (1, "== 0", False), (0.5, "<= 0.5", True),
        (0.51, "<= 0.5", False), (1, "> 1", False), (2, "> 1", True), (1, "< 1", False), (-2, "< -1.5", True),
    ],
)  # fmt: skip
def test_a_goal_is_a_comparison(value, goal, holds):
    assert meets(value, goal) is holds
    assert Figure(name="x", value=value, goal=goal).holds is holds


@pytest.mark.parametrize("goal", ["1.3", ">=1.3", ">= 1.3 ms", "=> 1", "at least 1", "", "!= 1", ">= nan"])
def test_what_is_no_comparison_is_no_goal(goal):
    with pytest.raises(ValueError, match=r"such as '>= 1\.3'"):
        meets(1, goal)
    with pytest.raises(ValidationError):
        Figure(name="x", value=1, goal=goal)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_no_figure(value):
    with pytest.raises(ValidationError):
        Figure(name="x", value=value)
    with pytest.raises(ValidationError):
        Figure.of("x", [1.0, value, 2.0])


def test_rounds_become_their_median_and_their_ends():
    figure = Figure.of("x", [3.0, 1.0, 2.0, 10.0], "ms")
    assert (figure.value, figure.low, figure.high, figure.holds) == (2.5, 1.0, 10.0, None)
    with pytest.raises(ValueError, match="found none"):
        Figure.of("x", [])


def test_rounds_are_interleaved_and_turn():
    order: list[str] = []
    cases = {name: lambda name=name: order.append(name) or float(len(order)) for name in "abc"}
    samples = interleave(cases, 3, warm_up=1)
    assert "".join(order) == "cababcbcacab"
    assert samples == {"a": [4.0, 9.0, 11.0], "b": [5.0, 7.0, 12.0], "c": [6.0, 8.0, 10.0]}


def test_ratios_are_taken_round_by_round():
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0], [1.0, 2.0])


def test_a_document_without_figures_holds_nothing():
    assert not document("x", []).holds


def test_a_name_stands_once():
    with pytest.raises(ValueError, match="found twice"):
        document("x", [Figure(name="a", value=1), Figure(name="a", value=2)])


def command(figures=(), error=None):
    @benchmark("sample", packages=["numpy", "not-a-package-of-anyone"])
    @click.option("--rounds", default=1)
    def measure(rounds):
        """Measures a sample."""
        if error:
            raise error
        return [figure.model_copy(update={"value": figure.value * rounds}) for figure in figures]

    return measure


def test_with_json_one_document_stands_on_stdout():
    result = CliRunner().invoke(command([Figure(name="speed", value=1.5, unit="ratio", goal=">= 3")]), ["--json", "--rounds", "2"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert list(found) == ["benchmark", "commit", "machine", "versions", "figures"]
    assert found["figures"] == [
        {"name": "speed", "value": 3.0, "low": None, "high": None, "unit": "ratio", "goal": ">= 3", "holds": True}
    ]
    assert found["versions"]["not-a-package-of-anyone"] == "not installed"
    assert found["machine"]["cores"] >= 1
    for figure in found["figures"]:
        del figure["holds"]
    assert Document.model_validate(found).holds


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_goal_that_does_not_hold_exits_with_1(flags):
    figures = [
        Figure(name="fast", value=2, goal=">= 1"),
        Figure(name="slow", value=0.004, goal=">= 1"),
        Figure(name="free", value=0),
    ]
    result = CliRunner().invoke(command(figures), flags)
    assert result.exit_code == 1
    assert "slow" in result.stdout


def test_people_get_a_table():
    result = CliRunner().invoke(command([Figure(name="[odd] name", value=1234.5678, unit="ms", goal="<= 2000")]), [])
    assert result.exit_code == 0
    assert "[odd] name" in result.stdout
    assert "1,235" in result.stdout
    assert "holds" in result.stdout


@pytest.mark.parametrize(("error", "status"), [(UsageError("no such network"), 2), (ExportError("no file"), 1)])
def test_errors_become_the_exit_status(error, status):
    result = CliRunner().invoke(command(error=error), ["--json"])
    assert result.exit_code == status
    assert str(error) in result.stderr
    assert result.stdout == ""


def test_wrong_use_exits_with_2():
    assert CliRunner().invoke(command(), ["--round"]).exit_code == 2
