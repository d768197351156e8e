"""Triton's protobuf schema of ``ModelConfig``, and the few questions about a descriptor that every release of protobuf answers."""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

CONFIG: Final[Any] = model_config_pb2.ModelConfig
"""The message class ``inference.ModelConfig``."""

_LABEL_REPEATED: Final = 3


def is_repeated(field: Any) -> bool:
    """Whether a field holds any number of values; a map does."""
    said = getattr(field, "is_repeated", None)  # protobuf 6.31 and later; ``label``, before it, warns there
    return bool(said) if said is not None else field.label == _LABEL_REPEATED


def is_map(field: Any) -> bool:
    """Whether a field is a map."""
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def is_message(field: Any) -> bool:
    """Whether a field's values are messages (those of a map are: its entries)."""
    return field.message_type is not None


def only(message: Any, name: str) -> Any:
    """A copy of a message with the one field."""
    copy = type(message)()
    if is_repeated(message.DESCRIPTOR.fields_by_name[name]):
        values = getattr(message, name)
        if is_map(message.DESCRIPTOR.fields_by_name[name]):
            getattr(copy, name).MergeFrom(values)
        else:
            getattr(copy, name).extend(values)
    elif message.DESCRIPTOR.fields_by_name[name].message_type is not None:
        if message.HasField(name):
            getattr(copy, name).CopyFrom(getattr(message, name))
    elif not message.DESCRIPTOR.fields_by_name[name].has_presence or message.HasField(name):
        setattr(copy, name, getattr(message, name))
    return copy


def differs(one: Any, other: Any, name: str) -> bool:
    """Whether two messages of one kind differ in a field; a message that is there and empty differs from one that is not."""
    field = one.DESCRIPTOR.fields_by_name[name]
    if field.has_presence and one.HasField(name) != other.HasField(name):
        return True
    return bool(getattr(one, name) != getattr(other, name))


def printed(message: Any, *, indent: int = 0, one_line: bool = False) -> str:
    """A message in protobuf's text format, without a newline at its end."""
    text: str = text_format.MessageToString(
        message, as_one_line=one_line, use_short_repeated_primitives=True, indent=0 if one_line else indent
    )
    return text.strip() if one_line else text.rstrip("\n")
