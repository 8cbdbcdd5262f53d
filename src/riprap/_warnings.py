"""Warnings that never end a training, also under `python -W error`."""

from __future__ import annotations

import logging
import warnings

LOGGER = logging.getLogger("riprap")
OWN = "riprap: "  # how each of these warnings begins


def warn(text: str, stacklevel: int = 2) -> None:
    """Warn with "riprap: " and `text`; a warning that is turned into an error is logged instead.

    Args:
        stacklevel: as in `warnings.warn`, counted from the caller of `warn`.
    """
    try:
        warnings.warn(f"{OWN}{text}", stacklevel=stacklevel + 1)
    except Warning:  # `-W error`: an observer must not end what it observes
        LOGGER.warning("riprap: %s", text)
