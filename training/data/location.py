"""Where data sets are looked for, and where downloads are kept."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


def _home_cache() -> Path:
    return Path("~/.cache/convoy").expanduser()


@dataclass(frozen=True)
class DataLocation:
    """Folders with data.

    Attributes:
        root: The person's own data, a folder a data set (``mnist/``, ...); None where there is none.
        cache: Where downloads are kept.
        download: Whether what is in neither may be downloaded.
    """

    root: Path | None = None
    cache: Path = field(default_factory=_home_cache)
    download: bool = True

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> DataLocation:
        """``CONVOY_DATA`` names the root, ``XDG_CACHE_HOME`` the folder of caches; for the edge of the process alone."""
        values = os.environ if environment is None else environment
        root, cache = values.get("CONVOY_DATA"), values.get("XDG_CACHE_HOME")
        return cls(
            root=Path(root).expanduser() if root else None,
            cache=Path(cache).expanduser() / "convoy" if cache else _home_cache(),
        )
