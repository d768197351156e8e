"""The small residual networks for CIFAR-10, and their plain twins."""

from __future__ import annotations

from typing import Final

from convoy.training.recipes.entry import INK, Entry
from convoy.training.recipes.recipe import Architecture, Augmentation, Recipe

DEPTHS: Final = (20, 32, 44, 56)


def _entry(name: str, title: str) -> Entry:
    return Entry(
        Recipe(
            name=name,
            title=title,
            source="He, Zhang, Ren, Sun 2015, Deep Residual Learning for Image Recognition, section 4.2",
            network=name,
            architecture=Architecture(dropout=0.0),
            data="cifar10",
            augmentation=Augmentation(crop_px=4, flip_probability=0.5),
            # 64,000 steps of 128 on 50,000 images. The paper divides after 32,000 and 48,000 of them; here the falls stand a third
            # of the way apart.
            epochs=164,
            patience_epochs=164,
            batch_size=128,
            optimizer="sgd",
            learning_rate=0.1,
            momentum=0.9,
            nesterov=False,
            weight_decay=1e-4,
            schedule="step",
            schedule_epochs=55,
            schedule_factor=0.1,
        ),
        "Small photos: CIFAR's ResNets",
        by_data={
            "digits": INK,
            "mnist": {**INK, "epochs": 15, "patience_epochs": 15, "schedule_epochs": 5},
        },
        elsewhere={"image_size_px": 32},
    )


ENTRIES: Final = (
    *(_entry(f"cifar-resnet{depth}", f"ResNet of {depth} layers, 16 to 64 maps") for depth in DEPTHS),
    *(_entry(f"cifar-plain{depth}", f"plain network of {depth} layers, 16 to 64 maps") for depth in DEPTHS),
)
