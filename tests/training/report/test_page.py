from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from convoy.contract.figures import interval95, percent
from convoy.training.report.calibration import Calibration, CalibrationErrors
from convoy.training.report.page import REPORT_FILE, render_page, render_report
from convoy.training.report.per_class import score_classes
from convoy.training.run import TrainedRun
from convoy.training.transfer.report import BlockTakeOver, TakeOver

PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII=")
PLAIN = {"curves.png": PIXEL, "confusion.png": PIXEL, "calibration.png": PIXEL}


class Page(HTMLParser):
    """What a page refers to, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.handlers += [name for name, _ in attrs if name.startswith("on") or name == "style"]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def report(trained: TrainedRun) -> dict[str, bytes]:
    return render_report(trained)


def with_classes(run: TrainedRun, n: int, names: list[str] | None = None) -> TrainedRun:
    names = names or [f"class {i}" for i in range(n)]
    confusion = np.diag(np.full(n, 20)) + np.eye(n, k=1, dtype=np.int64)
    scores = score_classes(confusion, names, np.full(n, 100))
    metrics = run.metrics.model_copy(update={"test_classes": scores, "test_confusion": tuple(map(tuple, confusion.tolist()))})
    return replace(run, metrics=metrics, record=run.record.model_copy(update={"labels": tuple(names)}))


def test_it_needs_nothing_else(report: dict[str, bytes]) -> None:
    text = report[REPORT_FILE].decode()
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert page.references
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert page.handlers == []
    assert "url(" not in text
    assert "@import" not in text
    css = text.partition("<style>")[2].partition("</style>")[0]
    assert base64.b64encode(hashlib.sha256(css.encode()).digest()).decode() in text  # the policy allows this style alone


def test_it_holds_the_very_pictures_that_lie_beside_it(report: dict[str, bytes]) -> None:
    page = Page(report[REPORT_FILE].decode())
    embedded = {base64.b64decode(reference.partition(",")[2]) for reference in page.references}
    assert embedded == {data for name, data in report.items() if name.endswith(".png")}
    assert len(embedded) == 6


def test_it_says_what_metrics_say(trained: TrainedRun, report: dict[str, bytes]) -> None:
    text = " ".join(Page(report[REPORT_FILE].decode()).text.split())
    record, metrics = trained.record, trained.metrics
    low, high = interval95(metrics.test_top1_error, 40)
    assert f"Test error {percent(metrics.test_top1_error)} ({percent(low)} to {percent(high)} with 95 % confidence" in text
    for expected in (
        record.run_id,
        record.weights_sha256,
        record.dataset.sha256,
        "61,706",
        "augmentation.rotation_deg",
    ):
        assert expected in text, expected
    for score in metrics.test_classes:
        row = f'<th scope="row">{score.label}</th><td class="n">{score.n_train}</td><td class="n">{score.n}</td>'
        assert row in report[REPORT_FILE].decode()


def test_names_are_text_and_nothing_else(trained: TrainedRun) -> None:
    names = ["<script>alert(1)</script>", '"><img src=x onerror=1>', "a & b", "{{ 7 * 7 }}"]
    page = Page(render_page(with_classes(trained, 4, names), PLAIN))
    assert "script" not in page.tags
    assert page.handlers == []
    assert all(name in page.text for name in names)


def test_of_many_classes_the_worst_are_shown_and_all_are_there(trained: TrainedRun) -> None:
    text = render_page(with_classes(trained, 100), PLAIN)
    assert "The 20 with the lowest F1" in text
    assert "All 100 classes" in text
    assert len(re.findall(r'<th scope="row">class \d+</th>', text)) == 120
    assert len(re.findall(r'<th scope="row">class \d+</th>', render_page(with_classes(trained, 6), PLAIN))) == 6


def test_classes_that_come_off_badly_are_named_with_what_to_do(trained: TrainedRun) -> None:
    run = with_classes(trained, 3)
    scores = score_classes(np.array([[50, 0, 0], [0, 50, 0], [25, 0, 25]]), ["a", "b", "rare"], np.array([100, 100, 9]))
    flagged = replace(run, metrics=run.metrics.model_copy(update={"test_classes": scores}))
    text = " ".join(Page(render_page(flagged, PLAIN)).text.split())
    assert "1 of 3 classes come off badly: rare (few images and low recall)." in text
    assert "sampling=balanced" in text.partition("Recipe")[0]
    assert "come off badly" not in render_page(run, PLAIN)


def test_without_mistakes_it_says_so(trained: TrainedRun) -> None:
    assert "No test image was taken for another class." in render_page(trained, PLAIN)


@pytest.mark.parametrize(
    ("temperature", "reason", "says"),
    [
        (2.5, "", "divides the logits by 2.500 before the softmax, which flattens the probabilities"),
        (0.5, "", "which sharpens the probabilities"),
        (1.0, "too few images", "leaves the probabilities as they are: too few images."),
    ],
)
def test_the_temperature_is_explained(trained: TrainedRun, temperature: float, reason: str, says: str) -> None:
    errors = CalibrationErrors(n=40, ece_before=0.1, ece_after=0.2, nll_before=1.0, nll_after=0.5)
    calibration = Calibration(temperature=temperature, reason=reason, validation=errors, test=errors)
    run = replace(trained, metrics=trained.metrics.model_copy(update={"calibration": calibration}))
    text = " ".join(Page(render_page(run, PLAIN)).text.split())
    assert says in text
    assert ("is no lower for it" in text) == (temperature != 1)


def test_what_is_to_be_known_about_the_data_and_the_weights_is_said(trained: TrainedRun) -> None:
    block = BlockTakeOver(name="conv1", n_parameters=9, n_taken_over=9, factor=0.5)
    taken = TakeOver(weights="file", source="resnet20.th", sha256="0" * 64, blocks=(block,))
    facts = trained.record.dataset.model_copy(update={"remarks": ("a.jpg = b.jpg",), "skipped": ("c.jpg: cut <short>",)})
    told = replace(trained, record=trained.record.model_copy(update={"dataset": facts, "take_over": taken}))
    text = Page(render_page(told, PLAIN)).text
    for words in ("About the data", "a.jpg = b.jpg", "left out: c.jpg: cut <short>", "Weights taken over", "weights: resnet20.th"):
        assert words in text
    assert "About the data" not in Page(render_page(trained, PLAIN)).text
    assert "Weights taken over" not in Page(render_page(trained, PLAIN)).text
