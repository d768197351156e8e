"""Callers that come together are answered together: Triton's own statistics say so."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from convoy.serving.client import Client
from convoy.serving.triton import TritonServer

pytestmark = pytest.mark.integration


def test_batches_form_under_load(triton: TritonServer) -> None:
    def statistics() -> dict[int, int]:
        answer = httpx.get(f"{triton.http_url}/v2/models/tiny/stats").json()["model_stats"][0]
        return {entry["batch_size"]: entry["compute_infer"]["count"] for entry in answer["batch_stats"]}

    before = statistics()
    image = np.zeros((1, 4, 4, 1), np.uint8)
    with Client(triton.grpc_url) as client, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: client.infer("tiny", {"image": image}).model_version, range(400)))

    after = statistics()
    assert answers == ["1"] * 400
    assert sum(after.get(size, 0) - before.get(size, 0) for size in range(2, 9)) > 0, f"no batch formed: {after}"
