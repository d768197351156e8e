"""``read_amount`` and ``read_amounts`` on a fake server: what is sent, what is answered, what is refused."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from convoy.contract.errors import ImageError, InvalidRequestError, InvalidResponseError, UnavailableError, UsageError
from convoy.contract.field import Box, FieldPixels, to_field
from convoy.contract.image import ImageSpec
from convoy.contract.reading import OUTPUT_NAMES
from convoy.serving.client import Alternative, Amount, AsyncClient, Character, Client
from convoy.serving.client._call import Infer, ReadConfig
from convoy.serving.client.testing import AsyncFakeTransport, FakeModel, FakeTransport

HEIGHT_PX = 8


def by_first_pixel(field: np.ndarray) -> list[tuple[str, float]]:
    """A reader whose answer the test can foretell: the first pixel, and the field's width as its decimals."""
    return [(f"{field[0, 0]}.{field.shape[1]:03}", 0.75), (f"{field[0, 0]}", 0.125)]


def make_reader(read: Callable[..., Any] = by_first_pixel, **options: Any) -> FakeModel:
    options = {"height_px": HEIGHT_PX, "widths_px": (16, 32, 64), "max_batch_size": 4, "threshold": 0.7, "version": "3", **options}
    return FakeModel.of_amounts(read, **options)


@pytest.fixture
def reader() -> FakeTransport:
    """A fake server with the reader ``check-reader``."""
    return FakeTransport({"check-reader": make_reader()})


@pytest.fixture
def client(reader: FakeTransport) -> Iterator[Client]:
    with Client(transport=reader) as client:
        yield client


def field(value: int, width_px: int = 20, height_px: int = HEIGHT_PX) -> np.ndarray:
    return np.full((height_px, width_px), value, np.uint8)


def texts(amounts: list[Amount]) -> list[str]:
    return [amount.text for amount in amounts]


def test_an_amount_says_value_text_places_confidence_and_alternatives(client: Client) -> None:
    amount = client.read_amount(field(7, 40))
    assert amount == Amount(
        value=Decimal("7.040"),
        text="7.040",
        characters=tuple(Character(character, 8 * i, 8 * i + 8) for i, character in enumerate("7.040")),
        confidence=0.75,
        accepted=True,
        alternatives=(Alternative("7.040", Decimal("7.040"), 0.75), Alternative("7", Decimal(7), 0.125)),
        model_name="check-reader",
        model_version="3",
    )


@pytest.mark.parametrize(("threshold", "accepted"), [(0.75, True), (0.7500001, False), (0.0, True), (None, False)])
def test_an_amount_is_accepted_from_the_threshold_on_and_never_without_one(threshold: float | None, accepted: bool) -> None:
    with Client(transport=FakeTransport({"check-reader": make_reader(threshold=threshold)})) as client:
        assert client.read_amount(field(1)).accepted is accepted


def test_a_field_in_which_nothing_is_read_has_an_empty_amount_that_nobody_accepts() -> None:
    with Client(transport=FakeTransport({"check-reader": make_reader(lambda _: [], threshold=0.0)})) as client:
        assert client.read_amount(field(1)) == Amount(None, "", (), 0.0, False, (), "check-reader", "3")


def test_the_amount_that_is_read_is_the_first_whatever_the_posteriors_of_the_others() -> None:
    read = [("1.50", 0.25), ("", 0.125), ("7.50", 0.5)]
    with Client(transport=FakeTransport({"check-reader": make_reader(lambda _: read)})) as client:
        amount = client.read_amount(field(1))
    assert amount.text == "1.50"
    assert [(alternative.text, alternative.posterior) for alternative in amount.alternatives] == read


def test_an_amount_without_a_digit_has_no_value() -> None:
    with Client(transport=FakeTransport({"check-reader": make_reader(lambda _: [("$-", 0.5)])})) as client:
        assert client.read_amount(field(1)).value is None


