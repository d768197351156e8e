"""Models that cannot be loaded: each says why, and none keeps the others from being served."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convoy.contract.errors import ServerError
from convoy.serving.client import Client
from convoy.serving.triton import TritonServer

pytestmark = pytest.mark.integration


def test_every_fault_is_named_and_the_good_model_is_served(
    tmp_path: Path, write_broken: Callable[[Path], dict[str, str]], write_tiny_model: Callable[..., Any], ours: object
) -> None:
    expected = write_broken(tmp_path)
    write_tiny_model(tmp_path)

    with TritonServer(tmp_path, http_port=0, grpc_port=0, metrics_port=0, keep_going=True, start_timeout_s=240) as server:
        failures = server.served.failures
        with Client(server.grpc_url) as client:
            answer = client.infer("tiny", {"image": np.zeros((1, 4, 4, 1), np.uint8)})

    assert answer.model_version == "1"
    assert set(failures) == set(expected)
    wrong = {name: failures[name] for name, pattern in expected.items() if not re.search(pattern, failures[name], re.DOTALL)}
    assert wrong == {}


def test_a_model_that_refuses_its_warm_up_is_not_served(
    tmp_path: Path, write_bad_warm_up: Callable[[Path], None], ours: object
) -> None:
    """Of such a model the wheel's server, 2.51, dies in about one load of four (signal 11); else it says why."""
    write_bad_warm_up(tmp_path)
    server = TritonServer(tmp_path, http_port=0, grpc_port=0, metrics_port=0)

    with pytest.raises(ServerError, match=r"warmup sample 'beyond': .*out of data bounds|killed by signal 11"):
        server.start()

    assert not server.running
