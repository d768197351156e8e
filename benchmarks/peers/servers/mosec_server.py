"""mosec with its dynamic batching."""

from typing import Any

import numpy as np
from mosec import Server, Worker
from session import MAX_BATCH_SIZE, WORKERS, Model, image_of


class Classifier(Worker):
    """Gathers a batch, runs it, hands each caller its row."""

    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        self._model = Model()

    def deserialize(self, data: bytes) -> Any:
        """An image of the bytes."""
        return image_of(data)

    def forward(self, data: Any) -> Any:
        """The probabilities of a batch."""
        return list(self._model(np.stack(data)))

    def serialize(self, data: Any) -> bytes:
        """The bytes of one row."""
        return bytes(data.tobytes())


if __name__ == "__main__":
    server = Server()
    server.append_worker(Classifier, num=WORKERS, max_batch_size=MAX_BATCH_SIZE, max_wait_time=1)
    server.run()
