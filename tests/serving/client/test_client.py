from __future__ import annotations

import asyncio
import io
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from convoy.contract.errors import (
    AuthenticationError,
    ClientError,
    DeadlineExceededError,
    ImageError,
    InvalidRequestError,
    InvalidResponseError,
    ModelNotFoundError,
    ServerFailureError,
    UnavailableError,
    UsageError,
)
from convoy.serving.client import AsyncClient, Candidate, Client, ModelStatus, Prediction
from convoy.serving.client._call import DescribeModel, Infer, ReadConfig
from convoy.serving.client._datatype import DATATYPES
from convoy.serving.client.testing import AsyncFakeTransport, FakeModel, FakeTransport


def pixels_of(*classes: int) -> np.ndarray:
    """Images whose class the fake foretells."""
    return np.stack([np.full((4, 4, 1), index, np.uint8) for index in classes])


def labels_of(predictions: list[Prediction]) -> list[str]:
    return [prediction.label for prediction in predictions]


def infers(fake: FakeTransport) -> list[Infer]:
    return [call for call in fake.calls if isinstance(call, Infer)]


def test_a_prediction_says_label_probability_candidates_and_version(fake: FakeTransport) -> None:
    (prediction,) = Client(transport=fake).classify("digits", pixels_of(1)[0], top_k=2)
    assert prediction == Prediction(
        "one",
        1,
        pytest.approx(0.8),
        (Candidate("one", 1, pytest.approx(0.8)), Candidate("zero", 0, pytest.approx(0.1))),
        "digits",
        "3",
    )


def test_images_of_every_form_are_taken_one_by_one_and_together(fake: FakeTransport, tmp_path: Path) -> None:
    array = pixels_of(2)[0]
    picture = Image.fromarray(array[..., 0])
    path = tmp_path / "two.png"
    picture.save(path)
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    forms: list[Any] = [array, array[..., 0], picture, path, str(path), buffer.getvalue(), Image.new("RGB", (9, 9), (2, 2, 2))]
    client = Client(transport=fake)
    for form in forms:
        assert labels_of(client.classify("digits", form)) == ["two"]
    assert labels_of(client.classify("digits", forms)) == ["two"] * len(forms)
    assert labels_of(client.classify("digits", (form for form in forms))) == ["two"] * len(forms)


@pytest.mark.parametrize("shape", [(3, 4, 4, 1), (3, 4, 4), (3, 9, 7), (3, 8, 8, 3)])
def test_an_array_of_images_is_taken_apart_along_its_first_axis(shape: tuple[int, ...], fake: FakeTransport) -> None:
    array = np.zeros(shape, np.uint8)
    array += np.arange(3, dtype=np.uint8).reshape(3, *[1] * (len(shape) - 1))
    assert labels_of(Client(transport=fake).classify("digits", array)) == ["zero", "one", "two"]


@given(classes=st.lists(st.integers(0, 2), max_size=13), max_batch_size=st.integers(1, 5), as_list=st.booleans())
def test_split_and_joined_images_keep_their_order_and_the_servers_batch_size(
    interface: Callable[..., Any], classes: list[int], max_batch_size: int, as_list: bool
) -> None:
    model = FakeModel.classifier(interface(), lambda x: np.eye(3)[x[:, 0, 0, 0]], max_batch_size=max_batch_size)
    fake = FakeTransport({"digits": model})
    array = pixels_of(*classes) if classes else np.empty((0, 4, 4, 1), np.uint8)
    predictions = Client(transport=fake).classify("digits", list(array) if as_list else array)
    assert [prediction.index for prediction in predictions] == classes
    sizes = sorted((call.inputs[0].shape[0] for call in infers(fake)), reverse=True)
    assert sum(sizes) == len(classes)
    assert all(size == max_batch_size for size in sizes[:-1])


