"""``python -m benchmarks.graph_speed``: our exported file against plain ``torch.onnx.export`` of the same network.

Both hold the same preprocessing and softmax, so that both do the same work, and run in turns in one process, in ONNX Runtime on the
CPU with its own optimisations. A ratio above 1 says that ours is faster.

The bound is not 1: two sessions of one and the same file differ by a few percent in this measurement, which the figures named
"the same file twice" show.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Final

import click
import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from benchmarks._networks import build_subject, size_of
from benchmarks.harness import Figure, benchmark, interleave, ratios, seconds
from convoy.contract.errors import ExportError, UsageError
from convoy.contract.manifest import INPUT_NAME, LOGITS_NAME, PROBABILITIES_NAME
from convoy.export.graph.exporting import to_onnx
from convoy.export.graph.servable import Servable
from convoy.export.graph.targets import OPSET_VERSION

GOAL: Final = ">= 0.95"
NETWORKS: Final = {
    "lenet5": 0,
    "resnet18": 128,
    "mobilenet_v3_small": 128,
    "regnet_y_400mf": 128,
    "efficientnet_b0": 128,
    "densenet121": 128,
    "shufflenet_v2_x0_5": 128,
    "convnext_tiny": 128,
    "vit_b_32": 128,
    "swin_t": 128,
}
"""With the height and width of the images in pixels; 0: as the recipe says."""
_LEAST_SECONDS: Final = 0.05
"""Of a sample: short enough that what the machine does besides falls on both, long enough for the clock."""


@benchmark("graph_speed", packages=("torch", "torchvision", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime", "numpy"))
@click.option("--networks", help=f"Only these, separated by commas; all: {', '.join(NETWORKS)}.")
@click.option("--rounds", default=21, show_default=True, type=click.IntRange(3, 1001), help="How often each is measured.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1, 64), help="Of ONNX Runtime, for one session.")
@click.option("--batch-size", default=4, show_default=True, type=click.IntRange(1, 256), help="Images a call.")
def main(networks: str | None, rounds: int, threads: int, batch_size: int) -> Iterable[Figure]:
    """Measure our graph beside the plain exporter's, network by network."""
    chosen = NETWORKS if networks is None else {name: NETWORKS.get(name, size_of(name)) for name in networks.split(",")}
    if not chosen:
        raise UsageError("--networks: expected a name at least.")
    for name, size_px in chosen.items():
        click.echo(f"{name} ...", err=True)
        yield from compare_graphs(name, size_px or None, rounds=rounds, threads=threads, batch_size=batch_size)


def compare_graphs(name: str, size_px: int | None, *, rounds: int, threads: int, batch_size: int) -> list[Figure]:
    """The figures of one network.

    Args:
        name: The network.
        size_px: The height and width of its images; None takes the recipe's.
        rounds: How often each file is measured.
        threads: Of ONNX Runtime.
        batch_size: Images a call.

    Raises:
        ExportError: One of the exporters refuses the network, or the two files do not answer alike.
    """
    subject = build_subject(name, batch_size, size_px=size_px)
    images = np.resize(subject.test, (batch_size, *subject.image.dims))
    ours = to_onnx(subject.classifier, subject.image).proto.SerializeToString(deterministic=True)
    plain = export_plainly(subject.classifier, images)
    sessions = {"ours": _open(ours, threads), "again": _open(ours, threads), "plain": _open(plain, threads)}
    answers = {case: session.run([LOGITS_NAME], {INPUT_NAME: images})[0] for case, session in sessions.items()}
    largest = float(np.abs(answers["plain"]).max())
    if not np.allclose(answers["ours"], answers["plain"], rtol=0, atol=1e-3 * largest):
        raise ExportError(f"{name}: expected two files of one network to answer alike, found logits that differ.")
    calls = {case: _call(session, images) for case, session in sessions.items()}
    times = max(1, round(_LEAST_SECONDS / seconds(calls["plain"], 2)))
    samples = interleave({case: _sample(call, times) for case, call in calls.items()}, rounds, warm_up=2)
    return [
        Figure.of(f"{name}: ours", [1000 * each / batch_size for each in samples["ours"]], "ms/image"),
        Figure.of(f"{name}: plain", [1000 * each / batch_size for each in samples["plain"]], "ms/image"),
        Figure.of(f"{name}: plain over ours", ratios(samples["plain"], samples["ours"]), "ratio", GOAL),
        Figure.of(f"{name}: the same file twice", ratios(samples["again"], samples["ours"]), "ratio"),
    ]


def export_plainly(classifier: torch.nn.Module, images: npt.NDArray[np.uint8]) -> bytes:
    """The file that ``torch.onnx.export`` writes by itself, of the module with its softmax.

    Args:
        classifier: uint8 (N, H, W, C) to logits.
        images: uint8 (n, H, W, C), the example.

    Raises:
        ExportError: It refuses the network.
    """
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            logging.getLogger("torch").setLevel(logging.CRITICAL)
            program = torch.onnx.export(
                Servable(classifier).eval(),
                (torch.from_numpy(images[:2]),),
                dynamo=True,
                opset_version=OPSET_VERSION,
                input_names=[INPUT_NAME],
                output_names=[LOGITS_NAME, PROBABILITIES_NAME],
                dynamic_shapes={INPUT_NAME: {0: "batch"}},
            )
    except Exception as error:
        raise ExportError(f"torch.onnx.export alone refuses it: {type(error).__name__}") from error
    if program is None:
        raise ExportError("torch.onnx.export alone gave no program.")
    model: bytes = program.model_proto.SerializeToString()
    return model


def _open(model: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the next session in turn has the cores to itself
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _call(session: onnxruntime.InferenceSession, images: npt.NDArray[np.uint8]) -> Callable[[], Any]:
    return lambda: session.run([LOGITS_NAME, PROBABILITIES_NAME], {INPUT_NAME: images})


def _sample(call: Callable[[], Any], times: int) -> Callable[[], float]:
    return lambda: seconds(call, times)


if __name__ == "__main__":
    main()
