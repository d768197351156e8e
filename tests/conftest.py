"""Readers of amounts: one made by hand, for the tests that need a real ONNX file of one, and one that was exported.

And for all tests: examples may take their time, and what a test changes for the whole process it changes back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings

from convoy.contract.bundle import Bundle
from convoy.contract.image import ImageSpec
from convoy.contract.manifest import INTERFACE_PARAMETER, Manifest, ModelInterface, TensorSpec
from convoy.contract.reading import OperatingPoint, ReadingSpec
from convoy.contract.validation import ValidationReport

if TYPE_CHECKING:
    from convoy.export import FieldSet, ModelFacts
    from convoy.training.check_reader.reader import AmountReader

settings.register_profile("convoy", deadline=None)  # a busy machine is no fault of what is tested
settings.load_profile("convoy")

READER_HEIGHT_PX = 8

READER = """
<ir_version: 8, opset_import: ["" : 17]>
reader (uint8[n, 8, w, 1] image, int64[n, 1] width)
  => (int64[n, 2, 4] characters, int64[n, 2] n_characters, int64[n, 2, 4, 2] positions,
      float[n, 2] posteriors, float[n, 1] confidence)
<
  int64 zero = {0}, int64 one = {1}, int64[1] two = {2}, int64[1] three = {3}, int64[1] ten = {10}, int64[1] hundred = {100},
  int64[3] powers = {100, 10, 1}, int64[3] places = {0, 1, 2}, int64[2] counts = {3, 2}, float[2] shares = {0.75, 0.25},
  int64[1] first = {0}, int64[1] axis1 = {1}, int64[1] axis2 = {2}, int64[2] around = {1, 3}, int64[3] all = {1, 2, 3},
  int64 wide = {2}, int64[1] minus = {-1}, float[1] parts = {100.0}
