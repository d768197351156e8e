"""The model card, ``README.md``: what is known of an export, from its manifest and its report alone."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jinja2
import yaml

from convoy.contract import figures
from convoy.contract.bundle import Bundle
from convoy.contract.manifest import Manifest, Task, TensorSpec
from convoy.export.evidence.wording import source_name, task_words, verdict_words

NOT_STATED: Final = "not stated"

_TEMPLATES: Final = Path(__file__).with_name("templates")
_DTYPES: Final = {"UINT8": "uint8", "FP32": "float32", "FP16": "float16", "INT64": "int64"}
_HUB_TASKS: Final[dict[Task, str]] = {"image-classification": "image-classification", "amount-reading": "image-to-text"}
"""Model hubs know tasks by their own names."""
_MAX_LABELS: Final = 200  # characters of class names that a card lists
_SPECIAL: Final = re.compile(r"([\\`*_\[\]<>|&~$])")
_NAME_OF_A_DATASET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,95}")


@dataclass(frozen=True)
class CardFacts:
    """What only the person who publishes a model can say. Whatever is left out, the card calls "not stated".

    Attributes:
        license: An identifier ("apache-2.0", "cc-by-4.0", "other").
        author: Who made the model.
        intended_use: What it is for.
        out_of_scope_use: What it is not for.
        base_model: The published model that it was made from, as "owner/name".
    """

    license: str | None = None
    author: str | None = None
    intended_use: str | None = None
    out_of_scope_use: str | None = None
    base_model: str | None = None


def render_card(bundle: Bundle, facts: CardFacts | None = None) -> str:
    """The model card as Markdown with the front matter that model hubs read; the same facts give the same text.

    Args:
        bundle: The export, its report written.
        facts: What the person says; nothing is made up for what is missing.
    """
    facts = facts or CardFacts()
    manifest, report = bundle.manifest, bundle.report
    front = yaml.safe_dump(front_matter(bundle, facts), sort_keys=False, allow_unicode=True, width=1000)
    accuracy = report.accuracy
    return _environment().get_template("README.md.j2").render(
        front_matter=front,
        manifest=manifest,
        report=report,
        facts=facts,
        words=verdict_words(report),
        task=task_words(manifest.task),
        source_name=source_name(report),
        interval=None if accuracy is None else figures.interval95(accuracy.onnxruntime, accuracy.n),
        labels=_labels(manifest.labels),
        tensors=[("input", tensor) for tensor in manifest.inputs] + [("output", tensor) for tensor in manifest.outputs],
        first_input=manifest.inputs[0],
        reading=manifest.reading,
        uncovered=[check for check in report.checks if check.verdict == "uncovered"],
    )  # fmt: skip


def front_matter(bundle: Bundle, facts: CardFacts) -> dict[str, Any]:
    """The card's metadata; what is not known is left out, since hubs refuse made-up values."""
    manifest, accuracy = bundle.manifest, bundle.report.accuracy
    reduced = manifest.precision != "fp32"
    entries: dict[str, Any] = {
        "license": facts.license,
        "library_name": "onnx",
        "pipeline_tag": _HUB_TASKS[manifest.task],
        "tags": ["onnx", "onnxruntime", "triton-inference-server", *([manifest.precision] if reduced else [])],
        "base_model": facts.base_model,
        "base_model_relation": "quantized" if facts.base_model and reduced else None,
        "datasets": [name for name in (_dataset(manifest),) if name],
        "metrics": ["accuracy"] if accuracy is not None else [],
    }
    if accuracy is not None and bundle.report.verdict == "passed":
        dataset = _dataset(manifest)
        result = {
            "task": {"type": _HUB_TASKS[manifest.task]},
            "dataset": {"name": accuracy.split, "type": dataset or "other"},
            "metrics": [{"type": "accuracy", "name": _metric(manifest), "value": accuracy.onnxruntime}],
        }
        entries["model-index"] = [{"name": manifest.model_name, "results": [result]}]
    return {key: value for key, value in entries.items() if value not in (None, [])}


def _metric(manifest: Manifest) -> str:
    return "top-1 accuracy" if manifest.reading is None else "whole amounts read rightly"


def _dataset(manifest: Manifest) -> str | None:
    """The training data's name, where it is a name and not the path of a folder on somebody's disk."""
    name = manifest.training.dataset if manifest.training else ""
    return name if _NAME_OF_A_DATASET.fullmatch(name) and name.count("/") <= 1 and not Path(name).is_absolute() else None


def _labels(labels: tuple[str, ...]) -> str:
    shown: list[str] = []
    for label in labels:
        if sum(map(len, shown)) + len(label) > _MAX_LABELS:
            break
        shown.append(label)
    rest = len(labels) - len(shown)
    listed = ", ".join(_plain(label) for label in shown)
    return listed if not rest else f"{listed}{' ' if shown else ''}… and {rest:,} more, in `manifest.json`"


def _plain(text: object) -> str:
    """Text that Markdown shows as it is: one line, no markup, no HTML."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split())).replace("\\<", "&lt;").replace("\\>", "&gt;").replace("\\&", "&amp;")


def _dtype(tensor: TensorSpec) -> str:
    return _DTYPES.get(tensor.datatype, tensor.datatype)


def _shape(tensor: TensorSpec) -> str:
    return f"({', '.join(['N', *('any' if dim < 0 else str(dim) for dim in tensor.dims)])})"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=False,  # noqa: S701 - this is Markdown: whatever others wrote goes through "plain"
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "figure": figures.figure,
        "percent": figures.percent,
        "size": figures.size,
        "plain": _plain,
        "python": lambda value: json.dumps(str(value)),  # a string literal of Python as well
        "stated": lambda value: _plain(value) if value else NOT_STATED,
        "dtype": _dtype,
        "shape": _shape,
    }
    return environment
