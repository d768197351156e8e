"""What an unfinished run leaves on disk, so that it can go on: written aside, flushed and renamed, or not at all.

::

    runs/lenet5-mnist-20251123-182403-5f0c.partial/
      start.json      Start: which run this is
      checkpoint.pt   where it stands; missing in its first seconds, when it starts again from the beginning
"""

from __future__ import annotations

import json
import pickle
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypeVar

import torch

from convoy.contract.errors import ContractError, TrainingError, UsageError
from convoy.contract.files import Document, new_file, sha256_file
from convoy.contract.manifest import Sha256
from convoy.training.loop.hardware import Hardware
from convoy.training.recipes.recipe import Recipe

PARTIAL_SUFFIX: Final = ".partial"
START_FILE: Final = "start.json"
RUN_FILE: Final = "run.json"
CHECKPOINT_FILE: Final = "checkpoint.pt"
EVERY_S: Final = 30.0
_FORM: Final = 1


class AnyStart(Document):
    """``start.json`` of any kind of run: which run it is that goes on.

    Attributes:
        schema_version: The version of this document's form.
        kind: What is trained; each kind has more to say.
        run_id: The run's name.
        seed: Of everything random.
        hardware: What it ran on.
    """

    schema_version: Literal[1] = 1
    kind: str
    run_id: str
    seed: int
    hardware: Hardware = Hardware()


S = TypeVar("S", bound=AnyStart)


class Start(AnyStart):
    """``start.json`` of a classifier's run.

    Attributes:
        recipe: What is trained, resolved.
        dataset_sha256: ``Dataset.sha256()``.
        weights: The file whose weights were taken over.
        skip_bad: Whether images that cannot be read were left out.
    """

    kind: Literal["classification"] = "classification"
    recipe: Recipe
    dataset_sha256: Sha256
    weights: str | None = None
    skip_bad: bool = False


def partial_of(run_folder: Path) -> Path:
    """Where the run that will be written to ``run_folder`` leaves what it goes on from."""
    return run_folder.with_name(run_folder.name + PARTIAL_SUFFIX)


def folder_of(partial: Path) -> Path:
    """Where the run that left ``partial`` will be written."""
    return partial.with_name(partial.name.removesuffix(PARTIAL_SUFFIX))


def find_partial(path: Path) -> Path:
    """The folder of an unfinished run.

    Args:
        path: That folder, a file in it, or the run folder that it would become.

    Raises:
        UsageError: There is none.
    """
    for folder in (path, path.parent, partial_of(path)):
        if folder.name.endswith(PARTIAL_SUFFIX) and (folder / START_FILE).is_file():
            return folder
    if any((folder / RUN_FILE).is_file() for folder in (path, path.parent)):
        raise UsageError(f"--resume {path}: this run has come to its end; there is nothing to go on with.")
    raise UsageError(
        f"--resume {path}: expected a run that was stopped before its end, such as runs/RUN{PARTIAL_SUFFIX} with {START_FILE} in "
        "it; found none. What was stopped before its first step may leave none: train again."
    )


def kind_of(partial: Path) -> str:
    """What the run trains that was stopped in this folder: ``AnyStart.kind``.

    Raises:
        ContractError: The file that says so is damaged.
    """
    path = partial / START_FILE
    try:
        return str(json.loads(path.read_text(encoding="utf-8")).get("kind", "classification"))
    except (OSError, ValueError, AttributeError) as error:
        raise ContractError(f"{path}: expected which run was stopped here, but it is damaged: {error}. Train again.") from error


def check_is_same(folder: Path, stopped: S, start: S) -> None:
    """Make sure that ``start`` is the run that was stopped in ``folder``; its name and its hardware may differ.

    Raises:
        UsageError: It is another: of another recipe, seed or data.
    """
    differing = _differences(stopped.model_dump(mode="json"), start.model_dump(mode="json"))
    if differing:
        raise UsageError(
            f"{folder}: another run was stopped here; it cannot go on with {'; '.join(differing)}. "
            "Give what it was started with, or train anew without --resume."
        )


