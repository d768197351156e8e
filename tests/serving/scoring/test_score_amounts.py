"""Scoring with a model that reads amounts: its rows, what they say as a whole, what does not apply; on a fake and in process."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convoy.contract.errors import ClientError, InvalidRequestError, ScoringError, UsageError
from convoy.contract.files import sha256_bytes
from convoy.serving.client import Client
from convoy.serving.client._call import Infer
from convoy.serving.client.testing import FakeModel, FakeTransport
from convoy.serving.scoring import AMOUNTS_SCHEMA_VERSION, score
from convoy.serving.scoring._amounts import is_right
from convoy.serving.scoring._identity import RUN_FILE, parse_identity

parquet = pytest.importorskip("pyarrow.parquet")

SMALL: dict[str, Any] = {"chunk_rows": 8, "rows_per_file": 32}
COLUMNS = [
    *("row", "source", "label", "amount", "probability", "accepted", "top_k"),
    *("model_name", "model_version", "model_sha256", "latency_ms", "error", "true_label"),
]


def by_first_pixel(field: np.ndarray) -> list[tuple[str, float]]:
    """The first pixel and the width; surer, the lighter; nothing of black fields."""
    value = int(field[0, 0])
    return [(f"{value},{field.shape[1]:03}.50", value / 256), (f"{value}", 1 / 512)] if value else []


def make_fake(**options: Any) -> FakeTransport:
    options = {"height_px": 8, "widths_px": (16, 32, 64), "max_batch_size": 4, "threshold": 0.5, "version": "3", **options}
    return FakeTransport({"check-reader": FakeModel.of_amounts(by_first_pixel, **options)})


@pytest.fixture
def fake() -> FakeTransport:
    """A fake server with the reader ``check-reader``, version 3."""
    return make_fake()


@pytest.fixture
def client(fake: FakeTransport) -> Iterator[Client]:
    with Client(transport=fake) as client:
        yield client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty fields of several widths, in sub-folders that name what most of them say; two that cannot be read."""
    root = tmp_path / "fields"
    for i in range(30):
        value, width = (8 * i + 7) % 256, 1 + 2 * i
        truth = f"{value}{width:03}50" if i % 3 else "1"
        place = root / truth / f"{i:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (width, 8), value).save(place)
    Image.new("L", (10, 8), 0).save(root / "1" / "black.png")
    (root / "1" / "empty.png").touch()
    Image.new("L", (900, 8)).save(root / "1" / "wide.png")
    return root


