"""``--set key=value``: a recipe with fields changed, each value checked against the field's type."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from convoy.contract.errors import UsageError
from convoy.training.recipes.recipe import Architecture, Recipe

_FIXED: Final = {
    "name": "is the recipe's own",
    "title": "is the recipe's own",
    "source": "is the recipe's own",
    "network": "is the recipe's own",
    "data": "is chosen with --data",
}
_R = TypeVar("_R", bound=BaseModel)
BACKBONE: Final = "backbone"
"""What ``--set`` calls the network of a recipe that transfers: there it is a choice."""


@dataclass(frozen=True)
class Setting:
    """A field of a recipe that ``--set`` changes.

    Attributes:
        key: Its name, dotted where it is part of a group (``augmentation.shift_px``).
        value: Its value in the recipe.
        description: What it does, with the unit.
        choices: The values that it may have, where they are named ones.
    """

    key: str
    value: Any
    description: str
    choices: tuple[str, ...] = ()


def settings(recipe: BaseModel) -> tuple[Setting, ...]:
    """All fields of ``recipe`` that ``--set`` changes, in their order; what its network does not offer is not among them."""
    what = "the network that is taken over: one of torchvision's, or cifar-resnet20 to 56"
    backbone: tuple[Setting, ...] = ()
    if isinstance(recipe, Recipe) and recipe.transfer is not None:
        backbone = (Setting(BACKBONE, recipe.network, what),)
    return (*backbone, *_settings(recipe, ""))


def _settings(part: BaseModel, prefix: str) -> Iterator[Setting]:
    for name, info in type(part).model_fields.items():
        value = getattr(part, name)
        if isinstance(value, BaseModel):
            yield from _settings(value, f"{prefix}{name}.")
        elif prefix + name not in _FIXED and not _is_absent(recipe_part=part, name=name):
            yield Setting(prefix + name, value, info.description or "", _choices(info.annotation))


def _choices(annotation: Any) -> tuple[str, ...]:
    """The strings that a field of this type may hold; none where it may hold other values than named ones."""
    if get_origin(annotation) is Literal:
        return tuple(map(str, get_args(annotation)))
    return tuple(choice for inner in get_args(annotation) for choice in _choices(inner))


def _is_absent(recipe_part: BaseModel, name: str) -> bool:
    """Whether a null says that there is no such choice: of a network, or of a whole group of fields."""
    return getattr(recipe_part, name) is None and (isinstance(recipe_part, Architecture) or name == "transfer")


def override(recipe: _R, assignments: Iterable[str]) -> _R:
    """``recipe`` with fields changed.

    Args:
        recipe: The recipe to start from.
        assignments: ``key=value`` each. A value is JSON (``12``, ``0.5``, ``[0.13]``, ``null``) or, where it is none, a plain
            string; later ones win. A field of a group may be named without its group where no other has its name.

    Raises:
        UsageError: One has no ``=``, names no field, or its value does not fit the field or the other fields.
    """
    changes: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key, text = key.strip(), text.strip()
        if not equals or not key:
            raise UsageError(f"--set {assignment}: expected key=value, such as --set epochs=5.")
        changes[_full_key(recipe, key)] = _parse(text)
    return merge(recipe, changes) if changes else recipe


def merge(recipe: _R, changes: Mapping[str, Any]) -> _R:
    """``recipe`` with the fields of ``changes`` (dotted names) replaced and everything validated again.

    Raises:
        UsageError: A value does not fit its field, or the fields do not fit together.
    """
    values = recipe.model_dump(mode="json")
    for key, value in changes.items():
        *groups, leaf = key.split(".")
        part = values
        for group in groups:
            part = part[group]
        part[leaf] = value
    try:
        # by way of JSON: strict there means that a list is a tuple, while true is still no integer
        return type(recipe).model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise UsageError(_say(error, changes)) from error


def _full_key(recipe: BaseModel, key: str) -> str:
    name = getattr(recipe, "name", "")
    if key in _FIXED:
        raise UsageError(f"--set {key}: this field {_FIXED[key]} and cannot be set.")
    known = [setting.key for setting in settings(recipe)]
    if key in known:
        return "network" if key == BACKBONE else key
    named = [one for one in known if one.rpartition(".")[2] == key]
    if len(named) == 1:
        return named[0]
    if key.rpartition(".")[2] in Architecture.model_fields:
        raise UsageError(
            f"--set {key}: the network of recipe {name!r} does not offer this choice; `convoy recipes {name}` lists what it offers."
        )
    group = [one for one in known if one.startswith(f"{key}.")]
    if group:
        raise UsageError(f"--set {key}: this is a group of fields; set one of {', '.join(group)}.")
    leaf = key.rpartition(".")[2]
    leaves = {one.rpartition(".")[2]: one for one in known}
    close = difflib.get_close_matches(key, known, n=1) or [leaves[one] for one in difflib.get_close_matches(leaf, leaves, n=1)]
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}."
    raise UsageError(f"--set {key}: recipe {name!r} has no such field; {hint}")


def _parse(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_keep)
    except ValueError:
        return text


def _keep(constant: str) -> str:
    return constant  # NaN and Infinity are JSON to Python alone: as strings they fit no number


def _say(error: ValidationError, changes: Mapping[str, Any]) -> str:
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    # a value of a tuple lies below its field, and a rule between fields lies above them
    key = next((key for key in changes if location[: key.count(".") + 1] == key.split(".")), None)
    message = first["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be", "expected", 1)
    if key is None:
        shown = " ".join(f"{name}={json.dumps(value)}" for name, value in changes.items())
        return f"--set {shown}: {message}."
    hint = f" Write a list: --set '{key}=[{json.dumps(changes[key])}]'." if first["type"] == "tuple_type" else ""
    return f"--set {key}: {message}, found {json.dumps(changes[key])}.{hint}"
