"""All pictures of a run, by file name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from convoy.training.report.augmented import draw_augmented
from convoy.training.report.confusion import draw_confusion
from convoy.training.report.curves import draw_curves
from convoy.training.report.filters import draw_filters, first_layer
from convoy.training.report.mistakes import draw_mistakes
from convoy.training.report.reliability import draw_reliability

if TYPE_CHECKING:
    from convoy.training.run import TrainedRun

CURVES_FILE: Final = "curves.png"
CONFUSION_FILE: Final = "confusion.png"
MISTAKES_FILE: Final = "mistakes.png"
CALIBRATION_FILE: Final = "calibration.png"
FILTERS_FILE: Final = "filters.png"
AUGMENTATION_FILE: Final = "augmentation.png"


def draw_pictures(run: TrainedRun) -> dict[str, bytes]:
    """Draw what there is to see of a run: a PNG file each.

    There are no mistakes where no test image was taken for another class, no filters where the first layer is neither a
    convolution nor dense on the pixels, and no augmentation where the recipe distorts nothing.
    """
    record, metrics, exhibits = run.record, run.metrics, run.exhibits
    pictures = {
        CURVES_FILE: draw_curves(
            metrics.history,
            best_epoch=metrics.best_epoch,
            test_top1_error=metrics.test_top1_error,
            title=f"{record.recipe.name} on {record.dataset.name}, {record.n_parameters:,} parameters, seed {record.seed}",
        ),
        CONFUSION_FILE: draw_confusion(
            np.array(metrics.test_confusion), record.labels, title=f"Confusion on {len(exhibits.test):,} test images"
        ),
        CALIBRATION_FILE: draw_reliability(
            exhibits.test, metrics.temperature, title=f"Reliability on {len(exhibits.test):,} test images"
        ),
    }
    if exhibits.mistakes:
        n_wrong = int((exhibits.test.predicted != exhibits.test.labels).sum())
        few = "All" if n_wrong == len(exhibits.mistakes) else f"The {len(exhibits.mistakes)} most confident of"
        title = f"{few} {n_wrong:,} mistakes on the test images"
        pictures[MISTAKES_FILE] = draw_mistakes(exhibits.mistakes, title=title)
    weights = first_layer(run.classifier.network, record.image)
    if weights is not None:
        pictures[FILTERS_FILE] = draw_filters(weights, title=f"First layer: {len(weights):,} filters")
    if exhibits.augmented is not None:
        pictures[AUGMENTATION_FILE] = draw_augmented(exhibits.augmented, title="Augmentation, drawn anew each epoch")
    return pictures
