"""Batch scoring: every image of a set through a running server into one Parquet file.

``score`` is the whole of it. The table's columns are described in ``convoy.serving.scoring._table``; ``SCHEMA_VERSION`` stands in
each file's key-value metadata.
"""

from __future__ import annotations

from convoy.serving.scoring._run import ScoreSummary as ScoreSummary
from convoy.serving.scoring._run import score as score
from convoy.serving.scoring._source import describe_skipped as describe_skipped
from convoy.serving.scoring._table import SCHEMA_VERSION as SCHEMA_VERSION
