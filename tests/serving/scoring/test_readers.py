"""What others read of a data set, while a run is under way and after it: the files of OUT, and nothing of OUT/_convoy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convoy.serving.client import Client
from convoy.serving.scoring import score

pytest.importorskip("pyarrow.parquet")


def with_arrow(out: Path) -> list[str]:
    import pyarrow.dataset

    found: list[str] = pyarrow.dataset.dataset(out).to_table().column("source").to_pylist()
    return found


def with_pandas(out: Path) -> list[str]:
    return list(pytest.importorskip("pandas").read_parquet(out)["source"])


def with_duckdb(out: Path) -> list[str]:
    duckdb = pytest.importorskip("duckdb")
    return [row[0] for row in duckdb.sql(f"select source from '{out}/*.parquet' order by row").fetchall()]


def with_duckdb_deeply(out: Path) -> list[str]:
    duckdb = pytest.importorskip("duckdb")
    return [row[0] for row in duckdb.sql(f"select source from '{out}/**/*.parquet' order by row").fetchall()]


def with_polars(out: Path) -> list[str]:
    """By a pattern: of a bare folder Polars refuses each file with another suffix, wherever it lies below."""
    return list(pytest.importorskip("polars").scan_parquet(f"{out}/*.parquet").collect()["source"])


@pytest.mark.parametrize("read", [with_arrow, with_pandas, with_duckdb, with_duckdb_deeply, with_polars])
def test_a_data_set_is_read_as_it_is(read: Callable[[Path], list[str]], tmp_path: Path, client: Client) -> None:
    np.save(tmp_path / "x.npy", np.zeros((400, 4, 4), np.uint8))
    out = tmp_path / "out"

    def run(**options: Any) -> Any:
        return score("digits", tmp_path / "x.npy", out, client=client, chunk_rows=8, rows_per_file=128, in_flight=1, **options)

    with run() as first:
        tables = iter(first)
        for _ in range(18):
            next(tables)
        assert list(out.glob("_convoy/chunk-*.arrow"))
        (out / "_convoy" / ".part-000006.parquet.0123abcd.tmp").write_bytes(b"half a file")
        found = read(out)
        assert len(found) == 128
        assert found == list(map(str, range(len(found))))
    run().finish()
    assert read(out) == list(map(str, range(400)))
