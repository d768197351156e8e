"""The networks that export is measured on: Convoy's recipes and torchvision's classification families.

Photos are real ones where ``CONVOY_DATA`` has them, else gratings under noise.

Weights are random, but what export has to do with is as in a trained network: batch norms hold the statistics of the images and
edge images, and the last layer is fitted to the classes (ridge regression on the random features), so that decisions have margins.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from convoy.contract.errors import UsageError
from convoy.contract.image import ImageSpec, to_pixels
from convoy.contract.manifest import Preprocessing
from convoy.export.gate.evidence import edge_images
from convoy.training.data.catalogue import load_dataset
from convoy.training.networks import ImageClassifier, PixelPreprocessing, build_classifier
from convoy.training.recipes import get_recipe

FAMILIES: Final[Mapping[str, Mapping[str, int]]] = MappingProxyType(
    {
        "Convoy": {"lenet5": 0},  # 0: as large as the recipe's data
        "AlexNet": {"alexnet": 64},
        "VGG": {"vgg11": 32, "vgg16_bn": 32},
        "ResNet": {"resnet18": 64, "resnet50": 64, "resnet152": 64},
        "ResNeXt": {"resnext50_32x4d": 64, "resnext101_32x8d": 64},
        "Wide ResNet": {"wide_resnet50_2": 64, "wide_resnet101_2": 64},
        "RegNet": {"regnet_y_400mf": 64, "regnet_x_800mf": 64},
        "EfficientNet": {"efficientnet_b0": 64, "efficientnet_b3": 64},
        "EfficientNet v2": {"efficientnet_v2_s": 64, "efficientnet_v2_m": 64},
        "MobileNet v2": {"mobilenet_v2": 64},
        "MobileNet v3": {"mobilenet_v3_small": 64, "mobilenet_v3_large": 64},
        "MNASNet": {"mnasnet0_5": 64, "mnasnet1_0": 64},
        "DenseNet": {"densenet121": 64, "densenet169": 64},
        "ConvNeXt": {"convnext_tiny": 64, "convnext_small": 64},
        "ShuffleNet v2": {"shufflenet_v2_x0_5": 64, "shufflenet_v2_x1_5": 64},
        "SqueezeNet": {"squeezenet1_1": 64, "squeezenet1_0": 64},
        "GoogLeNet": {"googlenet": 64},
        "Inception": {"inception_v3": 96},
        "ViT": {"vit_b_16": 64, "vit_b_32": 64},
        "Swin": {"swin_t": 64, "swin_s": 64},
        "Swin v2": {"swin_v2_t": 64, "swin_v2_s": 64},
        "MaxViT": {"maxvit_t": 224},
    }
)
"""By family, networks with the height and width of their images in pixels; the first stands for the family where time is short.

The images are small, but not so small that a network's last maps vanish; MaxViT has one size alone."""

