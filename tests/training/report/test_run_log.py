from __future__ import annotations

import sys
from pathlib import Path

import pytest

from convoy.contract.errors import MissingDependencyError, UsageError
from convoy.training.report import logging_listener
from convoy.training.report.run_log import RunLog, final_scalars, parameters
from convoy.training.run import TrainedRun

SCALARS = {"train/loss", "train/top1_error", "validation/loss", "validation/top1_error", "learning_rate", "images_per_second"}


def play(log: RunLog, run: TrainedRun) -> None:
    """Tell a log what the loop told when the run was trained."""
    log.on_start(epochs=3, images_per_epoch=96)
    for record in run.metrics.history:
        log.on_step(n_images=96)
        log.on_epoch(record, is_best=record.epoch == run.metrics.best_epoch)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, as far as a log reads it."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("run")
    (folder / "report.html").write_text("<html></html>")
    (folder / "weights.safetensors").write_bytes(b"weights")
    Image.new("RGB", (5, 4), (255, 0, 0)).save(folder / "curves.png")
    return folder


def test_tensorboard_reads_back_epochs_result_recipe_and_pictures(tmp_path: Path, trained: TrainedRun, folder: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe, history = trained.record.recipe, trained.metrics.history
    with logging_listener("tensorboard", tmp_path, recipe, "mine") as log:
        assert log.place == str(tmp_path / "mine")
        play(log, trained)
        log.finish(trained.metrics, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    events = EventAccumulator(str(tmp_path / "mine"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == SCALARS | final_scalars(trained.metrics).keys()
    losses = events.Scalars("validation/loss")
    assert [event.step for event in losses] == [1, 2, 3]
    assert [event.value for event in losses] == pytest.approx([record.validation_loss for record in history])
    assert events.Scalars("images_per_second")[0].value == pytest.approx(96 / history[0].seconds)
    assert events.Scalars("test/top1_error")[0].value == pytest.approx(trained.metrics.test_top1_error)
    assert events.Tags()["images"] == ["curves"]
    assert (events.Images("curves")[0].width, events.Images("curves")[0].height) == (5, 4)
    (text,) = events.Tensors("recipe/text_summary")
    assert b"| batch_size | 32 |" in text.tensor_proto.string_val[0]


def test_a_run_that_was_broken_off_keeps_its_epochs_in_tensorboard(tmp_path: Path, trained: TrainedRun) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def break_off() -> None:
        with logging_listener("tensorboard", tmp_path, trained.record.recipe, "mine") as log:
            play(log, trained)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    events = EventAccumulator(str(tmp_path / "mine"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == SCALARS


@pytest.fixture
def mlflow_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, and no setting of the person who runs the tests."""
    pytest.importorskip("mlflow")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_back(store: Path, monkeypatch: pytest.MonkeyPatch, experiment: str = "convoy"):
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient(tracking_uri=store.as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return client, run


def test_mlflow_reads_back_epochs_result_recipe_and_files(
    mlflow_at: Path, trained: TrainedRun, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, history = trained.record.recipe, trained.metrics.history
    with logging_listener("mlflow", mlflow_at / "logs", recipe, "mine") as log:
        play(log, trained)
        log.finish(trained.metrics, folder)
    assert [path.name for path in mlflow_at.iterdir()] == ["logs"]
    client, run = read_back(mlflow_at / "logs" / "mlruns", monkeypatch)
    assert run.info.run_id in log.place
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    assert run.data.params == {name: str(value) for name, value in parameters(recipe).items()}
    assert run.data.params["batch_size"] == "32"
    assert run.data.metrics.keys() == SCALARS | final_scalars(trained.metrics).keys()
    assert run.data.metrics["test/top1_error"] == trained.metrics.test_top1_error
    losses = client.get_metric_history(run.info.run_id, "validation/loss")
    assert [(metric.step, metric.value) for metric in losses] == [(record.epoch, record.validation_loss) for record in history]
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"curves.png", "report.html"}


def test_mlflow_writes_where_the_environment_says(
    mlflow_at: Path, trained: TrainedRun, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (mlflow_at / "elsewhere").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "digits")
    for _ in range(2):  # the experiment is there the second time
        with logging_listener("mlflow", mlflow_at / "logs", trained.record.recipe, "mine") as log:
            log.finish(trained.metrics, folder)
    assert [path.name for path in mlflow_at.iterdir()] == ["elsewhere"]
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient(tracking_uri=(mlflow_at / "elsewhere").as_uri())
    assert len(client.search_runs([client.get_experiment_by_name("digits").experiment_id])) == 2


def test_a_run_that_was_broken_off_has_failed_in_mlflow(
    mlflow_at: Path, trained: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_off() -> None:
        with logging_listener("mlflow", mlflow_at, trained.record.recipe, "mine") as log:
            play(log, trained)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    _, run = read_back(mlflow_at / "mlruns", monkeypatch)
    assert run.info.status == "FAILED"
    assert run.data.metrics.keys() == SCALARS


def test_a_log_that_cannot_be_written_to_any_more_does_not_cost_the_training(
    mlflow_at: Path, trained: TrainedRun, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import shutil

    with logging_listener("mlflow", mlflow_at, trained.record.recipe, "mine") as log:
        shutil.rmtree(mlflow_at / "mlruns")
        play(log, trained)
        log.finish(trained.metrics, folder)
    assert len(caplog.records) == 5  # three epochs, the result, the end
    assert all("could not be written to, training goes on" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow"])
def test_a_place_that_cannot_be_written_to_is_named_before_training(mlflow_at: Path, trained: TrainedRun, kind: str) -> None:
    pytest.importorskip(kind)
    (mlflow_at / "file").touch()
    with pytest.raises(UsageError, match=rf"--log {kind}: a run cannot be begun there: .*file"):
        logging_listener(kind, mlflow_at / "file", trained.record.recipe, "mine")


@pytest.mark.parametrize(("kind", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow")])
def test_a_missing_package_is_named_with_what_to_install(
    tmp_path: Path, trained: TrainedRun, monkeypatch: pytest.MonkeyPatch, kind: str, package: str
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package or name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"--log {kind} needs {package}.*pip install '\.\[log\]'"):
        logging_listener(kind, tmp_path, trained.record.recipe, "mine")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_log_is_refused(tmp_path: Path, trained: TrainedRun) -> None:
    with pytest.raises(UsageError, match="--log wandb: expected tensorboard or mlflow"):
        logging_listener("wandb", tmp_path, trained.record.recipe, "mine")


def test_neither_package_is_imported_before_it_is_asked_for() -> None:
    import subprocess

    code = "import sys, convoy.training.run_folder; print(sorted({'tensorboard', 'mlflow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
