from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convoy.contract.errors import UsageError
from convoy.serving.scoring.source import Entry, describe_skipped, open_source


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.bin", b"a\0b", "neither text nor an array"),
        ("x.json", b"{}", r"found a file that ends in \.json"),
        ("digit.png", b"\x89PNG", "convoy predict"),
    ],
)
def test_what_is_no_set_is_refused_with_what_is_taken(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=f"{words}.*Accepted: a folder of images"):
        open_source(tmp_path / name)


def test_a_source_that_is_not_there_or_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"cannot be read: No such file"):
        open_source(tmp_path / "gone")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        with pytest.raises(UsageError, match="neither a folder nor a regular file"):
            open_source("s")


def test_a_folder_of_images_and_shards_is_one_of_images(tmp_path: Path, tar_bytes: Callable[..., bytes]) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes({"x.png": b"x"}))
    (tmp_path / "b.parquet").touch()
    with pytest.raises(UsageError, match="found both"):
        open_source(tmp_path)
    (tmp_path / "z.png").write_bytes(b"z")
    source = open_source(tmp_path)
    assert [entry.key for entry in source.entries()] == ["z.png"]
    assert source.skipped == {".tar files": 1, ".parquet files": 1}
    assert open_source(f"{tmp_path}/*.tar").kind == "tar"


def test_an_entry_survives_json(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff\n.png")).write_bytes(b"x")
    source = open_source(tmp_path)
    entries = [Entry(**json.loads(json.dumps(asdict(entry), ensure_ascii=False).encode())) for entry in source.entries()]
    assert list(source.load(entries)) == [b"x"]
    assert list(open_source(tmp_path).load(entries)) == [b"x"]


def test_only_arrays_have_blocks(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    assert open_source(tmp_path).block(0, 1) is None
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 3), np.uint8))
    block: Any = open_source(tmp_path / "x.npy").block(0, 2)
    assert block.shape == (2, 3, 3)


def test_what_was_skipped_is_told_in_words() -> None:
    assert describe_skipped({"hidden": 2, ".txt files": 1}, before="; ") == "; 1 .txt files, 2 hidden"
    assert describe_skipped({}, before="; ") == ""
