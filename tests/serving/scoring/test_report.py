from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convoy.contract.errors import ImageError, ScoringError, UsageError
from convoy.serving.client import Client
from convoy.serving.client.testing import FakeModel, FakeTransport
from convoy.serving.scoring import ScoreSummary, Statistics, score
from convoy.serving.scoring._amounts import AmountRowMaker, AmountStatistics
from convoy.serving.scoring._drift import Basis, Reference, measure_drift
from convoy.serving.scoring._report import THUMBNAIL_PX, Thumbnail, make_thumbnail, render_report
from convoy.serving.scoring._table import make_schema

pa = pytest.importorskip("pyarrow")

NASTY = "<script>alert('x')</script> & \"q\" \u202egnp.exe"
_VOID = {"meta", "img", "br"}
_ADDRESSES = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}


class Page(HTMLParser):
    """Reads a page strictly: each element is closed, in order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.seen if name == tag]


def check_page(page: str) -> Page:
    """The page is well-formed, needs nothing else, runs nothing, and is not only for those who see pictures."""
    read = Page(page)
    tags = {tag for tag, _ in read.seen}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attrs in read.seen:
        assert not [name for name in attrs if name.startswith("on") or name == "style"], (tag, attrs)  # the policy would refuse it
        for name in _ADDRESSES & attrs.keys():
            assert str(attrs[name]).startswith("data:image/png;base64,"), (tag, attrs)
    style = re.search(r"<style>(.*?)</style>", page, re.S)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert all(attrs["alt"] for attrs in read.all("img"))
    for attrs in read.all("svg"):
        assert attrs.get("aria-hidden") == "true" or attrs.get("aria-label")
    assert page.count("<table") == page.count("<thead>")
    assert all(attrs.get("scope") in ("col", "row") for attrs in read.all("th"))
    assert not re.search(r"\b(nan|inf|None)\b", read.words)
    ids = [attrs["id"] for _, attrs in read.seen if "id" in attrs]
    assert len(ids) == len(set(ids))
    return read


def summary_of(statistics: Statistics, **changes: Any) -> ScoreSummary:
    summary = ScoreSummary(
        model_name="digits",
        model_version="3",
        model_sha256=None,
        source="scans",
        out="scans.scored",
        n=statistics.n,
        n_scored=statistics.n_scored,
        n_failed=statistics.n_failed,
        n_resumed=0,
        skipped={},
        duration_s=2.5,
        throughput_ips=100.0,
        n_labelled=statistics.n_labelled + statistics.n_foreign,
        accuracy=statistics.accuracy,
        statistics=statistics.to_dict(),
        drift=None,
        report=None,
    )
    return dataclasses.replace(summary, **changes)


def statistics_of(
    labels: Sequence[str], answers: Sequence[int | None], truths: Sequence[str | None] | None = None, key: str = "{}.png"
) -> Statistics:
    rng = np.random.default_rng(0)
    rows = []
    for i, answer in enumerate(answers):
        rows.append(
            {
                "row": i,
                "source": key.format(i),
                "label": None if answer is None else labels[answer],
                "index": answer,
                "probability": None if answer is None else float(rng.uniform(0.2, 1)),
                "model_name": "digits",
                "model_version": "3",
                "latency_ms": None if answer is None else float(rng.exponential(5)),
                "error": f"/x/{key.format(i)}: no image {NASTY}" if answer is None else None,
                "true_label": None if truths is None else truths[i],
            }
        )
    statistics = Statistics(tuple(labels))
    statistics.add(pa.Table.from_pylist(rows, make_schema({})))
    return statistics


def page_of(statistics: Statistics, thumbnails: dict[int, Thumbnail] | None = None, drift: Any = None, **changes: Any) -> str:
    when = datetime(2026, 11, 27, 9, 30, tzinfo=timezone.utc)
    return render_report(summary_of(statistics, **changes), statistics, drift, thumbnails or {}, when=when)


@pytest.mark.parametrize(
    ("labels", "answers", "truths"),
    [
        (("a", "b"), [], None),
        (("a", "b"), [None, None], None),
        (("a", "b"), [None], ["a"]),
        (("only",), [0, 0], ["only", "only"]),
        (("a", "b"), [0, 1], None),
        (("a", "b"), [0, 1], ["elsewhere", None]),
        (("a", "b"), [0, 1, 1, None], ["a", "a", "b", "b"]),
        ([f"c{i}" for i in range(1000)], list(range(0, 1000, 3)), [f"c{i + i % 2}" for i in range(0, 1000, 3)]),
        ([f"c{i}" for i in range(5000)], list(range(5000)), [f"c{i // 2}" for i in range(5000)]),
    ],
)
@pytest.mark.parametrize("drifted", [False, True])
def test_the_page_is_whole_whatever_was_scored(
    labels: Sequence[str], answers: Sequence[int | None], truths: Sequence[str | None] | None, drifted: bool
) -> None:
    statistics = statistics_of(labels, answers, truths)
    drift = None
    if drifted:
        counts = np.arange(1, len(labels) + 1)
        reference = Reference("ref", (Basis("answers", counts), Basis("labels", counts[::-1])), np.ones(9, np.float32), 9, "But.")
        drift = measure_drift(reference, statistics)
    page = page_of(statistics, drift=drift)
    read = check_page(page)
    assert len(page) < 1_500_000
    assert "scored with digits version 3" in read.words
    assert ("Accuracy" in read.words) == (statistics.accuracy is not None)
    assert ("Population stability index (PSI)" in read.words) == drifted
    if not statistics.n_scored:
        assert "Nothing was scored." in read.words


def test_the_figures_on_the_page_are_those_of_the_statistics() -> None:
    rng = np.random.default_rng(4)
    truths = rng.integers(3, size=200)
    answers = np.where(rng.random(200) < 0.8, truths, 0)
    labels = ("zero", "one", "two")
    statistics = statistics_of(labels, answers.tolist(), [labels[i] for i in truths])
    words = check_page(page_of(statistics)).words
    right = int((answers == truths).sum())
    assert f"{right} of 200 labelled inputs were answered rightly" in words
    assert statistics.accuracy_interval is not None
    low, high = statistics.accuracy_interval
    assert f"95 % interval (Wilson): {low:.2%} to {high:.2%}".replace("%", " %").replace("95  %", "95 %") in words
    assert statistics.calibration_error is not None
    assert f"{100 * statistics.calibration_error:.2f} %" in words
    matrix = statistics.confusion()
    assert f"zero {matrix[0, 0]}" in words
    pair = statistics.most_confused()[0]
    assert f"{pair.true_label} {pair.answer} {pair.n}" in words
    assert "2026-11-27 09:30 UTC" in words


def test_names_that_others_gave_are_text() -> None:
    labels = (NASTY, "b</style>", "c\x00\x1b[31m")
    statistics = statistics_of(labels, [0, 1, 2, None], [labels[0], labels[0], "</bdi>", None], key="{}" + NASTY)
    found = {0: Thumbnail(b"", 0, 0, NASTY)}
    page = page_of(statistics, found, source=NASTY, model_name=NASTY, out=NASTY, skipped={NASTY: 3})
    page = page.encode("utf-8", "replace").decode()
    read = check_page(page)
    assert NASTY in "".join(read.text)
    assert "<script" not in page


def test_thumbnails_are_small_and_of_every_kind_of_image() -> None:
    file = io.BytesIO()
    Image.new("RGBA", (640, 320), (255, 0, 0, 0)).save(file, "PNG")
    made = make_thumbnail(file.getvalue())
    with Image.open(io.BytesIO(made.png)) as image:
        assert image.size == (made.width_px, made.height_px) == (THUMBNAIL_PX, 48)
        assert image.convert("RGB").getpixel((5, 5)) == (255, 255, 255)
    for shape in ((28, 28), (28, 28, 1), (5, 7, 3), (1, 500)):
        made = make_thumbnail(np.zeros(shape, np.uint8))
        assert made.png
        assert max(made.width_px, made.height_px) <= THUMBNAIL_PX
    for broken in (b"", b"text", ImageError("it is gone"), np.zeros((4, 4, 9), np.uint8)):
        made = make_thumbnail(broken)
        assert made.png == b""
        assert made.reason


@pytest.fixture
def folder(tmp_path: Path, write_image: Callable[[Path, int], Path]) -> Path:
    for i in range(9):
        write_image(tmp_path / "set" / ("zero", "one", "two")[i % 3] / f"{i}.png", i if i < 8 else 0)
    (tmp_path / "set" / "two" / "bad.png").write_text("no image")
    (tmp_path / "set" / "notes.txt").touch()
    return tmp_path / "set"


def images_in(read: Page) -> list[Image.Image]:
    data = [str(attrs["src"]).partition(",")[2] for attrs in read.all("img")]
    return [Image.open(io.BytesIO(base64.b64decode(each))) for each in data]


def test_a_run_writes_its_page_with_the_images_that_stand_out(folder: Path, tmp_path: Path, client: Client) -> None:
    page = tmp_path / "page.html"
    summary = score("digits", folder, tmp_path / "out", client=client, labels_from_folders=True, report=page).finish()
    assert summary.report == str(page)
    read = check_page(page.read_text(encoding="utf-8"))
    assert len(images_in(read)) == 9 + 9 + 1
    assert "Surest mistakes" in read.words
    assert "two/8.png" in read.words
    assert ".txt files 1" in read.words
    assert "found something else. 1" in read.words
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_finished_data_set_gets_its_page_without_being_scored_anew(folder: Path, tmp_path: Path, client: Client) -> None:
    score("digits", folder, tmp_path / "out", client=client).finish()
    files = {path: path.read_bytes() for path in sorted((tmp_path / "out").rglob("*")) if path.is_file()}
    summary = score("digits", folder, tmp_path / "out", client=client, report=tmp_path / "page.html").finish()
    assert summary.n_resumed == 10
    assert "10 inputs" in check_page((tmp_path / "page.html").read_text(encoding="utf-8")).words
    lock = tmp_path / "out" / "_convoy" / "lock"
    assert {path: path.read_bytes() for path in files if path != lock} == {k: v for k, v in files.items() if k != lock}


def test_inputs_of_an_array_are_shown_too(tmp_path: Path, client: Client) -> None:
    images = np.zeros((6, 4, 4), np.uint8) + np.arange(6, dtype=np.uint8)[:, None, None] * 40
    np.save(tmp_path / "x.npy", images)
    score(
        "digits", tmp_path / "x.npy", tmp_path / "out", client=client, chunk_rows=4, rows_per_file=4, report=tmp_path / "p.html"
    ).finish()
    shown = images_in(check_page((tmp_path / "p.html").read_text(encoding="utf-8")))
    assert {image.convert("L").getpixel((0, 0)) for image in shown} == {0, 40, 80, 120, 160, 200}


def test_an_input_that_is_gone_by_then_has_an_empty_frame_with_the_reason(folder: Path, tmp_path: Path, client: Client) -> None:
    run = score("digits", folder, tmp_path / "out", client=client, report=tmp_path / "p.html")
    for _ in run:
        (folder / "zero" / "0.png").unlink()
        (folder / "one" / "1.png").write_bytes(b"another one")
    read = check_page((tmp_path / "p.html").read_text(encoding="utf-8"))
    assert len(read.all("img")) == 14
    assert len([attrs for attrs in read.all("span") if "gone" in str(attrs.get("class"))]) == 4
    assert read.words.count("not shown: cannot be read: ") == 2
    assert read.words.count("not shown: the file changed after the run began") == 2


@pytest.mark.parametrize("name", ["nowhere/p.html", "out/p.html", "out/deep/p.html", "set"])
def test_a_page_that_cannot_be_written_is_refused_before_anything_is_scored(
    name: str, folder: Path, tmp_path: Path, client: Client
) -> None:
    with pytest.raises(UsageError, match=r"expected|does not exist"):
        score("digits", folder, tmp_path / "out", client=client, report=tmp_path / name).finish()
    assert not (tmp_path / "out").exists()


def test_a_page_that_fails_at_the_end_leaves_the_data_set_whole(
    folder: Path, tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("convoy.serving.scoring._run.write_report", full)
    with pytest.raises(ScoringError, match=r"No space left.*is whole.*without scoring anew"):
        score("digits", folder, tmp_path / "out", client=client, report=tmp_path / "p.html").finish()
    assert (tmp_path / "out" / "_convoy" / "manifest.json").exists()


def test_the_command_writes_the_page_and_tells_histograms_and_drift(program: Any, folder: Path, tmp_path: Path) -> None:
    program("score", "digits", folder, tmp_path / "first")
    options = ("--labels-from-folders", "--report", tmp_path / "p.html", "--reference", tmp_path / "first")
    code, out, err = program("score", "digits", folder, tmp_path / "out", *options)
    assert code == 1, err
    assert "accuracy: 88.89% of 9 labelled images (95 % interval 56.50% to 98.01%), expected calibration error 8.89%" in out
    assert "most confused: two taken for zero, 1 times" in out
    assert re.search(r"zero +4 +44.4% +█+", out)
    assert "confidences: 0 % |" in out
    assert f"drift from {tmp_path / 'first'}: little. The classes of the answers have changed little (PSI 0)." in out
    assert "failed: 1  expected an image (PNG, JPEG, ...), found something else." in out
    assert f"report: {tmp_path / 'p.html'}" in out
    check_page((tmp_path / "p.html").read_text(encoding="utf-8"))


def test_json_tells_everything(program: Any, folder: Path, tmp_path: Path) -> None:
    program("score", "digits", folder, tmp_path / "first")
    options = ("--labels-from-folders", "--report", tmp_path / "p.html", "--reference", tmp_path / "first", "--json")
    _, out, _ = program("score", "digits", folder, tmp_path / "out", *options)
    told = json.loads(out)
    assert told["report"] == str(tmp_path / "p.html")
    assert told["drift"]["labels"][0]["population_stability_index"] == 0
    assert told["statistics"]["confusion"] == [[3, 0, 0], [0, 3, 0], [1, 0, 2]]
    assert told["statistics"]["most_confused"] == [{"true_label": "two", "answer": "zero", "n": 1}]
    assert told["statistics"]["surest_wrong"][0]["source"] == "two/8.png"
    assert told["statistics"]["classes"][2]["recall"] == pytest.approx(2 / 3)
    assert "█" not in out


def test_a_terminal_without_blocks_gets_plain_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    from convoy.cli.scored import describe_answers

    statistics = statistics_of([f"c{i}\x1b[31m" for i in range(40)], [0] * 5 + list(range(30)))
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    lines = describe_answers(summary_of(statistics))
    assert all(line.isascii() for line in lines)
    assert any("########" in line for line in lines)
    assert "  and 20 other classes: 20" in lines
    assert "  never the answer: 10 of 40 classes" in lines
    assert not any("\x1b" in line for line in lines)


def amounts_of(n: int, *, labelled: bool = True) -> AmountStatistics:
    """Answers surer and surer, of which every tenth is wrong, in the upper half every hundredth."""
    rows: list[dict[str, Any]] = []
    for i in range(n):
        wrong = i % (10 if i < n / 2 else 100) == 0
        row = {"row": i, "source": f"{i}.png", "label": f"$ {i:03}.-", "amount": f"{i:03}", "probability": i / n}
        truth = f"{i + wrong:03}" if labelled else None
        rows.append({**row, "accepted": 2 * i >= n, "latency_ms": 5.0, "true_label": truth})
    statistics = AmountStatistics(threshold=0.5)
    statistics.add(pa.Table.from_pylist(rows, AmountRowMaker.make_schema({})))
    return statistics


def test_the_page_of_amounts_says_what_needs_no_person_and_what_other_thresholds_give() -> None:
    statistics = amounts_of(1000)
    page = page_of(statistics)
    read = check_page(page)
    assert "Accepted 50.00 % : 500 of 1,000 amounts reach the model's threshold of 0.500000." in read.words
    assert "1.00 % of those are wrong: 5 of the 500 that are labelled" in read.words
    points = statistics.operating_points()
    assert points[0.005] is None
    assert "not 200 of so few errors" in read.words
    best = points[0.01]
    assert best is not None
    confidence = np.arange(1000) / 1000
    wrong = np.array([i % (10 if i < 500 else 100) == 0 for i in range(1000)])
    chosen = confidence >= np.float32(best.threshold)
    assert wrong[chosen].mean() == pytest.approx(best.error)
    assert chosen.mean() == best.coverage == pytest.approx(0.509)  # the next one below is wrong
    assert "Confusion matrix" not in read.words
    assert "Classes" not in read.words
    assert "Digits Answers Share Bar 3 1,000 100.00 %" in read.words
    assert 'class="contact fields"' in page
    assert "right" in read.words
    assert "shows 901" in read.words


def test_a_field_in_which_nothing_was_read_is_said_to_hold_nothing(tmp_path: Path) -> None:
    Image.new("L", (60, 8)).save(tmp_path / "empty.png")
    model = FakeModel.of_amounts(lambda _: [], height_px=8, widths_px=(16, 64), threshold=0.5)
    with Client(transport=FakeTransport({"check-reader": model})) as client:
        score("check-reader", tmp_path / "*.png", tmp_path / "out", client=client, report=tmp_path / "page.html").finish()
    assert "nothing · 0.0 %" in re.sub(r"\s+", " ", check_page((tmp_path / "page.html").read_text()).words)


@pytest.mark.parametrize(("n", "labelled"), [(0, False), (1, False), (1, True), (50, False), (50, True)])
def test_the_page_of_amounts_is_whole_whatever_was_scored(n: int, labelled: bool) -> None:
    read = check_page(page_of(amounts_of(n, labelled=labelled)))
    assert ("Other thresholds" in read.words) == (labelled and n > 0)
    assert ("Nothing was scored." in read.words) == (n == 0)


def test_a_run_of_amounts_writes_its_page_with_wide_fields(tmp_path: Path) -> None:
    root = tmp_path / "fields"
    root.mkdir()
    for i in range(3):
        Image.new("L", (400, 80), 40 * i + 9).save(root / f"{i}.png")
    model = FakeModel.of_amounts(lambda _: [("1.234", 0.75)], height_px=8, widths_px=(16, 64), threshold=0.5)
    with Client(transport=FakeTransport({"check-reader": model})) as client:
        score("check-reader", root, tmp_path / "out", client=client, report=tmp_path / "page.html").finish()
    read = check_page((tmp_path / "page.html").read_text())
    assert {image.size for image in images_in(read)} == {(224, 45)}
    assert "100.00 % : 3 of 3 amounts reach the model's threshold" in read.words
