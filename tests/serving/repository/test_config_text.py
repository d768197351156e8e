"""A person's text survives an edit: property tests over random configurations written in every manner that the format has."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from convoy.contract.errors import RepositoryError
from convoy.serving.repository.configuration import ModelConfig
from convoy.serving.repository.configuration.schema import CONFIG, differs, is_map, is_message, is_repeated
from convoy.serving.repository.configuration.text import ConfigText

_TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
_NUMBERS = {1: (-8, 8), 2: (-8, 8), 3: (-4, 900), 4: (0, 900), 5: (-4, 900), 13: (0, 900)}


def scalars(field: Any) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values])
    if field.type in (1, 2):
        return st.integers(*_NUMBERS[field.type]).map(float)
    if field.type in _NUMBERS:
        return st.integers(*_NUMBERS[field.type])
    return st.booleans() if field.type == 8 else _TEXTS


@st.composite
def messages(draw: st.DrawFn, kind: Any, depth: int = 0) -> Any:
    """A random message of any type of the schema."""
    message = kind()
    if not message.DESCRIPTOR.fields:
        return message
    fields = draw(st.lists(st.sampled_from(list(message.DESCRIPTOR.fields)), max_size=5 - depth, unique_by=lambda f: f.number))
    for field in fields:
        values = getattr(message, field.name)
        if is_map(field):
            value = field.message_type.fields_by_name["value"]
            for key in draw(st.lists(scalars(field.message_type.fields_by_name["key"]), max_size=3)):
                if is_message(value):
                    values[key].CopyFrom(draw(messages(type(values[key]), depth + 1)))
                else:
                    values[key] = draw(scalars(value))
        elif is_repeated(field) and is_message(field):
            for _ in range(draw(st.integers(0, 3))):
                one = values.add()
                one.CopyFrom(draw(messages(type(one), depth + 1)))
        elif is_repeated(field):
            values.extend(draw(st.lists(scalars(field), max_size=3)))
        elif is_message(field):
            values.CopyFrom(draw(messages(type(values), depth + 1)) if depth < 4 else type(values)())
            values.SetInParent()
        else:
            setattr(message, field.name, draw(scalars(field)))
    return message


class Writer:
    """Writes a message as a person with odd habits might: comments, both brackets and quotes, lists or not, any separator."""

    def __init__(self, random: Random) -> None:
        self._pick = lambda *choices: random.choice(choices)
        self._comments = 0

    def gap(self) -> str:
        kind = self._pick(" ", "\n", "  \n\t", "\r\n", "#", " ")
        if kind == "#":
            self._comments += 1
            return f' # a comment, number {self._comments} {{ "\n'
        return kind

    def body(self, message: Any) -> str:
        parts = []
        for field, _ in message.ListFields():
            values = getattr(message, field.name)
            if is_map(field):
                for key in values:
                    value = values[key]
                    text = self.body(value) if hasattr(value, "DESCRIPTOR") else None
                    written = (
                        self.braced(text) if text is not None else self.scalar(field.message_type.fields_by_name["value"], value)
                    )
                    name = self.scalar(field.message_type.fields_by_name["key"], key)
                    entry = f"key: {name}{self.gap()}value{':' if text is None else ''}{written}"
                    parts.append(f"{field.name}{self.pick_colon()}{self.braced(entry)}")
            elif is_repeated(field):
                texts = [self.braced(self.body(v)) if is_message(field) else self.scalar(field, v) for v in values]
                if self._pick(True, False):
                    inner = f"{self.gap()},{self.gap()}".join(texts)
                    parts.append(f"{field.name}:{self.gap()}[{self.gap()}{inner}{self.gap()}]")
                else:
                    parts += [f"{field.name}:{self.gap()}{text}" for text in texts]
            elif is_message(field):
                parts.append(f"{field.name}{self.pick_colon()}{self.braced(self.body(values))}")
            else:
                parts.append(f"{field.name}:{self._pick('', ' ')}{self.scalar(field, values)}")
        return "".join(f"{part}{self._pick('', ',', ';')}{self.gap()}" for part in parts)

    def pick_colon(self) -> str:
        return self._pick("", " ", ":", ": ")

    def braced(self, text: str) -> str:
        left, right = self._pick("{}", "<>")
        return f"{left}{self._pick('', self.gap())}{text}{right}"

    def scalar(self, field: Any, value: Any) -> str:
        if field.enum_type is not None:
            return self._pick(field.enum_type.values_by_number[value].name, str(value))
        if isinstance(value, bool):
            return self._pick("true", "1", "t") if value else self._pick("false", "0")
        if isinstance(value, str):
            quote = self._pick('"', "'")
            pieces = self._pick([value], [value[:2], value[2:]])
            return self._pick(" ", "\n").join(quote + _escaped(piece) + quote for piece in pieces)
        return repr(value)


def _escaped(text: str) -> str:
    return "".join(f"\\{byte:03o}" if byte < 32 or byte in b"\"'\\" or byte > 126 else chr(byte) for byte in text.encode())


@st.composite
def written(draw: st.DrawFn) -> tuple[str, Any]:
    """A text, and the message that it says."""
    message = draw(messages(CONFIG))
    writer = Writer(draw(st.randoms(use_true_random=False)))
    return writer.gap() + writer.body(message), message


@settings(max_examples=150)
@given(written(), messages(CONFIG))
def test_an_edited_text_says_what_it_shall_and_keeps_the_bytes_of_what_did_not_change(pair, target):
    text, message = pair
    config = ConfigText(text)
    assert config.message == message
    edited = config.edit(target)
    assert text_format.Parse(edited.text, CONFIG()) == target
    for field in config.fields:
        if not differs(message, target, field.name):
            assert text[field.start : field.end] in edited.text
    assert _outer_comments(config) == _outer_comments(edited)


def _outer_comments(config: ConfigText) -> list[str]:
    """The comments between top-level fields."""
    at, found = 0, []
    for start, end in [*((field.start, field.end) for field in config.fields), (len(config.text), 0)]:
        found += [line[line.index("#") :] for line in config.text[at:start].splitlines() if "#" in line]
        at = end
    return found


@settings(max_examples=120)
@given(st.data())
def test_one_change_deep_within_a_text_leaves_every_other_field_alone(data):
    text, message = data.draw(written())
    target = CONFIG()
    target.CopyFrom(message)
    field = data.draw(st.sampled_from(list(CONFIG.DESCRIPTOR.fields)))
    other = data.draw(messages(CONFIG))
    target.ClearField(field.name)
    if not field.containing_oneof:
        target.MergeFrom(_only(other, field.name))
    edited = ConfigText(text).edit(target)
    assert edited.message == target
    for one in ConfigText(text).fields:
        if one.name != field.name:
            assert text[one.start : one.end] in edited.text


def _only(message: Any, name: str) -> Any:
    copy = CONFIG()
    copy.CopyFrom(message)
    for field in CONFIG.DESCRIPTOR.fields:
        if field.name != name:
            copy.ClearField(field.name)
    return copy


@settings(max_examples=120)
@given(written())
def test_every_path_leads_to_its_field(pair):
    config = ConfigText(pair[0])
    lines = config.text.split("\n")
    for path in config._starts:
        line, column = config.position(path)
        assert 1 <= line <= len(lines)
        assert lines[line - 1][column - 1 :].strip()
    assert config.edit(config.message).text == config.text


@settings(max_examples=120)
@given(messages(CONFIG))
def test_a_message_goes_through_the_typed_form_unchanged_whatever_it_says(message):
    typed = ModelConfig.from_message(message)
    assert typed.to_message() == message
    assert ModelConfig.from_message(typed.to_message()) == typed
    assert ModelConfig.from_text(typed.to_text()).to_message() == message


@settings(max_examples=120)
@given(messages(CONFIG))
def test_every_breach_stands_at_a_path_of_the_schema(message):
    text = ConfigText.of(message)
    for found in ModelConfig.from_message(message).violations():
        assert found.message
        top = found.path.split(".")[0].split("[")[0]
        assert top in CONFIG.DESCRIPTOR.fields_by_name
        assert text.position(found.path).line >= 1


HAND_WRITTEN = """\
# How we serve digits. Ask Ada before changing the delay.
name: "tiny"
max_batch_size: 64   # more does not fit

