"""``tune``: search for a better setting, then prove that the gain is real."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from convoy.contract.bundle import MANIFEST_FILE
from convoy.contract.errors import RepositoryError, ServerError, UsageError
from convoy.contract.manifest import Manifest, check_model_name
from convoy.serving.repository.config import CONFIG_FILE, served_version
from convoy.serving.repository.configuration import ConfigText
from convoy.serving.tuning.contest import Contest, Method, Record
from convoy.serving.tuning.objective import Comparison, Objective, Point
from convoy.serving.tuning.search import MIN_GAIN, Step, search
from convoy.serving.tuning.setting import Setting
from convoy.serving.tuning.space import Axis, grid, space

FINAL_ROUNDS: Final = 6
"""Rounds of the proof: a setting that is no better than the one in force wins all of them with a chance of 1 in 64."""


@dataclass(frozen=True)
class Subject:
    """What is tuned.

    Attributes:
        model_folder: The model's folder in its repository.
        config: Its configuration as it stands.
        version: The version that is measured.
        largest_batch: The largest batch that it was validated with; 0 for a model without batch axis.
    """

    model_folder: Path
    config: ConfigText
    version: int
    largest_batch: int

    @classmethod
    def of(cls, repository: Path, model_name: str) -> Subject:
        """A model of a repository: the version that it serves.

        Raises:
            RepositoryError: There is no such model, or it has no version.
            UsageError: There is no such repository.
        """
        if not repository.is_dir():
            raise UsageError(f"{repository}: no such folder.")
        folder = repository / check_model_name(model_name)
        if not folder.is_dir():
            have = ", ".join(sorted(path.name for path in repository.iterdir() if path.is_dir())) or "none"
            raise RepositoryError(f"{repository}: expected a model {model_name}, found {have}.")
        config = ConfigText.load(folder / CONFIG_FILE)
        version = served_version(config.message) or max(
            (int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()), default=0
        )
        if not (folder / str(version)).is_dir():
            raise RepositoryError(f"{folder}: expected a folder of version {version or 1}, found none.")
        manifest = folder / str(version) / MANIFEST_FILE
        largest = Manifest.load(manifest).max_batch_size if manifest.is_file() else config.message.max_batch_size
        return cls(folder, config, version, largest)


@dataclass(frozen=True)
class Tuning:
    """What tuning found.

    Attributes:
        subject: What was tuned.
        objective: What settings were judged by.
        protocol: "grpc" or "http".
        default: The setting that was in force.
        chosen: The setting to serve with: the default, unless another did better in every round of the proof.
        found: Where the search ended.
        proof: ``found`` against the default, round by round; None where the search found nothing better.
        steps: Every comparison of the search.
        records: Every round that was measured, in order.
        n_combinations: How many settings the whole space has.
    """

    subject: Subject
    objective: Objective
    protocol: str
    default: Setting
    chosen: Setting
    found: Setting
    proof: Comparison | None
    steps: tuple[Step, ...]
    records: tuple[Record, ...]
    n_combinations: int

    @property
    def n_tried(self) -> int:
        """How many settings were measured."""
        return len({record.setting for record in self.records})

    @property
    def changed(self) -> bool:
        """Whether another setting than the default was chosen."""
        return self.chosen != self.default

    def config(self) -> ConfigText:
        """The configuration to serve with: what it does not tune keeps its bytes."""
        text = self.subject.config
        return text.edit(self.chosen.applied_to(text.message)) if self.changed else text


def tune(
    subject: Subject,
    method: Method,
    *,
    cores: int,
    n_gpus: int = 0,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    final_rounds: int = FINAL_ROUNDS,
    on_step: Callable[[Step], None] | None = None,
) -> Tuning:
    """Find the setting that serves a model best on this machine.

    Real load runs on a private server, candidate and incumbent in turns. The setting in force is kept unless another one is better
    in every round of a proof at the end.

    Args:
        subject: What is tuned.
        method: How a setting is measured and judged.
        cores: How many cores the server may use.
        n_gpus: How many GPUs the model runs on; 0 for none.
        shapes: By input, the shape without the batch axis, where the model leaves an extent open.
        final_rounds: Rounds of the proof.
        on_step: Is told each comparison.

    Raises:
        RepositoryError: The configuration is not one that can be tuned.
        ServerError: The model cannot be served as it stands, or no setting keeps the latency budget.
        MissingDependencyError: The machine lacks something that Triton needs.
    """
    default = Setting.of(subject.config.message)
    axes = axes_of(subject, method, cores=cores, n_gpus=n_gpus)
    with Contest(subject.model_folder, subject.config, subject.version, method, shapes) as contest:
        found, steps = search(default, axes, contest.compare, on_step=on_step)
        _check_budget(method.objective, contest.records)
        proof = None
        if found != default:
            proof = contest.compare(found, default, final_rounds, to_the_end=True)
            if proof is None:
                raise ServerError(f"{found}: was served during the search, and cannot be any more.")
        records = tuple(contest.records)
    return Tuning(
        subject=subject,
        objective=method.objective,
        protocol=method.protocol,
        default=default,
        chosen=found if proof is not None and is_gain(proof) else default,
        found=found,
        proof=proof,
        steps=tuple(steps),
        records=records,
        n_combinations=len(grid(default, axes)),
    )


def is_gain(proof: Comparison) -> bool:
    """Whether a proof shows a gain: every round above 1, and a median that is worth the change."""
    return proof.low > 1 and proof.value >= MIN_GAIN


def axes_of(subject: Subject, method: Method, *, cores: int, n_gpus: int = 0) -> tuple[Axis, ...]:
    """The axes of a model's space."""
    default, callers = Setting.of(subject.config.message), max(method.objective.concurrencies)
    return space(default, cores=cores, largest_batch=subject.largest_batch, n_gpus=n_gpus, most_callers=callers)


def medians(records: Sequence[Record], setting: Setting) -> dict[int, Point]:
    """The median of a setting's rounds at each number of callers."""
    points = [record.points for record in records if record.setting == setting]
    return {
        concurrency: Point(
            images_per_s=statistics.median(each[concurrency].images_per_s for each in points),
            p50_ms=statistics.median(each[concurrency].p50_ms for each in points),
            p99_ms=statistics.median(each[concurrency].p99_ms for each in points),
            mean_batch_size=statistics.median(each[concurrency].mean_batch_size for each in points),
            stable=all(each[concurrency].stable for each in points),
        )
        for concurrency in points[0]
    }


def _check_budget(objective: Objective, records: Sequence[Record]) -> None:
    if objective.latency_budget_ms is None or any(record.score > 0 for record in records):
        return
    least, record = min(
        ((point.p99_ms, record) for record in records for point in record.points.values()), key=lambda found: found[0]
    )
    raise ServerError(
        f"no setting keeps a p99 of {objective.latency_budget_ms:g} ms on this machine: the least that was measured is "
        f"{least:.2f} ms ({record.setting}). Allow more with --latency-budget-ms, or use a faster machine or a smaller model."
    )
