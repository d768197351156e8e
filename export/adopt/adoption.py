"""An ONNX file from anywhere, taken up: its border found, wrapped into Convoy's, its batch freed, and proven to answer alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnx.inliner

from convoy.contract.errors import ExportError, UsageError
from convoy.contract.image import ImageSpec
from convoy.export.adopt.batching import ONE_BY_ONE, free_batch
from convoy.export.adopt.border import InputBorder, find_input
from convoy.export.adopt.decision import OutputBorder, find_decision
from convoy.export.adopt.limits import Limits
from convoy.export.adopt.names import opset_version
from convoy.export.adopt.preprocess import Preprocess
from convoy.export.adopt.proof import BATCH_SIZES, N_IMAGES, proof_images, prove
from convoy.export.adopt.running import first_line, open_plain, run_in_batches, with_outputs
from convoy.export.adopt.sandbox import run_contained
from convoy.export.adopt.source import OnnxSource, prepare
from convoy.export.adopt.wrapping import take_core, wrap

MIN_OPSET_VERSION: Final = 7
MAX_OPSET_VERSION: Final = 21
_LIMITS: Final = dataclasses.replace(Limits(), deadline_s=900.0, cpu_s=1800)


@dataclass(frozen=True)
class AdoptedModel:
    """A foreign ONNX file as Convoy serves it.

    Attributes:
        model: The wrapped file: input ``image``, uint8 (N, H, W, C); outputs ``logits`` and ``probabilities``, float32 (N, K).
        source: The foreign file, for comparison.
        image: What the wrapped file takes.
        opset_version: Of both files.
        ir_version: Of the wrapped file.
        producer: What the foreign file says of who wrote it; empty where it says nothing.
        remarks: What was dropped, changed or taken another way, for people.
    """

    model: bytes = dataclasses.field(repr=False)
    source: OnnxSource
    image: ImageSpec
    opset_version: int
    ir_version: int
    producer: str
    remarks: tuple[str, ...]


def adopt_onnx(
    model: bytes,
    preprocess: Preprocess,
    n_classes: int,
    *,
    max_batch_size: int,
    title: str = "the ONNX file as it came",
    input_name: str | None = None,
    output_name: str | None = None,
    samples: npt.NDArray[np.uint8] | None = None,
) -> AdoptedModel:
    """Take up an ONNX file that others made, in a process of its own.

    The input may be NCHW or NHWC, grey without channels, or flat; uint8, float16, float32 or float64 (whole numbers where it
    scales pixels itself). The outputs may be several. The batch, where it is fixed, is made free where that can be shown to be
    right, and proven in batches of 1, 2 and 7; with ``max_batch_size`` 1 it is left as it is. The same file gives the same bytes.

    Args:
        model: The file's bytes, from ``read_contained``.
        preprocess: What the network expects of its pixels.
        n_classes: How many class names there are.
        max_batch_size: The largest batch that shall be served.
        title: What reports call the foreign file.
        input_name: Which input takes the image; needed where there are several.
        output_name: Which output decides; needed where several could.
        samples: Real images, uint8 (n, H, W, C), to prove it on besides noise and edge cases.

    Raises:
        ExportError: The file is no such classifier, uses operators of other domains, or bakes its batch in (the message names the
            node, and how to serve it all the same).
        UsageError: The spec does not fit the file, or must say more.
    """
    payload: dict[str, Any] = {
        "model": model,
        "preprocess": dataclasses.asdict(preprocess),
        "n_classes": n_classes,
        "max_batch_size": max_batch_size,
        "title": title,
        "input_name": input_name,
        "output_name": output_name,
    }
    payload["preprocess"] = _jsonable(payload["preprocess"])
    if samples is not None and len(samples):
        payload["samples"] = np.ascontiguousarray(samples[:N_IMAGES])
    reply = run_contained(f"{__name__}:adopt_task", payload, limits=_LIMITS)
    if usage := reply.get("usage_error"):
        raise UsageError(str(usage))
    facts = reply["facts"]
    return AdoptedModel(
        model=reply["model"],
        source=_source_from(facts["source"], reply["source"], preprocess),
        image=ImageSpec(**facts["source"]["image"]),
        opset_version=facts["opset_version"],
        ir_version=facts["ir_version"],
        producer=facts["producer"],
        remarks=tuple(facts["remarks"]),
    )


def adopt_task(payload: Mapping[str, Any]) -> dict[str, Any]:
    """``adopt_onnx`` in a contained process."""
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in payload["preprocess"].items()
    }
    names = ("n_classes", "max_batch_size", "title", "input_name", "output_name")
    try:
        adopted = take_up(
            payload["model"], Preprocess(**fields), samples=payload.get("samples"), **{name: payload[name] for name in names}
        )
    except UsageError as error:
        return {"usage_error": str(error)}
    source = adopted.source
    facts = {
        "opset_version": adopted.opset_version,
        "ir_version": adopted.ir_version,
        "producer": adopted.producer,
        "remarks": list(adopted.remarks),
        "source": {
            "title": source.title,
            "border": _jsonable(dataclasses.asdict(source.border)),
            "output": _jsonable(dataclasses.asdict(source.output)),
            "image": source.image.model_dump(),
            "n_classes": source.n_classes,
            "batch_size": source.batch_size,
            "alone": source.alone,
        },
    }
    return {"model": adopted.model, "source": source.model, "facts": facts}


def take_up(
    model: bytes,
    preprocess: Preprocess,
    n_classes: int,
    *,
    max_batch_size: int,
    title: str,
    input_name: str | None = None,
    output_name: str | None = None,
    samples: npt.NDArray[np.uint8] | None = None,
) -> AdoptedModel:
    """``adopt_onnx`` in this process: for the contained one, and for files that one wrote oneself."""
    original = onnx.load_model_from_string(model)
    _check_imports(original)
    if original.functions:
        original = onnx.inliner.inline_local_functions(original)
        model = original.SerializeToString(deterministic=True)
    border, image = find_input(original, preprocess, input_name)
    if max_batch_size > 1 and not border.has_batch_axis:
        raise ExportError(f"input {border.name!r}: takes one image, without an axis for a batch: {ONE_BY_ONE}.")
    images = proof_images(samples if samples is not None and samples.shape[1:] == image.dims else None, image)
    feed = prepare(images, border, preprocess).astype(border.dtype)
    n_first = border.batch or 1
    first = feed[:n_first] if len(feed) >= n_first else np.resize(feed, (n_first, *feed.shape[1:]))
    output = find_decision(original, {border.name: first if border.has_batch_axis else first[0]}, n_first, n_classes, output_name)
    one_by_one = max_batch_size == 1
    source = OnnxSource(title, model, border, output, preprocess, image, n_classes, border.batch or 1, alone=one_by_one)
    expected = _answers(source, original, feed, n_first)
    if border.batch is None and not one_by_one and _runs_batches(source, original, feed, expected):
        source = dataclasses.replace(source, batch_size=None)

    core, remarks = take_core(original, border, output)
    if not one_by_one:
        core.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
        remarks = (*remarks, *free_batch(core, border.name, border.batch))
    elif border.batch:
        remarks = (*remarks, f"the file's batch of {border.batch} was left as it is: one image at a time")
    wrapped = wrap(core, border, output, preprocess, image, n_classes, one_by_one=one_by_one)
    _check(wrapped)
    prove(wrapped, expected, images, dtype=_narrowest(border, output), batch_sizes=() if one_by_one else BATCH_SIZES)
    producer = " ".join(part for part in (original.producer_name, original.producer_version) if part)
    return AdoptedModel(
        model=wrapped.SerializeToString(deterministic=True),
        source=source,
        image=image,
        opset_version=opset_version(original),
        ir_version=wrapped.ir_version,
        producer=producer,
        remarks=(*preprocess.remarks, *output.remarks, *remarks),
    )


def _check_imports(model: onnx.ModelProto) -> None:
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if not MIN_OPSET_VERSION <= opset <= MAX_OPSET_VERSION:
        raise ExportError(
            f"expected opset {MIN_OPSET_VERSION} to {MAX_OPSET_VERSION}, found {opset}: export the model again with "
            f"opset_version={MAX_OPSET_VERSION} or less."
        )
    foreign = sorted({node.domain for node in model.graph.node} - {"", "ai.onnx"})
    if "ai.onnx.ml" in foreign:
        used = sorted({node.op_type for node in model.graph.node if node.domain == "ai.onnx.ml"})
        raise ExportError(
            f"expected an image classifier in standard operators, found {', '.join(used)} of ai.onnx.ml: that domain is for trees "
            "and tables, and gives labels where a network gives logits. Export the network without that last step (zipmap=False)."
        )


def _answers(source: OnnxSource, model: onnx.ModelProto, feed: npt.NDArray[Any], batch_size: int) -> dict[str, npt.NDArray[Any]]:
    values = source.values()
    session = open_plain(with_outputs(model, values))
    found = run_in_batches(
        session, source.border.name, source.filled(feed), values, batch_size, fixed=source.border.batch is not None,
        has_batch_axis=source.border.has_batch_axis,
    )  # fmt: skip
    return source.outputs({name: source.own_rows(rows) for name, rows in found.items()}, np.float32)


def _runs_batches(
    source: OnnxSource, model: onnx.ModelProto, feed: npt.NDArray[Any], expected: Mapping[str, npt.NDArray[Any]]
) -> bool:
    """Whether the foreign file takes batches as it declares, and answers each image as it does alone."""
    try:
        together = _answers(source, model, feed, len(feed))
    except ExportError:
        return False
    return all(np.allclose(together[name], expected[name], rtol=1e-3, atol=1e-3, equal_nan=True) for name in expected)


def _check(model: onnx.ModelProto) -> None:
    standard = all(node.domain in ("", "ai.onnx") for node in model.graph.node)
    try:
        onnx.checker.check_model(model, full_check=standard)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"ONNX's own check refuses the wrapped file: {first_line(error)}") from error


def _narrowest(border: InputBorder, output: OutputBorder) -> str:
    return "float16" if "float16" in (border.dtype, output.dtype) else "float32"


def _source_from(facts: Mapping[str, Any], model: bytes, preprocess: Preprocess) -> OnnxSource:
    output: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in facts["output"].items()}
    return OnnxSource(
        title=facts["title"],
        model=model,
        border=InputBorder(**facts["border"]),
        output=OutputBorder(**output),
        preprocess=preprocess,
        image=ImageSpec(**facts["image"]),
        n_classes=facts["n_classes"],
        batch_size=facts["batch_size"],
        alone=facts["alone"],
    )


def _jsonable(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}
