"""One ONNX Runtime session, as every peer opens it."""

import os
from typing import Any

import numpy as np
import onnxruntime

NAME = os.environ["BENCH_NAME"]
SHAPE = tuple(map(int, os.environ["BENCH_SHAPE"].split(",")))
THREADS = int(os.environ["BENCH_THREADS"])
PORT = int(os.environ["BENCH_PORT"])
WORKERS = int(os.environ["BENCH_WORKERS"])
MAX_BATCH_SIZE = 64


class Model:
    """Images of uint8 (N, H, W, C) -> probabilities of float32 (N, K)."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the server beside it wants the cores, too
        self._session = onnxruntime.InferenceSession(os.environ["BENCH_ONNX"], options, providers=["CPUExecutionProvider"])

    def __call__(self, images: Any) -> Any:
        """Classify a batch."""
        return self._session.run(["probabilities"], {"image": images})[0]


def image_of(body: bytes) -> Any:
    """The image (H, W, C) that a body holds."""
    return np.frombuffer(body, np.uint8).reshape(SHAPE)
