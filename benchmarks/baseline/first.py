"""The first backend, frozen: a loop that concatenates, runs and splits."""

import json
import os
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb


class TritonPythonModel:
    """As one writes it in ten minutes."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session with ONNX Runtime's defaults but for the threads."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("BENCH_THREADS", "1"))
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")  # noqa: PTH118 frozen
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.names = [output["name"] for output in json.loads(args["model_config"])["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests."""
        images = [pb.get_input_tensor_by_name(request, "image").as_numpy() for request in requests]
        outputs = self.session.run(self.names, {"image": np.concatenate(images)})
        at = np.cumsum([len(image) for image in images])[:-1]
        parts = [np.split(output, at) for output in outputs]
        return [
            pb.InferenceResponse([pb.Tensor(name, part[i]) for name, part in zip(self.names, parts, strict=True)])
            for i in range(len(requests))
        ]
