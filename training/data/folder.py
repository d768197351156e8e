"""A person's own images: a folder with one sub-folder a class, with folders of splits, or with lists."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from convoy.contract.errors import DataError, ImageError
from convoy.contract.image import ImageSpec, open_image
from convoy.training.data.dataset import Dataset, Images, Split, Subset
from convoy.training.data.listing import Listing, read_listing
from convoy.training.data.photographs import Photographs, Progress
from convoy.training.data.tree import names

IMAGE_SIZE_PX: Final = 224
"""Of images that differ in size; what networks for ImageNet take."""

_N_NAMED: Final = 20  # damaged files that an error names


def load_folder(
    root: Path,
    *,
    seed: int = 0,
    validation_fraction: float = 0.1,
    image_size_px: int | None = None,
    skip_bad: bool = False,
    max_bytes: int | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """The images of a folder; ``docs/data.md`` shows how it may be laid out.

    Every file is read and decoded once before this returns. Images that fit into ``max_bytes`` together become arrays; of more,
    as many as fit are kept decoded, and the others are decoded when they are asked for.

    Args:
        root: The folder.
        seed: Which images make the validation split, where the folder does not say.
        validation_fraction: Their share.
        image_size_px: Height and width to which images are brought; None: their own where all are squares of one size of at
            most 224, else 224.
        skip_bad: Whether files that cannot be read are left out; they are named in ``Dataset.skipped``.
        max_bytes: What decoded pixels may take; None: a quarter of the memory that is available.
        progress: Is told how many images are decoded.

    Raises:
        DataError: The folder is laid out otherwise, a class has too few images, or a file cannot be read and is not to be
            skipped.
    """
    listing = read_listing(root)
    divided = listing.divide(seed=seed, validation_fraction=validation_fraction)
    order = np.concatenate([divided[name] for name in ("train", "validation", "test")])  # so that splits lie in one piece
    paths = [listing.paths[index] for index in order]
    image = _describe(paths, image_size_px)
    photographs = Photographs(paths, image, max_bytes=max_bytes, progress=progress)
    skipped = tuple(_reasons(root, paths, photographs.damaged))
    if skipped and not skip_bad:
        raise DataError(_refusal(root, skipped, len(paths)))

    good = np.setdiff1d(np.arange(len(order)), list(photographs.damaged))
    remarks = [*listing.remarks]
    if skipped:
        remarks.append(f"images that cannot be read and were left out: {len(skipped):,} of {len(paths):,}.")
    splits = _cut(listing, photographs, order[good], {name: len(indices) for name, indices in divided.items()}, good)
    _check_classes(root, listing.classes, splits["train"])
    remarks += _copies(splits, listing.classes)
    return Dataset(name=root.resolve().name, labels=listing.classes, image=image, skipped=skipped, remarks=tuple(remarks), **splits)


def _cut(
    listing: Listing, photographs: Photographs, order: npt.NDArray[np.intp], sizes: Mapping[str, int], good: npt.NDArray[np.intp]
) -> dict[str, Split]:
    """The splits, each a piece of ``photographs``.

    Args:
        listing: What the folder holds.
        photographs: The images that can be read, of the training split first, then those of validation, then those of test.
        order: Their places in ``listing``.
        sizes: How many images each split has, those that cannot be read among them.
        good: The places of those that can be read among all.
    """
    everything: Images = photographs if photographs.in_memory is None else photographs.in_memory
    ends = np.cumsum([sizes[name] for name in ("train", "validation", "test")])
    starts = np.searchsorted(good, [0, *ends])
    splits = {}
    for name, start, stop in zip(("train", "validation", "test"), starts[:-1], starts[1:], strict=True):
        piece = slice(start, stop)
        splits[name] = Split(
            everything[piece] if isinstance(everything, np.ndarray) else Subset(everything, np.arange(start, stop)),
            listing.labels[order[piece]],
            tuple(_relative(listing.root, path) for path in photographs.paths[piece]),
            photographs.file_sha256[piece],
        )
    return splits


@dataclass
class _Look:
    """What images have in common, as far as they were looked at."""

    grey: bool = True
    size: tuple[int, int] | None = None
    one_size: bool = True

    def at(self, path: Path) -> None:
        """Look at one more; mostly its header is enough."""
        try:
            with Image.open(path) as opened:
                mode, size = opened.mode, opened.size
            if self.grey and not mode.startswith(("1", "L", "I")):
                pixels = np.asarray(open_image(path).convert("RGB"))
                self.grey = bool((pixels[..., :1] == pixels[..., 1:]).all())
        except Exception:  # noqa: BLE001  PIL raises what it likes; whatever cannot be read is listed later, by name
            return
        self.one_size = self.one_size and self.size in (None, size) and size[0] == size[1] <= IMAGE_SIZE_PX
        self.size = size


def _describe(paths: Sequence[Path], image_size_px: int | None) -> ImageSpec:
    """How the images of a folder become pixels.

    One channel where every image is grey, also those that are stored in colour; else three. Grey images, which are mostly of
    signs, are fitted whole into the square, as those of the digits are. Of photographs the square in the middle is taken, as
    networks for ImageNet are trained and measured.
    """
    look = _Look(one_size=image_size_px is None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # oddities of files that can be read all the same
        for path in paths:
            look.at(path)
            if not look.grey and not look.one_size:
                break  # mostly at the first photograph
    size_px = image_size_px or (look.size[0] if look.one_size and look.size else IMAGE_SIZE_PX)
    return ImageSpec(height_px=size_px, width_px=size_px, channels=1 if look.grey else 3, resize="fit" if look.grey else "crop")


def _reasons(root: Path, paths: Sequence[Path], damaged: Mapping[int, ImageError]) -> Iterator[str]:
    """A line for each file that cannot be read: its path from ``root`` and why."""
    for index, error in damaged.items():
        reason = str(error).removeprefix(f"{paths[index]}: ").removesuffix(".")
        yield f"{_relative(root, paths[index])}: {' '.join(reason.split())}"


def _refusal(root: Path, reasons: Sequence[str], n: int) -> str:
    more = [f"... and {len(reasons) - _N_NAMED:,} more"] if len(reasons) > _N_NAMED else []
    shown = "".join(f"\n  {line}" for line in [*reasons[:_N_NAMED], *more])
    return (
        f"{root}: {len(reasons):,} of {n:,} images cannot be read:{shown}\n"
        "Repair or remove them, or leave them out with --skip-bad (in Python: skip_bad=True)."
    )


def _check_classes(root: Path, classes: Sequence[str], train: Split) -> None:
    gone = [name for index, name in enumerate(classes) if index not in train.labels]
    if gone:
        raise DataError(
            f"{root}: expected training images of each class; of {names(gone)} none can be read. Repair them, or remove the class."
        )


def _copies(splits: Mapping[str, Split], classes: Sequence[str]) -> Iterator[str]:
    """What is wrong with files of the same content: in two splits, or in two classes."""
    places: dict[bytes, list[tuple[str, str, str]]] = defaultdict(list)
    for name, split in splits.items():
        if split.file_sha256 is None:
            continue
        for digest, file, label in zip(split.file_sha256, split.files, split.labels, strict=True):
            places[digest.tobytes()].append((name, file, classes[label]))
    copies = [group for group in places.values() if len(group) > 1]
    for name in ("validation", "test"):
        leaked = [group for group in copies if {name, "train"} <= {split for split, _, _ in group}]
        if leaked:
            n = sum(split == name for group in leaked for split, _, _ in group)
            pairs = names(" = ".join(file for _, file, _ in group) for group in leaked)
            yield f"copies of training images in the {name} split, which make its error look too small: {n:,} ({pairs})."
    torn = [group for group in copies if len({label for _, _, label in group}) > 1]
    if torn:
        pairs = names(" = ".join(file for _, file, _ in group) for group in torn)
        yield f"images that are in more than one class: {len(torn):,} ({pairs})."


def _relative(root: Path, path: Path) -> str:
    """The path from ``root``, as text that can be printed and stored."""
    return names([(path.relative_to(root) if path.is_relative_to(root) else path).as_posix()])
