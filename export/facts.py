"""What a person or a run says of a network: what the manifest holds beyond its weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from convoy.contract.errors import UsageError
from convoy.contract.image import ImageSpec
from convoy.contract.manifest import Origin, Preprocessing, TensorSpec, TrainingFacts
from convoy.contract.reading import ReadingSpec
from convoy.export.evidence.card import CardFacts
from convoy.export.gate.gate import Border
from convoy.export.reading.border import ReadingBorder

DEFAULT_MAX_BATCH_SIZE = 64


@dataclass(frozen=True)
class ModelFacts:
    """What the manifest says of a network beyond its weights.

    Attributes:
        model_name: The name to serve it under.
        labels: Class names in the order of the logits; of a reader of amounts its characters, in their order.
        image: The model's image.
        preprocessing: What the network does with the pixels, where that can be said.
        training: Where the weights come from, where Convoy trained them.
        origin: The file that others made, where there is one.
        weights_sha256: Digest of the weights' file; of the tensors themselves where None.
        max_batch_size: The largest batch that the server may form.
        temperature: The probabilities are softmax(logits / temperature): fitted on images that were held back, or 1. A file that
            others made has its own softmax: 1.
        card: What only the person who publishes the model can say.
        reading: What a reader of amounts answers; None for a classifier.
    """

    model_name: str
    labels: tuple[str, ...]
    image: ImageSpec
    preprocessing: Preprocessing | None = None
    training: TrainingFacts | None = None
    origin: Origin | None = None
    weights_sha256: str | None = None
    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE
    temperature: float = 1.0
    card: CardFacts = field(default_factory=CardFacts)
    reading: ReadingSpec | None = None

    @property
    def border(self) -> Border:
        """What the gate holds a classifier's border to."""
        return Border(self.image, self.labels, self.max_batch_size, self.temperature)

    @property
    def reading_border(self) -> ReadingBorder:
        """What the gate holds a reader's border to.

        Raises:
            UsageError: It is no reader.
        """
        if self.reading is None:
            raise UsageError("facts: expected what a reader of amounts answers (reading), found None: a classifier's.")
        return ReadingBorder(self.image, self.labels, self.reading, self.max_batch_size)

    @property
    def tensors(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """The manifest's inputs and outputs."""
        border = self.border if self.reading is None else self.reading_border
        return border.inputs, border.outputs
