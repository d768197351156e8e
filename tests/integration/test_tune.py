"""Tuning on the real server: a setting that is plainly bad is seen to be, and a better one is proven and written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from convoy.cli.tune import command
from convoy.contract.errors import RepositoryError
from convoy.serving.repository import Repository
from convoy.serving.tuning.contest import Contest, Method
from convoy.serving.tuning.objective import Objective
from convoy.serving.tuning.setting import Setting
from convoy.serving.tuning.tuning import Subject

from .conftest import tiny_config, write_tiny_onnx

pytestmark = [pytest.mark.integration, pytest.mark.alone]

BAD_DELAY_US = 5000
COMMENT = "# four images at a time: the camera sends four"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A model whose requests wait 5 ms for others that do not come."""
    folder = tmp_path / "models" / "tiny"
    (folder / "1").mkdir(parents=True)
    write_tiny_onnx(folder / "1" / "model.onnx")
    (folder / "labels.txt").write_text("ant\nbee\ncat\n")
    text = tiny_config(max_batch_size=4).replace("max_batch_size: 4", f"max_batch_size: 4 {COMMENT}")
    batching = f"dynamic_batching {{ max_queue_delay_microseconds: {BAD_DELAY_US} }}"
    assert "dynamic_batching" in text
    lines = [batching if line.startswith("dynamic_batching") else line for line in text.splitlines()]
    (folder / "config.pbtxt").write_text("\n".join(lines) + "\n")
    return folder.parent


def test_a_needless_delay_is_found_and_taken_away(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "evidence"
    before = (repository / "tiny" / "config.pbtxt").read_text()

    words = ["tiny", "--repository", str(repository), "--concurrency", "1", "--window", "0.1", "--rounds", "3"]
    done = CliRunner().invoke(command, [*words, "--out", str(out), "--apply", "--json"], catch_exceptions=False)

    found = json.loads(done.stdout)
    assert found["changed"]
    assert found["chosen"]["max_queue_delay_microseconds"] < BAD_DELAY_US / 4
    assert found["gain"]["low"] > 1.5
    after = (repository / "tiny" / "config.pbtxt").read_text()
    assert after == (out / "config.pbtxt").read_text() != before
    assert COMMENT in after
    assert "Serve with" in (out / "report.md").read_text()
    assert (out / "latency_throughput.svg").read_text().startswith("<?xml")
    assert json.loads((out / "tuning.json").read_text())["measurements"]


def test_what_cannot_be_served_is_said_and_the_contest_goes_on(repository: Path) -> None:
    subject = Subject.of(repository, "tiny")
    start = Setting.of(subject.config.message)
    method = Method(Objective((2,)), window_s=0.1)

    with Contest(subject.model_folder, subject.config, 1, method) as contest:
        impossible = Setting(4, (), BAD_DELAY_US, 1, 5000)
        assert contest.compare(impossible, start) is None
        better = contest.compare(Setting(4, (), 0, 1, 1), start)

    assert better is not None
    assert better.low > 1
    assert {record.setting for record in contest.records} == {start, Setting(4, (), 0, 1, 1)}


def test_a_configuration_that_somebody_else_changed_is_not_overwritten(repository: Path) -> None:
    path = repository / "tiny" / "config.pbtxt"
    read = path.read_bytes()
    path.write_bytes(read + b"# me too\n")

    with pytest.raises(RepositoryError, match="has been changed since it was read"):
        Repository(repository).configure("tiny", read, b"")

    assert path.read_bytes() == read + b"# me too\n"
