"""Sources and data sets in S3, through s3fs and a real server that speaks its protocol."""

from __future__ import annotations

import gzip
import io
import json
import signal
import struct
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convoy.contract.errors import ImageError, SourceChangedError, UsageError
from convoy.serving.scoring.source import Source, open_source

pytestmark = pytest.mark.integration
pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")

BUCKET = "convoy-test"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def options(endpoint: str) -> dict[str, Any]:
    return {"key": "test", "secret": "test", "endpoint_url": endpoint, "client_kwargs": {"region_name": "eu-central-1"}}


@pytest.fixture
def s3(options: dict[str, Any]) -> Iterator[Any]:
    """The empty bucket."""
    import s3fs

    system = s3fs.S3FileSystem(**options, use_listings_cache=False)
    system.mkdir(BUCKET)
    yield system
    system.rm(BUCKET, recursive=True)


def texts(answers: Iterator[Any]) -> list[Any]:
    return [str(one) if isinstance(one, Exception) else one for one in answers]


def loaded(source: Source) -> list[Any]:
    entries = list(source.entries())
    assert list(source.entries()) == entries
    return texts(source.load(entries))


def test_a_prefix_and_a_pattern_of_it(s3: Any, options: dict[str, Any]) -> None:
    s3.pipe_file(f"{BUCKET}/set/", b"")  # the marker that consoles make for a folder
    for name in ("a.png", "in/b b.png", "in/é#%?.png", "notes.txt"):
        s3.pipe_file(f"{BUCKET}/set/{name}", name.encode())
    source = open_source(f"s3://{BUCKET}/set", storage_options=options)
    entries = list(source.entries())
    assert [entry.key for entry in entries] == ["a.png", "in/b b.png", "in/é#%?.png"]
    assert all(entry.stamp and entry.size > 0 for entry in entries)
    assert loaded(source) == [name.encode() for name in ("a.png", "in/b b.png", "in/é#%?.png")]
    assert source.skipped == {".txt files": 1}
    assert loaded(open_source(f"s3://{BUCKET}/set/in/b*.png", storage_options=options)) == [b"in/b b.png"]


def test_more_objects_than_one_page_of_a_listing(s3: Any, options: dict[str, Any]) -> None:
    s3.pipe({f"{BUCKET}/many/{number:04}.png": str(number).encode() for number in range(1050)})
    source = open_source(f"s3://{BUCKET}/many", storage_options=options)
    entries = list(source.entries())
    assert [entry.key for entry in entries] == [f"{number:04}.png" for number in range(1050)]
    assert list(source.load(entries[500:540])) == [str(number).encode() for number in range(500, 540)]


def test_an_object_that_changed_or_is_gone(s3: Any, options: dict[str, Any]) -> None:
    for name in ("changed", "gone", "empty"):
        s3.pipe_file(f"{BUCKET}/set/{name}.png", b"" if name == "empty" else b"x")
    source = open_source(f"s3://{BUCKET}/set", storage_options=options)
    entries = list(source.entries())
    s3.pipe_file(f"{BUCKET}/set/changed.png", b"y")  # of the same size
    s3.rm_file(f"{BUCKET}/set/gone.png")
    answers = list(source.load(entries))
    assert all(isinstance(answer, ImageError) for answer in answers)
    for answer, words in zip(answers, ("changed after the run began", "zero bytes", "cannot be read"), strict=True):
        assert words in str(answer)


def test_lists_there_and_here(s3: Any, options: dict[str, Any], tmp_path: Path) -> None:
    s3.pipe_file(f"{BUCKET}/in/a.png", b"a")
    s3.pipe_file(f"{BUCKET}/list.txt", f"in/a.png\ns3://{BUCKET}/in/a.png\ngone.png\n".encode())
    answers = loaded(open_source(f"s3://{BUCKET}/list.txt", storage_options=options))
    assert answers[:2] == [b"a", b"a"]
    assert "cannot be read" in answers[2]
    (tmp_path / "list.csv").write_text(f"path\ns3://{BUCKET}/in/a.png\n")
    assert loaded(open_source(tmp_path / "list.csv", storage_options=options)) == [b"a"]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tar_shards(mode: str, s3: Any, options: dict[str, Any]) -> None:
    end = "tar.gz" if mode == "w:gz" else "tar"
    for shard in range(2):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as tar:
            for name, content in (("a.png", f"{shard}".encode() * 9000), ("a.cls", b"cat"), ("b.png", b"b")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        s3.pipe_file(f"{BUCKET}/t/s-{shard:03}.{end}", buffer.getvalue())
    source = open_source(f"s3://{BUCKET}/t/s-{{000..001}}.{end}", label_column="cls", storage_options=options)
    assert loaded(source) == [b"0" * 9000, b"b", b"1" * 9000, b"b"]
    entries = list(source.entries())
    assert [entry.true_label for entry in entries] == ["cat", None, "cat", None]
    s3.pipe_file(f"{BUCKET}/t/s-000.{end}", b"another")
    with pytest.raises(SourceChangedError):
        list(source.load(entries))


def test_parquet(s3: Any, options: dict[str, Any]) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    buffer = io.BytesIO()
    parquet.write_table(pa.table({"image": [b"zero", b"one", b"two"], "y": ["a", "b", "c"]}), buffer, row_group_size=2)
    s3.pipe_file(f"{BUCKET}/p/x.parquet", buffer.getvalue())
    source = open_source(f"s3://{BUCKET}/p", label_column="y", storage_options=options)
    assert loaded(source) == [b"zero", b"one", b"two"]
    assert [entry.true_label for entry in source.entries()] == ["a", "b", "c"]


def test_arrays(s3: Any, options: dict[str, Any]) -> None:
    array = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
    buffer = io.BytesIO()
    np.save(buffer, array)
    idx = bytes([0, 0, 8, 3]) + struct.pack(">3I", 3, 4, 4) + array.tobytes()
    for name, content in (("x.npy", buffer.getvalue()), ("x-idx3-ubyte.gz", gzip.compress(idx))):
        s3.pipe_file(f"{BUCKET}/{name}", content)
        source = open_source(f"s3://{BUCKET}/{name}", storage_options=options)
        assert np.array_equal(np.stack(loaded(source))[..., 0], array)


def test_a_bucket_that_is_not_there(s3: Any, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="s3://convoy-no-such/x: cannot be read"):
        open_source("s3://convoy-no-such/x", storage_options=options)


KILLED = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[1])
from killed import transport
from convoy.serving.client import Client
from convoy.serving.scoring import score

