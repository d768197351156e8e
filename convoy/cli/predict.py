"""``convoy predict``: what is on these images?"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from convoy.cli.connection import Connection, naming_the_served, server_options
from convoy.cli.console import remark

if TYPE_CHECKING:
    from convoy.cli.answers import Answer, Display
    from convoy.cli.images import Found, Watch
    from convoy.contract.image import ImageSpec, Pixels
    from convoy.serving.client import Client, Prediction

_MOST_IMAGES: Final = 64  # that are read before their answers are shown
_MOST_BYTES: Final = 1 << 26  # of their pixels
_MOST_S: Final = 0.5  # of reading
_LOOK_EVERY_S: Final = 0.5  # at a folder that is watched


@click.command("predict")
@click.argument("model_name", metavar="MODEL")
@click.argument("images", metavar="IMAGE...", nargs=-1, type=click.Path(allow_dash=True))
@click.option(
    "--top-k", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="List the N likeliest classes."
)
@click.option(
    "--watch",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Then classify what appears in FOLDER, until Ctrl-C.",
)
@server_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object an image on stdout, one a line.")
def command(
    model_name: str,
    images: tuple[str, ...],
    top_k: int,
    watch: Path | None,
    model_version: str,
    server: Connection,
    as_json: bool,
) -> None:
    """Classify each IMAGE with MODEL through a running server (`convoy serve` starts one).

    An IMAGE is a file, a folder (all images in it and in the folders within, `2.png` before `10.png`; hidden files and what has no
    image's suffix are left out), or `-`: one image's bytes on stdin. Images may have any size and any form that Pillow reads; the
    model's own size and labels come from the server. Answers are printed as they come. An image that cannot be read is reported
    while the others are answered; the exit status is 1 then.

    With --watch, images that are put into FOLDER or written again are classified once they have stopped changing. What is in it at
    the start is not, unless FOLDER is an IMAGE too. A server that does not answer for a while is waited for. Ctrl-C ends it well:
    exit status 0, or 1 where an image could not be read.

    \b
      convoy predict lenet5 digit.png
      convoy predict lenet5 scans/ --json > answers.jsonl
      convoy predict lenet5 *.png --top-k 3 --url http://gpu-box:8000
      convoy predict lenet5 digit.png --url grpcs://gpu-box --header "authorization: Bearer $TOKEN"
      curl -s https://example.org/digit.png | convoy predict lenet5 -
      convoy predict lenet5 inbox/ --watch inbox/
    """  # noqa: D301  # the backspace is click's mark for lines to leave as they are
    from convoy.cli.answers import JsonLines, Table
    from convoy.cli.images import Sources, Watch
    from convoy.contract.errors import ImageError

    _check(images, watch)
    watched = None if watch is None else Watch(watch)  # looks before the images are read: what comes meanwhile is not lost
    sources = Sources(images)
    display = JsonLines(model_name) if as_json else Table()
    with naming_the_served(server.urls, server.timeout_s, server.headers), server.client() as client:
        asker = _Asker(client, model_name, model_version, top_k)
        for answers in asker.ask(sources):
            display.show(answers)
        for line in sources.remarks():
            remark(f"convoy: {line}")
        if watched is not None:
            _follow(watched, asker, display)
    if asker.n_failed:
        raise ImageError(f"{asker.n_failed:,} of {asker.n:,} input{'s' * (asker.n > 1)} could not be read.")


class _Asker:
    """Has images answered, some at a time.

    Attributes:
        n: How many were answered or could not be read.
        n_failed: How many could not be read.
    """

    def __init__(self, client: Client, model_name: str, model_version: str, top_k: int) -> None:
        self._client = client
        self._model_name = model_name
        self._model_version = model_version
        self._top_k = top_k
        self.n = 0
        self.n_failed = 0

    def ask(self, images: Iterable[Found]) -> Iterator[list[Answer]]:
        """Read images and have them answered, as many at once as were read within a moment.

        Yields:
            An answer an image, in order.

        Raises:
            ConvoyError: The call failed; there is no model, or it is none for images.
        """
        from convoy.cli.answers import Answer

        spec = self._client.interface(self._model_name, self._model_version).image
        for batch in _batches(images, spec):
            pixels = [read for _, read in batch if not isinstance(read, str)]
            predictions = iter(self._classify(pixels) if pixels else ())
            self.n += len(batch)
            self.n_failed += len(batch) - len(pixels)
            yield [
                Answer(found, None, read) if isinstance(read, str) else Answer(found, next(predictions), None)
                for found, read in batch
            ]

    def _classify(self, pixels: list[Pixels]) -> list[Prediction]:
        return self._client.classify(self._model_name, pixels, model_version=self._model_version, top_k=self._top_k)


def _check(images: tuple[str, ...], watch: Path | None) -> None:
    """Refuse a command line that names no image, or stdin in a way that gives none."""
    from convoy.cli.images import STDIN

    if not images and watch is None:
        raise click.UsageError(
            "Missing argument 'IMAGE...': name files, folders or `-` (an image on stdin), or give --watch FOLDER."
        )
    if images.count(STDIN) > 1:
        raise click.UsageError("stdin is one image: `-` may be given once.")
    if STDIN in images and sys.stdin.isatty():
        raise click.UsageError("`-` expects an image's bytes on stdin, found a terminal: `convoy predict MODEL - < digit.png`.")


def _batches(images: Iterable[Found], spec: ImageSpec) -> Iterator[list[tuple[Found, Pixels | str]]]:
    """The images with their pixels, or with why they cannot be read; a batch ends when it is large or has taken long."""
    most = max(1, min(_MOST_IMAGES, _MOST_BYTES // (spec.height_px * spec.width_px * spec.channels)))
    batch: list[tuple[Found, Pixels | str]] = []
    started = time.monotonic()
    for found in images:
        batch.append((found, _read(found, spec)))
        if len(batch) >= most or time.monotonic() - started > _MOST_S:
            yield batch
            batch = []
            started = time.monotonic()
    if batch:
        yield batch


def _read(found: Found, spec: ImageSpec) -> Pixels | str:
    from convoy.contract.errors import ImageError
    from convoy.contract.image import to_pixels

    if found.error is not None:
        return found.error
    try:
        return to_pixels(found.image, spec)
    except ImageError as error:
        return f"stdin: {error}" if isinstance(found.image, bytes) else str(error)


def _follow(watched: Watch, asker: _Asker, display: Display) -> None:
    """Have what appears in the folder answered, until Ctrl-C."""
    from convoy.contract.errors import DeadlineExceededError, OverloadedError, UnavailableError

    remark(f"convoy: watching {watched.name} (images in it now: {watched.n_known:,}); Ctrl-C ends this.")
    is_away = False
    try:
        while True:
            started = time.monotonic()
            news = watched.settled()
            looked_s = time.monotonic() - started
            try:
                for answers in asker.ask(news) if news else ():
                    if is_away:
                        remark("convoy: the server answers again.")
                        is_away = False
                    display.show(answers)
                    for answer in answers:
                        watched.done(answer.found)
            except (UnavailableError, OverloadedError, DeadlineExceededError) as error:
                if not is_away:
                    remark(f"convoy: {error} Trying again until the server answers.")
                is_away = True
            _pause(max(_LOOK_EVERY_S, 4 * looked_s))  # a look at a large folder takes its time: at most a fifth of it
    except KeyboardInterrupt:
        end = "\n" if sys.stderr.isatty() else ""  # the terminal shows ^C
        remark(f"{end}convoy: stopped watching {watched.name}: {asker.n:,} input{'s' * (asker.n != 1)} in all.")


def _pause(seconds: float) -> None:
    time.sleep(seconds)
