"""``report.html``: a run as one page that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image
from pydantic import BaseModel

from convoy.contract import figures
from convoy.contract.machine import machine
from convoy.contract.stylesheet import csp_digest, stylesheet
from convoy.training.recipes.overrides import settings
from convoy.training.report import pictures as files
from convoy.training.report.per_class import flag_classes, most_confused

if TYPE_CHECKING:
    from convoy.training.run import TrainedRun

REPORT_FILE: Final = "report.html"
_TEMPLATES: Final = Path(__file__).with_name("templates")
_MAX_ROWS: Final = 20
"""Classes that the table shows at once; of more, it shows the worst of them, and all on demand."""
_N_CONFUSED: Final = 10


@dataclass(frozen=True)
class Picture:
    """A PNG file in the page.

    Attributes:
        source: A ``data:`` address.
        width_px: How wide it is shown at most.
        height_px: How high that makes it.
    """

    source: str
    width_px: int
    height_px: int

    @classmethod
    def of(cls, png: bytes) -> Picture:
        """The picture at its own size."""
        with Image.open(io.BytesIO(png)) as image:
            width, height = image.size
        return cls("data:image/png;base64," + base64.b64encode(png).decode(), width, height)


def render_page(run: TrainedRun, pictures: Mapping[str, bytes]) -> str:
    """A run as one HTML page: no script, nothing loaded from elsewhere.

    Args:
        run: What was trained.
        pictures: As ``draw_pictures`` gives them.
    """
    record, metrics = run.record, run.metrics
    confusion = np.array(metrics.test_confusion)
    by_f1 = sorted(metrics.test_classes, key=lambda score: score.f1)
    many = len(by_f1) > _MAX_ROWS
    facts = record.dataset
    return render(
        "report.html.j2",
        pictures,
        record=record,
        recipe=record.recipe,
        metrics=metrics,
        calibration=metrics.calibration,
        splits=(
            ("validation", facts.n_validation, metrics.validation_top1_error, metrics.validation_loss),
            ("test", facts.n_test, metrics.test_top1_error, metrics.test_loss),
        ),
        shown=by_f1[:_MAX_ROWS] if many else metrics.test_classes,
        all_classes=metrics.test_classes if many else (),
        flags=flag_classes(metrics.test_classes),
        confused=most_confused(confusion, record.labels, _N_CONFUSED),
    )


def render(template: str, pictures: Mapping[str, bytes], *, recipe: BaseModel, **values: Any) -> str:
    """One of our pages: no script, nothing loaded from elsewhere.

    Args:
        template: Its file.
        pictures: PNG files by name; ``plate`` shows them by their names without the ending.
        recipe: The run's.
        values: What else it shows.
    """
    css = stylesheet() + (_TEMPLATES / "report.css").read_text(encoding="utf-8")
    return (
        _environment()
        .get_template(template)
        .render(
            pictures={name.partition(".")[0]: Picture.of(png) for name, png in pictures.items()},
            recipe=recipe,
            settings=[setting for setting in settings(recipe) if setting.value is not None],
            machine=machine(),
            css=Markup(css),  # noqa: S704 - our own files
            css_hash=csp_digest(css),
            **values,
        )
    )


def render_report(run: TrainedRun) -> dict[str, bytes]:
    """The page and its pictures, by file name."""
    drawn = files.draw_pictures(run)
    return {REPORT_FILE: render_page(run, drawn).encode(), **drawn}


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "figure": figures.figure,
        "percent": figures.percent,
        "interval95": lambda fraction, n: figures.interval95(fraction, n),
    }
    return environment
