"""The files that a configuration names: versions, models, labels, warm-up data."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Final

from convoy.contract.errors import ContractError
from convoy.serving.repository.configuration.model_config import ModelConfig
from convoy.serving.repository.configuration.tensor import ANY_EXTENT
from convoy.serving.repository.lint.subject import Subject
from convoy.serving.triton.backend.session import model_path

_BYTES: Final = {
    "TYPE_BOOL": 1, "TYPE_UINT8": 1, "TYPE_INT8": 1, "TYPE_UINT16": 2, "TYPE_INT16": 2, "TYPE_FP16": 2, "TYPE_BF16": 2,
    "TYPE_UINT32": 4, "TYPE_INT32": 4, "TYPE_FP32": 4, "TYPE_UINT64": 8, "TYPE_INT64": 8, "TYPE_FP64": 8,
}  # fmt: skip

_WARMUP_FOLDER: Final = "warmup"


def check_versions(subject: Subject) -> None:
    """At least one version is there, and each that the policy names."""
    policy = subject.typed.version_policy
    if not subject.versions:
        subject.report(
            "error",
            "expected a version folder, named by a number from 1 on, found none. Put the model into one.",
            at=subject.folder,
        )
        return
    named = policy.specific.versions if policy is not None and policy.specific is not None else ()
    missing = [version for version in named if version not in subject.versions]
    if missing:
        have = ", ".join(map(str, subject.versions))
        subject.report(
            "error" if not subject.served else "warning",
            f"versions: expected folders for {missing}, found {have}. Mend the list, or put the version back.",
            at="version_policy.specific.versions",
        )


def onnx_files(subject: Subject) -> dict[int, Path]:
    """The ONNX file of each version that is served; those that are missing are reported."""
    found = {}
    name = subject.message.default_model_filename
    if Path(name).is_absolute() or ".." in Path(name).parts:
        subject.report(
            "error",
            f"default_model_filename: expected a file in the version's folder, found {name!r}.",
            at="default_model_filename",
        )
        return {}
    for version in subject.served:
        try:
            found[version] = model_path(subject.folder / str(version), name)
        except ContractError:
            path = subject.folder / str(version) / name
            subject.report(
                "error", "no such file. Each version that is served needs it (default_model_filename names it).", at=path
            )
    return found


def check_labels(subject: Subject, config: ModelConfig) -> None:
    """Every file of labels is there, and has as many lines as its output has classes."""
    for index, output in enumerate(config.output):
        if not output.label_filename:
            continue
        at, path = f"output[{index}].label_filename", subject.folder / output.label_filename
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            subject.report("error", f"label_filename: {path}: {error.strerror}. Put it there, or remove the field.", at=at)
            continue
        if output.dims and ANY_EXTENT not in output.dims and len(lines) != prod(output.dims):
            subject.report(
                "warning",
                f"label_filename: expected {prod(output.dims)} lines, one for each element of {output.name!r} {list(output.dims)}, "
                f"found {len(lines)} in {path.name}. Mend the one that is wrong.",
                at=at,
            )


def check_warmup_files(subject: Subject, config: ModelConfig) -> None:
    """The data of warm-ups is there, and enough."""
    for index, warmup in enumerate(config.model_warmup):
        for name, sample in warmup.inputs.items():
            if sample.input_data_file is None or not warmup.batch_size:
                continue
            path, at = subject.folder / _WARMUP_FOLDER / sample.input_data_file, f'model_warmup[{index}].inputs["{name}"]'
            needed = prod(sample.dims) * _BYTES.get(sample.data_type, 0)
            try:
                size = path.stat().st_size
            except OSError as error:
                subject.report("error", f"input_data_file: {path}: {error.strerror}. Put it there.", at=at)
                continue
            if size < needed:
                subject.report(
                    "error",
                    f"input_data_file: expected {needed} bytes, found {size} in {path}. Write a sample of {list(sample.dims)}.",
                    at=at,
                )