def tell(progress):
    if progress.done >= int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)

client = Client(transport=transport(os.open(os.devnull, os.O_WRONLY)))
options = {"storage_options": json.loads(sys.argv[5]), **json.loads(sys.argv[6])}
score("digits", sys.argv[2], sys.argv[3], client=client, on_progress=tell, **options).finish()
"""
SMALL: dict[str, Any] = {"chunk_rows": 8, "rows_per_file": 32, "in_flight": 1}


def test_a_data_set_that_is_killed_and_goes_on(
    s3: Any, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    from convoy.contract.errors import ScoringError
    from convoy.serving.client import Client
    from convoy.serving.client.testing import FakeModel, FakeTransport
    from convoy.serving.scoring import _store, score

    images = np.arange(104, dtype=np.uint8)[:, None, None] + np.zeros((104, 4, 4), np.uint8)
    np.save(tmp_path / "x.npy", images)
    out, source = f"s3://{BUCKET}/sets/out", tmp_path / "x.npy"

    def probabilities(pixels: Any) -> Any:
        found = np.full((len(pixels), 3), 0.1, np.float32)
        found[np.arange(len(pixels)), pixels[:, 0, 0, 0] % 3] = 0.8
        return found

    def run(place: Any) -> Any:
        model = FakeModel.of_labels(("zero", "one", "two"), probabilities, image_size_px=4, max_batch_size=2, version="3")
        client = Client(transport=FakeTransport({"digits": model}))
        return score("digits", source, place, client=client, storage_options=options, **SMALL)

    monkeypatch.setattr(_store, "_SETTLES_S", 0.05)
    words = [
        str(Path(__file__).parents[1] / "serving" / "scoring"),
        str(source),
        out,
        "80",
        json.dumps(options),
        json.dumps(SMALL),
    ]
    done = subprocess.run([sys.executable, "-c", KILLED, *words], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(UsageError, match=r"another run writes here \(process \d+ of .*where it was killed, \d+ s"):
        run(out).finish()
    monkeypatch.setattr(_store, "LEASE_S", 0.5)
    time.sleep(0.5)
    summary = run(out).finish()
    assert (summary.n, summary.n_scored) == (104, 104)
    assert summary.n_resumed >= 16
    run(tmp_path / "out").finish()
    there = sorted(path.partition("/out/")[2] for path in s3.find(f"{BUCKET}/sets/out"))
    parts = [f"part-{part:06}.parquet" for part in range(4)]
    assert there == ["_convoy/manifest.json", "_convoy/run.json", *parts]
    for part in parts:
        tables = [
            parquet.read_table(io.BytesIO(s3.cat_file(f"{BUCKET}/sets/out/{part}"))),
            parquet.read_table(tmp_path / "out" / part),
        ]
        assert tables[0].drop_columns("latency_ms").equals(tables[1].drop_columns("latency_ms"))
    s3.pipe_file(f"{BUCKET}/sets/out/part-000001.parquet", b"damaged")
    with pytest.raises(ScoringError, match=r"part-000001.parquet: cannot be read: .*Remove this one file"):
        run(out).finish()
    s3.rm_file(f"{BUCKET}/sets/out/part-000001.parquet")
    assert run(out).finish().n_resumed == 72


def test_a_place_that_is_not_there_is_refused(s3: Any, options: dict[str, Any], tmp_path: Path) -> None:
    from convoy.contract.errors import ScoringError
    from convoy.serving.scoring import score

    np.save(tmp_path / "x.npy", np.zeros((4, 4, 4), np.uint8))
    s3.pipe_file(f"{BUCKET}/other/a.txt", b"a")
    with pytest.raises(UsageError, match=r"found 1 other files \(a.txt, say\)"):
        score("digits", tmp_path / "x.npy", f"s3://{BUCKET}/other", storage_options=options).finish()
    wrong = {**options, "endpoint_url": "http://127.0.0.1:1", "config_kwargs": {"retries": {"max_attempts": 1}}}
    with pytest.raises(ScoringError, match=r"s3://.*cannot be (read|written)"):
        score("digits", tmp_path / "x.npy", f"s3://{BUCKET}/out", storage_options=wrong).finish()
