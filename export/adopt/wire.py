"""The bytes of a protobuf message, walked before a parser allocates anything for them.

A parser makes an object of some hundred bytes from two bytes of file, and eight bytes from one byte of a packed integer. This
walk builds nothing: it follows the lengths, checks each against what encloses it, and counts.
"""

from __future__ import annotations

from enum import Enum
from functools import cache
from typing import Final, NoReturn

import onnx
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from convoy.contract.errors import ExportError
from convoy.export.adopt.limits import Limits

_MAX_MESSAGE_DEPTH: Final = 64
_BYTES_PER_FIELD: Final = 256  # what a parser keeps for one small message, measured with room
_PACKED_GROWTH: Final = 16  # one byte of a packed integer becomes eight, in an array that doubles as it grows
# These may hold line breaks; all other strings are names.
_FREE_TEXT: Final = frozenset({"doc_string", "value", "producer_name", "producer_version"})


class _Kind(Enum):
    NUMBER = 0
    BYTES = 1
    NAME = 2
    TEXT = 3
    MESSAGE = 4


_Table = dict[int, tuple[_Kind, "Descriptor | None", int]]


@cache
def _table(descriptor: Descriptor) -> _Table:
    table: _Table = {}
    for field in descriptor.fields:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            table[field.number] = (_Kind.MESSAGE, field.message_type, 1)
        elif field.type == FieldDescriptor.TYPE_STRING:
            table[field.number] = (_Kind.TEXT if field.name in _FREE_TEXT else _Kind.NAME, None, 1)
        elif field.type == FieldDescriptor.TYPE_BYTES:
            table[field.number] = (_Kind.BYTES, None, 1)
        else:
            fixed = field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE)
            table[field.number] = (_Kind.NUMBER, None, 2 if fixed else _PACKED_GROWTH)
    return table


def scan_model(data: bytes, limits: Limits) -> None:
    """Check that ``data`` is a well-formed protobuf message whose parsed form stays within ``limits``.

    Args:
        data: A serialised ``ModelProto``.
        limits: Bounds for fields, decoded bytes, names and text.

    Raises:
        ExportError: A length leads out of what encloses it, a number or a tag is malformed, a name is no printable text, or a
            bound is exceeded.
    """
    _Scan(data, limits).run()


class _Scan:
    def __init__(self, data: bytes, limits: Limits) -> None:
        self.data, self.limits = data, limits
        self.fields = self.decoded = self.text = 0

    def run(self) -> None:
        data, limits = self.data, self.limits
        stack: list[tuple[Descriptor, int]] = []
        descriptor: Descriptor = onnx.ModelProto.DESCRIPTOR
        table, position, end = _table(descriptor), 0, len(data)
        while True:
            while position == end:
                if not stack:
                    return
                descriptor, end = stack.pop()
                table = _table(descriptor)
            tag, position = self._varint(position, end)
            self.fields += 1
            if self.fields > limits.max_fields:
                self._refuse(f"at most {limits.max_fields:,} fields", "more", position)
            wire, number = tag & 7, tag >> 3
            kind, message, growth = table.get(number, (_Kind.BYTES, None, 1))
            if wire != 2:
                position = self._skip(wire, position, end)
                continue
            length, position = self._varint(position, end)
            if length > end - position:
                self._refuse(
                    "a length inside the file", f"{length:,} bytes where {end - position:,} are left; it is cut short", position
                )
            self.decoded += length * growth + _BYTES_PER_FIELD
            if self.decoded > limits.max_decoded_bytes:
                self._refuse(f"at most {limits.max_decoded_bytes:,} bytes in memory", "more", position)
            if kind is _Kind.MESSAGE and message is not None:
                if len(stack) >= _MAX_MESSAGE_DEPTH:
                    self._refuse(f"at most {_MAX_MESSAGE_DEPTH} messages inside each other", "more", position)
                stack.append((descriptor, end))
                descriptor, table, end = message, _table(message), position + length
                continue
            if kind is _Kind.NAME or kind is _Kind.TEXT:
                self._check_text(kind, position, length)
            position += length

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while position < end:
            byte = self.data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
            shift += 7
            if shift > 63:
                self._refuse("numbers of ten bytes at most", "a longer one", position)
        return self._refuse("a whole number", "the end of what encloses it; the file is cut short or damaged", position)

    def _skip(self, wire: int, position: int, end: int) -> int:
        self.decoded += _BYTES_PER_FIELD // 16
        if wire == 0:
            return self._varint(position, end)[1]
        if wire not in (1, 5):
            self._refuse("an ONNX file", f"a field of wire type {wire}, which ONNX never uses", position)
        position += 8 if wire == 1 else 4
        if position > end:
            self._refuse("a whole number", "the end of what encloses it; the file is cut short or damaged", end)
        return position

    def _check_text(self, kind: _Kind, position: int, length: int) -> None:
        self.text += length
        if self.text > self.limits.max_text_bytes:
            self._refuse(f"at most {self.limits.max_text_bytes:,} bytes of names, documentation and metadata", "more", position)
        if kind is _Kind.NAME and length > self.limits.max_name_chars:
            self._refuse(f"names of {self.limits.max_name_chars:,} bytes at most", f"one of {length:,}", position)
        try:
            text = self.data[position : position + length].decode()
        except UnicodeDecodeError:
            self._refuse("names in UTF-8", f"{self.data[position : position + min(length, 40)]!r}", position)
        if "\0" in text or (kind is _Kind.NAME and not text.isprintable()):
            self._refuse("names of printable characters", f"{text[:80]!a}", position)

    def _refuse(self, expected: str, found: str, position: int) -> NoReturn:
        raise ExportError(
            f"expected {expected}, found {found} (byte {position:,} of {len(self.data):,}). "
            "Fetch the file again from where it came; if it stays so, do not trust it."
        )