def test_a_generator_of_images_is_read_no_further_than_it_is_sent(fake: FakeTransport) -> None:
    read = []

    def images() -> Any:
        for index in range(100):
            read.append(index)
            yield pixels_of(0)[0]

    fake.models["digits"] = fake.models["digits"].__class__.classifier(
        Client(transport=fake).interface("digits"), lambda pixels: np.full((len(pixels), 3), np.nan), max_batch_size=4
    )
    with pytest.raises(InvalidResponseError):
        Client(transport=fake).classify("digits", images())
    assert 4 <= len(read) <= 16  # two requests under way, and two that could follow


def test_top_k_is_cut_to_the_number_of_classes_and_ties_go_to_the_first(fake: FakeTransport) -> None:
    (prediction,) = Client(transport=fake).classify("digits", pixels_of(2), top_k=99)
    assert [candidate.index for candidate in prediction.top_k] == [2, 0, 1]


@pytest.mark.parametrize("top_k", [0, -1, 1.5, True, None])
def test_a_top_k_that_is_no_number_of_candidates_is_refused(top_k: Any, fake: FakeTransport) -> None:
    with pytest.raises(UsageError, match="top_k"):
        Client(transport=fake).classify("digits", pixels_of(0), top_k=top_k)


@pytest.mark.parametrize("kind", [object, str])
def test_a_column_of_paths_is_a_list_of_images(kind: type, fake: FakeTransport, tmp_path: Path) -> None:
    for i in range(3):
        Image.fromarray(pixels_of(i)[0, :, :, 0]).save(tmp_path / f"{i}.png")
    paths = np.array([str(tmp_path / f"{i}.png") for i in (2, 0, 1)], dtype=kind)
    assert labels_of(Client(transport=fake).classify("digits", paths)) == ["two", "zero", "one"]


async def test_images_that_cannot_be_read_are_told_and_the_others_answered(fake: FakeTransport) -> None:
    images = [b"no image" if i in (0, 3, 8, 9, 10, 11) else pixels_of(i % 3)[0] for i in range(14)]
    told: dict[int, str] = {}

    def tell(place: int, error: ImageError) -> None:
        told[place] = str(error)

    with Client(transport=fake) as client:
        answers = list(client.classify_iter("digits", images, on_unreadable=tell))
        assert answers[0][1].label == "one"
        assert [(i, p.index) for i, p in answers] == [(i, i % 3) for i in range(14) if i not in told]
        assert sorted(told) == [0, 3, 8, 9, 10, 11]
        assert all(message.startswith(f"image {i}: ") for i, message in told.items())
        with pytest.raises(ImageError, match="image 0: "):
            list(client.classify_iter("digits", images))
    told.clear()
    async with AsyncClient(transport=AsyncFakeTransport(fake)) as aclient:
        assert [pair async for pair in aclient.classify_iter("digits", images, on_unreadable=tell)] == answers
    assert sorted(told) == [0, 3, 8, 9, 10, 11]


async def test_a_slow_source_need_not_fill_a_request(fake: FakeTransport) -> None:
    sent: list[int] = []

    def images() -> Any:
        for i in range(6):
            sent.append(i)
            yield pixels_of(i % 3)[0]

    with Client(transport=fake, max_in_flight=1) as client:
        for i, prediction in client.classify_iter("digits", images(), batch_size=1):
            assert prediction.index == i % 3
            assert len(sent) <= i + 3
        assert {call.inputs[0].shape[0] for call in infers(fake)} == {1}
        with pytest.raises(UsageError, match="batch_size: expected a whole number from 1, found 0"):
            list(client.classify_iter("digits", images(), batch_size=0))


async def test_images_may_come_from_an_async_generator(fake: FakeTransport) -> None:
    async def images(n: int) -> Any:
        for i in range(n):
            await asyncio.sleep(0)
            yield pixels_of(i % 3)[0]

    async with AsyncClient(transport=AsyncFakeTransport(fake)) as client:
        for n in (0, 1, 4, 23):
            assert [p.index for p in await client.classify("digits", images(n))] == [i % 3 for i in range(n)]
            answers = [(i, p.index) async for i, p in client.classify_iter("digits", images(n))]
            assert answers == [(i, i % 3) for i in range(n)]


