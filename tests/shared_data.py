"""Public data sets that lie outside the project: their files, or a skipped test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("RIPRAP_DATA", Path(__file__).parents[2] / "shared" / "data"))


def shared_file(name: str) -> Path:
    """Return a file of the shared data; skip the test where it is missing."""
    if not (DATA / name).is_file():
        pytest.skip(f"{DATA / name} is missing; set RIPRAP_DATA to the folder that holds it")
    return DATA / name
