"""A reader's training that is stopped anywhere goes on to the weights that it would have reached."""

from __future__ import annotations

import copy
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from convoy.cli.program import program
from convoy.contract.errors import ContractError, TrainingError, UsageError
from convoy.training.check_reader.building import build_reader, draw_synthetic, load_handwriting
from convoy.training.check_reader.criterion import losses
from convoy.training.check_reader.examples import Example, collate
from convoy.training.check_reader.fitting import fit_reader
from convoy.training.check_reader.reader_course import ReaderCourse, ReaderEpoch
from convoy.training.check_reader.reader_run import train_reader
from convoy.training.check_reader.reader_start import ReaderStart
from convoy.training.loop import Checkpoints
from convoy.training.loop.checkpoint import CHECKPOINT_FILE, START_FILE, kind_of
from convoy.training.recipes.reader import ReaderRecipe, get_reader_recipe

# everything that a checkpoint has to hold: an average, dropout, draws of orders, of distortions and of splices
SETTINGS = (
    *("n_synthetic=40", "epochs=2", "real_epochs=2", "style=digits", "grammar=digits", "batch_size=16", "dropout=0.3"),
    *("splice_share=0.7", "averaging_decay=0.9", "batch_norm=true"),
)
RECIPE = get_reader_recipe("check-reader-lenet5", SETTINGS)
START = ReaderStart(run_id="reader-1", recipe=RECIPE, seed=3, grammar="amount = digits\n")
N_STEPS = 2 * 3 + 2 * 3  # 40 synthetic fields, then 24 real ones with 10 synthetic ones among them


@pytest.fixture(scope="module")
def synthetic() -> list[Example]:
    return draw_synthetic(RECIPE, load_handwriting("digits"), 40, seed=3)


@pytest.fixture(scope="module")
def real() -> list[Example]:
    drawn = draw_synthetic(RECIPE, load_handwriting("digits"), 24, seed=4)
    return [Example(f"real {number}", field.pixels, field.label, latent=True) for number, field in enumerate(drawn)]


Outcome = tuple[dict[str, torch.Tensor], list[dict[str, Any]]]


def run(synthetic: list[Example], real: list[Example], folder: Path | None = None, *, n_steps: int | None = None) -> Outcome:
    """Train; break off as a crash would after some steps, with what was kept so far on disk."""
    keeper = None
    if folder is not None:
        keeper = Checkpoints(folder, every_s=0)
        keeper.begin(START)
    left = n_steps

    def on_step(n_seen: int, n_all: int) -> None:
        nonlocal left
        assert 0 < n_seen <= n_all == 2 * 40 + 2 * 34
        if left is not None:
            left -= 1
            if left < 0:
                raise ZeroDivisionError

    torch.manual_seed(0)
    reader = build_reader(RECIPE)
    history = fit_reader(reader, RECIPE, synthetic, real, seed=3, checkpoints=keeper, on_step=on_step)
    facts = [{name: value for name, value in asdict(epoch).items() if name != "seconds"} for epoch in history]
    return {name: value.clone() for name, value in reader.state_dict().items()}, facts


@pytest.fixture(scope="module")
def unbroken(synthetic: list[Example], real: list[Example]) -> Outcome:
    return run(synthetic, real)


@pytest.mark.parametrize("n_steps", [0, 1, 3, 5, 6, 7, 9, 11])  # before, in and at the end of epochs and phases
def test_a_run_that_goes_on_reaches_the_same_weights(
    tmp_path: Path, synthetic: list[Example], real: list[Example], unbroken: Outcome, n_steps: int
) -> None:
    with pytest.raises(ZeroDivisionError):
        run(synthetic, real, tmp_path / "run.partial", n_steps=n_steps)
    weights, history = run(synthetic, real, tmp_path / "run.partial")
    assert history == unbroken[1]
    assert [(epoch["phase"], epoch["epoch"]) for epoch in history] == [(p, n) for p in ("synthetic", "real") for n in (1, 2)]
    for name, value in unbroken[0].items():
        assert torch.equal(weights[name], value), name


