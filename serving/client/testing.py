"""A server that is none, for the tests of programs that use the client.

Example:
    >>> from convoy import Client
    >>> from convoy.serving.client.testing import FakeModel, FakeTransport
    >>> fake = FakeTransport({"echo": FakeModel.of_tensors({"x": ("FP32", (-1, 2))}, lambda inputs: {"y": inputs["x"]})})
    >>> client = Client(transport=fake)
    >>> client.infer("echo", {"x": np.zeros((1, 2), np.float32)})["y"].shape
    (1, 2)
    >>> fake.failures.append(UnavailableError("no server"))      # the next call fails
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np

from convoy.contract.errors import ClientError, DeadlineExceededError, InvalidRequestError, ModelNotFoundError, UsageError
from convoy.serving.client._answer import InferResult, ModelMetadata, ModelStatus, ServerMetadata, TensorMetadata
from convoy.serving.client._call import (
    Call,
    DescribeModel,
    DescribeServer,
    Infer,
    ListModels,
    LoadModel,
    R,
    ReadConfig,
    ReadStatistics,
    ServerLive,
    ServerReady,
    UnloadModel,
)
from convoy.serving.client._datatype import Array, decode

if TYPE_CHECKING:
    from convoy.contract.manifest import ModelInterface

Read: TypeAlias = "Callable[[Array], Sequence[tuple[str, float]]]"
"""From a field's pixels, uint8 (height, width), to the amounts that it may say with their shares, the likeliest first."""


