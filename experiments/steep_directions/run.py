"""The steep study: every run of its frozen protocol, then tables, a figure and verdicts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.harness import markdown
from experiments.harness.jobs import run_jobs
from experiments.harness.markdown import commit
from experiments.harness.preregistration import Preregistration
from experiments.steep_directions import analysis as judging
from experiments.steep_directions.analysis import Run
from experiments.steep_directions.figure import steep_figure
from experiments.steep_directions.plan import Plan
from experiments.steep_directions.simulate import simulate
from experiments.worlds import ToyWorld
from riprap.monitor import versions
from riprap.report import save


def run(out: Path, exploratory: bool = False, workers: int = 2) -> dict[str, Any]:
    """Make the runs that are missing, and write tables, figure and verdicts.

    Args:
        out: folder of the results.
        exploratory: use the exploratory seeds, whose results are never reported as the study's.
        workers: processes, one thread each.

    Returns:
        the verdicts and the path written.

    Raises:
        ProtocolError: the protocol was changed since it was frozen.
    """
    preregistration = Preregistration.named("steep_directions")
    if not exploratory:
        preregistration.verify()
    plan = Plan.of(preregistration)
    pairs = plan.runs(exploratory)
    run_jobs(simulate, [(*pair, preregistration) for pair in pairs], workers)
    runs = [one for pair in pairs for one in judging.load(*pair, plan)]
    chance = plan.k / sum(p.numel() for p in ToyWorld().untrained(0).parameters())
    out.mkdir(parents=True, exist_ok=True)
    save(steep_figure(runs, chance), out / "steep.png")
    (out / "README.md").write_text(_page(runs, preregistration, plan, chance, exploratory))
    return {"out": str(out), "verdicts": judging.verdicts(runs, plan, chance)}


def _page(
    runs: Sequence[Run],
    preregistration: Preregistration,
    plan: Plan,
    chance: float,
    exploratory: bool,
) -> str:
    kind = "exploratory" if exploratory else "confirmatory"
    command = "riprap study steep" + (" --exploratory" if exploratory else "")
    verdicts = judging.verdicts(runs, plan, chance)
    said = "\n".join(f"- {claim}: **{verdict}**" for claim, verdict in verdicts.items())
    by_task = [
        _row(condition, [run for run in runs if run.condition == condition], chance)
        for condition in plan.conditions
    ]
    names = list(dict.fromkeys(run.behavior for run in runs))
    by_behavior = [
        _row(
            f"{condition}, {name}",
            [run for run in runs if (run.condition, run.behavior) == (condition, name)],
            chance,
        )
        for condition in plan.conditions
        for name in names
    ]
    return (
        f"# Steep alignment, {kind} seeds\n\nMade by `{command}` at commit `{commit()}`, protocol "
        f"`steep` `{preregistration.hash}`, {json.dumps(versions())}.\n\n"
        f"The claim: where the whole cosines cos(g, g_b) and cos(−g, h_b) are both within "
        f"{plan.near_zero:g} of 0, the task gradient g still lies in the behaviour's "
        f"{plan.k} steep directions clearly more, {plan.clearly:g} times, than chance "
        f"({chance:.2g}). What it means is in `FINDINGS.md` beside this file.\n\n{said}\n\n"
        f"{markdown.table(by_task)}\n\n"
        "Ratios of ‖U_kᵀ g‖² / ‖g‖², geometric means over the measurements near 0, with 95 % "
        f"t-intervals over {len({run.seed for run in runs})} seeds; a run is {plan.steps} steps, "
        f"measured every {plan.every}. U_k are steep directions at the start: of the behaviour's "
        "margins, of margins of random *targets* on its probes, of *pairs* of random logits on "
        "its probes, and of pairs on random *inputs*. `random` are random directions: chance as "
        "measured. A verdict needs the lower end of every new task; `null` goes on with the old "
        "mix and is a control. The protocol's detector is not asked.\n\n"
        f"![steep](steep.png)\n\n## By behaviour\n\n{markdown.table(by_behavior)}\n"
    )


def _row(name: str, runs: Sequence[Run], chance: float) -> dict[str, Any]:
    near = sum(int(run.near.sum()) for run in runs)
    over: dict[str, str | float] = {
        "of chance": chance,
        "of targets": "targets",
        "of pairs": "pairs",
        "of inputs": "inputs",
    }
    ratios = {title: _interval(judging.interval(runs, other)) for title, other in over.items()}
    random = np.concatenate([run.column("random") for run in runs]) / chance
    return {
        "new task": name,
        "near 0": markdown.share(near, sum(len(run.near) for run in runs)),
        **ratios,
        "random of chance": markdown.number(random.mean(), 2) if len(random) else markdown.NOTHING,
    }


def _interval(found: tuple[float, float, float]) -> str:
    value, low, high = (f"{one:.3g}" for one in found)
    return f"{value} [{low}, {high}]"
