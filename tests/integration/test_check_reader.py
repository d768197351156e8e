"""The check reader that ships, on the real server: what it answers, alone and in company, and on real amounts."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from convoy.contract.bundle import Bundle
from convoy.contract.errors import UsageError
from convoy.contract.field import FieldPixels
from convoy.serving.client import AsyncClient, Client
from convoy.serving.triton import TritonServer
from convoy.training.check_reader.building import load_handwriting
from convoy.training.check_reader.field_image import SyntheticField, SyntheticFields
from convoy.training.check_reader.fields import load_orand

pytestmark = pytest.mark.integration

SHIPPED = Path(__file__).parents[2] / "model_repository" / "check-reader"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = tmp_path_factory.mktemp("check_reader") / "model_repository"
    shutil.copytree(SHIPPED, repository / "check-reader")
    with TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Iterator[Client]:
    with Client(server.grpc_url) as client:
        yield client


@pytest.fixture(scope="module")
def fields() -> list[SyntheticField]:
    drawing = SyntheticFields(load_handwriting("digits", "test"), "chilean", 77)
    return [drawing.draw(index) for index in range(40)]


def test_the_goldens_are_read_as_at_export(client: Client) -> None:
    bundle = Bundle.open(SHIPPED / "1")
    goldens = bundle.goldens()
    labels = bundle.manifest.labels
    for pixels, width, characters, n in zip(
        goldens.inputs["image"],
        goldens.inputs["width"],
        goldens.outputs["characters"],
        goldens.outputs["n_characters"],
        strict=True,
    ):
        amount = client.read_amount(FieldPixels(pixels, int(width[0]), 1.0))
        assert amount.text == "".join(labels[place] for place in characters[0, : n[0]])


def test_fields_of_all_widths_are_read_alike_alone_and_in_company_on_both_wires(
    server: TritonServer, client: Client, fields: list[SyntheticField]
) -> None:
    images = [field.image for field in fields]
    together = client.read_amounts(images)
    alone = [client.read_amount(image) for image in images]
    assert [amount.text for amount in together] == [amount.text for amount in alone]
    assert np.allclose([a.confidence for a in together], [a.confidence for a in alone], atol=1e-3)
    with Client(server.http_url) as rest:
        assert [amount.text for amount in rest.read_amounts(images)] == [amount.text for amount in alone]

    async def read() -> list[str]:
        async with AsyncClient(server.grpc_url) as asynchronous:
            return [amount.text for amount in await asynchronous.read_amounts(images)]

    assert asyncio.run(read()) == [amount.text for amount in alone]
    right = [amount.value == int(field.digits) for amount, field in zip(together, fields, strict=True)]
    assert sum(right) >= 18  # of 40, written with coarse digits of another set than it learnt from


def test_light_ink_and_a_form_around_the_field_change_no_amount(client: Client, fields: list[SyntheticField]) -> None:
    sure = [field for field, amount in zip(fields, client.read_amounts([f.image for f in fields]), strict=True) if amount.accepted]
    assert len(sure) > 4
    for field in sure[:5]:
        plain = client.read_amount(field.image)
        inverted = client.read_amount(ImageOps.invert(Image.fromarray(field.image)))
        assert inverted.value == plain.value
        form = Image.new("L", (700, 300), 200)
        form.paste(Image.fromarray(field.image), (90, 120))
        height, width = field.image.shape
        on_form = client.read_amount(form, box=(90, 120, width, height))
        assert on_form.text == plain.text
        assert [c.left_px - 90 for c in on_form.characters] == [c.left_px for c in plain.characters]
        assert all(90 <= c.left_px < c.right_px <= 90 + width for c in on_form.characters)


@pytest.mark.parametrize(
    "image", [np.full((50, 150), 255, np.uint8), np.zeros((1, 1), np.uint8), np.full((40, 900), 128, np.uint8)]
)
def test_an_empty_field_is_for_a_person(client: Client, image: np.ndarray) -> None:  # type: ignore[type-arg]
    amount = client.read_amount(image)
    assert amount.value is None
    assert (amount.text, amount.confidence, amount.accepted) == ("", 0.0, False)


def test_nothing_is_read_in_most_fields_that_hold_no_amount(client: Client) -> None:
    drawing = SyntheticFields(load_handwriting("digits", "test"), "chilean", 11, void_share=1.0)
    amounts = client.read_amounts([drawing.draw(index).image for index in range(120)])
    assert np.mean([amount.text == "" for amount in amounts]) > 0.85
    assert sum(amount.accepted for amount in amounts) <= 2


def test_it_is_no_classifier(client: Client) -> None:
    with pytest.raises(UsageError, match="read_amount"):
        client.classify("check-reader", np.zeros((48, 96), np.uint8))


@pytest.mark.skipif(not (Path(os.environ.get("CONVOY_DATA", "")) / "orand_car_a").is_dir(), reason="CONVOY_DATA has no orand_car_a")
def test_real_amounts_that_it_never_saw_are_read(client: Client) -> None:
    real = list(load_orand(Path(os.environ["CONVOY_DATA"]) / "orand_car_a", boxes=False))[::9]
    amounts = client.read_amounts([field.image for field in real])
    right = [amount.value == int(field.digits) for field, amount in zip(real, amounts, strict=True)]
    assert np.mean(right) > 0.55
    accepted = [answer for answer, amount in zip(right, amounts, strict=True) if amount.accepted]
    assert np.mean(accepted) > 0.85
