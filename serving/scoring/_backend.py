"""Who answers: one version of a model, on servers or in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import (
    ClientError,
    DeadlineExceededError,
    InvalidRequestError,
    InvalidResponseError,
    MissingDependencyError,
    OverloadedError,
    RepositoryError,
    ScoringError,
    UnavailableError,
    UsageError,
)
from convoy.contract.manifest import DIGEST_PARAMETER, INPUT_NAME, ModelInterface
from convoy.serving.client import Client
from convoy.serving.client._inference import MOST_BYTES
from convoy.serving.client._window import Window

_CUDA: Final = "CUDAExecutionProvider"
_GPUS: Final = Path("/proc/driver/nvidia/gpus")
_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 2.0


class Backend(Protocol):
    """One version of one model. Safe under threads.

    Attributes:
        where: For messages.
        model_name: The model.
        version: The version.
        digest: The digest of its ONNX file; None where nobody tells.
        interface: Labels, image rule, tensors.
        batch_rows: Images in a request.
    """

    where: str
    model_name: str
    version: str
    digest: str | None
    interface: ModelInterface
    batch_rows: int

    def infer(self, inputs: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]) -> tuple[dict[str, npt.NDArray[Any]], float]:
        """The named outputs for a batch of inputs, and how long they took, in milliseconds.

        Raises:
            ClientError: There are none.
        """
        ...

    def check(self) -> None:
        """Make sure that what answers is still what the run began with.

        Raises:
            ScoringError: It is not.
        """
        ...

    def queue_ms(self) -> float | None:
        """How long requests have waited in the server's queue since this was asked last, in the mean; None where nobody tells."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class Gate:
    """Lets as many requests be under way as the server has use for; see ``Window``."""

    def __init__(self, most: int) -> None:
        self._window = Window(most)
        self._n = 0
        self._free = threading.Condition()

    def enter(self) -> None:
        """Wait for room."""
        with self._free:
            while self._n >= self._window.limit:
                self._free.wait()
            self._n += 1

    def leave(self, seconds: float | None, rows: int, *, refused: bool = False) -> None:
        """A request has ended: after ``seconds`` where it was answered."""
        with self._free:
            self._n -= 1
            if refused:
                self._window.refused()
            elif seconds is not None:
                self._window.answered(seconds, rows)
            self._free.notify(max(0, self._window.limit - self._n))  # not all: most would only look and wait again


