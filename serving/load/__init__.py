"""Load on a served model, and what it finds out: throughput and latency beside the limit of this machine.

Example:
    >>> from convoy.serving.load import Closed, Target, measure
    >>> measurement = measure(Target.of("http://localhost:8000", "lenet5"), Closed(16))
    >>> measurement.images_per_s, measurement.latency_ms.p99
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

# Resolved on first use: the generator's processes import this package, and they need next to nothing of it.
_PLACES = {
    "Closed": "traffic",
    "Load": "traffic",
    "Limit": "limit",
    "Measurement": "measurement",
    "Open": "traffic",
    "Percentiles": "latency",
    "ServerShare": "server_share",
    "Target": "target",
    "Window": "measurement",
    "in_process_limit": "limit",
    "measure": "measuring",
}

if TYPE_CHECKING:
    from convoy.serving.load.latency import Percentiles as Percentiles
    from convoy.serving.load.limit import Limit as Limit
    from convoy.serving.load.limit import in_process_limit as in_process_limit
    from convoy.serving.load.measurement import Measurement as Measurement
    from convoy.serving.load.measurement import Window as Window
    from convoy.serving.load.measuring import measure as measure
    from convoy.serving.load.server_share import ServerShare as ServerShare
    from convoy.serving.load.target import Target as Target
    from convoy.serving.load.traffic import Closed as Closed
    from convoy.serving.load.traffic import Load as Load
    from convoy.serving.load.traffic import Open as Open


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_PLACES)
