"""``report.html`` of a reader's run: one page that opens offline, with its pictures beside it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL.Image import Image

from convoy.contract.reading import OperatingPoint
from convoy.contract.reject import ERRORS, Curve, least_accepted
from convoy.training.check_reader.field_image import SyntheticField
from convoy.training.check_reader.fields import Field
from convoy.training.check_reader.loss_plot import draw_losses
from convoy.training.check_reader.preview import draw_captioned, draw_sheet
from convoy.training.check_reader.reader_records import ReaderMetrics, ReaderRecord
from convoy.training.check_reader.reject_plot import draw_reject_curve
from convoy.training.report.page import REPORT_FILE, render

LOSSES_FILE: Final = "curves.png"
REJECT_FILE: Final = "reject.png"
MISTAKES_FILE: Final = "mistakes.png"
FIELDS_FILE: Final = "fields.png"
MOST_MISTAKES: Final = 36


@dataclass(frozen=True, eq=False)
class Misread:
    """A field that was held back and read wrong.

    Attributes:
        name: What messages call it.
        pixels: uint8 (height, width), at the network's height.
        label: What it shows.
        read: What the reader said.
        confidence: How surely, in [0, 1].
    """

    name: str
    pixels: npt.NDArray[np.uint8]
    label: str
    read: str
    confidence: float


@dataclass(frozen=True, eq=False)
class ReaderExhibits:
    """What the page shows beside the record and the metrics.

    Attributes:
        curve: Coverage against error, of the fields that were held back.
        points: For each of ``ERRORS`` the threshold that accepts the most; None where none does.
        mistakes: The fields that were read wrong, the surest first.
        synthetic: Some that the run saw.
        real: Some that were held back.
    """

    curve: Curve
    points: tuple[OperatingPoint | None, ...]
    mistakes: tuple[Misread, ...]
    synthetic: Sequence[SyntheticField]
    real: Sequence[Field]


def render_reader_report(record: ReaderRecord, metrics: ReaderMetrics, exhibits: ReaderExhibits) -> dict[str, bytes]:
    """The page and its pictures, by file name."""
    shown = exhibits.mistakes[:MOST_MISTAKES]
    pictures = {REJECT_FILE: draw_reject_curve({record.run_id: exhibits.curve})}
    if metrics.history:
        pictures[LOSSES_FILE] = draw_losses(metrics.history)
    if shown:
        captions = [f"{field.label} read as {field.read or 'nothing'}, {_percent(field.confidence)}" for field in shown]
        pictures[MISTAKES_FILE] = _png(draw_captioned([field.pixels for field in shown], captions))
    if exhibits.synthetic or exhibits.real:
        pictures[FIELDS_FILE] = _png(draw_sheet(exhibits.synthetic, exhibits.real))
    page = render(
        "reader.html.j2",
        pictures,
        recipe=record.recipe,
        record=record,
        metrics=metrics,
        points=[
            (error, least_accepted(error), point and round(point.coverage * point.n), point)
            for error, point in zip(ERRORS, exhibits.points, strict=True)
        ],
        mistakes=shown,
        n_mistakes=len(exhibits.mistakes),
    )
    return {REPORT_FILE: page.encode(), **pictures}


def _percent(confidence: float) -> str:
    """Never 100 for what is not certain."""
    return f"{100 * confidence:.0f} %" if confidence < 0.995 else f"{min(99.9, 100 * confidence):.1f} %"


def _png(image: Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
