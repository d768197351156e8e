"""``convoy predict``: what is on these images, or what do these fields say?"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from convoy.cli.box import box_option
from convoy.cli.connection import Connection, naming_the_served, server_options
from convoy.cli.console import remark

if TYPE_CHECKING:
    from types import FrameType

    from convoy.cli.images import Found, Watch
    from convoy.cli.pictures import Pictures
    from convoy.contract.field import FieldPixels
    from convoy.contract.image import ImageSpec, Pixels
    from convoy.contract.manifest import ModelInterface
    from convoy.serving.client import Client

_MOST_IMAGES: Final = 64  # that are read before their answers are shown
_MOST_BYTES: Final = 1 << 26  # of their pixels
_MOST_S: Final = 0.5  # of reading
_LOOK_EVERY_S: Final = 0.5  # at a folder that is watched


@click.command("predict")
@click.argument("model_name", metavar="MODEL")
@click.argument("images", metavar="IMAGE...", nargs=-1, type=click.Path(allow_dash=True))
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="List the N likeliest classes or amounts.",
)
@click.option(
    "--watch",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Then classify or read what appears in FOLDER, until Ctrl-C.",
)
@box_option
@click.option(
    "--draw",
    type=click.Path(path_type=Path),
    metavar="FILE.png|FOLDER",
    help="Draw each field with the characters under their places; of models that read amounts.",
)
@server_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object an image on stdout, one a line.")
def command(
    model_name: str,
    images: tuple[str, ...],
    top_k: int,
    watch: Path | None,
    box: tuple[int, int, int, int] | None,
    draw: Path | None,
    model_version: str,
    server: Connection,
    as_json: bool,
) -> None:
    """Classify or read each IMAGE with MODEL through a running server (`convoy serve` starts one).

    An IMAGE is a file, a folder (all images in it and in the folders within, `2.png` before `10.png`; hidden files and what has no
    image's suffix are left out), or `-`: one image's bytes on stdin. Images may have any size and any form that Pillow reads; the
    model's own size and labels come from the server. Answers are printed as they come. An image that cannot be read is reported
    while the others are answered; the exit status is 1 then.

    A model that reads amounts says for each IMAGE, which is a field of writing or (with --box) a form with one, what the amount is,
    how sure it is, and whether that is accepted or for a person to read. A terminal shows the field too.

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
      convoy predict check-reader field.png --top-k 3 --draw read.png
      convoy predict check-reader checks/ --box 1130,240,420,90 --json
    """  # noqa: D301  # the backspace is click's mark for lines to leave as they are
    from convoy.cli.images import Sources, Watch
    from convoy.contract.errors import ImageError

    _check(images, watch, draw)
    watched = None if watch is None else Watch(watch)  # looks before the images are read: what comes meanwhile is not lost
    sources = Sources(images)
    with naming_the_served(server.urls, server.timeout_s, server.headers), server.client() as client:
        asker = _Asker(client, model_name, model_version, top_k, box)
        if asker.reads:
            pictures = _amount_displays(asker, model_name, top_k, draw, as_json=as_json)
        else:
            _check_classifies(model_name, box, draw)
            _class_displays(asker, model_name, as_json=as_json)
            pictures = None
        try:
            for answers in asker.ask(sources):
                asker.show(answers)
            for line in sources.remarks():
                remark(f"convoy: {line}")
            if watched is not None:
                _follow(watched, asker)
        finally:
            if pictures is not None:
                pictures.tell()
    if asker.n_failed:
        raise ImageError(f"{asker.n_failed:,} of {asker.n:,} input{'s' * (asker.n > 1)} could not be read.")


class _Asker:
    """Has images answered, some at a time, and shows the answers.

    Attributes:
        reads: Whether the model reads amounts; else it classifies.
        n_best: How many amounts it gives at most; 0 where it classifies.
        displays: Show answers, one after the other.
        n: How many were answered or could not be read.
        n_failed: How many could not be read.
    """

    def __init__(
        self, client: Client, model_name: str, model_version: str, top_k: int, box: tuple[int, int, int, int] | None
    ) -> None:
        self._client = client
        self._model_name = model_name
        self._model_version = model_version
        self._top_k = top_k
        self._box = box
        self._first: ModelInterface | None = self._look_up()
        self.reads = self._first.task == "amount-reading"
        self.n_best = 0 if self._first.reading is None else self._first.reading.n_best
        self.displays: list[Callable[[Sequence[Any]], None]] = []
        self.n = 0
        self.n_failed = 0

    def show(self, answers: Sequence[Any]) -> None:
        """Show answers."""
        for show in self.displays:
            show(answers)

    def ask(self, images: Iterable[Found]) -> Iterator[list[Any]]:
        """Read images and have them answered, as many at once as were read within a moment.

        Yields:
            An answer an image, in order.

        Raises:
            ConvoyError: The call failed; there is no model, or it is none for images.
        """
        interface, self._first = self._first or self._look_up(), None
        spec = interface.image
        for batch in _batches(images, spec, self._read_field if self.reads else _read_pixels):
            readable = [read for _, read in batch if not isinstance(read, str)]
            answers = self._answers(batch, readable)
            self.n += len(batch)
            self.n_failed += len(batch) - len(readable)
            yield answers

    def _answers(self, batch: list[tuple[Found, Any]], readable: list[Any]) -> list[Any]:
        if self.reads:
            from convoy.cli.amounts import ReadAnswer

            amounts = iter(
                self._client.read_amounts(readable, model_name=self._model_name, model_version=self._model_version)
                if readable
                else ()
            )
            return [
                ReadAnswer(found, None, None, read) if isinstance(read, str) else ReadAnswer(found, read, next(amounts), None)
                for found, read in batch
            ]
        from convoy.cli.answers import Answer

        predictions = iter(
            self._client.classify(self._model_name, readable, model_version=self._model_version, top_k=self._top_k)
            if readable
            else ()
        )
        return [
            Answer(found, None, read) if isinstance(read, str) else Answer(found, next(predictions), None) for found, read in batch
        ]

    def _read_field(self, found: Found, spec: ImageSpec) -> FieldPixels:
        from convoy.contract.field import to_field

        return to_field(found.image, spec, self._box)

    def _look_up(self) -> ModelInterface:
        return self._client.interface(self._model_name, self._model_version)


def _class_displays(asker: _Asker, model_name: str, *, as_json: bool) -> None:
    from convoy.cli.answers import JsonLines, Table

    asker.displays.append((JsonLines(model_name) if as_json else Table()).show)


def _amount_displays(asker: _Asker, model_name: str, top_k: int, draw: Path | None, *, as_json: bool) -> Pictures | None:
    from convoy.cli.amounts import AmountLines, AmountTable
    from convoy.cli.pictures import Pictures

    if top_k > asker.n_best:
        remark(f"convoy: --top-k {top_k}: {model_name!r} gives {asker.n_best} amounts at most; no more are listed.")
    asker.displays.append((AmountLines(model_name, top_k) if as_json else AmountTable(top_k)).show)
    if draw is None:
        return None
    pictures = Pictures(draw)
    asker.displays.append(pictures.show)
    return pictures


def _check_classifies(model_name: str, box: object, draw: object) -> None:
    """Refuse what only models that read amounts have."""
    from convoy.contract.errors import UsageError

    for option, value in (("--box", box), ("--draw", draw)):
        if value is not None:
            raise UsageError(f"{option} is for models that read amounts, and {model_name!r} classifies: leave it out.")


def _check(images: tuple[str, ...], watch: Path | None, draw: Path | None) -> None:
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
    if draw is not None:
        from convoy.cli.pictures import check_place

        check_place(images, watch, draw)


def _batches(
    images: Iterable[Found], spec: ImageSpec, read: Callable[[Found, ImageSpec], Any]
) -> Iterator[list[tuple[Found, Any]]]:
    """The images with what was read of them, or with why they cannot be read; a batch ends when it is large or has taken long."""
    most = max(1, min(_MOST_IMAGES, _MOST_BYTES // (spec.height_px * spec.width_px * spec.channels)))
    batch: list[tuple[Found, Any]] = []
    started = time.monotonic()
    for found in images:
        batch.append((found, _read(found, spec, read)))
        if len(batch) >= most or time.monotonic() - started > _MOST_S:
            yield batch
            batch = []
            started = time.monotonic()
    if batch:
        yield batch


def _read(found: Found, spec: ImageSpec, read: Callable[[Found, ImageSpec], Any]) -> Any:
    from convoy.contract.errors import ImageError

    if found.error is not None:
        return found.error
    try:
        return read(found, spec)
    except ImageError as error:
        return f"stdin: {error}" if isinstance(found.image, bytes) else str(error)


def _read_pixels(found: Found, spec: ImageSpec) -> Pixels:
    from convoy.contract.image import to_pixels

    return to_pixels(found.image, spec)


def _follow(watched: Watch, asker: _Asker) -> None:
    """Have what appears in the folder answered, until Ctrl-C."""
    from convoy.contract.errors import DeadlineExceededError, OverloadedError, UnavailableError

    remark(f"convoy: watching {watched.name} (images in it now: {watched.n_known:,}); Ctrl-C ends this.")
    is_away = False
    try:
        for _ in _until_interrupted():
            started = time.monotonic()
            news = watched.settled()
            looked_s = time.monotonic() - started
            try:
                for answers in asker.ask(news) if news else ():
                    if is_away:
                        remark("convoy: the server answers again.")
                        is_away = False
                    asker.show(answers)
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


def _until_interrupted() -> Iterator[None]:
    """Rounds without end, but that Ctrl-C ends them even where nobody gets to see its exception.

    Python writes off what is raised in a destructor or in a callback of gRPC's: a Ctrl-C that comes just then would be lost.
    """
    interrupted = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        interrupted.set()
        raise KeyboardInterrupt

    in_main = threading.current_thread() is threading.main_thread()  # no other may say what a signal does
    before = signal.signal(signal.SIGINT, interrupt) if in_main else None
    try:
        while not interrupted.is_set():
            yield
        raise KeyboardInterrupt
    finally:
        if in_main:
            signal.signal(signal.SIGINT, before)


def _pause(seconds: float) -> None:
    time.sleep(seconds)
