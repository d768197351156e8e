"""Which reader's training was stopped: the beginning of what an unfinished run leaves."""

from __future__ import annotations

from typing import Literal

from convoy.training.check_reader.reader_records import KIND
from convoy.training.loop.checkpoint import AnyStart
from convoy.training.recipes.reader import ReaderRecipe


class ReaderStart(AnyStart):
    """``start.json`` of a reader's run.

    Attributes:
        recipe: What is trained.
        grammar: The rules, as they were.
        real: The folder of real fields; None where there is none.
        dataset_sha256: Of all real pixels and labels; empty where there are none.
    """

    kind: Literal["amount-reading"] = KIND
    recipe: ReaderRecipe
    grammar: str
    real: str | None = None
    dataset_sha256: str = ""
