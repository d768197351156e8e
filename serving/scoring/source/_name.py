r"""Names of files as text that every table, JSON file and terminal can hold.

Python keeps the bytes of a name that are no UTF-8 as lone surrogates, which neither JSON nor Parquet takes.
"""

from __future__ import annotations

import os
import re
from typing import Final

_UNSHOWN: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SHORT: Final = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_UNSAFE: Final = re.compile("[\\\\\ud800-\udfff]")
_ESCAPED: Final = re.compile(r"\\(\\|u[0-9a-f]{4})")


def printable(name: str | os.PathLike[str]) -> str:
    r"""A name to be shown: bytes that are no UTF-8 as ``\xff``, line ends and other control characters as ``\n`` or ``\x1b``."""
    return _UNSHOWN.sub(lambda found: _shown(found[0]), os.fspath(name))


def escape(name: str) -> str:
    r"""A name to be found again: a backslash is doubled, a lone surrogate becomes ``\udcff``. ``unescape`` undoes it."""
    return _UNSAFE.sub(lambda found: r"\\" if found[0] == "\\" else f"\\u{ord(found[0]):04x}", name)


def unescape(text: str) -> str:
    """The name that ``escape`` was given."""
    return _ESCAPED.sub(lambda found: "\\" if found[1] == "\\" else chr(int(found[1][1:], 16)), text)


def _shown(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