def test_images_of_every_form_are_read_one_by_one_and_together(client: Client, tmp_path: Path) -> None:
    picture = Image.fromarray(field(2))
    path = tmp_path / "two.png"
    picture.save(path)
    data = path.read_bytes()
    made = to_field(path, client.interface("check-reader").image)
    forms: list[Any] = [field(2), field(2)[..., None], picture, path, str(path), data, io.BytesIO(data), made]
    forms.append(Image.new("RGB", (40, 2 * HEIGHT_PX), (2, 2, 2)))
    assert [client.read_amount(form).text for form in forms] == ["2.020"] * len(forms)
    forms[6].seek(0)
    assert texts(client.read_amounts(forms)) == ["2.020"] * len(forms)
    forms[6].seek(0)
    assert texts(client.read_amounts(form for form in forms)) == ["2.020"] * len(forms)
    assert texts(client.read_amounts(path)) == ["2.020"]
    assert texts(client.read_amounts(made)) == ["2.020"]
    assert texts(client.read_amounts(np.stack([field(1), field(2)]))) == ["1.020", "2.020"]
    assert client.read_amounts([]) == []


@given(fields=st.lists(st.tuples(st.integers(0, 255), st.integers(1, 64)), max_size=15), max_batch_size=st.integers(1, 5))
def test_fields_of_mixed_widths_are_answered_in_order_and_as_one_by_one(fields: list[tuple[int, int]], max_batch_size: int) -> None:
    fake = FakeTransport({"check-reader": make_reader(max_batch_size=max_batch_size)})
    images = [field(value, width) for value, width in fields]
    with Client(transport=fake) as client:
        amounts = client.read_amounts(image for image in images)
        requests = fake.inferences
        assert amounts == [client.read_amount(image) for image in images]
    assert texts(amounts) == [f"{value}.{width:03}" for value, width in fields]
    assert sum(call.inputs[0].shape[0] for call in requests) == len(fields)
    for call in requests:
        pixels, widths = call.inputs
        assert pixels.shape[2] in (16, 32, 64)
        assert widths.shape == (pixels.shape[0], 1)
        assert pixels.shape[0] <= max_batch_size
    assert len({call.request_id for call in requests}) == len(requests)


async def test_the_async_client_reads_alike(reader: FakeTransport, client: Client) -> None:
    images = [field(i, 1 + 5 * i) for i in range(13)]

    async def one_by_one() -> Any:
        for image in images:
            yield image

    async with AsyncClient(transport=AsyncFakeTransport(reader)) as aclient:
        expected = client.read_amounts(images)
        assert await aclient.read_amounts(images) == expected
        assert await aclient.read_amounts(one_by_one()) == expected
        assert await aclient.read_amount(images[3]) == expected[3]
        assert await aclient.read_amount(field(5, 60, 24), box=(20, 8, 30, 8)) == client.read_amount(
            field(5, 60, 24), box=Box(20, 8, 30, 8)
        )


def test_a_generator_of_images_is_read_no_further_than_it_is_sent() -> None:
    read = []

    def images() -> Iterator[np.ndarray]:
        for index in range(1000):
            read.append(index)
            yield field(0)

    model = make_reader()
    broken = replace(model, run=lambda inputs: {**model.run(inputs), "confidence": np.full((4, 1), np.nan, np.float32)})
    with pytest.raises(InvalidResponseError), Client(transport=FakeTransport({"check-reader": broken})) as client:
        client.read_amounts(images())
    assert 4 <= len(read) < 100  # a few pieces of work ahead, and what waits for fields of the same width


def test_fields_of_one_width_share_requests_however_they_are_mixed() -> None:
    fake = FakeTransport({"check-reader": make_reader(max_batch_size=8)})
    images = [field(i % 250 + 1, (10, 20, 40)[i * i % 7 % 3]) for i in range(200)]
    with Client(transport=fake) as client:
        amounts = client.read_amounts(images)
    assert texts(amounts) == [f"{image[0, 0]}.{image.shape[1]:03}" for image in images]
    sizes = [call.inputs[0].shape[0] for call in fake.inferences]
    assert sum(sizes) == 200
    assert len(sizes) <= 200 // 8 + 3  # all are full, but for the last of each width


