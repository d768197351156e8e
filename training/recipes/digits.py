"""The lecture's networks on digits, from the linear classifier to the LeNet5 of 1998."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from convoy.training.recipes.entry import Entry
from convoy.training.recipes.recipe import Architecture, Augmentation, Normalisation, Recipe

_PAPER: Final = "LeCun, Bottou, Bengio, Haffner 1998, Gradient-Based Learning Applied to Document Recognition"

# Photos and clothes have no ink whose polarity could be told from a border, and a mirror leaves them what they are.
_CLOTHES: Final[Mapping[str, Any]] = MappingProxyType(
    {"normalisation.polarity": "as-is", "augmentation": {"shift_px": 2.0, "flip_probability": 0.5}}
)
_PHOTOS: Final[Mapping[str, Any]] = MappingProxyType(
    {"normalisation.polarity": "as-is", "augmentation": {"crop_px": 4, "flip_probability": 0.5}}
)
_PHOTOS_AS_THEY_ARE: Final[Mapping[str, Any]] = MappingProxyType({"normalisation.polarity": "as-is"})
_FOLDER: Final[Mapping[str, Any]] = MappingProxyType({"image_size_px": 28})


def _as_in_the_lecture(recipe: Recipe, family: str, **on_mnist: Any) -> Entry:
    """A recipe without distortions, as the lecture's first numbers are; ``--set`` adds them."""
    many = {"epochs": 12, "patience_epochs": 12, "batch_size": 128, **on_mnist}
    return Entry(
        recipe,
        family,
        by_data={
            "mnist": many,
            "fashion-mnist": {**many, **_PHOTOS_AS_THEY_ARE},
            "cifar10": {**_PHOTOS_AS_THEY_ARE, "batch_size": 64},
        },
        elsewhere=_FOLDER,
    )


def _fully_connected(name: str, title: str, source: str, architecture: Architecture, *, learning_rate: float) -> Entry:
    recipe = Recipe(
        name=name,
        title=title,
        source=source,
        network=name,
        architecture=architecture,
        data="digits",
        normalisation=Normalisation(polarity="auto"),
        epochs=30,
        patience_epochs=20,
        batch_size=32,
        optimizer="adamw",
        learning_rate=learning_rate,
        weight_decay=1e-2,
    )
    return _as_in_the_lecture(recipe, "Digits: fully connected")


_HIDDEN: Final = Architecture(activation="relu", dropout=0.0)
_POOLED: Final = Architecture(activation="relu", pooling="max", downsampling="pool", batch_norm="none", dropout=0.0)
_UNPOOLED: Final = Architecture(activation="relu", batch_norm="none", dropout=0.0)

_FULLY_CONNECTED: Final = (
    _fully_connected(
        "linear", "a weighted sum of the pixels for each class", f"{_PAPER}, section III.C.1", Architecture(), learning_rate=3e-3
    ),
    _fully_connected(
        "lenet300-1", "fully connected, one hidden layer of 300 units", f"{_PAPER}, section III.C.4", _HIDDEN, learning_rate=2e-3
    ),
    _fully_connected(
        "lenet300", "LeNet300: hidden layers of 300 and 100 units", f"{_PAPER}, section III.C.5", _HIDDEN, learning_rate=2e-3
    ),
)


def _convolutional(name: str, title: str, architecture: Architecture) -> Entry:
    recipe = Recipe(
        name=name,
        title=title,
        source=f"the lecture, after {_PAPER}, section II.A",
        network=name,
        architecture=architecture,
        data="digits",
        normalisation=Normalisation(polarity="auto"),
        epochs=30,
        patience_epochs=20,
        batch_size=32,
        optimizer="adamw",
        learning_rate=2e-3,
        weight_decay=1e-2,
    )
    return _as_in_the_lecture(recipe, "Digits: convolutional")


