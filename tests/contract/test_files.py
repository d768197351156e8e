"""Documents and files: whole or not there."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from convoy.contract import errors
from convoy.contract.agreement import Tolerance
from convoy.contract.errors import ContractError
from convoy.contract.files import new_folder, sha256_bytes, sha256_file, write_bytes
from convoy.contract.goldens import Goldens
from convoy.contract.manifest import Manifest
from convoy.contract.validation import Check, ValidationReport, sum_up


def goldens(n: int = 3) -> Goldens:
    zeros = np.zeros((n, 2), np.float32)
    return Goldens.of_classes(np.ones((n, 4, 4, 1), np.uint8), zeros, zeros + 0.5, np.zeros(n, np.int64))


def test_a_write_that_fails_keeps_the_old_content_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("convoy.contract.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_new_folder_takes_the_place_of_an_old_one_only_when_it_is_whole(tmp_path, monkeypatch):
    place = tmp_path / "place"
    for word in ("old", "new"):
        with new_folder(place) as folder:
            (folder / "word").write_text(word)
    assert (place / "word").read_text() == "new"

    with pytest.raises(FileNotFoundError), new_folder(place) as folder:
        (folder / "half").write_text((folder / "missing").read_text())
    true_replace = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if target == place and (self / "word").read_text() == "never":
            raise OSError(5, "Input/output error")
        return true_replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="Input"), new_folder(place) as folder:
        (folder / "word").write_text("never")
    assert (place / "word").read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["place"]


def test_digests_are_sha256(tmp_path):
    data = bytes(range(256)) * 9000
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == sha256_bytes(data) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema_version": 2}', b"\xff\xfe"])
def test_a_damaged_document_is_named_with_its_file(tmp_path, content):
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(ContractError, match=r"manifest\.json: expected a Manifest"):
        Manifest.load(path)


def test_goldens_come_back_as_they_were_and_equal_ones_are_equal_bytes(tmp_path):
    goldens().save(tmp_path / "a")
    goldens().save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    back = Goldens.load(tmp_path / "a")
    assert (list(back.inputs), list(back.outputs)) == (["image"], ["logits", "probabilities"])
    for key, values in {**back.inputs, **back.outputs}.items():
        np.testing.assert_array_equal(values, {**goldens().inputs, **goldens().outputs}[key])
    np.testing.assert_array_equal(back.truth, goldens().truth)


def test_damaged_goldens_are_refused(tmp_path):
    path = tmp_path / "goldens.npz"
    goldens().save(path)
    whole = path.read_bytes()
    for content in (b"", b"PK", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ContractError, match=r"goldens\.npz"):
            Goldens.load(path)
    goldens(0).save(path)
    with pytest.raises(ContractError, match="do not belong together"):
        Goldens.load(path)
    np.savez(path, image=np.array([object()]), logits=0, probabilities=0, label=0)  # pickled: never loaded
    with pytest.raises(ContractError):
        Goldens.load(path)


def test_a_report_whose_verdict_is_not_what_its_checks_say_is_refused():
    facts = {
        "model_name": "m", "model_sha256": "0" * 64, "goldens_sha256": "0" * 64, "manifest_sha256": "0" * 64,
        "accuracy": None, "versions": {},
        "tolerances": {"logits": Tolerance(atol=0, rtol=0)},
    }  # fmt: skip
    failed = Check(name="x", verdict="failed", expected="a", found="b")
    with pytest.raises(ValueError, match="not what the checks say"):
        ValidationReport(verdict="passed", checks=(failed,), **facts)
    with pytest.raises(ValueError, match="not what the checks say"):
        ValidationReport(verdict="passed", checks=(), **facts)
    assert sum_up([]) == "undecided"


def test_the_tree_of_errors_in_the_docstring_is_the_tree_of_classes():
    drawn = [line for line in (errors.__doc__ or "").splitlines() if "Error" in line and line.startswith("    ")]
    stack: list[tuple[int, str]] = []
    for line in drawn:
        bare = line.replace("│", " ").replace("├── ", "    ").replace("└── ", "    ")
        depth, name = len(bare) - len(bare.lstrip()), bare.split()[0]
        stack = [entry for entry in stack if entry[0] < depth]
        if stack:
            assert getattr(errors, name).__bases__ == (getattr(errors, stack[-1][1]),), name
        stack.append((depth, name))
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.ConvoyError)}
    assert classes == {line.replace("│", " ").replace("├── ", "").replace("└── ", "").split()[0] for line in drawn}
