"""One batch of a scoring run: decoded, sent to one version of the model, turned into rows."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from convoy.contract.errors import (
    AuthenticationError,
    ClientError,
    ImageError,
    ModelNotFoundError,
    ScoringError,
    UnavailableError,
)
from convoy.contract.image import to_pixels
from convoy.contract.manifest import DIGEST_PARAMETER, ModelInterface
from convoy.serving.client import Client, Prediction
from convoy.serving.scoring._source import Item, printable

ENDS_THE_RUN: Final = (UnavailableError, AuthenticationError, ModelNotFoundError)
"""No batch after these can fare better. Any other failure of a batch becomes its rows' error."""


@dataclass(frozen=True)
class Batch:
    """Finished rows.

    Attributes:
        rows: One row an input, in order; without their schema's absent columns.
        refused: Why the server did not answer, where it did not.
    """

    rows: list[dict[str, Any]]
    refused: ClientError | None = None


@dataclass(frozen=True)
class Scorer:
    """Scores batches with one version of one model. Safe under threads."""

    client: Client
    model_name: str
    version: str
    digest: str | None
    interface: ModelInterface
    max_batch_size: int
    top_k: int
    timeout_s: float
    slots: threading.BoundedSemaphore  # so many batches are with the server; the threads above that decode ahead

    @classmethod
    def pin(cls, client: Client, model_name: str, model_version: str, top_k: int, timeout_s: float, in_flight: int) -> Scorer:
        """See that the server answers, and with which version; ask for that one by name from then on.

        Raises:
            ClientError: The server or the model does not answer.
            ScoringError: The server does not say which version answered.
        """
        interface = client.interface(model_name, model_version, timeout_s=timeout_s)
        blank = np.zeros((1, *interface.image.dims), np.uint8)
        version = client.classify(model_name, blank, model_version=model_version, top_k=top_k, timeout_s=timeout_s)[0].model_version
        if not version:
            raise ScoringError(
                f"{client.url}: model {model_name!r}: the server does not say which version answers: none can be pinned."
            )
        config = client.config(model_name, version, timeout_s=timeout_s)
        interface = client.interface(model_name, version, timeout_s=timeout_s)
        parameter = config.get("parameters", {}).get(DIGEST_PARAMETER, {})
        digest = parameter.get("string_value") or None
        slots = threading.BoundedSemaphore(in_flight)
        size = max(1, int(config.get("max_batch_size", 1)))
        return cls(client, model_name, version, digest, interface, size, top_k, timeout_s, slots)

    def score(self, items: list[Item]) -> Batch:
        """Decode the items, send those that can be read, and make everyone's row."""
        images: list[npt.NDArray[np.uint8]] = []
        errors: list[str | None] = []
        for item in items:
            try:
                images.append(to_pixels(item.load(), self.interface.image))
                errors.append(None)
            except ImageError as error:
                errors.append(printable(str(error)))
        predictions: list[Prediction] = []
        latency_ms = None
        refused = None
        if images:
            with self.slots:
                sent = time.monotonic()
                try:
                    predictions = self.client.classify(
                        self.model_name, np.stack(images), model_version=self.version, top_k=self.top_k, timeout_s=self.timeout_s
                    )
                    latency_ms = (time.monotonic() - sent) * 1000
                except ENDS_THE_RUN:
                    raise
                except ClientError as error:
                    refused = error
        answers = iter(predictions)
        rows = []
        for item, unreadable in zip(items, errors, strict=True):
            if unreadable is None and refused is None:
                rows.append(self._row(item, prediction=next(answers), latency_ms=latency_ms))
            else:
                rows.append(self._row(item, error=unreadable or str(refused)))
        return Batch(rows, refused)

    def _row(
        self, item: Item, *, prediction: Prediction | None = None, latency_ms: float | None = None, error: str | None = None
    ) -> dict[str, Any]:
        candidates = None
        if prediction is not None:
            candidates = [{"label": candidate.label, "probability": candidate.probability} for candidate in prediction.top_k]
        return {
            "source": item.source,
            "label": prediction.label if prediction else None,
            "index": prediction.index if prediction else None,
            "probability": prediction.probability if prediction else None,
            "top_k": candidates,
            "model_name": self.model_name,
            "model_version": self.version,
            "model_sha256": self.digest,
            "latency_ms": latency_ms,
            "error": error,
            "true_label": item.true_label,  # left out by Arrow where the schema has no such column
        }
