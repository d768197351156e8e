"""A server on the repository of the backend contract, and clients of it.

Here the wheel's server with Convoy's backend answers. To hold another server to the same contract (NVIDIA's container, say), write
the repository, serve it there, and name the server::

    python tests/integration/backend_contract/repository.py /models
    export CONVOY_CONTRACT_URL=grpc://host:8001 CONVOY_CONTRACT_HTTP_URL=http://host:8000
    python -m pytest tests/integration/backend_contract

Without the second name what needs REST is skipped; what needs the server's host (shared memory, models that cannot be loaded) and
what is Convoy's alone is skipped elsewhere.
"""

from __future__ import annotations

import os
import runpy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convoy.serving.client import Client
from convoy.serving.triton import TritonServer

_REPOSITORY = runpy.run_path(str(Path(__file__).with_name("repository.py")))


@dataclass(frozen=True)
class Contracted:
    """The server that is held to the contract.

    Attributes:
        grpc_url: Its gRPC.
        http_url: Its REST; empty where nobody named it.
        is_ours: Whether it is the wheel's server with Convoy's backend, on this machine.
    """

    grpc_url: str
    http_url: str
    is_ours: bool


@pytest.fixture(scope="session")
def contracted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Contracted]:
    """The server that is held to the contract."""
    url = os.environ.get("CONVOY_CONTRACT_URL")
    if url:
        yield Contracted(url, os.environ.get("CONVOY_CONTRACT_HTTP_URL", ""), is_ours=False)
        return
    root = tmp_path_factory.mktemp("contract")
    _REPOSITORY["write_repository"](root)
    with TritonServer(root, http_port=0, grpc_port=0, metrics_port=0, start_timeout_s=240) as server:
        yield Contracted(server.grpc_url, server.http_url, is_ours=True)


@pytest.fixture(scope="session")
def contract(contracted: Contracted) -> Iterator[Client]:
    """A client by gRPC."""
    with Client(contracted.grpc_url) as client:
        yield client


@pytest.fixture(scope="session")
def http_url(contracted: Contracted) -> str:
    """Where REST is."""
    if not contracted.http_url:
        pytest.skip("CONVOY_CONTRACT_HTTP_URL names no REST endpoint")
    return contracted.http_url


@pytest.fixture(scope="session", params=["grpc", "http"])
def either(request: pytest.FixtureRequest, contracted: Contracted) -> Iterator[Client]:
    """A client by gRPC, and one by REST."""
    url = contracted.grpc_url if request.param == "grpc" else request.getfixturevalue("http_url")
    with Client(url) as client:
        yield client


@pytest.fixture(scope="session")
def wire(contracted: Contracted) -> Iterator[Any]:
    """NVIDIA's own client by gRPC, for what Convoy's does not offer."""
    from tritonclient import grpc

    with grpc.InferenceServerClient(contracted.grpc_url.removeprefix("grpc://")) as client:
        yield client


@pytest.fixture(scope="session")
def refuses_rows(wire: Any) -> Callable[..., None]:
    """Makes sure that the server refuses so many rows in one request; Convoy's client would send them in several."""
    from tritonclient import grpc
    from tritonclient.utils import InferenceServerException

    def check(model_name: str, array: Any) -> None:
        tensor = grpc.InferInput("x", list(array.shape), "FP32")
        tensor.set_data_from_numpy(array)
        with pytest.raises(InferenceServerException) as refusal:
            wire.infer(model_name, [tensor])
        assert "INVALID_ARGUMENT" in str(refusal.value.status())

    return check


@pytest.fixture(scope="session")
def ours(contracted: Contracted) -> Contracted:
    """The server, where it is Convoy's and on this machine."""
    if not contracted.is_ours:
        pytest.skip("only of Convoy's own server")
    return contracted


@pytest.fixture(scope="session")
def rows() -> Callable[..., Any]:
    """Makes rows of two equal numbers."""

    def make(*values: float) -> Any:
        return np.array([[value, value] for value in values], np.float32)

    return make


@pytest.fixture(scope="session")
def write_broken() -> Callable[[Path], dict[str, str]]:
    """Writes the models that cannot be loaded; returns what their errors say."""
    write: Callable[[Path], dict[str, str]] = _REPOSITORY["write_broken"]
    return write


@pytest.fixture(scope="session")
def write_bad_warm_up() -> Callable[[Path], None]:
    """Writes a model that refuses its own warm-up sample."""
    write: Callable[[Path], None] = _REPOSITORY["write_bad_warm_up"]
    return write
