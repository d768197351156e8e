"""``--set grammar=``: what is wrong with it is wrong use, and said before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from convoy.cli.program import program
from convoy.contract.errors import UsageError
from convoy.training.check_reader.named_grammar import named_grammar

RULES = {
    "of any length": ('digit = "0".."9"\namount = digit+\n', "expected amounts of limited length, found amounts of any"),
    "damaged": ("amount = (\n", "mine"),
    "without a sentence": ('amount = "1" amount\n', "expected a sentence at least, found none"),
}


@pytest.mark.parametrize("command", ["describe", "train"])
@pytest.mark.parametrize("kind", RULES)
def test_a_grammar_that_no_reader_can_have_is_wrong_use(command: str, kind: str, tmp_path: Path) -> None:
    rules, words = RULES[kind]
    (tmp_path / "mine.txt").write_text(rules)
    result = CliRunner().invoke(program, [command, "check-reader-small", "--set", f"grammar={tmp_path / 'mine.txt'}"])
    assert isinstance(result.exception, UsageError)
    assert result.exception.exit_code == 2
    assert words in str(result.exception)


@pytest.mark.parametrize("command", ["describe", "train"])
def test_a_grammar_that_is_not_there_comes_with_those_that_ship_and_the_nearest(command: str) -> None:
    result = CliRunner().invoke(program, [command, "check-reader-small", "--set", "grammar=cilean"])
    assert isinstance(result.exception, UsageError)
    assert str(result.exception) == (
        "there is no grammar 'cilean': expected one of chilean, digits, french, us, or a file of rules. Did you mean 'chilean'?"
    )


def test_what_is_near_no_name_was_meant_as_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no grammar 'rules/mine.txt': .*or a file of rules\.$"):
        named_grammar("rules/mine.txt")
    with pytest.raises(UsageError, match="Is a directory"):
        named_grammar(str(tmp_path))


def test_a_grammar_that_ships_and_one_of_ones_own_are_found(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text('amount = "1"{1,3}\n')
    assert named_grammar("us").name == "us"
    assert named_grammar(str(tmp_path / "mine.txt")).accepts("111")
