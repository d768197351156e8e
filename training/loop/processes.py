"""One process a device: started, listened to, and ended together."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Final

import torch

from convoy.contract.errors import ConvoyError, TrainingError
from convoy.training.data.dataset import Dataset
from convoy.training.loop.checkpoint import Checkpoints
from convoy.training.loop.fit import Fit, fit
from convoy.training.loop.hardware import Hardware, choose_device
from convoy.training.loop.interrupt import Interrupt, deferred_interrupt
from convoy.training.loop.listener import EpochRecord, Listener
from convoy.training.loop.seeding import seeded
from convoy.training.networks.classifier import ImageClassifier
from convoy.training.recipes.recipe import Recipe

_SECONDS_TO_EXPLAIN: Final = 3.0  # when a process fails, the others' connections break: the first cause may come second
_SECONDS_TO_END: Final = 5.0
_SECONDS_TO_STOP: Final = 60.0  # for the end of a step, and a checkpoint
_STOP: Final = signal.SIGUSR1
"""What the first process ends for; a terminal sends Ctrl-C to all of them, which only the one that started them hears."""

_SECONDS_BETWEEN_STEPS_TOLD: Final = 0.1


@dataclass(frozen=True)
class Job:
    """What all processes work on; see ``fit``.

    Attributes:
        classifier: On the CPU.
        dataset: Copied to each process.
        recipe: How.
        generator_state: Of the generator that draws orders and distortions.
        hardware: As many processes as it has devices.
        checkpoints: Written by the first process.
        seed: Of everything random.
    """

    classifier: ImageClassifier
    dataset: Dataset
    recipe: Recipe
    generator_state: torch.Tensor
    hardware: Hardware
    checkpoints: Checkpoints | None
    seed: int


def fit_in_processes(job: Job, *, listener: Listener | None = None) -> Fit:
    """Train ``job.classifier`` in place, in a process for each device.

    Every process sees its share of each batch; the gradients are averaged. This process only waits: where one fails or dies it
    ends them all; at the first Ctrl-C when the first process has ended its step and left a checkpoint, at the second at once.

    Raises:
        ConvoyError: What went wrong in a process.
        TrainingError: A process died.
        KeyboardInterrupt: Somebody asked for the end.
    """
    listener = listener or Listener()
    context = multiprocessing.get_context("spawn")  # a fork of a process that has threads or CUDA may hang
    n = job.hardware.devices
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(n)}
    threads = max(1, torch.get_num_threads() // n)
    content = pickle.dumps(job)
    processes: list[BaseProcess] = []
    ears: list[Connection] = []
    try:
        for rank in range(n):
            ear, mouth = context.Pipe(duplex=False)
            arguments = (rank, content, mouth, environment, threads, logging.getLogger().level)
            process = context.Process(target=_work, args=arguments, name=f"convoy-train-{rank}", daemon=True)
            process.start()
            mouth.close()
            processes.append(process)
            ears.append(ear)
        with deferred_interrupt(on=job.checkpoints is not None) as interrupt:
            fitted, weights = _listen(processes, ears, listener, interrupt)
    finally:
        _end(processes)
        for ear in ears:
            ear.close()
    job.classifier.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    job.classifier.eval()
    return fitted


def _listen(
    processes: list[BaseProcess], ears: list[Connection], listener: Listener, interrupt: Interrupt
) -> tuple[Fit, dict[str, Any]]:
    """Pass on what the first process tells, until it is done, one of them fails, or somebody asked for the end."""
    open_ears = list(ears)
    failures: list[Exception] = []
    result: tuple[Fit, dict[str, Any]] | None = None
    deadline = float("inf")
    trains = asked = False
    while open_ears and time.monotonic() < deadline and result is None:
        if interrupt.requested and not asked:
            if not trains or processes[0].pid is None:
                raise KeyboardInterrupt
            asked, deadline = True, time.monotonic() + _SECONDS_TO_STOP
            os.kill(processes[0].pid, _STOP)
        for ear in wait(open_ears, timeout=min(deadline - time.monotonic(), 1.0)):
            assert isinstance(ear, Connection)
            try:
                what, value = ear.recv()
            except (EOFError, ConnectionError):
                open_ears.remove(ear)
                rank = ears.index(ear)
                processes[rank].join(_SECONDS_TO_END)
                if processes[rank].exitcode not in (0, None):  # None: it takes its time to close down
                    failures.append(_death(rank, len(ears), processes[rank].exitcode))
            else:
                if what == "done":
                    result = value
                elif what == "error":
                    failures.append(value)
                elif what == "stopped":
                    raise KeyboardInterrupt
                else:
                    trains = True
                    getattr(listener, what)(**value)
        if failures:
            if any(isinstance(failure, ConvoyError) and not isinstance(failure, _BrokenError) for failure in failures):
                break
            deadline = min(deadline, time.monotonic() + _SECONDS_TO_EXPLAIN)
    if result is not None and not failures:
        return result
    if asked and not failures:
        raise KeyboardInterrupt
    causes = [failure for failure in failures if not isinstance(failure, _BrokenError)] or failures
    raise causes[0] if causes else TrainingError("the training processes ended without a result.")


class _BrokenError(TrainingError):
    """Something in a process failed that is no error of ours: often only because another process died."""


def _death(rank: int, n: int, exit_code: int | None) -> TrainingError:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        more = ": often the system's answer to a lack of memory" if name == "SIGKILL" else ""
        return TrainingError(f"training process {rank + 1} of {n} was ended by {name}{more}; all were ended.")
    return _BrokenError(f"training process {rank + 1} of {n} ended with exit status {exit_code}; all were ended.")


def _end(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.kill()  # they ignore SIGTERM, and tidy nothing up
    deadline = time.monotonic() + _SECONDS_TO_END
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _work(rank: int, content: bytes, mouth: Connection, environment: dict[str, str], threads: int, log_level: int) -> None:
    """What a process does: fit, and tell."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal and a batch system send theirs to all: one ends the others
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.basicConfig(level=log_level if rank == 0 else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    os.environ.update(environment, LOCAL_RANK=str(rank), NODE_RANK="0")
    torch.set_num_threads(threads)

    def tell(what: str, value: Any) -> None:
        mouth.send((what, value))

    try:
        job: Job = pickle.loads(content)  # noqa: S301  from the process that started this one
        device = choose_device(job.hardware.device)
        if device.type == "cuda":
            device = torch.device("cuda", rank)
            torch.cuda.set_device(device)
        with seeded(job.seed) as generator:
            generator.set_state(job.generator_state)
            classifier = job.classifier.to(device)
            fitted = fit(
                classifier,
                job.dataset,
                job.recipe,
                generator=generator,
                hardware=job.hardware,
                listener=_Teller(tell) if rank == 0 else None,
                checkpoints=job.checkpoints,
                stop_signal=_STOP,
            )
        if rank == 0:
            weights = {name: tensor.cpu().contiguous().numpy() for name, tensor in classifier.state_dict().items()}
            tell("done", (fitted, weights))
    except KeyboardInterrupt:
        tell("stopped", None)
    except ConvoyError as error:
        tell("error", error)
    except Exception as error:  # noqa: BLE001  told to the process that waits
        tell("error", _BrokenError(f"training process {rank + 1}: {type(error).__name__}: {error}"))
    finally:
        mouth.close()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Teller(Listener):
    """Tells another process; steps are told together, a few times a second."""

    def __init__(self, tell: Callable[[str, Any], None]) -> None:
        self._tell = tell
        self._n_images = 0
        self._told = 0.0

    def on_start(self, *, epochs: int, images_per_epoch: int) -> None:
        self._tell("on_start", {"epochs": epochs, "images_per_epoch": images_per_epoch})

    def on_resume(self, *, epochs_done: int, n_images: int) -> None:
        self._tell("on_resume", {"epochs_done": epochs_done, "n_images": n_images})

    def on_step(self, *, n_images: int) -> None:
        self._n_images += n_images
        if time.monotonic() - self._told >= _SECONDS_BETWEEN_STEPS_TOLD:
            self._flush()

    def on_epoch(self, record: EpochRecord, *, is_best: bool) -> None:
        self._flush()
        self._tell("on_epoch", {"record": record, "is_best": is_best})

    def _flush(self) -> None:
        if self._n_images:
            self._tell("on_step", {"n_images": self._n_images})
        self._n_images, self._told = 0, time.monotonic()
