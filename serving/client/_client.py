"""``Client``: the blocking client."""

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
from convoy.serving.client._transport import Transport, check_headers, open_transport

if TYPE_CHECKING:
    from convoy.contract.image import ImageLike
    from convoy.contract.manifest import ModelInterface

T = TypeVar("T")


class Client:
    """Calls a Triton server, or any that speaks KServe v2, by gRPC or REST.

    Safe under threads: one client may serve them all. Nothing is connected before the first call; a server that comes back is
    found again.

    Every call has a deadline: ``timeout_s`` bounds the whole call, all its requests together, and travels to the server.

    Args:
        url: ``grpc://HOST[:8001]`` or ``http://HOST[:8000]``; ``grpcs`` and ``https`` where TLS stands before the server.
        timeout_s: How long a call may take where it does not say otherwise.
        headers: Sent with every request (credentials, say).
        transport: Who carries the calls instead of the network; ``convoy.serving.client.testing.FakeTransport`` in tests.

    Raises:
        UsageError: The URL, the time or a header is none.

    Example:
        >>> with Client("grpc://localhost:8001") as client:
        ...     client.classify("lenet5", "digit.png")[0].label
        '7'
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_s: float = 30.0,
        headers: Mapping[str, str] | None = None,
        transport: Transport | None = None,
    ) -> None:
        self._endpoint = Endpoint.parse(url)
        self._timeout_s = check_timeout(timeout_s)
        headers = check_headers(headers)
        self._session = Session(self._endpoint)
        self._transport = transport if transport is not None else open_transport(self._endpoint, headers)
        self._closed = False

    @property
    def url(self) -> str:
        """Where the server is, the port written out."""
        return str(self._endpoint)

    def classify(
        self,
        model_name: str,
        images: ImageLike | Iterable[ImageLike],
        *,
        model_version: str = "",
        top_k: int = 5,
        timeout_s: float | None = None,
    ) -> list[Prediction]:
        """Say what is on images.

        Labels and image size come from the server; images of any size are brought to the model's, whatever their form.

        Args:
            model_name: A model that ``convoy deploy`` wrote.
            images: A path, encoded bytes, a PIL image or a uint8 array; an iterable of these (read lazily); or a uint8 array
                of shape (N, H, W, C), or (N, H, W) for grey images. Any number: they are sent in batches of the server's
                ``max_batch_size``.
            model_version: The version to ask; the server's choice where it is empty.
            top_k: How many candidates each prediction lists; at most all classes.
            timeout_s: How long the whole call may take, in seconds.

        Returns:
            One prediction an image, in order; a list even for one image.

        Raises:
            ImageError: An image cannot be read; the message says which.
            UsageError: The model was not deployed by Convoy (use ``infer``), or an argument is wrong.
            ClientError: The call failed; see the tree in ``convoy.contract.errors``.
        """
        return self._run(self._session.classify(model_name, images, model_version, top_k), timeout_s)

    def infer(
        self,
        model_name: str,
        inputs: Mapping[str, npt.NDArray[Any]],
        *,
        outputs: Iterable[str] | None = None,
        model_version: str = "",
        timeout_s: float | None = None,
    ) -> InferResult:
        """Run a model on tensors.

        Args:
            model_name: The model.
            inputs: The input tensors by name, with the batch axis. They must have the datatype and shape that the server names;
                ``convoy.serving.client._datatype`` lists which numpy dtype is which datatype.
            outputs: The outputs to send back; all where it is None.
            model_version: The version to ask; the server's choice where it is empty.
            timeout_s: How long the whole call may take, in seconds.

        Returns:
            The output tensors, with the model and version that answered.

        Raises:
            InvalidRequestError: A tensor's name, datatype or shape is not the model's.
            ClientError: The call failed; see the tree in ``convoy.contract.errors``.
        """
        return self._run(self._session.infer(model_name, inputs, outputs, model_version), timeout_s)

    def interface(self, model_name: str, model_version: str = "", *, timeout_s: float | None = None) -> ModelInterface:
        """The labels, the image rule and the tensors of a model that ``convoy deploy`` wrote, as the server has them now.

        Raises:
            UsageError: The model was not deployed by Convoy.
            ClientError: The call failed.
        """
        return self._run(self._session.interface(model_name, model_version), timeout_s)

    def metadata(self, model_name: str, model_version: str = "", *, timeout_s: float | None = None) -> ModelMetadata:
        """The tensors that a model takes and gives.

        Raises:
            ClientError: The call failed.
        """
        return self._run(ask(DescribeModel(check_name(model_name), check_version(model_version))), timeout_s)

    def config(self, model_name: str, model_version: str = "", *, timeout_s: float | None = None) -> dict[str, Any]:
        """The configuration with which Triton serves a model: ``ModelConfig`` in its JSON form.

        Raises:
            ClientError: The call failed.
        """
        return self._run(ask(ReadConfig(check_name(model_name), check_version(model_version))), timeout_s)

    def statistics(self, model_name: str, model_version: str = "", *, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """What Triton counted of a model since it was loaded: one ``ModelStatistics`` in JSON form a version that is served.

        Raises:
            ClientError: The call failed, or the server keeps no statistics.
        """
        return self._run(ask(ReadStatistics(check_name(model_name), check_version(model_version))), timeout_s)

    def live(self, *, timeout_s: float | None = None) -> bool:
        """Whether a server answers; False where none does, or not in time."""
        return self._run(is_up(ServerLive()), timeout_s)

    def ready(self, model_name: str | None = None, model_version: str = "", *, timeout_s: float | None = None) -> bool:
        """Whether the server, or one model, takes requests; False where no server answers, or not in time.

        Triton says ready of a model whose process has died; only an inference proves that a model works.
        """
        return self._run(self._session.ready(model_name, model_version), timeout_s)

    def models(self, *, timeout_s: float | None = None) -> list[ModelStatus]:
        """Every version of every model that the server knows, with its state.

        Raises:
            ClientError: The call failed.
        """
        return self._run(ask(ListModels()), timeout_s)

    def load(self, model_name: str, *, timeout_s: float | None = None) -> None:
        """Load a model, or load it again with what its repository holds now.

        Raises:
            ClientError: It cannot be loaded (the server's reason is in the message), or the server allows no such call.
        """
        self._run(ask(LoadModel(check_name(model_name))), timeout_s)

    def unload(self, model_name: str, *, timeout_s: float | None = None) -> None:
        """Unload a model. Triton answers at once; the model may take its last requests to their end after that.

        Raises:
            ClientError: It cannot be unloaded, or the server allows no such call.
        """
        self._run(ask(UnloadModel(check_name(model_name))), timeout_s)

    def close(self) -> None:
        """Let go of the connections. May be called more than once."""
        if not self._closed:
            self._closed = True
            self._transport.close()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(f"{self._endpoint}: the client is closed; make a new one.")

    def _run(self, steps: Steps[T], timeout_s: float | None) -> T:
        """Carry out the steps of a method, one by one, until its result is there or the deadline has passed."""
        self._check_open()
        deadline = Deadline.after(self._timeout_s if timeout_s is None else timeout_s)
        try:
            step = next(steps)
            while True:
                try:
                    answer = self._carry_out(step, deadline)
                except Exception as error:  # noqa: BLE001  # the steps decide what an error means; they raise it again where not
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            steps.close()

    def _carry_out(self, step: Call[Any] | Work[Any], deadline: Deadline) -> Any:
        if isinstance(step, Work):
            return step.run()
        left_s = deadline.remaining_s(f"{self._endpoint}: {step.subject}")
        try:
            return self._transport.send(step, left_s)
        except DeadlineExceededError as error:
            raise deadline.missed(error) from (error.__cause__ or error)
