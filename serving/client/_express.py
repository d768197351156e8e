"""The short way of an inference: for a caller who calls again and again, and alone.

That is one of a model, with inputs of the same kind as earlier ones, of few enough rows, to the one server, while few others are
under way and nobody listens. Here the cost of a call is decided, which is mostly that of the lines of Python between the caller and
the wire: what is the same in all calls is made once, and what another module would do in a line stands here as that line.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from convoy.serving.client._answer import InferResult
from convoy.serving.client._call import Infer, Tensor
from convoy.serving.client._crowd import AT_ONCE
from convoy.serving.client._datatype import NUMPY_DTYPES
from convoy.serving.client._fleet import Node
from convoy.serving.client._inference import LARGE, MOST_BYTES, Inferences
from convoy.serving.client._models import Model, Models
from convoy.serving.client._router import Router
from convoy.serving.client._signature import ANY, Signature
from convoy.serving.client._steps import Attempt

_PLAIN_DTYPES: Final = {name: dtype for name, dtype in NUMPY_DTYPES.items() if dtype.isnative}
"""Whose elements lie in memory as the wire wants them."""

_MOST_LANES: Final = 1024


@dataclass(slots=True)
class Lane:
    """What is the same in all calls of one model that want the same outputs.

    Attributes:
        model: What is remembered of the model.
        signature: Its tensors, from which this was made.
        inputs: Name, datatype, dtype and the shape of a row of each input.
    """

    model: Model
    signature: Signature
    inputs: tuple[tuple[str, str, Any, tuple[int, ...]], ...]


@dataclass(slots=True)
class Express:
    """An inference on the short way: its one request.

    After it comes ``arrived``, or ``left`` where there is no answer, in any case.

    Attributes:
        node: The server.
        call: The inference.
        timeout_s: How long it may take.
        at_s: Until when, on the monotonic clock.
        model: What is remembered of its model.
        rows: Its rows.
    """

    node: Node
    call: Infer
    timeout_s: float
    at_s: float
    model: Model
    rows: int

    def send(self) -> Any:
        """Send it: the answer, or in an ``AsyncClient`` what is awaited for it."""
        return self.node.transport.send(self.call, self.timeout_s)

    def arrived(self, result: InferResult) -> bool:
        """It was answered: whether rightly, as far as can be told at a glance; else ``Inferences.checked`` has a closer look."""
        model, call = self.model, self.call
        model.under_way.pop()
        signature, version = model.signature, call.model_version
        if signature is None or result.model_name != call.model_name or (version and result.model_version != version):
            return False
        batching = model.batching
        return not signature.fault(result, call.outputs, self.rows if batching is not None and batching.most_rows else 0)

    def left(self) -> None:
        """It has failed, or its caller does not wait for its answer any more."""
        self.model.under_way.pop()

    def attempt(self) -> Attempt[InferResult]:
        """The same as others know it."""
        return Attempt(self.node, self.call, self.timeout_s)


class ExpressWay:
    """Finds out who may take the short way. Safe under threads.

    Args:
        models: What is remembered of the server's models.
        inferences: Sends inferences on all ways.
    """

    def __init__(self, models: Models, inferences: Inferences) -> None:
        self._models = models
        self._inferences = inferences
        self._lanes: dict[tuple[str, str, tuple[str, ...]], Lane] = {}

    def enter(
        self,
        router: Router,
        model_name: str,
        inputs: Mapping[str, Any],
        outputs: tuple[str, ...],
        model_version: str,
        timeout_s: float,
        request_id: str,
    ) -> Express | None:
        """An inference on the short way; None where it has to take the long one, which takes everything.

        The arguments are those of ``Client.infer``, as they were given.
        """
        if type(inputs) is not dict:
            return None
        try:
            lane = self._lanes.get((model_name, model_version, outputs))
        except TypeError:  # no name can be looked up like that: the long way says so
            return None
        if (lane is None or lane.model.signature is not lane.signature) and (
            (lane := self._open_lane(model_name, model_version, outputs)) is None
        ):
            return None
        if len(inputs) != len(lane.inputs):
            return None
        tensors, rows, n_bytes = [], 0, 0
        for name, datatype, dtype, tail in lane.inputs:
            array = inputs.get(name)
            if type(array) is not np.ndarray or array.dtype is not dtype or not array.flags.c_contiguous:
                return None
            shape = array.shape
            if shape[1:] != tail or not shape or not array.nbytes or (rows and shape[0] != rows):
                return None
            rows = shape[0]
            n_bytes += array.nbytes
            tensors.append(Tensor(name, datatype, shape, array.data.cast("B")))
        model = lane.model
        batching = model.batching
        if batching is None:
            if rows > 1:
                return None
        elif (rows > 1 and (rows > batching.most_rows or n_bytes > MOST_BYTES)) or (
            batching.crowd is not None and batching.crowd.n_under_way >= AT_ONCE
        ):
            return None
        if self._models.merge and len(model.under_way) >= AT_ONCE:
            return None
        node = router.only_node
        if node is None:
            return None
        call = Infer.quickly(model_name, model_version, tuple(tensors), outputs, request_id)
        if n_bytes >= LARGE:
            call = self._inferences.expecting(call)
        router.count()
        model.under_way.append(None)
        return Express(node, call, timeout_s, time.monotonic() + timeout_s, model, rows)

    def _open_lane(self, model_name: str, model_version: str, outputs: tuple[str, ...]) -> Lane | None:
        """What is the same in all calls of a model; None where it is not known, or has inputs that want a closer look each time."""
        model = self._models.known((model_name, model_version))
        signature = None if model is None else model.signature
        if model is None or signature is None:
            return None
        offered = [tensor.name for tensor in signature.metadata.outputs]
        dtypes = [_PLAIN_DTYPES.get(tensor.datatype) for tensor in signature.metadata.inputs]
        anyhow = [tensor for tensor in signature.metadata.inputs if ANY in tensor.shape[1:]]
        if not signature.is_batched or anyhow or None in dtypes or not all(name in offered for name in outputs):
            return None
        if len(self._lanes) >= _MOST_LANES:
            self._lanes.clear()
        specs = zip(signature.metadata.inputs, dtypes, strict=True)
        lane = Lane(model, signature, tuple((tensor.name, tensor.datatype, dtype, tensor.shape[1:]) for tensor, dtype in specs))
        self._lanes[model_name, model_version, outputs] = lane
        return lane
