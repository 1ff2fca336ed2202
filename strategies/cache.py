"""Where fetched data and weights are kept: `confide data fetch` fills it, and nothing else does."""

from __future__ import annotations

import os
from pathlib import Path


def cache() -> Path:
    """The user's cache: $CONFIDE_CACHE, else confide under $XDG_CACHE_HOME, else ~/.cache/confide."""
    if own := os.environ.get("CONFIDE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "confide"
