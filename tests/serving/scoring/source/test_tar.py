from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convoy.contract.errors import DataError, ImageError, SourceChangedError, UsageError
from convoy.serving.scoring.source import _entry, open_source

Keys = Callable[[Any], list[str]]
Loaded = Callable[[Any], list[Any]]
TarBytes = Callable[..., bytes]

SAMPLES = {"d/0.png": b"zero", "d/0.cls": b"cat\n", "1.json": b"{}", "1.JPG": b"one" * 300, "1.cls": b"2", "2.json": b"{}"}


@pytest.mark.parametrize(("name", "mode"), [("x.tar", "w"), ("x.tar.gz", "w:gz"), ("x.tgz", "w:gz")])
@pytest.mark.parametrize("labels", [True, False])
def test_samples_are_grouped_by_name(
    name: str, mode: str, labels: bool, tmp_path: Path, tar_bytes: TarBytes, keys: Keys, loaded: Loaded
) -> None:
    (tmp_path / name).write_bytes(tar_bytes(SAMPLES, mode))
    source = open_source(tmp_path / name, label_column="cls" if labels else None)
    assert source.kind == "tar"
    assert keys(source) == [f"{name}:d/0", f"{name}:1"]
    assert [entry.size for entry in source.entries()] == [4, 900]
    assert [entry.true_label for entry in source.entries()] == (["cat", "2"] if labels else [None, None])
    assert source.skipped == {"samples without image": 1}
    assert loaded(source) == [b"zero", b"one" * 300]
    entries = list(source.entries())
    assert list(source.load(entries[::-1])) == [b"one" * 300, b"zero"]


def test_the_image_of_a_sample_is_the_one_without_a_further_name(tmp_path: Path, tar_bytes: TarBytes, loaded: Loaded) -> None:
    (tmp_path / "x.tar").write_bytes(tar_bytes({"a.mask.png": b"mask", "a.jpg": b"photo", "b.left.png": b"left"}))
    source = open_source(tmp_path / "x.tar")
    assert loaded(source) == [b"photo", b"left"]
    assert source.skipped == {"further images of a sample": 1}


def test_long_and_foreign_names_are_found(tmp_path: Path, tar_bytes: TarBytes, loaded: Loaded) -> None:
    names = ["n" * 300 + ".png", os.fsdecode(b"\xff\xfe.png"), "a b#1+2:\n.png"]
    (tmp_path / "x#y.tar").write_bytes(tar_bytes({name: str(place).encode() for place, name in enumerate(names)}))
    source = open_source(tmp_path / "x#y.tar")
    entries = list(source.entries())
    assert entries[1].key == r"x#y.tar:\xff\xfe"
    for entry in entries:
        (entry.key + entry.locator).encode("utf-8")
    assert loaded(source) == [b"0", b"1", b"2"]


@pytest.mark.parametrize("spec", ["", "/*.tar", "/**/*.tar", "/s-{000..001}.tar", "/s-{000,001}.tar"])
def test_shards_are_a_folder_a_pattern_or_a_range(
    spec: str, tmp_path: Path, tar_bytes: TarBytes, keys: Keys, loaded: Loaded
) -> None:
    for shard in range(2):
        (tmp_path / f"s-{shard:03}.tar").write_bytes(tar_bytes({f"{n}.png": f"{shard}{n}".encode() for n in range(2)}))
    source = open_source(f"{tmp_path}{spec}")
    assert source.kind == "tar"
    assert keys(source) == ["s-000.tar:0", "s-000.tar:1", "s-001.tar:0", "s-001.tar:1"]
    assert loaded(source) == [b"00", b"01", b"10", b"11"]


def test_ranges_may_span_folders(tmp_path: Path, tar_bytes: TarBytes, keys: Keys) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.tar").write_bytes(tar_bytes({"x.png": b"x"}))
    assert keys(open_source(f"{tmp_path}/{{a,b}}/{{0..0}}.tar")) == ["a/0.tar:x", "b/0.tar:x"]


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("s-{0..3}.tar", DataError, "s-0.tar: cannot be read: No such file"),
        ("s-{3..0}.tar", UsageError, "runs upwards"),
        ("s-{0..9999999999}.tar", UsageError, "at most"),
        ("s-{0..9}{0..999999}.tar", UsageError, "more than"),
        ("s-{0..3}.png", UsageError, "braces name tar or Parquet"),
        ("s-{0..3}*.tar", UsageError, "without other wildcards"),
    ],
)
def test_a_range_that_names_nothing_says_why(spec: str, error: type, words: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=words):
        open_source(f"{tmp_path}/{spec}")


