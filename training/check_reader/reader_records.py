"""What a reader's run folder says of it: ``run.json`` and ``metrics.json``."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from convoy.contract.files import Document
from convoy.contract.image import ImageSpec
from convoy.contract.manifest import Label, Sha256
from convoy.contract.reading import OperatingPoint, ReadingSpec
from convoy.training.recipes.reader import ReaderRecipe

KIND: Final = "amount-reading"


class FieldFacts(Document):
    """Which fields a run saw.

    Attributes:
        handwriting: The data set whose digits the synthetic fields are written with.
        n_synthetic: How many there were.
        real: The folder of the real ones; empty where there were none.
        n_real: Real fields that it learnt from.
        n_held_back: Fields that it was judged by: a block of the real ones, else synthetic ones.
        sha256: Of all real pixels and labels; empty where there were none.
    """

    handwriting: str
    n_synthetic: int
    real: str = ""
    n_real: int = 0
    n_held_back: int
    sha256: str = ""


class ReaderRecord(Document):
    """``run.json``: what was trained, on what, how and where.

    Attributes:
        schema_version: The version of this document's form.
        kind: What tells it from a classifier's.
        run_id: The run's name.
        created_at: When it ended, ISO 8601, UTC.
        recipe: The recipe, with the person's changes.
        grammar: The rules, as they were.
        data: Which fields it saw.
        labels: The characters in the order of the network's classes behind the blank.
        image: How any image becomes the network's pixels.
        reading: What its answers mean, with the threshold.
        seed: The one seed of the run.
        device: Where it ran, in words.
        n_threads: CPU threads of torch; sums are added in another order with another number.
        versions: The versions of Python and the libraries.
        n_parameters: How many numbers the network learns.
        weights_sha256: Digest of ``weights.safetensors``.
    """

    schema_version: Literal[1] = 1
    kind: Literal["amount-reading"] = KIND
    run_id: str
    created_at: str
    recipe: ReaderRecipe
    grammar: str
    data: FieldFacts
    labels: tuple[Label, ...] = Field(min_length=2)
    image: ImageSpec
    reading: ReadingSpec
    seed: int
    device: str = "cpu"
    n_threads: int
    versions: dict[str, str]
    n_parameters: int
    weights_sha256: Sha256


class EpochFacts(Document):
    """One epoch: see ``ReaderEpoch``."""

    phase: str
    epoch: int
    loss: float
    seconds: float


class ReaderMetrics(Document):
    """``metrics.json``: how training went and what came out. Shares are fractions in [0, 1].

    Attributes:
        schema_version: The version of this document's form.
        history: A record an epoch.
        held_back: What it was judged by: ``real`` or ``synthetic``.
        n: How many fields.
        n_right: Whole amounts read right.
        accuracy: Their share, with its 95 % interval.
        points: The curve of coverage against error: thresholds, coverage and error, at most 200 of them, the strictest first.
        confidence: Scale and shift of the calibration.
        seconds: The whole run.
    """

    schema_version: Literal[1] = 1
    history: tuple[EpochFacts, ...]
    held_back: Literal["real", "synthetic"]
    n: int
    n_right: int
    accuracy: tuple[float, float, float]
    points: tuple[OperatingPoint, ...]
    confidence: tuple[float, float]
    seconds: float
