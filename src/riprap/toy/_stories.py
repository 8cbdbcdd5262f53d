"""Recorded runs of the toy world that `riprap demo` shows; `tools/demo_stories.py` makes them."""

from __future__ import annotations

import lzma
from importlib import resources
from pathlib import Path

from riprap.record import FILE_NAME

STORIES = {  # title of each record
    "caught-early": "Story 1: caught early, and kept",
    "the-loss-fell": "Story 2: the loss fell, and a skill went",
    "nothing-trained": "Story 3: a training that trained nothing",
}


def unpack_stories(folder: Path) -> list[Path]:
    """Write each story into a folder of its own, unless it is there; return these folders."""
    for name in reversed(STORIES):  # pages begin with the run that was written last
        file = folder / name / FILE_NAME
        if not file.is_file():
            packed = resources.files("riprap.toy") / "stories" / f"{name}.sqlite.xz"
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial")
            partial.write_bytes(lzma.decompress(packed.read_bytes()))
            partial.rename(file)
    return [folder / name for name in STORIES]