@pytest.mark.parametrize("inputs", [np.zeros((1, 2), np.float32), "x", None])
def test_inputs_that_are_no_mapping_are_named(inputs: Any, fake: FakeTransport) -> None:
    with pytest.raises(UsageError, match="inputs: expected a mapping of input names to arrays, found "):
        Client(transport=fake).infer("echo", inputs)


def test_the_name_of_an_output_is_no_list_of_names(fake: FakeTransport) -> None:
    with pytest.raises(UsageError, match=r"outputs: expected names of outputs, such as \['y'\]"):
        Client(transport=fake).infer("echo", {"x": np.zeros((1, 2), np.float32)}, outputs="y")


async def test_a_transport_of_the_other_kind_is_refused(fake: FakeTransport) -> None:
    with pytest.raises(UsageError, match=r"expected an AsyncTransport .*, found FakeTransport"):
        AsyncClient(transport=fake)  # type: ignore[arg-type]
    for other in (AsyncFakeTransport(fake), 3):
        with pytest.raises(UsageError, match="expected a Transport "):
            Client(transport=other)  # type: ignore[arg-type]


def test_a_model_that_declares_no_tensors_takes_what_is_given(fake: FakeTransport) -> None:
    class Silent(FakeTransport):
        def _answer(self, call: Any) -> Any:
            answer = super()._answer(call)
            return replace(answer, inputs=(), outputs=()) if isinstance(call, DescribeModel) else answer

    with Client(transport=Silent(fake.models)) as client:
        for _ in range(2):
            assert client.infer("echo", {"x": np.ones((3, 2), np.float32)}, outputs=["y"])["y"].shape == (3, 2)
        with pytest.raises(InvalidRequestError, match="input 'x': expected an array of a datatype, found dtype complex128"):
            client.infer("echo", {"x": np.ones((3, 2), complex)})


def test_progress_is_told_of_a_single_request_too(fake: FakeTransport) -> None:
    told: list[int] = []
    Client(transport=fake).classify("digits", pixels_of(0, 1, 2), progress=told.append)
    assert told == [3]


def test_an_image_that_cannot_be_read_is_named_by_its_place(fake: FakeTransport) -> None:
    images = [*pixels_of(0, 0, 0, 0, 0), b"no image"]
    with pytest.raises(ImageError, match="image 5: "):
        Client(transport=fake).classify("digits", images)


@pytest.mark.parametrize("images", [3, None])
def test_what_is_no_image_at_all_is_refused(images: Any, fake: FakeTransport) -> None:
    with pytest.raises(UsageError, match=f"found {type(images).__name__}"):
        Client(transport=fake).classify("digits", images)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: np.full((len(x), 3), np.nan), "row 0 that sums to nan; 2 of 2 rows are wrong"),
        (lambda x: np.full((len(x), 3), np.inf), "sums to inf"),
        (lambda x: np.full((len(x), 3), 0.5), "sums to 1.5"),
        (lambda x: np.tile([1.5, -0.5, 0.0], (len(x), 1)), "from 0 that sum to 1"),
        (lambda x: np.eye(4)[:2], r"of shape \(2, 3\)"),
        (lambda x: np.eye(3)[:1], r"found \(1, 3\)"),
        (lambda x: np.full(2, 0.5), r"found \(2,\)"),
        (lambda x: np.array([[0, 0, 1], [0.5, 0.5, 0.1]]), "found a row 1"),
    ],
)
def test_an_answer_that_is_no_distribution_over_the_classes_is_refused(
    answer: Any, message: str, fake: FakeTransport, interface: Callable[..., Any]
) -> None:
    fake.models["digits"] = FakeModel.classifier(interface(), answer)
    with pytest.raises(InvalidResponseError, match=message) as caught:
        Client(transport=fake).classify("digits", pixels_of(0, 1))
    assert "model 'digits'" in str(caught.value)


