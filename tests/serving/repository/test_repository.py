"""Deploying, rolling back, refusing; and that a process killed at any point leaves the old version served."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from convoy.contract.bundle import Bundle
from convoy.contract.errors import (
    ContractError,
    DigestMismatchError,
    IncompatibleModelError,
    NotValidatedError,
    RepositoryError,
    UsageError,
)
from convoy.serving.repository import Repository
from convoy.serving.repository.config import load_config, served_version


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_first_deployment_is_version_1_with_all_that_triton_and_people_need(repository, make_bundle):
    done = repository.deploy(make_bundle())
    assert (done.version, done.previous, done.changed) == (1, None, True)
    assert visible(repository.root) == ["tiny"]
    assert visible(repository.root / "tiny") == ["1", "config.pbtxt", "labels.txt"]
    assert visible(repository.root / "tiny" / "1") == [
        "config.pbtxt",
        "goldens.npz",
        "manifest.json",
        "model.onnx",
        "validation.json",
    ]
    assert (repository.root / "tiny" / "labels.txt").read_text() == "a\nb\n"


def test_the_next_deployment_is_served_and_the_old_version_stays(repository, make_bundle):
    repository.deploy(make_bundle())
    before = {path: path.read_bytes() for path in (repository.root / "tiny" / "1").iterdir()}
    done = repository.deploy(make_bundle(b"model two"))
    assert (done.version, done.previous) == (2, 1)
    (entry,) = repository.models(check=True)
    assert entry.served == 2
    assert [version.version for version in entry.versions] == [1, 2]
    assert before == {path: path.read_bytes() for path in (repository.root / "tiny" / "1").iterdir()}


def test_deploying_what_is_served_changes_nothing(repository, make_bundle):
    bundle = make_bundle()
    repository.deploy(bundle)
    assert not repository.deploy(bundle).changed
    assert [version.version for version in repository.models()[0].versions] == [1]


def test_a_rollback_serves_what_was_served_before_not_the_next_lower_number(repository, make_bundle):
    for model in (b"one", b"two", b"three"):
        repository.deploy(make_bundle(model))
    assert repository.rollback("tiny").version == 2
    assert repository.deploy(make_bundle(b"four")).version == 4
    assert repository.rollback("tiny").version == 2
    assert repository.rollback("tiny", to=4).version == 4
    assert repository.rollback("tiny", to=4).changed is False


def test_a_rollback_without_a_predecessor_says_so(repository, make_bundle):
    repository.deploy(make_bundle())
    with pytest.raises(RepositoryError, match="no predecessor"):
        repository.rollback("tiny")
    with pytest.raises(RepositoryError, match=r"expected version 7, found 1"):
        repository.rollback("tiny", to=7)
    with pytest.raises(RepositoryError, match=r"expected the model 'other', found tiny"):
        repository.rollback("other")


def test_a_rollback_to_a_damaged_version_is_refused_and_changes_nothing(repository, make_bundle):
    repository.deploy(make_bundle())
    repository.deploy(make_bundle(b"two"))
    (repository.root / "tiny" / "1" / "model.onnx").write_bytes(b"tampered")
    with pytest.raises(DigestMismatchError):
        repository.rollback("tiny")
    assert repository.models()[0].served == 2


def test_what_a_person_set_in_the_configuration_survives_and_rolls_back(repository, make_bundle):
    repository.deploy(make_bundle())
    path = repository.root / "tiny" / "config.pbtxt"
    path.write_text(path.read_text().replace("dynamic_batching {\n}", "dynamic_batching {\n  max_queue_delay_microseconds: 250\n}"))
    assert load_config(path).dynamic_batching.max_queue_delay_microseconds == 250
    repository.deploy(make_bundle(b"two"))
    config = load_config(path)
    assert config.dynamic_batching.max_queue_delay_microseconds == 250
    assert served_version(config) == 2
    repository.rollback("tiny")
    assert load_config(path).dynamic_batching.max_queue_delay_microseconds == 0


def test_comments_and_the_manner_of_a_person_survive_deployments_and_rollbacks(repository, make_bundle):
    repository.deploy(make_bundle())
    path = repository.root / "tiny" / "config.pbtxt"
    by_hand = path.read_text().replace(
        "dynamic_batching {\n}", "# Ada measured this.\ndynamic_batching <preserve_ordering:true>  # keep"
    )
    by_hand += "\n\nparameters { key: 'intra_op_thread_count' value { string_value: '1' } } # one\n# the end\n"
    path.write_text(by_hand)
    repository.deploy(make_bundle(b"two"))
    by_convoy = path.read_text()
    changed = [line for line in by_hand.splitlines() if line not in by_convoy.splitlines()]
    assert [line.split(":")[0].strip() for line in changed] == ["versions", "string_value"]  # the version, and the digest
    assert (
        by_convoy.index("# Ada measured this.") < by_convoy.index("<preserve_ordering:true>  # keep") < by_convoy.index("# the end")
    )
    repository.deploy(make_bundle(b"three"))
    repository.rollback("tiny")
    assert path.read_text() == by_convoy == (repository.root / "tiny" / "2" / "config.pbtxt").read_text()


def test_a_configuration_that_triton_would_refuse_is_not_deployed_over(repository, make_bundle):
    repository.deploy(make_bundle())
    path = repository.root / "tiny" / "config.pbtxt"
    path.write_text(path.read_text().replace("kind: KIND_CPU", "").replace("count: 1", "count: 1 kind: KIND_CPU gpus: 0"))
    with pytest.raises(RepositoryError, match=r"config\.pbtxt: gpus: expected none with KIND_CPU"):
        repository.deploy(make_bundle(b"two"))
    assert visible(repository.root / "tiny") == ["1", "config.pbtxt", "labels.txt"]


def test_the_largest_batch_follows_what_was_validated_and_no_batch_is_larger(repository, make_bundle):
    path = repository.root / "tiny" / "config.pbtxt"

    def batches() -> tuple[int, list[int]]:
        config = load_config(path)
        return config.max_batch_size, [warmup.batch_size for warmup in config.model_warmup]

    repository.deploy(make_bundle(most=64))
    assert batches() == (64, [1, 64])
    repository.deploy(make_bundle(b"two", most=32))
    assert batches() == (32, [1, 32])
    repository.deploy(make_bundle(b"three", most=64))
    assert batches() == (64, [1, 64])
    path.write_text(path.read_text().replace("dynamic_batching {", "dynamic_batching {\n  preferred_batch_size: [ 8, 48 ]"))
    repository.deploy(make_bundle(b"four", most=16))
    assert batches() == (16, [1, 16])
    assert list(load_config(path).dynamic_batching.preferred_batch_size) == [8]


def test_a_batch_size_that_a_person_lowered_stays_lowered(repository, make_bundle):
    repository.deploy(make_bundle(most=64))
    path = repository.root / "tiny" / "config.pbtxt"
    path.write_text(path.read_text().replace("max_batch_size: 64", "max_batch_size: 4"))
    repository.deploy(make_bundle(b"two", most=64))
    config = load_config(path)
    assert config.max_batch_size == 4
    assert max(warmup.batch_size for warmup in config.model_warmup) == 4


@pytest.mark.parametrize("verdict", ["failed", "undecided"])
def test_what_is_not_validated_is_refused(repository, make_bundle, verdict):
    with pytest.raises(NotValidatedError, match=f"'passed', found '{verdict}'"):
        repository.deploy(make_bundle(verdict=verdict))
    assert not repository.root.exists()


def test_a_file_changed_after_validation_is_refused(repository, make_bundle):
    bundle = make_bundle()
    bundle.model_path.write_bytes(b"model onf")
    with pytest.raises(DigestMismatchError):
        repository.deploy(bundle)


def test_a_truncated_file_or_a_missing_report_is_refused(repository, make_bundle):
    bundle = make_bundle()
    bundle.model_path.write_bytes(b"model")
    with pytest.raises(DigestMismatchError, match="cut short"):
        repository.deploy(bundle)
    (bundle.folder / "validation.json").unlink()
    with pytest.raises(ContractError, match=r"missing: validation\.json"):
        Bundle.open(bundle.folder)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b", "x" * 129, "line\n", "-x", "/abs"])
def test_a_name_that_could_leave_the_repository_is_refused(repository, make_bundle, name):
    with pytest.raises(UsageError, match="no model name"):
        repository.deploy(make_bundle(), name or "\0")
    assert not repository.root.exists() or not visible(repository.root)


@pytest.mark.parametrize(("options", "field"), [({"labels": ("a", "c")}, "labels"), ({"size": 5}, "image")])
def test_labels_and_dims_do_not_change_under_one_name(repository, make_bundle, options, field):
    repository.deploy(make_bundle())
    with pytest.raises(IncompatibleModelError, match=f"{field}.*--name"):
        repository.deploy(make_bundle(b"two", **options))
    assert visible(repository.root / "tiny") == ["1", "config.pbtxt", "labels.txt"]
    assert repository.deploy(make_bundle(b"three", **options), "other").version == 1


def test_a_strangers_model_is_not_taken_over(repository, make_bundle):
    folder = repository.root / "tiny" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"x")
    with pytest.raises(RepositoryError, match="files without one"):
        repository.deploy(make_bundle())
    (repository.root / "tiny" / "config.pbtxt").write_text('name: "tiny"\nbackend: "onnxruntime"\n')
    with pytest.raises(IncompatibleModelError, match="did not deploy"):
        repository.deploy(make_bundle())


def test_a_broken_configuration_is_named_with_its_line(repository, make_bundle):
    repository.deploy(make_bundle())
    path = repository.root / "tiny" / "config.pbtxt"
    path.write_text('name: "tiny"\nmax_batch_sise: 8\n')
    with pytest.raises(RepositoryError, match=r"config\.pbtxt:2:1.*max_batch_sise"):
        repository.deploy(make_bundle(b"two"))
    assert "max_batch_sise" in repository.models()[0].problem


def test_two_deployments_at_once_do_not_mix(repository, make_bundle):
    repository.deploy(make_bundle())
    descriptor = os.open(repository.root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(RepositoryError, match="another deployment"):
            repository.deploy(make_bundle(b"two"))
    finally:
        os.close(descriptor)
    assert repository.deploy(make_bundle(b"two")).version == 2


def test_a_full_disk_leaves_the_old_version_and_nothing_else(repository, make_bundle, monkeypatch):
    repository.deploy(make_bundle())
    before = visible(repository.root / "tiny")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("convoy.serving.repository.repository.shutil.copyfile", full)
        with pytest.raises(OSError, match="No space"):
            repository.deploy(make_bundle(b"two"))
    assert visible(repository.root / "tiny") == before
    assert repository.models(check=True)[0].served == 1


def test_listing_a_repository_that_is_not_there_says_what_to_do(tmp_path):
    with pytest.raises(RepositoryError, match="convoy deploy"):
        Repository(tmp_path / "none").models()


# Kills the process at its N-th change to the file system: Python tells an audit hook before each one.
_KILLED = """
import os, sys
from pathlib import Path
from convoy.contract.bundle import Bundle
from convoy.serving.repository import Repository
repository, export, at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
bundle = Bundle.open(export)
seen = 0
def hook(event, args):
    global seen
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.copyfile"):
        seen += 1
        if seen == at:
            os._exit(137)