>
{
  pixels = Cast <to = 7> (image)
  shape = Shape (image)
  columns = Gather (shape, wide)
  numbers = Range (zero, columns, one)
  inside = Less (numbers, width)
  counted = Cast <to = 7> (inside)
  mask = Unsqueeze (counted, around)
  ink = Mul (pixels, mask)
  total = ReduceSum <keepdims = 0> (ink, all)
  sum = Unsqueeze (total, axis1)
  nothing = Mul (sum, zero)
  none = Add (nothing, minus)
  parts_of_sum = Div (sum, powers)
  digits = Mod (parts_of_sum, ten)
  two_digits = Slice (digits, first, two, axis1)
  longer = Concat <axis = 1> (digits, none)
  shorter = Concat <axis = 1> (two_digits, none, none)
  longer_one = Unsqueeze (longer, axis1)
  shorter_one = Unsqueeze (shorter, axis1)
  characters = Concat <axis = 1> (longer_one, shorter_one)
  n_characters = Add (nothing, counts)
  left_thirds = Mul (width, places)
  left = Div (left_thirds, three)
  next_places = Add (places, one)
  right_thirds = Mul (width, next_places)
  right_ends = Div (right_thirds, three)
  at_least = Add (left, one)
  right = Max (right_ends, at_least)
  lefts = Unsqueeze (left, axis2)
  rights = Unsqueeze (right, axis2)
  spans = Concat <axis = 2> (lefts, rights)
  two_spans = Slice (spans, first, two, axis1)
  behind_one = Unsqueeze (none, axis2)
  behind = Concat <axis = 2> (behind_one, behind_one)
  longer_spans = Concat <axis = 1> (spans, behind)
  shorter_spans = Concat <axis = 1> (two_spans, behind, behind)
  longer_places = Unsqueeze (longer_spans, axis1)
  shorter_places = Unsqueeze (shorter_spans, axis1)
  positions = Concat <axis = 1> (longer_places, shorter_places)
  empty = Cast <to = 1> (nothing)
  posteriors = Add (empty, shares)
  hundredths = Mod (sum, hundred)
  fraction = Cast <to = 1> (hundredths)
  confidence = Div (fraction, parts)
}
"""
"""Reads of a field the last three digits of the sum of its pixels, or the first two of these; sure to as many hundredths as the sum
has behind its hundreds."""


def reader_interface() -> ModelInterface:
    """What the reader takes and answers; it accepts from a confidence of 0.5 on."""
    tensors = {
        "characters": ("INT64", (2, 4)),
        "n_characters": ("INT64", (2,)),
        "positions": ("INT64", (2, 4, 2)),
        "posteriors": ("FP32", (2,)),
        "confidence": ("FP32", (1,)),
    }
    return ModelInterface(
        task="amount-reading",
        labels=tuple("0123456789"),
        image=ImageSpec(height_px=READER_HEIGHT_PX, width_px=64, channels=1, resize="height", widths_px=(16, 32, 64)),
        reading=ReadingSpec(
            grammar="digits", n_best=2, max_characters=4, accept=OperatingPoint(threshold=0.5, coverage=0.5, error=0.0, n=100)
        ),
        inputs=(
            TensorSpec(name="image", datatype="UINT8", dims=(READER_HEIGHT_PX, -1, 1)),
            TensorSpec(name="width", datatype="INT64", dims=(1,)),
        ),
        outputs=tuple(TensorSpec(name=name, datatype=datatype, dims=dims) for name, (datatype, dims) in tensors.items()),
    )


def write_reader_folder(repository: Path, name: str = "check-reader", *, sealed: bool = False) -> Path:
    """Write the reader as version 1 of a model into a repository; with the files of an export where it is ``sealed``."""
    import onnx.parser

    folder = repository / name / "1"
    folder.mkdir(parents=True)
    onnx.save(onnx.parser.parse_model(READER), folder / "model.onnx")
    interface = reader_interface()
    if sealed:
        seal(folder, name, interface)
    types = {"UINT8": "TYPE_UINT8", "INT64": "TYPE_INT64", "FP32": "TYPE_FP32"}

    def tensors(specs: tuple[TensorSpec, ...]) -> str:
        return ", ".join(f'{{ name: "{one.name}" data_type: {types[one.datatype]} dims: {list(one.dims)} }}' for one in specs)

    escaped = interface.model_dump_json().replace("\\", "\\\\").replace('"', '\\"')
    (repository / name / "config.pbtxt").write_text(
        f"""
name: "{name}"
backend: "onnxruntime"
max_batch_size: 8
input [ {tensors(interface.inputs)} ]
output [ {tensors(interface.outputs)} ]
instance_group [ {{ count: 1 kind: KIND_AUTO }} ]
version_policy {{ specific {{ versions: [ 1 ] }} }}
dynamic_batching {{ }}
parameters {{ key: "{INTERFACE_PARAMETER}" value {{ string_value: "{escaped}" }} }}
"""
    )
    return repository / name


def seal(folder: Path, name: str, interface: ModelInterface) -> None:
    """Write the files of an export beside the model; its report and its goldens say nothing."""
    np.savez(folder / "goldens.npz")
    manifest = Manifest(
        model_name=name,
        task=interface.task,
        labels=interface.labels,
        image=interface.image,
        reading=interface.reading,
        inputs=interface.inputs,
        outputs=interface.outputs,
        max_batch_size=8,
        opset_version=17,
        ir_version=8,
        weights_sha256="0" * 64,
        accuracy=None,
        versions={},
    )
    report = ValidationReport(model_name=name, verdict="undecided", checks=(), tolerances={}, accuracy=None, versions={})
    Bundle.seal(folder, manifest, report)


def read_by_hand(field: np.ndarray) -> tuple[str, float]:
    """What the reader reads of a field of its height, and how sure it is."""
    total = int(field.astype(np.int64).sum())
    return f"{total % 1000:03}", total % 100 / 100


@pytest.fixture(scope="module", autouse=True)
def threads_stay() -> Iterator[None]:
    """What a module's tests change for all of torch they change back: another number of threads gives other last digits."""
    before = _n_threads()
    yield
    assert before is None or _n_threads() == before, "torch has another number of threads than before these tests"


