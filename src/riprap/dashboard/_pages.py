"""Pages that lie in a run's folder: its diagnosis, its preflight, the audit of its rows."""

from __future__ import annotations

from pathlib import Path

from riprap._text import PAGE_MARK, PAGE_MARK_WITHIN
from riprap.record import DIAGNOSIS, PREFLIGHT, folders_of_run

# File → another file that its command writes beside it, and what the page is.
KINDS = {
    "preflight.html": (PREFLIGHT, "preflight"),
    "report.html": (DIAGNOSIS, "diagnosis"),
    "audit.html": ("audit.png", "selection audit"),
}
# They run no scripts and load nothing, whatever somebody has written into them.
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; sandbox"
)


def pages_of(record: Path) -> dict[str, tuple[str, Path]]:
    """Return kind and path of the pages in a run's folder, and in those directly below it.

    Folders that are links are left out. Keys are the pages' places in the run's folder.
    """
    folder = record.parent
    return {
        str((place / name).relative_to(folder)): (
            kind if place == folder else f"{kind} ({place.name})",
            place / name,
        )
        for place in folders_of_run(folder)
        for name, (beside, kind) in KINDS.items()
        if _is_page(place / name, place / beside)
    }


def _is_page(file: Path, beside: Path) -> bool:
    """Return whether a file is a page of Riprap with its results beside it, and no link."""
    try:
        if not beside.is_file() or not file.is_file() or file.is_symlink():
            return False
        with file.open(encoding="utf-8", errors="replace") as opened:
            return PAGE_MARK in opened.read(PAGE_MARK_WITHIN)
    except OSError:
        return False
