"""Checks of a gate: the end of a recorded run, or a tuned model beside its base."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from riprap.commands.gate._checks import Check, GateResult, Measured, Status, check_all
from riprap.commands.gate._requirements import Requirement, ScoreBound
from riprap.conclusion import BehaviorOutcome, State, conclude
from riprap.errors import ConfigError
from riprap.record import Reader

NOT_ENDED = "the run has not ended: this is what was measured until now"


def check_run(run: Path, requirements: Sequence[Requirement] | None = None) -> GateResult:
    """Check the end of a run; weights that were loaded after the last step count, if there are.

    Args:
        run: folder of the run, or its record file.
        requirements: None: each behavior has at least the score of its floor.

    Raises:
        RecordError: there is no readable record.
        ConfigError: a requirement names a behavior that the run does not have.
    """
    with Reader(run) as reader:
        conclusion = conclude(reader)
        withdrawn = reader.withdrawals()
        alerts = [a for place, a in enumerate(reader.alerts()) if place not in withdrawn]
    scores = {own.name: _measured(own, conclusion.finished) for own in conclusion.outcomes}
    if requirements is None:
        requirements = [ScoreBound(own.name, own.floor) for own in conclusion.outcomes]
    unsettled = "" if conclusion.finished else NOT_ENDED
    return GateResult(str(run), check_all(requirements, scores, alerts, unsettled))


def _measured(own: BehaviorOutcome, finished: bool) -> Measured:
    if not own.n_probes or own.last is None:
        return Measured(0, 0, reason=own.reason or "no score was measured")
    reason = "" if finished else NOT_ENDED
    if own.state is State.UNMEASURED:
        reason = f"not after step {own.last_step:,}: {own.reason or 'no reason is recorded'}"
    passing = 0 if own.state is State.BROKEN and own.reason else round(own.last * own.n_probes)
    return Measured(passing, own.n_probes, own.first, reason, own.last_step)


def check_models(
    base: str,
    tuned: str,
    requirements: Sequence[Requirement] | None = None,
    refusal_prefixes: Sequence[str] = (),
    n_probes: int = 48,
    quiet: bool = False,
) -> GateResult:
    """Check a tuned model on probes that its base passes.

    Args:
        base, tuned: folders or hub ids; `tuned` may be the folder of a LoRA adapter of `base`.
        requirements: on behaviors that `probe_sets` offers, or on files with your own probes.
            None: each probe set that the base passes keeps its floor.
        n_probes: number of probes of a behavior.
        quiet: write the progress bars to standard error.

    Raises:
        RiprapError: the models or the probes cannot be used.
    """
    from riprap.behaviors import probe_sets
    from riprap.commands.diagnose import DiagnoseConfig, measure_scores

    wanted = [own for own in requirements or [] if isinstance(own, ScoreBound) and not own.at_most]
    if requirements is not None:
        check_all([r for r in requirements if r not in wanted], {}, None)
    settings = {"base": base, "tuned": tuned, "out": Path(), "n_probes": n_probes}
    settings |= {"refusal_prefixes": tuple(refusal_prefixes)}
    if wanted:
        settings["behaviors"] = [own.behavior for own in wanted]
    config = DiagnoseConfig.parse(settings, "riprap gate")
    with Progress(console=Console(file=sys.stderr) if quiet else Console()) as bars:
        found = measure_scores(config, bars)
    scores = {
        own.name: Measured(
            round(own.score_now * own.probes) if own.probes else 0,
            own.probes,
            own.score_before if own.probes else None,
            own.missing.get("probes", "") if not own.probes else "",
        )
        for own in found
    }
    if requirements is None:
        if not any(own.probes for own in found):
            raise ConfigError(f"the model {base!r} has none of these behaviors to keep")
        checks = check_all([ScoreBound(o.name, o.floor) for o in found if o.probes], scores, None)
        skipped = [
            Check(
                own.name,
                Status.SKIPPED,
                "the base has too little of it",
                note=own.missing["probes"],
            )
            for own in found
            if not own.probes
        ]
        return GateResult(tuned, (*checks, *skipped))
    named = [ScoreBound(probe_sets.behavior_name(own.behavior), own.score) for own in wanted]
    return GateResult(tuned, check_all(named, scores, None))