@dataclass(frozen=True)
class FakeModel:
    """A model that a ``FakeTransport`` serves.

    Attributes:
        run: From input arrays by name to output arrays by name.
        inputs: Input tensors: name to datatype and shape with the batch axis (-1: any extent).
        config: What ``Client.config`` answers.
        version: The version that answers.
        takes_s: How long an inference takes. Nobody waits for it: a call that has less time is a ``DeadlineExceededError`` at once.
    """

    run: Callable[[dict[str, Array]], Mapping[str, Array]]
    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    config: dict[str, Any] = field(default_factory=dict)
    version: str = "1"
    takes_s: float = 0.0

    @classmethod
    def of_tensors(
        cls,
        inputs: Mapping[str, tuple[str, tuple[int, ...]]],
        run: Callable[[dict[str, Array]], Mapping[str, Array]],
        *,
        version: str = "1",
        takes_s: float = 0.0,
    ) -> FakeModel:
        """A model for ``infer`` that Convoy did not deploy."""
        return cls(run, inputs, {"max_batch_size": 0}, version, takes_s)

    @classmethod
    def of_labels(
        cls,
        labels: Sequence[str],
        probabilities: Callable[[Array], Array],
        *,
        image_size_px: int = 28,
        channels: int = 1,
        max_batch_size: int = 32,
        version: str = "1",
    ) -> FakeModel:
        """A model for ``classify``, of square images.

        Args:
            labels: What it tells apart.
            probabilities: From pixels, uint8 (n, image_size_px, image_size_px, channels), to probabilities, (n, len(labels)).
            image_size_px: Height and width to which images are brought.
            channels: 1 for grey images, 3 for colours.
            max_batch_size: The most images in one request; more are refused, as Triton would.
            version: The version that answers.
        """
        from convoy.contract.image import ImageSpec
        from convoy.contract.manifest import INPUT_NAME, PROBABILITIES_NAME, ModelInterface, TensorSpec

        image = ImageSpec(height_px=image_size_px, width_px=image_size_px, channels=channels)
        interface = ModelInterface(
            labels=tuple(labels),
            image=image,
            inputs=(TensorSpec(name=INPUT_NAME, datatype="UINT8", dims=image.dims),),
            outputs=(TensorSpec(name=PROBABILITIES_NAME, datatype="FP32", dims=(len(labels),)),),
        )
        return cls.classifier(interface, probabilities, max_batch_size=max_batch_size, version=version)

    @classmethod
    def classifier(
        cls,
        interface: ModelInterface,
        probabilities: Callable[[Array], Array],
        *,
        max_batch_size: int = 32,
        version: str = "1",
    ) -> FakeModel:
        """A model for ``classify``.

        Args:
            interface: Labels and image rule.
            probabilities: From pixels, uint8 (n, height, width, channels), to probabilities, (n, classes).
            max_batch_size: The most images in one request; more are refused, as Triton would.
            version: The version that answers.
        """
        from convoy.contract.manifest import INPUT_NAME, INTERFACE_PARAMETER, PROBABILITIES_NAME

        def run(inputs: dict[str, Array]) -> Mapping[str, Array]:
            if len(inputs[INPUT_NAME]) > max_batch_size:
                raise InvalidRequestError(f"batch-size must be <= {max_batch_size}, found {len(inputs[INPUT_NAME])}")
            return {PROBABILITIES_NAME: np.asarray(probabilities(inputs[INPUT_NAME]), dtype=np.float32)}

        config = {
            "max_batch_size": max_batch_size,
            "version_policy": {"specific": {"versions": [version]}},
            "parameters": {INTERFACE_PARAMETER: {"string_value": interface.model_dump_json()}},
        }
        return cls(run, {INPUT_NAME: ("UINT8", (-1, *interface.image.dims))}, config, version)

    @classmethod
    def of_amounts(
        cls,
        read: Read,
        *,
        labels: str = "0123456789.,-$*#",
        decimal: Literal["", ".", ","] = ".",
        threshold: float | None = 0.9,
        height_px: int = 32,
        widths_px: tuple[int, ...] = (128, 256, 512),
        n_best: int = 3,
        max_batch_size: int = 32,
        version: str = "1",
    ) -> FakeModel:
        """A model for ``read_amount``.

        Args:
            read: From a field, uint8 (height_px, its width), to the amounts that it may say with their shares, the likeliest first:
                ``[("1.50", 0.97), ("7.50", 0.02)]``. The first one's share is the confidence too, and none is an empty field.
                Characters are told to be spread evenly over the field.
            labels: The characters that there are.
            decimal: What stands before decimals; empty: nothing does.
            threshold: From which confidence on amounts are accepted; None: never.
            height_px: The height to which images are brought.
            widths_px: The widths up to which they are filled.
            n_best: How many amounts the model gives at most.
            max_batch_size: The most images in one request; more are refused, as Triton would.
            version: The version that answers.
        """
        from convoy.contract import reading
        from convoy.contract.image import ImageSpec
        from convoy.contract.manifest import INPUT_NAME, ModelInterface, TensorSpec

        accept = None if threshold is None else reading.OperatingPoint(threshold=threshold, coverage=1, error=0, n=1)
        most = reading.ReadingSpec(grammar="fake", decimal=decimal, n_best=n_best, max_characters=64, accept=accept)
        dims = {
            reading.CHARACTERS_NAME: (n_best, 64),
            reading.N_CHARACTERS_NAME: (n_best,),
            reading.POSITIONS_NAME: (n_best, 64, 2),
            reading.POSTERIORS_NAME: (n_best,),
            reading.CONFIDENCE_NAME: (1,),
        }
        floats = (reading.POSTERIORS_NAME, reading.CONFIDENCE_NAME)
        interface = ModelInterface(
            task="amount-reading",
            labels=tuple(labels),
            image=ImageSpec(height_px=height_px, width_px=widths_px[-1], channels=1, resize="height", widths_px=widths_px),
            reading=most,
            inputs=(
                TensorSpec(name=INPUT_NAME, datatype="UINT8", dims=(height_px, -1, 1)),
                TensorSpec(name=reading.WIDTH_NAME, datatype="INT64", dims=(1,)),
            ),
            outputs=tuple(
                TensorSpec(name=name, datatype="FP32" if name in floats else "INT64", dims=shape) for name, shape in dims.items()
            ),
        )
        return cls.reader(interface, read, max_batch_size=max_batch_size, version=version)

    @classmethod
    def reader(cls, interface: ModelInterface, read: Read, *, max_batch_size: int = 32, version: str = "1") -> FakeModel:
        """A model for ``read_amount``.

        Args:
            interface: Characters, image rule, how many amounts it gives, which of them are accepted.
            read: See ``of_amounts``.
            max_batch_size: The most images in one request; more are refused, as Triton would.
            version: The version that answers.
        """
        from convoy.contract.manifest import INPUT_NAME, INTERFACE_PARAMETER
        from convoy.contract.reading import WIDTH_NAME

        def run(inputs: dict[str, Array]) -> Mapping[str, Array]:
            pixels, widths = inputs[INPUT_NAME], inputs[WIDTH_NAME]
            if len(pixels) > max_batch_size:
                raise InvalidRequestError(f"batch-size must be <= {max_batch_size}, found {len(pixels)}")
            if pixels.shape[1] != interface.image.height_px:
                raise InvalidRequestError(f"expected images of height {interface.image.height_px}, found {pixels.shape[1]}")
            fields = [field[:, :width, 0] for field, (width,) in zip(pixels, widths.tolist(), strict=True)]
            return _to_readings([(read(field), field.shape[1]) for field in fields], interface)

        config = {
            "max_batch_size": max_batch_size,
            "version_policy": {"specific": {"versions": [version]}},
            "parameters": {INTERFACE_PARAMETER: {"string_value": interface.model_dump_json()}},
        }
        height, _, channels = interface.image.dims
        inputs = {INPUT_NAME: ("UINT8", (-1, height, -1, channels)), WIDTH_NAME: ("INT64", (-1, 1))}
        return cls(run, inputs, config, version)


