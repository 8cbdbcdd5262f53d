"""What a record says, as far as the conclusion of its run needs it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from riprap._text import shorten
from riprap.conclusion._outcome import BehaviorOutcome, State, outcome
from riprap.detectors import Power
from riprap.record import (
    CHECKPOINT,
    COST,
    DEFAULT_FLOOR,
    TRAINING,
    Reader,
    Series,
    events_that_stand,
)
from riprap.types import RUN, Alert

NOT_TRAINING = "not_training"  # detector of the monitor's own alert on training that does nothing


@dataclass(frozen=True)
class RunFacts:
    """What the record says, as far as the conclusion needs it.

    Attributes:
        scores: measured scores by step, by behavior.
        powers: what each set of probes can tell, by behavior.
        idle: the alert that training does nothing, if it stands; None else.
        losses: of the training, as its integration recorded them.
        cost: share of the training time that the monitor took; None: not recorded.
        exchanged: scores with the weights that were loaded after the last step, by behavior; empty
            if the weights of the last step stayed.
    """

    outcomes: tuple[BehaviorOutcome, ...]
    scores: Mapping[str, Series]
    powers: Mapping[str, Power]
    checkpoints: Sequence[int]
    idle: Alert | None
    losses: Sequence[float]
    cost: float | None
    exchanged: Mapping[str, float]
    first_step: int
    last_step: int
    guarded: bool
    finished: bool

    @classmethod
    def read(cls, reader: Reader) -> RunFacts:
        """Read them from a record."""
        meta, events = reader.meta(), reader.events()
        alerts, withdrawn = reader.alerts(), reader.withdrawals()
        actions = reader.actions()
        pairs = [(alert, withdrawn.get(place)) for place, alert in enumerate(alerts)]
        measured = {key[0]: series for key, series in reader.series("score").items()}
        evaluated = max((max(series) for series in measured.values()), default=0)
        outcomes, scores, powers = [], {}, {}
        for own in reader.behaviors() or [{"name": n, "floor": DEFAULT_FLOOR} for n in measured]:
            name = shorten(own["name"])
            scores[name] = measured.get(own["name"], Series())
            about = [pair for pair in pairs if pair[0].behavior == own["name"]]
            margins = reader.margins(own["name"])
            n = len(margins[max(margins)]) if margins else 0
            outcomes.append(
                outcome(name, float(own["floor"]), scores[name], n, about, actions, evaluated)
            )
            if margins:
                gap = meta.get("longest_gap")
                powers[name] = Power.of(
                    margins[min(margins)],
                    float(own["floor"]),
                    own.get("categories"),
                    gap if isinstance(gap, int) and gap > 0 else None,
                )
        about_run = [pair for pair in pairs if pair[0].behavior == RUN]
        idle = [a for a, until in about_run if a.detector == NOT_TRAINING and until is None]
        told = [event["facts"] for event in events_that_stand(events, TRAINING)]
        costs = [event["facts"].get("share") for event in events if event["kind"] == COST]
        return cls(
            tuple(outcomes),
            scores,
            powers,
            [event["step"] for event in events_that_stand(events, CHECKPOINT)],
            idle[-1] if idle else None,
            [f["loss"] for f in told if _is_number(f.get("loss"))],
            costs[-1] if costs and _is_number(costs[-1]) else None,
            {shorten(key[0]): _last(own) for key, own in reader.series("final_score").items()},
            min((min(series) for series in measured.values()), default=0),
            max([evaluated, *(alert.step for alert in alerts), *(e["step"] for e in events)]),
            any(action.applied for action in actions),
            bool(meta.get("ended")),
        )

    def of(self, *states: State) -> list[BehaviorOutcome]:
        """Return the outcomes with one of these states."""
        return [own for own in self.outcomes if own.state in states]

    def keep_step(self) -> int | None:
        """Return the last evaluated step at which no watched behavior was under its floor."""
        return max((step for step, is_healthy in self._health() if is_healthy), default=None)

    def keep_checkpoint(self) -> int | None:
        """Return the last recorded checkpoint with healthy evaluations before and after it."""
        health = self._health()
        return max((step for step in self.checkpoints if _is_healthy(step, health)), default=None)

    def _health(self) -> list[tuple[int, bool]]:
        """Return each evaluated step, and whether every watched behavior was above its floor."""
        watched = [own for own in self.outcomes if own.state is not State.NEVER_HAD]
        under: dict[str, bool] = {}
        found = []
        for step in sorted({step for own in watched for step in self.scores[own.name]}):
            for own in watched:
                score = self.scores[own.name].get(step)
                if score is not None:
                    under[own.name] = score < own.floor
            found.append((step, not any(under.values())))
        return found


def _is_healthy(step: int, health: Sequence[tuple[int, bool]]) -> bool:
    before = [is_healthy for at, is_healthy in health if at <= step]
    after = [is_healthy for at, is_healthy in health if at >= step]
    return bool(before) and before[-1] and (not after or after[0])


def _last(series: Series) -> float:
    return float(series.value_array[-1])


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)
