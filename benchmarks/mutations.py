"""Break exported files at random places: which faults does the gate catch, and which does the diagnosis locate at the node?"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import click
import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

import benchmarks._mutation_kinds  # noqa: F401 registers them
from benchmarks._mutation_site import KINDS, Site
from benchmarks.harness import Figure, benchmark
from convoy.contract.agreement import Tolerance
from convoy.contract.errors import UsageError
from convoy.contract.image import ImageSpec
from convoy.contract.manifest import Preprocessing
from convoy.contract.validation import Fault
from convoy.export.diagnosis import Trace, find_fault, trace_network
from convoy.export.diagnosis.running import as_datatype
from convoy.export.gate.evidence import EvaluationSet, Exhibits, edge_images
from convoy.export.gate.gate import Border, Failure, run_gate
from convoy.export.gate.reference import TorchSource
from convoy.export.gate.runtime import open_session
from convoy.export.gate.source import Outputs, Source, Truth
from convoy.export.graph.exporting import ExportedGraph, to_onnx
from convoy.training.networks.classifier import ImageClassifier
from convoy.training.networks.lenet5 import LeNet5
from convoy.training.networks.preprocessing import PixelPreprocessing

NETWORKS: Final = (
    "lenet5", "resnet18", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "densenet121",
    "efficientnet_b0", "googlenet", "swin_t",
)  # fmt: skip
N_CLASSES: Final = 10
N_IMAGES: Final = 100
BATCH_SIZE: Final = 8
BATCH_SIZES: Final = (1, 3, BATCH_SIZE)
_EPS: Final = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Subject:
    """One network with its export and what both answer.

    Attributes:
        name: Its name.
        graph: The export.
        source: PyTorch.
        evaluation: Random images.
        border: What a manifest would say.
        values: What each value of the export holds for the first two images, by name.
        expected: PyTorch's float32 answers for all images, edge images too, by output.
        bounds: How far another float32 implementation may lie from them.
    """

    name: str
    graph: ExportedGraph
    source: Source
    evaluation: EvaluationSet
    border: Border
    values: Mapping[str, npt.NDArray[Any]]
    expected: Outputs
    bounds: Mapping[str, Tolerance]

    @property
    def exhibits(self) -> Exhibits:
        """All images that the gate looks at."""
        return Exhibits.of(self.evaluation, self.border.image)


@dataclass(frozen=True)
class Outcome:
    """What became of one mutation.

    Attributes:
        network: The network.
        kind: The kind of mutation.
        matters: Whether it changes a decision or moves an output beyond the bound, or breaks the file, judged without the gate.
        caught: Whether a check of the gate failed.
        located: Whether the diagnosis named a node that was mutated.
        seconds: How long the diagnosis took, its trace included; None where it was not asked.
        story: What was done and what was said, for people.
    """

    network: str
    kind: str
    matters: bool
    caught: bool
    located: bool
    seconds: float | None
    story: str


class Remembering:
    """A source that answers the same question once: every mutation of a network asks PyTorch the same."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._known: dict[tuple[str, int, bytes], Any] = {}
        self.kind = source.kind
        self.title = source.title

    def float32(self, images: npt.NDArray[np.uint8], batch_size: int) -> Outputs:
        """As the source answers."""
        outputs: Outputs = self._ask("float32", images, batch_size)
        return outputs

    def float64(self, images: npt.NDArray[np.uint8], batch_size: int) -> Truth:
        """As the source answers."""
        truth: Truth = self._ask("float64", images, batch_size)
        return truth

    def _ask(self, what: str, images: npt.NDArray[np.uint8], batch_size: int) -> Any:
        key = (what, batch_size, images.tobytes())
        if key not in self._known:
            self._known[key] = getattr(self._source, what)(images, batch_size)
        return self._known[key]


def build(name: str, seed: int) -> tuple[nn.Module, ImageSpec]:
    """A network with random weights, behind preprocessing; batch norms hold the statistics of random and edge images.

    Without the edge images, which are far from random ones, some networks answer them with numbers that only rounding decides.

    Raises:
        UsageError: There is no such network.
    """
    torch.manual_seed(seed)
    if name == "lenet5":
        image = ImageSpec(height_px=28, width_px=28, channels=1)
        return _behind_preprocessing(LeNet5(N_CLASSES), image).eval(), image
    import torchvision

    options: dict[str, Any] = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    try:
        network = torchvision.models.get_model(name, weights=None, num_classes=N_CLASSES, **options)
    except ValueError as error:
        raise UsageError(f"expected lenet5 or a network of torchvision, found {name!r}.") from error
    image = ImageSpec(height_px=64, width_px=64, channels=3)
    classifier = _behind_preprocessing(network, image)
    _calibrate(classifier, np.concatenate([draw_images(image, 16, seed + 1), edge_images(image)]))
    return classifier.eval(), image


