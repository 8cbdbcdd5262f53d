"""Page of the quintiles."""

from __future__ import annotations

from pathlib import Path


def write_page(out: Path) -> Path:
    """Write the page."""
    raise NotImplementedError(out)
