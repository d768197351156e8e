"""The matrix says what was measured, and fails where a network fails."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import export_matrix
from benchmarks._export_row import Reduced, Row
from benchmarks._networks import FAMILIES, build_subject, gratings, network_names
from benchmarks.harness import document
from convoy.contract.errors import ExportError, UsageError
from convoy.contract.image import ImageSpec

GREEN = Row(
    network="resnet18", size_px=64, images="128 of gratings", verdict="passed", export_s=1.5, gate_s=3.25, peak_mib=1234.5,
    base_mib=700, file_mib=42.7, accuracy=0.5, plain="exported", plain_right=True,
    fp16=Reduced(verdict="passed", seconds=2, accuracy_drop=0.004, speed_up=0.9, size_ratio=0.5),
)  # fmt: skip
RED = Row(
    network="vit_b_16", size_px=64, images="128 of gratings", verdict="failed", why="logits | of\n<batches> of 7",
    plain="exported", plain_right=False, plain_why="batch of 7: max_abs_diff 1923",
    int8=Reduced(verdict="error", why="no such operator"),
)  # fmt: skip
REFUSED = Row(network="swin_t", size_px=64, images="128 of gratings", verdict="error", why="no", plain="ConversionError: no")


def test_all_green_holds():
    result = document("export_matrix", export_matrix.figures_of([GREEN]))
    assert result.holds
    assert {figure.name: figure.value for figure in result.figures}["fp16: passed"] == 1


@pytest.mark.parametrize("row", [RED, REFUSED, GREEN.model_copy(update={"verdict": "undecided"})])
def test_one_that_is_not_green_does_not_hold(row):
    assert not document("export_matrix", export_matrix.figures_of([GREEN, row])).holds


def test_the_page_names_each_network_and_each_reason():
    rows = [GREEN, RED, REFUSED]
    text = export_matrix.page(rows, document("export_matrix", export_matrix.figures_of(rows)), None)
    assert "1 of 3 networks pass" in text
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(table) == 1 + len(rows)
    assert {line.replace("\\|", "").count("|") for line in table} == {12}
    assert "| ResNet | resnet18 | 64 px, 128 of gratings | passed | passed, drop 0.4%, 0.90 x |" in text
    assert "**wrong**: batch of 7: max_abs_diff 1923" in text
    assert "- vit_b_16, float32: logits \\| of &lt;batches> of 7" in text
    assert "- vit_b_16, int8: no such operator" in text
    assert "- swin_t, float32: no" in text


def test_every_family_has_its_networks():
    names = network_names()
    assert len(set(names)) == len(names) >= 35
    assert [family for family, members in FAMILIES.items() if not members] == []


@pytest.mark.parametrize("networks", ["no_such_net", "resnet18,resnet18", ","])
def test_wrong_use_exits_with_2_and_measures_nothing(networks, monkeypatch):
    monkeypatch.setattr(export_matrix, "measure_apart", lambda *_: pytest.fail("measured"))
    assert CliRunner().invoke(export_matrix.main, ["--networks", networks]).exit_code == 2
    with pytest.raises(UsageError):
        export_matrix._chosen(networks)


def test_some_networks_leave_the_page_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(export_matrix, "DOCUMENT", tmp_path / "page.md")
    monkeypatch.setattr(export_matrix, "measure_apart", lambda *_: GREEN)
    assert CliRunner().invoke(export_matrix.main, ["--networks", "resnet18"]).exit_code == 0
    assert not (tmp_path / "page.md").exists()
    assert CliRunner().invoke(export_matrix.main, []).exit_code == 0
    assert "resnet18" in (tmp_path / "page.md").read_text()


def test_a_process_that_breaks_is_named_with_what_it_said():
    with pytest.raises(ExportError, match=r"lenet6: the measuring process ended with 1 and said: .*lenet6"):
        export_matrix.measure_apart("lenet6", 100, None, [])  # which is soon seen


def test_a_process_that_breaks_stops_no_other(monkeypatch, tmp_path):
    def measure(name, *_):
        if name == "resnet18":
            raise ExportError("out of memory")
        return GREEN.model_copy(update={"network": name})

    monkeypatch.setattr(export_matrix, "measure_apart", measure)
    result = CliRunner().invoke(export_matrix.main, ["--networks", "resnet18,vgg11", "--out", str(tmp_path / "page.md")])
    assert result.exit_code == 1
    page = (tmp_path / "page.md").read_text()
    assert "- resnet18, float32: out of memory" in page
    assert "| VGG | vgg11 |" in page


def test_a_network_is_measured_from_the_module_to_the_verdict():
    row = export_matrix.measure_apart("lenet5", 100, None, [])
    assert (row.verdict, row.why, row.plain, row.plain_right) == ("passed", "", "exported", True)
    assert 0 < row.base_mib <= row.peak_mib
    assert row.export_s > 0
    assert 0.2 < row.file_mib < 0.3


def test_subjects_are_the_same_each_time(monkeypatch):
    monkeypatch.setenv("CONVOY_DATA", "/nowhere")
    first, second = (build_subject("shufflenet_v2_x0_5", 12, size_px=32) for _ in range(2))
    assert first.source == "gratings"
    assert (first.test == second.test).all()
    assert all(
        (a == b).all() for a, b in zip(first.classifier.state_dict().values(), second.classifier.state_dict().values(), strict=True)
    )
    assert not (first.train[:12] == first.test).all()


def test_gratings_differ_by_class_more_than_by_noise():
    images, labels = gratings(ImageSpec(height_px=32, width_px=32, channels=3), 60, seed=0)
    assert np.bincount(labels).tolist() == [10] * 6
    assert images.std() > 20
