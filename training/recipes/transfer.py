"""Transfer learning: a network that was trained on other data, with a new head."""

from __future__ import annotations

from typing import Final

from convoy.training.recipes.entry import Entry
from convoy.training.recipes.recipe import Architecture, Augmentation, Recipe, Transfer

ENTRIES: Final = (
    Entry(
        Recipe(
            name="transfer",
            title="a network trained on other images, refined on your photos",
            source="the lecture, section on transfer learning; Yosinski and others 2014, How transferable are features, section 2",
            network="resnet18",
            architecture=Architecture(dropout=0.2),
            transfer=Transfer(),
            data="cifar10",
            image_size_px=224,
            augmentation=Augmentation(crop_area_fraction=0.35, flip_probability=0.5),
            epochs=15,
            patience_epochs=8,
            batch_size=32,
            optimizer="adamw",
            learning_rate=1e-3,
            weight_decay=1e-2,
            schedule="cosine",
        ),
        "Transfer",
        by_data={
            name: {"augmentation": {"crop_area_fraction": 0.35}, "normalisation": {"polarity": "auto"}}
            for name in ("digits", "mnist")
        },
    ),
)