def test_a_strangers_model_points_to_infer(fake: FakeTransport) -> None:
    with pytest.raises(UsageError, match=r"'echo' cannot be used with classify.*client\.infer"):
        Client(transport=fake).classify("echo", pixels_of(0))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read"), ('{"labels": 3}', "at labels"), (3, "cannot be read")],
)
def test_a_damaged_interface_is_an_invalid_response(text: Any, message: str, fake: FakeTransport) -> None:
    fake.models["digits"].config["parameters"]["convoy_interface"]["string_value"] = text
    with pytest.raises(InvalidResponseError, match=message):
        Client(transport=fake).classify("digits", pixels_of(0))


def test_the_interface_is_read_once_and_again_when_another_version_answers(
    fake: FakeTransport, interface: Callable[..., Any]
) -> None:
    client = Client(transport=fake)
    for _ in range(3):
        client.classify("digits", pixels_of(0))
    assert sum(isinstance(call, ReadConfig) for call in fake.calls) == 1
    fake.models["digits"] = FakeModel.classifier(interface(("a", "b", "c")), lambda x: np.eye(3)[x[:, 0, 0, 0]], version="4")
    predictions = client.classify("digits", pixels_of(0))
    assert (predictions[0].label, predictions[0].model_version) == ("a", "4")
    assert sum(isinstance(call, ReadConfig) for call in fake.calls) == 2
    client.classify("digits", pixels_of(0))
    assert sum(isinstance(call, ReadConfig) for call in fake.calls) == 2


@pytest.mark.parametrize("as_list", [False, True])
def test_a_model_of_another_size_or_with_more_classes_is_noticed_by_its_refusal(
    as_list: bool, fake: FakeTransport, interface: Callable[..., Any]
) -> None:
    client = Client(transport=fake)
    client.classify("digits", pixels_of(0))

    def strict(pixels: np.ndarray) -> np.ndarray:
        if pixels.shape[1:] != (6, 6, 1):
            raise InvalidRequestError("unexpected shape")
        return np.full((len(pixels), 4), 0.25)

    fake.models["digits"] = FakeModel.classifier(interface(("a", "b", "c", "d"), size_px=6), strict, version="4")
    images = pixels_of(0, 1)
    assert labels_of(client.classify("digits", list(images) if as_list else images)) == ["a", "a"]


def test_a_refusal_by_an_unchanged_model_is_raised_as_it_is(fake: FakeTransport) -> None:
    client = Client(transport=fake)
    client.classify("digits", pixels_of(0))
    fake.failures.append(InvalidRequestError("no"))
    with pytest.raises(InvalidRequestError, match=r"^no$"):
        client.classify("digits", pixels_of(0))
    assert len(infers(fake)) == 2


def test_a_model_that_vanished_is_forgotten(fake: FakeTransport) -> None:
    client = Client(transport=fake)
    client.classify("digits", pixels_of(0))
    model = fake.models.pop("digits")
    with pytest.raises(ModelNotFoundError):
        client.classify("digits", pixels_of(0))
    fake.models["digits"] = model
    assert labels_of(client.classify("digits", pixels_of(1))) == ["one"]


def test_a_model_that_was_not_ready_is_looked_up_again(fake: FakeTransport) -> None:
    client = Client(transport=fake, retry=None)
    client.classify("digits", pixels_of(0))
    fake.failures.append(UnavailableError("no available versions"))
    with pytest.raises(UnavailableError):
        client.classify("digits", pixels_of(0))
    assert labels_of(client.classify("digits", pixels_of(1))) == ["one"]
    assert sum(isinstance(call, ReadConfig) for call in fake.calls) == 2