def rows_of(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = parquet.read_table(out).to_pylist()
    return rows


def test_each_field_has_a_row_of_the_documented_columns(folder: Path, tmp_path: Path, client: Client) -> None:
    out = tmp_path / "out"
    summary = score("check-reader", folder, out, client=client, top_k=2, labels_from_folders=True, **SMALL).finish()
    schema = parquet.read_schema(next(out.glob("*.parquet")))
    assert schema.names == COLUMNS
    assert schema.metadata[b"convoy.schema_version"] == AMOUNTS_SCHEMA_VERSION.encode()
    rows = rows_of(out)
    assert [row["row"] for row in rows] == list(range(33))
    assert (summary.n, summary.n_scored, summary.n_failed) == (33, 31, 2)
    for row in rows:
        assert (row["model_name"], row["model_version"]) == ("check-reader", "3")
        name = Path(row["source"]).stem
        if name in ("empty", "wide"):
            assert ("expected an image" if name == "empty" else "at most 8 times as wide as high") in row["error"]
            assert {row[key] for key in ("label", "amount", "probability", "accepted", "top_k", "latency_ms")} == {None}
            continue
        assert row["error"] is None
        assert row["latency_ms"] > 0
        if name == "black":
            assert (row["label"], row["amount"], row["probability"], row["accepted"], row["top_k"]) == ("", None, 0.0, False, [])
            continue
        value, width = (8 * int(name) + 7) % 256, 1 + 2 * int(name)
        assert (row["label"], row["amount"]) == (f"{value},{width:03}.50", f"{value}{width:03}.50")
        assert row["probability"] == value / 256
        assert row["accepted"] == (value >= 128)
        assert row["top_k"] == [
            {"label": row["label"], "probability": value / 256},
            {"label": str(value), "probability": 1 / 512},
        ]


def test_the_whole_is_told_without_classes(folder: Path, tmp_path: Path, client: Client) -> None:
    summary = score("check-reader", folder, tmp_path / "out", client=client, labels_from_folders=True).finish()
    statistics = summary.statistics
    assert not {"labels", "classes", "most_confused", "confusion", "n_foreign_labels"} & statistics.keys()
    assert (summary.n_labelled, summary.accuracy) == (31, pytest.approx(20 / 31))
    values = [(8 * i + 7) % 256 for i in range(30)]
    accepted = [i for i, value in enumerate(values) if value >= 128]
    wrong = [i for i in accepted if i % 3 == 0]
    assert statistics["n_accepted"] == statistics["n_accepted_labelled"] == len(accepted)
    assert statistics["coverage"] == pytest.approx(len(accepted) / 31)
    assert statistics["n_accepted_wrong"] == len(wrong)
    assert statistics["accepted_error"] == pytest.approx(len(wrong) / len(accepted))
    low, high = statistics["accepted_error_interval_95"]
    assert low < statistics["accepted_error"] < high
    assert statistics["digits"] == {str(n): count for n, count in sorted(lengths_of(values).items())}
    assert [point["at_most"] for point in statistics["operating_points"]] == [0.005, 0.01, 0.02, 0.05]
    assert {point["point"] for point in statistics["operating_points"]} == {None}  # 31 fields are no evidence of 5 %
    assert statistics["surest_wrong"][0]["label"] == f"{values[27]},055.50"
    assert sum(statistics["confidence_histogram"]) == 31
    json.dumps(statistics, allow_nan=False)


def lengths_of(values: list[int]) -> Counter[int]:
    """How many digits the amounts have: the black field's none."""
    return Counter([len(f"{value}") + 5 for value in values] + [0])


@pytest.mark.parametrize(
    ("text", "truth", "right"),
    [
        ("1.234.-", "1234", True),
        ("1.234.-", "1.234.-", True),
        ("1.234.-", "1.234", False),
        ("$1,234.50", "123450", True),
        ("01234", "1234", False),
        ("", "0", False),
        ("", "", True),
    ],
)
def test_a_true_amount_of_digits_is_held_against_digits(text: str, truth: str, right: bool) -> None:
    assert is_right(text, truth) is right


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_other_forms_hold_the_same_rows(form: Any, folder: Path, tmp_path: Path, client: Client) -> None:
    first = score("check-reader", folder, tmp_path / "parquet", client=client, **SMALL)
    expected = [row for batch in first for row in batch.to_pylist()]
    run = score("check-reader", folder, tmp_path / "out", client=client, format=form, **SMALL)
    assert [{**row, "latency_ms": None} for batch in run for row in batch.to_pylist()] == [
        {**row, "latency_ms": None} for row in expected
    ]
    again = score("check-reader", folder, tmp_path / "out", client=client, format=form, **SMALL)  # from the files
    assert [{**row, "latency_ms": None} for batch in again for row in batch.to_pylist()] == [
        {**row, "latency_ms": None} for row in expected
    ]
    assert again.summary.n_resumed == 33


def test_a_run_that_was_stopped_goes_on_where_it_was(folder: Path, tmp_path: Path, fake: FakeTransport) -> None:
    with Client(transport=fake) as client:
        expected = rows_of_run(score("check-reader", folder, tmp_path / "whole", client=client, **SMALL))
        run = score("check-reader", folder, tmp_path / "out", client=client, **SMALL)
        for _ in run:
            run.stop()
            break
        run.close()
        before = len(fake.inferences)
        again = score("check-reader", folder, tmp_path / "out", client=client, **SMALL)
        assert rows_of_run(again) == expected
        assert again.summary.n_resumed >= 8
        asked = sum(call.inputs[0].shape[0] for call in fake.inferences[before:])
        assert asked <= 1 + 33 - again.summary.n_resumed  # and one that asks who answers
    with pytest.raises(UsageError, match="another run was begun here"), Client(transport=make_fake(version="4")) as client:
        score("check-reader", folder, tmp_path / "out", client=client, model_version="4", **SMALL).finish()


def rows_of_run(run: Any) -> list[dict[str, Any]]:
    return [{**row, "latency_ms": None} for batch in run for row in batch.to_pylist()]


def test_an_array_of_fields_is_read_row_by_row(tmp_path: Path, client: Client) -> None:
    np.save(tmp_path / "x.npy", np.arange(1, 11, dtype=np.uint8)[:, None, None] * np.ones((8, 20), np.uint8))
    score("check-reader", tmp_path / "x.npy", tmp_path / "out", client=client).finish()
    assert [row["label"] for row in rows_of(tmp_path / "out")] == [f"{i},020.50" for i in range(1, 11)]


def test_one_fields_fault_is_not_that_of_its_company(folder: Path, tmp_path: Path, fake: FakeTransport) -> None:
    model = fake.models["check-reader"]

    def run(inputs: dict[str, Any]) -> Any:
        if (inputs["image"][:, 0, 0, 0] == 15).any():
            raise InvalidRequestError("this one is not to be read")
        return model.run(inputs)

    fake.models["check-reader"] = FakeModel(run, model.inputs, model.config, model.version)
    with Client(transport=fake) as client:
        summary = score("check-reader", folder, tmp_path / "out", client=client, **SMALL).finish()
    assert summary.n_failed == 3
    failed = {Path(row["source"]).stem for row in rows_of(tmp_path / "out") if row["error"]}
    assert failed == {"empty", "wide", "01"}


def test_an_answer_that_is_none_is_the_error_of_its_row(folder: Path, tmp_path: Path, fake: FakeTransport) -> None:
    model = fake.models["check-reader"]

    def run(inputs: dict[str, Any]) -> Any:
        answer = dict(model.run(inputs))
        answer["confidence"][inputs["image"][:, 0, 0, 0] == 15] = np.nan
        return answer

    fake.models["check-reader"] = FakeModel(run, model.inputs, model.config, model.version)
    with Client(transport=fake) as client:
        score("check-reader", folder, tmp_path / "out", client=client, **SMALL).finish()
    (row,) = [row for row in rows_of(tmp_path / "out") if row["source"].endswith("01.png")]
    assert "expected a confidence from 0 to 1, found nan" in row["error"]


def test_what_is_about_classes_is_refused(folder: Path, tmp_path: Path, client: Client) -> None:
    with pytest.raises(UsageError, match=r"'check-reader' reads amounts, not classes: leave it out"):
        score("check-reader", folder, tmp_path / "out", client=client, reference=tmp_path / "earlier").finish()
    (tmp_path / "cats" / "cat").mkdir(parents=True)
    Image.new("L", (20, 8)).save(tmp_path / "cats" / "cat" / "a.png")
    message = r"none of its sub-folders is named as an amount: expected amounts, such as .*found \['cat'\]"
    with pytest.raises(UsageError, match=message):
        score("check-reader", tmp_path / "cats", tmp_path / "new", client=client, labels_from_folders=True).finish()


def test_a_data_set_of_amounts_is_no_reference_for_classes(folder: Path, tmp_path: Path, fake: FakeTransport) -> None:
    fake.models["digits"] = FakeModel.of_labels(["0", "1"], lambda pixels: np.full((len(pixels), 2), 0.5))
    with Client(transport=fake) as client:
        score("check-reader", folder, tmp_path / "amounts", client=client).finish()
        with pytest.raises(UsageError, match="with classes as reference, found a data set of amounts"):
            score("digits", folder, tmp_path / "classes", client=client, reference=tmp_path / "amounts").finish()


def test_the_command_says_how_many_amounts_need_no_person(program: Any, folder: Path, tmp_path: Path) -> None:
    code, out, err = program("score", "check-reader", folder, tmp_path / "out", "--labels-from-folders")
    assert code == 1
    assert "2 of 33 inputs could not be scored" in err
    assert "31 of 33 inputs scored, 2 failed with check-reader version 3" in out
    assert "accuracy: 64.52% of 31 labelled images" in out
    accepted = "accepted: 14 of 31 amounts (45.16%), from a confidence of 0.500000 on; 4 of the 14 that are labelled are wrong"
    assert f"{accepted} (28.57%); the others are for a person to read" in out
    assert "confidences: 0 % |" in out
    code, out, _ = program("score", "check-reader", folder, tmp_path / "out", "--labels-from-folders", "--json")
    statistics = json.loads(out)["statistics"]
    assert (statistics["n_accepted"], statistics["threshold"]) == (14, 0.5)


def test_the_summary_and_the_page_name_the_threshold(program: Any, fake: FakeTransport, folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    fake.models.update(make_fake(threshold=0.4321987).models)
    _, out, _ = program("score", "check-reader", folder, tmp_path / "out", "--report", page)
    assert ", from a confidence of 0.432198 on; the others" in out
    assert "amounts reach the model's threshold of 0.432198. The others are for a person." in page.read_text()
    fake.models.update(make_fake(threshold=None).models)
    _, out, _ = program("score", "check-reader", folder, tmp_path / "none", "--report", page)
    assert "accepted: none of 31 amounts, for the model has no threshold; all are for a person to read" in out
    assert "the model has no threshold: all 31 amounts are for a person." in page.read_text()


@pytest.fixture
def forms(tmp_path: Path) -> Path:
    """Fields of 20 x 8, each on a form that is dark elsewhere; and a form that is too small."""
    root = tmp_path / "forms"
    root.mkdir()
    for i in range(18):
        form = Image.new("L", (300, 60))
        form.paste(7 + 13 * i, (30, 40, 50, 48))
        form.save(root / f"{i:02}.png")
    Image.new("L", (49, 60)).save(root / "small.png")
    return root


def test_a_box_says_where_the_field_lies_on_each_image(forms: Path, tmp_path: Path, fake: FakeTransport) -> None:
    box = (30, 40, 20, 8)
    with Client(transport=fake) as client:
        score("check-reader", forms, tmp_path / "out", client=client, box=box, report=tmp_path / "page.html", **SMALL).finish()
        rows = rows_of(tmp_path / "out")
        for row in rows:
            if row["source"] == "small.png":
                assert "expected a box (left, top, width, height) on the image of 49x60 pixels" in row["error"]
            else:
                assert row["label"] == client.read_amount(forms / row["source"], box=box).text
        assert len(rows) == len(list(forms.iterdir())) > 15
        again = score("check-reader", forms, tmp_path / "out", client=client, box=list(box), **SMALL).finish()
        assert again.n_resumed == len(rows)
        for other in (None, (30, 40, 20, 7)):
            with pytest.raises(UsageError, match=r"another run was begun here: --box was \(30, 40, 20, 8\) and is "):
                score("check-reader", forms, tmp_path / "out", client=client, box=other, **SMALL).finish()
        with pytest.raises(UsageError, match="box: expected four whole numbers"):
            score("check-reader", forms, tmp_path / "out", client=client, box=(1, 2, 3), **SMALL)
    shown = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", (tmp_path / "page.html").read_text())
    sizes = [Image.open(io.BytesIO(base64.b64decode(data))).size for data in shown]
    assert set(sizes) == {(20, 8)}  # what the model saw, not the forms


def test_the_command_takes_a_box_and_refuses_it_for_classes(program: Any, fake: FakeTransport, forms: Path, tmp_path: Path) -> None:
    code, out, _ = program("score", "check-reader", forms, tmp_path / "out", "--box", "30,40,20,8", "--json")
    assert code == 1  # one is too small
    assert json.loads(out)["n_failed"] == 1
    fake.models["digits"] = FakeModel.of_labels(["0", "1"], lambda pixels: np.full((len(pixels), 2), 0.5))
    code, _, err = program("score", "digits", forms, tmp_path / "classes", "--box", "30,40,20,8")
    assert code == 2
    assert "box (--box): it says where an amount lies, and 'digits' tells 2 classes apart: leave it out" in err
    code, _, err = program("score", "check-reader", forms, tmp_path / "new", "--box", "30,40,20")
    assert code == 2
    assert "LEFT,TOP,WIDTH,HEIGHT" in err


def test_a_run_without_a_box_is_named_as_it_was_before_there_were_any(folder: Path, tmp_path: Path, client: Client) -> None:
    score("check-reader", folder, tmp_path / "out", client=client, **SMALL).finish()
    stored = (tmp_path / "out" / RUN_FILE).read_bytes()
    assert "box" not in json.loads(stored)
    assert parse_identity(stored, "out").digest == sha256_bytes(stored)[:32]


def test_a_reason_that_several_share_is_said_once(program: Any, folder: Path, tmp_path: Path) -> None:
    Image.new("L", (800, 8)).save(folder / "1" / "wider.png")
    (folder / "1" / "empty.png").unlink()
    _, out, _ = program("score", "check-reader", folder, tmp_path / "out")
    (line,) = [line for line in out.splitlines() if line.startswith("failed: ")]
    assert line.startswith("failed: 2  expected a field at most … times as wide as high, found …x… pixels.")
    assert line.count("expected a field") == 1
    assert line.endswith("  (the first: 1/wide.png)")
    Image.new("L", (900, 8)).save(folder / "1" / "wider.png")
    _, out, _ = program("score", "check-reader", folder, tmp_path / "same")
    (line,) = [line for line in out.splitlines() if line.startswith("failed: ")]
    assert line.startswith("failed: 2  expected a field at most 8 times as wide as high, found 900x8 pixels.")
    assert line.endswith("  (the first: 1/wide.png)")


def test_in_process_the_file_alone_answers_as_the_server_would(
    tmp_path: Path, write_reader: Callable[..., Path], expected_reading: Callable[[Any], tuple[str, float]]
) -> None:
    pytest.importorskip("onnxruntime")
    write_reader(tmp_path / "repository", sealed=True)
    rng = np.random.default_rng(0)
    fields = {f"{i:02}.png": rng.integers(0, 256, (8, 1 + 3 * i), dtype=np.uint8) for i in range(21)}
    (tmp_path / "fields").mkdir()
    for name, pixels in fields.items():
        Image.fromarray(pixels).save(tmp_path / "fields" / name)
    options = {"in_process": tmp_path / "repository", **SMALL}
    summary = score("check-reader", tmp_path / "fields", tmp_path / "out", **options).finish()
    assert (summary.n_scored, summary.n_failed) == (21, 0)
    for row in rows_of(tmp_path / "out"):
        text, confidence = expected_reading(fields[row["source"]])
        assert (row["label"], row["amount"]) == (text, str(int(text)))
        assert row["probability"] == pytest.approx(confidence)
        assert row["accepted"] == (confidence >= 0.5)
        assert [other["probability"] for other in row["top_k"]] == [0.75, 0.25]
    score("check-reader", tmp_path / "fields", tmp_path / "boxed", box=(0, 0, 1, 8), **options).finish()
    assert [row["label"] for row in rows_of(tmp_path / "boxed")] == [expected_reading(fields[name][:, :1])[0] for name in fields]


def test_a_reader_that_refuses_everything_stops_the_run(folder: Path, tmp_path: Path, fake: FakeTransport) -> None:
    with Client(transport=fake) as client:
        client.read_amount(np.full((8, 8), 1, np.uint8))
        model = fake.models["check-reader"]
        calls: list[int] = []

        def run(inputs: dict[str, Any]) -> Any:
            calls.append(1)
            if len(calls) > 1:  # the first one asks who answers
                raise InvalidRequestError("no")
            return model.run(inputs)

        fake.models["check-reader"] = FakeModel(run, model.inputs, model.config, model.version)
        with pytest.raises((ScoringError, ClientError), match="refused"):
            score("check-reader", folder, tmp_path / "out", client=client, in_flight=1, chunk_rows=2, rows_per_file=32).finish()
    assert all(isinstance(call, Infer) for call in fake.inferences)