def test_the_course_says_how_far_it_is(synthetic: list[Example], real: list[Example]) -> None:
    course = ReaderCourse(build_reader(RECIPE), RECIPE, synthetic, real, seed=0)
    seen = []
    while not course.is_over:
        for n in course.steps():
            seen.append(n)
            assert course.n_seen == sum(seen)
        assert isinstance(course.end_epoch(), ReaderEpoch)
    assert len(seen) == N_STEPS
    assert course.n_seen == course.n_all == sum(seen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": RECIPE.model_copy(update={"dropout": 0.5})}, r"with dropout=0.5 instead of 0.3\."),
        ({"seed": 4}, r"with seed=4 instead of 3\."),
        ({"dataset_sha256": "a" * 64}, "other data"),
        ({"grammar": 'amount = "1"\n'}, "with another grammar"),
    ],
)
def test_another_run_is_refused_with_what_differs(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    Checkpoints(tmp_path / "run.partial").begin(START)
    assert kind_of(tmp_path / "run.partial") == "amount-reading"
    with pytest.raises(UsageError, match=message):
        Checkpoints(tmp_path / "run.partial").begin(START.model_copy(update=change))


def test_a_damaged_beginning_is_refused(tmp_path: Path) -> None:
    (tmp_path / START_FILE).write_text("{")
    with pytest.raises(ContractError, match=r"start.json: expected which run was stopped here"):
        kind_of(tmp_path)


@pytest.mark.parametrize("criterion", ["forward", "viterbi", "ctc", "frames"])
def test_a_loss_that_is_not_finite_ends_the_run(criterion: str, synthetic: list[Example]) -> None:
    wild = RECIPE.model_copy(update={"criterion": criterion, "learning_rate": 1.0, "epochs": 1})
    reader = build_reader(wild)
    with torch.no_grad():
        reader.network.output.weight.fill_(float("nan"))  # type: ignore[union-attr,operator]
    with pytest.raises(TrainingError, match=r"expected a finite loss, found nan.*--set learning_rate=0.1"):
        fit_reader(reader, wild, synthetic[:16], [], seed=0)


@pytest.fixture(scope="module")
def fields(write_fields: Callable[[Path, int], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fields(tmp_path_factory.mktemp("fields"), 70)


PROGRAM = [sys.executable, "-c", "from convoy.cli import main; main()", "train"]
ASSIGNMENTS = [part for setting in SETTINGS for part in ("--set", setting)]


def test_a_process_that_is_killed_goes_on_to_the_same_weights(tmp_path: Path, fields: Path) -> None:
    order = ["check-reader-lenet5", "--data", str(fields), "--seed", "3", *ASSIGNMENTS, "--out"]
    partial = tmp_path / "broken.partial"
    arguments = [*PROGRAM, *order, str(tmp_path / "broken"), "--checkpoint-every", "0"]
    with subprocess.Popen(arguments, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None and not (partial / CHECKPOINT_FILE).exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    whole = CliRunner().invoke(program, ["train", *order, str(tmp_path / "whole"), "--json"])
    assert whole.exit_code == 0, whole.output
    assert not (tmp_path / "broken").exists()
    again = CliRunner().invoke(program, ["train", *order, str(tmp_path / "broken")])
    assert "was stopped before its end. Go on with: convoy train --resume" in f"{again.output} {again.exception}"
    done = CliRunner().invoke(program, ["train", "--resume", str(tmp_path / "broken"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["weights_sha256"] == json.loads(whole.stdout)["weights_sha256"]
    assert json.loads(done.stdout)["device"] == "cpu"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "whole"]


def stopped(folder: Path, fields: Path, recipe: ReaderRecipe = RECIPE) -> Path:
    """What a run leaves that was stopped in its first second."""
    partial = folder / "run.partial"
    Checkpoints(partial).begin(START.model_copy(update={"recipe": recipe, "real": str(fields)}))
    return partial


@contextmanager
def heard_interrupts() -> Iterator[None]:
    """SIGINT as in a terminal, also where the tests run in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("number", "sigint"),
    [
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGTERM, signal.default_int_handler),
        (signal.SIGTERM, signal.SIG_IGN),  # as in the background of a shell's script
    ],
)
def test_an_interrupt_leaves_a_checkpoint_and_says_how_to_go_on(
    tmp_path: Path, fields: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, sigint: Any
) -> None:
    step = ReaderCourse.end_epoch

    def interrupted(course: ReaderCourse) -> ReaderEpoch:
        signal.raise_signal(number)  # heard, and waits for the end of the step
        return step(course)

    with monkeypatch.context() as patch, heard_interrupts():
        signal.signal(signal.SIGINT, sigint)
        patch.setattr(ReaderCourse, "end_epoch", interrupted)
        order = ["train", "check-reader-lenet5", "--data", str(fields), "--out", str(tmp_path / "run"), *ASSIGNMENTS]
        result = CliRunner().invoke(program, order)
    partial = tmp_path / "run.partial"
    assert f"it goes on with: convoy train --resume {partial}" in result.output
    assert result.exit_code == (143 if number == signal.SIGTERM else 1)  # click's runner knows no 130
    assert sorted(path.name for path in partial.iterdir()) == [CHECKPOINT_FILE, START_FILE]
    assert not (tmp_path / "run").exists()
    result = CliRunner().invoke(program, ["train", "--resume", str(partial)])
    assert result.exit_code == 0, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "epochs=3"], "leave out --data and --set"),
        (["--data", "fields"], "leave out --data and --set"),
        (["--seed", "9"], "with seed=9 instead of 3"),
        (["--devices", "2"], "--devices: readers of amounts take no such option"),
        (["--device", "cuda:77"], "use --device cpu"),
    ],
)
def test_what_does_not_belong_to_a_stopped_run_is_refused(tmp_path: Path, fields: Path, arguments: list[str], words: str) -> None:
    partial = stopped(tmp_path, fields)
    result = CliRunner().invoke(program, ["train", "--resume", str(partial), *arguments])
    assert result.exit_code != 0
    assert words in f"{result.output} {result.exception}"
    assert partial.exists()


def test_a_grammar_of_ones_own_is_found_from_elsewhere(tmp_path: Path, fields: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "mine.txt").write_text('amount = "0".."9"{1,15}\n')
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    order = ["train", "check-reader-lenet5", "--data", str(fields), "--out", str(tmp_path / "run"), *ASSIGNMENTS]
    with monkeypatch.context() as patch:
        patch.setattr(ReaderCourse, "end_epoch", stop)  # at once, as a second Ctrl-C does; a step has been kept
        CliRunner().invoke(program, [*order, "--set", "grammar=mine.txt", "--checkpoint-every", "0"])
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = CliRunner().invoke(program, ["train", "--resume", str(tmp_path / "run.partial")])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run" / "run.json").read_text())["reading"]["grammar"] == "mine"


def test_each_kind_of_run_goes_on_as_what_it_is(tmp_path: Path, fields: Path) -> None:
    partial = stopped(tmp_path, fields)
    result = CliRunner().invoke(program, ["train", "lenet5", "--resume", str(partial)])
    assert "found a reader's: leave lenet5 out" in f"{result.output} {result.exception}"
    other = CliRunner().invoke(program, ["train", "check-reader", "--resume", str(partial), "--data", str(fields)])
    assert "network=residual instead of lenet5" in f"{other.output} {other.exception}"
    document = json.loads((partial / START_FILE).read_text())
    (partial / START_FILE).write_text(json.dumps({**document, "kind": "classification"}))
    result = CliRunner().invoke(program, ["train", "check-reader", "--resume", str(partial)])
    assert "found a classifier's: leave check-reader out" in f"{result.output} {result.exception}"


def test_fields_that_are_gone_or_others_are_said(tmp_path: Path, fields: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(fields, mine)
    partial = stopped(tmp_path, mine)
    shutil.rmtree(mine)
    result = CliRunner().invoke(program, ["train", "--resume", str(partial)])
    assert "expected a folder with amounts.csv" in f"{result.output} {result.exception}"
    assert partial.exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_computes_the_same_losses_and_gradients(synthetic: list[Example], real: list[Example]) -> None:
    torch.manual_seed(0)
    reader = build_reader(RECIPE).eval()
    batch = collate([*synthetic[:8], *real[:8]])
    found = []
    for device in ("cpu", "cuda"):
        there = copy.deepcopy(reader).to(device)
        scores, lengths = there.scores(batch.image.to(device), batch.width.to(device))
        loss = losses("forward", scores, lengths, batch.examples, there.lattice)
        loss.sum().backward()  # type: ignore[no-untyped-call]
        found.append(
            (loss.detach().cpu(), [parameter.grad.cpu() for parameter in there.parameters() if parameter.grad is not None])
        )
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-3)
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-2, atol=1e-3 * float(ours.abs().max()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_reader_trains_on_the_gpu_goes_on_and_is_left_on_the_cpu(tmp_path: Path, fields: Path) -> None:
    def broken(n_seen: int, n_all: int) -> None:
        if n_seen > n_all / 2:
            raise ZeroDivisionError

    keeper = Checkpoints(tmp_path / "run.partial", every_s=0)
    with pytest.raises(ZeroDivisionError):
        train_reader(RECIPE, fields, seed=3, device="cuda", checkpoints=keeper, on_step=broken)
    run = train_reader(RECIPE, fields, seed=3, device="cuda", checkpoints=keeper)
    assert run.record.device.startswith("cuda")
    assert run.reader.device == torch.device("cpu")
    assert [epoch.phase for epoch in run.metrics.history] == ["synthetic", "synthetic", "real", "real"]
