"""Where ``--draw`` writes its pictures, and where it must not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from convoy.cli.console import remark
from convoy.cli.images import STDIN, Found, printable
from convoy.contract.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from convoy.cli.amounts import ReadAnswer

_SUFFIX: Final = ".png"
_ENDING: Final = ".read.png"  # of the pictures in a folder
_SOFTWARE: Final = "convoy predict"
_MARK: Final = b"tEXtSoftware\0" + _SOFTWARE.encode()  # as PNG has it, right behind the header
_MARKED_BYTES: Final = 128  # that have it among them
_OTHER_FILE: Final = "expected a new file, or a drawing of this program's, found another file. Choose another name or folder."


class Pictures:
    """Writes a picture for each answer: the field with the characters under their places.

    Args:
        place: A ``.png`` file, for one image; or a folder, in which ``NAME.read.png`` is written for each.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._is_file = _is_for_one(place)
        self._taken: set[str] = set()
        self._n = 0

    def show(self, answers: Sequence[ReadAnswer]) -> None:
        """Write some more; an older picture is replaced, any other file is not.

        Raises:
            UsageError: A picture cannot be written, or another file is in its place.
        """
        from convoy.cli.field_picture import draw_picture

        for answer in answers:
            if answer.field is None or answer.amount is None:
                continue
            path = self._place if self._is_file else self._place / self._name_of(answer.found)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if not _is_free(path):
                    raise UsageError(f"--draw {self._place}: {path}: {_OTHER_FILE}")
                _save(draw_picture(answer.field, answer.amount), path)
                self._n += 1
            except OSError as error:
                raise UsageError(f"--draw {self._place}: {path} cannot be written: {error.strerror or error}.") from error

    def tell(self) -> None:
        """Say on stderr where the pictures are, where there are any."""
        if self._n:
            several = "" if self._is_file else f"{self._n:,} picture{'s' * (self._n > 1)} in "
            remark(f"convoy: drawn: {several}{printable(str(self._place))}")

    def _name_of(self, found: Found) -> str:
        """Whatever the images' folders are, no two have the same."""
        stem = "stdin" if found.name == STDIN else Path(found.name).stem
        name, n = stem, 1
        while name in self._taken:
            n += 1
            name = f"{stem}-{n}"
        self._taken.add(name)
        return f"{name}{_ENDING}"


def check_place(images: Sequence[str], watch: Path | None, draw: Path) -> None:
    """Refuse a place for pictures that is too small, or where a picture would take an image's place or be taken for one.

    Args:
        images: The images and folders of images that are read, as they were named.
        watch: The folder that is watched.
        draw: A file, or a folder that may not be there yet.

    Raises:
        UsageError: click's; says what to choose instead.
    """
    if _is_for_one(draw):
        _check_file(images, watch, draw)
    elif draw.exists() and not draw.is_dir():
        raise click.UsageError(f"--draw {draw}: expected a .png file or a folder, found a file of another kind.")
    elif draw.suffix[1:2].isalpha() and not draw.is_dir():
        raise click.UsageError(
            f"--draw {draw}: drawings are PNG files: name a .png file, or a folder; make one whose name ends with {draw.suffix} "
            "first."
        )
    else:
        _check_folder(images, watch, draw)


def _check_file(images: Sequence[str], watch: Path | None, draw: Path) -> None:
    if len(images) != 1 or watch is not None or Path(images[0]).is_dir():
        raise click.UsageError(f"--draw {draw} is for one image; name a folder for several.")
    if draw.exists() and Path(images[0]).exists() and draw.samefile(images[0]):
        raise click.UsageError(f"--draw {draw}: expected another file than the image itself.")
    if not _is_free(draw):
        raise click.UsageError(f"--draw {draw}: {_OTHER_FILE}")


def _check_folder(images: Sequence[str], watch: Path | None, draw: Path) -> None:
    place = _real(draw)
    if watch is not None and place.is_relative_to(_real(watch)):
        raise click.UsageError(f"--draw {draw}: lies in {watch}, which is watched: its pictures would be read in their turn.")
    for image in images:
        if image == STDIN:
            continue
        real = _real(image)
        if real.is_dir():
            if place.is_relative_to(real):
                raise click.UsageError(
                    f"--draw {draw}: expected a folder outside of {image}, whose images are read: pictures would take their places "
                    "or be taken for images. Choose another folder."
                )
        elif real.parent == place and real.name.endswith(_ENDING):
            raise click.UsageError(
                f"--draw {draw}: {image} lies there and is named as pictures are: one could take its place, or it is one. "
                "Choose another folder, or leave that file out."
            )


def _is_for_one(place: Path) -> bool:
    return place.suffix.lower() == _SUFFIX and not place.is_dir()


def _real(path: str | Path) -> Path:
    """Where links lead to; unlike ``Path.resolve`` it takes links that lead in a circle."""
    return Path(os.path.realpath(path))


def _is_free(path: Path) -> bool:
    """Whether nothing but an older picture is lost where one is written; what cannot be read is not known to be one."""
    if not path.is_file():
        return True
    try:
        with path.open("rb") as file:
            start = file.read(_MARKED_BYTES)
    except OSError:
        return False
    return not start or _MARK in start


def _save(picture: Image, path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    mark = PngInfo()
    mark.add_text("Software", _SOFTWARE)
    picture.save(path, "PNG", pnginfo=mark)
