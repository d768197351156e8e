"""``sequence_batching``, which the typed configuration carries along: the rules that Triton holds it against."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from convoy.serving.repository.configuration.part import Violation, error
from convoy.serving.repository.configuration.tensor import repeated

_VALUES: Final = ("int32_false_true", "fp32_false_true", "bool_false_true")
_CORRELATION: Final = "CONTROL_SEQUENCE_CORRID"
_CORRELATION_TYPES: Final = ("TYPE_UINT64", "TYPE_INT64", "TYPE_UINT32", "TYPE_INT32", "TYPE_STRING")
_HERE: Final = "sequence_batching"


def sequence_rules(config: Any) -> Iterator[Violation]:
    """What is wrong with the sequences of a configuration.

    Args:
        config: A ``ModelConfig`` message.
    """
    if not config.HasField(_HERE):
        return
    batching = config.sequence_batching
    for index, size in enumerate(batching.oldest.preferred_batch_size):
        if not 1 <= size <= config.max_batch_size:
            yield error(
                f"{_HERE}.oldest.preferred_batch_size[{index}]",
                f"preferred_batch_size: expected 1 to max_batch_size, {config.max_batch_size}, found {size}. Mend it.",
            )
    slots = batching.direct.minimum_slot_utilization
    if not 0 <= slots <= 1:
        yield error(
            f"{_HERE}.direct.minimum_slot_utilization", f"minimum_slot_utilization: expected 0 to 1, found {slots:g}. Mend it."
        )
    names = [control.name for control in batching.control_input]
    if "" in names:
        yield error(f"{_HERE}.control_input[{names.index('')}]", "control_input: expected a name, found none. Name the tensor.")
    for name in repeated([name for name in names if name]):
        yield error(
            f"{_HERE}.control_input[{names.index(name)}]", f"control_input: expected {name!r} once, found it twice. Remove one."
        )
    yield from _control_rules(batching)


def _control_rules(batching: Any) -> Iterator[Violation]:
    seen: set[int] = set()
    for index, tensor in enumerate(batching.control_input):
        for place, control in enumerate(tensor.control):
            path = f"{_HERE}.control_input[{index}].control[{place}]"
            kinds = control.DESCRIPTOR.fields_by_name["kind"].enum_type.values_by_number
            kind = kinds[control.kind].name if control.kind in kinds else str(control.kind)
            if control.kind in seen:
                yield error(path, f"control: expected one tensor for {kind}, found two. Remove one.")
            seen.add(control.kind)
            said = [name for name in _VALUES if len(getattr(control, name))]
            if kind == _CORRELATION:
                yield from _correlation_rules(path, control, said)
            elif len(said) != 1:
                yield error(
                    path, f"control: {kind} expects one of {', '.join(_VALUES)}, found {', '.join(said) or 'none'}. Choose one."
                )
            elif len(getattr(control, said[0])) != 2:
                yield error(
                    path, f"{said[0]}: expected two values, for false and for true, found {len(getattr(control, said[0]))}."
                )


def _correlation_rules(path: str, control: Any, said: list[str]) -> Iterator[Violation]:
    if said:
        yield error(path, f"control: {_CORRELATION} expects a data_type alone, found {', '.join(said)}. Remove it.")
    types = control.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    name = types[control.data_type].name if control.data_type in types else str(control.data_type)
    if name not in _CORRELATION_TYPES:
        yield error(
            path, f"data_type: expected one of {', '.join(_CORRELATION_TYPES)} for {_CORRELATION}, found {name}. Choose one."
        )
