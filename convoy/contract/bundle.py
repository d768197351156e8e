"""The folder of files that an export makes and that a deployed version keeps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from convoy.contract.agreement import Agreement, compare, compare_values
from convoy.contract.errors import ContractError, DigestMismatchError, ValidationFailedError
from convoy.contract.files import sha256_file
from convoy.contract.goldens import Goldens
from convoy.contract.manifest import Manifest
from convoy.contract.validation import ValidationReport

MODEL_FILE: Final = "model.onnx"
MANIFEST_FILE: Final = "manifest.json"
VALIDATION_FILE: Final = "validation.json"
GOLDENS_FILE: Final = "goldens.npz"
BUNDLE_FILES: Final = (MODEL_FILE, MANIFEST_FILE, VALIDATION_FILE, GOLDENS_FILE)


@dataclass(frozen=True)
class Bundle:
    """``model.onnx``, ``manifest.json``, ``validation.json`` and ``goldens.npz`` in one folder.

    Attributes:
        folder: Where they are.
        manifest: The manifest, read and checked.
        report: The validation report, read and checked.
    """

    folder: Path
    manifest: Manifest
    report: ValidationReport

    @property
    def model_path(self) -> Path:
        """The ONNX file."""
        return self.folder / MODEL_FILE

    @classmethod
    def seal(cls, folder: Path, manifest: Manifest, report: ValidationReport) -> Bundle:
        """Write manifest and report beside ``model.onnx`` and ``goldens.npz``, each naming the digests of the others.

        Args:
            folder: Holds the model and the goldens.
            manifest: What the model is; its digests of files are filled in.
            report: What was checked; its digests of files are filled in.

        Returns:
            The bundle, read back and checked.

        Raises:
            ContractError: The model or the goldens are missing.
        """
        digests = {"model_sha256": sha256_file(folder / MODEL_FILE), "goldens_sha256": sha256_file(folder / GOLDENS_FILE)}
        named = manifest.model_copy(update=digests)
        sealed = report.model_copy(update={**digests, "manifest_sha256": Manifest.digest(named.to_bytes())})
        sealed.save(folder / VALIDATION_FILE)
        named.model_copy(update={"validation_sha256": sha256_file(folder / VALIDATION_FILE)}).save(folder / MANIFEST_FILE)
        return cls.open(folder)

    def require_passed(self) -> None:
        """Raise where the gate did not pass, with what was expected and what was found.

        Raises:
            ValidationFailedError: The report's verdict is not ``passed``.
        """
        if self.report.verdict != "passed":
            raise ValidationFailedError(
                f"{self.folder}: validation {self.report.verdict}: {self.report.why()} Nothing but a passed export can be deployed."
            )

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Read the bundle in ``folder`` and check every digest.

        Raises:
            ContractError: A file is missing or damaged.
            DigestMismatchError: A file is not the one that the manifest or the report names.
        """
        if not folder.is_dir():
            raise ContractError(f"{folder}: expected a folder that `convoy export` made, found no folder.")
        missing = [name for name in BUNDLE_FILES if not (folder / name).is_file()]
        if missing:
            raise ContractError(
                f"{folder}: is no export, or not a whole one; missing: {', '.join(missing)}. `convoy export RUN` makes one."
            )
        manifest = Manifest.load(folder / MANIFEST_FILE)
        for name, expected in (
            (MODEL_FILE, manifest.model_sha256),
            (GOLDENS_FILE, manifest.goldens_sha256),
            (VALIDATION_FILE, manifest.validation_sha256),
        ):
            _check_digest(folder / name, expected, MANIFEST_FILE)
        report = ValidationReport.load(folder / VALIDATION_FILE)
        _check(
            folder / MANIFEST_FILE, Manifest.digest((folder / MANIFEST_FILE).read_bytes()), report.manifest_sha256, VALIDATION_FILE
        )
        _check_digest(folder / MODEL_FILE, report.model_sha256, VALIDATION_FILE)
        _check_digest(folder / GOLDENS_FILE, report.goldens_sha256, VALIDATION_FILE)
        return cls(folder, manifest, report)

    def goldens(self) -> Goldens:
        """The golden inputs with PyTorch's outputs.

        Raises:
            ContractError: They are damaged, or not of this model's shape.
        """
        goldens = Goldens.load(self.folder / GOLDENS_FILE)
        arrays = {**goldens.inputs, **goldens.outputs}
        for tensor in (*self.manifest.inputs, *self.manifest.outputs):
            found = arrays[tensor.name].shape[1:] if tensor.name in arrays else None
            if found is None or not _fits(found, tensor.dims):
                raise ContractError(
                    f"{self.folder / GOLDENS_FILE}: expected {tensor.name} {list(tensor.dims)}, as the manifest says, "
                    f"found {'none' if found is None else list(found)}."
                )
        return goldens

    def compare(self, output: str, expected: npt.NDArray[Any], actual: npt.NDArray[Any]) -> Agreement:
        """Compare one output with PyTorch's by the tolerance that the report holds it to; a classifier's by its decisions too.

        Args:
            output: Its name.
            expected: PyTorch's, a row for each image.
            actual: The thing under test, the same shape.

        Raises:
            ValueError: The shapes differ.
        """
        how = compare if self.manifest.task == "image-classification" else compare_values
        return how(expected, actual, self.report.tolerances[output])


def _fits(found: tuple[int, ...], dims: tuple[int, ...]) -> bool:
    return len(found) == len(dims) and all(dim in (-1, size) for size, dim in zip(found, dims, strict=True))


def _check_digest(path: Path, expected: str, source: str) -> None:
    _check(path, sha256_file(path), expected, source)


def _check(path: Path, actual: str, expected: str, source: str) -> None:
    if actual != expected:
        raise DigestMismatchError(
            f"{path}: {source} names SHA-256 {expected[:16]}..., found {actual[:16]}.... "
            "The file was changed or cut short after it was validated: run `convoy export` again, and deploy what it makes."
        )
