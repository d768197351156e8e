"""Batches on the device: taken by index from one tensor there, or fetched ahead by a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from convoy.training.data.dataset import Images, Split

_AHEAD = 3  # batches that wait: one is never late, and memory stays small
_PATIENCE_S = 0.1  # how soon the thread sees that nobody waits any more


class Feeder:
    """Gives the batches of a split, in any order.

    Images that lie in memory as one array are put on the device once, as uint8, where they leave half of its free memory, and
    are indexed there. Others are fetched by a thread of its own while the device computes.

    Attributes:
        labels: int64 (N,), on the CPU.
        dims: Height, width and channels of an image.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        self.labels = torch.from_numpy(split.labels)
        self.dims: tuple[int, ...] = split.images.shape[1:]
        self._device = device
        self._source = split.images
        self._images: Tensor | None = None
        self._labels = self.labels.to(device)
        if isinstance(split.images, np.ndarray) and _fits(split.images.nbytes, device):
            self._images = _to_tensor(split.images).to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, order: Tensor, parts: Sequence[slice]) -> Generator[tuple[Tensor, Tensor], None, None]:
        """The images and labels of each part of ``order``, on the device.

        Close the iterator where it is not used up: a thread may be at work behind it.

        Args:
            order: Indices, int64 (M,), on the CPU.
            parts: Places in ``order``, a batch each.

        Yields:
            uint8 (n, H, W, C) and int64 (n,).
        """
        on_device = order.to(self._device)
        if self._images is not None:
            for part in parts:
                indices = on_device[part]
                yield self._images[indices], self._labels[indices]
            return
        ahead = _fetch_ahead(self._source, [order[part].numpy() for part in parts], pin=self._device.type == "cuda")
        try:
            for part, images in zip(parts, ahead, strict=True):
                yield images.to(self._device, non_blocking=True), self._labels[on_device[part]]
        finally:
            ahead.close()


def _fits(n_bytes: int, device: torch.device) -> bool:
    return device.type != "cuda" or n_bytes <= torch.cuda.mem_get_info(device)[0] / 2


def _to_tensor(images: npt.NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images if images.flags.writeable else images.copy())


def _fetch_ahead(source: Images, chunks: Sequence[npt.NDArray[np.int64]], *, pin: bool) -> Generator[Tensor, None, None]:
    """``source[chunk]`` for each chunk, fetched by a thread; what goes wrong there is raised here."""
    ready: queue.Queue[Tensor | BaseException] = queue.Queue(maxsize=_AHEAD)
    stopped = threading.Event()

    def put(item: Tensor | BaseException) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=_PATIENCE_S)
                return

    def fetch() -> None:
        try:
            for chunk in chunks:
                if stopped.is_set():
                    return
                images = _to_tensor(np.ascontiguousarray(source[chunk]))
                put(images.pin_memory() if pin else images)
        except BaseException as error:  # noqa: BLE001  raised again where it is waited for
            put(error)

    thread = threading.Thread(target=fetch, name="convoy-feeder", daemon=True)
    thread.start()
    try:
        for _ in chunks:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
