from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from convoy.contract.errors import UsageError
from convoy.contract.field import FieldPixels
from convoy.contract.goldens import Arrays
from convoy.contract.reading import CONFIDENCE_NAME, POSTERIORS_NAME
from convoy.contract.validation import Check
from convoy.export import FieldSet
from convoy.export.reading.evidence import EDGES, FieldExhibits
from convoy.export.reading.gate import run_reading_gate
from convoy.export.reading.source import Answers, ReaderSource, same_amounts
from convoy.training.check_reader.reader import AmountReader

Mutation = Callable[[onnx.ModelProto], None]


class RememberingSource(ReaderSource):
    """Asks PyTorch each question once: the tests of many files ask the same."""

    def __init__(self, reader: AmountReader) -> None:
        super().__init__(reader)
        self.float32 = cache_by_bytes(super().float32)
        self.float64 = cache_by_bytes(super().float64)


def cache_by_bytes(answer: Callable[[Arrays], Answers]) -> Callable[[Arrays], Answers]:
    known: dict[tuple[bytes, ...], Answers] = {}

    def ask(inputs: Arrays) -> Answers:
        key = tuple(values.tobytes() for values in inputs.values())
        if key not in known:
            known[key] = answer(inputs)
        return known[key]

    return ask


class Leaky(nn.Module):
    """Standardising that takes the whole image for the field."""

    def __init__(self, standardising: nn.Module) -> None:
        super().__init__()
        self.standardising = standardising

    def forward(self, image: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
        return self.standardising(image, torch.full_like(width, image.shape[2]))


@pytest.fixture(scope="session")
def source(reader_case) -> ReaderSource:
    return RememberingSource(reader_case.reader)


@pytest.fixture(scope="session")
def few(reader_case) -> FieldSet:
    """Too few to pass, enough to fail on."""
    evidence = reader_case.evidence
    return replace(evidence, fields=evidence.fields[:4], texts=evidence.texts[:4])


@pytest.fixture(scope="session")
def model(reader_bundle) -> bytes:
    return reader_bundle.model_path.read_bytes()


def failed(model: bytes, source: ReaderSource, evidence: FieldSet, case) -> list[Check]:
    findings = run_reading_gate(model, source, evidence, case.facts.reading_border)
    return [check for check in findings.checks if check.verdict == "failed"]


def initializer(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(one for one in proto.graph.initializer if one.name == name)


def change(proto: onnx.ModelProto, name: str, make: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = initializer(proto, name)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(make(values.copy()).astype(values.dtype), name))


def a_weight_is_off(proto: onnx.ModelProto) -> None:
    def nudge(weight: np.ndarray) -> np.ndarray:
        weight.reshape(-1)[7] += 0.02
        return weight

    change(proto, "network.c3.weight", nudge)


def two_labels_are_swapped(proto: onnx.ModelProto) -> None:
    classes = numpy_helper.to_array(initializer(proto, "decoder.lattice.classes"))
    swapped = np.where(classes == 3, 6, np.where(classes == 6, 3, classes))
    proto.graph.initializer.append(numpy_helper.from_array(swapped, "swapped"))
    makers = {output: node for node in proto.graph.node for output in node.output}
    node = makers["characters"]
    while "decoder.lattice.classes" not in node.input:
        node = makers[node.input[0]]
    node.input[list(node.input).index("decoder.lattice.classes")] = "swapped"


def the_confidence_is_of_another_scale(proto: onnx.ModelProto) -> None:
    change(proto, "confidence_scale", lambda scale: scale * 1.001)


def the_confidence_is_no_number(proto: onnx.ModelProto) -> None:
    change(proto, "confidence_scale", lambda scale: scale * np.nan)


def what_stands_right_of_the_field_counts(proto: onnx.ModelProto) -> None:
    cast = next(node for node in proto.graph.node if node.op_type == "Cast" and node.output[0] == "convert_element_type_default")
    cast.op_type = "Max"  # 1 inside and outside
    del cast.attribute[:]
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((1, 1, 1, 1)), "ones"))
    before, cast.input[0] = cast.input[0], "inside"
    cast.input.append("ones")
    where = list(proto.graph.node).index(cast)
    proto.graph.node.insert(where, helper.make_node("Cast", [before], ["inside"], to=onnx.TensorProto.DOUBLE))


