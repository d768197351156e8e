"""Recipes that go for speed and for the last tenth of a percent."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from convoy.training.recipes.entry import Entry
from convoy.training.recipes.recipe import Architecture, Augmentation, Normalisation, Recipe

_FAMILY: Final = "Digits: records"
_PAPER: Final = "LeCun, Bottou, Bengio, Haffner 1998, Gradient-Based Learning Applied to Document Recognition, section II.B"
# MNIST's own, so that nothing is measured first; its strokes are all light on dark, so that no border is looked at
_MNIST: Final = Normalisation(polarity="as-is", mean=(0.1307,), std=(0.3081,))
# on the few hundred steps that scikit-learn's digits make, SGD hardly starts
_FEW_DIGITS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "normalisation": Normalisation(polarity="auto").model_dump(mode="json"),
        "batch_size": 32,
        "optimizer": "adamw",
        "learning_rate": 3e-3,
        "weight_decay": 1e-2,
    }
)

_FAST: Final = Entry(
    Recipe(
        name="lenet5-fast",
        title="LeNet5 for speed: strides in place of pools, batch norm",
        source=f"{_PAPER}; Ioffe and Szegedy 2015, Batch Normalization; Smith and Topin 2017, Super-Convergence",
        network="lenet5",
        # Convolving at every second place alone costs a third of convolving everywhere and pooling, on a CPU. So there is time
        # for twice as many epochs, which are worth more than the pools.
        architecture=Architecture(
            activation="relu", pooling="max", downsampling="stride", batch_norm="conv-relu-pool-bn", dropout=0.0
        ),
        data="mnist",
        normalisation=_MNIST,
        augmentation=Augmentation(shift_px=1.0, rotation_deg=5.0, scale_fraction=0.05),
        epochs=3,
        patience_epochs=3,
        batch_size=192,
        optimizer="sgd",
        learning_rate=0.2,
        weight_decay=5e-4,
        schedule="one-cycle",
        warmup_fraction=0.2,
    ),
    _FAMILY,
    by_data={"digits": {**_FEW_DIGITS, "epochs": 40, "patience_epochs": 40}},
)

_BEST: Final = Entry(
    Recipe(
        name="lenet5-best",
        title="LeNet5 for accuracy: elastic distortion, averages",
        source=f"{_PAPER}; Simard, Steinkraus and Platt 2003, Best Practices for Convolutional Neural Networks, section 2",
        network="lenet5",
        architecture=Architecture(activation="relu", pooling="max", downsampling="pool", batch_norm="conv-bn-relu", dropout=0.0),
        data="mnist",
        normalisation=_MNIST,
        augmentation=Augmentation(
            shift_px=1.5, rotation_deg=8.0, scale_fraction=0.1, shear_deg=5.0, elastic_px=0.8, elastic_sigma_px=4.0
        ),
        # what 54,000 digits teach beyond 99.5 % is worth more than a finer choice among the last epochs
        validation_fraction=0.05,
        epochs=120,
        patience_epochs=120,
        batch_size=128,
        optimizer="sgd",
        learning_rate=0.1,
        weight_decay=5e-4,
        schedule="one-cycle",
        warmup_fraction=0.1,
        averaging="ema",
        averaging_decay=0.9995,
    ),
    _FAMILY,
    by_data={"digits": {**_FEW_DIGITS, "averaging_decay": 0.99}},
)

ENTRIES: Final[tuple[Entry, ...]] = (_FAST, _BEST)
