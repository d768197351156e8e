"""Which images a folder holds, of which class, in which split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import DataError
from convoy.training.data.dataset import draw_stratified
from convoy.training.data.lists import SPLIT_NAMES, Places, class_names, find_lists, read_list
from convoy.training.data.tree import Tree, names, natural_key, read_tree, suffixes

TEST_FRACTION: Final = 0.2
_TEST_SEED: Final = 1797  # a constant: the test split is the same whatever the training's seed


@dataclass(frozen=True)
class Listing:
    """The images of a folder, none of them read yet.

    Attributes:
        root: The folder.
        classes: Their names, in natural order (``2`` before ``10``).
        paths: The files, in an order that is the same everywhere.
        labels: int64, shape (n,), indices into ``classes``.
        splits: Of each file the split that the folder gives it, ``train``, ``validation`` or ``test``; None where it gives none.
        remarks: What was left out, a sentence each.
    """

    root: Path
    classes: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: npt.NDArray[np.int64]
    splits: tuple[str | None, ...]
    remarks: tuple[str, ...]

    def divide(self, *, seed: int, validation_fraction: float) -> dict[str, npt.NDArray[np.intp]]:
        """Indices of the three splits: those that the folder gives; others are drawn, from its training images or from all.

        Drawn are equal shares of each class: a fifth for the test, which ``seed`` does not change, then ``validation_fraction``
        of the rest.

        Raises:
            DataError: A class has too few images for it.
        """
        given = {name: np.flatnonzero([split == name for split in self.splits]) for name in ("train", "validation", "test")}
        left = given["train"] if None not in self.splits else np.arange(len(self.paths))
        missing = [name for name in ("test", "validation") if len(given[name]) == 0]
        self._check_enough(left, missing)
        divided = dict(given)
        for name in missing:
            share, of = (TEST_FRACTION, _TEST_SEED) if name == "test" else (validation_fraction, seed)
            drawn, rest = draw_stratified(self.labels[left], share, np.random.default_rng(of), names=self.classes)
            divided[name], left = left[drawn], left[rest]
        divided["train"] = left
        return divided

    def _check_enough(self, left: npt.NDArray[np.intp], drawn: Sequence[str]) -> None:
        counts = np.bincount(self.labels[left], minlength=len(self.classes))
        needed = 1 + len(drawn)
        few = [f"{name} ({n:,})" for name, n in zip(self.classes, counts, strict=True) if n < needed]
        if few:
            first = self.paths[int(np.flatnonzero(self.labels == int(np.argmax(counts < needed)))[0])]
            what = f"train, {', '.join(reversed(drawn))}" if drawn else "train"
            raise DataError(
                f"{self.root}: expected at least {needed} image{'s' * (needed > 1)} of each class for {what}, "
                f"found fewer of {names(few)}, such as {first}. Add images of it, or remove the class."
            )


def read_listing(root: Path) -> Listing:
    """See how a folder is laid out: lists, folders of splits, or folders of classes, the first that is there.

    Raises:
        DataError: It cannot be read, has no images, fewer than two classes, or a class without images.
    """
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        raise DataError(f"{root}: expected a folder with one sub-folder a class, found {found}.")
    tree = read_tree(root)
    if lists := find_lists(tree):
        return _from_lists(tree, lists)
    if not tree.images:
        found = f"{len(tree.others):,} other files ({suffixes(tree.others)})" if tree.others else "nothing"
        raise DataError(f"{root}: expected images (.jpg, .png, ...) in one sub-folder a class, found {found}.")
    if splits := _split_folders(tree):
        return _from_splits(tree, splits)
    return _from_classes(tree)


def _from_classes(tree: Tree) -> Listing:
    folders = tree.folders_in(tree.root)
    _check_not_empty(tree, folders)
    _check_several(tree, folders)
    paths = {folder.name: tree.below(folder) for folder in folders}
    stray = [path for path in tree.images if path.parent == tree.root]
    remarks = (f"images that were left out, since they are in the folder of no class: {names(path.name for path in stray)}.",)
    return _listing(tree, {None: paths}, (*tree.remarks(), *(remarks if stray else ())))


def _from_splits(tree: Tree, splits: Mapping[str, Path]) -> Listing:
    folders = tree.folders_in(splits["train"])
    _check_not_empty(tree, folders)
    _check_several(tree, folders)
    known = {folder.name for folder in folders}
    paths: dict[str | None, dict[str, tuple[Path, ...]]] = {}
    for split, home in splits.items():
        paths[split] = {folder.name: tree.below(folder) for folder in tree.folders_in(home)}
        unknown = [name for name, files in paths[split].items() if name not in known and files]
        if unknown:
            raise DataError(f"{home}: expected the classes of {splits['train']}, found others: {names(unknown)}.")
        if not any(paths[split].values()):
            raise DataError(f"{home}: expected images in one sub-folder a class, found none. Add some, or remove {home.name}.")
    used = {path for by_class in paths.values() for files in by_class.values() for path in files}
    stray = [path.relative_to(tree.root) for path in tree.images if path not in used]
    remarks = (f"images that were left out, since they are in the folder of no class: {names(stray)}.",)
    return _listing(tree, paths, (*tree.remarks(), *(remarks if stray else ())))


def _from_lists(tree: Tree, lists: Mapping[str, Path]) -> Listing:
    rows = [(split, name, label) for split, path in lists.items() for name, label in read_list(path)]
    places = Places(tree)
    found = [places.find(name) for _, name, _ in rows]
    written = [label for _, _, label in rows]
    called = class_names(written, found)
    order = [called[label] for label in sorted(called, key=natural_key)]  # a list's numbers keep their order
    if len(order) < 2:
        raise DataError(f"{lists['train']}: expected at least two classes, found {names(order)} alone.")
    _check_names(tree.root, order)
    index = {name: i for i, name in enumerate(order)}
    labels = np.array([index[called[label]] for label in written], dtype=np.int64)
    unused = len(set(tree.images) - set(found))
    remarks = (f"images that were left out, since they are in no list: {unused:,}.",) if unused else ()
    splits = tuple(split for split, _, _ in rows)
    return Listing(tree.root, tuple(order), tuple(found), labels, splits, (*tree.remarks(used=lists.values()), *remarks))


def _listing(tree: Tree, paths: Mapping[str | None, Mapping[str, Sequence[Path]]], remarks: tuple[str, ...]) -> Listing:
    classes = sorted({name for by_class in paths.values() for name, files in by_class.items() if files}, key=natural_key)
    _check_names(tree.root, classes)
    rows = [
        (path, index, split)
        for split, by_class in paths.items()
        for index, name in enumerate(classes)
        for path in by_class.get(name, ())
    ]
    labels = np.array([index for _, index, _ in rows], dtype=np.int64)
    return Listing(
        tree.root, tuple(classes), tuple(path for path, _, _ in rows), labels, tuple(split for _, _, split in rows), remarks
    )


def _split_folders(tree: Tree) -> dict[str, Path]:
    """The folders of splits: there is one for training, all its images are in sub-folders, and none but splits lie beside it."""
    found: dict[str, Path] = {}
    for folder in tree.folders_in(tree.root):
        split = SPLIT_NAMES.get(folder.name.lower())
        if split is None:
            if tree.below(folder):
                return {}  # a class that is called `train` among others
            continue
        if split in found:
            raise DataError(f"{tree.root}: expected one folder for {split}, found {found[split].name} and {folder.name}.")
        found[split] = folder
    train = found.get("train")
    if train is None or not tree.folders_in(train) or any(path.parent == train for path in tree.images):
        return {}
    return found


def _check_not_empty(tree: Tree, folders: Sequence[Path]) -> None:
    empty = [folder for folder in folders if not tree.below(folder)]
    if empty:
        others = [path for path in tree.others if path.is_relative_to(empty[0])]
        found = f"{len(others):,} other files ({suffixes(others)})" if others else "nothing"
        raise DataError(
            f"{tree.root}: expected images in the folder of each class, found {found} in {names(folder.name for folder in empty)}. "
            "Add images, or remove the folder."
        )


def _check_several(tree: Tree, folders: Sequence[Path]) -> None:
    if len(folders) > 1:
        return
    if not folders:
        raise DataError(
            f"{tree.root}: expected one sub-folder a class, found {len(tree.images):,} images and no sub-folders. "
            "Put the images of each class into a folder that has its name."
        )
    inner = [folder for folder in tree.folders_in(folders[0]) if tree.below(folder)]
    hint = f"Did you mean {folders[0]}?" if len(inner) > 1 else "Add a folder for each other class."
    raise DataError(f"{tree.root}: expected at least two classes, a sub-folder each, found {folders[0].name} alone. {hint}")


def _check_names(root: Path, classes: Sequence[str]) -> None:
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"{root}: expected class names in UTF-8, found {names([name])}. Rename the folder.") from None
        if any(mark in name for mark in "\r\n\0"):
            raise DataError(f"{root}: expected class names of one line, found {name!r}. Rename the folder.")
