"""What is scored: ``open_source`` finds out what a name stands for and gives its inputs one by one, always in the same order.

Listing and reading are apart: ``Source.entries`` names the inputs and reads no image, ``Source.load`` reads some of them. An
``Entry`` is plain text and numbers, so that a run can write down what it has done and go on later.
"""

from __future__ import annotations

from convoy.serving.scoring.source._array import ArraySource as ArraySource
from convoy.serving.scoring.source._entry import MOST_BYTES as MOST_BYTES
from convoy.serving.scoring.source._entry import Entry as Entry
from convoy.serving.scoring.source._entry import Loaded as Loaded
from convoy.serving.scoring.source._entry import Source as Source
from convoy.serving.scoring.source._name import printable as printable
from convoy.serving.scoring.source._open import ACCEPTED as ACCEPTED
from convoy.serving.scoring.source._open import open_source as open_source
from convoy.serving.scoring.source._skipped import describe_skipped as describe_skipped
