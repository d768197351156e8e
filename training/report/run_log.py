"""A run in TensorBoard or MLflow, for those who look there: ``convoy train --log``."""

from __future__ import annotations

import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image
from typing_extensions import Self

from convoy.contract.errors import MissingDependencyError, UsageError
from convoy.training.loop.listener import EpochRecord, Listener
from convoy.training.recipes.overrides import settings

if TYPE_CHECKING:
    from convoy.training.recipes.recipe import Recipe
    from convoy.training.run import Metrics

_logger = logging.getLogger(__name__)

KINDS: Final = ("tensorboard", "mlflow")
_MOST_LETTERS: Final = 500  # of a parameter's value: as many as each of MLflow's stores takes


class RunLog(Listener, ABC):
    """Is told how training goes and writes it down elsewhere. Use it in a ``with`` block, and call ``finish`` inside.

    What cannot be written once training runs is warned of and left out.

    Attributes:
        place: Where it writes, for people.
    """

    place: str

    def __init__(self) -> None:
        self._images_per_epoch = 0
        self._finished = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._attempt(lambda: self._close(finished=self._finished))

    def on_start(self, *, epochs: int, images_per_epoch: int) -> None:  # noqa: ARG002
        """Remember what an epoch is."""
        self._images_per_epoch = images_per_epoch

    def on_epoch(self, record: EpochRecord, *, is_best: bool) -> None:  # noqa: ARG002
        """Write what the epoch brought."""
        scalars = {
            "train/loss": record.train_loss,
            "train/top1_error": record.train_top1_error,
            "validation/loss": record.validation_loss,
            "validation/top1_error": record.validation_top1_error,
            "learning_rate": record.learning_rate,
        }
        if record.seconds > 0:
            scalars["images_per_second"] = self._images_per_epoch / record.seconds
        self._attempt(lambda: self._write_scalars(scalars, record.epoch))

    def finish(self, metrics: Metrics, run_folder: Path) -> None:
        """Write what came out.

        Args:
            metrics: How the run went.
            run_folder: Where the run was written: its page and pictures are taken along, its weights are not.
        """
        self._finished = True
        files = [path for path in sorted(run_folder.iterdir()) if path.suffix in (".html", ".json", ".png")]
        self._attempt(lambda: self._write_result(final_scalars(metrics), len(metrics.history), files))

    def _attempt(self, write: Callable[[], None]) -> None:
        """A full disk, or a server that went away, costs the log what it costs; it does not cost the training."""
        try:
            write()
        except Exception as error:  # noqa: BLE001 - what other people's clients raise
            _logger.warning("%s: could not be written to, training goes on: %s", self.place, error)

    @abstractmethod
    def _write_scalars(self, scalars: Mapping[str, float], epoch: int) -> None: ...

    @abstractmethod
    def _write_result(self, scalars: Mapping[str, float], epoch: int, files: Sequence[Path]) -> None: ...

    @abstractmethod
    def _close(self, *, finished: bool) -> None: ...


def parameters(recipe: Recipe) -> dict[str, bool | int | float | str]:
    """What was chosen, by the names that ``--set`` knows."""
    chosen = {"recipe": recipe.name, "network": recipe.network, "data": recipe.data}
    chosen |= {setting.key: setting.value for setting in settings(recipe) if setting.value is not None}
    return {name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in chosen.items()}


def final_scalars(metrics: Metrics) -> dict[str, float]:
    """The figures of a whole run by the names that logs know them by."""
    scalars = {
        "best_epoch": float(metrics.best_epoch),
        "best/validation_loss": metrics.validation_loss,
        "best/validation_top1_error": metrics.validation_top1_error,
        "test/loss": metrics.test_loss,
        "test/top1_error": metrics.test_top1_error,
        "seconds": metrics.seconds,
        "temperature": metrics.temperature,
    }
    if metrics.calibration is not None:
        scalars["test/ece"] = metrics.calibration.test.ece_before
        scalars["test/ece_as_exported"] = metrics.calibration.test.ece_after
    return scalars


