"""The step from PyTorch to ONNX: torch's dynamo exporter, then metadata that belongs in a file one hands on."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
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


def to_onnx(classifier: nn.Module, image: ImageSpec) -> onnx.ModelProto:
    """Export a classifier with its preprocessing and softmax, batch axis dynamic.

    Args:
        classifier: On the CPU, in evaluation mode; uint8 (N, H, W, C) to float32 logits (N, K).
        image: The model's image.

    Returns:
        A model with the input ``image`` and the outputs ``logits`` and ``probabilities``.

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
        raise ExportError(f"torch.onnx cannot export this network: {error}") from error
    if program is None:
        raise ExportError("torch.onnx gave no program for this network.")
    model: onnx.ModelProto = program.model_proto
    _strip(model)
    return model


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
