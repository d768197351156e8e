"""What a server would refuse of a repository, found without starting one.

``lint(repository)`` reads every model as the server that ``convoy serve`` starts would: the text, the rules of ``ModelConfig``, the
files, the border of the ONNX file, the backend's options, and how ensembles hang together.

========================  ================================================================================================
module                    holds
========================  ================================================================================================
``problem``               ``Problem``: what is wrong, and where
``subject``               a model as far as it can be read, with what Triton fills in
``syntax``                unknown fields and names, all at once
``files``                 versions, models, labels, warm-up data
``onnx_file``, ``probe``  the borders of ONNX files, read in a process of its own
``backend``               what the backend would say
``sequence``              the rules of sequences
``ensemble``              the tensors between the steps of ensembles
========================  ================================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from convoy.contract.errors import RepositoryError
from convoy.contract.manifest import INTERFACE_PARAMETER
from convoy.serving.repository.lint import backend, ensemble, files, onnx_file
from convoy.serving.repository.lint.problem import Problem as Problem
from convoy.serving.repository.lint.sequence import sequence_rules
from convoy.serving.repository.lint.subject import Subject
from convoy.serving.repository.repository import ModelEntry, Repository


def lint(repository: Path, entries: Sequence[ModelEntry] | None = None) -> list[Problem]:
    """Everything that the server would refuse, or serve otherwise than it reads; ordered by model, file and line.

    ONNX files are opened by ONNX Runtime in a process of their own; where it is not installed, a warning says that they were not.

    Args:
        repository: The model repository.
        entries: What ``Repository(repository).models(check=True)`` gave, where the caller has asked already.

    Raises:
        RepositoryError: There is no such folder, or it cannot be read.
    """
    if not repository.is_dir():
        raise RepositoryError(f"{repository}: no such model repository; `convoy deploy` makes one, --repository names another.")
    subjects = [Subject.read(path) for path in sorted(repository.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    for subject in subjects:
        _check_alone(subject)
    _check_onnx(subjects)
    for subject in subjects:
        _check_completed(subject)
    _check_ensembles(subjects)
    _check_digests(subjects, Repository(repository).models(check=True) if entries is None else entries)
    return [problem for subject in subjects for problem in sorted(subject.problems, key=_order)]


def _order(problem: Problem) -> tuple[str, int, int]:
    return str(problem.path), problem.line or 0, problem.column or 0


def _check_alone(subject: Subject) -> None:
    """What needs neither the ONNX file nor other models."""
    if subject.message is None:
        return
    if subject.text is None and not subject.versions:
        subject.report(
            "warning", "neither a config.pbtxt nor a version folder: this is no model, and is passed over.", at=subject.folder
        )
        subject.message = None
        return
    if subject.message.name != subject.name:
        subject.report(
            "error", f"name: expected {subject.name!r}, the folder's name, found {subject.message.name!r}. Remove it.", at="name"
        )
    files.check_versions(subject)
    backend.check_backend(subject)
    for violation in (*subject.typed.violations(), *sequence_rules(subject.message), *ensemble.flow_rules(subject.message)):
        subject.take(violation)
    if subject.message.backend == "python":
        backend.python_files(subject)
    if _is_onnx(subject):
        _check_libraries(subject)


def _check_onnx(subjects: list[Subject]) -> None:
    wanted = {subject.name: files.onnx_files(subject) for subject in subjects if _is_onnx(subject)}
    paths = [path for found in wanted.values() for path in found.values()]
    if not paths:
        return
    readable = onnx_file.can_read()
    borders = onnx_file.read_borders(paths) if readable else {}
    for subject in subjects:
        if not readable and wanted.get(subject.name):
            subject.report(
                "warning", "the ONNX file was not checked: onnxruntime is not installed. pip install '.[serve]' adds it."
            )
        for path in wanted.get(subject.name, {}).values():
            if path in borders:
                _check_border(subject, path, borders[path])


def _check_libraries(subject: Subject) -> None:
    """Libraries of operators are loaded by the server, which starts in an empty folder; they are not loaded here."""
    for library in subject.message.model_operations.op_library_filename:
        if "/" in library and not Path(library).is_absolute():
            found = f"{library!r}, which is relative to nothing"
        elif "/" in library and not Path(library).is_file():
            found = f"{library!r}, which is not there"
        else:
            continue
        subject.report(
            "error", f"op_library_filename: expected the absolute path of a library, found {found}.", at="model_operations"
        )


def _is_onnx(subject: Subject) -> bool:
    return subject.message is not None and bool(subject.message.backend == "onnxruntime")


def _check_border(subject: Subject, path: Path, probed: onnx_file.Probed) -> None:
    if subject.message.model_operations.op_library_filename and probed.border is None:
        subject.report(
            "warning",
            f"was not checked: it needs libraries of operators, which this check does not load ({probed.reason}).",
            at=path,
        )
        return
    if probed.border is None:
        subject.report("error", probed.reason, at=path)
        return
    if subject.failed:
        return  # the server does not get so far
    backend.complete(subject, probed.border)
    if not subject.failed:
        backend.check_border(subject, probed.border)


def _check_completed(subject: Subject) -> None:
    """What depends on what the file has completed."""
    if subject.message is None:
        return
    for violation in subject.typed.violations():
        subject.take(violation)
    for index, tensor in enumerate((*subject.message.input, *subject.message.output)):
        what = f"input[{index}]" if index < len(subject.message.input) else f"output[{index - len(subject.message.input)}]"
        missing = [name for name in ("data_type", "dims") if not getattr(tensor, name)]
        if missing and not _is_onnx(subject):
            subject.report("error", f"{' and '.join(missing)}: expected of {tensor.name!r}, found none. Write them.", at=what)
    files.check_labels(subject, subject.typed)
    files.check_warmup_files(subject, subject.typed)
    if _is_onnx(subject) and not subject.failed:
        backend.check_options(subject)


def _check_ensembles(subjects: list[Subject]) -> None:
    """Ensembles of ensembles too: those that others name come first."""
    by_name = {subject.name: subject for subject in subjects}
    done: set[str] = set()

    def check(subject: Subject) -> None:
        if subject.name in done or not subject.is_ensemble:
            return
        done.add(subject.name)
        for step in subject.message.ensemble_scheduling.step:
            if step.model_name in by_name:
                check(by_name[step.model_name])
        ensemble.check_steps(subject, by_name)

    for subject in subjects:
        check(subject)


def _check_digests(subjects: list[Subject], entries: Sequence[ModelEntry]) -> None:
    """The files of versions that Convoy deployed are the ones that were validated."""
    by_name = {entry.name: entry for entry in entries}
    for subject in subjects:
        if subject.message is None or INTERFACE_PARAMETER not in subject.message.parameters:
            continue
        for version in by_name[subject.name].versions:
            folder = subject.folder / str(version.version)
            if version.problem:
                where, _, rest = version.problem.partition(": ")
                about = Path(where)
                known = about == folder or folder in about.parents
                subject.report("error", rest if known else version.problem, at=about if known else folder)
