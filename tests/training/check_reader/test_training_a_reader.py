"""From a recipe to a run folder and back: what training minimises, sees and writes."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from convoy.cli.program import program
from convoy.contract.errors import ContractError, DataError, DigestMismatchError, UsageError
from convoy.contract.reject import reject_curve
from convoy.training.check_reader.best_path import best_path
from convoy.training.check_reader.building import build_reader, draw_synthetic, load_handwriting
from convoy.training.check_reader.criterion import losses
from convoy.training.check_reader.distorting import distort
from convoy.training.check_reader.examples import Example, collate
from convoy.training.check_reader.fitting import fit_reader
from convoy.training.check_reader.grammar import compile_grammar
from convoy.training.check_reader.lattice import Lattice
from convoy.training.check_reader.reader_report import ERRORS, Misread, ReaderExhibits, render_reader_report
from convoy.training.check_reader.reader_run import train_reader
from convoy.training.check_reader.reader_run_folder import load_reader_run, write_reader_run
from convoy.training.recipes.reader import NO_DISTORTION, Distortion, ReaderRecipe, get_reader_recipe

TINY = get_reader_recipe("check-reader-lenet5", ["n_synthetic=40", "epochs=1", "real_epochs=1", "style=digits", "grammar=digits"])


@pytest.fixture(scope="module")
def synthetic() -> list[Example]:
    return draw_synthetic(TINY, load_handwriting("digits"), 60, seed=3)


def test_the_best_path_is_that_of_the_search_and_its_gradient_is_the_path() -> None:
    grammar = compile_grammar('silent ","\namount = ("1" | "2"@0.3){1,2} ["," @0.7 ("1" | "2")]')
    lattice = Lattice(grammar, "12,")
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(50, 6, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    lengths = torch.randint(3, 7, (50,), generator=generator)
    found = best_path(scores, lengths, lattice.machine)
    expected = lattice.viterbi(scores.detach(), lengths).path_scores[:, 0] + lattice.log_partition(scores.detach(), lengths)
    assert torch.allclose(found, expected, atol=1e-9)
    found.sum().backward()
    assert scores.grad is not None
    assert torch.equal(scores.grad.sum(2), (torch.arange(6) < lengths.unsqueeze(1)).double())  # one class a frame
    assert ((scores.grad == 0) | (scores.grad == 1)).all()


@pytest.mark.parametrize("criterion", ["forward", "viterbi", "ctc", "frames"])
def test_every_criterion_falls_while_a_reader_learns(criterion: str, synthetic: list[Example]) -> None:
    recipe = TINY.model_copy(
        update={"criterion": criterion, "epochs": 6, "distortion": NO_DISTORTION, "batch_norm": True, "averaging_decay": 0.0}
    )
    torch.manual_seed(0)
    reader = build_reader(recipe)
    history = fit_reader(reader, recipe, synthetic, [], seed=0)
    assert [(epoch.phase, epoch.epoch) for epoch in history] == [("synthetic", number) for number in range(1, 7)]
    assert history[-1].loss < 0.8 * history[0].loss
    assert not reader.training


@pytest.mark.parametrize("criterion", ["forward", "viterbi", "ctc"])
def test_a_field_too_short_for_its_label_teaches_nothing(criterion: str) -> None:
    reader = build_reader(TINY)
    short = Example("short", np.zeros((32, 9), np.uint8), "123456", latent=True)
    scores = torch.randn(1, 3, 11, requires_grad=True)
    found = losses(criterion, scores, torch.tensor([3]), [short], reader.lattice)  # type: ignore[arg-type]
    assert found.tolist() == [0.0]
    found.sum().backward()
    assert scores.grad is not None
    assert not scores.grad.any()


def test_frames_need_to_know_where_characters_stand() -> None:
    reader = build_reader(TINY)
    real = Example("real 7", np.zeros((32, 80), np.uint8), "12", latent=True)
    with pytest.raises(UsageError, match="real 7: criterion frames expected the columns"):
        losses("frames", torch.zeros(1, 20, 11), torch.tensor([20]), [real], reader.lattice)


def test_distortions_change_the_pixels_and_leave_the_form(synthetic: list[Example]) -> None:
    batch = collate([field for field in synthetic if field.label][:8])
    still, width = distort(batch.image, batch.width, NO_DISTORTION, torch.Generator().manual_seed(0))
    assert torch.equal(width, batch.width)
    inside = torch.arange(batch.image.shape[2]) < width.unsqueeze(1)
    gap = (still.int() - batch.image.int()).abs() * inside[:, None, :, None]
    assert gap.max() <= 1
    moved, widths = distort(batch.image, batch.width, Distortion(), torch.Generator().manual_seed(0))
    again, _ = distort(batch.image, batch.width, Distortion(), torch.Generator().manual_seed(0))
    assert torch.equal(moved, again)
    assert moved.dtype == torch.uint8
    assert moved.shape[2] % 32 == 0
    assert moved.shape[2] >= int(widths.max())
    for row, columns in zip(moved, widths.tolist(), strict=True):
        assert not row[:, columns:].any()
        assert row[:, :columns].float().std() > 5


def test_the_same_seed_gives_the_same_weights(synthetic: list[Example]) -> None:
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        reader = build_reader(TINY)
        fit_reader(reader, TINY, synthetic[:40], [], seed=seed)
        found.append(reader.network.output.weight.detach().clone())  # type: ignore[union-attr]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.fixture(scope="module")
def real(write_fields: Callable[[Path, int], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fields(tmp_path_factory.mktemp("fields"), 80)


@pytest.fixture(scope="module")
def run_dir(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "reader"
    write_reader_run(folder, train_reader(TINY, real, seed=5))
    return folder


def test_a_run_folder_is_read_back_as_it_was_written(run_dir: Path, real: Path) -> None:
    run = load_reader_run(run_dir)
    assert run.record.kind == "amount-reading"
    assert (run.record.data.n_synthetic, run.record.data.n_real, run.record.data.n_held_back) == (40, 64, 12)
    assert run.metrics.held_back == "real"
    assert run.metrics.n == 12
    assert [epoch.phase for epoch in run.metrics.history] == ["synthetic", "real"]
    assert "".join(run.record.labels) == "0123456789"
    assert run.facts.n_train == 104
    assert len(run.held_back()) == 12
    assert run.held_back()[0].label == next(csv.reader([(real / "amounts.csv").read_text().splitlines()[69]]))[1]
    assert float(run.reader.confidence_scale) == pytest.approx(run.metrics.confidence[0], rel=1e-6)
    for name in ("reject.png", "fields.png", "curves.png", "mistakes.png"):
        with Image.open(run_dir / name) as picture:
            assert picture.width > 200


def test_the_report_says_what_came_out_and_needs_nothing_else(run_dir: Path, real: Path) -> None:
    run = load_reader_run(run_dir)
    page = (run_dir / "report.html").read_text()
    assert "real fields that were held back" in page
    assert f"{run.metrics.n - run.metrics.n_right} fields that were held back and read wrong" in page
    assert "it takes 200 accepted fields to speak of this rate" in page
    assert run.record.weights_sha256 in page
    assert "amount = " in page  # the grammar
    assert not re.search(r"<script|https?://|(src|href)=.(?!data:)", page)
    wrong = re.findall(r'<td class="code">(\d{3}.png)</td><td>(\d+)</td>', page)
    labels = dict(csv.reader((real / "amounts.csv").read_text().splitlines()))
    assert wrong
    assert all(labels[name] == shows for name, shows in wrong)


def test_names_and_labels_in_the_report_are_text(tmp_path: Path, run_dir: Path) -> None:
    run = load_reader_run(run_dir)
    curve = reject_curve([0.9], [False])
    pixels = np.zeros((32, 4000), np.uint8)
    mistake = Misread("<b>.png", pixels, "<i>1", "", 0.9999)
    exhibits = ReaderExhibits(curve=curve, points=(None,) * len(ERRORS), mistakes=(mistake,), synthetic=[], real=[])
    report = render_reader_report(run.record, run.metrics.model_copy(update={"history": ()}), exhibits)
    page = report["report.html"].decode()
    assert "&lt;b&gt;.png" in page
    assert "<i>" not in page
    assert sorted(report) == ["mistakes.png", "reject.png", "report.html"]


def test_what_was_changed_afterwards_is_refused(run_dir: Path, real: Path, tmp_path: Path) -> None:
    broken = tmp_path / "run"
    broken.mkdir()
    for file in run_dir.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = (broken / "weights.safetensors").read_bytes()
    (broken / "weights.safetensors").write_bytes(weights[:-1] + b"\0")
    with pytest.raises(DigestMismatchError, match="changed or cut short"):
        load_reader_run(broken)
    (broken / "weights.safetensors").write_bytes(weights)
    record = json.loads((broken / "run.json").read_text())
    record["recipe"]["channels"] = [6, 16, 100, 84]
    (broken / "run.json").write_text(json.dumps(record))
    with pytest.raises(ContractError, match="expected the weights of the network"):
        load_reader_run(broken)
    (real / "079.png").touch()
    run = load_reader_run(run_dir)
    kept = (real / "079.png").read_bytes()
    Image.new("L", (90, 40), 255).save(real / "079.png")
    with pytest.raises(DataError, match=r"expected the fields that run .* saw, found others"):
        run.held_back()
    (real / "079.png").write_bytes(kept)


def test_too_few_fields_and_labels_that_are_no_amounts_are_refused_before_the_work(tmp_path: Path) -> None:
    Image.new("L", (90, 40), 255).save(tmp_path / "a.png")
    (tmp_path / "amounts.csv").write_text("file,amount\na.png,12\n")
    with pytest.raises(DataError, match="expected 60 fields or more"):
        train_reader(TINY, tmp_path)
    for number in range(70):
        Image.new("L", (90, 40), 255).save(tmp_path / f"{number}.png")
    lines = [f"{number}.png,12x" if number == 7 else f"{number}.png,12" for number in range(70)]
    (tmp_path / "amounts.csv").write_text("\n".join(["file,amount", *lines]))
    with pytest.raises(DataError, match="label '12x': grammar digits has no such amount"):
        train_reader(TINY, tmp_path)


def test_a_run_without_real_fields_is_judged_by_synthetic_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convoy.training.check_reader.held_back.N_HELD_BACK", 20)
    run = train_reader(TINY)
    assert run.metrics.held_back == "synthetic"
    assert run.metrics.n == 20
    assert math.isfinite(run.metrics.history[0].loss)


def test_the_command_trains_and_says_what_came_out(real: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["train", "check-reader-lenet5", "--data", str(real), "--out", str(out)]
    for setting in ("n_synthetic=40", "epochs=1", "real_epochs=1", "style=digits", "grammar=digits"):
        arguments += ["--set", setting]
    result = CliRunner().invoke(program, arguments)
    assert result.exit_code == 0, result.output
    assert "of 12 real fields that were held back" in result.output
    assert f"Next: convoy export {out}" in result.output
    said = result.stderr.splitlines()  # which is no terminal
    drawing = said.index("drawing 40 synthetic fields")
    last = next(i for i, line in enumerate(said) if line.startswith("real fields, epoch 1: loss"))
    assert drawing < last < said.index("reading the fields that were held back: calibration, threshold, report")
    assert len([line for line in said if line.startswith(("drawing", "reading"))]) == 2
    assert load_reader_run(out).record.recipe == TINY.model_copy(update={"name": "check-reader-lenet5"})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "nowhere"], "expected a folder with amounts.csv"),
        (["--resume", "runs/x"], "expected a run that was stopped before its end"),
        (["--devices", "2"], "--devices: readers of amounts take no such option"),
        (["--device", "tpu"], "expected auto, cpu, cuda or cuda:N"),
        (["--set", "epoch=2"], "did you mean 'epochs'"),
        (["--set", "height_px=30"], "expected a multiple of 8, found 30"),
        (["--set", "name=x"], "cannot be set"),
    ],
)
def test_wrong_use_is_said_before_the_work(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(program, ["train", "check-reader", *arguments])
    assert result.exit_code != 0
    assert words in f"{result.output} {result.exception}"


def test_recipes_lists_readers_and_their_fields() -> None:
    listed = CliRunner().invoke(program, ["recipes"])
    assert "Readers of amounts" in listed.output
    shown = CliRunner().invoke(program, ["recipes", "check-reader"])
    assert "distortion.slant" in shown.output
    document = json.loads(CliRunner().invoke(program, ["recipes", "check-reader", "--json"]).output)
    assert ReaderRecipe.model_validate_json(json.dumps(document)).name == "check-reader"


def test_what_is_wrong_with_fields_that_are_held_back_is_said_before_the_work(real: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(real, mine)
    Image.new("L", (2500, 100), 255).save(mine / "079.png")
    drawn: list[int] = []
    with pytest.raises(DataError, match=r"^079.png: expected a field at most 24 times as wide as high"):
        train_reader(TINY, mine, on_synthetic=drawn.append)
    table = (mine / "amounts.csv").read_text().splitlines()
    table[80] = "079.png,1.234-"
    (mine / "amounts.csv").write_text("\n".join(table))
    with pytest.raises(DataError, match=r"^079.png: label '1.234-': grammar digits has no such amount"):
        train_reader(TINY, mine, on_synthetic=drawn.append)
    assert not drawn


def test_few_fields_are_warned_of_before_the_work(real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object, **named: object) -> None:
        raise DataError("stopped here")

    monkeypatch.setattr("convoy.training.check_reader.reader_run.build_reader", stop)
    order = [
        "train",
        "check-reader-lenet5",
        "--data",
        str(real),
        "--out",
        str(tmp_path / "out"),
        "--set",
        "validation_fraction=0.25",
    ]
    result = CliRunner().invoke(program, order)
    assert "20 of the 80 fields are held back; with fewer than 100 the export leaves the accuracy undecided" in result.output
    assert "Add fields (400 do)" in result.output


DOLLARS = 'silent "$"\ndigit = "0".."9"\namount = "$" digit{1,3}\n'


def test_synthetic_amounts_are_those_of_the_grammar(tmp_path: Path) -> None:
    grammar = compile_grammar(DOLLARS, "dollars")
    recipe = get_reader_recipe("check-reader-lenet5", ["style=us"])
    drawn = draw_synthetic(recipe, load_handwriting("digits"), 12, seed=0, grammar=grammar)
    assert all(grammar.accepts(example.label) for example in drawn)
    with pytest.raises(
        DataError, match=r"grammar dollars: expected amounts of the style digits, found none.*--set style=.*epochs=0"
    ):
        draw_synthetic(recipe.model_copy(update={"style": "digits"}), load_handwriting("digits"), 1, seed=0, grammar=grammar)


def test_a_reader_may_learn_from_real_fields_alone(real: Path) -> None:
    drawn: list[int] = []
    alone = TINY.model_copy(update={"epochs": 0, "synthetic_share": 0.0})
    run = train_reader(alone, real, on_synthetic=drawn.append)
    assert not drawn
    assert run.record.data.n_synthetic == 0
    assert [epoch.phase for epoch in run.metrics.history] == ["real"]
    assert Image.open(io.BytesIO(run.report["fields.png"])).width > 300
