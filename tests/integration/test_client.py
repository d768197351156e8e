"""The client on the real Triton: both wires, sync and async, its own errors."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convoy.contract.errors import (
    ClientError,
    DeadlineExceededError,
    InvalidRequestError,
    ModelNotFoundError,
    UnavailableError,
    UsageError,
)
from convoy.serving.client import AsyncClient, Client, ModelStatus
from convoy.serving.triton import TritonServer

pytestmark = pytest.mark.integration


def images(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 4, 4, 1), dtype=np.uint8)


@pytest.fixture(params=["grpc", "http"])
def url(request: pytest.FixtureRequest, triton: TritonServer) -> str:
    return triton.grpc_url if request.param == "grpc" else triton.http_url


async def test_both_wires_and_both_clients_answer_alike(triton: TritonServer, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(images(1)[0, ..., 0]).save(path)
    answers = []
    for url in (triton.grpc_url, triton.http_url):
        with Client(url) as client:
            answers.append((client.classify("tiny", images(21), top_k=3), client.classify("tiny", path)))
        async with AsyncClient(url) as aclient:
            answers.append((await aclient.classify("tiny", images(21), top_k=3), await aclient.classify("tiny", path)))
    for many, one in answers:
        assert len(many) == 21
        assert [p.label for p in many] == [p.label for p in answers[0][0]]
        assert np.allclose([p.probability for p in many], [p.probability for p in answers[0][0]], atol=1e-6)
        assert one[0].label == many[0].label
        assert {p.model_version for p in many} == {"1"}


def test_infer_gives_the_raw_outputs(url: str) -> None:
    with Client(url) as client:
        result = client.infer("tiny", {"image": images(5)})
        assert set(result.outputs) == {"logits", "probabilities"}
        assert result["logits"].shape == (5, 3)
        assert result["logits"].dtype == np.float32
        assert (result.model_name, result.model_version) == ("tiny", "1")
        assert set(client.infer("tiny", {"image": images(1)}, outputs=["logits"], model_version="1").outputs) == {"logits"}
        exp = np.exp(result["logits"] - result["logits"].max(axis=1, keepdims=True))
        assert np.allclose(exp / exp.sum(axis=1, keepdims=True), result["probabilities"], atol=1e-6)


async def test_the_server_describes_itself_alike_on_both_wires(triton: TritonServer) -> None:
    seen: list[Any] = []
    for url in (triton.grpc_url, triton.http_url):
        with Client(url) as client:
            assert client.live()
            assert client.ready()
            assert client.ready("tiny")
            assert client.ready("tiny", "1")
            assert not client.ready("tiny", "9")
            assert not client.ready("nobody")
            assert ModelStatus("tiny", "1", "READY", "") in client.models()
            seen.append((client.metadata("tiny"), client.interface("tiny"), client.config("tiny"), client.server()))
        async with AsyncClient(url) as aclient:
            assert await aclient.server() == seen[-1][3]
            assert await aclient.ready("tiny")
            assert not await aclient.ready("nobody")
    assert seen[0][0] == seen[1][0]
    assert seen[0][0].inputs[0].shape == (-1, 4, 4, 1)
    assert seen[0][1] == seen[1][1]
    assert seen[0][1].labels == ("ant", "bee", "cat")
    assert seen[0][2] == seen[1][2]
    assert seen[0][3] == seen[1][3]
    assert seen[0][3].name == "triton"
    assert "binary_tensor_data" in seen[0][3].extensions


@pytest.mark.parametrize(
    ("model_name", "model_version", "error"),
    [
        ("nobody", "", ModelNotFoundError),
        ("tiny", "9", ModelNotFoundError),
        ("../tiny", "", ClientError),
    ],
)
def test_a_model_or_version_that_is_not_there_is_said(url: str, model_name: str, model_version: str, error: type) -> None:
    with Client(url) as client:
        with pytest.raises(error) as caught:
            client.classify(model_name, images(1), model_version=model_version)
        assert repr(model_name) in str(caught.value)
        with pytest.raises(error):
            client.infer(model_name, {"image": images(1)}, model_version=model_version)
        with pytest.raises(error):
            client.metadata(model_name, model_version)
        with pytest.raises(error):
            client.statistics(model_name, model_version)


def test_the_command_line_names_the_served_models_where_one_is_not(url: str) -> None:
    from convoy.cli.connection import naming_the_served

    served = r"The server serves: .*tiny \(version 1\)"
    with pytest.raises(ModelNotFoundError, match=served), naming_the_served(url, 30), Client(url) as client:
        client.interface("tinny")


def test_a_version_that_is_no_number_is_refused_with_the_form_that_is_expected(url: str) -> None:
    with Client(url) as client:
        with pytest.raises(UsageError, match="expected a positive whole number"):
            client.classify("tiny", images(1), model_version="v1")
        for ask in (
            lambda: client.infer("tiny", {"image": images(1)}, model_version="v1"),
            lambda: client.metadata("tiny", "v1"),
        ):
            with pytest.raises(ClientError, match=r"positive whole number|a slip in the name or the version"):
                ask()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"image": np.zeros((1, 5, 4, 1), np.uint8)}, "shape"),
        ({"image": np.zeros((1, 4, 4, 1), np.float32)}, "UINT8"),
        ({"picture": np.zeros((1, 4, 4, 1), np.uint8)}, "picture"),
    ],
)
def test_tensors_that_the_model_does_not_take_are_refused(url: str, inputs: dict[str, np.ndarray], message: str) -> None:
    with Client(url) as client, pytest.raises(InvalidRequestError, match=message):
        client.infer("tiny", inputs)


def test_a_batch_of_any_size_is_answered_by_a_model_that_takes_eight(url: str) -> None:
    with Client(url) as client:
        many = client.infer("tiny", {"image": images(203)})
        assert many["probabilities"].shape == (203, 3)
        one_by_one = [client.infer("tiny", {"image": image[None]})["logits"][0] for image in images(203)[::50]]
        assert np.allclose(many["logits"][::50], one_by_one, atol=1e-5)
        assert [p.index for p in client.classify("tiny", images(203))] == many["probabilities"].argmax(axis=1).tolist()


def test_what_the_server_itself_says_of_wrong_tensors_is_an_invalid_request(url: str) -> None:
    with Client(url) as client:
        for name, array in (
            ("image", np.zeros((1, 5, 4, 1), np.uint8)),
            ("image", np.zeros((9, 4, 4, 1), np.uint8)),
            ("picture", np.zeros((1, 4, 4, 1), np.uint8)),
            ("image", np.zeros((1, 4, 4, 1), np.float32)),
        ):
            with pytest.raises(InvalidRequestError):
                _send_unchecked(client, name, array)
        with pytest.raises(InvalidRequestError):
            _send_unchecked(client, "image", images(1), outputs=("nothing",))


def test_no_images_at_all_are_answered_by_none(url: str) -> None:
    with Client(url) as client:
        assert client.classify("tiny", []) == []
        assert client.classify("tiny", images(0)) == []
        with pytest.raises(InvalidRequestError):  # Triton takes no batch of none
            client.infer("tiny", {"image": images(0)})


def _send_unchecked(client: Client, name: str, array: np.ndarray, outputs: tuple[str, ...] = ()) -> None:
    from convoy.serving.client._call import Infer, Tensor
    from convoy.serving.client._datatype import datatype_of, encode

    datatype = datatype_of(array) or ""
    tensor = Tensor(name, datatype, array.shape, encode(array, datatype))
    client._drive(client._begin("infer", None).ask(Infer("tiny", "", inputs=(tensor,), outputs=outputs)))


def test_a_request_that_can_not_be_met_in_time_is_a_deadline_exceeded(url: str) -> None:
    with Client(url) as client:
        client.classify("tiny", images(1))
        with pytest.raises((DeadlineExceededError, UnavailableError)):
            client.classify("tiny", images(8), timeout_s=1e-5)
        assert len(client.classify("tiny", images(8))) == 8


def test_callers_that_give_up_by_the_thousand_do_not_end_the_server(triton: TritonServer) -> None:
    counts = {"late": 0, "answered": 0}

    def call(client: Client) -> None:
        end = time.monotonic() + 60
        while counts["late"] < 5000 and time.monotonic() < end:
            try:
                client.infer("tiny", {"image": images(1)}, timeout_s=2e-3)
                counts["answered"] += 1
            except DeadlineExceededError:
                counts["late"] += 1

    with Client(triton.grpc_url) as client:
        client.infer("tiny", {"image": images(1)})
        threads = [threading.Thread(target=call, args=(client,)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(90)
        assert counts["late"] >= 5000
        assert triton.running
        assert client.infer("tiny", {"image": images(1)})


def test_the_rest_port_given_as_grpc_and_the_other_way_round_are_explained(triton: TritonServer) -> None:
    for wrong in (triton.http_url.replace("http", "grpc"), triton.grpc_url.replace("grpc", "http")):
        with Client(wrong, timeout_s=5) as client, pytest.raises(ClientError, match="REST: 8000"):
            client.models()


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_server_killed_under_a_call_is_unavailable_within_the_deadline(scheme: str, triton: TritonServer, tmp_path: Path) -> None:
    shutil.copytree(triton.repository, tmp_path / "repository")
    server = TritonServer(tmp_path / "repository", http_port=0, grpc_port=0, metrics_port=0)
    with server, Client(server.grpc_url if scheme == "grpc" else server.http_url, timeout_s=10) as client:
        client.classify("tiny", images(1))
        caught: list[ClientError] = []

        def call() -> None:
            try:
                while True:
                    client.classify("tiny", images(8))
            except ClientError as error:
                caught.append(error)

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        pid = server.pid()
        assert pid is not None
        start = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        for thread in threads:
            thread.join(15)
        assert [type(error) for error in caught] == [UnavailableError] * 4, caught
        assert time.monotonic() - start < 15
