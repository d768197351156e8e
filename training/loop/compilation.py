"""torch.compile, where it pays and where it works."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from convoy.contract.errors import TrainingError
from convoy.training.loop.hardware import Hardware
from convoy.training.networks.logits import TrainingLogits

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_log = logging.getLogger(__name__)
_WORTH_STEPS = 5_000  # a run of fewer is over before what compilation takes has come back


def set_up(
    fabric: Fabric, classifier: nn.Module, optimizer: Optimizer, *, hardware: Hardware, n_steps: int, batch: Tensor
) -> tuple[nn.Module, Any]:
    """Join a classifier and its optimizer to ``fabric``; compiled where that is asked for, or left to us and pays.

    ``classifier`` itself stays as it is and shares its weights with what is returned: evaluation runs on it.

    Args:
        fabric: Places, casts and joins.
        classifier: What learns.
        optimizer: Of its parameters.
        hardware: Whether it is compiled.
        n_steps: Of the whole run.
        batch: uint8 (N, H, W, C), of the size of the steps: compilation is tried on it.

    Returns:
        What gives logits in training, and what does the optimizer's steps.

    Raises:
        TrainingError: Compilation was asked for and fails; where it was left to us, a warning says why and we go on without.
    """
    wanted = hardware.compile
    if wanted is None:
        wanted = fabric.device.type == "cuda" and n_steps >= _WORTH_STEPS
    if not wanted:
        return _joined(fabric, classifier, optimizer)
    compiled: Any = torch.compile(classifier)
    network, stepper = _joined(fabric, compiled, optimizer)
    try:
        _try(network, classifier, fabric, batch)
    except Exception as error:  # whatever the compilers of this machine raise
        reason = " ".join(str(error).split())[:300]
        if hardware.compile:
            raise TrainingError(
                f"--compile: torch cannot compile this network on this machine: {reason}. Train with --no-compile."
            ) from error
        _log.warning("the network is not compiled, training is slower: %s", reason)
        torch.compiler.reset()
        return _joined(fabric, classifier, optimizer)
    return network, stepper


def _joined(fabric: Fabric, classifier: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Any]:
    network, stepper = fabric.setup(classifier, optimizer)
    return network, stepper


def _try(network: nn.Module, classifier: nn.Module, fabric: Fabric, batch: Tensor) -> None:
    """Compile by one step forwards and backwards, of which nothing remains."""
    kept = {name: buffer.clone() for name, buffer in classifier.named_buffers()}
    mode = classifier.training
    with torch.random.fork_rng(devices=[fabric.device] if fabric.device.type == "cuda" else []):
        classifier.train()
        answer = network(batch)
        parts = (answer.logits, *answer.auxiliary) if isinstance(answer, TrainingLogits) else (answer,)
        fabric.backward(torch.stack([part.float().sum() for part in parts]).sum())
    classifier.train(mode)
    classifier.zero_grad()
    with torch.no_grad():
        for name, buffer in classifier.named_buffers():
            buffer.copy_(kept[name])