class Checkpoints:
    """Keeps the newest state of one run.

    Attributes:
        folder: Where; its name ends with ``PARTIAL_SUFFIX``.
    """

    def __init__(self, folder: Path, *, every_s: float = EVERY_S) -> None:
        """Keep it in ``folder``, which is made on demand, with a new checkpoint every ``every_s`` seconds."""
        self.folder = folder
        self._every_s = every_s
        self._written = time.monotonic()
        self._start_sha256 = ""

    def begin(self, start: S) -> S:
        """Note which run this is, or make sure that it is the one that was stopped here.

        Returns:
            ``start``, or that of the run that was stopped: its ``run_id`` is kept.

        Raises:
            UsageError: It is another: of another recipe, seed or data.
            OSError: Nothing can be written there.
        """
        path = self.folder / START_FILE
        if path.exists():
            stopped = type(start).load(path)
            check_is_same(self.folder, stopped, start)
            start = stopped
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            start.save(path)
        self._start_sha256 = sha256_file(path)
        self._written = time.monotonic()
        return start

    def is_due(self) -> bool:
        """Whether the last checkpoint is old enough."""
        return time.monotonic() - self._written >= self._every_s

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint by ``state``: tensors, numbers, strings, and lists and dicts of them.

        Raises:
            TrainingError: The disk is full or may not be written; the checkpoint before this one is whole.
        """
        path = self.folder / CHECKPOINT_FILE
        try:
            with new_file(path) as file:
                witness = _Witness(file)
                try:
                    torch.save({"form": _FORM, "start_sha256": self._start_sha256, "state": dict(state)}, witness)  # type: ignore[arg-type]
                except RuntimeError as error:  # torch's writer says that a write failed, and not why
                    raise witness.error or error from error
        except OSError as error:
            kept = "the one before it is whole" if path.exists() else "there is none before it"
            raise TrainingError(
                f"{path}: the checkpoint cannot be written ({error.strerror or error}); {kept}. "
                f"Make room, then: convoy train --resume {self.folder}"
            ) from error
        self._written = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The state that the run goes on from, on the CPU; None where it begins.

        Raises:
            ContractError: It is damaged, of another version, or of another run.
        """
        path = self.folder / CHECKPOINT_FILE
        if not path.exists():
            return None
        try:
            document = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, ValueError, EOFError, KeyError, OSError, pickle.UnpicklingError) as error:
            raise ContractError(f"{path}: expected a checkpoint of `convoy train`, but it is damaged: {error}") from error
        if not isinstance(document, dict) or document.get("form") != _FORM:
            raise ContractError(f"{path}: expected a checkpoint of this version of Convoy. Train again.")
        if document["start_sha256"] != self._start_sha256:
            raise ContractError(f"{path}: it belongs to another run than {START_FILE} beside it. Train again.")
        state: dict[str, Any] = document["state"]
        return state

    def remove(self) -> None:
        """The run is whole elsewhere: nothing goes on from here any more."""
        shutil.rmtree(self.folder, ignore_errors=True)


class _Witness:
    """A file that remembers why a write failed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _differences(stopped: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for name, value in stopped.items():
        other = now.get(name)
        if name in ("run_id", "hardware") or value == other:
            continue
        if isinstance(value, dict) and isinstance(other, dict):
            found += _differences(value, other, f"{prefix}{name}.")
        elif name == "dataset_sha256":
            if stopped.get("seed") == now.get("seed"):  # another seed splits the same images otherwise
                found.append("other data (images, labels or splits differ)")
        elif isinstance(value, str) and "\n" in value:
            found.append(f"another {name}")
        else:
            found.append(f"{prefix.removeprefix('recipe.')}{name}={other} instead of {value}")
    return found
