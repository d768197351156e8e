from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.contract.errors import InvalidResponseError
from convoy.serving.scoring._listing import InputRows
from convoy.serving.scoring._table import FORMATS, Answered, RowMaker, from_file, from_staged, to_file, to_staged
from convoy.serving.scoring.source import Entry

pytest.importorskip("pyarrow.parquet")

texts = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=12),
    st.sampled_from(
        [
            "",
            " ",
            '"',
            "'",
            ",",
            "\n",
            "\r",
            "\r\n",
            'a "b", c\nd',
            "null",
            "NA",
            "NaN",
            "nan",
            "None",
            "true",
            "1",
            "-0.0",
            "1e5",
            "🐝",
            "\u2028",
            "\x85",
            "\x0b",
            "\x0c",
            "\x1c",
            "\\",
            "\\n",
            "é",
            "#",
            "=1+1",
            "\ufeff",
            "\x00",
            "[]",
            "{}",
            "\t",
        ]
    ),
)


def inputs_of(*entries: Entry) -> InputRows:
    """Inputs as a listing gives them."""
    import pyarrow

    types = {"key": "string", "locator": "string", "size": "int64", "stamp": "string", "true_label": "string"}
    columns = [pyarrow.array([getattr(entry, name) for entry in entries], form) for name, form in types.items()]
    return InputRows(pyarrow.record_batch(columns, list(types)))


@st.composite
def tables(draw: st.DrawFn) -> Any:
    labels = tuple(draw(st.lists(texts, min_size=1, max_size=4, unique=True)))
    n = draw(st.integers(1, 6))
    entries = [Entry(draw(texts), str(i), 0, "", draw(st.none() | texts)) for i in range(n)]
    places = sorted(draw(st.sets(st.integers(0, n - 1))))
    errors = {i: draw(texts) for i in range(n) if i not in places}
    seed = draw(st.integers(0, 2**32 - 1))
    probabilities = np.random.default_rng(seed).dirichlet([0.1] * len(labels), len(places)).astype(np.float32) if places else None
    maker = RowMaker(labels, draw(st.integers(1, 5)), draw(texts), "3", draw(st.none() | st.just("ab" * 32)), "0" * 32)
    latency = draw(st.floats(0, 1e6, width=32))
    return maker.table(draw(st.integers(0, 2**40)), inputs_of(*entries), [Answered(n, places, probabilities, latency, errors)])


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=150)
@given(table=tables())
def test_rows_come_back_from_a_file_as_they_were(form: Any, table: Any) -> None:
    again = from_file(to_file(table, form), form, table.schema)
    assert again.schema.equals(table.schema)
    assert again.equals(table)


@settings(max_examples=50)
@given(table=tables())
def test_rows_come_back_from_a_chunk_as_they_were(table: Any) -> None:
    again = from_staged(to_staged(table))
    assert again.schema.equals(table.schema, check_metadata=True)
    assert again.equals(table)


@pytest.mark.parametrize("form", FORMATS)
def test_a_row_may_be_longer_than_a_block(form: Any) -> None:
    labels = tuple(f"{i:0100}" for i in range(20_000))
    maker = RowMaker(labels, 1 << 30, "m", "1", None, "")
    entry = Entry("x", "x", 0, "", "a\nb")
    probabilities = np.full((2, 20_000), 1 / 20_000, np.float32)
    table = maker.table(0, inputs_of(entry, entry), [Answered(2, [0, 1], probabilities, 1.0, {})])
    assert from_file(to_file(table, form), form, table.schema).equals(table)


def test_of_equally_likely_classes_the_first_comes_first() -> None:
    maker = RowMaker(tuple("abcde"), 3, "m", "1", None, "")
    probabilities = np.full((1, 5), 0.2, np.float32)
    table = maker.table(0, inputs_of(Entry("x", "x", 0, "", None)), [Answered(1, [0], probabilities, 1.0, {})])
    assert [candidate["label"] for candidate in table.column("top_k")[0].as_py()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "answer",
    [
        np.ones((2, 3), np.float32),
        np.full((2, 3), np.nan, np.float32),
        np.array([[-0.5, 1, 0.5], [1, 0, 0]], np.float32),
        np.zeros((2, 2), np.float32),
        np.full((1, 3), 1 / 3, np.float32),
        np.array([[1, 0, 0], [0, 1, 0]]),
    ],
)
def test_what_is_no_distribution_is_refused(answer: Any) -> None:
    with pytest.raises(InvalidResponseError, match="expected probabilities"):
        RowMaker(("a", "b", "c"), 1, "m", "1", None, "").check(answer, 2)
