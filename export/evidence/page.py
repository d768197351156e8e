"""``validation.html``: the report of a bundle as one page that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

from convoy.contract import figures
from convoy.contract.bundle import Bundle
from convoy.contract.errors import UsageError
from convoy.contract.stylesheet import csp_digest, stylesheet
from convoy.contract.validation import Check
from convoy.export.evidence.charts import histogram, layer_chart, meter, relative_error
from convoy.export.evidence.wording import SYMBOLS, source_name, task_words, verdict_words

_TEMPLATES: Final = Path(__file__).with_name("templates")
_SHOWN_PX: Final = 280  # the longer side of the worst image on the page
_EMBEDDED_PX: Final = 512  # the longer side of what is embedded at most
_MAX_FLIPS: Final = 200  # rows; the report has all


@dataclass(frozen=True)
class CheckGroup:
    """Checks of one kind.

    Attributes:
        name: What they share.
        checks: In the order in which they ran.
    """

    name: str
    checks: tuple[Check, ...]

    @property
    def closest(self) -> float | None:
        """The largest share of its limit that any of them needed."""
        return max((share for check in self.checks if (share := limit_share(check)) is not None), default=None)


@dataclass(frozen=True)
class Picture:
    """An image in the page.

    Attributes:
        source: A ``data:`` address.
        width_px: How wide it is shown.
        height_px: How high it is shown.
        pixelated: Whether single pixels show as squares.
    """

    source: str
    width_px: int
    height_px: int
    pixelated: bool


def render_page(bundle: Bundle, worst_pixels: npt.NDArray[np.uint8] | None = None) -> str:
    """The report as one HTML page: no script, nothing loaded from elsewhere; the same report gives the same text.

    Args:
        bundle: The export, its report written.
        worst_pixels: The image of ``report.worst``, uint8 of shape (H, W, 1) or (H, W, 3); without it the page shows figures alone.

    Raises:
        UsageError: The pixels are not that.
    """
    report = bundle.report
    css = stylesheet()
    template = _environment().get_template("validation.html.j2")
    return template.render(
        manifest=bundle.manifest,
        report=report,
        words=verdict_words(report),
        task=task_words(bundle.manifest.task),
        source_name=source_name(report),
        symbols=SYMBOLS,
        open_checks=[check for verdict in ("failed", "undecided") for check in report.checks if check.verdict == verdict],
        uncovered=[check for check in report.checks if check.verdict == "uncovered"],
        groups=group_checks(check for check in report.checks if check.verdict == "passed"),
        n_passed=sum(check.verdict == "passed" for check in report.checks),
        histograms={
            output.name: histogram(output, report.tolerances.get(output.name), f"histogram-{index}")
            for index, output in enumerate(report.outputs)
        },
        worst=report.worst,
        picture=None if worst_pixels is None else picture(worst_pixels),
        layer_chart=layer_chart(report.layers, report.fault, "layers"),
        max_flips=_MAX_FLIPS,
        css=Markup(css),  # noqa: S704 - our own file
        css_hash=csp_digest(css),
    )


def limit_share(check: Check) -> float | None:
    """How much of its limit a check needed; None where it compares no numbers, infinite where the limit is 0 and was left."""
    if check.limit is None or check.measured is None:
        return None
    if check.limit > 0:
        return check.measured / check.limit
    return 0.0 if check.measured <= check.limit else float("inf")


def group_checks(checks: Iterable[Check]) -> tuple[CheckGroup, ...]:
    """Checks by the first words of their names, up to a comma; those that stand alone together, at the end."""
    by_name: dict[str, list[Check]] = {}
    for check in checks:
        by_name.setdefault(check.name.split(",")[0], []).append(check)
    groups = [CheckGroup(name, tuple(members)) for name, members in by_name.items() if len(members) > 1]
    single = tuple(members[0] for members in by_name.values() if len(members) == 1)
    if single:
        groups.append(CheckGroup("others" if groups else "all", single))
    return tuple(groups)


def picture(pixels: npt.NDArray[np.uint8]) -> Picture:
    """An image as a PNG inside the page; small ones are shown enlarged, with their pixels as squares.

    Args:
        pixels: uint8, shape (H, W, 1) or (H, W, 3).

    Raises:
        UsageError: They are not that.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape:
        raise UsageError(f"the worst image: expected uint8 of shape (H, W, 1) or (H, W, 3), found {pixels.dtype} {pixels.shape}.")
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    longer = max(image.size)
    factor = max(1, _SHOWN_PX // longer) if longer <= _SHOWN_PX else _SHOWN_PX / longer
    width, height = (max(1, round(side * factor)) for side in image.size)
    image.thumbnail((_EMBEDDED_PX, _EMBEDDED_PX))
    encoded = io.BytesIO()
    image.save(encoded, "PNG", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode()
    return Picture(source, width, height, pixelated=factor > 1)


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
        "probability": figures.probability,
        "share": figures.share,
        "size": figures.size,
        "meter": meter,
        "limit_share": limit_share,
        "relative_error": relative_error,
    }
    return environment
