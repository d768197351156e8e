"""``AsyncClient``: the client for coroutines; ``Client`` with ``await``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy.typing as npt
from typing_extensions import Self

from convoy.contract.errors import DeadlineExceededError, UsageError
from convoy.serving.client._answer import InferResult, ModelMetadata, ModelStatus, Prediction
from convoy.serving.client._call import (
    Call,
    DescribeModel,
    ListModels,
    LoadModel,
    ReadConfig,
    ReadStatistics,
    ServerLive,
    UnloadModel,
)
from convoy.serving.client._deadline import Deadline, check_timeout
from convoy.serving.client._endpoint import DEFAULT_URL, Endpoint
from convoy.serving.client._session import Session, Steps, Work, ask, check_name, check_version, is_up
from convoy.serving.client._transport import AsyncTransport, check_headers, open_async_transport

if TYPE_CHECKING:
    from convoy.contract.image import ImageLike
    from convoy.contract.manifest import ModelInterface

T = TypeVar("T")


class AsyncClient:
    """``Client`` for coroutines: the same methods, arguments and errors, to be awaited.

    Any number of calls may be under way at once. Images are decoded in a thread, so that the event loop goes on. A client lives in
    the event loop that first uses it.

    Args:
        url: See ``Client``.
        timeout_s: How long a call may take where it does not say otherwise.
        headers: Sent with every request (credentials, say).
        transport: Who carries the calls instead of the network; ``convoy.serving.client.testing.AsyncFakeTransport`` in tests.

    Raises:
        UsageError: The URL, the time or a header is none.

    Example:
        >>> async with AsyncClient("grpc://localhost:8001") as client:
        ...     (await client.classify("lenet5", "digit.png"))[0].label
        '7'
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_s: float = 30.0,
        headers: Mapping[str, str] | None = None,
        transport: AsyncTransport | None = None,
    ) -> None:
        self._endpoint = Endpoint.parse(url)
        self._timeout_s = check_timeout(timeout_s)
        headers = check_headers(headers)
        self._session = Session(self._endpoint)
        self._transport = transport if transport is not None else open_async_transport(self._endpoint, headers)
        self._closed = False

    @property
    def url(self) -> str:
        """Where the server is, the port written out."""
        return str(self._endpoint)

    async def classify(
        self,
        model_name: str,
        images: ImageLike | Iterable[ImageLike],
        *,
        model_version: str = "",
        top_k: int = 5,
        timeout_s: float | None = None,
    ) -> list[Prediction]:
        """Say what is on images; see ``Client.classify``."""
        return await self._run(self._session.classify(model_name, images, model_version, top_k), timeout_s)

    async def infer(
        self,
        model_name: str,
        inputs: Mapping[str, npt.NDArray[Any]],
        *,
        outputs: Iterable[str] | None = None,
        model_version: str = "",
        timeout_s: float | None = None,
    ) -> InferResult:
        """Run a model on tensors; see ``Client.infer``."""
        return await self._run(self._session.infer(model_name, inputs, outputs, model_version), timeout_s)

    async def interface(self, model_name: str, model_version: str = "", *, timeout_s: float | None = None) -> ModelInterface:
        """The labels, the image rule and the tensors of a model that ``convoy deploy`` wrote; see ``Client.interface``."""
        return await self._run(self._session.interface(model_name, model_version), timeout_s)

    async def metadata(self, model_name: str, model_version: str = "", *, timeout_s: float | None = None) -> ModelMetadata:
        """The tensors that a model takes and gives; see ``Client.metadata``."""
        return await self._run(ask(DescribeModel(check_name(model_name), check_version(model_version))), timeout_s)

    async def config(self, model_name: str, model_version: str = "", *, timeout_s: float | None = None) -> dict[str, Any]:
        """The configuration with which Triton serves a model: ``ModelConfig`` in its JSON form; see ``Client.config``."""
        return await self._run(ask(ReadConfig(check_name(model_name), check_version(model_version))), timeout_s)

    async def statistics(self, model_name: str, model_version: str = "", *, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """What Triton counted of a model since it was loaded; see ``Client.statistics``."""
        return await self._run(ask(ReadStatistics(check_name(model_name), check_version(model_version))), timeout_s)

    async def live(self, *, timeout_s: float | None = None) -> bool:
        """Whether a server answers; False where none does, or not in time; see ``Client.live``."""
        return await self._run(is_up(ServerLive()), timeout_s)

    async def ready(self, model_name: str | None = None, model_version: str = "", *, timeout_s: float | None = None) -> bool:
        """Whether the server, or one model, takes requests; False where no server answers, or not in time; see ``Client.ready``."""
        return await self._run(self._session.ready(model_name, model_version), timeout_s)

    async def models(self, *, timeout_s: float | None = None) -> list[ModelStatus]:
        """Every version of every model that the server knows, with its state; see ``Client.models``."""
        return await self._run(ask(ListModels()), timeout_s)

    async def load(self, model_name: str, *, timeout_s: float | None = None) -> None:
        """Load a model, or load it again with what its repository holds now; see ``Client.load``."""
        await self._run(ask(LoadModel(check_name(model_name))), timeout_s)

    async def unload(self, model_name: str, *, timeout_s: float | None = None) -> None:
        """Unload a model; see ``Client.unload``."""
        await self._run(ask(UnloadModel(check_name(model_name))), timeout_s)

    async def close(self) -> None:
        """Let go of the connections. May be called more than once."""
        if not self._closed:
            self._closed = True
            await self._transport.close()

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(f"{self._endpoint}: the client is closed; make a new one.")

    async def _run(self, steps: Steps[T], timeout_s: float | None) -> T:
        """Carry out the steps of a method, one by one, until its result is there or the deadline has passed."""
        self._check_open()
        deadline = Deadline.after(self._timeout_s if timeout_s is None else timeout_s)
        try:
            step = next(steps)
            while True:
                try:
                    answer = await self._carry_out(step, deadline)
                except Exception as error:  # noqa: BLE001  # the steps decide what an error means; they raise it again where not
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            steps.close()

    async def _carry_out(self, step: Call[Any] | Work[Any], deadline: Deadline) -> Any:
        if isinstance(step, Work):
            import asyncio  # here, since `from convoy import Client` does without it (30 ms)

            return await asyncio.to_thread(step.run)
        left_s = deadline.remaining_s(f"{self._endpoint}: {step.subject}")
        try:
            return await self._transport.send(step, left_s)
        except DeadlineExceededError as error:
            raise deadline.missed(error) from (error.__cause__ or error)