def logging_listener(kind: str, folder: Path, recipe: Recipe, run_name: str) -> RunLog:
    """A listener that writes a run to TensorBoard's event files or to an MLflow store.

    Args:
        kind: ``tensorboard``: event files in ``folder/run_name``. ``mlflow``: the store that ``MLFLOW_TRACKING_URI`` names, else
            one of files in ``folder/mlruns``; the experiment is ``MLFLOW_EXPERIMENT_NAME``, else "convoy".
        folder: Where to write.
        recipe: What is trained: the log's hyperparameters.
        run_name: What the run is called there.

    Raises:
        UsageError: There is no such kind, or it cannot be written there.
        MissingDependencyError: Its package is not installed.
    """
    if kind not in KINDS:
        raise UsageError(f"--log {kind}: expected {' or '.join(KINDS)}.")
    try:
        return _TensorBoard(folder / run_name, recipe) if kind == "tensorboard" else _MLflow(folder, recipe, run_name)
    except ImportError as error:
        needed = {"tensorboard": "tensorboard", "mlflow": "mlflow-skinny (or mlflow)"}[kind]
        raise MissingDependencyError(f"--log {kind} needs {needed}: pip install '.[log]' in Convoy's folder.") from error
    except Exception as error:  # what other people's clients raise where a folder is read-only or a server does not answer
        raise UsageError(f"--log {kind}: a run cannot be begun there: {error}") from error


class _TensorBoard(RunLog):
    def __init__(self, folder: Path, recipe: Recipe) -> None:
        from torch.utils.tensorboard import SummaryWriter  # what it imports takes seconds

        super().__init__()
        self.place = str(folder)
        self._settings = parameters(recipe)
        self._writer: Any = SummaryWriter(str(folder))
        rows = "\n".join(f"| {name} | {value} |" for name, value in self._settings.items())
        self._writer.add_text("recipe", f"| field | value |\n|---|---|\n{rows}")

    def _write_scalars(self, scalars: Mapping[str, float], epoch: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def _write_result(self, scalars: Mapping[str, float], epoch: int, files: Sequence[Path]) -> None:
        # a run name of "." keeps the result in the same folder: elsewhere TensorBoard would show two runs
        self._writer.add_hparams(self._settings, dict(scalars), run_name=".", global_step=epoch)
        for path in files:
            if path.suffix == ".png":
                with Image.open(path) as picture:
                    pixels = np.array(picture.convert("RGB"))
                self._writer.add_image(path.stem, pixels, epoch, dataformats="HWC")

    def _close(self, *, finished: bool) -> None:  # noqa: ARG002 - event files know no end
        self._writer.close()


class _MLflow(RunLog):
    def __init__(self, folder: Path, recipe: Recipe, run_name: str) -> None:
        # who trains with Convoy has not been asked whether MLflow may tell its makers about it
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        super().__init__()
        self._metric = Metric
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlruns").resolve().as_uri()
        with _file_store_allowed():
            self._client = MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "convoy"
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment is not None else self._client.create_experiment(name)
        self._run_id: str = self._client.create_run(experiment_id, run_name=run_name).info.run_id
        self.place = f"{uri}, experiment {name}, run {self._run_id}"
        params = [Param(name, str(value)[:_MOST_LETTERS]) for name, value in parameters(recipe).items()]
        self._client.log_batch(self._run_id, params=params)

    def _write_scalars(self, scalars: Mapping[str, float], epoch: int) -> None:
        now_ms = int(time.time() * 1000)
        self._client.log_batch(self._run_id, [self._metric(name, value, now_ms, epoch) for name, value in scalars.items()])

    def _write_result(self, scalars: Mapping[str, float], epoch: int, files: Sequence[Path]) -> None:
        self._write_scalars(scalars, epoch)
        for path in files:
            self._client.log_artifact(self._run_id, str(path))

    def _close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._run_id, "FINISHED" if finished else "FAILED")


@contextmanager
def _file_store_allowed() -> Iterator[None]:
    """MLflow 3 opens a store of files, the one kind that needs neither a server nor a data base, only where it is told to."""
    name = "MLFLOW_ALLOW_FILE_STORE"
    before = os.environ.get(name)
    os.environ.setdefault(name, "true")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