class FakeTransport:
    """A ``Transport`` that answers by itself: ``Client(transport=FakeTransport({...}))``. Safe under threads.

    Args:
        models: What is served, by name.

    Attributes:
        models: What is served; may be changed between calls.
        calls: Every call that was sent, in order.
        failures: Errors that the next calls raise, one each, before anything is answered.
        closed: Whether the client was closed.
    """

    def __init__(self, models: Mapping[str, FakeModel]) -> None:
        self.models: dict[str, FakeModel] = dict(models)
        self.calls: list[Call[Any]] = []
        self.failures: deque[ClientError] = deque()
        self.closed = False
        self._lock = threading.Lock()

    @property
    def inferences(self) -> list[Infer]:
        """The inferences among ``calls``."""
        return [call for call in self.calls if isinstance(call, Infer)]

    def send(self, call: Call[R], timeout_s: float) -> R:
        """See ``Transport.send``."""
        with self._lock:
            self.calls.append(call)
            if self.failures:
                raise self.failures.popleft()
        takes_s = self.models[call.model_name].takes_s if isinstance(call, Infer) and call.model_name in self.models else 0.0
        if timeout_s < takes_s:
            raise DeadlineExceededError(f"fake: {call.subject} takes {takes_s:g} s, and the call had {timeout_s:.3g} s.")
        return cast(R, self._answer(call))

    def close(self) -> None:
        """See ``Transport.close``."""
        self.closed = True

    def _answer(self, call: Call[Any]) -> Any:
        if isinstance(call, (ServerLive, ServerReady)):
            return True
        if isinstance(call, DescribeServer):
            return ServerMetadata("fake", "", ())
        if isinstance(call, ListModels):
            return [ModelStatus(name, model.version, "READY", "") for name, model in self.models.items()]
        model = self.models.get(call.model_name)
        if model is None or call.model_version not in ("", model.version):
            raise ModelNotFoundError(f"fake: {call.subject} is not served.")
        if isinstance(call, (LoadModel, UnloadModel)):
            return None
        if isinstance(call, ReadConfig):
            return model.config
        if isinstance(call, ReadStatistics):
            raise InvalidRequestError("fake: this server keeps no statistics.")
        if isinstance(call, DescribeModel):
            tensors = tuple(TensorMetadata(name, datatype, shape) for name, (datatype, shape) in model.inputs.items())
            return ModelMetadata(call.model_name, (model.version,), "fake", tensors, ())
        if isinstance(call, Infer):
            inputs = {tensor.name: decode(tensor.data, tensor.datatype, tensor.shape) for tensor in call.inputs}
            if set(inputs) != set(model.inputs):
                raise InvalidRequestError(f"fake: expected the inputs {sorted(model.inputs)}, found {sorted(inputs)}.")
            outputs = model.run(inputs)
            if missing := [name for name in call.outputs if name not in outputs]:
                raise InvalidRequestError(f"fake: expected outputs among {sorted(outputs)}, found {missing[0]!r}.")
            wanted = call.outputs or outputs
            return InferResult(call.model_name, model.version, {name: np.asarray(outputs[name]) for name in wanted})
        return True  # ModelReady


class AsyncFakeTransport:
    """A ``FakeTransport`` for ``AsyncClient``.

    Args:
        fake: Who answers; look at its ``calls``, fill its ``failures``.
    """

    def __init__(self, fake: FakeTransport) -> None:
        self._fake = fake

    async def send(self, call: Call[R], timeout_s: float) -> R:
        """See ``Transport.send``."""
        return self._fake.send(call, timeout_s)

    async def close(self) -> None:
        """See ``Transport.close``."""
        self._fake.close()


def _to_readings(read: Sequence[tuple[Sequence[tuple[str, float]], int]], interface: ModelInterface) -> dict[str, Array]:
    """What a reader answers: the amounts of each field, and its width, as tensors."""
    from convoy.contract import reading

    spec = interface.reading
    assert spec is not None
    shape = (len(read), spec.n_best)
    characters = np.full((*shape, spec.max_characters), -1, np.int64)
    positions = np.full((*shape, spec.max_characters, 2), -1, np.int64)
    n_characters, posteriors = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
    for i, (amounts, width) in enumerate(read):
        for j, (text, posterior) in enumerate(amounts[: spec.n_best]):
            n = n_characters[i, j] = len(text)
            if unknown := [character for character in text if character not in interface.labels]:
                raise UsageError(
                    f"fake: expected amounts of the characters {''.join(interface.labels)!r}, found {unknown[0]!r} in {text!r}: "
                    "name it in labels=, or leave it out."
                )
            characters[i, j, :n] = [interface.labels.index(character) for character in text]
            left = np.minimum(np.arange(n) * width // max(n, 1), width - 1)
            positions[i, j, :n, 0] = left
            positions[i, j, :n, 1] = np.maximum(left + 1, np.arange(1, n + 1) * width // max(n, 1))
            posteriors[i, j] = posterior
    return {
        reading.CHARACTERS_NAME: characters,
        reading.N_CHARACTERS_NAME: n_characters,
        reading.POSITIONS_NAME: positions,
        reading.POSTERIORS_NAME: posteriors,
        reading.CONFIDENCE_NAME: posteriors[:, :1].copy(),
    }