sys.addaudithook(hook)
Repository(repository).deploy(bundle)
"""


@pytest.mark.parametrize("versions_before", [0, 1])
def test_a_process_killed_before_any_change_to_the_disk_leaves_the_old_version_served(tmp_path, make_bundle, versions_before):
    start = tmp_path / "start"
    start.mkdir()
    first, second = make_bundle(), make_bundle(b"two")
    if versions_before:
        Repository(start).deploy(first)
    for at in range(1, 200):
        root = tmp_path / f"killed-{at}"
        shutil.copytree(start, root)
        command = [sys.executable, "-c", _KILLED, str(root), str(second.folder), str(at)]
        code = subprocess.run(command, check=False).returncode
        repository = Repository(root)
        served = [(entry.name, entry.served, entry.problem) for entry in repository.models(check=True)]
        if code == 0:
            assert served == [("tiny", versions_before + 1, "")]
            break
        assert code == 137
        allowed = [[("tiny", 1, "")]] if versions_before else [[], [("tiny", 1, "")]]
        assert served in allowed, at
        assert all(not version.problem for entry in repository.models(check=True) for version in entry.versions), at
        done = repository.deploy(second)  # the same command again goes through, and clears what was left
        assert done.version == versions_before + 1
        assert visible(root) == ["tiny"]
        assert not [name for name in visible(root / "tiny") if name.startswith(".")]
    assert at > 10
