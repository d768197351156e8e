"""What the serving benchmark measures answers as it should: a benchmark of wrong answers measures nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks.peers import load_tool
from benchmarks.serving import OF_TRITON, triton_rest, write_repository
from convoy.contract.errors import ConvoyError, MissingDependencyError
from convoy.serving.triton import TritonServer


@pytest.mark.integration
def test_our_model_and_the_first_backend_answer_right_and_the_ceilings_answer_at_all(tmp_path: Path) -> None:
    subject = write_repository("lenet5", tmp_path)

    with TritonServer(tmp_path, http_port=0, grpc_port=0, metrics_port=0) as server:
        answers = {}
        for model in ("lenet5", *(f"lenet5-{name}" for name in OF_TRITON)):
            request = triton_rest(server, model, subject)
            answer = httpx.post(request.url, content=request.body, headers=request.headers).raise_for_status()
            data = answer.content[int(answer.headers["Inference-Header-Content-Length"]) :]
            answers[model] = np.frombuffer(data, np.float32)
        if shutil.which("wrk"):
            with pytest.raises(ConvoyError, match="requests failed"):
                load_tool.post(f"{server.http_url}/v2/models/nothing/infer", b"", {}, in_flight=1, seconds=1)

    np.testing.assert_allclose(answers["lenet5"], subject.expected, atol=1e-6)
    np.testing.assert_allclose(answers["lenet5-first"], subject.expected, atol=1e-6)
    assert answers["lenet5-ceiling"].shape == answers["lenet5-empty"].shape == subject.expected.shape


def test_a_load_tool_that_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    with pytest.raises(MissingDependencyError, match=r"h2load on PATH, found none: apt-get install nghttp2-client"):
        load_tool.require("h2load")
