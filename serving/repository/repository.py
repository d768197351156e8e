"""Deploy, roll back, list: every change to a repository is one rename, and a crash leaves the old version served."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convoy.contract.bundle import BUNDLE_FILES, MANIFEST_FILE, Bundle
from convoy.contract.errors import (
    ContractError,
    IncompatibleModelError,
    NotValidatedError,
    RepositoryError,
)
from convoy.contract.files import ASIDE_SUFFIX, new_folder, write_bytes
from convoy.contract.manifest import Manifest, ModelInterface, check_model_name
from convoy.contract.signature import SIGNATURE_FILE
from convoy.serving.repository.config import (
    CONFIG_FILE,
    LABELS_FILE,
    first_config,
    interface_of,
    load_config,
    previous_version,
    served_version,
    update_config,
)
from convoy.serving.repository.configuration import ConfigText


@dataclass(frozen=True)
class VersionEntry:
    """A version folder.

    Attributes:
        version: Its number.
        manifest: Its manifest; None where it has none that can be read.
        problem: What is wrong with it; empty where nothing is.
    """

    version: int
    manifest: Manifest | None
    problem: str


@dataclass(frozen=True)
class ModelEntry:
    """A model of the repository.

    Attributes:
        name: Its name.
        served: The version that its configuration names; None where it leaves the choice to Triton, cannot be read or is not there.
        versions: Its versions, oldest first.
        problem: What is wrong with the model as a whole; empty where nothing is.
    """

    name: str
    served: int | None
    versions: tuple[VersionEntry, ...]
    problem: str


@dataclass(frozen=True)
class Deployment:
    """What a deployment or a rollback did.

    Attributes:
        model_name: The model.
        version: The version that is served now.
        previous: The version that was served before; None for a new model.
        changed: False where the version was served already.
    """

    model_name: str
    version: int
    previous: int | None
    changed: bool


class Repository:
    """A Triton model repository.

    Args:
        root: Its folder. Deploying creates it; everything else needs it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def model_folder(self, name: str) -> Path:
        """The folder of a model.

        Raises:
            UsageError: ``name`` is no model name.
        """
        return self.root / check_model_name(name)

    def version_folder(self, name: str, version: int) -> Path:
        """The folder of a version."""
        return self.model_folder(name) / str(version)

    def deploy(self, bundle: Bundle, name: str | None = None) -> Deployment:
        """Write a bundle as the model's next version and make it the one that is served.

        The version is written aside, checked, flushed to disk and renamed into place; then ``config.pbtxt`` is replaced in one
        step, which is the moment at which the new version counts. Deploying what is served already changes nothing.

        Args:
            bundle: A validated export.
            name: The name to serve it under; the manifest's where None.

        Raises:
            NotValidatedError: The bundle's report is not ``passed``.
            DigestMismatchError: A file of the bundle is not the one that was validated.
            IncompatibleModelError: Labels, image rule, dims, datatypes, or of a reader more than the operating point, differ from
                what the name stands for.
            RepositoryError: The repository is not in order.
        """
        bundle = Bundle.open(bundle.folder)  # digests are checked now, not when the caller opened it
        if bundle.report.verdict != "passed":
            raise NotValidatedError(
                f"{bundle.folder}: expected a report whose verdict is 'passed', found {bundle.report.verdict!r}. "
                f"{bundle.report.why()} Nothing unvalidated is served."
            )
        name = check_model_name(name or bundle.manifest.model_name)
        self.root.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._clear_staging(name)
            if not (self.model_folder(name) / CONFIG_FILE).exists():
                return self._deploy_new(bundle, name)
            return self._deploy_next(bundle, name)

    def rollback(self, name: str, to: int | None = None) -> Deployment:
        """Serve an older version again, with the configuration that it was deployed with.

        Args:
            name: The model.
            to: The version; the one that was served before the current one where None.

        Raises:
            RepositoryError: There is no such model or version, nothing to go back to, or the version's files are damaged.
        """
        self._check_root()
        with self._locked():
            folder = self._existing(name)
            current = load_config(folder / CONFIG_FILE)
            served = served_version(current)
            target = previous_version(current) if to is None else to
            if target is None:
                raise RepositoryError(f"{name}: version {served} has no predecessor to go back to; name one with --to.")
            if target == served:
                return Deployment(name, target, served, changed=False)
            if target not in self._numbers(folder):
                have = ", ".join(map(str, self._numbers(folder))) or "none"
                raise RepositoryError(f"{name}: expected version {target}, found {have}.")
            version_folder = folder / str(target)
            Bundle.open(version_folder)
            config = ConfigText.load(version_folder / CONFIG_FILE)
            _check_same_interface(name, interface_of(current, folder), interface_of(config.message, version_folder))
            write_bytes(folder / CONFIG_FILE, config.to_bytes())
            return Deployment(name, target, served, changed=True)

    def configure(self, name: str, expected: bytes, config: bytes) -> None:
        """Replace a model's configuration in one step, unless somebody else has changed it in the meantime.

        Args:
            name: The model.
            expected: The bytes of its ``config.pbtxt`` that ``config`` was made from.
            config: The new bytes.

        Raises:
            RepositoryError: There is no such model, or its configuration is another by now.
        """
        self._check_root()
        with self._locked():
            path = self._existing(name) / CONFIG_FILE
            if path.read_bytes() != expected:
                raise RepositoryError(f"{path}: has been changed since it was read; nothing was written. Run the command again.")
            write_bytes(path, config)

    def models(self, *, check: bool = False) -> list[ModelEntry]:
        """The models, by name.

        Args:
            check: Verify every digest too, not only what can be read at a glance.

        Raises:
            RepositoryError: There is no repository.
        """
        self._check_root()
        names = sorted(entry.name for entry in self.root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        return [self._entry(name, check=check) for name in names]

    def _entry(self, name: str, *, check: bool) -> ModelEntry:
        folder = self.root / name
        versions = tuple(_version_entry(folder / str(number), number, check=check) for number in self._numbers(folder))
        if versions and not (folder / CONFIG_FILE).exists():  # Triton, or its backend, completes it from the model's file
            return ModelEntry(name, None, versions, "")
        try:
            config = load_config(folder / CONFIG_FILE)
            served, problem = served_version(config), ""
            if config.name and config.name != name:
                problem = f"{CONFIG_FILE} names the model {config.name!r}"
            elif served is not None and served not in {entry.version for entry in versions}:
                problem = f"{CONFIG_FILE} names version {served}, which is not there"
        except RepositoryError as error:
            served, problem = None, str(error)
        return ModelEntry(name, served, versions, problem)

    def _deploy_new(self, bundle: Bundle, name: str) -> Deployment:
        """The whole model appears in one rename."""
        folder = self.model_folder(name)
        if folder.exists():
            if any(entry for entry in folder.iterdir() if not entry.name.startswith(".")):
                raise RepositoryError(
                    f"{folder}: expected a model with a {CONFIG_FILE}, found files without one: move the folder away first."
                )
            shutil.rmtree(folder)
        config = first_config(bundle.manifest, name, 1).to_bytes()
        with new_folder(folder) as staging:
            _write_version(bundle, staging / "1", config)
            write_bytes(staging / LABELS_FILE, _labels(bundle.manifest))
            write_bytes(staging / CONFIG_FILE, config)
        return Deployment(name, 1, None, changed=True)

    def _deploy_next(self, bundle: Bundle, name: str) -> Deployment:
        folder = self.model_folder(name)
        current = ConfigText.load(folder / CONFIG_FILE)
        served = served_version(current.message)
        _check_same_interface(name, interface_of(current.message, folder), bundle.manifest.interface)
        numbers = self._numbers(folder)
        digest = (bundle.folder / MANIFEST_FILE).read_bytes()
        if served in numbers and _holds(folder / str(served), digest):
            return Deployment(name, int(served or 0), served, changed=False)
        # A deployment that died between its two renames left its version complete but not served: take it up.
        waiting = [number for number in numbers if number > (served or 0) and _holds(folder / str(number), digest)]
        version = waiting[-1] if waiting else max(numbers, default=0) + 1
        before = Manifest.load(folder / str(served) / MANIFEST_FILE) if served in numbers else bundle.manifest
        config = update_config(current, before, bundle.manifest, version).to_bytes()
        if waiting:
            write_bytes(folder / str(version) / CONFIG_FILE, config)
        else:
            with new_folder(folder / str(version)) as staging:
                _write_version(bundle, staging, config)
        write_bytes(folder / CONFIG_FILE, config)
        return Deployment(name, version, served, changed=True)

    def _clear_staging(self, name: str) -> None:
        """Remove what deployments that died have left; the lock says that none is at work."""
        for parent in (self.root, self.root / name):
            for entry in parent.glob(f".*{ASIDE_SUFFIX}"):
                if entry.is_dir():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One change at a time: an advisory lock on the repository's folder itself, so that no lock file stays behind."""
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RepositoryError(f"{self.root}: another deployment is at work here; try again when it is done.") from error
            yield
        finally:
            os.close(descriptor)

    def _check_root(self) -> None:
        if not self.root.is_dir():
            raise RepositoryError(f"{self.root}: no such model repository; `convoy deploy` makes one, --repository names another.")
        if (self.root / CONFIG_FILE).is_file():
            raise RepositoryError(
                f"{self.root} is a model, not a repository of models (it has a {CONFIG_FILE}). Give the folder above it: "
                f"{self.root.parent}"
            )

    def _existing(self, name: str) -> Path:
        folder = self.model_folder(name)
        if not (folder / CONFIG_FILE).is_file():
            if folder.is_dir():
                raise RepositoryError(
                    f"{folder}: expected {CONFIG_FILE}, found none: a server completes this model's configuration from its file. "
                    "`convoy export` and `convoy deploy` make one that can be tuned and rolled back."
                )
            have = ", ".join(entry.name for entry in self.models()) or "none"
            raise RepositoryError(f"{self.root}: expected the model {name!r}, found {have}.")
        return folder

    @staticmethod
    def _numbers(folder: Path) -> list[int]:
        """Version numbers, in order: folders named by a positive decimal number, as Triton reads them."""
        return sorted(
            int(entry.name)
            for entry in folder.iterdir()
            if entry.is_dir() and entry.name.isascii() and entry.name.isdigit() and not entry.name.startswith("0")
        )


def _write_version(bundle: Bundle, folder: Path, config: bytes) -> None:
    folder.mkdir(exist_ok=True)
    for file_name in BUNDLE_FILES:
        shutil.copyfile(bundle.folder / file_name, folder / file_name)
    if (bundle.folder / SIGNATURE_FILE).is_file():
        shutil.copyfile(bundle.folder / SIGNATURE_FILE, folder / SIGNATURE_FILE)
    write_bytes(folder / CONFIG_FILE, config)
    Bundle.open(folder)  # the copies are what was validated, or this raises


def _holds(folder: Path, manifest: bytes) -> bool:
    """Whether a version folder holds the bundle with this very manifest, whole."""
    try:
        Bundle.open(folder)
        return (folder / MANIFEST_FILE).read_bytes() == manifest
    except ContractError:
        return False


def _version_entry(folder: Path, version: int, *, check: bool) -> VersionEntry:
    if not check and not (folder / MANIFEST_FILE).exists():
        return VersionEntry(version, None, "")  # not deployed by Convoy, or not whole: a check tells
    try:
        manifest = Bundle.open(folder).manifest if check else Manifest.load(folder / MANIFEST_FILE)
    except ContractError as error:
        return VersionEntry(version, None, str(error))
    return VersionEntry(version, manifest, "")


def _labels(manifest: Manifest) -> bytes:
    return ("\n".join(manifest.labels) + "\n").encode()


def _check_same_interface(name: str, current: ModelInterface | None, new: ModelInterface | None) -> None:
    if current is None or new is None:
        raise IncompatibleModelError(
            f"{name}: a model of this name that Convoy did not deploy stands in the repository: deploy under another --name."
        )
    if changed := current.changes(new):
        field = changed[0]
        raise IncompatibleModelError(
            f"{name}: {' and '.join(changed)} would change under one name, and clients rely on them "
            f"({field}: {_short(getattr(current, field))} is served, {_short(getattr(new, field))} was given). "
            "Deploy under another --name."
        )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."
