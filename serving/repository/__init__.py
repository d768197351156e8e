"""The model repository on disk: Triton's layout, immutable versions, atomic changes."""

from __future__ import annotations

from convoy.serving.repository.repository import Deployment as Deployment
from convoy.serving.repository.repository import ModelEntry as ModelEntry
from convoy.serving.repository.repository import Repository as Repository
from convoy.serving.repository.repository import VersionEntry as VersionEntry
