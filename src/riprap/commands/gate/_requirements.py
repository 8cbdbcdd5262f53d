"""Requirements of a gate, and the text in which a user writes them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from riprap.errors import ConfigError
from riprap.types import Level

EXAMPLE = "refusal>=0.9, over_refusal>=0.8, no critical"


@dataclass(frozen=True)
class ScoreBound:
    """The score of a behavior, at the end, is at least a number in (0, 1].

    With `at_most`, for metrics of evals that are good when low: it is at most one in [0, 1).
    """

    behavior: str
    score: float
    at_most: bool = False

    def __str__(self) -> str:
        return f"{self.behavior}{'<=' if self.at_most else '>='}{self.score:g}"


@dataclass(frozen=True)
class NoAlert:
    """No alert of a level, or of a higher one, stands at the end."""

    level: Level

    def __str__(self) -> str:
        return f"no {self.level}"


Requirement = ScoreBound | NoAlert


def parse_requirements(text: str) -> list[Requirement]:
    """Read requirements that are separated by commas: `NAME>=SCORE`, `NAME<=SCORE`, `no LEVEL`.

    Raises:
        ConfigError: a part is neither, a score is not in (0, 1], or one is required twice.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ConfigError(f"the requirement is empty: give for instance {EXAMPLE!r}")
    found = [_parse(part) for part in parts]
    names = ["an alert level" if isinstance(own, NoAlert) else own.behavior for own in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{twice} is required twice: give one requirement for it")
    return found


def _parse(part: str) -> Requirement:
    if match := re.fullmatch(r"no\s+(\w+)", part):
        if match[1] in list(Level):
            return NoAlert(Level(match[1]))
        raise ConfigError(f"{part!r} names no alert level: use {', '.join(Level)}")
    match = re.fullmatch(r"(.+?)\s*([<>])=\s*(\S+)", part)
    if match is None:
        raise ConfigError(f"cannot read {part!r} as a requirement: write for instance {EXAMPLE!r}")
    try:
        score = float(match[3])
    except ValueError:
        raise ConfigError(f"{part!r}: {match[3]!r} is not a number") from None
    at_most = match[2] == "<"
    if at_most and not 0 <= score < 1:
        raise ConfigError(f"{part!r}: give a number of at least 0 and under 1")
    if not at_most and not 0 < score <= 1:
        raise ConfigError(f"{part!r}: a score is a share; give a number above 0 and at most 1")
    return ScoreBound(match[1], score, at_most)
