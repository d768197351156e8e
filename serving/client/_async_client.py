"""``AsyncClient``: the client for coroutines; ``Client`` with ``await``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
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
from convoy.serving.client._transport import AsyncTransport, Tls, open_async_transport

if TYPE_CHECKING:
    import asyncio  # where it is needed it is imported: `from convoy import Client` does without it (30 ms)

    from convoy.contract.field import Box, FieldPixels
    from convoy.contract.image import ImageLike
    from convoy.contract.manifest import ModelInterface
    from convoy.serving.client._images import Given, Givens
    from convoy.serving.client.metrics import ClientMetrics

T = TypeVar("T")


class AsyncClient(BaseClient):
    """``Client`` for coroutines: the same methods, arguments and errors, to be awaited.

    Any number of calls may be under way at once. Images are decoded in threads, so that the event loop goes on. A client lives in
    the event loop that first uses it, and no forked process. A call that is cancelled (``asyncio.timeout``, say) is over at once.

    Args:
        url: See ``Client``.
        timeout_s: How long a call may take where it does not say otherwise.
        headers: Sent with every request (credentials, say).
        tls: See ``Client``.
        retry: See ``Client``.
        hedge_after_s: See ``Client``.
        max_in_flight: See ``Client``.
        merge: See ``Client``.
        shared_memory: See ``Client``.
        compression: See ``Client``.
        metrics: See ``Client``.
        transport: Who carries the calls instead of the network; ``convoy.serving.client.testing.AsyncFakeTransport`` in tests. Of
            several URLs a mapping of each to its own, or one for all.

    Raises:
        UsageError: A URL, a time, a header or another option is none.

    Example:
        >>> async with AsyncClient("grpc://localhost:8001") as client:
        ...     (await client.classify("lenet5", "digit.png"))[0].label
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
        transport: AsyncTransport | Mapping[str, AsyncTransport] | None = None,
    ) -> None:
        check_transport(transport, is_async=True)
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
            open_transport=open_async_transport,
            new_signal=_Signal,
        )
        self._tasks: set[asyncio.Task[Any]] = set()  # asyncio forgets tasks that nobody holds

    async def classify(
        self,
        model_name: str,
        images: ImageLike | Iterable[ImageLike] | AsyncIterable[ImageLike],
        *,
        model_version: str = "",
        top_k: int = 5,
        timeout_s: float | None = None,
        request_id: str = "",
        progress: Progress | None = None,
    ) -> list[Prediction]:
        """Say what is on images; see ``Client.classify``. They may come from an ``async`` iterable too."""
        with self._begin("classify", timeout_s, model_name, model_version, request_id) as talk:
            requests = await self._drive(
                self._images.classify(talk, model_name, model_version, top_k=top_k, batch_size=None, tolerant=False)
            )
            return await self._answer_in_order(talk, _read(requests, images), progress)

    async def classify_iter(
        self,
        model_name: str,
        images: ImageLike | Iterable[ImageLike] | AsyncIterable[ImageLike],
        *,
        in_order: bool = True,
        batch_size: int | None = None,
        on_unreadable: OnUnreadable | None = None,
        model_version: str = "",
        top_k: int = 5,
        timeout_s: float | None = None,
        request_id: str = "",
        progress: Progress | None = None,
    ) -> AsyncGenerator[tuple[int, Prediction], None]:
        """Say what is on images, one by one, as answers come; see ``Client.classify_iter``. Not awaited: ``async for``.

        Images may come from an ``async`` iterable too; one that is not is read in the event loop.
        """
        with self._begin("classify_iter", timeout_s, model_name, model_version, request_id, lasting=True) as talk:
            requests = await self._drive(
                self._images.classify(
                    talk,
                    model_name,
                    model_version,
                    top_k=top_k,
                    batch_size=batch_size,
                    tolerant=on_unreadable is not None,
                )
            )
            chunks = _read(requests, images)
            async for answer in self._answer_all(
                chunks, lambda: self._go_on(talk, timeout_s), in_order=in_order, progress=progress
            ):
                if on_unreadable is not None:
                    for place, error in answer.unreadable:
                        on_unreadable(place, error)
                for prediction in answer.answers:
                    yield prediction

    async def read_amount(
        self,
        image: ImageLike | FieldPixels,
        *,
        model_name: str = DEFAULT_READER,
        box: Box | tuple[int, int, int, int] | None = None,
        model_version: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
    ) -> Amount:
        """Read the amount in a field of writing; see ``Client.read_amount``."""
        with self._begin("read_amount", timeout_s, model_name, model_version, request_id) as talk:
            readings = await self._drive(self._amounts.read(talk, model_name, model_version, box=box))
            prepared = (await self._drive(readings.requests.chunk(Alone([image]), 0).begin(talk))).answers[0][1]
            return (await self._drive(readings.chunk(prepared).begin(talk))).answers[0][1]

    async def read_amounts(
        self,
        images: ImageLike | Iterable[ImageLike | FieldPixels] | AsyncIterable[ImageLike | FieldPixels],
        *,
        model_name: str = DEFAULT_READER,
        box: Box | tuple[int, int, int, int] | None = None,
        model_version: str = "",
        timeout_s: float | None = None,
        request_id: str = "",
        progress: Progress | None = None,
    ) -> list[Amount]:
        """Read the amounts in fields of writing; see ``Client.read_amounts``. They may come from an ``async`` iterable too."""
        with self._begin("read_amounts", timeout_s, model_name, model_version, request_id) as talk:
            readings = await self._drive(self._amounts.read(talk, model_name, model_version, box=box))
            outlet = Outlet(in_order=True)
            async with aclosing(self._read_all(readings, images, lambda: talk, progress)) as answered:
                return [amount async for some in answered for _, amount in outlet.take(some)]

    async def read_amounts_iter(
        self,
        images: ImageLike | Iterable[ImageLike | FieldPixels] | AsyncIterable[ImageLike | FieldPixels],
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
    ) -> AsyncGenerator[tuple[int, Amount], None]:
        """Read amounts one by one, as answers come; see ``Client.read_amounts_iter``. Not awaited: ``async for``."""
        with self._begin("read_amounts_iter", timeout_s, model_name, model_version, request_id, lasting=True) as talk:
            tolerant = on_unreadable is not None
            readings = await self._drive(
                self._amounts.read(talk, model_name, model_version, box=box, batch_size=batch_size, tolerant=tolerant)
            )
            outlet = Outlet(in_order=in_order, on_unreadable=on_unreadable)
            read = self._read_all(readings, images, lambda: self._go_on(talk, timeout_s), progress, in_order=in_order)
            async with aclosing(read) as answered:
                async for some in answered:
                    for amount in outlet.take(some):
                        yield amount

    async def infer(
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
        """Run a model on tensors; see ``Client.infer``."""
        outputs = check_outputs(outputs)
        express = self._express(model_name, inputs, outputs, model_version, timeout_s, request_id)
        if express is not None:
            try:
                answer: InferResult = await express.send()
            except BaseException as error:
                express.left()
                if not isinstance(error, ClientError):
                    raise
                return await self._drive(self._inferences.failed(self._talk_of(express), express.attempt(), error))
            if express.arrived(answer):
                return answer
            return await self._drive(self._inferences.checked(self._talk_of(express), express.call, answer))
        with self._begin("infer", timeout_s, model_name, model_version, request_id) as talk:
            chunks = await self._drive(self._tensors.infer(talk, model_name, inputs, outputs, model_version))
            if isinstance(chunks, InferResult):
                return chunks
            answers = self._answer_all(_chain(chunks), lambda: talk, in_order=True, progress=progress)
            results = [answer async for answer in answers]
            return await self._drive(self._tensors.join(talk, model_name, inputs, outputs, results))

    async def interface(self, model_name: str, model_version: str = "", *, timeout_s: float | None = None) -> ModelInterface:
        """The labels, the image rule and the tensors of a model that ``convoy deploy`` wrote; see ``Client.interface``."""
        with self._begin("interface", timeout_s, model_name, model_version) as talk:
            return await self._drive(self._images.interface(talk, model_name, model_version))

    async def metadata(self, model_name: str, model_version: str = "", *, timeout_s: float | None = None) -> ModelMetadata:
        """The tensors that a model takes and gives; see ``Client.metadata``."""
        with self._begin("metadata", timeout_s, model_name, model_version) as talk:
            return await self._drive(talk.ask(DescribeModel(check_name(model_name), check_version(model_version))))

    async def config(self, model_name: str, model_version: str = "", *, timeout_s: float | None = None) -> dict[str, Any]:
        """The configuration with which Triton serves a model: ``ModelConfig`` in its JSON form; see ``Client.config``."""
        with self._begin("config", timeout_s, model_name, model_version) as talk:
            return await self._drive(talk.ask(ReadConfig(check_name(model_name), check_version(model_version))))

    async def statistics(self, model_name: str, model_version: str = "", *, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """What Triton counted of a model since it was loaded; see ``Client.statistics``."""
        with self._begin("statistics", timeout_s, model_name, model_version) as talk:
            return await self._drive(statistics(talk, model_name, model_version))

    async def server(self, *, timeout_s: float | None = None) -> ServerMetadata:
        """Who the server is; see ``Client.server``."""
        with self._begin("server", timeout_s) as talk:
            return await self._drive(talk.ask(DescribeServer()))

    async def live(self, *, timeout_s: float | None = None) -> bool:
        """Whether a server answers; False where none does, or not in time; see ``Client.live``."""
        with self._begin("live", timeout_s) as talk:
            return await self._drive(is_up(talk, ServerLive()))

    async def ready(self, model_name: str | None = None, model_version: str = "", *, timeout_s: float | None = None) -> bool:
        """Whether the server, or one model, takes requests; False where no server answers, or not in time; see ``Client.ready``."""
        with self._begin("ready", timeout_s, model_name, model_version) as talk:
            return await self._drive(ready(talk, model_name, model_version))

    async def models(self, *, timeout_s: float | None = None) -> list[ModelStatus]:
        """Every version of every model that the server knows, with its state; see ``Client.models``."""
        with self._begin("models", timeout_s) as talk:
            return await self._drive(talk.ask(ListModels()))

    async def load(self, model_name: str, *, timeout_s: float | None = None) -> None:
        """Load a model, or load it again with what its repository holds now; see ``Client.load``."""
        with self._begin("load", timeout_s, model_name) as talk:
            await self._drive(talk.ask(LoadModel(check_name(model_name))))

    async def unload(self, model_name: str, *, timeout_s: float | None = None) -> None:
        """Unload a model; see ``Client.unload``."""
        with self._begin("unload", timeout_s, model_name) as talk:
            await self._drive(talk.ask(UnloadModel(check_name(model_name))))

    async def close(self) -> None:
        """Let go of the connections. May be called more than once."""
        if not self._closed:
            self._closed = True
            for task in self._tasks:
                task.cancel()
            for node in (*self._router.fleet.nodes, *self._router.discarded):
                await self._close(node)

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def _close(self, node: Node) -> None:
        if node.opened is not None:
            await node.opened.close()

    def _leave_parent(self) -> None:
        if any(node.opened is not None for node in self._router.fleet.nodes):
            raise UsageError(f"{self.url}: an AsyncClient does not outlive a fork, nor does its event loop: make a new one.")
        super()._leave_parent()

    async def _drive(self, steps: Steps[T]) -> T:
        """Carry out steps, one by one, until their result is there."""
        try:
            step = next(steps)
            while True:
                try:
                    # requests first and by themselves: the way of every call
                    answer = await (step.send() if isinstance(step, Attempt) else self._carry_out(step))
                except Exception as error:  # noqa: BLE001  # the steps decide what an error means; they raise it again where not
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            steps.close()

    async def _carry_out(self, step: Step) -> Any:
        if isinstance(step, Wait):
            return await step.signal.wait(step.seconds)
        if isinstance(step, Work):
            import asyncio

            return await asyncio.to_thread(step.run)
        if isinstance(step, Pause):
            import asyncio

            return await asyncio.sleep(step.seconds)
        if isinstance(step, Race):
            return await self._race(step)
        if isinstance(step, Close):
            return await self._close(step.node)
        assert isinstance(step, Aside)
        return self._start_aside(step.steps)

    async def _race(self, race: Race[T]) -> T:
        import asyncio

        first = self._start(race.first)
        running = {first}
        try:
            await asyncio.wait(running, timeout=race.after_s)
            if not first.done() and (later := race.later()) is not None:
                running.add(self._start(later))
            while True:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                best = next((task for task in done if task.exception() is None), None)
                if best is not None:
                    return best.result()
                if not running:
                    return done.pop().result()
        finally:
            for task in running:
                task.cancel()

    def _start_aside(self, steps: Steps[Any]) -> None:
        async def run() -> None:
            with suppress(ConvoyError):
                await self._drive(steps)

        import asyncio

        task = asyncio.ensure_future(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer_in_order(self, talk: Talk, chunks: AsyncIterator[Chunk[Answered[A]]], progress: Progress | None) -> list[A]:
        """Have the images of a whole call answered."""
        first = [chunk async for chunk in _islice(chunks, 2)]
        if len(first) == 1:  # no line is needed
            answered = await self._drive(first[0].begin(talk))
            tell(progress, first[0].rows)
            return [answer for _, answer in answered.answers]
        all_answered = self._answer_all(_chain(first, chunks), lambda: talk, in_order=True, progress=progress)
        return [answer async for answered in all_answered for _, answer in answered.answers]

    async def _read_all(
        self,
        readings: Readings,
        images: ImageLike | Iterable[ImageLike | FieldPixels] | AsyncIterable[ImageLike | FieldPixels],
        talk: Callable[[], Talk],
        progress: Progress | None,
        *,
        in_order: bool = False,
    ) -> AsyncGenerator[Answered[Amount], None]:
        """See ``Client._read_all``."""
        pieces = _read(readings.requests, images)
        made = self._answer_all(pieces, talk, in_order=True, progress=None, most=PIECES_AT_ONCE)
        async with aclosing(made) as prepared:
            read = self._answer_all(_gathered(readings, prepared), talk, in_order=in_order, progress=progress)
            async with aclosing(read) as answered:
                async for some in answered:
                    yield some

    async def _answer_all(
        self,
        chunks: AsyncIterator[Chunk[T]],
        talk: Callable[[], Talk],
        *,
        in_order: bool,
        progress: Progress | None,
        most: int | None = None,
    ) -> AsyncGenerator[T, None]:
        """Have chunks answered, several at a time, and give the answers; chunks are taken as they can be sent."""
        import asyncio

        most = min(self._max_in_flight, most or self._max_in_flight)
        line: Line[T] = Line(most=most, in_order=in_order, talk=talk, retry=self._retry, start=self._start)
        try:
            while True:
                while line.has_room:
                    line.send(await anext(chunks, None))
                if line.is_done:
                    return
                taken = line.take()
                if taken is None:
                    await asyncio.wait(line.running, return_when=asyncio.FIRST_COMPLETED)
                    continue
                tell(progress, line.n_answered)
                yield taken[0]
        finally:
            line.close()

    def _start(self, steps: Steps[T]) -> asyncio.Task[T]:
        import asyncio

        return asyncio.ensure_future(self._drive(steps))


class _Signal:
    """What a coroutine waits for and another sets: ``threading.Event`` with ``await``, for one that waits."""

    def __init__(self) -> None:
        import asyncio

        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()

    def set(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    async def wait(self, seconds: float) -> None:
        timer = self._loop.call_later(seconds, self.set)
        try:
            await self._future
        finally:
            timer.cancel()


async def _read(requests: Requests[A], images: Givens | AsyncIterable[Given]) -> AsyncIterator[Chunk[Answered[A]]]:
    """The requests, as ``Requests.read`` gives them."""
    if not isinstance(images, AsyncIterable):
        for chunk in requests.read(images):
            yield chunk
        return
    start = 0
    batch: list[Given] = []
    async for image in images:
        batch.append(image)
        if len(batch) == requests.size:
            yield requests.chunk(batch, start)
            start, batch = start + len(batch), []
    if batch:
        yield requests.chunk(batch, start)


async def _gathered(readings: Readings, prepared: AsyncIterator[Answered[Prepared]]) -> AsyncIterator[Chunk[Answered[Amount]]]:
    """The requests for fields, as these are prepared."""
    groups = readings.groups()
    async for some in prepared:
        for chunk in readings.chunks(groups, some):
            yield chunk
    for group in groups.rest():
        yield readings.chunk(group)


async def _islice(items: AsyncIterator[T], n: int) -> AsyncIterator[T]:
    """The first items, and no more than these are taken."""
    for _ in range(n):
        try:
            yield await anext(items)
        except StopAsyncIteration:
            return


async def _chain(first: Iterable[T], items: AsyncIterator[T] | None = None) -> AsyncIterator[T]:
    for item in first:
        yield item
    if items is not None:
        async for item in items:
            yield item