@pytest.mark.parametrize("version", ["v1", "1.5", "-1", "0", "01", " 1", "1\n", "\u0661", "9" * 20])
def test_a_version_that_no_deployed_model_can_have_is_refused_before_anything_is_sent(version: str, fake: FakeTransport) -> None:
    client = Client(transport=fake)
    for call in (
        lambda: client.classify("digits", pixels_of(0), model_version=version),
        lambda: client.interface("digits", version),
    ):
        with pytest.raises(UsageError, match="model_version: expected a positive whole number"):
            call()
    assert not fake.calls


async def test_a_missed_deadline_names_the_time_that_the_caller_asked_for(fake: FakeTransport) -> None:
    late = DeadlineExceededError("no answer in time (late).")
    client = Client(transport=fake, timeout_s=7)
    aclient = AsyncClient(transport=AsyncFakeTransport(fake))
    fake.failures.append(late)
    with pytest.raises(DeadlineExceededError, match=r"^no answer in time \(late\)\. The whole call had 0\.5 s\.$"):
        client.classify("digits", pixels_of(0), timeout_s=0.5)
    fake.failures.append(late)
    with pytest.raises(DeadlineExceededError, match=r"The whole call had 7 s\.$"):
        client.classify("digits", pixels_of(0))
    fake.failures.append(late)
    with pytest.raises(DeadlineExceededError, match=r"The whole call had 0\.25 s\.$"):
        await aclient.classify("digits", pixels_of(0), timeout_s=0.25)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, bool, object])
@pytest.mark.parametrize("shape", [(), (5,), (4, 4), (4, 4, 1), (2, 4, 4, 1)])
def test_an_array_of_another_dtype_is_one_kind_of_error_and_says_which_dtype(
    dtype: type, shape: tuple[int, ...], fake: FakeTransport
) -> None:
    with pytest.raises(ImageError, match=f"expected an image array of dtype uint8 .* found {np.dtype(dtype)}"):
        Client(transport=fake).classify("digits", np.zeros(shape, dtype))


def test_a_colour_image_with_its_channels_first_is_refused_and_not_taken_for_three_grey_ones(interface: Callable[..., Any]) -> None:
    colour = FakeModel.classifier(interface(channels=3), lambda x: np.eye(3)[x[:, 0, 0, 0]])
    client = Client(transport=FakeTransport({"digits": colour}))
    with pytest.raises(UsageError, match=r"found an array of shape \(3, 9, 8\): one image with its channels first\?.*\(9, 8, 3\)"):
        client.classify("digits", np.zeros((3, 9, 8), np.uint8))
    assert len(client.classify("digits", np.zeros((3, 9, 8, 1), np.uint8))) == 3
    assert len(client.classify("digits", np.zeros((9, 8, 3), np.uint8))) == 1
    assert len(client.classify("digits", np.zeros((5, 9, 8), np.uint8))) == 5


@pytest.mark.parametrize("error", [ServerFailureError, AuthenticationError, InvalidResponseError, DeadlineExceededError])
def test_other_failures_are_raised_and_nothing_is_sent_twice(fake: FakeTransport, error: type[ClientError]) -> None:
    client = Client(transport=fake)
    client.classify("digits", pixels_of(0))
    fake.failures.append(error("at work"))
    with pytest.raises(error):
        client.classify("digits", pixels_of(0))
    assert len(infers(fake)) == 2


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ({"z": np.zeros((1, 2), np.float32)}, None, r"expected the inputs \['x'\], found \['z'\]"),
        ({"x": np.zeros((1, 2))}, None, "expected FP32, found dtype float64"),
        ({"x": np.zeros((1, 3), np.float32)}, None, r"expected shape \[-1, 2\].*found \[1, 3\]"),
        ({"x": np.zeros(2, np.float32)}, None, r"found \[2\]"),
    ],
)
def test_tensors_that_the_model_does_not_take_are_not_sent(
    inputs: dict[str, np.ndarray], outputs: Any, message: str, fake: FakeTransport
) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        Client(transport=fake).infer("echo", inputs, outputs=outputs)
    assert "Nothing was sent." in str(caught.value)
    assert not infers(fake)


