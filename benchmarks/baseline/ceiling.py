"""What no backend in Python can be faster than: it reads each request and answers each one, and runs ONNX Runtime once a batch.

Its answers are wrong: the images are those that lie ready, the rows are zeros. So what it leaves out is all that a backend can do
badly or well: joining, choosing outputs, splitting.
"""

import json
import os
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb


class TritonPythonModel:
    """Not for use: its answers are wrong."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session as our backend does, and lay images ready."""
        config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("BENCH_THREADS", "1"))
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")  # noqa: PTH118 as in first.py
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.name = "probabilities"
        dims = [int(extent) for extent in config["input"][0]["dims"]]
        self.images = np.random.default_rng(0).integers(0, 256, (int(config["max_batch_size"]), *dims), np.uint8)
        (output,) = (entry for entry in config["output"] if entry["name"] == self.name)
        self.row = np.zeros((1, int(output["dims"][0])), np.float32)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests of one image each."""
        n = 0
        for request in requests:
            n += len(request.inputs()[0].as_numpy())
        self.session.run([self.name], {"image": self.images[:n]})
        return [pb.InferenceResponse([pb.Tensor(self.name, self.row)]) for _ in requests]
