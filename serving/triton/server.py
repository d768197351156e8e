"""``TritonServer``: the real tritonserver on this machine, started, proven and stopped without a trace."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from typing_extensions import Self

from convoy.contract.errors import ClientError, ConvoyError, ServerError, ServerFailureError, UnavailableError, UsageError
from convoy.serving.triton import guard
from convoy.serving.triton.completeness import is_complete
from convoy.serving.triton.folder import check_repository
from convoy.serving.triton.installation import Installation
from convoy.serving.triton.log import TritonLog, reason_in
from convoy.serving.triton.port import HOST, check_port, free_port, is_open
from convoy.serving.triton.runtime import BACKENDS, Runtime, clear_stale

if TYPE_CHECKING:
    from convoy.serving.client import Client
    from convoy.serving.triton.proof import Proof

END_WITHIN_S = 2.0
"""How long a server that no longer answers has until its end is certain."""

RESTART_WITHIN_S = 2.0
RESTART_PATIENCE_S = 15.0
"""How long a server that is started again may take, beside four times what its start took before."""

"""How long requests under way may take where the server is restarted because it hangs."""

_POOL_THREADS = 4
"""Of an instance, for calls from model to model. Triton's 32 idle where there are none, and stay behind where a process dies."""

_CRASHES = tuple(
    128 + number
    for number in (
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGSEGV,
        signal.SIGKILL,
    )  # the last: no memory
)
_POLL_S = 0.005
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """What a server serves after its start.

    Attributes:
        proofs: The models that answered an inference.
        failures: By name, why the others did not.
    """

    proofs: tuple[Proof, ...]
    failures: dict[str, str]