_LENET1: Final = _as_in_the_lecture(
    Recipe(
        name="lenet1",
        title="LeNet1: 4 and 12 maps, trained subsampling, 2,578 weights",
        source="LeCun and others 1990, Handwritten Digit Recognition with a Back-Propagation Network, section 4",
        network="lenet1",
        architecture=Architecture(activation="scaled-tanh"),
        data="digits",
        normalisation=Normalisation(polarity="auto"),
        epochs=30,
        patience_epochs=20,
        batch_size=32,
        optimizer="adamw",
        learning_rate=1e-2,
        weight_decay=1e-4,
    ),
    "Digits: convolutional",
)

_LENET5: Final = Entry(
    Recipe(
        name="lenet5",
        title="LeNet5 with ReLU and max pooling: 6 and 16 maps",
        source=f"{_PAPER}, section II.B",
        network="lenet5",
        architecture=_POOLED,
        data="digits",
        normalisation=Normalisation(polarity="auto"),
        # More than MNIST's own test set asks for: digits from elsewhere are larger, smaller and fainter. Without the fading,
        # a quarter of MNIST's digits in faint ink on grey paper are misread; with it, as many as of the originals.
        augmentation=Augmentation(shift_px=2.0, rotation_deg=12.0, scale_fraction=0.25, shear_deg=8.0, contrast_fraction=0.3),
        validation_fraction=0.1,
        epochs=30,
        patience_epochs=20,
        batch_size=32,
        optimizer="adamw",
        learning_rate=3e-3,
        momentum=0.9,
        weight_decay=1e-2,
        schedule="one-cycle",
        warmup_fraction=0.2,
    ),
    "Digits: convolutional",
    # 54,000 images instead of 1,294: fewer epochs do, and larger batches are faster. SGD's weights
    # misread fewer digits cut from bank checks than AdamW's (one seed each); on a few hundred steps SGD hardly starts.
    by_data={
        "mnist": {
            "epochs": 12,
            "patience_epochs": 12,
            "batch_size": 128,
            "optimizer": "sgd",
            "learning_rate": 0.05,
            "weight_decay": 5e-4,
        },
        "fashion-mnist": {"epochs": 12, "patience_epochs": 12, "batch_size": 128, **_CLOTHES},
        "cifar10": {"batch_size": 64, **_PHOTOS},
    },
    elsewhere=_FOLDER,
)

_LENET5_1998: Final = Entry(
    Recipe(
        name="lenet5-1998",
        title="LeNet5 as published: table of connections, RBF output",
        source=f"{_PAPER}, sections II.B and III.B",
        network="lenet5-1998",
        architecture=Architecture(activation="scaled-tanh"),
        data="digits",
        # the paper's: what is not ink is -0.1, ink is 1.175
        normalisation=Normalisation(polarity="auto", mean=(0.078431,), std=(0.784314,)),
        epochs=30,
        patience_epochs=20,
        batch_size=32,
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=1e-4,
    ),
    "Digits: convolutional",
    by_data={
        "mnist": {"epochs": 20, "patience_epochs": 20, "batch_size": 128},  # 20 passes, as the paper
        "fashion-mnist": {"epochs": 20, "patience_epochs": 20, "batch_size": 128, **_PHOTOS_AS_THEY_ARE},
        "cifar10": {"normalisation": {"polarity": "as-is"}, "batch_size": 64},
    },
    elsewhere={"image_size_px": 28, "normalisation.mean": None, "normalisation.std": None},
)

ENTRIES: Final = (
    *_FULLY_CONNECTED,
    _convolutional("lenet300-conv", "LeNet300 behind 6 maps of 5x5, no pool", _UNPOOLED),
    _convolutional("lenet300-conv-pool", "LeNet300 behind 6 maps of 5x5 and a pool", _POOLED),
    _convolutional("lenet300-conv-pool2", "LeNet300 behind 6 maps, a pool, 16 maps, a pool", _POOLED),
    _LENET1,
    _LENET5,
    _LENET5_1998,
)