def _n_threads() -> int | None:
    torch = sys.modules.get("torch")
    return None if torch is None else int(torch.get_num_threads())


@pytest.fixture(scope="session")
def write_reader() -> Callable[..., Path]:
    """Writes the reader into a repository: ``(repository, name="check-reader", *, sealed=False)`` -> its folder."""
    return write_reader_folder


@pytest.fixture(scope="session")
def expected_reading() -> Callable[[Any], tuple[str, float]]:
    """What the reader reads of a field of its height, 8 pixels, as ``(text, confidence)``."""
    return read_by_hand


@dataclass(frozen=True)
class ReaderCase:
    """A small untrained reader of digits, and strokes that it reads as something."""

    reader: AmountReader
    facts: ModelFacts
    evidence: FieldSet


def make_reader_case() -> ReaderCase:
    import torch

    from convoy.contract.field import to_field
    from convoy.export import FieldSet, ModelFacts
    from convoy.training.check_reader.grammar import load_grammar
    from convoy.training.check_reader.reader import AmountReader
    from convoy.training.check_reader.sliding import SlidingLeNet5

    torch.manual_seed(0)
    grammar = load_grammar("digits")
    alphabet = "".join(grammar.alphabet)
    network = SlidingLeNet5(len(alphabet) + 1, channels=(3, 6, 24, 16), batch_norm=True)
    with torch.no_grad():
        network.output.weight.mul_(400)  # scores that lie apart, as trained ones do
        network.after_c1.running_mean.uniform_(-0.2, 0.2)
    reader = AmountReader(network, grammar, alphabet).eval()
    reader.confidence_scale.fill_(0.1)
    reader.confidence_shift.fill_(1.0)
    image = ImageSpec(height_px=32, width_px=128, channels=1, resize="height", widths_px=(64, 128))
    reading = ReadingSpec(grammar="digits", n_best=3, max_characters=15)
    facts = ModelFacts("reader", tuple(alphabet), image, max_batch_size=8, reading=reading)
    rng = np.random.default_rng(0)
    fields = tuple(to_field(draw_strokes(rng, image.width_px), image) for _ in range(104))
    with torch.no_grad():  # no class wins everywhere
        pixels = torch.from_numpy(np.stack([field.pixels for field in fields if field.pixels.shape[1] == image.width_px]))
        scores, _ = reader.scores(pixels, torch.full((len(pixels),), image.width_px))
        network.output.bias.sub_(scores.mean((0, 1)))
    texts = tuple(str(rng.integers(1, 100)) if number % 2 else "" for number in range(len(fields)))
    return ReaderCase(reader, facts, FieldSet("strokes", fields, texts, digits=True))


def draw_strokes(rng: np.random.Generator, widest_px: int) -> np.ndarray:
    """Dark strokes on paper, of some width."""
    width = int(rng.integers(20, widest_px))
    field = rng.integers(200, 240, (32, width), dtype=np.uint8)
    for left in range(3, width - 6, int(rng.integers(8, 20))):
        field[6:26, left : left + int(rng.integers(1, 6))] = rng.integers(0, 80)
    return field


@pytest.fixture(scope="session")
def reader_case() -> ReaderCase:
    """See ``ReaderCase``."""
    return make_reader_case()


@pytest.fixture(scope="session")
def reader_bundle(reader_case: ReaderCase, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Its export, for all tests: one takes half a minute."""
    from convoy.export import export_reader

    return export_reader(reader_case.reader, reader_case.facts, reader_case.evidence, tmp_path_factory.mktemp("reader") / "export")


@pytest.fixture
def run_convoy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run ``convoy ...`` in this process; gives exit code, stdout and stderr."""
    from convoy.cli import main

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["convoy", *map(str, arguments)])
        code: Any = 0
        try:
            main()
        except SystemExit as done:
            code = done.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
