"""The odd ones among the networks as ONNX files: they answer as PyTorch does."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from convoy.contract.image import ImageSpec
from convoy.contract.manifest import Preprocessing
from convoy.export.graph.exporting import to_onnx
from convoy.training.networks import build_classifier
from convoy.training.recipes import Architecture

DIGIT = ImageSpec(height_px=28, width_px=28, channels=1)
SMALL = ImageSpec(height_px=32, width_px=32, channels=3)
EVERYTHING = Architecture(
    activation="parametric-relu", pooling="average", downsampling="stride", batch_norm="conv-pool-bn-relu", dropout=0.5
)


@pytest.mark.parametrize(
    ("name", "image", "architecture"),
    [
        ("lenet5-1998", DIGIT, None),
        ("lenet1", DIGIT, None),
        ("lenet5", DIGIT, EVERYTHING),
        ("vgg-a-lrn", SMALL, None),
        ("cifar-resnet20", SMALL, None),
        ("googlenet", SMALL, None),
        ("resnet18", SMALL, Architecture(dropout=0.5)),
    ],
)
def test_the_exported_graph_answers_as_the_network(name: str, image: ImageSpec, architecture: Architecture | None) -> None:
    torch.manual_seed(0)
    n = image.channels
    facts = Preprocessing(polarity="as-is", scale=1 / 255, mean=(0.5,) * n, std=(0.25,) * n)
    classifier = build_classifier(name, image=image, n_classes=10, preprocessing=facts, architecture=architecture)
    images = torch.randint(0, 256, (3, *image.dims), dtype=torch.uint8)
    with torch.no_grad():
        classifier.train()(images)  # batch norms take the statistics of the images
        expected = classifier.eval()(images).numpy()
    session = onnxruntime.InferenceSession(to_onnx(classifier, image).proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (images, images[:1]):
        (actual,) = session.run(["logits"], {"image": batch.numpy()})
        assert actual.shape == (len(batch), 10)
        np.testing.assert_allclose(actual, expected[: len(batch)], rtol=1e-3, atol=1e-3 * np.abs(expected).max())
