from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from convoy.contract.errors import DataError, ImageError, SourceChangedError, UsageError
from convoy.serving.scoring.source import _entry, open_source
from convoy.serving.scoring.source._parquet import ParquetSource

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

Keys = Callable[[Any], list[str]]
Loaded = Callable[[Any], list[Any]]

CONTENT = [b"zero", b"one", b"two", b"three", b"four"]


def write(path: Path, columns: dict[str, Any], *, row_group_size: int = 2, schema: Any = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns, schema=schema), path, row_group_size=row_group_size)
    return path


@pytest.mark.parametrize("kind", ["binary", "large_binary", "struct", "dictionary"])
@pytest.mark.parametrize("name", ["image", "bytes", "scan"])
def test_bytes_are_read_from_every_kind_of_column(kind: str, name: str, tmp_path: Path, keys: Keys, loaded: Loaded) -> None:
    column: Any = pa.array(CONTENT, {"large_binary": pa.large_binary()}.get(kind, pa.binary()))
    if kind == "struct":
        column = pa.array([{"bytes": content, "path": "x.png"} for content in CONTENT])
    elif kind == "dictionary":
        column = column.dictionary_encode()
    source = open_source(write(tmp_path / "x.parquet", {"n": range(5), name: column}))
    assert source.kind == "parquet"
    assert keys(source) == [f"x.parquet#{row}" for row in range(5)]
    assert loaded(source) == CONTENT
    entries = list(source.entries())
    assert list(source.load([entries[4], entries[0]])) == [b"four", b"zero"]


def test_listing_reads_no_image_and_loading_each_row_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(write(tmp_path / "x.parquet", {"image": CONTENT}))
    read: list[Any] = []
    original = ParquetSource._read

    def counted(self: Any, name: str, version: str, group: int, columns: list[str]) -> Any:
        read.append((group, columns))
        return original(self, name, version, group, columns)

    monkeypatch.setattr(ParquetSource, "_read", counted)
    entries = list(source.entries())
    assert read == []
    assert list(source.load(entries)) == CONTENT
    assert list(source.load(entries)) == CONTENT
    assert read == [(group, ["image"]) for group in range(3)]


@pytest.mark.parametrize("spec", ["", "/*.parquet", "/**/*.parquet", "/{a,b}.parquet"])
def test_several_files_are_one_source(spec: str, tmp_path: Path, keys: Keys, loaded: Loaded) -> None:
    write(tmp_path / "a.parquet", {"image": CONTENT[:3]})
    write(tmp_path / "b.parquet", {"image": CONTENT[3:]})
    source = open_source(f"{tmp_path}{spec}")
    assert keys(source) == ["a.parquet#0", "a.parquet#1", "a.parquet#2", "b.parquet#0", "b.parquet#1"]
    assert loaded(source) == CONTENT


@pytest.mark.parametrize("name", ["key", "id"])
def test_a_column_of_keys_names_the_inputs(name: str, tmp_path: Path, keys: Keys) -> None:
    source = open_source(write(tmp_path / "x.parquet", {"image": CONTENT, name: pa.array([7, 8, None, 8, 9])}))
    assert keys(source) == ["7", "8", "x.parquet#2", "8", "9"]


def test_labels_have_the_names_that_hugging_face_gives_them(tmp_path: Path) -> None:
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())], {"huggingface": json.dumps(features)})
    path = write(tmp_path / "x.parquet", {"image": CONTENT, "label": [0, 1, None, 1, -1]}, schema=schema)
    assert [entry.true_label for entry in open_source(path, label_column="label").entries()] == ["cat", "dog", None, "dog", None]
    assert {entry.true_label for entry in open_source(path).entries()} == {None}
    plain = write(tmp_path / "y.parquet", {"image": CONTENT[:2], "label": [3, 4]})
    assert [entry.true_label for entry in open_source(plain, label_column="label").entries()] == ["3", "4"]


def test_a_column_of_paths_is_a_list(tmp_path: Path, keys: Keys, loaded: Loaded) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"x")
    source = open_source(write(tmp_path / "x.parquet", {"path": ["in/a.png", "gone.png", "in/a.png", None]}))
    assert keys(source) == ["in/a.png", "gone.png", "in/a.png", ""]
    answers = loaded(source)
    assert [answers[0], answers[2]] == [b"x", b"x"]
    assert "No such file" in answers[1]
    assert "found a folder" in answers[3]


def test_an_image_beside_the_table_is_found(tmp_path: Path, loaded: Loaded) -> None:
    (tmp_path / "a.png").write_bytes(b"beside")
    column = pa.array(
        [{"bytes": None, "path": "a.png"}, {"bytes": b"inside", "path": "a.png"}, {"bytes": None, "path": None}, None]
    )
    answers = loaded(open_source(write(tmp_path / "x.parquet", {"image": column})))
    assert answers[:2] == [b"beside", b"inside"]
    assert all("null" in answer for answer in answers[2:])


def test_what_cannot_be_read_is_an_error_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_entry, "MOST_BYTES", 4)
    source = open_source(write(tmp_path / "x.parquet", {"image": [b"x", b"", None, b"12345"]}))
    first, *errors = source.load(list(source.entries()))
    assert first == b"x"
    for error, words in zip(errors, ("zero bytes", "null", "5 bytes are more than the 4"), strict=True):
        assert isinstance(error, ImageError)
        assert words in str(error)


@pytest.mark.parametrize(
    ("columns", "options", "words"),
    [
        ({"n": [1], "m": [2]}, {}, r"expected one column.*found n \(int64\), m \(int64\)"),
        ({"a": [b"x"], "b": [b"y"]}, {}, "Name the column"),
        ({"image": [b"x"]}, {"column": "y"}, "expected a column 'y'"),
        ({"image": [b"x"]}, {"label_column": "y"}, "expected a column 'y'"),
        ({"image": [b"x"], "n": [1]}, {"column": "n"}, "found int64"),
        ({"image": [b"x"]}, {"labels_from_folders": True}, "only be taken from folders"),
    ],
)
def test_a_table_without_such_a_column_is_refused(columns: Any, options: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        open_source(write(tmp_path / "x.parquet", columns), **options)


def test_what_is_no_parquet_or_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match="expected a Parquet file"):
        open_source(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="nothing to score"):
        open_source(write(tmp_path / "y.parquet", {"image": pa.array([], pa.binary())}))


def test_a_damaged_row_group_costs_its_own_rows_only(tmp_path: Path, loaded: Loaded) -> None:
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"image": [os.urandom(4000) for _ in range(4)]}), path, row_group_size=2, use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[4:200] = b"\xff" * 196
    path.write_bytes(content)
    answers = loaded(open_source(path))
    assert all(isinstance(answer, str) and "row group 0 cannot be read" in answer for answer in answers[:2])
    assert [len(answer) for answer in answers[2:]] == [4000, 4000]


def test_another_file_under_the_name_ends_the_run(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", {"image": CONTENT})
    source = open_source(path)
    entries = list(source.entries())
    write(path, {"image": CONTENT[::-1]})
    os.utime(path, ns=(1, 1))
    with pytest.raises(SourceChangedError, match="changed since it was listed"):
        list(source.load(entries))


def test_many_threads_load_at_once(tmp_path: Path) -> None:
    content = [str(row).encode() for row in range(200)]
    source = open_source(write(tmp_path / "x.parquet", {"image": content}, row_group_size=7))
    entries = list(source.entries())
    with ThreadPoolExecutor(8) as pool:
        chunks = list(pool.map(lambda start: list(source.load(entries[start : start + 10])), range(0, 200, 10)))
    assert [one for chunk in chunks for one in chunk] == content
