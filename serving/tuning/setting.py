"""``Setting``: one choice of everything that is tuned."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from convoy.contract.errors import RepositoryError

THREADS_PARAMETER: Final = "intra_op_thread_count"


@dataclass(frozen=True)
class Setting:
    """What is tuned of a model's configuration; names as in Triton's ``ModelConfig``.

    Attributes:
        max_batch_size: The largest batch that the server forms; 0 for a model without batch axis.
        preferred_batch_size: Batches that the server waits for, as long as the delay lasts; empty for none.
        max_queue_delay_microseconds: How long a request may wait for others.
        instance_count: How many instances run at once.
        intra_op_thread_count: Threads of an operator in ONNX Runtime; None leaves it to the backend, which measures at load.
    """

    max_batch_size: int
    preferred_batch_size: tuple[int, ...]
    max_queue_delay_microseconds: int
    instance_count: int
    intra_op_thread_count: int | None

    @classmethod
    def of(cls, config: Any) -> Setting:
        """What a configuration says.

        Args:
            config: Triton's ``ModelConfig`` message.

        Raises:
            RepositoryError: It has several instance groups: how they share the machine is a person's choice.
        """
        if len(config.instance_group) > 1:
            raise RepositoryError(
                f"{config.name}: expected one instance_group, found {len(config.instance_group)}: how groups share a machine is "
                "not tuned. Leave one, tune, and divide its instances afterwards."
            )
        batching = config.dynamic_batching
        said = config.parameters[THREADS_PARAMETER].string_value if THREADS_PARAMETER in config.parameters else ""
        return cls(
            max_batch_size=config.max_batch_size,
            preferred_batch_size=tuple(batching.preferred_batch_size),
            max_queue_delay_microseconds=int(batching.max_queue_delay_microseconds),
            instance_count=max(1, config.instance_group[0].count) if config.instance_group else 1,
            intra_op_thread_count=int(said) if said.strip().isdecimal() else None,
        )

    def applied_to(self, config: Any) -> Any:
        """A copy of a configuration that says this; what else it says stays.

        No warm-up is larger than the largest batch: Triton would refuse the model.

        Args:
            config: Triton's ``ModelConfig`` message.
        """
        changed = type(config)()
        changed.CopyFrom(config)
        changed.max_batch_size = self.max_batch_size
        if self.max_batch_size:
            changed.dynamic_batching.SetInParent()
            changed.dynamic_batching.preferred_batch_size[:] = self.preferred_batch_size
            changed.dynamic_batching.max_queue_delay_microseconds = self.max_queue_delay_microseconds
        if not changed.instance_group:
            changed.instance_group.add()
        changed.instance_group[0].count = self.instance_count
        if self.intra_op_thread_count is not None:
            changed.parameters[THREADS_PARAMETER].string_value = str(self.intra_op_thread_count)
        elif THREADS_PARAMETER in changed.parameters:
            del changed.parameters[THREADS_PARAMETER]
        for warmup in changed.model_warmup:
            warmup.batch_size = min(warmup.batch_size, self.max_batch_size) if self.max_batch_size else warmup.batch_size
        return changed

    def as_dict(self) -> dict[str, Any]:
        """JSON's form."""
        return asdict(self)

    def __str__(self) -> str:
        parts = [f"{self.instance_count} instance{'s' if self.instance_count > 1 else ''}"]
        threads = self.intra_op_thread_count
        parts.append("threads chosen at load" if threads is None else f"{threads} thread{'' if threads == 1 else 's'}")
        if self.max_batch_size:
            parts += [f"batches to {self.max_batch_size}", f"delay {self.max_queue_delay_microseconds:,} us"]
        if self.preferred_batch_size:
            parts.append(f"preferred {', '.join(map(str, self.preferred_batch_size))}")
        return ", ".join(parts)
