"""What an ONNX file is put through on this machine: every provider, batch size, company and graph optimisation level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import ExportError
from convoy.contract.manifest import TensorSpec
from convoy.contract.validation import Check
from convoy.export.gate import checks
from convoy.export.gate.runtime import LEVELS, levels, open_session, usable_providers

if TYPE_CHECKING:
    import onnxruntime

ODD_BATCH_SIZE: Final = 7


class RunBorder(Protocol):
    """What the runs need to know of a file's border."""

    @property
    def max_batch_size(self) -> int:
        """The largest batch."""

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes to run, ascending, the largest last."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Its inputs."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Its outputs."""


class ProviderRuns(ABC):
    """Runs a file on every provider of this machine; what its answers must be, a subclass says.

    Attributes:
        noun: What is answered, for messages: "images".
        in_company: How the run in other company is called.
        checks: What was found so far.
    """

    noun: ClassVar[str]
    in_company: ClassVar[str]

    def __init__(self, model: bytes, border: RunBorder, say: Callable[[str], None]) -> None:
        self.model, self._border, self.say = model, border, say
        self.checks: list[Check] = []

    def run_providers(self, n: int, sample: npt.NDArray[np.int64]) -> None:
        """Run everything in the largest batches, and a sample in every other way, on every provider.

        Args:
            n: How many there are.
            sample: Indices of some of them.
        """
        usable, missing = usable_providers()
        for provider in usable:
            self._run_provider(provider, n, sample)
        self.checks += [checks.not_executed(name, reason) for name, reason in missing.items()]

    @abstractmethod
    def compare(
        self, session: onnxruntime.InferenceSession, indices: npt.NDArray[np.int64], batch_size: int, where: str, *, company: bool
    ) -> Any:
        """Run some, check the answers; None where there are none for all of them.

        Args:
            session: The file, opened.
            indices: Of what is to be answered.
            batch_size: In batches of so many.
            where: What this run is, for the checks.
            company: It is the run in other company.
        """

    @abstractmethod
    def look_closer(self, actual: Any, provider: str) -> None:
        """Look at the answers to everything, in the largest batches on one provider, as ``compare`` gave them."""

    def _run_provider(self, provider: str, n: int, sample: npt.NDArray[np.int64]) -> None:
        try:
            session = open_session(self.model, provider)
        except ExportError as error:
            self.checks.append(Check(name=f"loads on {provider}", verdict="failed", expected="a session", found=str(error)))
            return
        self.checks.append(checks.check_border(session, (*self._border.inputs, *self._border.outputs), provider))
        if self.checks[-1].verdict == "failed":
            return
        largest = self._border.max_batch_size
        self.say(f"ONNX Runtime on {provider}, all {self.noun} in batches of {largest}")
        actual = self.compare(session, np.arange(n), largest, f"batches of {largest}, {provider}", company=False)
        if actual is not None:
            self.look_closer(actual, provider)
        for size in self._border.batch_sizes[:-1]:
            self.say(f"ONNX Runtime on {provider}, {len(sample)} {self.noun} in batches of {size}")
            self.compare(session, sample, size, f"batches of {size}, {provider}", company=False)
        self.compare(session, shuffled(sample), min(ODD_BATCH_SIZE, largest), f"{self.in_company}, {provider}", company=True)
        for level in levels():
            if level == LEVELS[-1]:
                continue  # all of the above
            self.say(f"ONNX Runtime on {provider}, graph optimisation {level}")
            where = f"graph optimisation {level}, {provider}"
            try:
                self.compare(open_session(self.model, provider, level), sample, largest, where, company=False)
            except ExportError as error:
                self.checks.append(Check(name=f"loads, {where}", verdict="failed", expected="a session", found=str(error)))


def shuffled(indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The same in another order, always the same one."""
    return np.random.default_rng(0).permutation(indices)
