"""Warnings that never end a training, also under `python -W error`."""

from __future__ import annotations

import logging
import sys
import warnings

LOGGER = logging.getLogger("riprap")
OWN = "riprap: "  # how each of these warnings begins
# Packages between a user's line and a warning.
BETWEEN = frozenset({"riprap", "torch", "transformers", "accelerate", "contextlib", "functools"})


def warn(text: str) -> None:
    """Warn with "riprap: " and `text`, at the line of the user's code that led to it.

    A warning that is turned into an error is logged instead.
    """
    try:
        warnings.warn(f"{OWN}{text}", stacklevel=_users_level())
    except Warning:  # `-W error`: an observer must not end what it observes
        LOGGER.warning("riprap: %s", text)


def _users_level() -> int:
    """Return the stack level of the first frame outside of Riprap and of the training libraries.

    Counted from the caller, as in `warnings.warn`.
    """
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in BETWEEN:
            break
        level, frame = level + 1, frame.f_back
    return level
