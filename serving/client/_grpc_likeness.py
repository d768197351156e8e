"""Answers that are like an earlier one but for their numbers, read without protobuf.

A ``ModelInferResponse`` says the same before its raw contents each time, but for the request's id: which model answered, and what
its outputs are. Where an answer is byte for byte what an earlier one was, which protobuf has read, only its numbers are new. After
a wait, when nothing of a client is in the processor's caches, protobuf's objects cost half of what the client does for a call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from convoy.serving.client._answer import InferResult
from convoy.serving.client._call import Infer
from convoy.serving.client._datatype import PLAIN_DTYPES


@dataclass(frozen=True, slots=True)
class Likeness:
    """What is the same in all answers to calls of one kind.

    Attributes:
        model_name: Who answers.
        model_version: Which version of it.
        head: The bytes before the id.
        middle: The bytes between the id and the raw contents.
        outputs: Name, dtype, number of elements, bytes, shape and the bytes before the contents of each output.
    """

    model_name: str
    model_version: str
    head: bytes
    middle: bytes
    outputs: tuple[tuple[str, Any, int, int, tuple[int, ...], bytes], ...]

    @classmethod
    def of(cls, call: Infer, data: bytes, response: Any) -> Likeness | None:
        """What further answers to such calls may be like; None where this one has not the plain form that most have.

        Args:
            call: What was asked.
            data: The answer, serialised.
            response: The same as protobuf has read it.
        """
        outputs = []
        contents = b""
        for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
            dtype, shape = PLAIN_DTYPES.get(tensor.datatype), tuple(tensor.shape)
            if dtype is None or min(shape, default=0) < 0 or not raw:
                return None
            before = b"\x32" + varint(len(raw))
            contents += before + raw
            outputs.append((tensor.name, dtype, len(raw) // dtype.itemsize, len(raw), shape, before))
        name, version = response.model_name.encode(), response.model_version.encode()
        head = b"\x0a" + varint(len(name)) + name + (b"\x12" + varint(len(version)) + version if version else b"")
        before_id = head + _id_field(call.request_id)
        if not outputs or not data.startswith(before_id) or not data.endswith(contents):
            return None
        middle = data[len(before_id) : len(data) - len(contents)]
        return cls(response.model_name, response.model_version, head, middle, tuple(outputs))

    def read(self, call: Infer, data: bytes) -> InferResult | None:
        """The answer; None where it is another, of which protobuf has to be asked."""
        prefix = self.head + _id_field(call.request_id) + self.middle
        if not data.startswith(prefix):
            return None
        at = len(prefix)
        outputs = {}
        for name, dtype, n, n_bytes, shape, before in self.outputs:
            start = at + len(before)
            at = start + n_bytes
            if not data.startswith(before, start - len(before)) or at > len(data):
                return None
            outputs[name] = np.frombuffer(data, dtype, n, start).reshape(shape).copy()
        return InferResult(self.model_name, self.model_version, outputs) if at == len(data) else None


def _id_field(request_id: str) -> bytes:
    text = request_id.encode()
    return b"\x1a" + varint(len(text)) + text if text else b""


_VARINTS = tuple(bytes((number,)) for number in range(0x80))


def varint(number: int) -> bytes:
    """A whole number from 0 as protobuf writes it: seven bits a byte, the lowest first."""
    if number < len(_VARINTS):
        return _VARINTS[number]
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)
