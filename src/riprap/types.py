"""What is measured, in what state, and what is concluded from it: readings, forecasts, alerts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

RUN = ""  # the `behavior` of a reading that concerns the run as a whole


class ReadingStatus(StrEnum):
    """How far a reading can be believed. A value exists only when it was `MEASURED`."""

    MEASURED = "MEASURED"
    NOT_RUN = "NOT_RUN"
    INSUFFICIENT = "INSUFFICIENT"
    ERROR = "ERROR"


class Level(StrEnum):
    """Levels of an alert, from the mildest."""

    WATCH = "watch"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """Position in the order watch < warning < critical, from 1."""
        return list(Level).index(self) + 1


@dataclass(frozen=True, slots=True)
class Reading:
    """One number with its step, unit and evidence state.

    Raises:
        ValueError: a measured value is missing or not finite, or a value stands beside
            another state. A number that is not there is never written as 0.
    """

    step: int
    behavior: str
    signal: str
    value: float | None = None
    unit: str = ""
    state: ReadingStatus = ReadingStatus.MEASURED
    layer: str = ""
    detail: str = ""

    def __post_init__(self) -> None:
        measured = self.state is ReadingStatus.MEASURED
        if measured and (self.value is None or not math.isfinite(self.value)):
            raise ValueError(
                f"reading {self.signal!r} at step {self.step}: a measured value must be finite, "
                f"got {self.value}; use state ERROR instead"
            )
        if not measured and self.value is not None:
            raise ValueError(
                f"reading {self.signal!r} at step {self.step}: "
                f"state {self.state} carries no value, got {self.value}"
            )

    @classmethod
    def of(
        cls, step: int, behavior: str, signal: str, value: float, unit: str = "", layer: str = ""
    ) -> Reading:
        """A measured reading, or an `ERROR` one where the value is not finite."""
        if math.isfinite(value):
            return cls(step, behavior, signal, float(value), unit, layer=layer)
        detail = f"value is {value}"
        return cls(step, behavior, signal, None, unit, ReadingStatus.ERROR, layer, detail)


@dataclass(frozen=True, slots=True)
class Forecast:
    """Steps from the alert until the score falls under its floor.

    Attributes:
        median, low, high: median and bounds of the 80 % interval, in optimizer steps from now;
            `inf` stands for "not within the horizon".
        horizon: how far ahead the forecast looks, in optimizer steps.
    """

    median: float
    low: float
    high: float
    horizon: int

    @property
    def predicts_break(self) -> bool:
        """Whether the whole interval lies inside the horizon."""
        return self.high <= self.horizon


@dataclass(frozen=True, slots=True)
class Alert:
    """What a detector concluded at one step about one behaviour, with what caused it."""

    step: int
    behavior: str
    level: Level
    detector: str
    message: str
    readings: tuple[Reading, ...] = ()
    forecast: Forecast | None = None


@dataclass(frozen=True, slots=True)
class Action:
    """What a guard did to one step, or would have done.

    Attributes:
        step: number of the optimizer step, from 1.
        guard: the guard's name.
        moment: "gradients" (before the optimizer's step), "update" (after it) or "visit" (to the
            probes, between two steps).
        applied: whether training was changed.
        detail: what was done, or why nothing was.
        before, after: numbers before and after the act, such as inner products by behaviour.
        seconds: what it cost.
    """

    step: int
    guard: str
    moment: str
    applied: bool
    detail: str = ""
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
