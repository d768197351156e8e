"""Class names from the files in which people keep them."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

from convoy.contract.errors import DataError

_MAX_BYTES = 16 << 20
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f]")


def read_labels(path: Path) -> tuple[str, ...]:
    """Read class names in the order of the logits.

    Forms: text, one name a line (ImageNet's ``n01440764 tench`` too); a JSON list; a JSON object of index to name (values may be
    lists, as Keras writes them), of name to index, or with such an object under ``id2label`` (Hugging Face's ``config.json``); the
    same as a Python literal; CSV with the columns index and name (``.csv``; a header may stand above).

    Args:
        path: The file, UTF-8.

    Returns:
        At least two names, each another.

    Raises:
        DataError: It cannot be read; names are empty or doubled, or indices are missing. The message says in which line.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path}: expected a file of class names, {_MAX_BYTES} bytes at most, found {path.stat().st_size}.")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: class names cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected class names in UTF-8, found other bytes at offset {error.start}.") from error
    if text.lstrip()[:1] in ("{", "["):
        names = _from_json(text, path)
    elif path.suffix.lower() == ".csv":
        names = _from_csv(text, path)
    else:
        names = _from_lines(text, path)
    return _checked(names, path)


_Named = list[tuple[str, str]]
"""Names in order, each with where it stands."""


def _from_lines(text: str, path: Path) -> _Named:
    lines = text.splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise DataError(
                f"{path}, line {number}: expected a class name, found an empty line: the next names would move up by one."
            )
    return [(line.strip(), f"line {number}") for number, line in enumerate(lines, start=1)]


def _from_csv(text: str, path: Path) -> _Named:
    rows = [(number, row) for number, row in enumerate(csv.reader(io.StringIO(text)), start=1) if any(cell.strip() for cell in row)]
    if rows and not rows[0][1][0].strip().isdecimal():
        rows = rows[1:]  # a header
    found: dict[int, tuple[str, str]] = {}
    for number, row in rows:
        if len(row) < 2 or not row[0].strip().isdecimal():
            raise DataError(f"{path}, line {number}: expected an index and a name, found {','.join(row)!r}.")
        index = int(row[0])
        if index in found:
            raise DataError(f"{path}, line {number}: expected each index once, found {index} again after {found[index][1]}.")
        found[index] = (row[1].strip(), f"line {number}")
    return _in_order(found, path)


def _from_json(text: str, path: Path) -> _Named:
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, path))
    except (ValueError, RecursionError) as error:
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise DataError(f"{path}{line}: expected class names as JSON, found text that is no JSON: {error}.") from error
    if isinstance(value, dict) and isinstance(value.get("id2label"), dict):
        value = value["id2label"]
    if isinstance(value, list):
        return [(_name(entry, path), f"index {index}") for index, entry in enumerate(value)]
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a JSON list or object of class names, found {type(value).__name__}.")
    if value and all(_is_index(key) for key in value):
        return _in_order({int(key): (_name(entry, path), f"index {key}") for key, entry in value.items()}, path)
    if value and all(_is_index(entry) for entry in value.values()):
        turned: dict[int, tuple[str, str]] = {}
        for key, entry in value.items():
            if int(entry) in turned:
                raise DataError(f"{path}: expected each index once, found {entry} for {turned[int(entry)][0]!r} and {key!r}.")
            turned[int(entry)] = (str(key), f"index {entry}")
        return _in_order(turned, path)
    raise DataError(
        f"{path}: expected a JSON object of index to name or of name to index, found keys like {next(iter(value), '')!r}."
    )


def _once(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    """A JSON object whose keys are each another; the parser alone would keep the last of equal ones."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise DataError(f"{path}: expected each key once, found {key!r} again.")
        found[key] = value
    return found


def _is_index(value: Any) -> bool:
    return not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, str) and value.isdecimal()))


def _name(entry: Any, path: Path) -> str:
    if isinstance(entry, (list, tuple)) and entry and all(isinstance(part, str) for part in entry):
        return " ".join(entry)  # Keras: ["n01440764", "tench"]
    if isinstance(entry, (str, int)) and not isinstance(entry, bool):
        return str(entry)
    raise DataError(f"{path}: expected class names as text, found {entry!r}.")


def _in_order(found: dict[int, tuple[str, str]], path: Path) -> _Named:
    if missing := sorted(set(range(len(found))) - found.keys()):
        raise DataError(
            f"{path}: expected indices from 0 to {len(found) - 1}, found none for {missing[0]} (the largest is {max(found)})."
        )
    return [found[index] for index in range(len(found))]


def _checked(names: _Named, path: Path) -> tuple[str, ...]:
    if len(names) < 2:
        raise DataError(f"{path}: expected at least two class names, found {len(names)}.")
    first: dict[str, str] = {}
    for name, where in names:
        if not name or _CONTROL.search(name):
            raise DataError(f"{path}, {where}: expected a class name, found {name!r}.")
        if name in first:
            raise DataError(
                f"{path}, {where}: expected each class name once, found {name!r} again after {first[name]}: tell them apart, as in "
                f"'crane (bird)' and 'crane (machine)', or put the WordNet id before each name."
            )
        first[name] = where
    return tuple(name for name, _ in names)