@pytest.mark.parametrize("max_in_flight", [1, 2])
async def test_few_requests_at_once_are_enough(max_in_flight: int) -> None:
    fake = FakeTransport({"check-reader": make_reader()})
    images = [field(i, 1 + i % 64) for i in range(100)]
    with Client(transport=fake, max_in_flight=max_in_flight) as client:
        expected = client.read_amounts(images)
    assert texts(expected) == [f"{i}.{1 + i % 64:03}" for i in range(100)]
    async with AsyncClient(transport=AsyncFakeTransport(fake), max_in_flight=max_in_flight) as aclient:
        assert await aclient.read_amounts(images) == expected


async def test_a_failure_in_the_midst_ends_the_call(reader: FakeTransport, client: Client) -> None:
    images = [field(1)] * 60 + [b"no image"] + [field(1)] * 60
    with pytest.raises(ImageError, match="image 60: "):
        client.read_amounts(images)
    async with AsyncClient(transport=AsyncFakeTransport(reader)) as aclient:
        with pytest.raises(ImageError, match="image 60: "):
            await aclient.read_amounts(images)
        reader.failures.append(InvalidRequestError("no"))
        with pytest.raises(InvalidRequestError, match="no"):
            await aclient.read_amounts([field(1)] * 60)
        assert len(await aclient.read_amounts([field(1)] * 60)) == 60


def test_progress_is_told_in_the_calling_thread(client: Client) -> None:
    told: list[tuple[int, bool]] = []
    here = threading.get_ident()
    client.read_amounts([field(1)] * 10, progress=lambda n: told.append((n, threading.get_ident() == here)))
    assert told[-1] == (10, True)
    assert all(same for _, same in told)


@pytest.mark.parametrize("scale", [1, 2, 3, 0.5])
def test_places_are_those_on_the_image_that_was_given(scale: float, client: Client) -> None:
    height = int(HEIGHT_PX * scale)
    amount = client.read_amount(field(7, int(40 * scale), height))
    places = [(c.left_px, c.right_px) for c in amount.characters]
    assert places == [(int(8 * i * scale), int(8 * (i + 1) * scale)) for i in range(5)]
    form = np.full((100, 300), 9, np.uint8)
    form[30 : 30 + height, 110 : 110 + int(40 * scale)] = 7
    boxed = client.read_amount(form, box=(110, 30, int(40 * scale), height))
    assert boxed.text == amount.text
    assert [(c.left_px - 110, c.right_px - 110) for c in boxed.characters] == places


@given(width_px=st.integers(1, 300), height_px=st.integers(1, 60), left_px=st.integers(0, 9))
def test_places_never_leave_the_field_and_no_character_is_empty(width_px: int, height_px: int, left_px: int) -> None:
    if width_px / height_px > 8:
        width_px = 8 * height_px
    with Client(transport=FakeTransport({"check-reader": make_reader()})) as client:
        form = np.zeros((height_px + 2, left_px + width_px), np.uint8)
        amount = client.read_amount(form, box=(left_px, 1, width_px, height_px))
    for character in amount.characters:
        assert left_px <= character.left_px < character.right_px <= left_px + width_px


@pytest.mark.parametrize(
    "box", [(0, 0, 0, 1), (0, 0, 1, 0), (-1, 0, 2, 2), (0, -1, 2, 2), (19, 0, 2, 2), (0, 7, 2, 2), (99, 99, 1, 1)]
)
def test_a_box_that_does_not_lie_on_the_image_is_an_image_error(box: Any, client: Client) -> None:
    with pytest.raises(ImageError, match=r"expected a box \(left, top, width, height\) on the image of 20x8 pixels"):
        client.read_amount(field(1), box=box)


@pytest.mark.parametrize("box", [(1, 1, 8, 4), [1, 1, 8, 4], np.array([1, 1, 8, 4], np.int32), tuple(np.array([1, 1, 8, 4]))])
def test_four_whole_numbers_of_any_kind_are_a_box(box: Any, client: Client) -> None:
    assert client.read_amount(field(1), box=box) == client.read_amount(field(1), box=Box(1, 1, 8, 4))


