"""A model that reads amounts on the real Triton: the client, `convoy predict` and `convoy score`."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convoy.contract.errors import InvalidRequestError, UsageError
from convoy.serving.client import AsyncClient, Client
from convoy.serving.scoring import score
from convoy.serving.triton import TritonServer

pytestmark = pytest.mark.integration
CONVOY = [sys.executable, "-c", "from convoy.cli import main; main()"]


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, write_reader: Callable[..., Path], write_tiny_model: Callable[..., Path]
) -> Iterator[TritonServer]:
    """A Triton with the reader ``check-reader`` and the classifier ``tiny``."""
    repository = tmp_path_factory.mktemp("readers")
    write_reader(repository)
    write_tiny_model(repository)
    with TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0) as server:
        yield server


@pytest.fixture(scope="module")
def fields() -> list[np.ndarray]:
    """Fields of the reader's height and every width that it takes."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (8, width), dtype=np.uint8) for width in rng.permutation(np.arange(1, 65)).tolist()]


async def test_both_wires_and_both_clients_read_alike_many_and_one_by_one(
    server: TritonServer, fields: list[np.ndarray], expected_reading: Callable[[Any], tuple[str, float]]
) -> None:
    answers = []
    for url in (server.grpc_url, server.http_url):
        with Client(url) as client:
            answers.append(client.read_amounts(iter(fields)))
            answers.append([client.read_amount(field) for field in fields])
        async with AsyncClient(url) as aclient:
            answers.append(await aclient.read_amounts(fields))
            answers.append(list(await asyncio.gather(*(aclient.read_amount(field) for field in fields))))
    assert all(amounts == answers[0] for amounts in answers)
    for amount, field in zip(answers[0], fields, strict=True):
        text, confidence = expected_reading(field)
        assert (amount.text, amount.value) == (text, int(text))
        assert amount.confidence == pytest.approx(confidence)
        assert amount.accepted == (confidence >= 0.5)
        assert [other.text for other in amount.alternatives] == [text, text[:2]]
        assert "".join(character.character for character in amount.characters) == text
        assert 0 <= amount.characters[0].left_px < amount.characters[-1].right_px == max(1, field.shape[1])


def test_many_threads_at_once_get_each_their_own_amounts(
    server: TritonServer, fields: list[np.ndarray], expected_reading: Callable[[Any], tuple[str, float]]
) -> None:
    with Client(server.grpc_url) as client, ThreadPoolExecutor(16) as threads:
        amounts = list(threads.map(client.read_amount, fields * 5))
    assert [amount.text for amount in amounts] == [expected_reading(field)[0] for field in fields] * 5


def test_what_the_server_refuses_says_so(server: TritonServer) -> None:
    with Client(server.grpc_url) as client:
        image = np.zeros((1, 8, 16, 1), np.uint8)
        with pytest.raises(InvalidRequestError):
            client.infer("check-reader", {"image": image})
        with pytest.raises(InvalidRequestError):
            client.infer("check-reader", {"image": image[:, :4], "width": np.array([[16]])})
        with pytest.raises(UsageError, match="it reads amounts"):
            client.classify("check-reader", image)
        with pytest.raises(UsageError, match="it tells 3 classes apart"):
            client.read_amount(image[0], model_name="tiny")


def test_predict_and_score_give_what_the_client_gives(server: TritonServer, fields: list[np.ndarray], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "fields"
    folder.mkdir()
    for i, field in enumerate(fields):
        Image.fromarray(field).save(folder / f"{i:02}.png")
    with Client(server.grpc_url) as client:
        expected = client.read_amounts(sorted(folder.iterdir()))
    done = subprocess.run(
        [*CONVOY, "predict", "check-reader", str(folder), "--url", server.http_url, "--json", "--draw", str(tmp_path / "drawn")],
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["text"], line["confidence"], line["accepted"]) for line in lines] == [
        (amount.text, amount.confidence, amount.accepted) for amount in expected
    ]
    assert len(list((tmp_path / "drawn").glob("*.read.png"))) == len(fields)
    summary = score("check-reader", folder, tmp_path / "scored", url=server.grpc_url, chunk_rows=16).finish()
    assert (summary.n_scored, summary.n_failed) == (len(fields), 0)
    rows = parquet.read_table(tmp_path / "scored").to_pylist()
    assert [(row["label"], row["probability"], row["accepted"]) for row in rows] == [
        (amount.text, pytest.approx(amount.confidence), amount.accepted) for amount in expected
    ]