def _behind_preprocessing(network: nn.Module, image: ImageSpec) -> ImageClassifier:
    mean, std = ((0.13,), (0.31,)) if image.channels == 1 else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    facts = Preprocessing(polarity="as-is", scale=1 / 255, mean=mean, std=std)
    return ImageClassifier(PixelPreprocessing(facts), network)


def _calibrate(classifier: nn.Module, images: npt.NDArray[np.uint8]) -> None:
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain mean over what is run
    with torch.no_grad():
        classifier.train()(torch.from_numpy(images))


def draw_images(image: ImageSpec, n: int, seed: int) -> npt.NDArray[np.uint8]:
    """Random images with structure at several scales: uint8, shape (n, H, W, C)."""
    rng = np.random.default_rng(seed)
    height, width, channels = image.dims
    total = np.zeros((n, height, width, channels))
    for cell in (1, 4, 14 if height % 14 == 0 else 16):
        coarse = rng.normal(size=(n, height // cell, width // cell, channels))
        total += coarse.repeat(cell, axis=1).repeat(cell, axis=2)
    return np.clip(128 + 45 * total, 0, 255).astype(np.uint8)


def prepare(name: str, seed: int) -> Subject:
    """Build a network, export it, and ask PyTorch."""
    classifier, image = build(name, seed)
    images = draw_images(image, N_IMAGES, seed + 2)
    evaluation = EvaluationSet("random images", images, np.arange(N_IMAGES) % N_CLASSES)
    border = Border(image, tuple(f"class {i}" for i in range(N_CLASSES)), BATCH_SIZE)
    graph = to_onnx(classifier, image)
    source = Remembering(TorchSource(classifier))
    everything = Exhibits.of(evaluation, image).images
    expected = source.float32(everything, BATCH_SIZE)
    truth = source.float64(everything, BATCH_SIZE).outputs
    trace = trace_network(graph, images[:2])
    values = {name: as_datatype(value, None) for name, value in trace.values.items()} | {"image": images[:2]}
    bounds = {name: _bound(expected[name], truth[name]) for name in expected}
    return Subject(name, graph, source, evaluation, border, values, expected, bounds)


def _bound(expected: npt.NDArray[Any], truth: npt.NDArray[Any]) -> Tolerance:
    """16 times PyTorch's own float32 error over all images; the gate derives its own, from fewer."""
    own = float(np.abs(expected.astype(np.float64) - truth).max())
    return Tolerance(atol=16 * max(own, _EPS * float(np.abs(truth).max())), rtol=16 * _EPS)


def matters(model: bytes, subject: Subject) -> bool:
    """Whether a file answers beyond the bound, decides otherwise, or fails, at any of three batch sizes; without the gate."""
    images = subject.exhibits.images
    try:
        session = open_session(model, threads=1)
        for size in BATCH_SIZES:
            chosen = images[: max(size, len(images) if size == BATCH_SIZE else 24)]
            for start in range(0, len(chosen), size):
                arrays = session.run(list(subject.expected), {"image": chosen[start : start + size]})
                if any(
                    not _is_within(expected[start : start + size], actual, subject.bounds[name])
                    for (name, expected), actual in zip(subject.expected.items(), arrays, strict=True)
                ):
                    return True
    except Exception:  # noqa: BLE001 ONNX Runtime's exceptions have no public common base
        return True
    return False


def _is_within(expected: npt.NDArray[Any], actual: npt.NDArray[Any], bound: Tolerance) -> bool:
    """A decision cannot change beyond a tie where every element lies within the bound."""
    if expected.shape[1:] != actual.shape[1:] or not np.isfinite(actual).all():
        return False
    expected = expected[: len(actual)]
    return bool((np.abs(actual.astype(np.float64) - expected) <= bound.allowed(expected)).all())


def ask_gate(model: bytes, subject: Subject) -> tuple[bool, Failure | None]:
    """Whether a check of the gate fails, and where its answers were wrong."""
    findings = run_gate(model, subject.source, subject.evaluation, subject.border)
    return any(check.verdict == "failed" for check in findings.checks), findings.failure


def diagnose(model: bytes, subject: Subject, failure: Failure | None, traces: dict[tuple[int, ...], Trace]) -> Fault | None:
    """What the diagnosis says, on the images that the gate found worst."""
    exhibits = subject.exhibits
    indices = failure.indices[:2] if failure is not None else (0, 1)
    if indices not in traces:
        traces[indices] = trace_network(subject.graph, exhibits.images[list(indices)])
    names = [exhibits.name(index) for index in indices]
    return find_fault(
        model,
        traces[indices],
        exhibits.images[list(indices)],
        names,
        failing_batch_size=failure.batch_size if failure else BATCH_SIZE,
    )


def mutate(subject: Subject, count: int, seed: int) -> Iterator[Outcome]:
    """Break the export ``count`` times, each kind in turn, at random nodes."""
    rng = np.random.default_rng(seed)
    traces: dict[tuple[int, ...], Trace] = {}
    left = {kind: list(rng.permutation(len(subject.graph.proto.graph.node))) for kind in rng.permutation(list(KINDS))}
    done = 0
    while done < count and any(left.values()):
        for kind, places in left.items():
            while places and done < count:
                model, blame, title = _mutant(subject, str(kind), int(places.pop()), rng)
                if blame is None:
                    continue
                done += 1
                yield _try(subject, str(kind), model, blame, title, traces)
                break


def _mutant(subject: Subject, kind: str, place: int, rng: np.random.Generator) -> tuple[onnx.ModelProto, set[str] | None, str]:
    model = onnx.ModelProto()
    model.CopyFrom(subject.graph.proto)
    node = model.graph.node[place]
    title = f"{node.name} ({node.op_type})"
    return model, KINDS[kind](Site(model, node, subject.values, rng)), title


def _try(
    subject: Subject, kind: str, model: onnx.ModelProto, blame: set[str], title: str, traces: dict[tuple[int, ...], Trace]
) -> Outcome:
    data = model.SerializeToString()
    caught, failure = ask_gate(data, subject)
    if not matters(data, subject):
        return Outcome(subject.name, kind, False, caught, False, None, f"{kind} at {title}")
    start = time.perf_counter()
    fault = diagnose(data, subject, failure, traces)
    seconds = time.perf_counter() - start
    found = f"{fault.node}: {fault.cause}" if fault else "nothing"
    story = f"{kind} at {title}: {'caught' if caught else 'missed'}, found {found}"
    return Outcome(subject.name, kind, True, caught, fault is not None and fault.node in blame, seconds, story)


def score(outcomes: list[Outcome], n_false_alarms: int) -> Iterator[Figure]:
    """The figures of all mutations together, then by kind and by network."""
    real = [outcome for outcome in outcomes if outcome.matters]
    if not real:
        raise UsageError("expected a mutation that changes an answer at least, found none: raise --count.")
    yield Figure(name="mutations that matter", value=len(real), unit="mutations", goal=">= 200")
    yield Figure(name="equivalent mutations", value=len(outcomes) - len(real), unit="mutations")
    yield Figure(name="unchanged exports that fail", value=n_false_alarms, unit="networks", goal="== 0")
    yield Figure(name="caught", value=_share(real, "caught"), unit="share", goal="== 1.0")
    yield Figure(name="located", value=_share(real, "located"), unit="share", goal=">= 0.95")
    yield Figure.of("diagnosis", [outcome.seconds for outcome in real if outcome.seconds is not None], "s")
    for what in ("kind", "network"):
        for name in dict.fromkeys(getattr(outcome, what) for outcome in real):
            part = [outcome for outcome in real if getattr(outcome, what) == name]
            yield Figure(name=f"caught: {name}", value=_share(part, "caught"), unit=f"share of {len(part)}")
            yield Figure(name=f"located: {name}", value=_share(part, "located"), unit=f"share of {len(part)}")


def _share(outcomes: list[Outcome], what: str) -> float:
    return sum(bool(getattr(outcome, what)) for outcome in outcomes) / len(outcomes)


@benchmark("mutations", packages=("torch", "torchvision", "onnx", "onnxruntime-gpu", "numpy"))
@click.option("--networks", default=",".join(NETWORKS), show_default=True, help="lenet5 and names of torchvision, with commas.")
@click.option("--count", default=300, show_default=True, type=click.IntRange(min=1), help="Mutations over all networks.")
@click.option("--seed", default=0, show_default=True, help="Of weights, images and mutations.")
@click.option("--tell", is_flag=True, help="Tell every mutation on stderr, not only those missed or not located.")
def main(networks: str, count: int, seed: int, tell: bool) -> Iterator[Figure]:
    """Score the gate and the diagnosis on random mutations of exported networks."""
    names = [name.strip() for name in networks.split(",") if name.strip()]
    if not names:
        raise UsageError("expected a network at least, found none in --networks.")
    outcomes: list[Outcome] = []
    n_false_alarms = 0
    for i, name in enumerate(names):
        start = time.perf_counter()
        subject = prepare(name, seed)
        unchanged = subject.graph.proto.SerializeToString()
        failed, _ = ask_gate(unchanged, subject)
        if failed or diagnose(unchanged, subject, None, {}) is not None:
            n_false_alarms += 1
            print(f"{name}: the unchanged export fails", file=sys.stderr)
        share = count * (i + 1) // len(names) - count * i // len(names)
        for outcome in mutate(subject, share, seed + i):
            outcomes.append(outcome)
            if tell or (outcome.matters and not (outcome.caught and outcome.located)):
                print(f"{name}: {outcome.story}", file=sys.stderr)
        print(f"{name}: {share} mutations in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return score(outcomes, n_false_alarms)


if __name__ == "__main__":
    main()
