"""How Convoy's pages for people look: one style for the report of a run and that of an export."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path


def stylesheet() -> str:
    """The CSS: light and dark, narrow and wide, on screen and on paper; nothing is loaded from elsewhere."""
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def csp_digest(css: str) -> str:
    """What a content security policy names a style by: ``style-src 'sha256-...'``."""
    return base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
