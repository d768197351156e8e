from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from convoy.cli.program import program
from convoy.contract.errors import UsageError
from convoy.training.data import Dataset
from convoy.training.loop import Checkpoints, Hardware
from convoy.training.loop.checkpoint import Start
from convoy.training.recipes import get_recipe, recipe_names, settings
from convoy.training.recipes.reader import READER_RECIPES
from convoy.training.run_folder import load_run

QUICK = ("--set", "epochs=2", "--set", "batch_size=32", "--device", "cpu")


@pytest.fixture
def convoy(tmp_path: Path, few_digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call the command line in an empty folder, on few digits."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("convoy.training.data.load_dataset", lambda name, **kwargs: replace(few_digits, name=name))

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(program, arguments)

    return call


def test_it_tells_what_came_out_and_what_comes_next(convoy: Any, tmp_path: Path) -> None:
    result = convoy("train", "lenet5", *QUICK)
    assert result.exit_code == 0, result.output
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("lenet5-digits-2")
    metrics = load_run(folder).metrics
    assert "61,706 parameters" in result.stdout
    assert f"test error        {100 * metrics.test_top1_error:.2f} %" in result.stdout
    assert result.stdout.endswith(f"Next: convoy export runs/{folder.name}\n")


def test_where_stderr_is_no_terminal_epochs_are_told_as_lines(convoy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convoy.cli.train._SECONDS_BETWEEN_LINES", 0.0)
    result = convoy("train", "lenet5", *QUICK, "--set", "epochs=3", "--json")
    assert result.exit_code == 0, result.output
    json.loads(result.stdout)
    lines = [line for line in result.stderr.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 3
    for number, line in enumerate(lines, start=1):
        left = r", about \d+ s left" if number < 3 else ""
        assert re.fullmatch(rf"epoch {number} of 3: validation error \d+\.\d\d%(, the best so far)?{left}", line)


def test_short_epochs_are_not_all_told(convoy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convoy.cli.train._SECONDS_BETWEEN_LINES", 3600.0)
    result = convoy("train", "lenet5", *QUICK, "--set", "epochs=4")
    lines = [line for line in result.stderr.splitlines() if line.startswith("epoch ")]
    assert [line.split(":")[0] for line in lines] == ["epoch 1 of 4", "epoch 4 of 4"]


def test_on_a_terminal_the_bar_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    from convoy.cli.train import training_bar

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with training_bar() as listener:
        assert type(listener).__name__ == "Bar"


def test_json_is_one_document(convoy: Any, tmp_path: Path) -> None:
    result = convoy("train", "lenet5", *QUICK, "--out", "mine/first", "--seed", "3", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    loaded = load_run(tmp_path / "mine" / "first")
    assert document["run"] == "mine/first"
    assert document["run_id"] == loaded.run.run_id
    assert document["seed"] == loaded.run.seed == 3
    assert document["epochs"] == len(loaded.metrics.history) == 2
    assert document["test_top1_error"] == loaded.metrics.test_top1_error
    assert document["weights_sha256"] == loaded.run.weights_sha256


def test_what_is_set_is_recorded(convoy: Any, tmp_path: Path) -> None:
    result = convoy("train", "lenet5", *QUICK, "--set", "augmentation.rotation_deg=1.5", "--out", "run")
    assert result.exit_code == 0, result.output
    recipe = load_run(tmp_path / "run").run.recipe
    assert (recipe.epochs, recipe.batch_size, recipe.augmentation.rotation_deg) == (2, 32, 1.5)


PROGRAM = [sys.executable, "-c", "from convoy.cli import main; main()"]


def test_wrong_use_exits_2_and_writes_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, "train", "lenet5", "--set", "epoch=3"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "convoy: error: --set epoch: recipe 'lenet5' has no such field; did you mean 'epochs'?\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lenet-5",), "did you mean 'lenet5'"),
        (("lenet5", "--set", "epochs=x"), "expected a valid integer"),
        (("lenet5", "--device", "tpu"), "expected auto, cpu, cuda"),
        (("lenet5", "--out", "full"), "expected a new or an empty folder"),
    ],
)
def test_what_is_wrong_is_said_before_any_data_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("convoy.training.data.load_dataset", None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UsageError, match=message):
        program.main(["train", *arguments], standalone_mode=False)


ENDLESS = ("--set", "epochs=10000", "--set", "patience_epochs=10000", "--device", "cpu", "--out", "runs/one")


@contextmanager
def training(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """An endless training that has begun, in a process group of its own, as a terminal gives it one."""
    with subprocess.Popen(
        [*PROGRAM, "-v", "train", "lenet5", *ENDLESS, *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # heard also where the tests run in the background
    ) as process:  # fmt: skip
        try:
            assert process.stderr is not None
            assert any("epoch 1:" in line for line in process.stderr)  # it is training now
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
@pytest.mark.parametrize("devices", [(), ("--devices", "2", "--strategy", "ddp")], ids=["one process", "two processes"])
def test_an_interrupt_exits_with_its_number_and_leaves_what_it_takes_to_go_on(
    tmp_path: Path, devices: tuple[str, ...], number: signal.Signals, word: str
) -> None:
    with training(tmp_path, *devices) as process:
        os.killpg(process.pid, number)  # a terminal, and a batch system, send it to all
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert stdout == ""
    how = "convoy train --resume runs/one.partial"
    assert stderr.endswith(f"convoy: training was stopped before its end; it goes on with: {how}\nconvoy: {word}\n")
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["runs/one.partial/checkpoint.pt", "runs/one.partial/start.json"]


def test_training_processes_do_not_outlive_the_one_that_started_them(tmp_path: Path) -> None:
    with training(tmp_path, "--devices", "2", "--strategy", "ddp") as process:
        process.kill()
        process.wait()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.05)
        pytest.fail("a process of the training still runs")


def test_a_run_goes_on_with_the_devices_that_it_began_with(convoy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran_on = []

    def stop(*_: Any, hardware: Hardware, checkpoints: Checkpoints, **__: Any) -> None:
        ran_on.append(hardware)
        start = checkpoints.begin(Start(run_id="one", recipe=recipe, seed=0, dataset_sha256="0" * 64, hardware=hardware))
        checkpoints.save({"of": start.run_id})
        raise KeyboardInterrupt

    recipe = get_recipe("lenet5", data="digits")
    monkeypatch.setattr("convoy.training.run.train", stop)
    convoy("train", "lenet5", "--out", "one", "--device", "cpu", "--devices", "2", "--strategy", "ddp")
    convoy("train", "--resume", "one.partial")
    convoy("train", "--resume", "one.partial", "--devices", "1")
    assert [(hardware.device, hardware.devices, hardware.strategy) for hardware in ran_on] == [
        ("cpu", 2, "ddp"), ("cpu", 2, "ddp"), ("cpu", 1, "ddp"),
    ]  # fmt: skip


def test_another_run_is_told_apart_before_data_is_read(convoy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, checkpoints: Checkpoints, **__: Any) -> None:
        start = Start(run_id="one", recipe=get_recipe("lenet5", data="digits"), seed=0, dataset_sha256="0" * 64)
        checkpoints.save({"of": checkpoints.begin(start).run_id})
        raise KeyboardInterrupt

    monkeypatch.setattr("convoy.training.run.train", interrupt)
    convoy("train", "lenet5", "--out", "one")
    monkeypatch.setattr("convoy.training.data.load_dataset", lambda *_, **__: pytest.fail("data was read"))
    result = convoy("train", "lenet5", "--set", "epochs=3", "--seed", "1", "--resume", "one.partial")
    assert isinstance(result.exception, UsageError)
    assert "cannot go on with seed=1 instead of 0; epochs=3 instead of 30. Give" in str(result.exception)


def test_a_test_split_that_the_export_cannot_decide_on_is_said_at_the_start(convoy: Any) -> None:
    result = convoy("train", "lenet5", *QUICK)
    assert "the test split holds 40 images; with fewer than 100" in result.stderr


def test_a_finished_run_has_nothing_to_go_on_with(convoy: Any) -> None:
    assert convoy("train", "lenet5", *QUICK, "--out", "one").exit_code == 0
    result = convoy("train", "--resume", "one")
    assert isinstance(result.exception, UsageError)
    assert "has come to its end" in str(result.exception)


def test_what_fails_before_its_first_step_leaves_nothing(convoy: Any, tmp_path: Path) -> None:
    (tmp_path / "no-weights").write_bytes(b"")
    result = convoy("train", "transfer", "--weights", "no-weights", "--set", "backbone=lenet5", "--set", "image_size_px=28")
    assert result.exit_code == 1
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["no-weights"]


def test_a_run_folder_gives_weights_and_the_next_step_names_the_model_after_the_data(convoy: Any) -> None:
    assert convoy("train", "lenet5", *QUICK, "--out", "donor").exit_code == 0
    how = ("--set", "backbone=lenet5", "--set", "image_size_px=28", "--set", "dropout=0", "--set", "head_epochs=0")
    result = convoy("train", "transfer", *QUICK, "--data", "digits", "--weights", "donor", *how, "--out", "refined")
    assert result.exit_code == 0, result.output
    assert "Next: convoy export refined --name digits" in result.output


def test_weights_from_a_file_and_from_nowhere_contradict_each_other(convoy: Any) -> None:
    result = convoy("train", "transfer", "--weights", "file", "--set", "weights=none")
    assert isinstance(result.exception, UsageError)
    assert "--set weights=none contradict each other" in str(result.exception)


def test_a_folder_of_images_is_recorded_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_digits: Dataset
) -> None:
    monkeypatch.chdir(tmp_path)
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
    monkeypatch.setattr("convoy.training.data.load_dataset", lambda name, **kwargs: replace(few_digits, name=name))
    result = CliRunner().invoke(program, ["train", "lenet5", "--data", "photos", *QUICK, "--out", "one"])
    assert result.exit_code == 0, result.output
    assert load_run(tmp_path / "one").run.recipe.data == str(tmp_path / "photos")


def test_recipes_lists_what_train_knows(convoy: Any) -> None:
    result = convoy("recipes")
    assert result.exit_code == 0
    assert "lenet5" in result.stdout
    names = [recipe["name"] for recipe in json.loads(convoy("recipes", "--json").stdout)]
    assert names == [*recipe_names(), *READER_RECIPES]


def test_recipes_of_one_lists_every_field_that_set_changes(convoy: Any) -> None:
    result = convoy("recipes", "lenet5", "--data", "mnist")
    assert result.exit_code == 0
    for setting in settings(get_recipe("lenet5", data="mnist")):
        assert setting.key in result.stdout
    assert "section II.B" in result.stdout
    assert json.loads(convoy("recipes", "lenet5", "--json").stdout) == get_recipe("lenet5").model_dump(mode="json")


def test_recipes_needs_no_torch() -> None:
    call = "import sys; from convoy.cli.program import program; program(['recipes', 'lenet5'], standalone_mode=False)"
    code = f"{call}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\nFalse\n")