@pytest.mark.parametrize(
    "box", [(1, 2, 3), "1234", 5, (1.5, 0, 2, 2), (True, 0, 2, 2), [None] * 4, np.array([1.0, 1, 8, 4]), np.ones((4, 4), int)]
)
def test_a_box_that_is_none_is_refused(box: Any, client: Client) -> None:
    with pytest.raises(UsageError, match="box: expected four whole numbers"):
        client.read_amount(field(1), box=box)


def test_an_image_that_cannot_be_read_fails_the_call_and_is_named(client: Client, tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match=r"image 1: .*empty\.png: expected an image"):
        client.read_amounts([field(1), tmp_path / "empty.png"])
    with pytest.raises(ImageError, match=r"image 5: .* at most 8 times as wide as high, found 10000x8 pixels"):
        client.read_amounts([*[field(1)] * 5, field(1, 10_000)])
    with pytest.raises(ImageError, match="found list"):
        client.read_amount([field(1)])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="found int"):
        client.read_amounts(3)  # type: ignore[arg-type]


def test_a_field_that_was_made_for_another_model_is_refused(client: Client) -> None:
    spec = ImageSpec(height_px=9, width_px=64, channels=1, resize="height", widths_px=(64,))
    with pytest.raises(ImageError, match="made for another model"):
        client.read_amount(to_field(field(1), spec))
    with pytest.raises(ImageError, match="made for another model"):
        client.read_amount(FieldPixels(np.zeros((8, 17, 1), np.uint8), 17, 1.0))
    with pytest.raises(ImageError, match="leave the box out"):
        client.read_amount(FieldPixels(np.zeros((8, 16, 1), np.uint8), 16, 1.0), box=(0, 0, 1, 1))


def test_a_reader_does_not_classify_and_a_classifier_does_not_read(client: Client, reader: FakeTransport) -> None:
    reader.models["digits"] = FakeModel.of_labels(["0", "1"], lambda pixels: np.full((len(pixels), 2), 0.5))
    with pytest.raises(UsageError, match=r"'check-reader' cannot be used with classify.*client\.read_amount\(image"):
        client.classify("check-reader", field(1))
    with pytest.raises(UsageError, match=r"'digits' cannot be used with read_amount.*client\.classify\('digits', images\)"):
        client.read_amount(field(1), model_name="digits")
    assert client.interface("digits").task == "image-classification"
    assert client.interface("check-reader").task == "amount-reading"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("positions"), "positions"),
        (lambda a: a.update(characters=a["characters"][:, :, :0]), r"characters of shape \(2, 3, 1 to 64\)"),
        (lambda a: a.update(characters=np.full((2, 3, 65), -1)), r"found \(2, 3, 65\)"),
        (lambda a: a.update(characters=a["characters"][0]), r"found \(3, 64\)"),
        (lambda a: a.update(characters=a["characters"][:, :2]), r"characters of shape \(2, 3, 64\).*found \(2, 2, 64\)"),
        (lambda a: a.update(characters=a["characters"].astype(np.int32)), "in int64, found .* int32"),
        (lambda a: a.update(n_characters=a["n_characters"][:1]), "n_characters of shape"),
        (lambda a: a.update(posteriors=a["posteriors"].astype(np.float64)), "in float32"),
        (lambda a: a.update(confidence=a["confidence"][:, 0]), r"confidence of shape \(2, 1\)"),
        (lambda a: a["characters"].__setitem__((1, 0, 0), 16), "characters from 0 to 15, .* found 16 in field 1, amount 0"),
        (lambda a: a["characters"].__setitem__((1, 0, 0), -1), "found -1 in field 1, amount 0"),
        (lambda a: a["characters"].__setitem__((0, 0, 63), 0), "-1 behind an amount's last, found 0"),
        (lambda a: a["n_characters"].__setitem__((0, 0), 65), "n_characters from 0 to 64, found 65"),
        (lambda a: a["n_characters"].__setitem__((0, 0), -1), "n_characters from 0 to 64, found -1"),
        (lambda a: a["n_characters"].__setitem__((0, 1), 0), "-1 behind an amount's last, found 1 in field 0, amount 1"),
        (lambda a: a["posteriors"].__setitem__((1, 0), np.nan), "posteriors from 0 to 1, found nan in field 1"),
        (lambda a: a["posteriors"].__setitem__((1, 0), 1.5), "posteriors from 0 to 1"),
        (lambda a: a["posteriors"].__setitem__((0, slice(2)), 0.75), "that sum to 1"),
        (lambda a: a["confidence"].__setitem__((1, 0), np.inf), "a confidence from 0 to 1, found inf in field 1"),
        (lambda a: a["confidence"].__setitem__((1, 0), -0.1), "a confidence from 0 to 1"),
        (lambda a: a["positions"].__setitem__((0, 0, 0, 0), -1), "positions of columns from 0 to 32"),
        (lambda a: a["positions"].__setitem__((0, 0, 0, 1), 0), "positions of columns from 0 to 32"),
        (lambda a: a["positions"].__setitem__((0, 0, 4, 1), 33), "positions of columns from 0 to 32"),
        (lambda a: a["positions"].__setitem__((0, 0, 5, 1), 3), "positions of columns from 0 to 32"),
    ],
)
def test_an_answer_that_the_border_does_not_allow_is_refused(change: Callable[[dict[str, Any]], Any], message: str) -> None:
    model = make_reader()

    def run(inputs: dict[str, Any]) -> dict[str, Any]:
        answer = dict(model.run(inputs))
        change(answer)
        return answer

    fake = FakeTransport({"check-reader": replace(model, run=run)})
    if message == "positions":  # a server that leaves an output out is refused before
        with pytest.raises(InvalidRequestError, match="positions"), Client(transport=fake) as client:
            client.read_amounts([field(1), field(2)])
        return
    with pytest.raises(InvalidResponseError, match=message) as caught, Client(transport=fake) as client:
        client.read_amounts([field(1), field(2)])
    assert "model 'check-reader'" in str(caught.value)