def test_what_cannot_be_read_is_an_error_in_its_place(tmp_path: Path, tar_bytes: TarBytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_entry, "MOST_BYTES", 4)
    (tmp_path / "x.tar").write_bytes(tar_bytes({"a.png": b"x", "empty.png": b"", "large.png": b"12345"}))
    source = open_source(tmp_path / "x.tar")
    first, empty, large = source.load(list(source.entries()))
    assert first == b"x"
    assert isinstance(empty, ImageError)
    assert "zero bytes" in str(empty)
    assert "5 bytes are more than the 4" in str(large)


def test_a_shard_that_is_cut_short_has_a_row_that_says_so(tmp_path: Path, tar_bytes: TarBytes, keys: Keys, loaded: Loaded) -> None:
    whole = tar_bytes({"a.png": b"a" * 600, "b.png": b"b" * 5000, "c.png": b"c"})
    (tmp_path / "x.tar").write_bytes(whole[:4000])
    source = open_source(tmp_path / "x.tar")
    assert keys(source)[:2] == ["x.tar:a", "x.tar:b"]
    answers = loaded(source)
    assert answers[0] == b"a" * 600
    assert "expected 5,000 bytes" in answers[1]
    assert "cannot be found" in answers[2]


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path, tar_bytes: TarBytes, loaded: Loaded) -> None:
    whole = bytearray(tar_bytes({"a.png": b"a", "b.png": b"b"}))
    whole[1024:1100] = b"!" * 76
    (tmp_path / "x.tar").write_bytes(whole)
    answers = loaded(open_source(tmp_path / "x.tar"))
    assert answers[0] == b"a"
    assert "damaged at byte 1024" in answers[1]


@given(st.integers(0, 4095), st.integers(0, 255), st.integers(600, 4096))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_a_damaged_shard_never_hangs_or_loses_images_silently(
    tmp_path: Path, tar_bytes: TarBytes, place: int, value: int, length: int
) -> None:
    whole = bytearray(tar_bytes({"a.png": b"a" * 512, "b.png": b"b" * 512, "c.png": b"c"}))[:4096]
    whole[place] = value
    (tmp_path / "x.tar").write_bytes(whole[:length])
    try:
        source = open_source(tmp_path / "x.tar")
        entries = list(source.entries())
    except DataError:
        return
    assert 1 <= len(entries) <= 5
    assert len(list(source.load(entries))) == len(entries)


@pytest.mark.parametrize("content", [b"", b"no tar file at all" * 99])
@pytest.mark.parametrize("name", ["x.tar", "x.tgz"])
def test_what_is_no_tar_is_refused(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"expected a tar file|cannot be unzipped"):
        open_source(tmp_path / name)


def test_links_and_hidden_members_are_no_inputs(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in (
            ("l.png", tarfile.SYMTYPE),
            ("d.png", tarfile.DIRTYPE),
            (".h.png", tarfile.REGTYPE),
            ("a.png", tarfile.REGTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    (tmp_path / "x.tar").write_bytes(buffer.getvalue())
    source = open_source(tmp_path / "x.tar")
    assert [entry.key for entry in source.entries()] == ["x.tar:a"]
    assert source.skipped == {"links, devices or sparse files": 1, "hidden": 1}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_another_shard_under_the_name_ends_the_run(mode: str, tmp_path: Path, tar_bytes: TarBytes) -> None:
    path = tmp_path / ("x.tgz" if mode == "w:gz" else "x.tar")
    path.write_bytes(tar_bytes({"a.png": b"a"}, mode))
    source = open_source(path)
    entries = list(source.entries())
    path.write_bytes(tar_bytes({"a.png": b"b"}, mode))
    os.utime(path, ns=(1, 1))
    with pytest.raises(SourceChangedError, match="changed since it was listed"):
        list(source.load(entries))
    path.unlink()
    with pytest.raises(SourceChangedError, match="gone"):
        list(source.load(entries))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_many_threads_list_and_load_at_once(mode: str, tmp_path: Path, tar_bytes: TarBytes) -> None:
    for shard in range(3):
        path = tmp_path / (f"{shard}.tgz" if mode == "w:gz" else f"{shard}.tar")
        path.write_bytes(tar_bytes({f"{n}.png": f"{shard}-{n}".encode() for n in range(40)}, mode))
    source = open_source(tmp_path)
    expected = [f"{shard}-{n}".encode() for shard in range(3) for n in range(40)]
    with ThreadPoolExecutor(6) as pool:
        for answers in pool.map(lambda _: list(source.load(list(source.entries()))), range(12)):
            assert answers == expected


def test_labels_of_shards_are_their_cls_members(tmp_path: Path, tar_bytes: TarBytes) -> None:
    (tmp_path / "x.tar").write_bytes(tar_bytes(SAMPLES))
    for options, words in (
        ({"label_column": "json"}, "expected 'cls'"),
        ({"column": "png"}, "no columns"),
        ({"labels_from_folders": True}, "folders"),
    ):
        with pytest.raises(UsageError, match=words):
            open_source(tmp_path / "x.tar", **options)  # type: ignore[arg-type]
