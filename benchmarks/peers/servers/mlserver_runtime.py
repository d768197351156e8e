"""MLServer with its adaptive batching."""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from session import Model


class Classifier(MLModel):
    """KServe v2 in and out."""

    async def load(self) -> bool:
        """Open the session."""
        self.model = Model()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The probabilities of a batch."""
        images = NumpyCodec.decode_input(payload.inputs[0])
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("probabilities", self.model(images))])
