"""The repository's commands, as a person calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from convoy.cli.program import main, program
from convoy.contract.errors import NotValidatedError, RepositoryError


def convoy(*words: object) -> Result:
    return CliRunner().invoke(program, [str(word) for word in words])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "repository"


def test_deploy_rollback_and_models_tell_one_story(root, make_bundle, make_onnx):
    first = convoy("deploy", make_bundle(make_onnx()).folder, "--repository", root)
    assert first.exit_code == 0, first.output
    assert "tiny: version 1 is the one to serve" in first.stdout
    second = json.loads(convoy("deploy", make_bundle(make_onnx(bias=1)).folder, "--repository", root, "--json").stdout)
    assert second == {
        "model_name": "tiny", "version": "2", "previous_version": "1", "changed": True, "repository": str(root),
    }  # fmt: skip
    assert "version 1 is the one to serve again" in convoy("rollback", "tiny", "--repository", root).stdout
    listed = json.loads(convoy("models", "--repository", root, "--json").stdout)["models"]
    assert [(model["name"], model["served_version"], len(model["versions"])) for model in listed] == [("tiny", "1", 2)]
    checked = convoy("models", "--repository", root, "--check")
    assert checked.exit_code == 0, checked.output
    assert "1 model checked: 0 errors, 0 warnings." in checked.stdout


def test_what_did_not_pass_is_refused_with_the_check_that_failed(root, make_bundle):
    refused = convoy("deploy", make_bundle(verdict="failed").folder, "--repository", root)
    assert isinstance(refused.exception, NotValidatedError)
    assert "a check: expected x, found y" in str(refused.exception)


def test_models_check_names_the_damaged_file_and_fails(root, make_bundle):
    convoy("deploy", make_bundle().folder, "--repository", root)
    (root / "tiny" / "1" / "model.onnx").write_bytes(b"x")
    assert convoy("models", "--repository", root).exit_code == 0
    checked = convoy("models", "--repository", root, "--check")
    assert isinstance(checked.exception, RepositoryError)
    assert f"{root}/tiny/1/model.onnx: error: manifest.json names SHA-256" in checked.stdout


def test_a_probe_of_nothing_is_no_success(root):
    root.mkdir()
    probed = convoy("probe", "grpc://localhost:1", "--repository", root)
    assert isinstance(probed.exception, RepositoryError)
    assert "found none" in str(probed.exception)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["models"], 1),
        (["deploy", "nothing"], 1),
        (["rollback", "../x"], 1),
        (["rollback"], 2),
        (["modles"], 2),
        (["--version"], 0),
        (["--help"], 0),
    ],
)
def test_the_program_exits_as_it_says(words, status, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["convoy", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == status
    assert "\\b" not in capsys.readouterr().out


def test_a_status_that_a_command_asks_for_is_the_programs(monkeypatch):
    import click

    @click.command()
    @click.pass_context
    def three(ctx: click.Context) -> None:
        ctx.exit(3)

    monkeypatch.setattr("convoy.cli.doctor.command", three)
    monkeypatch.setattr("sys.argv", ["convoy", "doctor"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3
