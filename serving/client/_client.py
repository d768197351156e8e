"""``Client``: the blocking client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from contextvars import copy_context
from itertools import chain, islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from typing_extensions import Self

from convoy.contract.errors import ClientError, ConvoyError, UsageError
from convoy.serving.client._amounts import PIECES_AT_ONCE, Outlet, Prepared, Readings
from convoy.serving.client._answer import Amount, InferResult, ModelMetadata, ModelStatus, Prediction, ServerMetadata
from convoy.serving.client._base import BaseClient, OnUnreadable, Progress, check_transport, tell
from convoy.serving.client._call import (
    DescribeModel,
    DescribeServer,
    ListModels,
    LoadModel,
    ReadConfig,
    ServerLive,
    UnloadModel,
)
from convoy.serving.client._classification import Alone
from convoy.serving.client._datatype import TensorLike
from convoy.serving.client._endpoint import DEFAULT_URL
from convoy.serving.client._fleet import Node
from convoy.serving.client._health import is_up, ready, statistics
from convoy.serving.client._images import A, Answered, Requests
from convoy.serving.client._line import Chunk, Line
from convoy.serving.client._names import DEFAULT_READER, check_name, check_outputs, check_version
from convoy.serving.client._retry import Retry
from convoy.serving.client._router import Talk
from convoy.serving.client._steps import Aside, Attempt, Close, Pause, Race, Step, Steps, Wait, Work
from convoy.serving.client._transport import Tls, Transport, open_transport

if TYPE_CHECKING:
    from convoy.contract.field import Box, FieldPixels
    from convoy.contract.image import ImageLike
    from convoy.contract.manifest import ModelInterface
    from convoy.serving.client.metrics import ClientMetrics

T = TypeVar("T")

_MOST_RACES = 1024  # requests under way with their hedges


class Client(BaseClient):
    """Calls Triton servers, or any that speak KServe v2, by gRPC or REST.

    Safe under threads: one client may serve them all. Nothing is connected before the first call; a server that comes back is
    found again; a forked process connects anew.

    Every call has a deadline: ``timeout_s`` bounds the whole call, all its requests together, and travels to the server.

    Args:
        url: ``grpc://HOST[:8001]`` or ``http://HOST[:8000]``; ``grpcs`` and ``https`` where TLS stands before the server. Or
            several, of servers with the same models: requests go to the less busy of two that are drawn, servers that fail rest
            until they are ready again, and what is not answered by one is asked of another. A name with several addresses is as
            many servers.
        timeout_s: How long a call may take where it does not say otherwise.
        headers: Sent with every request (credentials, say).
        tls: Whom to trust, and who we are; None: whom this machine trusts, and nobody.
        retry: When a request is sent again; None: never.
        hedge_after_s: After how long without an answer an inference is sent a second time, to another server where there is one;
            the first answer counts. Cuts the longest waits, costs the servers work. Within the budget of ``retry``. None: never.
        max_in_flight: The most requests of one call under way, where its input is split; how many there are adapts to the server.
        merge: Whether small inferences of callers who wait for the same model share requests, where its configuration has
            ``dynamic_batching``, so that the server would merge them too: many callers at once are served several times as fast.
        shared_memory: Whether large tensors go to a server on this machine (gRPC) in memory that both see, where the server can:
            the host's, and the GPU's for inputs that lie there.
        compression: ``gzip`` makes requests and answers smaller: it pays over links that are slower than it is (some 50 MB/s), and
            of tensors that have something to compress, such as drawings and masks; photographs have not.
        metrics: Counts calls for Prometheus; see ``convoy.serving.client.metrics``. None: nobody does.
        transport: Who carries the calls instead of the network; ``convoy.serving.client.testing.FakeTransport`` in tests. Of
            several URLs a mapping of each to its own, or one for all.

    Raises:
        UsageError: A URL, a time, a header or another option is none.

    Example:
        >>> with Client("grpc://localhost:8001") as client:
        ...     client.classify("lenet5", "digit.png")[0].label
        '7'
    """

    def __init__(
        self,
        url: str | Sequence[str] = DEFAULT_URL,
        *,
        timeout_s: float = 30.0,
        headers: Mapping[str, str] | None = None,
        tls: Tls | None = None,
        retry: Retry | None = Retry(),  # noqa: B008  # frozen
        hedge_after_s: float | None = None,
        max_in_flight: int = 32,
        merge: bool = True,
        shared_memory: bool = True,
        compression: Literal["gzip"] | None = None,
        metrics: ClientMetrics | None = None,
        transport: Transport | Mapping[str, Transport] | None = None,
    ) -> None:
        check_transport(transport, is_async=False)
        super().__init__(
            url,
            timeout_s=timeout_s,
            headers=headers,
            tls=tls,
            retry=retry,
            hedge_after_s=hedge_after_s,
            max_in_flight=max_in_flight,
            merge=merge,
            shared_memory=shared_memory,
            compression=compression,
            metrics=metrics,
            transport=transport,
            open_transport=open_transport,
            new_signal=threading.Event,
        )
        self._open_pools()

    def classify(
        self,
        model_name: str,
        images: ImageLike | Iterable[ImageLike],
        *,
        model_version: str = "",
        top_k: int = 5,
        timeout_s: float | None = None,
        request_id: str = "",
        progress: Progress | None = None,
    ) -> list[Prediction]:
        """Say what is on images.

        Labels and image size come from the server; images of any size are brought to the model's, whatever their form.

        Args:
            model_name: A model that ``convoy deploy`` wrote.
            images: A path, encoded bytes, a PIL image or a uint8 array; an iterable of these (read lazily); or a uint8 array
                of shape (N, H, W, C), or (N, H, W) for grey images. Any number: they are sent in batches of the server's
                ``max_batch_size``, several at a time.
            model_version: The version to ask; the server's choice where it is empty.
            top_k: How many candidates each prediction lists; at most all classes.
            timeout_s: How long the whole call may take, in seconds.
            request_id: What the call is called in the logs of the server and of this client; made up where it is empty. Further
                requests of a call that is split have their first row's number behind it.
            progress: Is told how many images are answered, in the calling thread.

        Returns:
            One prediction an image, in order; a list even for one image. ``classify_iter`` keeps no list.

        Raises:
            ImageError: An image cannot be read; the message says which.
            UsageError: The model was not deployed by Convoy (use ``infer``), or an argument is wrong.
            ClientError: The call failed; see the tree in ``convoy.contract.errors``.
        """
        with self._begin("classify", timeout_s, model_name, model_version, request_id) as talk:
            requests = self._drive(
                self._images.classify(talk, model_name, model_version, top_k=top_k, batch_size=None, tolerant=False)
            )
            return self._answer_in_order(talk, requests.read(images), progress)

    def classify_iter(
        self,
        model_name: str,
        images: ImageLike | Iterable[ImageLike],
        *,
        in_order: bool = True,
        batch_size: int | None = None,
        on_unreadable: OnUnreadable | None = None,
        model_version: str = "",
        top_k: int = 5,
        timeout_s: float | None = None,
        request_id: str = "",
        progress: Progress | None = None,
    ) -> Generator[tuple[int, Prediction], None, None]:
        """Say what is on images, one by one, as answers come: for more images than fit into memory, and for results at once.

        Images are read, brought to size and sent while answers are taken, and no further ahead than it takes to keep the server
        busy; memory does not grow with their number.

        Args:
            model_name: See ``classify``.
            images: See ``classify``.
            in_order: Whether predictions come in the order of the images, or as they are answered.
            batch_size: The most images in a request. None: as many as the model takes; then a slow source of images (a camera)
                fills a request before any is answered, which 1 prevents.
            on_unreadable: Is told the place of each image that cannot be read, and why, and the others are answered. None: the
                first such image ends the call.
            model_version: See ``classify``.
            top_k: See ``classify``.
            timeout_s: How long each batch may take, its retries included; the caller may take as long as he likes.
            request_id: See ``classify``.
            progress: Is told how many images are answered, in the calling thread.

        Yields:
            The place of each image, from 0, and the prediction for it.

        Raises:
            ConvoyError: As ``classify`` does; images whose predictions were not taken by then have none.
        """
        talk = self._begin("classify_iter", timeout_s, model_name, model_version, request_id, lasting=True)
        tolerant = on_unreadable is not None
        steps = self._images.classify(talk, model_name, model_version, top_k=top_k, batch_size=batch_size, tolerant=tolerant)
        predictions = self._iterate(talk, steps, images, timeout_s, in_order, on_unreadable, progress)
        next(predictions)  # what is wrong is said now, not with the first image; and what has begun is ended, however it is left
        return predictions

    def read_amount(
        self,
        image: ImageLike | FieldPixels,
        *,
        model_name: str = DEFAULT_READER,
        box: Box | tuple[int, int, int, int] | None = None,
        model_version: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> Amount:
        """Read the amount in a field of writing, such as that of a check.

        Args:
            image: A path, encoded bytes, a PIL image or a uint8 array, of any size; it is brought to the model's height. Or what
                ``convoy.contract.field.to_field`` made of one.
            model_name: A model that reads amounts and that ``convoy deploy`` wrote.
            box: Where the field lies on the image, where that shows more: left, top, width and height in pixels, from the top left
                corner of the image as it is seen. None: all of it is the field.
            model_version: The version to ask; the server's choice where it is empty.
            timeout_s: How long the call may take, in seconds.
            request_id: See ``classify``.

        Returns:
            The amount, and how sure it is; whatever the field holds, there is one, which may be empty.

        Raises:
            ImageError: The image cannot be read, the box does not lie on it, or it is wider than the model takes.
            UsageError: The model reads no amounts, or an argument is wrong.
            ClientError: The call failed; see the tree in ``convoy.contract.errors``.

        Example:
            >>> client.read_amount("check.png", box=(1130, 240, 420, 90)).value
            Decimal('1234.56')
        """
        with self._begin("read_amount", timeout_s, model_name, model_version, request_id) as talk:
            readings = self._drive(self._amounts.read(talk, model_name, model_version, box=box))
            prepared = self._drive(readings.requests.chunk(Alone([image]), 0).begin(talk)).answers[0][1]
            return self._drive(readings.chunk(prepared).begin(talk)).answers[0][1]

    def read_amounts(
        self,
        images: ImageLike | Iterable[ImageLike | FieldPixels],
        *,
        model_name: str = DEFAULT_READER,
        box: Box | tuple[int, int, int, int] | None = None,
        model_version: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
        progress: Progress | None = None,
    ) -> list[Amount]:
        """Read the amounts in fields of writing.

        Args:
            images: An iterable of what ``read_amount`` takes (read lazily), one such image, or a uint8 array of shape (N, H, W) or
                (N, H, W, C). Any number, of any widths: they are sent in batches of the server's ``max_batch_size``, those that
                are about equally wide together, several requests at a time.
            model_name: See ``read_amount``.
            box: Where the field lies on each of the images, as on forms of one kind; see ``read_amount``.
            model_version: See ``read_amount``.
            timeout_s: How long the whole call may take, in seconds.
            request_id: See ``classify``.
            progress: Is told how many images are answered, in the calling thread.

        Returns:
            One amount an image, in order.

        Raises:
            ImageError: See ``read_amount``; the message says which image.
            UsageError: See ``read_amount``.
            ClientError: See ``read_amount``.
        """
        with self._begin("read_amounts", timeout_s, model_name, model_version, request_id) as talk:
            readings = self._drive(self._amounts.read(talk, model_name, model_version, box=box))
            outlet = Outlet(in_order=True)
            with closing(self._read_all(readings, images, lambda: talk, progress)) as answered:
                return [amount for some in answered for _, amount in outlet.take(some)]

    def read_amounts_iter(
        self,
        images: ImageLike | Iterable[ImageLike | FieldPixels],
        *,
        model_name: str = DEFAULT_READER,
        box: Box | tuple[int, int, int, int] | None = None,
        in_order: bool = True,
        batch_size: int | None = None,
        on_unreadable: OnUnreadable | None = None,
        model_version: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
        progress: Progress | None = None,
    ) -> Generator[tuple[int, Amount], None, None]:
        """Read the amounts in fields of writing, one by one, as answers come: for more images than fit into memory.

        Images are read, brought to height and sent while answers are taken, and no further ahead than it takes to fill requests
        with fields that are about equally wide and to keep the server busy; memory does not grow with their number.

        Args:
            images: See ``read_amounts``.
            model_name: See ``read_amount``.
            box: See ``read_amounts``.
            in_order: Whether amounts come in the order of the images, or as they are answered.
            batch_size: The most fields in a request. None: as many as the model takes; then a slow source of images fills requests
                before any is answered, which 1 prevents.
            on_unreadable: Is told the place of each image that cannot be read, and why, and the others are answered. None: the
                first such image ends the call.
            model_version: See ``read_amount``.
            timeout_s: How long each request may take, its retries included; the caller may take as long as he likes.
            request_id: See ``classify``.
            progress: Is told how many images are answered, in the calling thread.

        Yields:
            The place of each image, from 0, and the amount in it.

        Raises:
            ConvoyError: As ``read_amounts`` does; images whose amounts were not taken by then have none.
        """
        talk = self._begin("read_amounts_iter", timeout_s, model_name, model_version, request_id, lasting=True)
        tolerant = on_unreadable is not None
        steps = self._amounts.read(talk, model_name, model_version, box=box, batch_size=batch_size, tolerant=tolerant)
        outlet = Outlet(in_order=in_order, on_unreadable=on_unreadable)
        amounts = self._iterate_amounts(talk, steps, images, timeout_s, outlet, progress)
        next(amounts)  # as in ``classify_iter``
        return amounts

    def infer(
        self,
        model_name: str,
        inputs: Mapping[str, TensorLike],
        *,
        outputs: Iterable[str] | None = None,
        model_version: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
        progress: Progress | None = None,
    ) -> InferResult:
        """Run a model on tensors.

        A batch of more rows than the model's ``max_batch_size``, or of more than 16 MiB, is sent in parts, several at a time, and
        joined again.

        Args:
            model_name: The model.
            inputs: The input tensors by name, with the batch axis. They must have the datatype and shape that the server names;
                ``convoy.serving.client._datatype`` lists which numpy dtype is which datatype. Numpy arrays, or dense tensors of
                other libraries that require no grad: those in the host's memory (DLPack) are taken without a copy; those on an
                NVIDIA GPU (CUDA Array Interface) are copied within the GPU to where a server on this machine reads them, if they
                are large and it can, and to the host if not. Other work on the GPU that they may depend on is waited for.
            outputs: The outputs to send back; all where it is None.
            model_version: The version to ask; the server's choice where it is empty.
            timeout_s: How long the whole call may take, in seconds.
            request_id: See ``classify``.
            progress: Is told how many rows are answered, in the calling thread, where the batch is sent in parts.

        Returns:
            The output tensors, with the model and the one version that answered.

        Raises:
            InvalidRequestError: A tensor's name, datatype or shape is not the model's.
            UsageError: An input is no tensor, or one that must be changed before it can be sent; the message says how.
            ClientError: The call failed; see the tree in ``convoy.contract.errors``.
        """
        outputs = check_outputs(outputs)
        express = self._express(model_name, inputs, outputs, model_version, timeout_s, request_id)
        if express is not None:
            try:
                answer: InferResult = express.send()
            except BaseException as error:
                express.left()
                if not isinstance(error, ClientError):
                    raise
                return self._drive(self._inferences.failed(self._talk_of(express), express.attempt(), error))
            if express.arrived(answer):
                return answer
            return self._drive(self._inferences.checked(self._talk_of(express), express.call, answer))
        with self._begin("infer", timeout_s, model_name, model_version, request_id) as talk:
            chunks = self._drive(self._tensors.infer(talk, model_name, inputs, outputs, model_version))
            if isinstance(chunks, InferResult):
                return chunks
            answers = self._answer_all(iter(chunks), lambda: talk, in_order=True, progress=progress)
            return self._drive(self._tensors.join(talk, model_name, inputs, outputs, list(answers)))

    def interface(self, model_name: str, model_version: str = "", *, timeout_s: float | None = None) -> ModelInterface:
        """The labels, the image rule and the tensors of a model that ``convoy deploy`` wrote, as the server has them now.

        Raises:
            UsageError: The model was not deployed by Convoy.
            ClientError: The call failed.
        """
        with self._begin("interface", timeout_s, model_name, model_version) as talk:
            return self._drive(self._images.interface(talk, model_name, model_version))

    def metadata(self, model_name: str, model_version: str = "", *, timeout_s: float | None = None) -> ModelMetadata:
        """The tensors that a model takes and gives.

        Raises:
            ClientError: The call failed.
        """
        with self._begin("metadata", timeout_s, model_name, model_version) as talk:
            return self._drive(talk.ask(DescribeModel(check_name(model_name), check_version(model_version))))

    def config(self, model_name: str, model_version: str = "", *, timeout_s: float | None = None) -> dict[str, Any]:
        """The configuration with which Triton serves a model: ``ModelConfig`` in its JSON form.

        Raises:
            ClientError: The call failed.
        """
        with self._begin("config", timeout_s, model_name, model_version) as talk:
            return self._drive(talk.ask(ReadConfig(check_name(model_name), check_version(model_version))))

    def statistics(self, model_name: str, model_version: str = "", *, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """What Triton counted of a model since it was loaded: one ``ModelStatistics`` in JSON form a version that is served.

        Raises:
            ClientError: The call failed, or the server keeps no statistics.
        """
        with self._begin("statistics", timeout_s, model_name, model_version) as talk:
            return self._drive(statistics(talk, model_name, model_version))

    def server(self, *, timeout_s: float | None = None) -> ServerMetadata:
        """Who the server is, its version, and what it offers beyond the protocol's core; of several the one that is asked.

        Raises:
            ClientError: The call failed.
        """
        with self._begin("server", timeout_s) as talk:
            return self._drive(talk.ask(DescribeServer()))

    def live(self, *, timeout_s: float | None = None) -> bool:
        """Whether a server answers; False where none does, or not in time, or only to say that it cannot.

        Raises:
            AuthenticationError: It answers to others only.
            InvalidResponseError: What answers is no server of the protocol.
        """
        with self._begin("live", timeout_s) as talk:
            return self._drive(is_up(talk, ServerLive()))

    def ready(self, model_name: str | None = None, model_version: str = "", *, timeout_s: float | None = None) -> bool:
        """Whether the server, or one model, takes requests; False where no server answers, or not in time.

        Triton says ready of a model whose process has died; only an inference proves that a model works.

        Raises:
            AuthenticationError: It answers to others only.
            InvalidResponseError: What answers is no server of the protocol.
        """
        with self._begin("ready", timeout_s, model_name, model_version) as talk:
            return self._drive(ready(talk, model_name, model_version))

    def models(self, *, timeout_s: float | None = None) -> list[ModelStatus]:
        """Every version of every model that the server knows, with its state.

        Raises:
            ClientError: The call failed.
        """
        with self._begin("models", timeout_s) as talk:
            return self._drive(talk.ask(ListModels()))

    def load(self, model_name: str, *, timeout_s: float | None = None) -> None:
        """Load a model, or load it again with what its repository holds now.

        Raises:
            ClientError: It cannot be loaded (the server's reason is in the message), or the server allows no such call.
        """
        with self._begin("load", timeout_s, model_name) as talk:
            self._drive(talk.ask(LoadModel(check_name(model_name))))

    def unload(self, model_name: str, *, timeout_s: float | None = None) -> None:
        """Unload a model. Triton answers at once; the model may take its last requests to their end after that.

        Raises:
            ClientError: It cannot be unloaded, or the server allows no such call.
        """
        with self._begin("unload", timeout_s, model_name) as talk:
            self._drive(talk.ask(UnloadModel(check_name(model_name))))

    def close(self) -> None:
        """Let go of the connections. May be called more than once."""
        if not self._closed:
            self._closed = True
            self._requests.shutdown(wait=False)
            self._races.shutdown(wait=False)
            for node in (*self._router.fleet.nodes, *self._router.discarded):
                self._close(node)

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _close(self, node: Node) -> None:
        if node.opened is not None:
            node.opened.close()

    def _drive(self, steps: Steps[T]) -> T:
        """Carry out steps, one by one, until their result is there."""
        try:
            step = next(steps)
            while True:
                try:
                    # requests first and by themselves: the way of every call
                    answer = step.send() if isinstance(step, Attempt) else self._carry_out(step)
                except Exception as error:  # noqa: BLE001  # the steps decide what an error means; they raise it again where not
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            steps.close()

    def _carry_out(self, step: Step) -> Any:
        if isinstance(step, Wait):
            return step.signal.wait(step.seconds)
        if isinstance(step, Work):
            return step.run()
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        if isinstance(step, Race):
            return self._race(step)
        if isinstance(step, Close):
            return self._close(step.node)
        assert isinstance(step, Aside)
        return self._start_aside(step.steps)

    def _iterate(
        self,
        talk: Talk,
        steps: Steps[Requests[A]],
        images: ImageLike | Iterable[ImageLike],
        timeout_s: float | None,
        in_order: bool,
        on_unreadable: OnUnreadable | None,
        progress: Progress | None,
    ) -> Generator[Any, None, None]:
        """Nothing, once the model is looked up; then predictions with their places."""
        with talk:
            requests = self._drive(steps)
            yield
            answers = self._answer_all(
                requests.read(images), lambda: self._go_on(talk, timeout_s), in_order=in_order, progress=progress
            )
            yield from _predictions(answers, on_unreadable)

    def _iterate_amounts(
        self,
        talk: Talk,
        steps: Steps[Readings],
        images: ImageLike | Iterable[ImageLike | FieldPixels],
        timeout_s: float | None,
        outlet: Outlet,
        progress: Progress | None,
    ) -> Generator[Any, None, None]:
        """Nothing, once the model is looked up; then amounts with their places."""
        with talk:
            readings = self._drive(steps)
            yield
            read = self._read_all(readings, images, lambda: self._go_on(talk, timeout_s), progress, in_order=outlet.in_order)
            with closing(read) as answered:
                for some in answered:
                    yield from outlet.take(some)

    def _read_all(
        self,
        readings: Readings,
        images: ImageLike | Iterable[ImageLike | FieldPixels],
        talk: Callable[[], Talk],
        progress: Progress | None,
        *,
        in_order: bool = False,
    ) -> Generator[Answered[Amount], None, None]:
        """Have images made fields of, these gathered into requests, and these answered; in order, few wait for a late one."""
        pieces = readings.requests.read(images)
        with closing(self._answer_all(pieces, talk, in_order=True, progress=None, most=PIECES_AT_ONCE)) as prepared:
            yield from self._answer_all(_gathered(readings, prepared), talk, in_order=in_order, progress=progress)

    def _race(self, race: Race[T]) -> T:
        first = self._start(self._races, race.first)
        running = {first}
        wait(running, race.after_s)
        if not first.done() and (later := race.later()) is not None:
            running.add(self._start(self._races, later))
        while True:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            best = next((future for future in done if future.exception() is None), None)
            if best is not None:
                return best.result()
            if not running:
                return done.pop().result()

    def _start_aside(self, steps: Steps[Any]) -> None:
        def run() -> None:
            with suppress(ConvoyError):
                self._drive(steps)

        threading.Thread(target=run, name="convoy-aside", daemon=True).start()

    def _answer_in_order(self, talk: Talk, chunks: Iterator[Chunk[Answered[A]]], progress: Progress | None) -> list[A]:
        """Have the images of a whole call answered."""
        first = list(islice(chunks, 2))
        if len(first) == 1:  # no line is needed
            answered = self._drive(first[0].begin(talk))
            tell(progress, first[0].rows)
            return [answer for _, answer in answered.answers]
        all_answered = self._answer_all(chain(first, chunks), lambda: talk, in_order=True, progress=progress)
        return [answer for answered in all_answered for _, answer in answered.answers]

    def _answer_all(
        self,
        chunks: Iterator[Chunk[T]],
        talk: Callable[[], Talk],
        *,
        in_order: bool,
        progress: Progress | None,
        most: int | None = None,
    ) -> Generator[T, None, None]:
        """Have chunks answered, several at a time, and give the answers; chunks are taken as they can be sent."""
        most = min(self._max_in_flight, most or self._max_in_flight)
        line: Line[T] = Line(most=most, in_order=in_order, talk=talk, retry=self._retry, start=self._start_request)
        try:
            while True:
                while line.has_room:
                    line.send(next(chunks, None))
                if line.is_done:
                    return
                taken = line.take()
                if taken is None:
                    wait(line.running, return_when=FIRST_COMPLETED)
                    continue
                tell(progress, line.n_answered)
                yield taken[0]
        finally:
            line.close()

    def _start_request(self, steps: Steps[T]) -> Future[T]:
        return self._start(self._requests, steps)

    def _start(self, threads: ThreadPoolExecutor, steps: Steps[T]) -> Future[T]:
        try:
            return threads.submit(copy_context().run, self._drive, steps)  # a caller's context holds in our threads too
        except RuntimeError as error:  # of a pool that was shut down
            raise UsageError(f"{self.url}: the client was closed while it was in use.") from error

    def _leave_parent(self) -> None:
        super()._leave_parent()
        self._open_pools()  # the threads live in the parent

    def _open_pools(self) -> None:
        # Two, so that requests that wait for their hedges do not keep these from starting. Threads start as they are needed.
        self._requests = ThreadPoolExecutor(self._max_in_flight, thread_name_prefix="convoy-request")
        self._races = ThreadPoolExecutor(_MOST_RACES, thread_name_prefix="convoy-race")


def _gathered(readings: Readings, prepared: Iterator[Answered[Prepared]]) -> Iterator[Chunk[Answered[Amount]]]:
    """The requests for fields, as these are prepared."""
    groups = readings.groups()
    for some in prepared:
        yield from readings.chunks(groups, some)
    for group in groups.rest():
        yield readings.chunk(group)


def _predictions(answers: Iterator[Answered[A]], on_unreadable: OnUnreadable | None) -> Iterator[tuple[int, A]]:
    for answer in answers:
        if on_unreadable is not None:
            for place, error in answer.unreadable:
                on_unreadable(place, error)
        yield from answer.answers
