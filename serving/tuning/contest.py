"""Two settings on one server, measured in turns: what the machine does besides falls on both."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from typing_extensions import Self

from convoy.contract.errors import ClientError, ServerError
from convoy.contract.files import write_bytes
from convoy.serving.load import Closed, Target, measure
from convoy.serving.repository.configuration import ConfigText
from convoy.serving.triton import TritonServer
from convoy.serving.tuning.objective import Comparison, Objective, Point
from convoy.serving.tuning.setting import Setting

SEARCH_ROUNDS: Final = 3
"""Rounds of a comparison in the search; fewer where two have shown a setting to be clearly worse."""

CLEARLY_WORSE: Final = 0.95
_SLOTS: Final = ("one", "other")


@dataclass(frozen=True)
class Method:
    """How a setting is measured.

    Attributes:
        objective: What it is judged by.
        protocol: "grpc" or "http".
        window_s: How long a window is; a measurement ends when three in a row agree within a tenth.
        max_windows: After how many windows it ends at the latest.
    """

    objective: Objective
    protocol: str = "grpc"
    window_s: float = 0.5
    max_windows: int = 6


@dataclass(frozen=True)
class Record:
    """One round of one setting.

    Attributes:
        setting: The setting.
        points: What was measured, by number of callers.
        score: What the objective makes of it, in images a second.
    """

    setting: Setting
    points: Mapping[int, Point]
    score: float


class Contest:
    """A private server with the model in two slots, each under its own setting; a context manager.

    Args:
        model_folder: The model's folder in a repository. Nothing in it is touched.
        config: Its configuration.
        version: The version that is measured.
        method: How.
        shapes: By input, the shape without the batch axis, where the model leaves an extent open.
    """

    def __init__(
        self,
        model_folder: Path,
        config: ConfigText,
        version: int,
        method: Method,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.records: list[Record] = []
        self._model_folder = model_folder
        self._config = config
        self._version = version
        self._method = method
        self._shapes = dict(shapes or {})
        self._stack = ExitStack()
        self._in_slot: dict[str, Setting] = {}
        self._targets: dict[str, Target] = {}

    def __enter__(self) -> Self:
        with self._stack as stack:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="convoy-tune-")))
            start = Setting.of(self._config.message)
            for slot in _SLOTS:
                self._lay_out(root / slot, start)
                self._in_slot[slot] = start
            self._root = root
            self._server = stack.enter_context(TritonServer(root, http_port=0, grpc_port=0, metrics_port=0))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def compare(
        self, candidate: Setting, incumbent: Setting, rounds: int = SEARCH_ROUNDS, *, to_the_end: bool = False
    ) -> Comparison | None:
        """Measure two settings in turns.

        Args:
            candidate: The one.
            incumbent: The other.
            rounds: How often each is measured.
            to_the_end: Do all rounds even where the candidate is clearly worse after two.

        Returns:
            How the candidate does; None where it cannot be served.

        Raises:
            ServerError: The incumbent cannot be served, or the server died.
        """
        theirs = self._slot_of(incumbent) or self._load(incumbent, self._other(self._slot_of(candidate)))
        try:
            ours = self._slot_of(candidate) or self._load(candidate, self._other(theirs))
        except ServerError:
            if not self._server.running:
                raise
            return None
        scores: tuple[list[float], list[float]] = ([], [])
        for turn in range(rounds):
            for index, slot in ((0, ours), (1, theirs)) if turn % 2 else ((1, theirs), (0, ours)):
                scores[index].append(self._measure(slot))
            if turn and not to_the_end and Comparison.of(*scores).high < CLEARLY_WORSE:
                break
        return Comparison.of(*scores)

    def _measure(self, slot: str) -> float:
        setting = self._in_slot[slot]
        points = {}
        for concurrency in self._method.objective.concurrencies:
            measurement = measure(
                self._target(slot),
                Closed(concurrency),
                window_s=self._method.window_s,
                max_windows=self._method.max_windows,
                warm_up_s=self._method.window_s / 2,
            )
            if measurement.n_errors or measurement.latency_ms is None:
                raise ServerError(
                    f"{setting}: {measurement.n_errors} requests failed at {concurrency} callers: {measurement.first_error}"
                )
            points[concurrency] = Point(
                images_per_s=measurement.images_per_s,
                p50_ms=measurement.latency_ms.p50,
                p99_ms=measurement.latency_ms.p99,
                mean_batch_size=measurement.server.mean_batch_size if measurement.server is not None else 0.0,
                stable=measurement.stable,
            )
        score = self._method.objective.score(points)
        self.records.append(Record(setting, points, score))
        return score

    def _target(self, slot: str) -> Target:
        if slot not in self._targets:
            url = self._server.grpc_url if self._method.protocol == "grpc" else self._server.http_url
            self._targets[slot] = Target.of(url, slot, shapes=self._shapes or None)
        return self._targets[slot]

    def _slot_of(self, setting: Setting) -> str | None:
        return next((slot for slot, there in self._in_slot.items() if there == setting), None)

    @staticmethod
    def _other(slot: str | None) -> str:
        return next(name for name in _SLOTS if name != slot)

    def _load(self, setting: Setting, slot: str) -> str:
        """Serve a setting in a slot.

        Raises:
            ServerError: It cannot be served.
        """
        self._write_config(self._root / slot, setting)
        self._in_slot.pop(slot, None)
        self._targets.pop(slot, None)
        self._server.load(slot)
        self._in_slot[slot] = setting
        try:
            self._target(slot)  # asks it once
        except ClientError as error:
            raise ServerError(f"{setting}: {error}") from error
        return slot

    def _lay_out(self, folder: Path, setting: Setting) -> None:
        """The model with the one version that is measured."""
        folder.mkdir()
        for path in self._extras():
            (shutil.copytree if path.is_dir() else shutil.copy2)(path, folder / path.name)
        version = str(self._version)
        (folder / version).symlink_to((self._model_folder / version).resolve())  # however large the file is
        self._write_config(folder, setting)

    def _extras(self) -> Iterator[Path]:
        """What lies beside the versions: labels, warm-up data."""
        for path in sorted(self._model_folder.iterdir()):
            if not path.name.isdecimal() and not path.name.startswith(".") and path.name != "config.pbtxt":
                yield path

    def _write_config(self, folder: Path, setting: Setting) -> None:
        message: Any = setting.applied_to(self._config.message)
        message.name = folder.name
        message.ClearField("version_policy")
        write_bytes(folder / "config.pbtxt", ConfigText.of(message).to_bytes())
