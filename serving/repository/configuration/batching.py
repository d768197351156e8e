"""How requests become batches, and how they wait."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from tritonclient.grpc import model_config_pb2

from convoy.serving.repository.configuration.part import Part, Parts, Violation, error, warning


class ModelQueuePolicy(Part):
    """How requests wait.

    Attributes:
        timeout_action: What becomes of a request that has waited too long: ``REJECT`` it, or ``DELAY`` it behind the others.
        default_timeout_microseconds: How long it may wait; 0 for ever.
        allow_timeout_override: Whether a request may ask for a shorter time.
        max_queue_size: How many may wait; 0 for any number.
    """

    kind_: ClassVar[Any] = model_config_pb2.ModelQueuePolicy

    timeout_action: Literal["REJECT", "DELAY"] = "REJECT"
    default_timeout_microseconds: int = Field(default=0, ge=0)
    allow_timeout_override: bool = False
    max_queue_size: int = Field(default=0, ge=0)

    @property
    def delays(self) -> bool:
        """Whether a request can fall behind later ones."""
        return self.timeout_action == "DELAY" and self.default_timeout_microseconds > 0


class ModelDynamicBatching(Part):
    """Requests joined to batches by the server.

    Attributes:
        preferred_batch_size: Sizes at which a batch goes at once, before the delay is over.
        max_queue_delay_microseconds: How long a request may wait for others; the batch that runs is a delay by itself.
        preserve_ordering: Whether answers leave in the order of the requests.
        priority_levels: How many levels of priority there are; 0 for none. Level 1 is the highest.
        default_priority_level: The level of a request that names none.
        default_queue_policy: How requests wait.
        priority_queue_policy: The same for single levels.
    """

    kind_: ClassVar[Any] = model_config_pb2.ModelDynamicBatching
    parts_: ClassVar[Parts] = {"default_queue_policy": ModelQueuePolicy, "priority_queue_policy": ModelQueuePolicy}

    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = Field(default=0, ge=0)
    preserve_ordering: bool = False
    priority_levels: int = Field(default=0, ge=0)
    default_priority_level: int = Field(default=0, ge=0)
    default_queue_policy: ModelQueuePolicy | None = None
    priority_queue_policy: Mapping[int, ModelQueuePolicy] = Field(default_factory=dict)

    def rules(self) -> Iterator[Violation]:
        """Sizes are positive, levels are within range, and what keeps the order does not delay."""
        for index, size in enumerate(self.preferred_batch_size):
            if size < 1:
                yield error(
                    f"preferred_batch_size[{index}]",
                    f"preferred_batch_size: expected sizes of at least 1, found {size}. Remove it.",
                )
        yield from self._level_rules()
        if self.preserve_ordering:
            yield from self._order_rules()

    def _level_rules(self) -> Iterator[Violation]:
        levels = self.priority_levels
        if levels and not 1 <= self.default_priority_level <= levels:
            yield error(
                "default_priority_level" if self.default_priority_level else "priority_levels",
                f"default_priority_level: expected 1 to {levels} (priority_levels), found {self.default_priority_level}. Set it.",
            )
        if not levels and (self.default_priority_level or self.priority_queue_policy):
            named = "default_priority_level" if self.default_priority_level else "priority_queue_policy"
            yield warning(named, f"{named} has no effect without priority_levels. Set priority_levels, or remove it.")
        for level in self.priority_queue_policy:
            if levels and not 1 <= level <= levels:
                yield error(
                    f"priority_queue_policy[{level}]",
                    f"priority_queue_policy: expected a level from 1 to {levels} (priority_levels), found {level}. Remove it.",
                )

    def _order_rules(self) -> Iterator[Violation]:
        if self.priority_levels > 1:
            yield error(
                "preserve_ordering",
                f"preserve_ordering: expected at most 1 priority level beside it, found {self.priority_levels}: "
                "what keeps the order has no priorities. Remove one of the two.",
            )
        policies = {f"priority_queue_policy[{level}]": policy for level, policy in self.priority_queue_policy.items()}
        if self.default_queue_policy is not None:
            policies = {"default_queue_policy": self.default_queue_policy, **policies}
        for path, policy in policies.items():
            if policy.delays:
                yield error(
                    f"{path}.timeout_action",
                    "timeout_action: expected REJECT beside preserve_ordering, found DELAY, which changes the order. "
                    "Remove one of the two.",
                )
