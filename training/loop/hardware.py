"""What the work runs on; decides how fast, not what is learnt."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from convoy.contract.errors import UsageError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


class Hardware(BaseModel):
    """Devices and how they are used.

    Attributes:
        device: ``auto`` (CUDA where there is one, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.
        devices: How many of them; each is a process of its own, and they share each batch.
        strategy: ``ddp``: each process has all weights, and they average their gradients; ``auto``: that, or nothing for one.
        precision: ``fp32``; ``bf16``: weights in fp32, products in bfloat16; ``auto``: bf16 on GPUs that have it, else fp32.
        compile: Whether torch.compile makes kernels for the network; None: on GPUs, where the run is long enough to pay for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = "auto"
    devices: int = Field(default=1, ge=1, le=1024)
    strategy: Literal["auto", "ddp"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool | None = None

    def check(self) -> None:
        """Make sure, before data is loaded, that this machine has all that.

        Raises:
            UsageError: It has not.
        """
        device = choose_device(self.device)
        if device.type == "cuda":
            found = torch.cuda.device_count()
            if self.devices > 1 and device.index is not None:
                raise UsageError(f"--device {self.device} is one device: give --device cuda with --devices {self.devices}.")
            if self.devices > found:
                raise UsageError(f"--devices {self.devices}: torch finds {found} CUDA devices on this machine.")
            if self.precision == "bf16" and not torch.cuda.is_bf16_supported():
                raise UsageError("--precision bf16: this GPU computes nothing in bfloat16; use --precision fp32.")

    @property
    def resolved_precision(self) -> Literal["fp32", "bf16"]:
        """``precision``, or what ``auto`` stands for on this machine."""
        if self.precision != "auto":
            return self.precision
        return "bf16" if choose_device(self.device).type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def choose_device(name: str) -> torch.device:
    """The device that ``name`` stands for.

    Args:
        name: ``auto`` (CUDA where there is one, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UsageError: It is no such name, or the machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: expected auto, cpu, cuda or cuda:N.") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: expected auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: torch finds {torch.cuda.device_count()} CUDA devices on this machine; use --device cpu."
        )
    return device


def numbered(device: torch.device) -> torch.device:
    """``cuda`` as the GPU with the number that it stands for now: Fabric takes no other."""
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" and device.index is None else device


def connect(hardware: Hardware, *, some_parameters_rest: bool = False) -> Fabric:
    """Lightning Fabric on ``hardware``: it places the network, computes in the precision and joins the processes.

    With more than one device this is called in each process; the environment says which it is (``processes``).

    Args:
        hardware: Where.
        some_parameters_rest: Whether some get no gradients in some epochs.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.strategies.single_device import SingleDeviceStrategy
    from lightning_fabric.strategies.strategy import Strategy

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it greets on stderr
    device = numbered(choose_device(hardware.device))
    strategy: Strategy
    if hardware.devices == 1:
        strategy = SingleDeviceStrategy(device)
    else:
        strategy = DDPStrategy(
            process_group_backend="nccl" if device.type == "cuda" else "gloo", find_unused_parameters=some_parameters_rest
        )
    fabric = Fabric(
        accelerator=device.type,
        devices=hardware.devices,
        strategy=strategy,
        precision=_PRECISIONS[hardware.resolved_precision],  # type: ignore[arg-type]
    )
    fabric.launch()
    return fabric


@contextmanager
def exact_products() -> Iterator[None]:
    """Products of fp32 are fp32's for a while: a GPU would round them to TF32, 10 bits, in convolutions."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
