"""A small network with convolution, batch norm, a residual, pooling, normalisation and a dense layer, exported once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from convoy.contract.image import ImageSpec
from convoy.export.diagnosis import Trace, find_fault, trace_network
from convoy.export.graph.exporting import ExportedGraph, to_onnx

NAMES = ("image 0", "image 1")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.4))
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1))
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.LayerNorm(6 * 4 * 4)
        self.head = nn.Linear(6 * 4 * 4, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        pixels = image.permute(0, 3, 1, 2).to(self.mean.dtype) / 255 - self.mean
        x = self.stem(pixels)  # (N, 6, 8, 8)
        x = self.pool(torch.relu(x + self.body(x)))  # (N, 6, 4, 4)
        return self.head(self.norm(x.flatten(1)))


@dataclass(frozen=True)
class Exported:
    """An export with its truth; ``broken`` copies are changed freely."""

    graph: ExportedGraph
    trace: Trace
    images: np.ndarray

    def copy(self) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self.graph.proto)
        return model

    def find(self, model: onnx.ModelProto, **options: Any):
        return find_fault(model.SerializeToString(), self.trace, self.images, NAMES, **options)


@pytest.fixture(scope="session")
def exported() -> Exported:
    torch.manual_seed(0)
    network = Residual()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            module.weight.data.uniform_(0.5, 1.5)
    graph = to_onnx(network.eval(), ImageSpec(height_px=8, width_px=8, channels=3))
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    return Exported(graph, trace_network(graph, images), images)
