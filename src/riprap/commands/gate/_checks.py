"""Checks of requirements on measured scores and on alerts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from riprap._formatting import format_score
from riprap.commands.gate._requirements import NoAlert, Requirement, ScoreBound
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
        reason: why it was not measured at the end; empty if it was. Then `passing` and `n_probes`
            are of the last evaluation; 0: there was none.
        step: of that evaluation.
    """

    passing: int
    n_probes: int
    before: float | None = None
    reason: str = ""
    step: int | None = None


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


def check_score(requirement: ScoreBound, measured: Measured) -> Check:
    """Check the score of a behavior; see `check_share`."""
    if not measured.n_probes:
        return Check(str(requirement), Status.UNKNOWN, "not measured", note=measured.reason)
    score = measured.passing / measured.n_probes
    if measured.reason:
        found = _found(score, requirement.score, measured.n_probes, "probe", measured.before)
        found += "" if measured.step is None else f", at step {measured.step:,}"
        interval = score_interval(score, measured.n_probes)
        return Check(str(requirement), Status.UNKNOWN, found, interval, measured.reason)
    return check_share(requirement, score, measured.n_probes, "probe", measured.before)


def check_share(
    requirement: ScoreBound,
    share: float,
    n: int,
    unit: str,
    before: float | None = None,
) -> Check:
    """Check a share of probes or rows, or a mean of numbers in [0, 1] over them.

    A difference that the interval does not settle is "within noise". It is not met, but unknown,
    where too little was measured to see a large loss.

    Args:
        unit: what there are `n` of.
        before: the share before training; None: not known.
    """
    limit, interval = requirement.score, score_interval(share, n)
    found = _found(share, limit, n, unit, before)
    most = requirement.at_most
    if share > limit if most else share < limit:
        noise = interval[0] <= limit if most else interval[1] >= limit
        note = "within noise" if noise else ""
        return Check(str(requirement), Status.FAILED, found, interval, note)
    # At most x of them is at least 1 - x of the others.
    seen = Power.seen_with(n, 1 - limit if most else limit)
    status, note = power_note(seen, 1 - limit if most else limit, unit, most)
    noise = interval[1] > limit if most else interval[0] < limit
    if status is Status.MET and noise:
        note = f"within noise: {note}"
    return Check(str(requirement), status, found, interval, note)


def _found(share: float, limit: float, n: int, unit: str, before: float | None) -> str:
    text = f"{format_score(share, limit)} on {n} {unit}{'s' * (n > 1)}"
    return text if before is None else f"{text} (before training {before:.2f})"


def power_note(seen: float, level: float, unit: str, most: bool = False) -> tuple[Status, str]:
    """Return whether a check that found no loss can say so, and what it can miss.

    Args:
        seen: largest true score that is seen as a loss 4 times in 5; of values that are good when
            low (`most`), one minus their smallest.
        level: the score that is held, in the same way.
    """
    if seen < level / 2:
        loss = f"a rise to {1 - level / 2:.3g}" if most else f"a fall to half of {level:.3g}"
        return Status.UNKNOWN, f"too few {unit}s: {loss} would be missed too often"
    shown = 1 - seen if most else seen
    return Status.MET, f"a true score of {shown:.2f} would be let through 1 time in 5"


def check_alerts(requirement: NoAlert, standing: Sequence[Alert], unsettled: str = "") -> Check:
    """Check that no alert of the level or of a higher one stands.

    Args:
        unsettled: why the alerts are not those of the end; empty: they are.
    """
    if unsettled:
        until_now = check_alerts(requirement, standing)
        found = until_now.found if until_now.status is Status.FAILED else "none stands so far"
        return Check(str(requirement), Status.UNKNOWN, found, note=unsettled)
    alerts = [alert for alert in standing if alert.level.rank >= requirement.level.rank]
    if not alerts:
        return Check(str(requirement), Status.MET, "none stands at the end")
    worst = max(alerts, key=lambda alert: (alert.level.rank, -alert.step))
    text = f"{worst.level} on {worst.behavior or 'training'} since step {worst.step:,}"
    more = len(alerts) - 1
    return Check(str(requirement), Status.FAILED, text, note=f"{more} more" if more else "")


def check_all(
    requirements: Sequence[Requirement],
    scores: Mapping[str, Measured],
    standing: Sequence[Alert] | None,
    unsettled: str = "",
) -> tuple[Check, ...]:
    """Check all requirements.

    Args:
        standing: alerts that stand at the end; None: there are none to read.
        unsettled: why the alerts are not those of the end; empty: they are.

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
            checks.append(check_alerts(own, standing, unsettled))
        elif own.at_most:
            raise ConfigError(f"{str(own)!r} is for results of `riprap eval`: scores have floors")
        elif own.behavior not in scores:
            known = ", ".join(scores) or "none"
            raise ConfigError(f"{str(own)!r}: no such behavior was measured; there are: {known}")
        else:
            checks.append(check_score(own, scores[own.behavior]))
    return tuple(checks)
