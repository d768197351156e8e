"""HTTP/2 header blocks (HPACK, RFC 7541) as far as a load generator needs them: it writes literals and reads what servers answer.

The generator tells the server that it keeps no dynamic table (``SETTINGS_HEADER_TABLE_SIZE`` 0), so that every block says the same
wherever it stands, and equal blocks mean the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_STATUS: Final = {8: b"200", 9: b"204", 10: b"206", 11: b"304", 12: b"400", 13: b"404", 14: b"500"}
"""The entries of the static table (appendix A) that answers use for what is read here."""
_STATIC_ENTRIES: Final = 61

# Appendix B: how many bits the code of each character from ' ' to '~' has, in base 36. The codes follow from the lengths: shorter
# ones first, those of equal length consecutive in the order of the characters. Of the characters outside, which headers do not
# hold, all have longer codes than these, but for NUL.
_CODE_LENGTHS: Final = (
    "6aacd68baa8b8666"  # space to /
    "5556666666"  # 0 to 9
    "78f6cad"  # : to @
    "67777777777777777777777878"  # A to Z
    "djde6f"  # [ to `
    "56565666577666567655677777"  # a to z
    "fbed"  # { to ~
)


def encode(headers: Iterable[tuple[str, str]]) -> bytes:
    """A block of literals, none of which enters a table and none of which is compressed.

    Args:
        headers: Names, in lower case, and values; ASCII.
    """
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in headers)


def decode(block: bytes) -> dict[str, str]:
    """The headers of a block; those whose names stand in the static table are left out, but for ``:status``.

    Raises:
        ValueError: It is no header block, or one that needs a dynamic table.
    """
    headers: dict[str, str] = {}
    at = 0
    try:
        while at < len(block):
            first = block[at]
            if first & 0x80:  # a whole entry
                index, at = _number(block, at, 7)
                if not 1 <= index <= _STATIC_ENTRIES:
                    raise ValueError(f"expected an entry of the static table, found {index}")
                if index in _STATUS:
                    headers[":status"] = _STATUS[index].decode()
            elif first & 0xE0 == 0x20:  # the size of the dynamic table
                size, at = _number(block, at, 5)
                if size:
                    raise ValueError(f"expected a dynamic table of 0 bytes, found {size}")
            else:  # a literal; 0x40 would enter it into the dynamic table, which holds nothing
                index, at = _number(block, at, 6 if first & 0x40 else 4)
                if index > _STATIC_ENTRIES:
                    raise ValueError(f"expected an entry of the static table, found {index}")
                name = ""
                if not index:
                    name, at = _text(block, at)
                value, at = _text(block, at)
                if index in _STATUS:
                    name = ":status"
                if name:
                    headers[name] = value
    except IndexError as error:
        raise ValueError("the header block is cut short") from error
    return headers


def _string(text: str) -> bytes:
    data = text.encode("ascii")
    if len(data) < 127:
        return bytes([len(data)]) + data
    rest, length = len(data) - 127, bytearray([127])
    while rest >= 128:
        length.append(rest % 128 + 128)
        rest //= 128
    return bytes(length) + bytes([rest]) + data


def _number(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """The integer (section 5.1) in the last ``bits`` of a byte and, where they are all ones, those that follow; where it ends."""
    most = (1 << bits) - 1
    value = block[at] & most
    at += 1
    if value < most:
        return value, at
    for shift in range(0, 35, 7):
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
    raise ValueError("a number of the header block is too large")


def _text(block: bytes, at: int) -> tuple[str, int]:
    compressed = block[at] & 0x80
    length, at = _number(block, at, 7)
    data = block[at : at + length]
    if len(data) < length:
        raise ValueError("the header block is cut short")
    return (_expand(data) if compressed else data.decode("latin-1")), at + length


def _expand(data: bytes) -> str:
    codes = _codes()
    characters, bits, n_bits = [], 0, 0
    for byte in data:
        for shift in range(7, -1, -1):
            bits, n_bits = bits << 1 | (byte >> shift & 1), n_bits + 1
            character = codes.get((n_bits, bits))
            if character is not None:
                characters.append(character)
                bits, n_bits = 0, 0
    if n_bits > 7 or bits != (1 << n_bits) - 1:
        raise ValueError("a compressed string of the header block ends within a character, or holds one that headers never do")
    return "".join(characters)


def _codes() -> dict[tuple[int, int], str]:
    """Character by the length of its code and the code."""
    lengths = [(13, "\0"), *((int(digit, 36), chr(32 + i)) for i, digit in enumerate(_CODE_LENGTHS))]
    codes: dict[tuple[int, int], str] = {}
    code, previous = 0, 0
    for length, character in sorted(lengths):
        code <<= length - previous
        codes[(length, code)] = character
        code, previous = code + 1, length
    return codes
