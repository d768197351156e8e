"""The lecture's page follows from its runs, its runs from its rows, and a row out of its band fails."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import lecture
from benchmarks._lecture_page import Outcome, outcomes, page
from benchmarks._lecture_rows import ROWS, SECTIONS, rows_named
from benchmarks._lecture_runs import Row, Run, Task, append_run, of_rows, perform_all, read_runs
from benchmarks.harness import document
from convoy.contract.errors import DataError, TrainingError
from convoy.contract.figures import interval95
from convoy.training.data import DataLocation

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROW = Row(name="one", section="digits", title="one layer", recipe="linear", lecture=12.0, band=(5, 10), why="Because.")
RUN = Run(
    row="one", seed=0, settings=ROW.digest(), test_top1_error=0.08, test_loss=0.25, n_train=900, n_test=1_000, n_parameters=7_850,
    epoch=2, seconds=1.5, train_errors=(0.5, 0.2), held_out_errors=(0.4, 0.1), held_out_losses=(1.0, 0.5), device="cpu",
    machine="a processor, 2 cores", versions="torch 2", commit="0123456789abcdef",
)  # fmt: skip


def runs_of(*errors: float, row: Row = ROW) -> dict[tuple[str, int], Run]:
    changes = (
        {"row": row.name, "seed": seed, "settings": row.digest(), "test_top1_error": error} for seed, error in enumerate(errors)
    )
    return {(row.name, change["seed"]): RUN.model_copy(update=change) for change in changes}


def holds(*errors: float) -> bool:
    return document("lecture", lecture.figures_of(outcomes([ROW], runs_of(*errors)).values())).holds


def test_the_page_is_what_its_runs_say():
    runs = of_rows(read_runs(DOCS / "lecture.jsonl"), ROWS, seeds=lecture.SEEDS)
    assert (DOCS / "lecture.md").read_text(encoding="utf-8") == page(ROWS, runs)


def test_every_run_behind_the_page_was_made_with_the_settings_of_today_and_stands_there_once():
    runs = read_runs(DOCS / "lecture.jsonl")
    assert len(of_rows(runs, ROWS, seeds=lecture.SEEDS)) == len(runs) > 0


def test_every_row_of_the_page_is_measured():
    assert {run.row for run in read_runs(DOCS / "lecture.jsonl")} == {row.name for row in ROWS}


def test_every_row_of_the_page_lies_in_its_band():
    found = outcomes(ROWS, of_rows(read_runs(DOCS / "lecture.jsonl"), ROWS, seeds=lecture.SEEDS))
    result = document("lecture", lecture.figures_of(found.values()))
    assert [figure.name for figure in result.figures if figure.holds is False] == []


@pytest.mark.parametrize("name", ["short-digits", pytest.param("short-mnist", marks=pytest.mark.mnist)])
def test_a_short_row_computed_again_gives_what_the_page_says(name, tmp_path):
    if name == "short-mnist" and not (Path(os.environ.get("CONVOY_DATA", "/nowhere")) / "mnist").is_dir():
        pytest.skip("CONVOY_DATA has no mnist")
    arguments = ["--rows", name, "--seeds", "1", "--device", "cpu", "--results", str(tmp_path / "runs.jsonl"), "--json"]
    result = CliRunner().invoke(lecture.main, arguments)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["benchmark"] == "lecture"
    assert [figure["name"] for figure in said["figures"]] == [name, "below their bands"]
    (again,) = read_runs(tmp_path / "runs.jsonl")
    published = next(run for run in read_runs(DOCS / "lecture.jsonl") if (run.row, run.seed) == (name, 0))
    assert again.settings == published.settings
    # sums are added in another order elsewhere: a few images at the border go the other way
    assert again.test_top1_error == pytest.approx(published.test_top1_error, abs=0.01)
    assert again.train_errors == pytest.approx(published.train_errors, abs=0.02)


def test_what_is_in_the_file_is_not_computed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(lecture, "perform_all", lambda tasks, _: pytest.fail(f"computed {tasks}"))
    monkeypatch.setattr(lecture, "ROWS", (ROW,))
    monkeypatch.setattr(lecture, "rows_named", lambda _: (ROW,))
    for run in runs_of(0.07, 0.08).values():
        append_run(tmp_path / "runs.jsonl", run)
    arguments = ["--rows", "one", "--seeds", "2", "--results", str(tmp_path / "runs.jsonl"), "--json"]
    result = CliRunner().invoke(lecture.main, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["figures"][0]["value"] == pytest.approx(7.5)


def test_what_is_missing_is_left_out_where_that_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(lecture, "perform_all", lambda tasks, _: pytest.fail(f"computed {tasks}"))
    result = CliRunner().invoke(
        lecture.main, ["--rows", "linear,lenet5", "--no-train", "--results", str(tmp_path / "none"), "--json"]
    )
    assert [figure["name"] for figure in json.loads(result.stdout)["figures"]] == ["below their bands"]


def test_a_run_with_other_settings_or_another_seed_does_not_count():
    other = RUN.model_copy(update={"settings": ROW.model_copy(update={"settings": ("learning_rate=0.5",)}).digest()})
    late = RUN.model_copy(update={"seed": 3})
    assert of_rows([RUN, other, late], [ROW], seeds=3) == {("one", 0): RUN}
    assert of_rows([RUN], [ROW], seeds=3, epochs_scale=0.5) == {}


def test_a_row_out_of_its_band_does_not_hold():
    assert holds(0.07, 0.08, 0.09)
    assert not holds(0.07, 0.12, 0.13)
    assert not holds(0.01, 0.02, 0.03)


def test_a_row_that_never_reaches_25_percent_does_not_hold():
    row = ROW.model_copy(update={"figure": "epochs to 25 %", "band": (1, 10)})
    reached, never = RUN, RUN.model_copy(update={"train_errors": (0.5, 0.4)})
    assert Outcome(row, (reached,)).values == (2.0,)
    assert document("lecture", lecture.figures_of([Outcome(row, (reached,))])).holds
    assert not document("lecture", lecture.figures_of([Outcome(row, (never,))])).holds
    assert "never" in page([row.model_copy(update={"section": "sigmoid"})], {("one", 0): never})


def test_the_page_shows_mean_range_interval_and_where_each_row_was_measured():
    runs = runs_of(0.07, 0.08, 0.09)
    runs["one", 2] = runs["one", 2].model_copy(update={"device": "cuda (a GPU)"})
    text = page([ROW], runs)
    low, high = interval95(0.08, 1_000)
    assert f"| one layer | 7,850 | 12 | 8.00 | 7.00 to 9.00 | {100 * low:.2f} to {100 * high:.2f} | 3 | A, B |" in text
    assert "- A: cpu in a processor, 2 cores; torch 2; commit 0123456789ab\n- B: cuda (a GPU)" in text
    assert "- one layer: Because." in text


def test_differences_are_taken_seed_by_seed():
    section = {"section": "choices"}
    first, second = ROW.model_copy(update=section), ROW.model_copy(update={**section, "name": "two", "title": "two"})
    text = page([first, second], {**runs_of(0.07, 0.09, row=first), **runs_of(0.06, 0.07, row=second)})
    assert "| two | 7,850 | -1.50 (-2.00 to -1.00) | 6.50 |" in text


def test_a_row_without_runs_is_said_to_be_not_measured():
    text = page([ROW], {})
    assert "| one layer | | 12 | not measured | | | | |" in text
    assert "1 of 1 rows are not measured yet" in text
    assert "not measured" not in page([ROW], runs_of(0.08))


def test_a_line_that_was_cut_off_is_written_again_and_another_that_is_broken_is_named(tmp_path):
    path = tmp_path / "folder" / "runs.jsonl"
    append_run(path, RUN)
    whole = path.read_text()
    path.write_text(whole + whole[:50])
    assert read_runs(path) == [RUN]
    append_run(path, RUN.model_copy(update={"seed": 1}))
    assert [run.seed for run in read_runs(path)] == [0, 1]
    path.write_text("{}\n" + whole)
    with pytest.raises(DataError, match=r"runs\.jsonl, line 1: expected a run"):
        read_runs(path)


def test_rows_have_names_of_their_own_recipes_that_resolve_and_sections_that_exist():
    assert set(Counter(row.name for row in ROWS).values()) == {1}
    assert {row.section for row in ROWS} == set(SECTIONS)
    assert len({row.digest() for row in ROWS}) == len(ROWS)
    for row in ROWS:
        recipe = row.recipe_for()
        assert recipe.epochs == recipe.patience_epochs
        assert row.recipe_for(0.1).epochs < recipe.epochs
        distorted = not recipe.augmentation.is_off
        assert distorted == ("distorted" in row.title.lower() or "distortion" in row.title or row.section == "photos"), row.name


def test_wrong_use_exits_with_2_and_computes_nothing(monkeypatch):
    monkeypatch.setattr(lecture, "perform_all", lambda *_: pytest.fail("computed"))
    for arguments in (["--rows", "no-such-row"], ["--rows", "linear,linear"], ["--rows", ","], ["--rows", "linear", "--write"]):
        assert CliRunner().invoke(lecture.main, arguments).exit_code == 2


def test_a_run_that_fails_is_named_and_the_others_are_made_all_the_same(tmp_path):
    diverges = Row(
        name="diverges",
        section="short",
        title="",
        recipe="lenet300",
        data="digits",
        settings=("optimizer=sgd", "learning_rate=100"),
    )
    short = rows_named(["short-digits"])[0]
    tasks = [Task(row, 0, 0.1, "cpu", DataLocation(root=None, cache=tmp_path, download=False)) for row in (diverges, short)]
    made = perform_all(tasks, 1)
    assert next(made).row == "short-digits"
    with pytest.raises(TrainingError, match=r"^diverges, seed 0: .* expected a finite loss"):
        next(made)


def test_no_tasks_start_no_processes():
    assert list(perform_all([], 2)) == []
    assert rows_named(["linear"]) == (ROWS[0],)
