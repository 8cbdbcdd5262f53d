"""Tables of the experiment on rerouted erosion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.erosion_rerouting import analysis
from experiments.erosion_rerouting.analysis import HOLDING, Runs
from experiments.erosion_rerouting.plan import Plan
from experiments.erosion_rerouting.simulate import Run
from experiments.erosion_rerouting.tasks import ABOUT, PLAIN
from experiments.erosion_rerouting.transplant import ROUTES
from experiments.harness import markdown


def sections(runs: Runs, plan: Plan) -> list[str]:
    """Return the conclusions, then for each task the scores, movements and transplants."""
    claims = [
        {
            "claim": one.claim,
            "new task": one.task,
            "shown": f"{one.shown} of {one.seeds} seeds",
            "verdict": f"**{one.conclusion}**",
        }
        for one in analysis.conclude(runs, plan)
    ]
    conditions = [{"condition": name, "what is done": text} for name, text in ABOUT.items()]
    parts = [
        markdown.table(claims) + "\n",
        _terms(plan),
        markdown.table(conditions) + "\n",
        "![detour](detour.png)\n",
    ]
    for task in plan.conditions:
        parts += _task(runs, task, plan)
    return parts


def _terms(plan: Plan) -> str:
    return (
        f"*Holds early*: at step {plan.window} each behavior has {plan.early:g} of its mean "
        "margin under `all`, and not without a guard. *Comes round*: later a score is below its "
        f"floor, while the held features moved at most {plan.spared:g} of what the same moved "
        "without a guard; *by the readout* if that transplant brings back most. *Stops it*: no "
        "score is below its floor at any mark, and the new task is learned to "
        f"{plan.learned:g}. *On inputs that are not held*: with the readout closed it is stopped "
        "on the probes, and at the end a score on other inputs is below its floor. *As well*: "
        f"random features keep {plan.as_well:g} of the margin that the chosen ones keep early. "
        "Scores and margins are those of the probes, on which the "
        f"features are held. A claim needs {plan.seeds_of} seeds.\n\n"
        f"{plan.count} of 64 directions are held at a layer, at the last position, chosen from an "
        f"unguarded run of {plan.window} steps in another order; the penalties act once in "
        f"{plan.every} steps, re-selection comes after each {plan.reselect}; the preregistered "
        "detector is not used. Numbers are medians [least, most] over seeds.\n"
    )


def _task(runs: Runs, task: str, plan: Plan) -> list[str]:
    own = {
        name: [
            run for (condition, where, _), run in runs.items() if (condition, where) == (name, task)
        ]
        for name in plan.conditions[task]
    }
    plain = {run.seed: run for run in own[PLAIN]}
    names = list(own[PLAIN][0].marks[0].scores)
    kept, moved, restored = [], [], []
    for condition, same in own.items():
        for step in (plan.window, plan.steps):
            kept.append({"condition": condition, "step": step, **_kept(same, step, names)})
        moved.append({"condition": condition, **_moved(same, plan.steps)})
        restored += [{"condition": condition, **row} for row in _restored(same, names)]
    floors = [
        {"condition": condition, **_times(same, plain, plan)} for condition, same in own.items()
    ]
    return [
        f"## After {task}\n",
        "### When behaviors break\n\nFirst mark at which a score on the probes is below its "
        "floor; the held features' movement by then, of the unguarded run's; what brings back most "
        "of the worst behavior, in how many seeds.\n",
        markdown.table(floors) + "\n",
        "### What is kept\n\nScore, on the probes and on inputs that no guard reads; margin on the "
        "probes as a share of the start's.\n",
        markdown.table(kept) + "\n",
        f"### Where activations moved, by step {plan.steps}\n\n‖P(a − a₀)‖² / ‖a₀‖² at the last "
        "position of the probes, inside the held directions of a layer and outside of them (where "
        "nothing is held: those that drifted most); *unseen*: the same on inputs that no guard "
        "reads.\n",
        markdown.table(moved) + "\n",
        f"### What brings the margin back, at step {plan.steps}\n\nShare of the lost mean margin "
        "that comes back when a part is put back to what it is in the start: layer 0 or 1 inside "
        "the held directions or outside of them at the last position, layer 0 *elsewhere*, at the "
        "other positions, or the *readout*, final norm and output matrix. Seeds that lost less "
        f"than {analysis.LOST:g} are left out; below 0 it got worse, above 1 better than the "
        "start.\n",
        markdown.table(restored) + "\n",
    ]


def _times(same: Sequence[Run], plain: dict[int, Run], plan: Plan) -> dict[str, Any]:
    broken = [(run, mark) for run in same if (mark := analysis.first_broken(run)) is not None]
    holding = same[0].condition in HOLDING
    movements = (
        [analysis.strayed(run, plain[run.seed], m.step) for run, m in broken] if holding else []
    )
    routes = [analysis.main_route(mark) for _, mark in broken]
    counts = ", ".join(
        f"{route or 'none'} {routes.count(route)}" for route in dict.fromkeys(routes)
    )
    return {
        "broke": markdown.count_of_total(len(broken), len(same)),
        "at steps": ", ".join(str(mark.step) for _, mark in broken) or markdown.NOTHING,
        "held moved": markdown.median_range(movements, 3),
        "by way of": counts or markdown.NOTHING,
        "new task at the end": markdown.median_range([run.marks[-1].learned for run in same], 2),
    }


def _kept(same: Sequence[Run], step: int, names: Sequence[str]) -> dict[str, str]:
    marks = [run.at(step) for run in same]
    row = {}
    for name in names:
        row[f"{name} score"] = markdown.median_range([mark.scores[name] for mark in marks], 2)
        row[f"{name} unseen"] = markdown.median_range(
            [mark.unseen_scores[name] for mark in marks], 2
        )
        row[f"{name} margin"] = markdown.median_range([mark.margins[name] for mark in marks], 2)
    return row | {"new task": markdown.median_range([mark.learned for mark in marks], 2)}


def _moved(same: Sequence[Run], step: int) -> dict[str, str]:
    marks = [run.at(step) for run in same]
    row = {"features held": markdown.median_range([mark.features for mark in marks])}
    for part in marks[0].moved:
        row[part] = markdown.median_range([mark.moved[part] for mark in marks], 3)
        row[f"{part}, unseen"] = markdown.median_range(
            [mark.unseen_moved[part] for mark in marks], 3
        )
    return row


def _restored(same: Sequence[Run], names: Sequence[str]) -> list[dict[str, str]]:
    rows = []
    for name in names:
        shares = [one for run in same if (one := analysis.restored(run.marks[-1], name))]
        row = {route: markdown.median_range([one[route] for one in shares], 2) for route in ROUTES}
        rows.append({"behavior": name, "seeds": str(len(shares)), **row})
    return rows
