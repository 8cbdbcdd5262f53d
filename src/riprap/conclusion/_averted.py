"""An alert that was withdrawn after a guard had changed training, and the evidence for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from riprap._formatting import format_number, format_steps
from riprap._text import shorten
from riprap.detectors import threshold_margin
from riprap.types import Action, Alert, Level

MAX_DETAIL = 120  # characters of what a guard says


@dataclass(frozen=True)
class Averted:
    """An alert, and what a guard did until it was withdrawn: perhaps a break was averted.

    Attributes:
        alert: of level `warning` or above.
        withdrawn: step at which it was withdrawn.
        guards: names of the guards that changed training in between.
        steps: number of steps at which they did.
        detail: what the last of these actions did.
        before, after: threshold margin at the alert and at the withdrawal; None: not measured.
    """

    alert: Alert
    withdrawn: int
    guards: tuple[str, ...]
    steps: int
    detail: str
    before: float | None
    after: float | None

    @property
    def action(self) -> str:
        """Return what the guards did, as a clause."""
        return f"{' and '.join(self.guards)} changed training at {format_steps(self.steps)}"

    @property
    def note(self) -> str:
        """Return the same as `evidence` in one clause."""
        margin = ""
        if self.before is not None and self.after is not None:
            pair = f"{format_number(self.before)} to {format_number(self.after)}"
            margin = f", and the threshold margin went from {pair}"
        return f"{self.action} in between{margin}: the guard may have prevented a break"

    @property
    def evidence(self) -> str:
        """Return what is known of it, in sentences."""
        last = f" (the last time: {self.detail})" if self.detail else ""
        parts = [f"In between {self.action}{last}."]
        if self.before is not None and self.after is not None:
            parts.append(
                f"The threshold margin was {format_number(self.before)} at the alert and "
                f"{format_number(self.after)} when it was withdrawn; at 0 the behavior breaks."
            )
            if self.after < self.before and self.alert.forecast is not None:
                parts.append(
                    "It was lower, and the alert still ended, because it goes by the pace of the "
                    "fall: a break was no longer expected soon."
                )
        parts.append(
            "The guard may have prevented a break: only a run without the guard could tell."
        )
        return " ".join(parts)


def averted(
    alert: Alert,
    withdrawn: int | None,
    actions: Sequence[Action],
    margins: Mapping[int, np.ndarray],
    floor: float,
) -> Averted | None:
    """Return the evidence that a break may have been averted; None: no guard acted, or it stands.

    Args:
        withdrawn: step at which the alert was withdrawn; None: it stands.
        actions: of the guards, in order.
        margins: of the probes of the alert's behavior, by step.
        floor: of the behavior.
    """
    if withdrawn is None or alert.level.rank < Level.WARNING.rank:
        return None
    between = [own for own in actions if own.applied and alert.step <= own.step <= withdrawn]
    if not between:
        return None
    return Averted(
        alert,
        withdrawn,
        tuple(dict.fromkeys(shorten(own.guard) for own in between)),
        len({own.step for own in between}),
        shorten(between[-1].detail, MAX_DETAIL),
        _threshold_at(alert.step, margins, floor),
        _threshold_at(withdrawn, margins, floor),
    )


def _threshold_at(step: int, margins: Mapping[int, np.ndarray], floor: float) -> float | None:
    """Return the threshold margin at the last evaluation up to a step."""
    last = max((own for own in margins if own <= step), default=None)
    if last is None or not len(margins[last]) or not np.isfinite(margins[last]).all():
        return None
    return threshold_margin(margins[last], floor)