def characters_stand_elsewhere(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(numpy_helper.from_array(np.array(4), "further"))
    maker = next(node for node in proto.graph.node if "positions" in node.output)
    maker.output[0] = "positions_before"
    proto.graph.node.append(helper.make_node("Add", ["positions_before", "further"], ["positions"]))


def the_batch_is_frozen(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8


def the_columns_are_frozen(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 128


MUTATIONS: dict[Mutation, str] = {
    a_weight_is_off: "amounts|posteriors",
    two_labels_are_swapped: "amounts",
    the_confidence_is_of_another_scale: "confidence",
    the_confidence_is_no_number: "confidence",
    what_stands_right_of_the_field_counts: "amounts|posteriors",
    characters_stand_elsewhere: "amounts",
    the_batch_is_frozen: "names, datatypes",
    the_columns_are_frozen: "names, datatypes",
}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_a_fault_fails_the_gate(mutation: Mutation, model, source, few, reader_case) -> None:
    proto = onnx.load_model_from_string(model)
    mutation(proto)
    found = failed(proto.SerializeToString(), source, few, reader_case)
    assert found
    assert any(check.name.startswith(tuple(MUTATIONS[mutation].split("|"))) for check in found)
    assert all(check.expected and check.found for check in found)


def test_the_file_itself_passes_but_for_too_little_evidence(model, source, few, reader_case) -> None:
    findings = run_reading_gate(model, source, few, reader_case.facts.reading_border)
    verdicts = {check.name: check.verdict for check in findings.checks if check.verdict not in ("passed", "uncovered")}
    assert verdicts == {"enough evidence": "undecided"}


def test_a_reader_that_looks_right_of_its_field_is_refused(reader_case, few) -> None:
    reader = copy.deepcopy(reader_case.reader)
    reader.standardising = Leaky(reader.standardising)
    found = failed(b"no file: the source alone is looked at", ReaderSource(reader), few, reader_case)
    assert any("PyTorch in other company" in check.name for check in found)


def test_a_reader_that_guesses_is_refused(reader_case, few) -> None:
    reader = copy.deepcopy(reader_case.reader)
    reader.network.dropout.p = 0.5
    reader.network.dropout.train()
    found = failed(b"no file: the source alone is looked at", ReaderSource(reader), few, reader_case)
    assert any("PyTorch a second time" in check.name for check in found)


def test_amounts_between_which_rounding_decides_are_ties(reader_case, model, few) -> None:
    reader, proto = copy.deepcopy(reader_case.reader), onnx.load_model_from_string(model)
    bias = reader.network.output.bias.detach()
    with torch.no_grad():
        reader.network.output.weight[7] = reader.network.output.weight[4]  # 3 and 6 look alike
        bias[7] = bias[4] + 2e-5
    change(proto, "network.output.weight", lambda _: reader.network.output.weight.detach().numpy())
    change(proto, "network.output.bias", lambda _: bias.numpy()[[0, 1, 2, 3, 7, 5, 6, 4, 8, 9, 10]])
    source = ReaderSource(reader)
    findings = run_reading_gate(proto.SerializeToString(), source, few, reader_case.facts.reading_border)
    amounts = [check for check in findings.checks if check.name.startswith("amounts, batches of")]
    assert any("ties in float64: field " in check.found for check in amounts)
    assert not [check for check in findings.checks if check.verdict == "failed"]


def test_a_path_scores_what_the_lattice_says(reader_case, source) -> None:
    exhibits = FieldExhibits.of(reader_case.evidence, reader_case.facts.image)
    inputs = exhibits.inputs([0, 1], 128)
    answers = source.float64(inputs)
    with torch.inference_mode():
        scores, lengths = source.double.scores(torch.from_numpy(inputs["image"]), torch.from_numpy(inputs["width"][:, 0]))
        read = source.double.decoder(scores, lengths)
        every = source.double.lattice.log_partition(scores - scores.amax(-1, keepdim=True), lengths)
    np.testing.assert_allclose(source.path_scores(inputs, answers, double=True), (read.path_scores + every[:, None]).numpy())
    one = {name: values[:1] for name, values in answers.items()}
    worth = source.worth({name: values[:1] for name, values in inputs.items()}, one)
    for name in (POSTERIORS_NAME, CONFIDENCE_NAME):
        np.testing.assert_allclose(worth[name], one[name], rtol=1e-9)
    assert same_amounts(answers, answers).all()


@pytest.mark.parametrize("place", [-1, 10])
def test_what_is_no_amount_scores_nothing(reader_case, source, place) -> None:
    inputs = FieldExhibits.of(reader_case.evidence, reader_case.facts.image).inputs([0])
    answers = {name: values.copy() for name, values in source.float32(inputs).items()}
    answers["characters"][0, 0, 0] = place
    answers["positions"][0, 1, 0] = 0, 0
    assert source.path_scores(inputs, answers, double=True)[0, :2].tolist() == [-np.inf, -np.inf]


def test_fields_that_are_none_are_refused(reader_case) -> None:
    pixels = np.zeros((32, 64, 1), np.uint8)
    for fields, texts, told in (
        ((), (), "expected some"),
        ((FieldPixels(pixels, 5, 1.0),), (), "one for each of 1"),
        ((FieldPixels(pixels, 65, 1.0),), ("",), "with a width of 65"),
        ((FieldPixels(pixels.astype(np.float32), 5, 1.0),), ("",), "float32"),
    ):
        with pytest.raises(UsageError, match=told):
            FieldSet("none", fields, texts)
    with pytest.raises(UsageError, match=r"a width of 64, 128, found 32, 1 and 60 \(field 0\)"):
        FieldSet("other", (FieldPixels(pixels[:, :60], 5, 1.0),), ("",)).check(reader_case.facts.image)


def test_exhibits_end_with_the_edges_each_of_another_kind(reader_case) -> None:
    exhibits = FieldExhibits.of(reader_case.evidence, reader_case.facts.image)
    assert len(exhibits) == 104 + len(EDGES)
    assert exhibits.name(len(exhibits) - 1) == "edge field: checkerboard"
    assert {field.width_px for field in exhibits.fields[104:]} >= {1, 128}
    widths = [inputs["image"].shape[2] for _, inputs in exhibits.batches(np.arange(len(exhibits)), 8)]
    assert set(widths) == {64, 128}
    (rows, mixed), *_ = exhibits.batches(np.arange(8), 8, mixed=True)
    assert rows.tolist() == list(range(8))
    assert mixed["image"].shape == (8, 32, 128, 1)
    assert mixed["image"][0, :, int(mixed["width"][0, 0]) :].std() > 50  # noise, which may change nothing
