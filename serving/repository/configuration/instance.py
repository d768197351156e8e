"""Where a model runs, and how often."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field
from tritonclient.grpc import model_config_pb2

from convoy.serving.repository.configuration.part import Part, Parts, Violation, error, warning


class Resource(Part):
    """Something of which the server has so many, and an execution takes some.

    Attributes:
        name: What the resource is called.
        global_: Whether all devices share it.
        count: How many an execution takes.
    """

    kind_: ClassVar[Any] = model_config_pb2.ModelRateLimiter.Resource

    name: str = ""
    global_: bool = False
    count: int = Field(default=0, ge=0)


class ModelRateLimiter(Part):
    """When an instance may run; it counts only where the server was started with ``--rate-limit=execution_count``."""

    kind_: ClassVar[Any] = model_config_pb2.ModelRateLimiter
    parts_: ClassVar[Parts] = {"resources": Resource}

    resources: tuple[Resource, ...] = ()
    priority: int = Field(default=0, ge=0)


class ModelInstanceGroup(Part):
    """Instances of one kind.

    Attributes:
        name: What the group is called.
        kind: ``KIND_AUTO`` takes a GPU where there is one, and names no deployer's machine.
        count: How many there are, on each GPU; 0 for the server's own choice.
        gpus: The GPUs; every one where empty.
        rate_limiter: When they may run.
        profile: Only for TensorRT.
        passive: Whether they are loaded and given no requests.
        host_policy: The name of a policy that the server was started with.
    """

    kind_: ClassVar[Any] = model_config_pb2.ModelInstanceGroup
    parts_: ClassVar[Parts] = {"rate_limiter": ModelRateLimiter}

    name: str = ""
    kind: Literal["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"] = "KIND_AUTO"
    count: int = 0
    gpus: tuple[int, ...] = ()
    rate_limiter: ModelRateLimiter | None = None
    profile: tuple[str, ...] = ()
    passive: bool = False
    host_policy: str = ""

    def rules(self) -> Iterator[Violation]:
        """GPUs belong to instances on GPUs."""
        if self.gpus and self.kind in ("KIND_CPU", "KIND_MODEL"):
            yield error(
                "gpus", f"gpus: expected none with {self.kind}, found {list(self.gpus)}. Remove them, or say KIND_GPU or KIND_AUTO."
            )
        elif any(gpu < 0 for gpu in self.gpus):
            yield error("gpus", f"gpus: expected numbers of GPUs, 0 and up, found {list(self.gpus)}. `nvidia-smi -L` lists them.")
        if self.count < 0:
            yield warning("count", f"count: expected at least 1, found {self.count}, which counts as 1. Say how many.")
