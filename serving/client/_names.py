"""What a caller calls models and versions, checked before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from convoy.contract.errors import UsageError

DEFAULT_READER: Final = "check-reader"
"""The model that reads amounts where a caller names none."""

_NUMBER: Final = re.compile("[1-9][0-9]{0,18}")


def check_name(model_name: str) -> str:
    """Return ``model_name`` where it can be one.

    Raises:
        UsageError: It is no text or is empty. (Other servers' names may be longer or odder than Convoy's own.)
    """
    if not isinstance(model_name, str) or not model_name:
        raise UsageError(f"model_name: expected a model's name, found {model_name!r}.")
    return model_name


def check_outputs(outputs: Iterable[str] | None) -> tuple[str, ...]:
    """The names of outputs; none where all are wanted.

    Raises:
        UsageError: It is one name and no list of them.
    """
    if isinstance(outputs, str):
        raise UsageError(f"outputs: expected names of outputs, such as [{outputs!r}], found one text.")
    return () if outputs is None else tuple(outputs)


def check_version(model_version: str) -> str:
    """Return ``model_version`` where it can be one.

    Raises:
        UsageError: It is no text; versions are strings on the wire.
    """
    if not isinstance(model_version, str):
        raise UsageError(f"model_version: expected text such as '3', or '' for the server's choice, found {model_version!r}.")
    return model_version


def check_number(model_version: str) -> str:
    """Return ``model_version`` where Triton can have a version of that name, as it can of any model that ``convoy deploy`` wrote.

    Raises:
        UsageError: It is neither empty nor a positive whole number. Triton takes "v1" for a failure of its own, and "1.5" for 1.
    """
    if check_version(model_version) and not _NUMBER.fullmatch(model_version):
        raise UsageError(
            f"model_version: expected a positive whole number such as '3', or '' for the server's choice, found {model_version!r}."
        )
    return model_version
