"""A scanner of the protobuf text format that keeps every position.

It builds a tree of fields whose spans are offsets into the text, and judges nothing beyond brackets and strings: whether a text is
a valid ``ModelConfig`` is for protobuf's own parser to say. Comments and spacing are what lies between the spans.

::

    instance_group [ { count: 1 }, { count: 2 } ];     one Field, two Elements, listed
    max_batch_size: 8                                  one Field, one Element without a body
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from google.protobuf import message_factory, text_format

from convoy.serving.repository.configuration.schema import is_map, is_repeated

_TOKEN: Final = re.compile(
    r"(?P<space>(?:\s+|\#[^\n]*)+)"
    r"|(?P<string>\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*')"
    r"|(?P<word>[A-Za-z_][A-Za-z0-9_+-]*|(?:[0-9+-]|\.[0-9])[0-9A-Za-z_.+-]*)"
    r"|(?P<sign>[][{}<>:,;./])"
)
_CLOSING: Final = {"{": "}", "<": ">", "[": "]"}


class ScanError(ValueError):
    """The text is not in the protobuf text format.

    Attributes:
        offset: Where it goes wrong.
    """

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


@dataclass(frozen=True)
class Element:
    """One value.

    Attributes:
        start: Where it begins: at its bracket, for a message.
        end: Where it ends.
        body: The fields of a message; None for a scalar.
        key: The key of a map's entry as paths show it; empty elsewhere.
    """

    start: int
    end: int
    body: tuple[Field, ...] | None
    key: str = ""


@dataclass(frozen=True)
class Field:
    """A field as it is written once; a repeated one may be written several times.

    Attributes:
        name: Its name.
        start: Where the name begins.
        end: Where it ends, with the ``,`` or ``;`` after it.
        elements: Its value, or the values of its list.
        listed: Whether the values stand in square brackets.
        descriptor: What the schema says of it; None where the schema does not know it.
    """

    name: str
    start: int
    end: int
    elements: tuple[Element, ...]
    listed: bool
    descriptor: Any


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int


def scan(text: str, descriptor: Any) -> tuple[Field, ...]:
    """The fields of a text.

    Args:
        text: In the protobuf text format.
        descriptor: The schema of the message that the text describes.

    Raises:
        ScanError: Brackets or strings are not closed, or something stands where it cannot.
    """
    return _Scanner(text).fields(descriptor, closing="")


def _tokens(text: str) -> list[_Token]:
    tokens, at = [], 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            what = "a string that is not closed on its line" if text[at] in "\"'" else f"{text[at]!r}"
            raise ScanError(f"expected a field, a value or a bracket, found {what}", at)
        if found.lastgroup != "space":
            tokens.append(_Token(str(found.lastgroup), found.group(), at, found.end()))
        at = found.end()
    tokens.append(_Token("end", "", len(text), len(text)))
    return tokens


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokens(text)
        self._at = 0

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self, *texts: str) -> _Token | None:
        """The next token, where it is a sign among ``texts``."""
        token = self._next
        if token.kind != "sign" or token.text not in texts:
            return None
        self._at += 1
        return token

    def _fail(self, expected: str) -> NoReturn:
        found = repr(self._next.text) if self._next.text else "the end of the file"
        raise ScanError(f"expected {expected}, found {found}", self._next.start)

    def fields(self, descriptor: Any, closing: str) -> tuple[Field, ...]:
        """Fields up to the closing bracket, or to the end of the text."""
        fields = []
        while not (self._next.kind == "end" or self._next.text == closing):
            fields.append(self._field(descriptor))
        if closing and self._next.kind == "end":
            self._fail(f"{closing!r}")
        return tuple(fields)

    def _field(self, parent: Any) -> Field:
        name = self._next
        if name.kind != "word" or not re.fullmatch(r"\w+", name.text):
            self._fail("the name of a field")
        self._at += 1
        descriptor = parent.fields_by_name.get(name.text) if parent is not None else None
        colon = self._take(":")
        opening = self._take("[")
        elements: tuple[Element, ...]
        elements = self._list(descriptor) if opening else (self._element(descriptor, name.text, colon=colon is not None),)
        end = self._tokens[self._at - 1].end
        separator = self._take(",", ";")
        return Field(name.text, name.start, separator.end if separator else end, elements, opening is not None, descriptor)

    def _list(self, descriptor: Any) -> tuple[Element, ...]:
        elements: list[Element] = []
        if self._take("]"):
            return ()
        while True:
            elements.append(self._element(descriptor, "", colon=True))
            if self._take("]"):
                return tuple(elements)
            if not self._take(","):
                self._fail("',' or ']'")

    def _element(self, descriptor: Any, name: str, *, colon: bool) -> Element:
        opening = self._take("{", "<")
        if opening:
            body = self.fields(descriptor.message_type if descriptor is not None else None, _CLOSING[opening.text])
            closing = self._next
            self._at += 1
            key = self._key(descriptor, body) if descriptor is not None and is_map(descriptor) else ""
            return Element(opening.start, closing.end, body, key)
        if not colon:
            self._fail(f"':' or '{{' after {name!r}")
        first = self._next
        if first.kind not in ("word", "string"):
            self._fail("a value")
        self._at += 1
        while first.kind == "string" and self._next.kind == "string":  # adjacent strings are one
            self._at += 1
        return Element(first.start, self._tokens[self._at - 1].end, None)

    def _key(self, descriptor: Any, body: tuple[Field, ...]) -> str:
        raw = [self._text[field.elements[0].start : field.elements[0].end] for field in body if field.name == "key"]
        return key_of(descriptor, raw[-1] if raw else None)


def key_of(field: Any, text: str | None) -> str:
    """The key of a map's entry as paths show it: a string in double quotes, a number as it is.

    Args:
        field: The map's descriptor.
        text: The key as it is written; None where it is not, and is the type's default.
    """
    entry: Any = message_factory.GetMessageClass(field.message_type)()
    if text is not None:
        try:
            text_format.Parse(f"key: {text}", entry)
        except text_format.ParseError:
            return text
    return shown_key(entry.key)


def shown_key(key: str | int) -> str:
    """A map's key as paths show it."""
    return json.dumps(key, ensure_ascii=False) if isinstance(key, str) else str(key)


def walk(fields: tuple[Field, ...], prefix: str = "") -> list[tuple[str, Field, Element | None]]:
    """Every field and value of a tree by its path, in the order of the text.

    A path looks like ``input[1].dims``, ``parameters["key"].string_value``; a list itself is named by the field alone.
    """
    found: list[tuple[str, Field, Element | None]] = []
    counts: dict[str, int] = {}
    for field in fields:
        path = f"{prefix}{field.name}"
        many = field.descriptor is not None and is_repeated(field.descriptor)
        found.append((path, field, None))
        for element in field.elements:
            index = counts.get(field.name, 0)
            counts[field.name] = index + 1
            own = path
            if many:
                own = f"{path}[{element.key}]" if is_map(field.descriptor) else f"{path}[{index}]"
            found.append((own, field, element))
            if element.body is not None:
                found += _walk_body(element.body, own, entry=field.descriptor is not None and is_map(field.descriptor))
    return found


def _walk_body(body: tuple[Field, ...], path: str, *, entry: bool) -> list[tuple[str, Field, Element | None]]:
    if not entry:
        return walk(body, f"{path}.")
    found: list[tuple[str, Field, Element | None]] = []
    for field in body:  # an entry's value is named by the key
        for element in field.elements:
            if field.name == "value":
                found.append((path, field, element))
                found += walk(element.body or (), f"{path}.")
            else:
                found.append((f"{path}.{field.name}", field, element))
    return found
