"""What a monitor refuses, and what it warns of."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from numbers import Integral

from riprap._text import shorten
from riprap.behaviors import Behavior
from riprap.detectors import BehaviorHistory, score
from riprap.errors import ConfigError
from riprap.linalg import STORAGE_DTYPES


def check_arguments(behaviors: Sequence[Behavior], every: int, kept: str) -> None:
    """Whether a monitor can be made of these.

    Raises:
        ConfigError: no behaviours, two of one name, `every` under 1, or no such `kept`.
    """
    if isinstance(behaviors, Behavior) or not all(isinstance(b, Behavior) for b in behaviors):
        raise ConfigError("nothing to watch: give the monitor a list of behaviours")
    # As they will be shown: nobody could tell apart what differs in how its accents are coded.
    names = [shorten(unicodedata.normalize("NFC", behavior.name)) for behavior in behaviors]
    twice = {name for name in names if names.count(name) > 1}
    if not names:
        raise ConfigError("nothing to watch: give the monitor at least one behaviour")
    if twice:
        raise ConfigError(f"two behaviours are called {twice.pop()!r}: names must be unique")
    if not isinstance(every, Integral) or every < 1:
        raise ConfigError(f"every={every}: the probes are visited every 1 step or more")
    if kept not in STORAGE_DTYPES:
        raise ConfigError(f"kept={kept!r}: choose one of {', '.join(STORAGE_DTYPES)}")


def below_floor_warning(track: BehaviorHistory) -> str:
    """What to say of a behaviour that has nothing to lose."""
    return (
        f"behaviour {track.behavior!r} scores {score(track.margins[0]):.2f} before training, under "
        f"its floor {track.floor:.2f}: no alert will be raised on it; lower the floor, or keep the "
        "probes that the model passes"
    )