@pytest.mark.parametrize("datatype", [*DATATYPES, "FP8"])
def test_a_tensor_of_no_datatype_is_refused_whatever_the_model_takes(datatype: str, fake: FakeTransport) -> None:
    fake.models["any"] = FakeModel.of_tensors({"x": (datatype, (-1,))}, lambda inputs: inputs)
    with pytest.raises(InvalidRequestError, match=rf"expected {datatype}, found dtype complex128 \(no datatype\)\. Convert it"):
        Client(transport=fake).infer("any", {"x": np.zeros(1, complex)})


def test_float32_is_sent_as_bfloat16_where_the_model_takes_that(fake: FakeTransport) -> None:
    fake.models["any"] = FakeModel.of_tensors({"x": ("BF16", (-1,))}, lambda inputs: inputs)
    result = Client(transport=fake).infer("any", {"x": np.array([1.0, 1 / 3], np.float32)})
    assert result["x"].tolist() == [1.0, 0.333984375]


@pytest.mark.parametrize("inputs", [{}, None, [np.zeros(1)], {"x": [1.0]}])
def test_inputs_that_are_no_arrays_by_name_are_refused(inputs: Any, fake: FakeTransport) -> None:
    with pytest.raises(UsageError, match=r"inputs?[: ]"):
        Client(transport=fake).infer("echo", inputs)


def test_remembered_metadata_is_read_again_before_a_caller_is_told_off(fake: FakeTransport) -> None:
    client = Client(transport=fake)
    client.infer("echo", {"x": np.zeros((1, 2), np.float32)})
    fake.models["echo"] = FakeModel.of_tensors({"x": ("FP64", (3,))}, lambda inputs: inputs)
    assert client.infer("echo", {"x": np.zeros(3)})["x"].shape == (3,)
    assert sum(isinstance(call, DescribeModel) for call in fake.calls) == 2


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"model_name": "other"}, "found an answer of model 'other'"),
        ({"model_version": "9"}, "found an answer of version 9"),
        ({"outputs": {}}, "found no output 'y'"),
    ],
)
def test_an_answer_of_another_model_is_refused(answer: dict[str, Any], message: str, fake: FakeTransport) -> None:
    class Crossed(FakeTransport):
        def _answer(self, call: Any) -> Any:
            result = super()._answer(call)
            return type(result)(**{**vars(result), **answer}) if isinstance(call, Infer) else result

    with pytest.raises(InvalidResponseError, match=message):
        Client(transport=Crossed(fake.models)).infer("echo", {"x": np.zeros((1, 2), np.float32)}, outputs=["y"], model_version="1")


@pytest.mark.parametrize("timeout_s", [0, -1, float("inf"), float("nan"), "3", True])
def test_no_call_may_wait_for_ever(timeout_s: Any, fake: FakeTransport) -> None:
    with pytest.raises(UsageError, match="timeout_s"):
        Client(transport=fake, timeout_s=timeout_s)
    with pytest.raises(UsageError, match="timeout_s"):
        Client(transport=fake).models(timeout_s=timeout_s)


HEADERS = [
    {"a b": "c"},
    {"": "c"},
    {"a": "line\nbreak"},
    {"a": "é"},
    {"a": "Bearer "},
    {"a": 3},
    {3: "a"},
    {"Content-Length": "3"},
    {"x-token-bin": "a"},
    ["x"],
]


@pytest.mark.parametrize("headers", HEADERS)
def test_headers_that_no_wire_can_carry_are_refused(headers: Any) -> None:
    with pytest.raises(UsageError, match="headers: "):
        Client(headers=headers)


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_name_that_can_be_no_models_is_refused(name: Any, fake: FakeTransport) -> None:
    client = Client(transport=fake)
    for call in (client.metadata, client.config, client.load, client.unload, client.interface):
        with pytest.raises(UsageError, match="model_name"):
            call(name)
    with pytest.raises(UsageError, match="model_version"):
        client.metadata("echo", 3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="without a model_name"):
        client.ready(model_version="3")
    assert not fake.calls


