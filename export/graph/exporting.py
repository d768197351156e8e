"""The step from PyTorch to ONNX: torch's dynamo exporter, then metadata that belongs in a file one hands on."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from convoy.contract.errors import ExportError
from convoy.contract.manifest import INPUT_NAME, LOGITS_NAME, PROBABILITIES_NAME
from convoy.export.graph.servable import Servable
from convoy.export.graph.targets import OPSET_VERSION

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from convoy.contract.image import ImageSpec

_KEPT_METADATA = {"pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"}


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
    try:
        with torch.inference_mode():
            logits = classifier(torch.zeros((2, *image.dims), dtype=torch.uint8))
    except Exception as error:  # whatever a stranger's forward() raises
        raise ExportError(f"{expected} and gives logits; on such images this one fails: {_root(error)}") from error
    if not isinstance(logits, torch.Tensor) or not logits.is_floating_point() or logits.shape != (2, n_classes):
        found = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ExportError(
            f"{expected} and gives one logit for each of {n_classes} labels, float (2, {n_classes}) for 2 images; found {found}."
        )


def _root(error: BaseException) -> str:
    """The first cause in one line, without the terminal's colours: exporters wrap it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def to_onnx(classifier: nn.Module, image: ImageSpec) -> ExportedGraph:
    """Export a classifier with its preprocessing and softmax, batch axis dynamic.

    Args:
        classifier: On the CPU, in evaluation mode; uint8 (N, H, W, C) to float32 logits (N, K).
        image: The model's image.

    Returns:
        The graph, with the input ``image`` and the outputs ``logits`` and ``probabilities``.

    Raises:
        ExportError: The network is in training mode, or torch cannot export it.
    """
    training = [name or "the classifier itself" for name, module in classifier.named_modules() if module.training]
    if training:
        raise ExportError(f"expected a network in evaluation mode, found {training[0]} in training mode: call .eval() first.")
    example = torch.zeros((2, *image.dims), dtype=torch.uint8)  # 2: a batch of 1 would be taken for a constant axis
    batch = torch.export.Dim("batch")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # torch's exporter warns about its own internals
            program = torch.onnx.export(
                Servable(classifier).eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET_VERSION,
                input_names=[INPUT_NAME],
                output_names=[LOGITS_NAME, PROBABILITIES_NAME],
                dynamic_shapes={"image": {0: batch}},
                verbose=False,
            )
    except Exception as error:  # the exporter raises its own and torch's many kinds
        raise ExportError(
            f"torch.onnx cannot export this network (what it computes must not depend on the values in the images, nor on their "
            f"number): {_root(error)}"
        ) from error
    if program is None or program.exported_program is None:
        raise ExportError("torch.onnx gave no program for this network.")
    model: onnx.ModelProto = program.model_proto
    _strip(model)
    return ExportedGraph(model, program.exported_program)


def _strip(model: onnx.ModelProto) -> None:
    """Drop what the exporter noted about this machine (source paths, stack traces); keep the names of the modules."""
    for node in model.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key in _KEPT_METADATA]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
        value.doc_string = ""
    for initializer in model.graph.initializer:
        del initializer.metadata_props[:]
        initializer.doc_string = ""
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    model.graph.doc_string = ""
    model.doc_string = ""