dynamic_batching {   # measured on the old machine
  preferred_batch_size: [ 8, 16 ]  # and 16
  max_queue_delay_microseconds: 100  # us
}
instance_group [
  { count: 1 kind: KIND_CPU },  # first
  { count: 2 kind: KIND_CPU }   # second
]
parameters { key: "intra_op_thread_count" value { string_value: "1" } }  # one thread
parameters {
  key: "convoy_model_sha256"
  value { string_value: "old" }
}
"""


def edited(change: Any) -> str:
    config = ConfigText(HAND_WRITTEN)
    target = CONFIG()
    target.CopyFrom(config.message)
    change(target)
    return config.edit(target).text


def test_a_number_within_a_message_is_replaced_where_it_stands():
    def change(target: Any) -> None:
        target.dynamic_batching.max_queue_delay_microseconds = 250

    assert edited(change) == HAND_WRITTEN.replace("microseconds: 100 ", "microseconds: 250 ")


def test_one_parameter_changes_without_the_others():
    def change(target: Any) -> None:
        target.parameters["convoy_model_sha256"].string_value = "new"

    assert edited(change) == HAND_WRITTEN.replace('"old"', '"new"')


def test_a_new_parameter_stands_beside_the_others_in_their_manner():
    def change(target: Any) -> None:
        target.parameters["convoy_previous_version"].string_value = "1"

    added = 'parameters {\n  key: "convoy_previous_version"\n  value {\n    string_value: "1"\n  }\n}\n'
    assert edited(change) == HAND_WRITTEN + added


def test_a_new_group_stands_on_a_line_of_its_own():
    text = "instance_group { count: 1 }  # one\nname: 'x'\n"
    target = CONFIG()
    target.CopyFrom(ConfigText(text).message)
    target.instance_group.add(count=2)
    assert ConfigText(text).edit(target).text == "instance_group { count: 1 }  # one\ninstance_group { count: 2 }\nname: 'x'\n"


def test_a_removed_field_takes_its_line_and_a_new_one_comes_last():
    def change(target: Any) -> None:
        target.max_batch_size = 0
        target.response_cache.enable = True

    text = edited(change)
    assert (
        text
        == HAND_WRITTEN.replace("max_batch_size: 64", "").replace("   # more", "   # more")
        + "response_cache {\n  enable: true\n}\n"
    )


def test_a_list_loses_its_last_element_and_gains_another():
    def shorter(target: Any) -> None:
        del target.instance_group[1]

    def longer(target: Any) -> None:
        target.instance_group.add(count=3)

    assert "{ count: 1 kind: KIND_CPU }   # second" in edited(shorter)
    assert "{ count: 2 kind: KIND_CPU }, { count: 3 }   # second" in edited(longer)


def test_a_new_field_within_a_message_takes_the_message_manner():
    def change(target: Any) -> None:
        target.dynamic_batching.preserve_ordering = True

    assert "# us\n  preserve_ordering: true\n}\n" in edited(change)


@pytest.mark.parametrize(
    ("path", "line", "column"),
    [
        ("name", 2, 1),
        ("dynamic_batching.preferred_batch_size", 6, 3),
        ("dynamic_batching.preferred_batch_size[1]", 6, 30),
        ("dynamic_batching.preferred_batch_size[9]", 6, 3),
        ("instance_group[1].count", 11, 5),
        ("instance_group[1]", 11, 3),
        ('parameters["convoy_model_sha256"].string_value', 16, 11),
        ('parameters["nothing"]', 13, 1),
        ("response_cache.enable", 1, 1),
    ],
)
def test_positions(path, line, column):
    assert ConfigText(HAND_WRITTEN).position(path) == (line, column)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('name: "x"\nmax_batch_sise: 8\n', r"^c:2:\d+: .*max_batch_sise"),
        ('name: "x', r"^c:1:7: .*ending quote"),
        ("input {\n name: 'x'\n", r"^c:\d+:\d+: .*Expected"),
        ("instance_group { kind: KIND_TPU }", r"^c:1:\d+: .*KIND_TPU"),
        ("max_batch_size: 99999999999", r"^c:1:17: .*range"),
    ],
)
def test_what_protobuf_refuses_is_said_with_its_place(text, expected):
    with pytest.raises(RepositoryError, match=expected):
        ConfigText(text, "c")


def test_numbers_are_read_as_the_format_writes_them():
    message = ConfigText("sequence_batching { direct { minimum_slot_utilization: .5 } } max_batch_size: 0x10").message
    assert math.isclose(message.sequence_batching.direct.minimum_slot_utilization, 0.5)
    assert message.max_batch_size == 16