@dataclass
class Served:
    """A model on servers; see ``Backend``. Servers that go away for a moment are waited for."""

    where: str
    model_name: str
    version: str
    digest: str | None
    interface: ModelInterface
    batch_rows: int
    client: Client
    timeout_s: float
    patience_s: float
    gate: Gate
    own: bool
    stopped: Callable[[], bool] = lambda: False
    waiting: Callable[[ClientError | None], None] = lambda _: None  # told why a request waits for a server; None: no more
    seen: tuple[int, int] | None = (0, 0)  # how many requests had been in the queue, and for how long; None where nobody tells

    @classmethod
    def pin(
        cls,
        client: Client,
        model_name: str,
        model_version: str,
        *,
        timeout_s: float,
        patience_s: float,
        in_flight: int,
        own: bool,
        stopped: Callable[[], bool] = lambda: False,
        waiting: Callable[[ClientError | None], None] = lambda _: None,
    ) -> Served:
        """See that the server answers, and with which version; ask for that one by name from then on.

        A server that is not there, or a model that is just being loaded, is waited for.

        Args:
            client: A client of the servers.
            model_name: The model.
            model_version: The version; the server's choice where it is empty.
            timeout_s: How long a request may take.
            patience_s: How long to wait for servers that are gone.
            in_flight: The most requests under way.
            own: Whether to close the client in the end.
            stopped: Whether to wait no longer.
            waiting: Told why a server is waited for, and with None when it is there.

        Raises:
            ClientError: The server or the model does not answer.
            ScoringError: The server does not say which version answered.
        """
        until = time.monotonic() + patience_s
        while True:
            try:
                served = cls._pinned(client, model_name, model_version, timeout_s, patience_s, in_flight, own)
                break
            except (UnavailableError, OverloadedError) as error:
                if time.monotonic() >= until or stopped():
                    raise
                waiting(error)
                time.sleep(_PAUSE_S)
        waiting(None)
        served.stopped, served.waiting = stopped, waiting
        return served

    @classmethod
    def _pinned(
        cls,
        client: Client,
        model_name: str,
        model_version: str,
        timeout_s: float,
        patience_s: float,
        in_flight: int,
        own: bool,
    ) -> Served:
        interface = client.interface(model_name, model_version, timeout_s=timeout_s)
        version = _who_answers(client, model_name, model_version, interface, timeout_s)
        if not version:
            raise ScoringError(
                f"{client.url}: model {model_name!r}: the server does not say which version answers: none can be pinned."
            )
        config = client.config(model_name, version, timeout_s=timeout_s)
        interface = client.interface(model_name, version, timeout_s=timeout_s)
        rows = min(max(1, int(config.get("max_batch_size") or 1)), max(1, MOST_BYTES // prod(interface.image.dims)))
        digest = _digest_in(config)
        gate = Gate(in_flight)
        return cls(client.url, model_name, version, digest, interface, rows, client, timeout_s, patience_s, gate, own)

    def infer(self, inputs: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]) -> tuple[dict[str, npt.NDArray[Any]], float]:
        """See ``Backend``. The time is that of the try that succeeded."""
        self.gate.enter()
        seconds: float | None = None
        refused = False
        until = time.monotonic() + self.patience_s
        pause_s = _PAUSE_S
        try:
            while True:
                began = time.monotonic()
                try:
                    answer = self.client.infer(
                        self.model_name,
                        inputs,
                        outputs=outputs,
                        model_version=self.version,
                        timeout_s=self.timeout_s,
                    )
                except (UnavailableError, OverloadedError) as error:
                    refused = isinstance(error, OverloadedError)
                    if time.monotonic() >= until or self.stopped():
                        raise
                    self.waiting(error)
                    time.sleep(pause_s)
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                    continue
                seconds = time.monotonic() - began
                self.waiting(None)
                if answer.model_version != self.version:
                    raise InvalidResponseError(
                        f"{self.where}: expected an answer of version {self.version}, found one of {answer.model_version!r}."
                    )
                return answer.outputs, seconds * 1000
        finally:
            self.gate.leave(seconds, len(inputs[INPUT_NAME]), refused=refused)

    def check(self) -> None:
        """See ``Backend``: a version's file does not change under its number, unless somebody overwrites it."""
        until = time.monotonic() + self.patience_s
        while True:
            try:
                digest = _digest_in(self.client.config(self.model_name, self.version, timeout_s=self.timeout_s))
                break
            except (UnavailableError, OverloadedError, DeadlineExceededError) as error:
                if time.monotonic() >= until or self.stopped():
                    raise
                self.waiting(error)
                time.sleep(_PAUSE_S)
        if digest != self.digest:
            raise ScoringError(
                f"{self.where}: model {self.model_name!r} version {self.version} was replaced during the run: its file had the "
                f"digest {self.digest}, and now has {digest}. A data set holds the answers of one model only: score anew in "
                "another place."
            )

    def queue_ms(self) -> float | None:
        """See ``Backend``. A server of several may have counted less than the one that was asked before: then nobody tells."""
        if self.seen is None:
            return None
        try:
            (statistics,) = self.client.statistics(self.model_name, self.version, timeout_s=self.timeout_s)
            queue = statistics["inference_stats"]["queue"]
            n, nanoseconds = int(queue["count"]), int(queue["ns"])
        except InvalidRequestError:  # the server counts nothing
            self.seen = None
            return None
        except (ClientError, KeyError, TypeError, ValueError):
            return None
        before, self.seen = self.seen, (n, nanoseconds)
        requests, waited = n - before[0], nanoseconds - before[1]
        return waited / requests / 1e6 if before != (0, 0) and requests > 0 and waited >= 0 else None

    def close(self) -> None:
        """See ``Backend``."""
        if self.own:
            self.client.close()


@dataclass
class InProcess:
    """A model of a repository in ONNX Runtime, in this process; see ``Backend``."""

    where: str
    model_name: str
    version: str
    digest: str | None
    interface: ModelInterface
    batch_rows: int
    session: Any

    @classmethod
    def load(cls, repository: Path, model_name: str, model_version: str) -> InProcess:
        """Load a version from a repository that ``convoy deploy`` wrote.

        Args:
            repository: The repository's folder.
            model_name: The model.
            model_version: The version; the highest number where it is empty, as Triton serves it.

        Raises:
            MissingDependencyError: ONNX Runtime is not installed.
            UsageError: There is no such version.
            ContractError: The version's files are damaged.
        """
        from convoy.contract.bundle import Bundle

        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependencyError(
                f"--in-process needs ONNX Runtime, which cannot be imported ({error}). Install it: pip install '.[serve]'"
            ) from error
        folder = repository / model_name
        versions = (
            sorted((int(path.name) for path in folder.iterdir() if path.name.isdigit()), reverse=True) if folder.is_dir() else []
        )
        if not versions:
            raise UsageError(
                f"{folder}: expected a model that `convoy deploy` wrote, found none. --repository names the repository."
            )
        version = model_version or str(versions[0])
        if not version.isdigit() or int(version) not in versions:
            raise UsageError(f"{folder}: expected one of the versions {versions}, found {version}.")
        bundle = Bundle.open(folder / version)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        if _GPUS.is_dir() and _CUDA in onnxruntime.get_available_providers():
            onnxruntime.preload_dlls()  # CUDA and cuDNN from the nvidia-* wheels, where they are installed
            providers.insert(0, _CUDA)
        try:
            session = onnxruntime.InferenceSession(str(folder / version / "model.onnx"), options, providers=providers)
        except Exception as error:  # whatever ONNX Runtime raises
            raise RepositoryError(f"{folder / version}: ONNX Runtime cannot load the model: {error}") from error
        manifest = bundle.manifest
        rows = min(manifest.max_batch_size, max(1, MOST_BYTES // prod(manifest.image.dims)))
        return cls(f"{folder}", model_name, version, manifest.model_sha256, manifest.interface, rows, session)

    def infer(self, inputs: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]) -> tuple[dict[str, npt.NDArray[Any]], float]:
        """See ``Backend``."""
        began = time.monotonic()
        try:
            answers = self.session.run(list(outputs), {name: np.ascontiguousarray(array) for name, array in inputs.items()})
        except Exception as error:  # whatever ONNX Runtime raises
            raise ClientError(f"{self.where}: ONNX Runtime failed: {error}") from error
        return dict(zip(outputs, answers, strict=True)), (time.monotonic() - began) * 1000

    def check(self) -> None:
        """See ``Backend``: what is loaded does not change."""

    def queue_ms(self) -> float | None:
        """See ``Backend``: there is no queue."""
        return None

    def close(self) -> None:
        """See ``Backend``."""
        self.session = None


def _who_answers(client: Client, model_name: str, model_version: str, interface: ModelInterface, timeout_s: float) -> str:
    """The version that answers to a blank image."""
    spec = interface.image
    if interface.task == "amount-reading":
        blank = np.zeros((spec.height_px, spec.widths_px[0]), np.uint8)
        return client.read_amount(blank, model_name=model_name, model_version=model_version, timeout_s=timeout_s).model_version
    blank = np.zeros((1, *spec.dims), np.uint8)
    return client.classify(model_name, blank, model_version=model_version, timeout_s=timeout_s)[0].model_version


def _digest_in(config: dict[str, Any]) -> str | None:
    parameter = (config.get("parameters") or {}).get(DIGEST_PARAMETER, {})
    return parameter.get("string_value") or None