def test_a_model_with_other_tensors_than_the_border_is_refused(client: Client, reader: FakeTransport) -> None:
    interface = client.interface("check-reader")
    for change in ({"inputs": interface.inputs[:1]}, {"outputs": interface.outputs[1:]}):
        changed = interface.model_copy(update=change)
        reader.models["check-reader"] = FakeModel.reader(changed, by_first_pixel)
        with pytest.raises(UsageError, match=r"cannot be used with read_amount: expected the inputs .*'width', 'INT64'"):
            Client(transport=reader).read_amount(field(1))


def test_a_reader_that_was_replaced_is_noticed(client: Client, reader: FakeTransport) -> None:
    assert client.read_amount(field(1)).text == "1.020"
    reader.models["check-reader"] = make_reader(labels=".0123456789", version="4")
    assert client.read_amount(field(1)).text == "1.020"
    assert sum(isinstance(call, ReadConfig) for call in reader.calls) == 2
    reader.models["check-reader"] = make_reader(height_px=16, version="5", read=lambda x: [(f"{x.shape[0]}", 0.5)])
    with pytest.raises(InvalidRequestError, match="takes images of another size since this call began: call again"):
        client.read_amounts([field(1), field(2)])
    assert texts(client.read_amounts([field(1), field(2)])) == ["16", "16"]
    reader.models["check-reader"] = make_reader()
    assert client.read_amount(field(1)).text == "1.020"
    reader.models["check-reader"] = FakeModel.of_labels(["a", "b"], lambda pixels: np.full((len(pixels), 2), 0.5))
    with pytest.raises(UsageError, match="cannot be used with read_amount"):
        client.read_amount(field(1))


@pytest.mark.parametrize(("before", "after"), [(0.7, 0.8), (0.8, 0.7), (None, 0.7), (0.7, None)])
async def test_an_open_client_takes_up_the_threshold_of_the_version_that_answers(
    reader: FakeTransport, before: float | None, after: float | None
) -> None:
    def accepts(threshold: float | None) -> bool:
        return threshold is not None and threshold <= 0.75

    with Client(transport=reader) as client:
        async with AsyncClient(transport=AsyncFakeTransport(reader)) as other:
            for threshold, version in ((before, "3"), (after, "4"), (before, "3")):  # deployed, and rolled back
                reader.models["check-reader"] = make_reader(threshold=threshold, version=version)
                for amount in (client.read_amount(field(1)), await other.read_amount(field(1))):
                    assert (amount.accepted, amount.model_version) == (accepts(threshold), version)
                (amount,) = client.read_amounts([field(1)])
                assert amount.accepted is accepts(threshold)


