"""Does a model's configuration say everything, so that Triton need not ask the backend to complete it?

Asking costs a process and its slow end: a server whose models all say everything starts in a quarter of the time, and loads a model
eight times as fast (0.24 s against 2.0 s), which is how long callers wait for a model whose process has died.
"""

from __future__ import annotations

from pathlib import Path

from convoy.contract.errors import RepositoryError
from convoy.serving.repository.config import load_config


def is_complete(model_folder: Path) -> bool:
    """Whether the model's ``config.pbtxt`` names its backend and every tensor with datatype and dims.

    A file that cannot be parsed counts as complete: Triton refuses it either way.
    """
    path = model_folder / "config.pbtxt"
    if not path.exists():
        return False
    try:
        config = load_config(path)
    except RepositoryError:
        return True
    return bool(
        config.name
        and config.backend
        and config.input
        and config.output
        and all(tensor.data_type and (tensor.dims or tensor.HasField("reshape")) for tensor in (*config.input, *config.output))
    )
