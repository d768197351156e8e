"""This machine's limit for a model: ONNX Runtime alone, in process, without a server around it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import util
from pathlib import Path
from typing import Any, Final

from convoy.contract.errors import MissingDependencyError, RepositoryError, UsageError

_LONGEST_CALL_S: Final = 1.0


@dataclass(frozen=True)
class LimitPoint:
    """One way to run the model.

    Attributes:
        threads: ONNX Runtime's intra-op threads.
        batch_size: Images a call.
        images_per_s: The rate of calls one after the other, in images.
        ms_per_call: How long a call takes, on average.
    """

    threads: int
    batch_size: int
    images_per_s: float
    ms_per_call: float


@dataclass(frozen=True)
class Limit:
    """What ONNX Runtime alone does with a model on this machine.

    Attributes:
        model_path: The file.
        providers: The execution providers that were asked for.
        points: What was measured, in order.
    """

    model_path: str
    providers: tuple[str, ...]
    points: tuple[LimitPoint, ...]

    @property
    def best(self) -> LimitPoint:
        """The point with the highest rate."""
        return max(self.points, key=lambda point: point.images_per_s)

    def as_dict(self) -> dict[str, Any]:
        """JSON's form."""
        return {**asdict(self), "best": asdict(self.best)}


def in_process_limit(
    model_path: Path,
    *,
    max_batch_size: int = 1,
    batch_sizes: Sequence[int] | None = None,
    threads: Sequence[int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    seconds: float = 0.4,
) -> Limit:
    """Measure how fast ONNX Runtime runs a model in a process of its own that does nothing else.

    A number of threads is given up once a call takes longer than a second: larger batches then add time and no rate.

    Args:
        model_path: The ONNX file.
        max_batch_size: The largest batch; 0 for a model without a batch axis.
        batch_sizes: The batches to try; 1 and its doubles up to ``max_batch_size`` where None.
        threads: The numbers of threads to try; 1 and all cores where None.
        shapes: By input, the shape without the batch axis, where the file leaves an extent open.
        ranges: By input, the smallest and the largest value that makes sense.
        providers: ONNX Runtime's execution providers, in order of preference.
        seconds: How long each point is measured, after a quarter of that for warm-up; 3 calls at least.

    Raises:
        UsageError: A number is out of its range, or an open extent has no shape.
        MissingDependencyError: ONNX Runtime is not installed.
        RepositoryError: The file cannot be run.
    """
    if util.find_spec("onnxruntime") is None:
        raise MissingDependencyError("The limit of this machine is measured with ONNX Runtime: pip install 'convoy[serve]'.")
    if not model_path.is_file():
        raise RepositoryError(f"{model_path}: no such file.")
    if max_batch_size < 0 or not 0 < seconds <= 600:
        raise UsageError(f"expected max_batch_size from 0 and up to 600 seconds, found {max_batch_size} and {seconds:g}.")
    task = {
        "model_path": str(model_path),
        "threads": list(threads or sorted({1, n_cores()})),
        "batch_sizes": list(batch_sizes or doubles(max_batch_size)),
        "shapes": {name: list(shape) for name, shape in (shapes or {}).items()},
        "ranges": {name: list(limits) for name, limits in (ranges or {}).items()},
        "providers": list(providers),
        "seconds": seconds,
        "longest_call_s": _LONGEST_CALL_S,
    }
    ended = subprocess.run(
        [sys.executable, "-m", "convoy.serving.load.in_process"],
        input=json.dumps(task) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    points = []
    for line in ended.stdout.splitlines():
        said = json.loads(line)
        if "error" in said:
            raise (UsageError if said["usage"] else RepositoryError)(f"{model_path}: {said['error']}")
        rate = said["calls"] / said["spent_s"]
        points.append(LimitPoint(said["threads"], said["batch_size"], rate * said["batch_size"], 1e3 / rate))
    if ended.returncode or not points:
        words = ended.stderr.strip().splitlines()[-3:]
        raise RepositoryError(f"{model_path}: ONNX Runtime's process ended with status {ended.returncode}: {' '.join(words)}")
    return Limit(str(model_path), tuple(providers), tuple(points))


def n_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def doubles(most: int) -> list[int]:
    """1, 2, 4 ... and ``most`` itself; 0 alone, for no batch axis, where ``most`` is 0."""
    return sorted({*(1 << power for power in range(most.bit_length())), most}) if most else [0]
