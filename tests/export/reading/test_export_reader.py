from __future__ import annotations

import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from convoy.cli.program import program
from convoy.contract.bundle import Bundle
from convoy.contract.errors import ContractError, UsageError, ValidationFailedError
from convoy.contract.goldens import Goldens
from convoy.contract.image import ImageSpec
from convoy.contract.reading import OUTPUT_NAMES
from convoy.export import export_classifier, export_reader, replay_goldens
from convoy.export.gate.runtime import open_session, run_session
from convoy.export.graph.exporting import ExportedGraph


def test_an_export_passes_and_says_what_it_is(reader_bundle, reader_case) -> None:
    manifest = reader_bundle.manifest
    assert reader_bundle.report.verdict == "passed", reader_bundle.report.why()
    assert manifest.task == "amount-reading"
    assert manifest.reading == reader_case.facts.reading
    dims = {tensor.name: (tensor.datatype, tensor.dims) for tensor in (*manifest.inputs, *manifest.outputs)}
    assert dims == {
        "image": ("UINT8", (32, -1, 1)), "width": ("INT64", (1,)), "characters": ("INT64", (3, 15)),
        "n_characters": ("INT64", (3,)), "positions": ("INT64", (3, 15, 2)), "posteriors": ("FP32", (3,)),
        "confidence": ("FP32", (1,)),
    }  # fmt: skip
    assert set(reader_bundle.report.tolerances) == set(OUTPUT_NAMES)
    assert [reader_bundle.report.tolerances[name].atol for name in OUTPUT_NAMES[:3]] == [0, 0, 0]
    accuracy = reader_bundle.report.accuracy
    assert accuracy is not None
    assert accuracy.n == 52  # the fields whose amounts are known
    uncovered = {check.name for check in reader_bundle.report.checks if check.verdict == "uncovered"}
    assert "errors by layer" in uncovered


def test_the_file_is_tidy(reader_bundle) -> None:
    data = reader_bundle.model_path.read_bytes()
    proto = onnx.load_model_from_string(data)
    assert b"site-packages" not in data
    assert b".py" not in data
    kinds = {node.op_type for node in proto.graph.node}
    assert kinds.isdisjoint({"BatchNormalization", "CastLike", "Loop", "If"})
    symbols = {
        dim.dim_param for value in proto.graph.input for dim in value.type.tensor_type.shape.dim if dim.HasField("dim_param")
    }
    assert symbols == {"batch", "columns"}
    assert not re.search(rb"\bs\d+\b", b" ".join(name.encode() for name in sorted(_symbols(proto.graph))))
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    assert facts["task"] == "amount-reading"
    assert '"grammar": "digits"' in facts["reading"]


def _symbols(graph: onnx.GraphProto) -> set[str]:
    found = {dim.dim_param for value in graph.value_info for dim in value.type.tensor_type.shape.dim}
    return found.union(*(_symbols(attribute.g) for node in graph.node for attribute in node.attribute if attribute.g.node))


def test_goldens_are_of_one_width_and_come_back(reader_bundle, tmp_path) -> None:
    goldens = reader_bundle.goldens()
    assert len(goldens) == 16
    assert list(goldens.inputs) == ["image", "width"]
    assert tuple(goldens.outputs) == OUTPUT_NAMES
    assert goldens.truth.dtype.kind == "U"
    goldens.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (reader_bundle.folder / "goldens.npz").read_bytes()
    answers = run_session(open_session(reader_bundle.model_path), goldens.inputs, 3)
    for name, expected in goldens.outputs.items():
        assert reader_bundle.compare(name, expected, answers[name]).passed


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("width", lambda values: values.astype(np.int32)),
        ("characters", lambda values: values[:, :, :-1]),
        ("positions", lambda values: values[..., :1]),
        ("posteriors", lambda values: values.astype(np.float64)),
        ("confidence", lambda values: values[:-1]),
        ("text", lambda values: np.arange(len(values))),
    ],
)
def test_goldens_that_do_not_belong_together_are_refused(reader_bundle, tmp_path, name, make) -> None:
    with np.load(reader_bundle.folder / "goldens.npz") as archive:
        arrays = dict(archive)
    np.savez(tmp_path / "goldens.npz", **{**arrays, name: make(arrays[name])})
    with pytest.raises(ContractError, match="do not belong together"):
        Goldens.load(tmp_path / "goldens.npz")


def test_a_replay_holds_whole_numbers_to_be_equal(reader_bundle, tmp_path) -> None:
    assert all(check.verdict == "passed" for check in replay_goldens(reader_bundle))
    folder = tmp_path / "other"
    shutil.copytree(reader_bundle.folder, folder)
    goldens = reader_bundle.goldens()
    moved = {name: values.copy() for name, values in goldens.outputs.items()}
    moved["positions"][3, 0, 0, 0] += 4
    Goldens(goldens.inputs, moved, goldens.truth).save(folder / "goldens.npz")
    other = Bundle.seal(folder, reader_bundle.manifest, reader_bundle.report)
    wrong = [check for check in replay_goldens(other) if check.verdict == "failed"]
    assert [check.name for check in wrong] == ["positions, 16 goldens in ONNX Runtime"]
    assert (wrong[0].expected, wrong[0].detail) == ("equal", "worst: row 3")


