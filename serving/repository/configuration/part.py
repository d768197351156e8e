"""What every typed part of a configuration has: the way from and to its protobuf message, and its rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Final, Literal, NamedTuple, TypeAlias, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

from convoy.serving.repository.configuration.schema import is_map, is_message, is_repeated

Severity: TypeAlias = Literal["error", "warning"]

Parts: TypeAlias = "Mapping[str, type[Part]]"
"""The class of each field that holds messages, by the field's name."""

_CARRIED: Final = "carried"


class Violation(NamedTuple):
    """A rule that a configuration breaks.

    Attributes:
        path: The field, as ``ConfigText.position`` takes it.
        severity: ``error`` where Triton refuses the model; ``warning`` where it serves it, but not as the configuration reads.
        message: What was expected, what was found, what to do.
    """

    path: str
    severity: Severity
    message: str

    def under(self, prefix: str) -> Violation:
        """The same, of a part that stands at ``prefix``."""
        return self._replace(path=f"{prefix}.{self.path}" if self.path else prefix)


def error(path: str, message: str) -> Violation:
    """A rule whose breach Triton does not accept."""
    return Violation(path, "error", message)


def warning(path: str, message: str) -> Violation:
    """A rule whose breach Triton accepts."""
    return Violation(path, "warning", message)


class Part(BaseModel):
    """A message of Triton's schema, typed: fields have the schema's names; those whose name is a Python keyword end in ``_``.

    An object that code makes keeps every rule, or it is not made. One that is read from a file (``from_message``) is held against
    nothing: ``violations`` says what is wrong with it.

    Attributes:
        carried: What the schema has and this class has not, as protobuf bytes: it is written back unchanged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind_: ClassVar[Any]
    """The message class."""
    parts_: ClassVar[Parts] = {}
    """The class of each field that holds messages."""

    carried: bytes = Field(default=b"", repr=False)

    @classmethod
    def from_message(cls, message: Any) -> Self:
        """The typed form of a protobuf message; no rule is applied, and nothing of it is lost."""
        rest = type(message)()
        rest.CopyFrom(message)
        values: dict[str, Any] = {}
        for name in cls.model_fields:
            if name != _CARRIED:
                values[name] = cls._read(message, name)
                rest.ClearField(name.rstrip("_"))
        return cast("Self", cls.model_construct(**values, carried=rest.SerializeToString(deterministic=True)))

    @classmethod
    def _read(cls, message: Any, name: str) -> Any:
        field = message.DESCRIPTOR.fields_by_name[name.rstrip("_")]
        value = getattr(message, field.name)
        part: Callable[[Any], Any] | None = cls.parts_[name].from_message if name in cls.parts_ else None
        if is_map(field):
            return {key: part(value[key]) if part else value[key] for key in value}
        one = part or (_enum_name(field) if field.enum_type is not None else _itself)
        if is_repeated(field):
            return tuple(one(item) for item in value)
        if field.has_presence and not message.HasField(field.name):
            return None
        return one(value)

    def to_message(self) -> Any:
        """The protobuf message, with what was carried along."""
        message = self.kind_()
        message.ParseFromString(self.carried)
        for name in type(self).model_fields:
            if name != _CARRIED:
                self._write(message, name)
        return message

    def _write(self, message: Any, name: str) -> None:
        field = message.DESCRIPTOR.fields_by_name[name.rstrip("_")]
        value = getattr(self, name)
        target = getattr(message, field.name)
        if value is None:
            return
        if is_map(field):
            for key, item in value.items():
                if isinstance(item, Part):
                    target[key].CopyFrom(item.to_message())
                else:
                    target[key] = item
        elif is_repeated(field):
            target.extend(_plain(field, item) for item in value)
        elif is_message(field):
            target.CopyFrom(value.to_message())
            target.SetInParent()
        else:
            setattr(message, field.name, _plain(field, value))

    def violations(self) -> Iterator[Violation]:
        """Every rule that this part, or a part of it, breaks."""
        for name in type(self).model_fields:
            value, path = getattr(self, name), name.rstrip("_")
            if isinstance(value, Part):
                yield from (found.under(path) for found in value.violations())
            elif isinstance(value, Mapping):
                for key, item in value.items():
                    if isinstance(item, Part):
                        shown = f'"{key}"' if isinstance(key, str) else key
                        yield from (found.under(f"{path}[{shown}]") for found in item.violations())
            elif isinstance(value, tuple):
                for index, item in enumerate(value):
                    if isinstance(item, Part):
                        yield from (found.under(f"{path}[{index}]") for found in item.violations())
        yield from self._enums()
        yield from self.rules()

    def rules(self) -> Iterator[Violation]:
        """The rules that this part breaks, those of its parts left out."""
        return iter(())

    def _enums(self) -> Iterator[Violation]:
        for name in type(self).model_fields:
            field = self.kind_.DESCRIPTOR.fields_by_name.get(name)
            if field is not None and field.enum_type is not None and getattr(self, name) not in field.enum_type.values_by_name:
                names = ", ".join(field.enum_type.values_by_name)
                yield error(name, f"{name}: expected one of {names}, found {getattr(self, name)}.")

    @model_validator(mode="after")
    def _keep_rules(self) -> Self:
        broken = list(self.rules())
        if broken:
            raise ValueError(" ".join(one.message for one in broken))
        return self


def _itself(value: Any) -> Any:
    return value


def _enum_name(field: Any) -> Callable[[int], str]:
    def name(number: int) -> str:
        known = field.enum_type.values_by_number.get(number)
        return str(known.name) if known is not None else str(number)

    return name


def _plain(field: Any, value: Any) -> Any:
    if isinstance(value, Part):
        return value.to_message()
    if field.enum_type is not None:
        known = field.enum_type.values_by_name.get(value)
        return known.number if known is not None else int(value)
    return value
