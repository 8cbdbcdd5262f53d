"""Readings, forecasts, alerts and actions: the data that all packages exchange."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from riprap._text import escape_control_chars, html_table, shorten

RUN = ""  # the `behavior` of a reading that concerns the run as a whole


class ReadingStatus(StrEnum):
    """Status of a reading. Only a `MEASURED` reading has a value."""

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


class OwnDetector(StrEnum):
    """Detectors of the monitor itself, which every policy has.

    - `NOT_TRAINING`: the steps change nothing.
    - `UNWATCHED_CHANGE`: the weights changed outside of the watched steps.
    - `UNMEASURED`: a behavior was not measured several times in a row.
    - `NOT_FINITE`: margins of a behavior are not finite.
    """

    NOT_TRAINING = "not_training"
    UNWATCHED_CHANGE = "unwatched_change"
    UNMEASURED = "unmeasured"
    NOT_FINITE = "not_finite"


@dataclass(frozen=True, slots=True)
class Reading:
    """One number with its step, unit and status. A missing number is never written as 0.

    Raises:
        ValueError: a measured value is missing or not finite, or a reading with another status
            has a value.
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
                f"got {self.value}; use status ERROR instead"
            )
        if not measured and self.value is not None:
            raise ValueError(
                f"reading {self.signal!r} at step {self.step}: "
                f"status {self.state} must have no value, got {self.value}"
            )

    @classmethod
    def of(
        cls, step: int, behavior: str, signal: str, value: float, unit: str = "", layer: str = ""
    ) -> Reading:
        """Return a measured reading, or an `ERROR` reading if the value is not finite."""
        if math.isfinite(value):
            return cls(step, behavior, signal, float(value), unit, layer=layer)
        detail = f"value is {value}"
        return cls(step, behavior, signal, None, unit, ReadingStatus.ERROR, layer, detail)

    def __str__(self) -> str:
        """Step, behavior, signal and value, or the status with its reason."""
        name = " ".join(part for part in (self.behavior, self.signal, self.layer) if part)
        value = str(self.state) if self.value is None else f"{self.value:.4g} {self.unit}".rstrip()
        reason = f" ({self.detail})" if self.detail else ""
        return f"step {self.step}, {name}: {value}{reason}"


@dataclass(frozen=True, slots=True, repr=False)
class Forecast:
    """Forecast of the number of steps until the score falls under its floor.

    Attributes:
        median, low, high: median and bounds of the 80 % interval, in optimizer steps from now;
            `inf` means "not within the horizon".
        horizon: length of the forecast, in optimizer steps.
        probability: of a break within the horizon; None: not known.
    """

    median: float
    low: float
    high: float
    horizon: int
    probability: float | None = None

    @property
    def predicts_break(self) -> bool:
        """Return whether the whole interval is within the horizon."""
        return self.high <= self.horizon

    @property
    def is_broken(self) -> bool:
        """True if the score is already under its floor."""
        return self.high == 0

    def __repr__(self) -> str:
        """Return the steps until the break with their interval, and the horizon."""
        parts = f"{_steps(self.median)} ({_steps(self.low)} to {_steps(self.high)})"
        likely = "" if self.probability is None else f", probability {self.probability:.2g}"
        return f"<Forecast: break in {parts} of {self.horizon} steps{likely}>"


@dataclass(frozen=True, slots=True, repr=False)
class Alert:
    """A detector's conclusion about one behavior at one step, with the readings that caused it.

    The behavior is `RUN` ("") if the alert concerns the run as a whole.
    """

    step: int
    behavior: str
    level: Level
    detector: str
    message: str
    readings: tuple[Reading, ...] = ()
    forecast: Forecast | None = None

    def __str__(self) -> str:
        """Step, level, behavior and message in one line."""
        return f"step {self.step}, {self.level}: {self.behavior or 'training'}: {self.message}"

    def __repr__(self) -> str:
        """Return the line of `str`, and the detector."""
        return f"<Alert {shorten(self.detector)}: {_line(self)}>"

    def _repr_html_(self) -> str:
        about = self.behavior or "training"
        cells = [self.step, str(self.level), shorten(about), self.detector, self.message]
        return html_table(["step", "level", "behavior", "detector", "message"], [cells])


@dataclass(frozen=True, slots=True)
class BrokenProbe:
    """A probe that passed at the start and fails now.

    Attributes:
        index: number of the probe in its behavior, from 0.
        text: its prompt, shortened; None if the behavior has no texts.
        now, before: how the model's greedy answers begin; None if unknown.
        step: the step of a run at which `now` was said; None: it is of no run.
    """

    index: int
    text: str | None = None
    now: str | None = None
    before: str | None = None
    step: int | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Action:
    """A guard's action at one step, or the reason why it did nothing.

    Attributes:
        step: number of the optimizer step, from 1.
        guard: the guard's name.
        moment: "gradients" (before the optimizer's step), "update" (after it) or "visit" (a probe
            evaluation, between two steps).
        applied: whether training was changed.
        detail: what was done, or why nothing was.
        before, after: numbers before and after the action, such as inner products by behavior.
        seconds: time that the action took.
    """

    step: int
    guard: str
    moment: str
    applied: bool
    detail: str = ""
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def __str__(self) -> str:
        unchanged = "" if self.applied else " (training unchanged)"
        return f"step {self.step}, {self.guard}: {self.detail or 'no reason given'}{unchanged}"

    def __repr__(self) -> str:
        """Return the line of `str`."""
        return f"<Action {_line(self)}>"

    def _repr_html_(self) -> str:
        done = "changed training" if self.applied else "left training unchanged"
        cells = [self.step, shorten(self.guard), self.moment, done, self.detail]
        return html_table(["step", "guard", "moment", "what it did", "detail"], [cells])


def _steps(count: float) -> str:
    return f"{count:,.0f}" if math.isfinite(count) else "beyond the horizon"


def _line(thing: object) -> str:
    return " ".join(escape_control_chars(str(thing)).split())