CLASSES: Final = ("glass", "paper", "cardboard", "plastic", "metal", "trash")
_N_CALIBRATION: Final = 96
_IMAGENET: Final = Preprocessing(polarity="as-is", scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_BATCH: Final = 32


@dataclass(frozen=True)
class Subject:
    """A network with images.

    Attributes:
        name: Of the network.
        classifier: In evaluation mode; uint8 (N, H, W, C) to logits (N, K).
        image: Its image.
        labels: Class names.
        preprocessing: What it does with the pixels.
        source: Where the images come from.
        train: What batch norms and the last layer were fitted to, uint8 (n, H, W, C).
        test: Others, uint8 (n, H, W, C).
        test_labels: int64 (n,).
    """

    name: str
    classifier: nn.Module
    image: ImageSpec
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    source: str
    train: npt.NDArray[np.uint8]
    test: npt.NDArray[np.uint8]
    test_labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Pictures:
    source: str
    train: npt.NDArray[np.uint8]
    train_labels: npt.NDArray[np.int64]
    test: npt.NDArray[np.uint8]
    test_labels: npt.NDArray[np.int64]


def network_names() -> tuple[str, ...]:
    """All networks, family by family."""
    return tuple(name for family in FAMILIES.values() for name in family)


def size_of(name: str) -> int:
    """The height and width of a network's images in pixels; 0 for a recipe's.

    Raises:
        UsageError: There is no such network.
    """
    for family in FAMILIES.values():
        if name in family:
            return family[name]
    raise UsageError(f"there is no network {name!r} here; known: {', '.join(network_names())}.")


def build_subject(name: str, n_images: int, *, size_px: int | None = None) -> Subject:
    """A network with weights as if trained, and images; the same in every process.

    Args:
        name: One of ``network_names()``.
        n_images: How many test images.
        size_px: The height and width of its images; None takes ``size_of(name)``.

    Raises:
        UsageError: There is no such network.
    """
    torch.manual_seed(0)
    return _recipe(name, n_images) if size_of(name) == 0 else _torchvision(name, size_px or size_of(name), n_images)


def _recipe(name: str, n_images: int) -> Subject:
    recipe = get_recipe(name)
    data = load_dataset(recipe.data, seed=0, validation_fraction=recipe.validation_fraction)
    channels = data.image.channels
    facts = Preprocessing(polarity=recipe.normalisation.polarity, scale=1 / 255, mean=(0.5,) * channels, std=(0.5,) * channels)
    classifier = build_classifier(recipe.network, image=data.image, n_classes=len(data.labels), preprocessing=facts)
    train, test = data.train, data.test
    pictures = _Pictures(
        f"{data.name} test", train.images[:_N_CALIBRATION], train.labels[:_N_CALIBRATION], test.images[:n_images],
        test.labels[:n_images],
    )  # fmt: skip
    _fit(classifier, data.image, pictures, len(data.labels))
    return _subject(name, classifier.eval(), data.image, data.labels, facts, pictures)


def _torchvision(name: str, size_px: int, n_images: int) -> Subject:
    import torchvision

    options = {"vit_b_16": {"image_size": size_px}, "vit_b_32": {"image_size": size_px}}
    initialised = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that some networks take long to draw their weights
        network = torchvision.models.get_model(name, weights=None, num_classes=len(CLASSES), **options.get(name, {}), **initialised)
    classifier = ImageClassifier(PixelPreprocessing(_IMAGENET), network).eval()
    image = ImageSpec(height_px=size_px, width_px=size_px, channels=3, resize="crop")
    pictures = _pictures(image, n_images)
    _fit(classifier, image, pictures, len(CLASSES))
    return _subject(name, classifier, image, CLASSES, _IMAGENET, pictures)


def _subject(
    name: str, classifier: nn.Module, image: ImageSpec, labels: tuple[str, ...], facts: Preprocessing, pictures: _Pictures
) -> Subject:
    return Subject(name, classifier, image, labels, facts, pictures.source, pictures.train, pictures.test, pictures.test_labels)


def _pictures(image: ImageSpec, n_images: int) -> _Pictures:
    folder = Path(os.environ.get("CONVOY_DATA", "")) / "trashnet"
    if not (folder / "one-indexed-files-notrash_test.txt").is_file():
        train, train_labels = gratings(image, _N_CALIBRATION, seed=1)
        test, test_labels = gratings(image, n_images, seed=2)
        return _Pictures("gratings", train, train_labels, test, test_labels)
    train, train_labels = _photos(folder, "train", image, _N_CALIBRATION)
    test, test_labels = _photos(folder, "test", image, n_images)
    return _Pictures("trashnet test", train, train_labels, test, test_labels)


def _photos(folder: Path, split: str, image: ImageSpec, n: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    lines = (folder / f"one-indexed-files-notrash_{split}.txt").read_text(encoding="utf-8").split("\n")
    entries = [line.split() for line in lines if line.strip()]
    chosen = [entries[i] for i in np.linspace(0, len(entries) - 1, min(n, len(entries))).round().astype(int)]
    labels = np.array([int(label) - 1 for _, label in chosen], np.int64)
    paths = [folder / "images" / CLASSES[label] / name for (name, _), label in zip(chosen, labels, strict=True)]
    return np.stack([to_pixels(path, image) for path in paths]), labels


def gratings(image: ImageSpec, n: int, seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Stand-ins for photos: coloured gratings under noise, whose orientation is the class.

    Args:
        image: The images' size.
        n: How many.
        seed: The same one gives the same images.

    Returns:
        uint8 (n, H, W, C), and int64 (n,).
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(n, dtype=np.int64) % len(CLASSES)
    rows, columns = np.meshgrid(np.linspace(-1, 1, image.height_px), np.linspace(-1, 1, image.width_px), indexing="ij")
    angles = (labels * np.pi / len(CLASSES)).reshape(-1, 1, 1)
    phases, waves = rng.uniform(0, 2 * np.pi, (2, n, 1, 1))
    grating = np.sin((rows * np.cos(angles) + columns * np.sin(angles)) * (3 + waves) + phases)[..., None]  # (n, H, W, 1)
    colours = rng.uniform(-60, 60, (n, 1, 1, image.channels))
    noise = rng.normal(0, 20, (n, *image.dims))
    return np.clip(128 + grating * colours + noise, 0, 255).astype(np.uint8), labels


@torch.no_grad()
def _fit(classifier: nn.Module, image: ImageSpec, pictures: _Pictures, n_classes: int) -> None:
    """Batch norms take the statistics of the images; the last layer is fitted to their classes."""
    norms = [module for module in classifier.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)  # at 1 and 0, as they are drawn, much would fold into nothing
        nn.init.uniform_(norm.bias, -0.2, 0.2)
        norm.momentum = None  # the mean over the batches
        norm.reset_running_stats()
        norm.train()
    classifier_input: list[torch.Tensor] = []
    head = [module for module in classifier.modules() if isinstance(module, nn.Linear) and module.out_features == n_classes][-1:]
    if norms:  # edge images too: statistics that never saw one let it grow from layer to layer, which no training would
        _run(classifier, pictures.train)
        _run(classifier, edge_images(image))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    if not head:  # SqueezeNet ends in a convolution
        return
    hook = head[0].register_forward_pre_hook(lambda _, inputs: classifier_input.append(inputs[0].double()))
    _run(classifier, pictures.train)
    hook.remove()
    features = torch.cat(classifier_input)  # (n, d)
    mean = features.mean(dim=0)
    centred = features - mean
    kernel = centred @ centred.T  # (n, n)
    targets = torch.nn.functional.one_hot(torch.from_numpy(pictures.train_labels), n_classes).double() - 1 / n_classes
    ridge = 0.1 * kernel.diagonal().mean() * torch.eye(len(kernel), dtype=torch.float64)
    weight = 10 * (centred.T @ torch.linalg.solve(kernel + ridge, targets)).T  # (classes, d)
    head[0].weight.copy_(weight)
    if head[0].bias is not None:
        head[0].bias.copy_(-weight @ mean)


def _run(classifier: nn.Module, images: npt.NDArray[np.uint8]) -> None:
    for start in range(0, len(images), _BATCH):
        classifier(torch.from_numpy(images[start : start + _BATCH]))
