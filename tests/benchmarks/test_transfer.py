"""What transfer buys: few photos are drawn class by class, and the page follows from the trainings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import transfer
from benchmarks.harness import document
from benchmarks.transfer import ALL, BEGIN, END, WAYS, Trial, draw, draw_few, figures_of, recipe_of, table, write_page
from convoy.training.data import load_dataset

TRIALS = tuple(
    Trial(depth=20, way=way, per_class=per_class, seed=seed, n_train=n_train, top1_error=error + seed / 100, seconds=4.0)
    for per_class, n_train, errors in ((5, 30, (0.6, 0.5, 0.7)), (ALL, 1_900, (0.4, 0.25, 0.3)))
    for way, error in zip(WAYS, errors, strict=True)
    for seed in range(2)
)


def result_of(trials):
    return document("transfer", figures_of(trials), ("torch",))


def test_the_table_gives_mean_range_and_seconds_by_network_photos_and_way():
    lines = table(TRIALS, result_of(TRIALS)).splitlines()
    assert "| network | photos a class | new head alone | refined | from scratch |" in lines
    assert "| ResNet-20 | 5 | 60.5 % (60.0 to 61.0), 4 s | 50.5 % (50.0 to 51.0), 4 s | 70.5 % (70.0 to 71.0), 4 s |" in lines
    assert "| ResNet-20 | all | 40.5 % (40.0 to 41.0), 4 s | 25.5 % (25.0 to 26.0), 4 s | 30.5 % (30.0 to 31.0), 4 s |" in lines


def test_a_training_that_was_not_made_leaves_its_cell_empty():
    some = [trial for trial in TRIALS if trial.way != "refined"]
    assert "| ResNet-20 | 5 | 60.5 % (60.0 to 61.0), 4 s |  | 70.5 % (70.0 to 71.0), 4 s |" in table(some, result_of(some))


def test_the_goal_is_that_refining_beats_training_from_scratch():
    assert result_of(TRIALS).holds
    worse = [replace(trial, top1_error=0.9) if trial.way == "refined" else trial for trial in TRIALS]
    assert not result_of(worse).holds


def test_writing_changes_the_measured_part_of_the_page_and_nothing_else(tmp_path, monkeypatch):
    page = tmp_path / "transfer.md"
    page.write_text(f"Before.\n{BEGIN}\nwhat was measured last time\n{END}\nAfter.\n", encoding="utf-8")
    monkeypatch.setattr(transfer, "PAGE", page)
    write_page(TRIALS, result_of(TRIALS))
    expected = f"Before.\n{BEGIN}\n{table(TRIALS, result_of(TRIALS))}\n{END}\nAfter.\n"
    assert page.read_text(encoding="utf-8") == expected
    assert (tmp_path / transfer.PICTURE).read_bytes() == draw(TRIALS)


def test_the_page_has_a_place_for_what_is_measured():
    text = transfer.PAGE.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    assert text.index(BEGIN) < text.index(END)


def test_few_photos_are_as_many_of_each_class_and_others_with_another_seed():
    digits = load_dataset("digits", seed=0, validation_fraction=0.2)
    few, again, others = (draw_few(digits, 5, seed) for seed in (0, 0, 1))
    assert np.bincount(few.train.labels).tolist() == [5] * 10
    assert np.bincount(few.validation.labels).tolist() == [5] * 10
    assert np.array_equal(few.train.images[:], again.train.images[:])
    assert not np.array_equal(few.train.images[:], others.train.images[:])
    assert draw_few(digits, ALL, 0) is digits


def test_the_three_ways_differ_in_what_stays_and_how_fast_the_rest_learns():
    recipes = {way: recipe_of(20, way, 20).model_dump(mode="json") for way in WAYS}
    taken_over = {way: recipe.pop("transfer") for way, recipe in recipes.items()}
    rates = {way: recipe.pop("learning_rate") for way, recipe in recipes.items()}
    assert recipes["new head alone"] == recipes["refined"] == recipes["from scratch"]
    assert rates["refined"] == rates["from scratch"]
    assert [taken_over[way]["frozen_fraction"] for way in WAYS][:2] == [1.0, 0.0]
    assert taken_over["from scratch"]["weights"] == "none"


@pytest.mark.parametrize("images", ["3", "1,many", ""])
def test_a_number_of_images_that_has_no_epochs_is_refused(images):
    outcome = CliRunner().invoke(transfer.main, ["--images", images])
    assert outcome.exit_code == 2
    assert "expected some of 1,2,5,10,20,50,all" in outcome.output


def test_without_the_data_it_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setenv("CONVOY_DATA", str(tmp_path))
    outcome = CliRunner().invoke(transfer.main, [])
    assert outcome.exit_code != 0
    assert "cifar10_resnet_weights" in f"{outcome.output}{outcome.exception}"
