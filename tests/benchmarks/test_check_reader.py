from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from benchmarks._reader_stages import CORRECTIONS, read_corrections, recipes
from convoy.contract.errors import DataError
from convoy.training.check_reader.fields import load_orand

ORAND = Path(os.environ.get("CONVOY_DATA", "")) / "orand_car_a"


def test_each_mended_label_has_a_reason_and_is_another() -> None:
    with CORRECTIONS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["name"] for row in rows}) == len(rows) >= 25
    for row in rows:
        assert row["given"].isdigit()
        assert row["corrected"].isdigit()
        assert row["given"] != row["corrected"]
        assert len(row["reason"]) > 10


@pytest.mark.skipif(not ORAND.is_dir(), reason="CONVOY_DATA has no orand_car_a")
def test_the_mended_labels_are_those_of_the_fields() -> None:
    fields = {field.name: field for field in load_orand(ORAND, boxes=False)}
    assert len(read_corrections(fields)) >= 25
    del fields["a_car_000181"]
    with pytest.raises(DataError, match="expected the field a_car_000181 with the label 423"):
        read_corrections(fields)


def test_the_ways_that_are_compared_differ_where_they_should() -> None:
    ways = recipes()
    assert [ways[name].criterion for name in ("frames", "viterbi", "ctc", "lenet5")] == ["frames", "viterbi", "ctc", "forward"]
    assert ways["plain"].distortion != ways["lenet5"].distortion
    assert {way.handwriting for way in ways.values()} == {"mnist"}
