"""The step from PyTorch to ONNX: captured whole or refused, translated by torch's dynamo exporter, tidied."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch

from convoy.contract.errors import ExportError
from convoy.contract.manifest import INPUT_NAME, LOGITS_NAME, PROBABILITIES_NAME
from convoy.contract.reading import OUTPUT_NAMES, WIDTH_NAME
from convoy.export.graph.capture import capture, capture_reader, quiet, root_cause
from convoy.export.graph.servable import Servable
from convoy.export.graph.targets import OPSET_VERSION
from convoy.export.graph.tidying import BATCH, COLUMNS, FRAMES, tidy
from convoy.export.graph.translation import translation_table

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    from torch import nn

    from convoy.contract.image import ImageSpec

MAX_WEIGHTS_BYTES: Final = 2**31 - 2**24
"""What protobuf can write as one message, less room for everything that is not weights."""
_RANDOM: Final = frozenset(
    {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
"""Operators that draw numbers. A Dropout that does nothing is no longer there when these are looked for."""


@dataclass(frozen=True)
class ExportedGraph:
    """A network as an ONNX model and as the PyTorch program that it was translated from.

    Attributes:
        proto: The model.
        program: The same computation in PyTorch's operators, decomposed as the exporter needs it. What its nodes compute has the
            same names as the ONNX values that were translated from them.
    """

    proto: onnx.ModelProto
    program: torch.export.ExportedProgram


def check_network(classifier: nn.Module, image: ImageSpec, n_classes: int) -> None:
    """Run a network once on blank images, so that what does not fit is said before the exporter says it in many lines.

    Args:
        classifier: On the CPU, in evaluation mode.
        image: The model's image.
        n_classes: How many class names there are.

    Raises:
        ExportError: It is no ``nn.Module``, does not take raw pixels, or does not give logits, one for each class.
    """
    expected = (
        f"expected a network that takes raw pixels, uint8 of shape (N, {', '.join(map(str, image.dims))}), scales them itself"
    )
    if not isinstance(classifier, torch.nn.Module):
        raise ExportError(f"expected a torch.nn.Module, found {type(classifier).__name__}.")
    if odd := _floating(classifier):
        raise ExportError(f"expected float32 weights, found {odd}: call .float() first; --precision then converts the file.")
    try:
        with torch.inference_mode():
            logits = classifier(torch.zeros((2, *image.dims), dtype=torch.uint8))
    except Exception as error:  # whatever a stranger's forward() raises
        raise ExportError(f"{expected} and gives logits; on such images this one fails: {root_cause(error)}") from error
    if not isinstance(logits, torch.Tensor) or logits.dtype != torch.float32 or logits.shape != (2, n_classes):
        found = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ExportError(
            f"{expected} and gives one logit for each of {n_classes} labels, float32 (2, {n_classes}) for 2 images; found {found}."
        )


def _floating(classifier: nn.Module) -> str:
    """The first parameter that is not float32, with its dtype; empty where there is none."""
    for name, parameter in classifier.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            return f"{parameter.dtype} in {name}"
    return ""


def to_onnx(classifier: nn.Module, image: ImageSpec, *, temperature: float = 1.0) -> ExportedGraph:
    """Export a classifier with its preprocessing and softmax, batch axis dynamic.

    The same network gives the same bytes, in any process.

    Args:
        classifier: On the CPU, in evaluation mode; uint8 (N, H, W, C) to float32 logits (N, K).
        image: The model's image.
        temperature: What the logits are divided by before the softmax.

    Returns:
        The graph, with the input ``image`` and the outputs ``logits`` and ``probabilities``.

    Raises:
        ExportError: The network is in training mode, what it computes depends on the values in the images or on their number or is
            random, torch or ONNX has no way to say it, or it does not fit into one file.
    """
    _check_evaluating(classifier)
    captured = capture(Servable(classifier, temperature).eval(), image.dims)
    return _translate(captured, (INPUT_NAME,), (LOGITS_NAME, PROBABILITIES_NAME))


def reader_to_onnx(reader: nn.Module, height_px: int) -> ExportedGraph:
    """Export a reader of amounts, whole: standardising, network, decoder and confidence.

    Batch and columns are dynamic axes; the columns of a batch are a multiple of 4, from 32 to 4096, which no ONNX file can say of
    itself: ``to_field`` makes no others where ``ImageSpec.widths_px`` holds none.

    Args:
        reader: On the CPU, in evaluation mode; ``convoy.contract.reading`` says what it takes and gives.
        height_px: The height of its fields.

    Returns:
        The graph, with the inputs and outputs of ``convoy.contract.reading``.

    Raises:
        ExportError: The reader is in training mode, torch or ONNX has no way to say what it computes, or it does not fit into one
            file.
    """
    _check_evaluating(reader)
    return _translate(capture_reader(reader, height_px), (INPUT_NAME, WIDTH_NAME), OUTPUT_NAMES)


def _check_evaluating(network: nn.Module) -> None:
    training = [name or "the network itself" for name, module in network.named_modules() if module.training]
    if training:
        raise ExportError(f"expected a network in evaluation mode, found {training[0]} in training mode: call .eval() first.")


def _translate(captured: torch.export.ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]) -> ExportedGraph:
    try:
        with quiet():
            translated = torch.onnx.export(
                captured,
                (),
                dynamo=True,
                opset_version=OPSET_VERSION,
                input_names=list(inputs),
                output_names=list(outputs),
                custom_translation_table=translation_table(),
                optimize=False,
                verbose=False,
            )
            if translated is None or translated.exported_program is None:
                raise ExportError("torch.onnx gave no program for this network.")
            tidy(translated.model, _axes(translated.exported_program))
    except ExportError:
        raise
    except Exception as error:  # the exporter raises its own and torch's many kinds
        raise ExportError(f"this network cannot be exported: {_explain(error)}") from error
    _check(translated.model)
    model: onnx.ModelProto = translated.model_proto
    return ExportedGraph(model, translated.exported_program)


def _explain(error: BaseException) -> str:
    cause = root_cause(error)
    if unknown := re.search(r"No (?:ONNX function|decompositions?) found for .*?op='([\w.]+)'", cause):
        return f"torch has no ONNX counterpart of {unknown[1]}: say the same in forward() with other operators."
    return f"torch.onnx cannot translate it: {cause}"


def _axes(program: torch.export.ExportedProgram) -> dict[str, str]:
    """What torch calls the axes of any size, with what they are called in the file: the batch, and the columns of fields."""
    first = program.graph_signature.user_inputs[0]
    node = next(node for node in program.graph.nodes if node.name == first)
    batch, _, columns, _ = node.meta["val"].shape
    named = {str(batch): BATCH}
    if not isinstance(columns, int):
        named |= {str(columns): COLUMNS, **{str(symbol): FRAMES for symbol in columns.node.expr.free_symbols}}
    return named


def _check(model: ir.Model) -> None:
    """Refuse what no file could say rightly, before it is written out."""
    random = next((node for node in model.graph.all_nodes() if node.op_type in _RANDOM), None)
    if random is not None:
        raise ExportError(
            f"expected a network that answers alike each time, found {random.op_type} (from {random.name}): "
            "leave dropout and noise out of it in evaluation mode."
        )
    n_bytes = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if n_bytes > MAX_WEIGHTS_BYTES:
        raise ExportError(
            f"expected weights of at most {MAX_WEIGHTS_BYTES:,} bytes (an ONNX file is one protobuf message, 2 GiB at most), "
            f"found {n_bytes:,}: export a smaller network."
        )
