"""What is wrong with a text that protobuf's parser refuses: every unknown field and name at once, with what was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from google.protobuf import text_format

from convoy.serving.repository.configuration.scanner import Field, ScanError, scan
from convoy.serving.repository.configuration.schema import CONFIG, is_repeated
from convoy.serving.repository.configuration.text import Position, position_in, said

_WHOLE: Final = re.compile(r"-?(\d+|0[xX][0-9a-fA-F]+)")
_QUOTES: Final = ("'", '"')


class Fault(NamedTuple):
    """A fault of the text.

    Attributes:
        position: Where it is.
        message: What it is.
    """

    position: Position
    message: str


def faults(text: str) -> list[Fault]:
    """The faults of a text; empty where protobuf's parser takes it for a ``ModelConfig``."""
    try:
        text_format.Parse(text, CONFIG())
    except text_format.ParseError as error:
        try:
            found = list(_faults(text, scan(text, CONFIG.DESCRIPTOR), CONFIG.DESCRIPTOR))
        except ScanError as broken:
            return [Fault(position_in(text, broken.offset), f"{broken}.")]
        return found or [Fault(Position(error.GetLine() or 1, error.GetColumn() or 1), said(error))]
    return []


def _faults(text: str, fields: tuple[Field, ...], parent: Any) -> Iterator[Fault]:
    seen: set[str] = set()
    for field in fields:
        position = position_in(text, field.start)
        if field.descriptor is None:
            yield Fault(position, f"{parent.name} has no field {field.name!r}.{_meant(field.name, parent.fields_by_name)}")
            continue
        if field.name in seen and not is_repeated(field.descriptor):
            yield Fault(position, f"{field.name}: expected once, found again. Remove one.")
        seen.add(field.name)
        for element in field.elements:
            word = text[element.start : element.end]
            if element.body is not None and field.descriptor.message_type is not None:
                yield from _faults(text, element.body, field.descriptor.message_type)
            elif element.body is None and field.descriptor.enum_type is not None and not word.lstrip("-").isdecimal():
                yield from _enum_fault(text, element.start, word, field)
            elif element.body is None:
                yield from _scalar_fault(text, element.start, word, field)


def _enum_fault(text: str, offset: int, word: str, field: Field) -> Iterator[Fault]:
    names = field.descriptor.enum_type.values_by_name
    if word not in names:
        expected = ", ".join(names)
        yield Fault(position_in(text, offset), f"{field.name}: expected one of {expected}, found {word}.{_meant(word, names)}")


def _scalar_fault(text: str, offset: int, word: str, field: Field) -> Iterator[Fault]:
    kind, descriptor = field.descriptor.cpp_type, field.descriptor
    quoted = word.startswith(_QUOTES)
    if kind in (descriptor.CPPTYPE_INT32, descriptor.CPPTYPE_INT64, descriptor.CPPTYPE_UINT32, descriptor.CPPTYPE_UINT64):
        wrong, expected = _WHOLE.fullmatch(word) is None, "a whole number"
    elif kind == descriptor.CPPTYPE_BOOL:
        wrong, expected = word not in ("true", "false", "True", "False", "t", "f", "0", "1"), "true or false"
    elif kind == descriptor.CPPTYPE_STRING:
        wrong, expected = not quoted, "a string in quotes"
    else:
        return
    if wrong:
        advice = " Remove the quotes." if quoted and word.strip("'\"").lstrip("-").isdecimal() else ""
        yield Fault(position_in(text, offset), f"{field.name}: expected {expected}, found {word}.{advice}")


def _meant(word: str, names: Any) -> str:
    close = difflib.get_close_matches(word, list(names), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
