"""``convoy demo``: the main job, end to end, on data that comes along."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convoy.cli.console import json_option, print_json

if TYPE_CHECKING:
    from convoy.contract.bundle import Bundle
    from convoy.export import EvaluationSet
    from convoy.serving.triton import TritonServer
    from convoy.training.run_folder import LoadedRun

_MARK = ".convoy-demo"


@click.command("demo")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="demo",
    show_default=True,
    help="The work folder; an older demo in it is replaced.",
)
@json_option
def command(out: Path, as_json: bool) -> None:
    """Train LeNet5 on handwritten digits, export and validate it, serve it with NVIDIA Triton, and call it.

    All of it is real: the digits (1,797 of them, bundled with scikit-learn), the training, the ONNX file and its proof, the Triton
    server, the calls over gRPC and REST, the batch scoring. Exit status 1 where the served accuracy is not the trained one.
    """
    demo = _Demo(out, quiet=as_json)
    figures = demo.run()
    if as_json:
        print_json(figures)
    demo.check()


class _Demo:
    """The story, stage by stage; each stage reads what the one before it wrote."""

    def __init__(self, out: Path, *, quiet: bool) -> None:
        self._out = out
        self._quiet = quiet
        self._started = time.perf_counter()
        self._figures: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """Tell the story from the first image to the last figure."""
        from convoy.cli.subject import test_split
        from convoy.serving.triton import TritonServer

        _make_room(self._out)
        run = self._train()
        evaluation = test_split(run)
        bundle = self._export(run, evaluation)
        repository = self._deploy(bundle)
        self._say("4  Serve", "starting NVIDIA Triton ...")
        with TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0, log_path=self._out / "triton.log") as server:
            self._say("", f"ready: gRPC {server.grpc_url}, REST {server.http_url}, metrics {server.metrics_url}")
            self._classify(server, bundle, evaluation)
            self._score(server, bundle, evaluation)
        self._say("7  Stop", "Triton has shut down; nothing of it is left")
        self._figures["seconds"] = round(time.perf_counter() - self._started, 1)
        self._sum_up()
        return self._figures

    def check(self) -> None:
        """Raise where the three accuracies are not one.

        Raises:
            ValidationFailedError: They differ.
        """
        from convoy.contract.errors import ValidationFailedError

        answers = self._figures["classified"]
        if answers["gRPC"] != answers["REST"]:
            raise ValidationFailedError(f"expected the same answers over gRPC and REST, found {answers}.")
        accuracies = self._figures["accuracy"]
        if len(set(accuracies.values())) != 1:
            raise ValidationFailedError(f"expected one accuracy in PyTorch, in ONNX Runtime and served, found {accuracies}.")

    def _train(self) -> LoadedRun:
        from convoy.cli.train import training_bar
        from convoy.training.data import DataLocation, load_dataset
        from convoy.training.recipes import get_recipe
        from convoy.training.run import train
        from convoy.training.run_folder import load_run, write_run

        recipe = get_recipe("lenet5")
        dataset = load_dataset(
            recipe.data, validation_fraction=recipe.validation_fraction, location=DataLocation.from_environment()
        )
        self._say("1  Train", f"LeNet5 on {len(dataset.train):,} handwritten digits ({recipe.data}) ...")
        folder = self._out / "run"
        with training_bar() as listener:
            trained = train(recipe, dataset, listener=listener)
        write_run(folder, trained)
        run = load_run(folder)
        how = f"{run.run.n_parameters:,} parameters, {len(run.metrics.history)} epochs, {run.metrics.seconds:.0f} s"
        self._say("", f"{how}; learning curves in {folder / 'curves.png'}")
        return run

    def _export(self, run: LoadedRun, evaluation: EvaluationSet) -> Bundle:
        from convoy.cli.subject import facts_of
        from convoy.export import export_classifier

        self._say("2  Export", "to ONNX, then PyTorch against ONNX Runtime on the test images ...")
        bundle = export_classifier(run.classifier, facts_of(run), evaluation, self._out / "export")
        bundle.require_passed()
        accuracy = bundle.report.accuracy
        if accuracy is not None:  # a passed report has one
            self._figures["accuracy"] = {"pytorch": accuracy.pytorch, "onnxruntime": accuracy.onnxruntime}
        manifest = bundle.manifest
        what = f"opset {manifest.opset_version}, batches of up to {manifest.max_batch_size}"
        self._say("", f"{len(bundle.report.checks)} checks passed; {what}; report in {bundle.folder / 'validation.json'}")
        return bundle

    def _deploy(self, bundle: Bundle) -> Path:
        from convoy.serving.repository import Repository

        repository = self._out / "model_repository"
        done = Repository(repository).deploy(bundle)
        self._say("3  Deploy", f"{done.model_name} version {done.version} in {repository}")
        return repository

    def _classify(self, server: TritonServer, bundle: Bundle, evaluation: EvaluationSet) -> None:
        from convoy.serving.client import Client

        chosen = evaluation.goldens()[:10]  # the first test image of each class
        self._say("5  Classify", f"the digits {' '.join(str(label) for label in evaluation.labels[chosen])}")
        for wire, url in (("gRPC", server.grpc_url), ("REST", server.http_url)):
            with Client(url) as client:
                predictions = client.classify("lenet5", evaluation.images[chosen])
            answers = [prediction.label for prediction in predictions]
            least = min(prediction.probability for prediction in predictions)
            right = sum(answer == bundle.manifest.labels[i] for answer, i in zip(answers, evaluation.labels[chosen], strict=True))
            self._say("", f"{wire} reads   {' '.join(answers)}   ({right} of {len(answers)} right, the least sure at {least:.0%})")
            self._figures.setdefault("classified", {})[wire] = answers

    def _score(self, server: TritonServer, bundle: Bundle, evaluation: EvaluationSet) -> None:
        from convoy.serving.scoring import score

        source = _write_images(self._out / "test-images", bundle, evaluation)
        scores = self._out / "scores"
        self._say("6  Score", f"{len(evaluation)} test images from {source} ...")
        summary = score("lenet5", source, scores, url=server.grpc_url, labels_from_folders=True).finish()
        self._figures["accuracy"]["served"] = summary.accuracy
        self._say("", f"{summary.n_scored} scored, {summary.n_failed} failed, {summary.throughput_ips:,.0f} images/s; {scores}")

    def _sum_up(self) -> None:
        accuracy = self._figures["accuracy"]
        names = {"pytorch": "PyTorch", "onnxruntime": "ONNX Runtime", "served": "served by Triton"}
        line = ", ".join(f"{names[name]} {value:.2%}" for name, value in accuracy.items())
        self._say("", "")
        self._say("Accuracy", line)
        self._say("Time", f"{self._figures['seconds']:.0f} s")
        self._say("Yours now", f"convoy serve --repository {self._out / 'model_repository'}   (then: convoy predict lenet5 IMAGE)")

    def _say(self, stage: str, what: str) -> None:
        if not self._quiet:
            click.echo(f"{stage:12}{what}".rstrip())


def _make_room(out: Path) -> None:
    """An empty work folder: an older demo's is replaced, any other is left alone."""
    from convoy.contract.errors import UsageError

    if out.exists() and any(out.iterdir()):
        if not (out / _MARK).exists():
            raise UsageError(f"{out}: holds files that no demo made; name another folder with --out.")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARK).touch()


def _write_images(folder: Path, bundle: Bundle, evaluation: EvaluationSet) -> Path:
    """The test images as PNG files, in one folder a class, as people keep them."""
    from PIL import Image

    for name in bundle.manifest.labels:
        (folder / name).mkdir(parents=True)
    for i, (pixels, label) in enumerate(zip(evaluation.images, evaluation.labels, strict=True)):
        flat = pixels[..., 0] if pixels.shape[2] == 1 else pixels
        Image.fromarray(flat).save(folder / bundle.manifest.labels[label] / f"{i:05}.png")
    return folder