def test_a_version_that_is_deployed_between_the_look_up_and_the_first_answer_has_its_own_threshold() -> None:
    class Replaced(FakeTransport):
        def send(self, call: Any, timeout_s: float) -> Any:
            answer = super().send(call, timeout_s)
            if isinstance(call, ReadConfig):
                self.models["check-reader"] = make_reader(threshold=0.8, version="4")
            return answer

    with Client(transport=Replaced({"check-reader": make_reader(threshold=0.7)})) as client:
        amounts = [client.read_amount(field(1)) for _ in range(2)]
    assert [(amount.accepted, amount.model_version) for amount in amounts] == [(False, "4")] * 2


def test_an_answer_that_was_under_way_while_the_reader_was_replaced_has_the_threshold_of_its_version() -> None:
    class Late(FakeTransport):
        """Its second inference is answered by the version before, when the one after has answered another caller."""

        def send(self, call: Any, timeout_s: float) -> Any:
            answer = super().send(call, timeout_s)
            if isinstance(call, Infer) and len(self.inferences) == 2:
                self.models["check-reader"] = make_reader(threshold=0.8, version="4")
                between.append(client.read_amount(field(1)))
            return answer

    between: list[Amount] = []
    with Client(transport=Late({"check-reader": make_reader(threshold=0.7)})) as client:
        amounts = [client.read_amount(field(1)), client.read_amount(field(1)), *between, client.read_amount(field(1))]
    assert [(amount.accepted, amount.model_version) for amount in amounts] == [
        (True, "3"), (True, "3"), (False, "4"), (False, "4"),
    ]  # fmt: skip


async def test_the_message_of_an_only_image_does_not_number_it(client: Client, reader: FakeTransport, tmp_path: Path) -> None:
    reader.models["digits"] = FakeModel.of_labels(["a", "b"], lambda pixels: np.full((len(pixels), 2), 0.5))
    path = tmp_path / "no.png"
    path.write_bytes(b"no image")
    flat = np.zeros(3, np.uint8)
    async with AsyncClient(transport=AsyncFakeTransport(reader)) as other:
        for image, start in (
            (path, f"{path}: expected an image"),
            (b"no image", "the image (8 bytes): expected"),
            (flat, "expected an image array"),
        ):
            for call in (
                lambda image=image: client.read_amount(image),
                lambda image=image: client.read_amounts(image),
                lambda image=image: client.classify("digits", image),
            ):
                with pytest.raises(ImageError) as caught:
                    call()
                assert str(caught.value).startswith(start)
            for awaited in (other.read_amount(image), other.classify("digits", image)):
                with pytest.raises(ImageError) as caught:
                    await awaited
                assert str(caught.value).startswith(start)
    with pytest.raises(ImageError, match=r"^image 0: "):
        client.read_amounts([path])


def test_a_character_that_the_fake_lacks_is_wrong_use_and_named() -> None:
    fake = FakeTransport({"check-reader": FakeModel.of_amounts(lambda _: [("EUR5", 0.9)])})
    with Client(transport=fake) as client, pytest.raises(UsageError, match=r"found 'E' in 'EUR5': name it in labels=") as caught:
        client.read_amount(field(1))
    assert "0123456789.,-$*#" in str(caught.value)


def test_all_outputs_are_asked_for_and_failures_are_tried_again(client: Client, reader: FakeTransport) -> None:
    client.read_amount(field(1))
    reader.failures.append(UnavailableError("gone"))
    assert client.read_amount(field(3), request_id="mine").text == "3.020"
    (last,) = [call for call in reader.calls if isinstance(call, Infer)][-1:]
    assert (last.outputs, last.request_id) == (OUTPUT_NAMES, "mine")
