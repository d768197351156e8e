"""Starting, serving, stopping: the real Triton."""

from __future__ import annotations

import numpy as np
import pytest

from convoy.serving.client import Client
from convoy.serving.triton import TritonServer

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("protocol", ["grpc_url", "http_url"])
def test_a_started_server_answers_on_both_protocols(triton: TritonServer, protocol: str) -> None:
    images = np.arange(32, dtype=np.uint8).reshape(2, 4, 4, 1)

    with Client(getattr(triton, protocol)) as client:
        predictions = client.classify("tiny", images)

    assert [prediction.model_version for prediction in predictions] == ["1", "1"]
    assert sum(candidate.probability for candidate in predictions[0].top_k) == pytest.approx(1, abs=1e-5)
