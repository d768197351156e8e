from __future__ import annotations

import errno
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from convoy.contract.errors import ContractError, TrainingError, UsageError
from convoy.training.data import Dataset
from convoy.training.loop import Checkpoints, EpochRecord, Hardware, Listener
from convoy.training.loop.checkpoint import CHECKPOINT_FILE, find_partial
from convoy.training.recipes import Recipe, get_recipe
from convoy.training.run import TrainedRun, train

CPU = Hardware(device="cpu")
# everything that a checkpoint has to hold: momentum, an average, draws of images, of distortions and of blends
EVERYTHING = (
    *("epochs=3", "batch_size=16", "averaging=ema", "sampling=balanced", "augmentation.mixup_alpha=0.2"),
    *("schedule=plateau", "schedule_epochs=1"),
)


class StopAfter(Listener):
    """Breaks off as a crash would: in the middle of an epoch, with what was kept so far on disk."""

    def __init__(self, n_steps: int) -> None:
        self.left = n_steps

    def on_step(self, *, n_images: int) -> None:
        if self.left == 0:
            raise ZeroDivisionError
        self.left -= 1


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return get_recipe("lenet5", assignments=EVERYTHING)


@pytest.fixture(scope="module")
def unbroken(recipe: Recipe, few_digits: Dataset) -> TrainedRun:
    return train(recipe, few_digits, seed=5, hardware=CPU)


def stop(folder: Path, recipe: Recipe, dataset: Dataset, *, n_steps: int) -> Checkpoints:
    keeper = Checkpoints(folder, every_s=0)
    with pytest.raises(ZeroDivisionError):
        train(recipe, dataset, seed=5, hardware=CPU, checkpoints=keeper, listener=StopAfter(n_steps))
    return keeper


@pytest.mark.parametrize("n_steps", [0, 1, 4, 6, 11, 17])  # 6 steps an epoch: before, in and at the end of epochs
def test_a_run_that_goes_on_reaches_the_same_weights(
    tmp_path: Path, recipe: Recipe, few_digits: Dataset, unbroken: TrainedRun, n_steps: int
) -> None:
    stop(tmp_path / "run.partial", recipe, few_digits, n_steps=n_steps)
    done = train(recipe, few_digits, seed=5, hardware=CPU, checkpoints=Checkpoints(tmp_path / "run.partial", every_s=0))
    assert done.weights == unbroken.weights
    assert done.metrics.best_epoch == unbroken.metrics.best_epoch

    def facts(record: EpochRecord) -> dict[str, Any]:
        return record.model_dump(exclude={"seconds"})

    assert list(map(facts, done.metrics.history)) == list(map(facts, unbroken.metrics.history))


def test_who_listens_hears_where_it_goes_on(tmp_path: Path, recipe: Recipe, few_digits: Dataset) -> None:
    class Ear(Listener):
        images = 0

        def on_resume(self, *, epochs_done: int, n_images: int) -> None:
            self.resumed = (epochs_done, n_images)

        def on_step(self, *, n_images: int) -> None:
            self.images += n_images

    keeper, ear = stop(tmp_path / "run.partial", recipe, few_digits, n_steps=8), Ear()
    train(recipe, few_digits, seed=5, hardware=CPU, checkpoints=keeper, listener=ear)
    assert ear.resumed == (1, 96 + 2 * 16)
    assert ear.images == 3 * 96 - (96 + 2 * 16)


@pytest.mark.parametrize(
    ("change", "seed", "message"),
    [
        ("learning_rate=0.5", 5, r"cannot go on with learning_rate=0.5 instead of 0.003\."),
        ("augmentation.shift_px=1", 5, r"with augmentation.shift_px=1.0 instead of 2.0\."),
        ("epochs=3", 6, r"with seed=6 instead of 5\."),
    ],
)
def test_another_recipe_or_seed_is_refused_with_what_differs(
    tmp_path: Path, recipe: Recipe, few_digits: Dataset, change: str, seed: int, message: str
) -> None:
    keeper = stop(tmp_path / "run.partial", recipe, few_digits, n_steps=1)
    other = get_recipe("lenet5", assignments=[*EVERYTHING, change])
    with pytest.raises(UsageError, match=message):
        train(other, few_digits, seed=seed, hardware=CPU, checkpoints=keeper)


def test_other_data_is_refused(tmp_path: Path, recipe: Recipe, few_digits: Dataset, digits: Dataset) -> None:
    keeper = stop(tmp_path / "run.partial", recipe, few_digits, n_steps=1)
    with pytest.raises(UsageError, match="other data"):
        train(recipe, digits, seed=5, hardware=CPU, checkpoints=keeper)