class TritonServer:
    """NVIDIA Triton on a model repository, on 127.0.0.1; a context manager.

    The server runs under a guard process which stops it and clears up after it when this process ends, in whatever way.

    Args:
        repository: The model repository.
        http_port: Where REST listens; 0 for any free port.
        grpc_port: Where gRPC listens; 0 for any free port.
        metrics_port: Where Prometheus metrics are; 0 for any free port.
        log_path: Where to append the server's log; a temporary file where None.
        keep_going: Serve the other models where one cannot be loaded; otherwise ``start`` fails.
        start_timeout_s: How long the server and all its models may take to answer.
        stop_timeout_s: How long requests under way may take at the stop; then the server is killed.

    Example:
        >>> with TritonServer(Path("model_repository"), grpc_port=0) as server:
        ...     Client(server.grpc_url).classify("lenet5", "digit.png")
    """

    def __init__(
        self,
        repository: Path,
        *,
        http_port: int = 8000,
        grpc_port: int = 8001,
        metrics_port: int = 8002,
        log_path: Path | None = None,
        keep_going: bool = False,
        start_timeout_s: float = 120.0,
        stop_timeout_s: float = 15.0,
    ) -> None:
        self.repository = repository
        self.ports = {"http": http_port, "grpc": grpc_port, "metrics": metrics_port}
        self.keep_going = keep_going
        self.start_timeout_s = start_timeout_s
        self.stop_timeout_s = stop_timeout_s
        self.served = Served((), {})
        self._completes = True
        self._checked: tuple[list[str], Installation] | None = None
        self._log_path = log_path
        self._log: TritonLog | None = None
        self._runtime: Runtime | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._came_up_s = 0.0
        self._client: Client | None = None

    @property
    def http_url(self) -> str:
        """``http://127.0.0.1:PORT``: REST."""
        return f"http://{HOST}:{self.ports['http']}"

    @property
    def grpc_url(self) -> str:
        """``grpc://127.0.0.1:PORT``."""
        return f"grpc://{HOST}:{self.ports['grpc']}"

    @property
    def metrics_url(self) -> str:
        """``http://127.0.0.1:PORT/metrics``: Prometheus."""
        return f"http://{HOST}:{self.ports['metrics']}/metrics"

    @property
    def running(self) -> bool:
        """Whether the server's process runs."""
        return self._guard is not None and self._guard.poll() is None

    def ends_within(self, timeout_s: float) -> bool:
        """Whether the server's process has ended, or ends soon: its callers notice its end before its guard has cleared up."""
        if self._guard is None:
            return True
        try:
            self._guard.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    @property
    def crashed(self) -> bool:
        """Whether the server's process has ended by a fault of its own or was killed, and was not ended in order."""
        return self._guard is not None and self._guard.poll() in _CRASHES

    @property
    def log(self) -> TritonLog:
        """The server's log."""
        if self._log is None:
            raise ServerError("the server was not started.")
        return self._log

    @property
    def client(self) -> Client:
        """A client of the server for checks and control, on gRPC: control calls on REST hold up other callers."""
        if self._client is None:
            raise ServerError("the server was not started.")
        return self._client

    @property
    def shm_prefix(self) -> str:
        """How the names of the server's shared-memory segments begin."""
        if self._runtime is None:
            raise ServerError("the server was not started.")
        return self._runtime.shm_prefix

    def check(self) -> tuple[list[str], Installation]:
        """Refuse what cannot be started, before anything is; ``start`` does so, too, where nobody has.

        Returns:
            The names of the models, and the Triton that is to serve them.

        Raises:
            UsageError: There is no such repository, or a value makes no sense.
            MissingDependencyError: The machine lacks something that Triton needs.
            RepositoryError: The repository is none, or is empty.
            ServerError: A port is taken.
        """
        if not self.start_timeout_s > 0:
            raise UsageError(f"--start-timeout: expected more than 0 seconds, found {self.start_timeout_s:g}.")
        if self._log_path is not None and not self._log_path.absolute().parent.is_dir():
            raise UsageError(f"--log: expected a file in a folder that exists, found {self._log_path}.")
        models = list(check_repository(self.repository))
        given = {f"--{name}-port": port for name, port in self.ports.items() if port}
        if len(set(given.values())) < len(given):
            raise UsageError(f"each of the three ports must differ from the others, found {list(given.values())}.")
        installation = Installation.find()
        for option, port in given.items():
            check_port(port, option)
        self._checked = models, installation
        return self._checked

    def start(self) -> Served:
        """Start the server; returns when every model has answered an inference.

        Raises:
            ConvoyError: As ``check`` does.
            ServerError: The server did not start, or a model cannot be served; the message has Triton's own reason.
        """
        if self._guard is not None:
            raise ServerError("the server was started already.")
        models, installation = self._checked or self.check()
        self._checked = None
        clear_stale()
        self._choose_ports()
        self._completes = not all(is_complete(self.repository / name) for name in models)
        self._runtime = runtime = Runtime.create(installation)
        try:
            self._log = TritonLog(self._log_path or runtime.log_path)
            _logger.info("Triton's log is %s", self._log.path)
            self._bring_up(installation, models, self.start_timeout_s)
            if self.served.failures and not (self.keep_going and self.served.proofs):
                raise ServerError(_explain(self.served))
        except BaseException:
            self.stop()
            raise
        return self.served

    def stop(self) -> None:
        """Stop the server: requests under way end, then every process and trace of it is gone. May be called again."""
        if self._client is not None:
            self._client.close()
            self._client = None
        self._take_down(self.stop_timeout_s)
        if self._runtime is not None:
            self._runtime.remove()
            self._runtime = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def restart(self, models: Sequence[str]) -> Served:
        """End tritonserver and start it again, on the same ports and with the same log: for what Triton itself cannot mend.

        Calls fail as unavailable until it answers again; requests under way have ``RESTART_WITHIN_S`` to end.

        Args:
            models: What to load.

        Returns:
            What is served now; a model that cannot be loaded is among its failures.

        Raises:
            ServerError: It does not start again.
        """
        if self._runtime is None:
            raise ServerError("the server was not started.")
        self._take_down(RESTART_WITHIN_S)
        # It has come up here before: where it takes many times as long, a process of it has hung, and the next one may not.
        self._bring_up(Installation.find(), models, min(self.start_timeout_s, RESTART_PATIENCE_S + 4 * self._came_up_s))
        return self.served

    def _bring_up(self, installation: Installation, models: Sequence[str], timeout_s: float) -> None:
        began = time.monotonic()
        self._launch(installation, models)
        self._wait_until_live(began + timeout_s, timeout_s)
        self.served = self._prove_all(models, began + timeout_s)
        self._came_up_s = time.monotonic() - began

    def _take_down(self, timeout_s: float) -> None:
        if self._guard is None:
            return
        if self._guard.stdin is not None and not self._guard.stdin.closed:
            try:
                self._guard.stdin.write(f"stop {timeout_s:g}".encode())
                self._guard.stdin.close()
            except BrokenPipeError:
                pass  # it has ended already
        try:
            self._guard.wait(timeout_s + 10)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
        self._guard = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def pid(self) -> int | None:
        """The process of tritonserver itself; None where it does not run."""
        if self._guard is None or not self.running:
            return None
        try:
            children = Path(f"/proc/{self._guard.pid}/task/{self._guard.pid}/children").read_text().split()
        except OSError:
            return None  # it has just ended
        return int(children[0]) if children else None

    def died(self) -> ServerError:
        """The error for a server whose process has ended by itself, with its last words."""
        status = self._guard.poll() if self._guard is not None else None
        reasons = self.log.tail(8) if self.served.proofs else self.log.errors()[-4:] or self.log.tail(8)
        how = f"ended with status {status}"
        if status is not None and status > 128:
            how = f"was killed by signal {status - 128}"
        elif status is not None and status < 0:
            how = f"was stopped because its guard process was killed by signal {-status}"
        said = "\n  ".join(reasons) or "nothing"
        return ServerError(f"tritonserver {how}. Its last words:\n  {said}{_advice(said)}{self._whole_log()}")

    def _choose_ports(self) -> None:
        for name, port in self.ports.items():
            while port == 0:
                port = free_port()
                port = 0 if port in self.ports.values() else port
            self.ports[name] = port

    def _launch(self, installation: Installation, models: Sequence[str]) -> None:
        runtime, log = self._runtime, self.log
        if runtime is None:
            raise ServerError("the server was not started.")
        program = [
            str(installation.server),
            f"--model-repository={self.repository.resolve()}",
            f"--backend-directory={runtime.backends}",
            "--model-control-mode=explicit",
            *[f"--load-model={name}" for name in models],
            "--exit-on-error=false",
            *([] if self._completes else ["--disable-auto-complete-config"]),
            f"--exit-timeout-secs={max(1, int(self.stop_timeout_s))}",
            *[f"--backend-config={name},shm-region-prefix-name={runtime.shm_prefix}" for name in BACKENDS],
            f"--backend-config=python,thread-pool-size={_POOL_THREADS}",  # heard by every Python-based backend
            *[f"--{name}-address={HOST}" for name in self.ports],
            *[f"--{name}-port={port}" for name, port in self.ports.items()],
        ]
        words = [runtime.lock_words, str(self.stop_timeout_s), runtime.shm_prefix, str(runtime.folder), "--", *program]
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(guard.__file__)), *words],
            stdin=subprocess.PIPE,
            stdout=log.file,
            stderr=subprocess.STDOUT,
            cwd=runtime.cwd,
            env=runtime.environment(installation),
            pass_fds=runtime.locks,
            start_new_session=True,  # Ctrl-C in a terminal goes to this process alone, which stops the server in order
        )

    def _wait_until_live(self, deadline: float, timeout_s: float) -> None:
        """Until both protocols answer; Triton opens its ports when it has loaded its models, or failed to.

        Ports are asked for connections, and not clients for answers: a gRPC channel that was refused waits before it tries again.
        """
        from convoy.serving.client import Client
        from convoy.serving.triton.proof import preload

        preload()  # while the server starts
        while not all(is_open(self.ports[name]) for name in ("grpc", "http")):
            self._still_starting(deadline, timeout_s)
        self._client = self._client or Client(self.grpc_url, shared_memory=False)
        with Client(self.http_url) as rest:
            while not (self._client.live(timeout_s=2) and rest.live(timeout_s=2)):
                self._still_starting(deadline, timeout_s)

    def _still_starting(self, deadline: float, timeout_s: float) -> None:
        """Wait a moment for a server that has not answered yet, unless it has ended or its time has passed."""
        if not self.running:
            raise self.died()
        if time.monotonic() > deadline:
            raise ServerError(
                f"tritonserver did not answer within {timeout_s:.3g} s. Its last words:\n  "
                + "\n  ".join(self.log.tail())
                + self._whole_log()
            )
        time.sleep(_POLL_S)

    def _prove_all(self, models: Sequence[str], deadline: float) -> Served:
        from convoy.serving.triton.proof import prove

        proofs, failures = [], {}
        states = {status.name: status for status in self.client.models() if status.state == "READY" or status.reason}
        for name in models:
            since = self.log.position()
            try:
                if name not in states:  # Triton did not even try: it says why where it is asked for
                    self.load(name)
                elif states[name].state != "READY":
                    raise ServerError(reason_in(states[name].reason))
                proofs.append(prove(self.client, self.repository, name, max(1.0, deadline - time.monotonic())))
            except ConvoyError as error:
                if isinstance(error, UnavailableError) and self.ends_within(END_WITHIN_S):
                    raise self.died() from error
                failures[name] = self.explain(error, since)
        return Served(tuple(proofs), failures)

    def load(self, model_name: str, timeout_s: float = 300.0) -> None:
        """Load a model, or load it again with what the repository holds now. What was served before stays served on failure.

        Raises:
            ServerError: It cannot be loaded; the message has Triton's own reason.
        """
        since = self.log.position()
        try:
            self.client.load(model_name, timeout_s=timeout_s)
        except ClientError as error:
            if isinstance(error, UnavailableError) and self.ends_within(END_WITHIN_S):
                raise self.died() from error
            said = _joined(self.log.errors(since)) or str(error).rstrip(".")
            raise ServerError(f"{said}.{self._advice_for(model_name)}") from error

    def explain(self, error: ConvoyError, since: int) -> str:
        """An error in words; where it refers to the server's log, with what stands there.

        Args:
            error: What a call of the server's client raised.
            since: Where the log ended before the call.
        """
        if not isinstance(error, ServerFailureError):
            return str(error)
        said = _joined(self.log.errors(since))
        return f"{error}{f' There: {said}.' if said else ''}{f' It is {self._log_path}.' if self._log_path else ''}"

    def _whole_log(self) -> str:
        return f"\nThe whole log: {self._log_path}" if self._log_path else ""

    def _advice_for(self, model_name: str) -> str:
        if self._completes or is_complete(self.repository / model_name):
            return ""
        return (
            " Its configuration does not name the backend and every tensor with datatype and dims, and this server was started "
            "for models whose configurations do: complete it, or start the server again."
        )


def _explain(served: Served) -> str:
    lines = [f"{name}: {reason}" for name, reason in served.failures.items()]
    good = f"\nThe other {len(served.proofs)} answer: --keep-going serves them." if served.proofs else ""
    return (
        f"{len(served.failures)} of {len(served.failures) + len(served.proofs)} models cannot be served:\n  "
        + "\n  ".join(lines)
        + good
    )


def _joined(reasons: list[str]) -> str:
    return "; ".join(reason.rstrip(".") for reason in reasons)


def _advice(said: str) -> str:
    if "already in use" in said or "Address already in use" in said:
        return "\nAnother process took a port in the meantime: choose others with --http-port, --grpc-port, --metrics-port."
    return ""
