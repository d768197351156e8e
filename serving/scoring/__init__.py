"""Batch scoring: every image of a set, once, into a data set of Parquet files, whatever is killed in between.

``score`` is the whole of it. The columns are described in ``convoy.serving.scoring._table``, those of models that read amounts in
``convoy.serving.scoring._amounts``; ``SCHEMA_VERSION`` or ``AMOUNTS_SCHEMA_VERSION`` stands in each file's key-value metadata.
"""

from __future__ import annotations

from convoy.serving.scoring._amounts import AMOUNTS_SCHEMA_VERSION as AMOUNTS_SCHEMA_VERSION
from convoy.serving.scoring._progress import Progress as Progress
from convoy.serving.scoring._run import CHUNK_ROWS as CHUNK_ROWS
from convoy.serving.scoring._run import ROWS_PER_FILE as ROWS_PER_FILE
from convoy.serving.scoring._run import ScoreRun as ScoreRun
from convoy.serving.scoring._run import ScoreSummary as ScoreSummary
from convoy.serving.scoring._run import score as score
from convoy.serving.scoring._statistics import Statistics as Statistics
from convoy.serving.scoring._statistics import name_of_first as name_of_first
from convoy.serving.scoring._table import FORMATS as FORMATS
from convoy.serving.scoring._table import SCHEMA_VERSION as SCHEMA_VERSION
from convoy.serving.scoring.source import describe_skipped as describe_skipped
