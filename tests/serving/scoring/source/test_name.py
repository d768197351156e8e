from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convoy.serving.scoring.source._name import escape, printable, unescape


@given(st.binary(max_size=40))
def test_any_file_name_survives_escaping_and_json(raw: bytes) -> None:
    name = os.fsdecode(raw)
    text = json.loads(json.dumps(escape(name)).encode("utf-8"))
    text.encode("utf-8")
    assert os.fsencode(unescape(text)) == raw


@given(st.text(alphabet=st.characters(), max_size=40))
def test_any_text_survives_escaping(name: str) -> None:
    assert unescape(escape(name)) == name


@given(st.binary(max_size=40))
def test_a_shown_name_is_unicode_on_one_line(raw: bytes) -> None:
    shown = printable(os.fsdecode(raw))
    shown.encode("utf-8")
    assert len(shown.splitlines()) <= 1
    assert not any(ord(character) < 32 for character in shown)


@pytest.mark.parametrize(
    ("raw", "shown"), [(b"\xff.png", r"\xff.png"), (b"a\nb", r"a\nb"), (b"\x1b[2J", r"\x1b[2J"), ("é 木".encode(), "é 木")]
)
def test_what_cannot_be_shown_is_written_with_backslashes(raw: bytes, shown: str) -> None:
    assert printable(os.fsdecode(raw)) == shown
