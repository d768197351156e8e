"""The deep networks of the lecture, made for ImageNet's photos.

By default they train on CIFAR-10 in their small-image variants: ImageNet comes with no program. On a folder of photos (``--data
FOLDER``) they are the networks of the papers on 224x224 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from convoy.training.recipes.entry import INK, Entry
from convoy.training.recipes.recipe import Architecture, Augmentation, Recipe

_SMALL: Final = Augmentation(crop_px=4, flip_probability=0.5)

# VGG's five pools leave nothing of 28x28 pixels.
_DIGITS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {"digits": {"image_size_px": 32, **INK}, "mnist": {"image_size_px": 32, **INK}, "fashion-mnist": {"image_size_px": 32}}
)

# Their names stand for the papers' ways to cut 224x224 pixels out of a photo.
_ALEXNET_CROP: Final = 0.75  # 224x224 out of 256x256
_VGG_CROP: Final = 0.2  # out of photos whose short side has 256 to 512 pixels
_GOOGLENET_CROP: Final = 0.08  # "between 8% and 100% of the image area"
_RESNET_CROP: Final = 0.22  # out of photos whose short side has 256 to 480 pixels


def _on_photos(crop_area_fraction: float, **fields: Any) -> Mapping[str, Any]:
    return MappingProxyType(
        {"image_size_px": 224, "augmentation": {"crop_area_fraction": crop_area_fraction, "flip_probability": 0.5}, **fields}
    )


_ALEXNET: Final = Entry(
    Recipe(
        name="alexnet",
        title="AlexNet in one column: 5 convolutions, 3 FC",
        source="Krizhevsky, Sutskever, Hinton 2012, ImageNet Classification with Deep CNNs, sections 3 to 5",
        network="alexnet",
        architecture=Architecture(dropout=0.5),
        data="cifar10",
        augmentation=_SMALL,
        epochs=90,
        patience_epochs=30,
        batch_size=128,
        optimizer="sgd",
        learning_rate=0.01,
        momentum=0.9,
        nesterov=False,
        weight_decay=5e-4,
        schedule="plateau",
        schedule_epochs=8,
        schedule_factor=0.1,
    ),
    "Photos: AlexNet and VGG",
    by_data=_DIGITS,
    elsewhere=_on_photos(_ALEXNET_CROP),
)


def _vgg(configuration: str, title: str) -> Entry:
    return Entry(
        Recipe(
            name=f"vgg-{configuration}",
            title=title,
            source="Simonyan, Zisserman 2014, Very Deep Convolutional Networks for Large-Scale Image Recognition, sections 2 and 3",
            network=f"vgg-{configuration}",
            architecture=Architecture(batch_norm="none", dropout=0.5),
            data="cifar10",
            augmentation=_SMALL,
            epochs=74,
            patience_epochs=30,
            batch_size=128,
            optimizer="sgd",
            learning_rate=0.01,
            momentum=0.9,
            nesterov=False,
            weight_decay=5e-4,
            schedule="plateau",
            schedule_epochs=8,
            schedule_factor=0.1,
        ),
        "Photos: AlexNet and VGG",
        by_data=_DIGITS,
        elsewhere=_on_photos(_VGG_CROP, batch_size=256),
    )


_GOOGLENET: Final = Entry(
    Recipe(
        name="googlenet",
        title="GoogLeNet: 9 inception modules, 2 auxiliary heads",
        source="Szegedy and others 2014, Going Deeper with Convolutions, sections 5 and 6",
        network="googlenet",
        architecture=Architecture(batch_norm="none", dropout=0.4),
        data="cifar10",
        augmentation=_SMALL,
        epochs=90,
        patience_epochs=30,
        batch_size=128,
        optimizer="sgd",
        learning_rate=0.01,  # the Caffe team's, and so is the weight decay; the paper says neither
        momentum=0.9,
        nesterov=False,
        weight_decay=2e-4,
        schedule="step",  # "decreasing the learning rate by 4% every 8 epochs"
        schedule_epochs=8,
        schedule_factor=0.96,
    ),
    "Photos: GoogLeNet and ResNet",
    by_data=_DIGITS,
    elsewhere=_on_photos(_GOOGLENET_CROP),
)


def _residual(name: str, title: str) -> Entry:
    return Entry(
        Recipe(
            name=name,
            title=title,
            source="He, Zhang, Ren, Sun 2015, Deep Residual Learning for Image Recognition, sections 3.3, 3.4 and 4.1",
            network=name,
            architecture=Architecture(dropout=0.0),
            data="cifar10",
            augmentation=_SMALL,
            epochs=120,  # 600,000 steps of 256 on 1.28 million photos
            patience_epochs=40,
            batch_size=128,
            optimizer="sgd",
            learning_rate=0.1,
            momentum=0.9,
            nesterov=False,
            weight_decay=1e-4,
            schedule="plateau",
            schedule_epochs=8,
            schedule_factor=0.1,
        ),
        "Photos: GoogLeNet and ResNet",
        by_data=_DIGITS,
        elsewhere=_on_photos(_RESNET_CROP, batch_size=256),
    )


ENTRIES: Final = (
    _ALEXNET,
    _vgg("a", "VGG A: 8 convolutions of 3x3, 3 FC (VGG-11)"),
    _vgg("a-lrn", "VGG A with local response normalisation"),
    _vgg("b", "VGG B: 10 convolutions of 3x3, 3 FC (VGG-13)"),
    _vgg("c", "VGG C: 10 convolutions of 3x3, 3 of 1x1, 3 FC"),
    _vgg("d", "VGG D: 13 convolutions of 3x3, 3 FC (VGG-16)"),
    _vgg("e", "VGG E: 16 convolutions of 3x3, 3 FC (VGG-19)"),
    _GOOGLENET,
    _residual("resnet18", "ResNet of 18 layers"),
    _residual("resnet34", "ResNet of 34 layers"),
    _residual("resnet50", "ResNet of 50 layers, with bottlenecks"),
    _residual("resnet101", "ResNet of 101 layers, with bottlenecks"),
    _residual("resnet152", "ResNet of 152 layers, with bottlenecks"),
    _residual("plain18", "ResNet-18 without its shortcuts"),
    _residual("plain34", "ResNet-34 without its shortcuts"),
)
