"""validation.html: says what the report says, loads nothing, runs nothing, and stays one page whatever stands in the report."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convoy.contract.bundle import Bundle
from convoy.contract.errors import UsageError
from convoy.contract.validation import Check, LayerError
from convoy.export.evidence import render_page
from convoy.export.evidence.charts import relative_error
from convoy.export.evidence.page import group_checks, limit_share, picture

MakeBundle = Callable[..., Bundle]
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A strict reader: every element closes in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def count(self, tag: str, kind: str = "") -> int:
        return sum(name == tag and kind in [*(attrs.get("class") or "").split(), ""] for name, attrs in self.elements)


def test_the_verdict_comes_first_with_what_it_means_and_what_to_do(make_bundle: MakeBundle) -> None:
    passed = Page(render_page(make_bundle("passed"))).words
    failed = Page(render_page(make_bundle("failed", verdict="failed"))).words
    undecided = Page(render_page(make_bundle("undecided", verdict="undecided"))).words
    assert passed.index("Passed: lenet5, validation") < passed.index("decides as its PyTorch network does: 8 checks passed")
    assert "convoy deploy with the folder" in passed
    assert failed.startswith("Failed: lenet5, validation")
    assert "1 of 8 checks failed" in failed
    assert "Do not use this file" in failed
    assert undecided.startswith("Undecided: lenet5, validation")
    assert "needs 88 images more" in undecided
    assert "It cannot be deployed" in undecided


def test_a_fault_is_named_before_the_checks(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(verdict="failed")
    fault = bundle.report.fault
    assert fault is not None
    words = Page(render_page(bundle)).words
    place = [
        words.index(part) for part in (fault.cause, fault.node + " (", fault.module, "2.41; float32 arithmetic explains 3.1e-06")
    ]
    assert max(place[0:1] + place[3:]) < words.index("Checks Verdict")
    assert "reproducer.npz" in words
    assert "Where it goes wrong" not in Page(render_page(make_bundle("passed"))).words


def test_every_check_is_there_and_failed_ones_stand_open_before_passed_ones(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(verdict="failed")
    text = render_page(bundle)
    words = Page(text).words
    for check in bundle.report.checks:
        for part in (check.name, check.expected, check.found, check.detail):
            assert " ".join(part.split()) in words
    failed = next(check for check in bundle.report.checks if check.verdict == "failed")
    assert text.index(failed.found) < text.index("<details")
    assert "3.91 of 0.000152 (25,724 ×)" in words
    assert words.index("✗ failed") < words.index("– uncovered") < words.index("7 passed")


def test_checks_are_grouped_by_what_they_share() -> None:
    def check(name: str, measured: float | None = None) -> Check:
        return Check(name=name, verdict="passed", expected="x", found="y", limit=2.0, measured=measured)

    groups = group_checks([check("a, 1", 0.5), check("b"), check("a, 2", 1.5), check("c")])
    assert [(group.name, len(group.checks), group.closest) for group in groups] == [("a", 2, 0.75), ("others", 2, None)]


@pytest.mark.parametrize(
    ("limit", "measured", "share"), [(2.0, 1.0, 0.5), (0.0, 0.0, 0.0), (0.0, 1.0, math.inf), (None, 1.0, None)]
)
def test_the_share_of_a_limit(limit: float | None, measured: float, share: float | None) -> None:
    assert limit_share(Check(name="a", verdict="passed", expected="", found="", limit=limit, measured=measured)) == share


def test_the_page_needs_nothing_and_runs_nothing(make_bundle: MakeBundle, pixels: np.ndarray) -> None:
    text = render_page(make_bundle(verdict="failed", int8=True), pixels)
    page = Page(text)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    tags = {tag for tag, _ in page.elements}
    assert tags.isdisjoint({"script", "link", "iframe", "object", "embed", "form", "base", "foreignobject"})
    for _, attrs in page.elements:
        assert not [name for name in attrs if name.startswith("on") or name in ("href", "style", "xlink:href")]
        assert (attrs.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
    policy = next(str(attrs["content"]) for _, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy")
    css = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert len(css) == 1
    digest = base64.b64encode(hashlib.sha256(css[0].encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:;")


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)> {{ 7*7 }} &amp;"


def test_whatever_others_wrote_is_text(make_bundle: MakeBundle, pixels: np.ndarray) -> None:
    bundle = make_bundle(label=HOSTILE, int8=True, verdict="failed")
    report = bundle.report
    assert report.fault is not None
    assert report.worst is not None
    layers = tuple(layer.model_copy(update={"node": HOSTILE, "module": HOSTILE, "op_type": HOSTILE}) for layer in report.layers)
    hostile = report.model_copy(
        update={
            "layers": layers,
            "machine": HOSTILE,
            "versions": {HOSTILE: HOSTILE},
            "fault": report.fault.model_copy(update={"cause": HOSTILE, "node": HOSTILE, "module": HOSTILE, "suspects": (HOSTILE,)}),
            "worst": report.worst.model_copy(update={"name": HOSTILE}),
            "outputs": tuple(output.model_copy(update={"name": HOSTILE}) for output in report.outputs),
            "checks": tuple(check.model_copy(update={"name": HOSTILE, "detail": HOSTILE}) for check in report.checks),
        }
    )
    page = Page(render_page(Bundle(bundle.folder, bundle.manifest, hostile), pixels))
    assert page.count("script") == 0
    assert page.count("img") == 1
    assert page.words.count("<script>alert(1)</script>") > 20
    assert "49" not in page.words.split()


def test_the_same_report_gives_the_same_bytes(make_bundle: MakeBundle, pixels: np.ndarray) -> None:
    first, second = make_bundle("one", int8=True), make_bundle("two", int8=True)
    assert render_page(first, pixels) == render_page(second, pixels)


def test_each_chart_has_a_title_and_a_description(make_bundle: MakeBundle) -> None:
    text = render_page(make_bundle())
    for chart in re.findall(r'<svg class="chart".*?</svg>', text, re.DOTALL):
        ids = re.search(r'aria-labelledby="(\S+) (\S+)"', chart)
        assert ids is not None
        assert f'<title id="{ids[1]}">' in chart
        assert f'<desc id="{ids[2]}">' in chart
    assert text.count('<svg class="chart"') == 3
    ids_found = re.findall(r' id="([^"]+)"', text)
    assert len(ids_found) == len(set(ids_found))


def test_four_hundred_layers_each_have_a_point_and_a_row(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(verdict="failed", n_layers=400, n_classes=1000)
    text = render_page(bundle)
    page = Page(text)
    assert page.count("circle", "point") == 400
    assert page.count("circle", "faulty") == 1
    for layer in bundle.report.layers:
        assert f"{layer.node} ({layer.op_type}, {layer.module})" in page.words
    assert len(text) < 1_000_000
    assert "1,000" in page.words


def test_a_point_stands_as_high_as_its_error(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    circles = [attrs for tag, attrs in Page(render_page(bundle)).elements if tag == "circle"]
    heights = [float(str(attrs["cy"])) for attrs in circles]
    logs = [math.log10(relative_error(layer)) for layer in bundle.report.layers]
    slope, start = np.polyfit(logs, heights, 1)
    assert slope < 0
    assert np.allclose(slope * np.array(logs) + start, heights, atol=0.02)


@pytest.mark.parametrize(
    ("diff", "scale", "relative"),
    [
        (1.0, 4.0, 0.25),
        (0.0, 0.0, 0.0),
        (1.0, 0.0, math.inf),
        (math.inf, 1.0, math.inf),
        (math.nan, 1.0, math.inf),
    ],
)
def test_the_relative_error_of_a_layer(diff: float, scale: float, relative: float) -> None:
    assert relative_error(LayerError(node="", op_type="", module="", output="", max_abs_diff=diff, scale=scale)) == relative


def test_layers_without_error_and_beyond_any_scale_are_drawn(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    layers = list(bundle.report.layers)
    layers[0] = layers[0].model_copy(update={"max_abs_diff": 0.0})
    layers[1] = layers[1].model_copy(update={"max_abs_diff": 1.0, "scale": 0.0})
    report = bundle.report.model_copy(update={"layers": tuple(layers)})
    page = Page(render_page(Bundle(bundle.folder, bundle.manifest, report)))
    assert page.count("polygon", "point") == 1
    assert page.count("circle", "point") == len(layers) - 1


def test_logits_that_are_not_finite_are_said_to_be(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(verdict="failed")
    assert bundle.report.worst is not None
    report = bundle.report.model_copy(update={"worst": bundle.report.worst.model_copy(update={"max_abs_diff": None})})
    assert (
        "its logits differ without limit: some are not finite"
        in Page(render_page(Bundle(bundle.folder, bundle.manifest, report))).words
    )


def test_the_worst_image_is_embedded_as_it_is(make_bundle: MakeBundle, pixels: np.ndarray) -> None:
    text = render_page(make_bundle(), pixels)
    encoded = re.search(r'<img src="data:image/png;base64,([^"]+)" width="280" height="280" class="pixelated"', text)
    assert encoded is not None
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded[1]))))
    assert np.array_equal(shown, pixels[..., 0])


def test_large_images_shrink_and_keep_their_shape() -> None:
    large = picture(np.zeros((1024, 2048, 3), np.uint8))
    assert (large.width_px, large.height_px, large.pixelated) == (280, 140, False)
    decoded = Image.open(io.BytesIO(base64.b64decode(large.source.split(",")[1])))
    assert decoded.size == (512, 256)


@pytest.mark.parametrize("pixels", [np.zeros((4, 4, 1), np.float32), np.zeros((4, 4), np.uint8), np.zeros((4, 0, 3), np.uint8)])
def test_other_arrays_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(UsageError, match="expected uint8 of shape"):
        picture(pixels)


def test_int8_stands_beside_float32(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(int8=True)
    facts = bundle.report.precision
    assert facts is not None
    words = Page(render_page(bundle)).words
    assert "Precision: int8 beside float32" in words
    assert "Accuracy drop: 0.07 %, with 95 % confidence at most 0.13 %; allowed: 0.50 %" in words
    assert facts.remarks[0] in words
    assert "23 of 10,000 images get another answer" in words
    assert "1.44 ×" in words


def test_a_report_of_version_1_has_a_page_too() -> None:
    root = Path(__file__).resolve().parents[3]
    words = Page(render_page(Bundle.open(root / "model_repository" / "lenet5" / "1"))).words
    assert "Passed: lenet5" in words
    assert "99.44 %" in words


def test_the_templates_are_in_the_wheel(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=root, check=True)
    (path,) = tmp_path.glob("convoy-*.whl")
    folders = (root / "export" / "evidence" / "templates", root / "training" / "report" / "templates")
    here = {f"convoy/{file.relative_to(root).as_posix()}" for folder in folders for file in folder.iterdir()}
    assert len(here) == 7
    assert here | {"convoy/contract/page.css"} <= set(zipfile.ZipFile(path).namelist())