def test_a_closed_client_says_so_and_closes_twice(fake: FakeTransport) -> None:
    with Client(transport=fake) as client:
        assert client.live()
    client.close()
    assert fake.closed
    with pytest.raises(UsageError, match="is closed"):
        client.live()
    with pytest.raises(UsageError, match="is closed"), client:
        pass


async def test_the_async_client_does_what_the_blocking_one_does(fake: FakeTransport, tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    Image.new("L", (4, 4), 1).save(path)
    client = Client(transport=fake)
    async with AsyncClient(transport=AsyncFakeTransport(fake)) as aclient:
        for images in (pixels_of(0, 1, 2, 0, 1), [path, path], path):
            assert await aclient.classify("digits", images) == client.classify("digits", images)
        x = np.ones((1, 2), np.float32)
        assert (await aclient.infer("echo", {"x": x}))["y"].tolist() == x.tolist()
        assert await aclient.interface("digits") == client.interface("digits")
        assert await aclient.metadata("digits") == client.metadata("digits")
        assert await aclient.config("digits") == client.config("digits")
        assert (
            await aclient.models()
            == client.models()
            == [ModelStatus("digits", "3", "READY", ""), ModelStatus("echo", "1", "READY", "")]
        )
        assert await aclient.live()
        assert await aclient.ready()
        assert await aclient.ready("digits", "3")
        assert not await aclient.ready("digits", "4")
        await aclient.load("digits")
        await aclient.unload("digits")
        with pytest.raises(ImageError, match=r"^the image \(8 bytes\): "):
            await aclient.classify("digits", b"no image")
        with pytest.raises(ModelNotFoundError):
            await aclient.classify("nobody", pixels_of(0))
    await aclient.close()
    with pytest.raises(UsageError, match="is closed"):
        await aclient.live()


def test_sync_and_async_clients_have_the_same_methods_with_the_same_arguments() -> None:
    import inspect

    def surface(kind: type) -> dict[str, Any]:
        return {
            name: re.sub(r" \| AsyncIterable\[[^]]*\]", "", str(inspect.signature(value)).split(" -> ")[0])
            if callable(value)
            else type(value)
            for name, value in vars(kind).items()
            if not name.startswith("_")
        }

    assert surface(Client) == surface(AsyncClient)


async def test_decoding_does_not_hold_up_the_event_loop(fake: FakeTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    from convoy.contract import image

    threads = []
    original = image.to_pixels

    def to_pixels(*args: Any) -> Any:
        threads.append(threading.current_thread())
        return original(*args)

    monkeypatch.setattr(image, "to_pixels", to_pixels)
    async with AsyncClient(transport=AsyncFakeTransport(fake)) as client:
        await client.classify("digits", [Image.new("L", (9, 9))])
    assert threads
    assert threads[0] is not threading.main_thread()


def test_one_client_serves_many_threads(served: Any) -> None:
    with Client(served.url) as client, ThreadPoolExecutor(8) as pool:

        def work(seed: int) -> bool:
            classes = np.random.default_rng(seed).integers(0, 3, 11).tolist()
            return [p.index for p in client.classify("digits", pixels_of(*classes))] == classes

        assert all(pool.map(work, range(64)))


async def test_many_calls_may_be_under_way_in_one_async_client(served: Any) -> None:
    async with AsyncClient(served.url) as client:

        async def work(seed: int) -> bool:
            classes = np.random.default_rng(seed).integers(0, 3, 7).tolist()
            return [p.index for p in await client.classify("digits", pixels_of(*classes))] == classes

        assert all(await asyncio.gather(*(work(seed) for seed in range(32))))
