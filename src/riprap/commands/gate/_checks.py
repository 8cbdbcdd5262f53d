"""Checks of requirements on measured scores and on alerts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from riprap._formatting import format_score
from riprap.commands.gate._requirements import NoAlert, Requirement, ScoreAtLeast, ScoreAtMost
from riprap.detectors import Power, score_interval
from riprap.errors import ConfigError
from riprap.types import Alert

FAILED, UNKNOWN = 2, 3  # exit codes; 0: all are met


class Status(StrEnum):
    """Outcome of a check; `SKIPPED`: nothing was required, and nothing could be measured."""

    MET = "met"
    FAILED = "failed"
    UNKNOWN = "unknown"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Measured:
    """Probes of a behavior that pass, at the end.

    Attributes:
        before: score before training; None: not known.
        reason: why it was not measured; empty if it was.
    """

    passing: int
    n_probes: int
    before: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Check:
    """One requirement, and what was found.

    Attributes:
        found: what was measured, as text.
        interval: 95 % interval of the score (Wilson), if every probe is a random sample of those
            that matter; None for alerts, or without a measurement.
        note: what the numbers do not settle; empty if there is nothing to say.
    """

    requirement: str
    status: Status
    found: str
    interval: tuple[float, float] | None = None
    note: str = ""


@dataclass(frozen=True)
class GateResult:
    """The checks of one gate."""

    subject: str
    checks: tuple[Check, ...]

    @property
    def exit_code(self) -> int:
        """0: all requirements are met; 2: one failed; 3: too little was measured to say."""
        statuses = {check.status for check in self.checks}
        if Status.FAILED in statuses:
            return FAILED
        return UNKNOWN if Status.UNKNOWN in statuses else 0

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, for JSON."""
        checks = [
            {
                "requirement": own.requirement,
                "status": str(own.status),
                "found": own.found,
                "interval": own.interval,
                "note": own.note,
            }
            for own in self.checks
        ]
        return {"subject": self.subject, "exit_code": self.exit_code, "checks": checks}


def check_score(requirement: ScoreAtLeast, measured: Measured) -> Check:
    """Check a score; a difference that the interval does not settle is "within noise"."""
    least, n = requirement.score, measured.n_probes
    if measured.reason:
        return Check(str(requirement), Status.UNKNOWN, "not measured", note=measured.reason)
    score = measured.passing / n
    interval = score_interval(score, n)
    found = f"{format_score(score, least)} on {n} probe{'s' * (n > 1)}"
    if measured.before is not None:
        found += f" (before training {measured.before:.2f})"
    if score < least:
        note = "within noise" if interval[1] >= least else ""
        return Check(str(requirement), Status.FAILED, found, interval, note)
    seen = Power.seen_with(n, least)
    if seen < least / 2:
        note = f"too few probes: a fall to half of {least:g} would be missed too often"
        return Check(str(requirement), Status.UNKNOWN, found, interval, note)
    note = f"a true score of {seen:.2f} would be let through 1 time in 5"
    note = f"within noise: {note}" if interval[0] < least else note
    return Check(str(requirement), Status.MET, found, interval, note)


def check_alerts(requirement: NoAlert, standing: Sequence[Alert]) -> Check:
    """Check that no alert of the level or of a higher one stands."""
    found = [alert for alert in standing if alert.level.rank >= requirement.level.rank]
    if not found:
        return Check(str(requirement), Status.MET, "none stands at the end")
    worst = max(found, key=lambda alert: (alert.level.rank, -alert.step))
    text = f"{worst.level} on {worst.behavior or 'training'} since step {worst.step:,}"
    more = len(found) - 1
    return Check(str(requirement), Status.FAILED, text, note=f"{more} more" if more else "")


def check_all(
    requirements: Sequence[Requirement],
    scores: Mapping[str, Measured],
    standing: Sequence[Alert] | str | None,
) -> tuple[Check, ...]:
    """Check all requirements.

    Args:
        standing: alerts that stand at the end; or why that is not known; None: there are none to
            read.

    Raises:
        ConfigError: a requirement names no measured behavior, or needs alerts where there are none.
    """
    checks = []
    for own in requirements:
        if isinstance(own, NoAlert):
            if standing is None:
                raise ConfigError(
                    f"{str(own)!r} needs the record of a run: two models have no alerts"
                )
            if isinstance(standing, str):
                checks.append(Check(str(own), Status.UNKNOWN, "not known", note=standing))
            else:
                checks.append(check_alerts(own, standing))
        elif isinstance(own, ScoreAtMost):
            raise ConfigError(f"{str(own)!r} is for results of `riprap eval`: scores have floors")
        elif own.behavior not in scores:
            known = ", ".join(scores) or "none"
            raise ConfigError(f"{str(own)!r}: no such behavior was measured; there are: {known}")
        else:
            checks.append(check_score(own, scores[own.behavior]))
    return tuple(checks)