@pytest.mark.parametrize("where", ["write", "fsync"])
def test_a_full_disk_loses_no_earlier_checkpoint(
    tmp_path: Path, recipe: Recipe, few_digits: Dataset, unbroken: TrainedRun, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    keeper = stop(tmp_path / "run.partial", recipe, few_digits, n_steps=4)
    before = (tmp_path / "run.partial" / CHECKPOINT_FILE).read_bytes()

    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if where == "fsync":
            patch.setattr("os.fsync", full)
        else:
            patch.setattr("convoy.training.loop.checkpoint._Witness.write", failing_write(after_bytes=10_000))
        with pytest.raises(TrainingError, match=r"No space left on device.*the one before it is whole.*--resume"):
            train(recipe, few_digits, seed=5, hardware=CPU, checkpoints=keeper)
    assert sorted(path.name for path in (tmp_path / "run.partial").iterdir()) == [CHECKPOINT_FILE, "start.json"]
    assert (tmp_path / "run.partial" / CHECKPOINT_FILE).read_bytes() == before
    done = train(recipe, few_digits, seed=5, hardware=CPU, checkpoints=keeper)
    assert done.weights == unbroken.weights


def failing_write(*, after_bytes: int) -> Any:
    left = after_bytes

    def write(self: Any, data: bytes) -> int:
        nonlocal left
        left -= len(data)
        if left < 0:
            self.error = OSError(errno.ENOSPC, "No space left on device")
            raise self.error
        return int(self._file.write(data))

    return write


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, recipe: Recipe, few_digits: Dataset) -> None:
    keeper = stop(tmp_path / "run.partial", recipe, few_digits, n_steps=2)
    path = tmp_path / "run.partial" / CHECKPOINT_FILE
    whole = path.read_bytes()
    for damaged in (whole[:-100], b"", b"no checkpoint"):
        path.write_bytes(damaged)
        with pytest.raises(ContractError, match="damaged"):
            train(recipe, few_digits, seed=5, hardware=CPU, checkpoints=keeper)
    torch.save({"form": 0}, path)
    with pytest.raises(ContractError, match="of this version"):
        train(recipe, few_digits, seed=5, hardware=CPU, checkpoints=keeper)


def test_a_checkpoint_runs_no_code(tmp_path: Path, recipe: Recipe, few_digits: Dataset) -> None:
    keeper = stop(tmp_path / "run.partial", recipe, few_digits, n_steps=1)

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"form": 1, "state": Evil()}, tmp_path / "run.partial" / CHECKPOINT_FILE)
    with pytest.raises(ContractError, match="damaged"):
        train(recipe, few_digits, seed=5, hardware=CPU, checkpoints=keeper)
    assert not (tmp_path / "touched").exists()


def test_a_stopped_run_is_found_by_each_of_its_names(tmp_path: Path, recipe: Recipe, few_digits: Dataset) -> None:
    partial = tmp_path / "run.partial"
    stop(partial, recipe, few_digits, n_steps=1)
    for name in (partial, partial / CHECKPOINT_FILE, tmp_path / "run"):
        assert find_partial(name) == partial
    with pytest.raises(UsageError, match="expected a run that was stopped before its end"):
        find_partial(tmp_path / "other")


PROGRAM = [sys.executable, "-c", "from convoy.cli import main; main()", "train"]
SHORT = ("lenet5", "--device", "cpu", "--set", "epochs=2", "--set", "batch_size=64", "--set", "averaging=ema", "--seed", "3")


def test_a_process_that_is_killed_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = subprocess.run([*PROGRAM, *SHORT, "--out", "whole", "--json"], cwd=tmp_path, capture_output=True, check=True)
    checkpoint = tmp_path / "broken.partial" / CHECKPOINT_FILE
    chance, started, n_kills = random.Random(1998), False, 0
    while n_kills < 2:
        arguments = ("--resume", "broken") if started else (*SHORT, "--out", "broken")
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        with subprocess.Popen(
            [*PROGRAM, *arguments, "--checkpoint-every", "0"], cwd=tmp_path, stderr=subprocess.DEVNULL
        ) as process:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline and process.poll() is None:
                if checkpoint.exists() and checkpoint.stat().st_mtime_ns != before:
                    break  # it is training, and a step is kept
                time.sleep(0.01)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=chance.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
        started, n_kills = True, n_kills + 1
    done = subprocess.run([*PROGRAM, "--resume", "broken", "--json"], cwd=tmp_path, capture_output=True, check=True)
    assert json.loads(done.stdout)["weights_sha256"] == json.loads(whole.stdout)["weights_sha256"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "whole"]
