"""A server of one's own for one model: whatever else is served stays out of the measurement, and is not disturbed by it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convoy.contract.errors import RepositoryError
from convoy.contract.manifest import check_model_name
from convoy.serving.triton import TritonServer


@contextmanager
def private_server(repository: Path, model_name: str, *, start_timeout_s: float = 120.0) -> Iterator[TritonServer]:
    """Run Triton on free ports, on one model of a repository alone.

    Args:
        repository: The model repository. It is read, never written.
        model_name: The model.
        start_timeout_s: How long the server may take until the model has answered.

    Yields:
        The server; it is stopped at the end.

    Raises:
        UsageError: ``model_name`` is no model name.
        RepositoryError: The repository has no such model.
        MissingDependencyError: This machine cannot run Triton.
        ServerError: The server did not start, or the model cannot be served.
    """
    folder = repository / check_model_name(model_name)
    if not folder.is_dir():
        if not repository.is_dir():
            raise RepositoryError(
                f"{repository}: no such model repository; --repository names another, --url measures a server that runs."
            )
        names = sorted(entry.name for entry in repository.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        raise RepositoryError(f"{repository}: expected the model {model_name!r}, found {', '.join(names) or 'none'}.")
    with tempfile.TemporaryDirectory(prefix="convoy-bench-") as scratch:
        alone = Path(scratch) / "model_repository"
        alone.mkdir()
        (alone / model_name).symlink_to(folder.resolve(), target_is_directory=True)
        with TritonServer(alone, http_port=0, grpc_port=0, metrics_port=0, start_timeout_s=start_timeout_s) as server:
            yield server
