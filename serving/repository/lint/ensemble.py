"""Ensembles: the tensors that flow between their steps, and the models that the steps name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from convoy.serving.repository.configuration.part import Violation, error
from convoy.serving.repository.configuration.tensor import ANY_EXTENT
from convoy.serving.repository.lint.subject import Subject

_STEP = "ensemble_scheduling.step"


@dataclass(frozen=True)
class _Flowing:
    """What is known of a tensor between steps: its type and shape, and the model that says so."""

    data_type: str
    dims: tuple[int, ...]
    batched: bool
    source: str

    @property
    def shape(self) -> tuple[int, ...]:
        return (ANY_EXTENT, *self.dims) if self.batched else self.dims

    def fits(self, other: _Flowing) -> bool:
        return _alike(self.dims, other.dims) or _alike(self.shape, other.shape)


def flow_rules(config: Any) -> Iterator[Violation]:
    """Every step takes and gives, every tensor is made once and used, every output is reached.

    Args:
        config: The ``ModelConfig`` message of an ensemble.
    """
    steps = config.ensemble_scheduling.step
    if config.HasField("ensemble_scheduling") and not steps:
        yield error("ensemble_scheduling", "ensemble_scheduling: expected at least one step, found none. Write it.")
    makers: dict[str, int] = {}
    broken = not steps
    for index, step in enumerate(steps):
        for name in ("model_name", "input_map", "output_map"):
            if not getattr(step, name):
                broken = True
                yield error(f"{_STEP}[{index}]", f"{name}: expected in every step, found none. Write it.")
        for tensor in step.output_map.values():
            if tensor in makers:
                broken = True
                yield error(f"{_STEP}[{index}].output_map", f"output_map: expected {tensor!r} to be made by one step, found two.")
            makers[tensor] = index
    if not broken:
        yield from _reach(config, makers)


def _reach(config: Any, makers: Mapping[str, int]) -> Iterator[Violation]:
    steps = config.ensemble_scheduling.step
    used = {tensor for step in steps for tensor in step.input_map.values()}
    outputs = {tensor.name for tensor in config.output}
    ready: set[str] = set()
    for index, tensor in enumerate(config.input):
        if tensor.name not in used | makers.keys():
            yield error(f"input[{index}]", f"input: expected a step that uses {tensor.name!r}, found none. Remove it, or map it.")
        ready.add(tensor.name)
    while new := {name for name, index in makers.items() if set(steps[index].input_map.values()) <= ready} - ready:
        ready |= new
    for index, tensor in enumerate(config.output):
        if tensor.name not in ready:
            missing = _missing(tensor.name, makers, steps, ready)
            yield error(
                f"output[{index}]", f"output: expected a step that makes {tensor.name!r}, found none that can run{missing}."
            )
    for name in sorted((used | makers.keys()) - outputs):
        at = f"{_STEP}[{makers[name]}].output_map" if name in makers else _STEP
        if name not in ready:
            yield error(at, f"step: expected {name!r} to be made by a step or to be an input, found neither. Mend the maps.")
        elif name not in used:
            yield error(at, f"output_map: expected a step or an output that uses {name!r}, found none. Remove it.")


def _missing(name: str, makers: Mapping[str, int], steps: Any, ready: set[str]) -> str:
    if name not in makers:
        return ""
    absent = sorted(set(steps[makers[name]].input_map.values()) - ready)
    return f": {', '.join(map(repr, absent))} never come" if absent else ""


def check_steps(subject: Subject, others: Mapping[str, Subject]) -> None:
    """Every step names a model and a version that are served, and tensors that it has and that fit together.

    Args:
        subject: An ensemble.
        others: All models of the repository by name, checked already.
    """
    ensemble = subject.message
    flowing = _own(ensemble)
    for index, step in enumerate(ensemble.ensemble_scheduling.step):
        path = f"{_STEP}[{index}]"
        model = others.get(step.model_name)
        if model is None or model.message is None:
            if step.model_name:
                close = difflib.get_close_matches(step.model_name, list(others), n=1)
                meant = f" Did you mean {close[0]!r}?" if close and not model else ""
                what = "which cannot be read" if model else "which is not there"
                subject.report(
                    "error", f"model_name: expected a model of this repository, found {step.model_name!r}, {what}.{meant}", at=path
                )
            continue
        if model.failed and model is not subject:
            subject.report(
                "error", f"model_name: expected a model that is served, found {model.name!r}, which has errors.", at=path
            )
        if step.model_version > 0 and step.model_version not in model.served:
            have = ", ".join(map(str, model.served)) or "none"
            subject.report(
                "error",
                f"model_version: expected a version that {model.name!r} serves ({have}), found {step.model_version}.",
                at=path,
            )
        if 0 < model.message.max_batch_size < ensemble.max_batch_size:
            subject.report(
                "error",
                f"max_batch_size: expected at most that of {model.name!r}, {model.message.max_batch_size}, found "
                f"{ensemble.max_batch_size}. Lower it.",
                at="max_batch_size",
            )
        _check_maps(subject, path, step, model.message, flowing)
    if subject.name in _dependencies(subject.name, others):
        subject.report(
            "error", "ensemble_scheduling: expected no step that leads back to this ensemble, found one.", at="ensemble_scheduling"
        )


def _own(ensemble: Any) -> dict[str, _Flowing]:
    """What the ensemble says of its own inputs and outputs."""
    known: dict[str, _Flowing] = {}
    for tensor in (*ensemble.input, *ensemble.output):
        known.setdefault(tensor.name, _flowing(tensor, ensemble, reshaped=True))
    return known


def _flowing(tensor: Any, config: Any, *, reshaped: bool = False) -> _Flowing:
    types = tensor.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    name = types[tensor.data_type].name if tensor.data_type in types else str(tensor.data_type)
    dims = tensor.reshape.shape if reshaped and tensor.HasField("reshape") else tensor.dims
    return _Flowing(name, tuple(dims), config.max_batch_size > 0, config.name)


def _check_maps(subject: Subject, path: str, step: Any, model: Any, flowing: dict[str, _Flowing]) -> None:
    required = {tensor.name for tensor in model.input if not tensor.optional}
    for name in sorted(required - step.input_map.keys()):
        subject.report(
            "error", f"input_map: expected every input of {model.name!r}, {name!r} is missing. Map it.", at=f"{path}.input_map"
        )
    for field, tensors, mapped in (("input_map", model.input, step.input_map), ("output_map", model.output, step.output_map)):
        known = {tensor.name: tensor for tensor in tensors}
        for name, ensemble_name in mapped.items():
            at = f'{path}.{field}["{name}"]'
            if name not in known:
                subject.report(
                    "error", f"{field}: expected a tensor of {model.name!r} {sorted(known)}, found {name!r}. Mend it.", at=at
                )
                continue
            new = _flowing(known[name], model)
            old = flowing.setdefault(ensemble_name, new)
            if old.data_type != new.data_type:
                subject.report(
                    "error",
                    f"{field}: {ensemble_name!r} is {old.data_type} in {old.source!r} and {new.data_type} in {model.name!r}.",
                    at=at,
                )
            elif not old.fits(new):
                subject.report(
                    "error",
                    f"{field}: {ensemble_name!r} is {list(old.shape)} in {old.source!r} and {list(new.shape)} in {model.name!r}.",
                    at=at,
                )


def _alike(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(one) == len(other) and all(a == b or ANY_EXTENT in (a, b) for a, b in zip(one, other, strict=True))


def _dependencies(name: str, others: Mapping[str, Subject]) -> set[str]:
    """The models that a model's steps name, and theirs."""
    found: set[str] = set()
    left = [name]
    while left:
        model = others.get(left.pop())
        if model is None or model.message is None:
            continue
        for step in model.message.ensemble_scheduling.step:
            if step.model_name not in found:
                found.add(step.model_name)
                left.append(step.model_name)
    return found
