"""A model of a repository, read as far as it can be, with what was found about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from convoy.contract.errors import RepositoryError
from convoy.serving.repository.configuration.model_config import ENSEMBLE, ModelConfig
from convoy.serving.repository.configuration.part import Severity, Violation
from convoy.serving.repository.configuration.schema import CONFIG
from convoy.serving.repository.configuration.text import CONFIG_FILE, ConfigText, Position, read_text
from convoy.serving.repository.configuration.version import ModelVersionPolicy
from convoy.serving.repository.lint.problem import Problem
from convoy.serving.repository.lint.syntax import faults

_FILES: Final = {
    "tensorrt": "model.plan", "onnxruntime": "model.onnx", "openvino": "model.xml", "pytorch": "model.pt", "python": "model.py",
}  # fmt: skip
"""The backends that Triton finds by the name of the file, in the order in which it looks."""

_PLATFORMS: Final = {"tensorrt_plan": "tensorrt", "onnxruntime_onnx": "onnxruntime", "pytorch_libtorch": "pytorch"}


@dataclass
class Subject:
    """A model.

    Attributes:
        folder: Its folder.
        text: Its ``config.pbtxt``; None where there is none, or one that cannot be read.
        message: What it says, with what Triton fills in by the names of files; None where it cannot be read.
        versions: The numbers of its version folders.
        problems: What was found.
    """

    folder: Path
    text: ConfigText | None = None
    message: Any = None
    versions: tuple[int, ...] = ()
    problems: list[Problem] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The model's name: its folder's."""
        return self.folder.name

    @property
    def config_path(self) -> Path:
        """Its ``config.pbtxt``."""
        return self.folder / CONFIG_FILE

    @property
    def served(self) -> tuple[int, ...]:
        """The versions that its policy chooses of those that are there."""
        if self.message is None:
            return ()
        policy = self.typed.version_policy
        return (policy if policy is not None else ModelVersionPolicy()).chosen(self.versions)

    @property
    def typed(self) -> ModelConfig:
        """The configuration, typed."""
        return ModelConfig.from_message(self.message)

    @property
    def is_ensemble(self) -> bool:
        """Whether it is an ensemble of other models."""
        return self.message is not None and bool(self.message.platform == ENSEMBLE)

    @property
    def failed(self) -> bool:
        """Whether a server refuses it, as far as is known."""
        return any(problem.severity == "error" for problem in self.problems)

    def report(self, severity: Severity, message: str, *, at: str | Path | Position = "") -> None:
        """Note a problem.

        Args:
            severity: How bad it is.
            message: What it is.
            at: A field of the configuration, a place in its text, or another file.
        """
        if isinstance(at, Path):
            found = Problem(self.name, at, None, None, severity, message)
        elif isinstance(at, Position):
            found = Problem(self.name, self.config_path, at.line, at.column, severity, message)
        elif self.text is None:
            found = Problem(self.name, self.folder, None, None, severity, message)
        else:
            found = Problem(self.name, self.config_path, *self.text.position(at), severity, message)
        if found not in self.problems:
            self.problems.append(found)

    def take(self, violation: Violation) -> None:
        """Note the breach of a rule."""
        self.report(violation.severity, violation.message, at=violation.path)

    @classmethod
    def read(cls, folder: Path) -> Subject:
        """Read a model's folder."""
        subject = cls(folder, versions=tuple(sorted(int(path.name) for path in folder.iterdir() if _is_version(path))))
        if subject.config_path.exists():
            try:
                written = read_text(subject.config_path)
            except RepositoryError as error:
                subject.report("error", str(error).removeprefix(f"{subject.config_path}: "), at=subject.config_path)
                return subject
            found = faults(written)
            for fault in found:
                subject.report("error", fault.message, at=fault.position)
            if found:
                return subject
            subject.text = ConfigText(written, str(subject.config_path))
        subject.message = CONFIG()
        if subject.text is not None:
            subject.message.CopyFrom(subject.text.message)
        _fill_in(subject.message, folder)
        return subject


def _is_version(path: Path) -> bool:
    """Folders named by a number without a leading zero, as Triton reads them."""
    return path.name.isascii() and path.name.isdigit() and not path.name.startswith("0") and path.is_dir()


def _fill_in(message: Any, folder: Path) -> None:
    """Name, backend, platform and file, as Triton fills them in before it asks a backend."""
    message.name = message.name or folder.name
    if not message.backend and message.platform != ENSEMBLE:
        message.backend = _PLATFORMS.get(message.platform) or _backend_by_file(message, folder)
    if message.backend == "onnxruntime" and not message.platform:
        message.platform = "onnxruntime_onnx"
    if not message.default_model_filename:
        message.default_model_filename = _FILES.get(message.backend, "")


def _backend_by_file(message: Any, folder: Path) -> str:
    if message.default_model_filename:
        return next((backend for backend, name in _FILES.items() if name == message.default_model_filename), "")
    if message.platform:
        return ""
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    present = {path.name for path in folders[0].iterdir()} if folders else set()
    found = next((backend for backend, name in _FILES.items() if name in present), "")
    return found or folder.name.partition(".")[2]  # of "model.identity" the backend is "identity"
