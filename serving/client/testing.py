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
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from convoy.contract.errors import ClientError, DeadlineExceededError, InvalidRequestError, ModelNotFoundError
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
            "parameters": {INTERFACE_PARAMETER: {"string_value": interface.model_dump_json()}},
        }
        return cls(run, {INPUT_NAME: ("UINT8", (-1, *interface.image.dims))}, config, version)


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
