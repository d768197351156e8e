"""Triton's Python-based backend ``onnxruntime`` (first form)."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb


class TritonPythonModel:
    """Runs ``model.onnx`` with ONNX Runtime."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session."""
        config = json.loads(args["model_config"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        name = config.get("default_model_filename") or "model.onnx"
        path = os.path.join(args["model_repository"], args["model_version"], name)
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = [tensor.name for tensor in self.session.get_inputs()]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests together."""
        feeds = {name: [pb.get_input_tensor_by_name(request, name).as_numpy() for request in requests] for name in self.inputs}
        names = sorted(set().union(*(request.requested_output_names() for request in requests)))
        outputs = self.session.run(names, {name: np.concatenate(arrays) for name, arrays in feeds.items()})
        ends = np.cumsum([len(array) for array in feeds[self.inputs[0]]])[:-1]
        parts = {name: np.split(output, ends) for name, output in zip(names, outputs, strict=True)}
        return [
            pb.InferenceResponse([pb.Tensor(name, parts[name][i]) for name in request.requested_output_names()])
            for i, request in enumerate(requests)
        ]
