"""``pyarrow``, which only scoring needs."""

from __future__ import annotations

from typing import Any

from convoy.contract.errors import MissingDependencyError


def import_arrow() -> Any:
    """``pyarrow``, with its Parquet part.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(
            f"scoring needs pyarrow, which cannot be imported ({error}). Install it: pip install '.[score]' in Convoy's folder"
        ) from error
    return pyarrow
