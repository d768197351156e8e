"""``BenchReport``: what the loads on one model found out, beside the limit of this machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from convoy.serving.load.limit import Limit, LimitPoint
from convoy.serving.load.measurement import Measurement


@dataclass(frozen=True)
class MachineLimit:
    """What ONNX Runtime alone did before the loads and after them: the speed of a machine drifts.

    Attributes:
        before: Every point, before.
        after: The best point again, after.
    """

    before: Limit
    after: LimitPoint

    @property
    def images_per_s(self) -> float:
        """The limit: the mean of the best point before and after."""
        return (self.before.best.images_per_s + self.after.images_per_s) / 2

    @property
    def drift(self) -> float:
        """The speed after as a share of the speed before."""
        return self.after.images_per_s / self.before.best.images_per_s

    def as_dict(self) -> dict[str, Any]:
        """JSON's form."""
        return {
            "images_per_s": self.images_per_s,
            "drift": self.drift,
            "before": self.before.as_dict(),
            "after": asdict(self.after),
        }


@dataclass(frozen=True)
class BenchReport:
    """One model under several loads.

    Attributes:
        url: The server.
        model_name: The model.
        model_version: The version that answered; empty where the server does not say.
        private: Whether the server was started for this measurement.
        measurements: In the order of the loads.
        limit: The limit of this machine; None where it was not measured.
    """

    url: str
    model_name: str
    model_version: str
    private: bool
    measurements: tuple[Measurement, ...]
    limit: MachineLimit | None

    @property
    def n_errors(self) -> int:
        """Requests that failed."""
        return sum(measurement.n_errors for measurement in self.measurements)

    @property
    def first_error(self) -> str:
        """Why the first one did; empty where none did."""
        return next((measurement.first_error for measurement in self.measurements if measurement.first_error), "")

    def share_of_limit(self, measurement: Measurement) -> float | None:
        """A measurement's images a second as a share of the limit."""
        return None if self.limit is None else measurement.images_per_s / self.limit.images_per_s

    def as_dict(self) -> dict[str, Any]:
        """JSON's form."""
        return {
            "url": self.url,
            "model_name": self.model_name,
            "model_version": self.model_version,
            "private_server": self.private,
            "limit": None if self.limit is None else self.limit.as_dict(),
            "measurements": [
                {**measurement.as_dict(), "share_of_limit": self.share_of_limit(measurement)} for measurement in self.measurements
            ],
        }
