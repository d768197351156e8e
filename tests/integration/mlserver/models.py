"""MLServer's side of the models in test_any_server.py. Runs in MLServer's own environment, which has nothing of Convoy's."""

from __future__ import annotations

import asyncio

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class _Model(MLModel):
    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        outputs = await self.run(payload)
        if payload.outputs:
            wanted = {output.name for output in payload.outputs}
            outputs = [output for output in outputs if output.name in wanted]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)

    async def run(self, payload: InferenceRequest) -> list[ResponseOutput]:
        raise NotImplementedError


class Identity(_Model):
    """Every input as it came, under the name of its output."""

    async def run(self, payload: InferenceRequest) -> list[ResponseOutput]:
        return [ResponseOutput(name=f"y{x.name[1:]}", datatype=x.datatype, shape=x.shape, data=x.data) for x in payload.inputs]


class Pairs(_Model):
    """Twice and half of ``x``; negative numbers are refused."""

    async def run(self, payload: InferenceRequest) -> list[ResponseOutput]:
        x = NumpyCodec.decode_input(payload.inputs[0])
        if np.any(x < 0):
            raise InferenceError("pairs takes no negative numbers")
        return [NumpyCodec.encode_output("twice", x * 2), NumpyCodec.encode_output("half", x / 2)]


class Slow(Identity):
    """Takes half a second."""

    async def run(self, payload: InferenceRequest) -> list[ResponseOutput]:
        await asyncio.sleep(0.5)
        return await super().run(payload)
