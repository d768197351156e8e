"""The smallest edit of a configuration's text that makes it say something else.

Two messages are compared field by field, and only what differs is written anew: a number within ``dynamic_batching`` is replaced
where it stands, an entry of ``parameters`` without its neighbours, a new field is put at the end. Everything else, comments and
spacing included, keeps its bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from convoy.serving.repository.configuration.scanner import Element, Field, shown_key
from convoy.serving.repository.configuration.schema import differs, is_map, is_message, is_repeated, only, printed

_INDENT = 2


@dataclass(frozen=True)
class _Body:
    """The fields of a message in the text: between ``start`` and ``end``, the brackets not included."""

    fields: tuple[Field, ...]
    start: int
    end: int
    whole: bool = False


@dataclass
class Edits:
    """Replacements in a text, collected and then made at once.

    Attributes:
        text: The text as it is.
    """

    text: str
    _made: list[tuple[int, int, str]] = field(default_factory=list)

    def replace(self, start: int, end: int, new: str) -> None:
        """Put ``new`` in the place of ``[start, end)``."""
        self._made.append((start, end, new))

    def result(self) -> str:
        """The text with all replacements made."""
        parts, at = [], 0
        for start, end, new in sorted(self._made, key=lambda made: (made[0], made[1])):
            parts += [self.text[at:start], new]
            at = max(at, end)
        return "".join([*parts, self.text[at:]])


def edit(text: str, fields: tuple[Field, ...], current: Any, target: Any) -> str:
    """A text that says ``target``, with all else of ``text`` kept.

    Args:
        text: A text that says ``current``.
        fields: Its fields, as ``scan`` gives them.
        current: What it says.
        target: What it shall say: a message of the same kind.
    """
    edits = Edits(text)
    _edit_body(edits, _Body(fields, 0, len(text), whole=True), current, target)
    return edits.result()


def _edit_body(edits: Edits, body: _Body, current: Any, target: Any) -> None:
    for descriptor in current.DESCRIPTOR.fields:
        name = descriptor.name
        if not differs(current, target, name):
            continue
        written = [one for one in body.fields if one.name == name]
        if is_map(descriptor):
            _edit_map(edits, body, written, descriptor, current, target)
        elif is_repeated(descriptor) and is_message(descriptor):
            _edit_messages(edits, body, written, name, current, target)
        else:
            _edit_single(edits, body, written, descriptor, current, target)


def _edit_single(edits: Edits, body: _Body, written: list[Field], descriptor: Any, current: Any, target: Any) -> None:
    """One value, or a list of numbers or strings, which is one value here."""
    name = descriptor.name
    new = only(target, name)
    if not printed(new):
        _remove(edits, body, written)
    elif not written:
        _insert(edits, body, new)
    elif len(written) == 1 and is_message(descriptor) and current.HasField(name):
        _edit_body(edits, _inside(written[0].elements[0]), getattr(current, name), getattr(target, name))
    elif len(written) == 1 and not written[0].listed and not is_repeated(descriptor):
        element = written[0].elements[0]
        edits.replace(element.start, element.end, _value_of(new, name))
    else:
        first, *others = written
        edits.replace(first.start, first.end, printed(new, one_line=True))
        _remove(edits, body, others)


def _value_of(message: Any, name: str) -> str:
    return printed(message, one_line=True).removeprefix(name).lstrip(": ")


def _inside(element: Element) -> _Body:
    return _Body(element.body or (), element.start + 1, element.end - 1)


def _edit_map(edits: Edits, body: _Body, written: list[Field], descriptor: Any, current: Any, target: Any) -> None:
    name = descriptor.name
    old, new = getattr(current, name), getattr(target, name)
    wanted = {shown_key(key): key for key in new}
    last = {element.key: element for one in written for element in one.elements}
    gone = [element for element in last.values() if element.key not in wanted]
    hidden = [element for one in written for element in one.elements if element is not last[element.key]]
    added = [_entry(target, name, key) for shown, key in wanted.items() if shown not in last]
    elements = [element for one in written for element in one.elements]
    if elements and added and not gone and len(last) == len(elements):
        _insert_beside(edits, written, elements, len(elements), added, name)
    else:
        for entry in added:
            _insert(edits, body, entry)
    for shown, key in wanted.items():
        entry = _entry(target, name, key)
        if shown not in last:
            continue
        if old[key] != new[key]:
            _edit_entry(edits, last[shown], entry, old[key], new[key])
        else:
            hidden = [element for element in hidden if element.key != shown]  # a repeated key that says nothing new may stay
    _remove_elements(edits, body, written, [*gone, *hidden])


def _edit_entry(edits: Edits, element: Element, entry: Any, old: Any, new: Any) -> None:
    """An entry whose value changed: its key, and what a person wrote around it, stay."""
    values = [one for one in element.body or () if one.name == "value"]
    if len(values) != 1:
        edits.replace(element.start, element.end, _value_of(entry, entry.ListFields()[0][0].name))
    elif hasattr(new, "DESCRIPTOR"):
        _edit_body(edits, _inside(values[0].elements[0]), old, new)
    else:
        whole = _value_of(entry, entry.ListFields()[0][0].name)
        said = re.search(r"value: (.*) }$", whole, re.DOTALL)
        edits.replace(values[0].elements[0].start, values[0].elements[0].end, said.group(1) if said else _default_text(new))


def _default_text(value: Any) -> str:
    return '""' if isinstance(value, str) else "0"


def _entry(message: Any, name: str, key: Any) -> Any:
    """A message with the one entry of a map."""
    alone = type(message)()
    values = getattr(message, name)
    if hasattr(values[key], "DESCRIPTOR"):
        getattr(alone, name)[key].CopyFrom(values[key])
    else:
        getattr(alone, name)[key] = values[key]
    return alone


def _edit_messages(edits: Edits, body: _Body, written: list[Field], name: str, current: Any, target: Any) -> None:
    """A list of messages: what is equal at both ends stays, what lies between is paired in order."""
    old, new = list(getattr(current, name)), list(getattr(target, name))
    elements = [element for one in written for element in one.elements]
    ahead = 0
    while ahead < min(len(old), len(new)) and old[ahead] == new[ahead]:
        ahead += 1
    behind = 0
    while behind < min(len(old), len(new)) - ahead and old[-1 - behind] == new[-1 - behind]:
        behind += 1
    old_middle, new_middle = old[ahead : len(old) - behind], new[ahead : len(new) - behind]
    paired = min(len(old_middle), len(new_middle))
    for index in range(paired):
        _edit_body(edits, _inside(elements[ahead + index]), old_middle[index], new_middle[index])
    _remove_elements(edits, body, written, elements[ahead + paired : len(old) - behind])
    added = [_alone(target, name, one) for one in new_middle[paired:]]
    if not added:
        return
    if not elements:
        for one in added:
            _insert(edits, body, one)
    else:
        _insert_beside(edits, written, elements, ahead + paired, added, name)


def _alone(message: Any, name: str, value: Any) -> Any:
    alone = type(message)()
    getattr(alone, name).add().CopyFrom(value)
    return alone


def _insert_beside(
    edits: Edits, written: list[Field], elements: list[Element], index: int, added: Sequence[Any], name: str
) -> None:
    """Put elements before the one at ``index``, or after the last one, in the manner of their neighbour."""
    after = index == len(elements)
    neighbour = elements[index - 1 if after else index]
    one = next(one for one in written if neighbour in one.elements)
    if one.listed:
        values = [_value_of(message, name) for message in added]
        at = neighbour.end if after else neighbour.start
        edits.replace(at, at, "".join(f", {value}" if after else f"{value}, " for value in values))
        return
    line = edits.text.rfind("\n", 0, one.start) + 1
    margin = edits.text[line : one.start]
    one_line = bool(margin.strip()) or "\n" not in edits.text[one.start : one.end]
    texts = [printed(message, one_line=one_line, indent=len(margin)).lstrip() for message in added]
    rest = re.compile(r"[ \t]*(#[^\n]*)?(?=\r?\n|\Z)").match(edits.text, one.end)
    if margin.strip() or (after and not rest):  # others share the line
        at = one.end if after else one.start
        edits.replace(at, at, "".join(f" {text} " if after else f"{text} " for text in texts))
    elif after and rest:
        edits.replace(rest.end(), rest.end(), "".join(f"\n{margin}{text}" for text in texts))
    else:
        edits.replace(one.start, one.start, "".join(f"{text}\n{margin}" for text in texts))


def _remove_elements(edits: Edits, body: _Body, written: list[Field], gone: list[Element]) -> None:
    """Take values out of the fields that hold them; a field that keeps none goes as a whole."""
    going = {id(element) for element in gone}
    for one in written:
        leaving = [element for element in one.elements if id(element) in going]
        if not leaving:
            continue
        if len(leaving) == len(one.elements):
            _remove(edits, body, [one])
            continue
        kept = [element for element in one.elements if id(element) not in going]
        for index, element in enumerate(one.elements):
            if id(element) not in going:
                continue
            if element.start < kept[0].start:  # with the comma after it
                edits.replace(element.start, one.elements[index + 1].start, "")
            else:
                edits.replace(one.elements[index - 1].end, element.end, "")


def _remove(edits: Edits, body: _Body, fields: list[Field]) -> None:
    """Take fields out, each with its line where it has one to itself."""
    for one in fields:
        start, end = one.start, one.end
        line = edits.text.rfind("\n", 0, start) + 1
        rest = re.compile(r"[ \t\r]*(\n|\Z)").match(edits.text, end)
        if line >= body.start and not edits.text[line:start].strip() and rest and rest.end() <= body.end:
            edits.replace(line, rest.end(), "")
        else:
            alone = edits.text[end : end + 1].isspace() or end == body.end
            edits.replace(start, end, "" if alone else " ")


def _insert(edits: Edits, body: _Body, message: Any) -> None:
    """Put a field at the end of a body, in the body's manner: on lines of its own, or on the one line."""
    text = edits.text
    if body.whole:
        before = "" if not text or text.endswith("\n") or _ends_made(edits) else "\n"
        edits.replace(len(text), len(text), f"{before}{printed(message)}\n")
        return
    last = body.fields[-1].end if body.fields else body.start
    if "\n" in text[last : body.end]:
        at = text.rfind("\n", 0, body.end) + 1
        edits.replace(at, at, f"{printed(message, indent=_indent(text, body))}\n")
    else:
        closes = text[last : last + 1].isspace()
        edits.replace(last, last, f" {printed(message, one_line=True)}{'' if closes else ' '}")


def _ends_made(edits: Edits) -> bool:
    """Whether something was put at the end of the text already."""
    return any(start == end == len(edits.text) for start, end, _ in edits._made)


def _indent(text: str, body: _Body) -> int:
    """How deep a body's fields are indented."""
    if body.fields:
        first = body.fields[0].start
        line = text.rfind("\n", 0, first) + 1
        if not text[line:first].strip():
            return first - line
    line = text.rfind("\n", 0, body.end) + 1
    return len(text[line : body.end]) - len(text[line : body.end].lstrip()) + _INDENT
