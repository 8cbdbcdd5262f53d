"""What a monitor's state must look like: anything else is refused before it is taken over."""

from __future__ import annotations

from typing import Any, Self

from pydantic import ConfigDict, Field, NonNegativeInt, model_validator
from torch import Tensor

from riprap._config import StrictModel
from riprap.record import LOGS, alert_from_row, forecast_from_json


class _Part(StrictModel):
    model_config = ConfigDict(
        strict=True, arbitrary_types_allowed=True, extra="forbid", frozen=True
    )


class _Cadence(_Part):
    due: NonNegativeInt
    without: NonNegativeInt
    urgent: bool


class _Track(_Part):
    steps: list[NonNegativeInt]
    margins: list[Tensor]
    predicted: Tensor
    signals: dict[str, Tensor]
    looked_at: NonNegativeInt
    lost_at: int | None
    fell_at: int | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        shapes = {tuple(margins.shape) for margins in self.margins}
        if len(self.steps) != len(self.margins) or sorted(set(self.steps)) != self.steps:
            raise ValueError("each visit needs a later step than the last, and its margins")
        if len(shapes) > 1 or any(len(shape) != 1 or shape[0] == 0 for shape in shapes):
            raise ValueError("the margins of every visit have shape (n_probes,)")
        pairs = [self.predicted, *self.signals.values()]
        if any(part.ndim != 2 or part.shape[1] != 2 for part in pairs):
            raise ValueError("the readings of a signal have shape (n, 2): step and value")
        if not all(bool(part.isfinite().all()) for part in (*self.margins, *pairs)):
            raise ValueError("a number in it is not finite")
        return self


class _Judge(_Part):
    tracks: dict[str, _Track]
    forecasts: dict[str, str | None]
    alerts: list[list[Any]]
    standing: list[tuple[str, str, int] | list[Any]]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        try:
            for row in self.alerts:
                alert_from_row(tuple(row))
            for text in filter(None, self.forecasts.values()):
                forecast_from_json(text)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"an alert or a forecast that cannot be read ({error})") from error
        kinds = [tuple(map(type, row)) for row in self.standing]
        if any(kind != (str, str, int) for kind in kinds):
            raise ValueError("a standing alert is detector, behaviour and level")
        return self


class _Stack(_Part):
    names: list[str]
    norms: dict[str, float]
    rows: list[list[Tensor]]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if sorted(self.norms) != sorted(self.names):
            raise ValueError("each kept gradient has a name and a norm")
        for parts in self.rows:
            shapes = [tuple(part.shape) for part in parts]
            if len(parts) not in (1, 2) or any(
                len(shape) < 2 or shape[0] != len(self.names) for shape in shapes
            ):
                raise ValueError("each kept gradient has a row in every part")
        return self


class _Held(_Part):
    step: NonNegativeInt
    margin: _Stack
    loss: _Stack


class _Guard(_Part):
    guard: str
    state: dict[str, Any]


class Shape(_Part):
    """A state as `Monitor.state_dict()` gives it; what belongs to others is theirs to check."""

    format: int
    watched: dict[str, float] = Field(alias="behaviors watched")
    policy: str
    every: int
    read: list[str] = Field(alias="signals read")
    kept: str
    within: list[str]
    step: NonNegativeInt
    position: dict[str, NonNegativeInt]
    cadence: _Cadence
    judge: _Judge
    held: _Held
    behaviors: dict[str, Any]
    signals: dict[str, Any]
    guard: _Guard | None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        names = set(self.watched)
        if set(self.position) != set(LOGS):
            raise ValueError(f"its position in the record names {', '.join(LOGS)}")
        if not set(self.judge.tracks) == set(self.behaviors) == names:
            raise ValueError("it has a history of each behaviour that it names, and of no other")
        held = {*self.held.margin.names, *self.held.loss.names, *self.judge.forecasts}
        if not held <= names or set(self.signals) != set(self.read):
            raise ValueError("it holds something of a behaviour or signal that it does not name")
        return self
