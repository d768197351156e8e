"""Networks with everything that an exporter stumbles over, small enough to be exported in a second or two."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import nn

from convoy.contract.image import ImageSpec

SIZE = 20
IMAGE = ImageSpec(height_px=SIZE, width_px=SIZE, channels=3)


class Classifier(nn.Module):
    """Preprocessing, a body, global pooling where the body leaves maps, and a head for 5 classes."""

    def __init__(self, body: nn.Module, n_features: int, *, pool: nn.Module | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
        self.body, self.pool, self.head = body, pool or nn.AdaptiveAvgPool2d(1), nn.Linear(n_features, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        maps = self.body(image.permute(0, 3, 1, 2).to(self.mean.dtype) / 255 - self.mean)
        return self.head(self.pool(maps).flatten(1))


class Chain(nn.Module):
    """``function`` of the module's own layers and the maps, so that a test can say a forward() in a line."""

    def __init__(self, function: Callable[..., torch.Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def lived_in(network: nn.Module, seed: int = 0) -> nn.Module:
    """``network`` in evaluation mode, its batch norms as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-0.5, 0.5, generator=generator)
            module.running_var.uniform_(0.3, 3.0, generator=generator)
            if module.affine:
                nn.init.uniform_(module.weight, -1.5, 1.5, generator=generator)
                nn.init.uniform_(module.bias, -0.5, 0.5, generator=generator)
    return network.eval()


def pixels(n: int, image: ImageSpec = IMAGE) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(n).integers(0, 256, (n, *image.dims), dtype=np.uint8)


def run(model: onnx.ModelProto, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """ONNX Runtime's logits; without its optimisations, so that the file itself is what is seen."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": images})[0]
