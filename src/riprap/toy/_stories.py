"""Recorded runs of the toy world that `riprap demo` shows; `tools/demo_stories.py` makes them."""

from __future__ import annotations

import hashlib
import lzma
from importlib import resources
from pathlib import Path

from riprap.record import FILE_NAME

STORIES = {  # title of each record
    "caught-early": "Story 1: caught early, and kept",
    "the-loss-fell": "Story 2: the loss fell, and a skill went",
    "nothing-trained": "Story 3: a training that trained nothing",
}


def stories_digest() -> str:
    """Return a short digest of the stories: another version of Riprap may have others."""
    found = hashlib.sha256()
    for name in STORIES:
        found.update(_packed(name))
    return found.hexdigest()[:8]


def unpack_stories(folder: Path) -> list[Path]:
    """Write each story into a folder of its own, unless it is there; return these folders."""
    for name in reversed(STORIES):  # pages begin with the run that was written last
        file = folder / name / FILE_NAME
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial")
            partial.write_bytes(lzma.decompress(_packed(name)))
            partial.rename(file)
    return [folder / name for name in STORIES]


def _packed(name: str) -> bytes:
    return (resources.files("riprap.toy") / "stories" / f"{name}.sqlite.xz").read_bytes()
