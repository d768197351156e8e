"""Which versions of a model are served."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field
from tritonclient.grpc import model_config_pb2

from convoy.serving.repository.configuration.part import Part, Parts, Violation, error

_POLICY: Any = model_config_pb2.ModelVersionPolicy


class Latest(Part):
    """The highest versions."""

    kind_: ClassVar[Any] = _POLICY.Latest

    num_versions: int = Field(default=0, ge=0)

    def rules(self) -> Iterator[Violation]:
        """At least one."""
        if self.num_versions < 1:
            yield error("num_versions", f"num_versions: expected at least 1, found {self.num_versions}: nothing is served. Set it.")


class All(Part):
    """Every version."""

    kind_: ClassVar[Any] = _POLICY.All


class Specific(Part):
    """The versions that are named."""

    kind_: ClassVar[Any] = _POLICY.Specific

    versions: tuple[int, ...] = ()

    def rules(self) -> Iterator[Violation]:
        """At least one."""
        if not self.versions:
            yield error("versions", "versions: expected at least one version, found none: nothing is served. Name one.")


class ModelVersionPolicy(Part):
    """Which versions are served: one of the three; the highest one where none is set."""

    kind_: ClassVar[Any] = _POLICY
    parts_: ClassVar[Parts] = {"latest": Latest, "all": All, "specific": Specific}

    latest: Latest | None = None
    all: All | None = None
    specific: Specific | None = None

    def rules(self) -> Iterator[Violation]:
        """One choice."""
        said = [name for name in ("latest", "all", "specific") if getattr(self, name) is not None]
        if len(said) > 1:
            yield error(said[1], f"expected one of latest, all and specific, found {', '.join(said)}. Choose one.")

    def chosen(self, present: tuple[int, ...]) -> tuple[int, ...]:
        """The versions that are served of those that are there.

        Args:
            present: The numbers of the version folders.
        """
        if self.all is not None:
            return tuple(sorted(present))
        if self.specific is not None:
            return tuple(sorted(set(self.specific.versions) & set(present)))
        count = self.latest.num_versions if self.latest is not None else 1
        return tuple(sorted(present))[-count:] if count else ()