def test_page_and_card_speak_of_fields_and_amounts(reader_bundle) -> None:
    page = (reader_bundle.folder / "validation.html").read_text()
    assert "<dt>Grammar</dt><dd>digits</dd>" in page
    assert "The worst field" in page
    assert "logits" not in page
    card = (reader_bundle.folder / "README.md").read_text()
    assert card.count("```") % 2 == 0
    assert "A reader of amounts in fields of writing, with 10 characters" in card
    assert "(N, 32, any, 1)" in card
    assert 'client.read_amount("field.png", model_name="reader")' in card
    assert "pipeline_tag: image-to-text" in card
    assert "logits" not in card
    block = card.split("alone:\n\n```python\n")[1].split("```")[0]
    lines = block.replace('"manifest.json"', repr(str(reader_bundle.folder / "manifest.json")))
    exec(compile(lines.replace('"model.onnx"', repr(str(reader_bundle.model_path))), "README.md", "exec"), {})


def test_facts_that_are_not_the_readers_are_refused(reader_case, tmp_path) -> None:
    case, facts = reader_case, reader_case.facts
    image = facts.image
    for changed, told in (
        ({"labels": facts.labels[::-1]}, "labels: expected"),
        ({"reading": None}, "expected what a reader of amounts answers"),
        ({"reading": facts.reading.model_copy(update={"n_best": 2})}, "n_best: expected 3, the reader's, found 2"),
        ({"temperature": 2.0}, "temperature: expected 1.0"),
        ({"image": image.model_copy(update={"widths_px": (30, 128)})}, r"multiples of 4 from 32 to 4096, found \[30\]"),
        ({"image": ImageSpec(height_px=32, width_px=128, channels=1)}, "image resize: expected 'height'"),
    ):
        with pytest.raises(UsageError, match=told):
            export_reader(case.reader, replace(facts, **changed), case.evidence, tmp_path / "out")
    with pytest.raises(UsageError, match="exported by export_reader"):
        export_classifier(case.reader, facts, case.evidence, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_validate_replays_the_goldens_and_run_asks_for_a_readers_run(reader_bundle, tmp_path) -> None:
    done = CliRunner().invoke(program, ["validate", str(reader_bundle.folder)])
    assert done.exit_code == 0, done.output
    assert "characters, 16 goldens in ONNX Runtime" in done.output
    refused = CliRunner().invoke(program, ["validate", str(reader_bundle.folder), "--run", str(tmp_path)])
    assert isinstance(refused.exception, UsageError)


def test_a_failed_gate_is_written_down_with_a_field_that_shows_it(reader_bundle, reader_case, tmp_path, monkeypatch) -> None:
    from convoy.export.reading import bundling

    proto = onnx.load(reader_bundle.model_path)
    weight = next(one for one in proto.graph.initializer if one.name == "network.c3.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(0.02), weight.name))
    monkeypatch.setattr(bundling, "reader_to_onnx", lambda reader, height_px: ExportedGraph(proto, None))
    evidence = replace(reader_case.evidence, fields=reader_case.evidence.fields[:3], texts=reader_case.evidence.texts[:3])
    bundle = export_reader(reader_case.reader, reader_case.facts, evidence, tmp_path / "out")
    assert bundle.report.verdict == "failed"
    with pytest.raises(ValidationFailedError, match="amounts, batches of 8"):
        bundle.require_passed()
    assert bundle.report.worst is not None
    assert bundle.report.worst.reproducer == "reproducer.npz"
    shown = Goldens.load(tmp_path / "out" / "reproducer.npz")
    assert len(shown) == 1
    answers = run_session(open_session(bundle.model_path), shown.inputs, 1)
    assert (answers["characters"] != shown.outputs["characters"]).any()


def test_a_readers_run_is_told_by_its_record_and_has_no_lower_precision(tmp_path) -> None:
    (tmp_path / "run.json").write_text('{"kind": "amount-reading"}')
    refused = CliRunner().invoke(program, ["export", str(tmp_path), "--precision", "fp16"])
    assert isinstance(refused.exception, UsageError)
    assert "computes in float32 alone" in str(refused.exception)


def test_export_says_that_a_reader_without_a_threshold_accepts_nothing(reader_bundle, tmp_path, monkeypatch) -> None:
    assert reader_bundle.manifest.reading.accept is None
    subject = SimpleNamespace(folder_name="reader", export=lambda *_: reader_bundle)
    monkeypatch.setattr("convoy.cli.export.open_subject", lambda _: subject)
    done = CliRunner().invoke(program, ["export", str(tmp_path), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert [line for line in done.stderr.splitlines() if "accepts no amount" in line and "all go to a person" in line]
