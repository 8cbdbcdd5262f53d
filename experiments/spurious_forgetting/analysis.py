"""Replication of the findings of arXiv 2501.13453 on the biographies world."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.spurious_forgetting.plan import Plan
from experiments.spurious_forgetting.simulate import Recovery, Run

CLAIMS = {
    "collapse": "within the first steps the answers go, and the statements stay",
    "few": "few examples bring the answers back",
    "irrelevant": "so do as few examples of an irrelevant task",
    "half": "learning half of the old questions again brings the other half back",
    "low": "the damage lies in embeddings and the lowest block, not in the highest and the head",
    "freezing": "freezing embeddings and the lowest block is a remedy",
}


def numbers(task: str, seed: int, runs: Sequence[Run], plan: Plan) -> dict[str, float]:
    """Return the numbers that decide each claim, for one task and seed."""
    by_frozen = {run.frozen: run for run in runs if (run.task, run.seed) == (task, seed)}
    plain = by_frozen["nothing"]
    start, early = (next(p for p in plain.along if p.step == step) for step in (0, plan.early))
    back = next(recovery for recovery in plain.back if recovery.step == plan.early)
    most = max(plan.counts)
    lost = start.asked - early.asked
    ends = {frozen: run.along[-1] for frozen, run in by_frozen.items()}
    return {
        "collapse": lost,
        "stated": early.stated,
        "few": regained(back, f"own {most}"),
        "irrelevant": regained(back, f"irrelevant {most}"),
        "half": (back.half - back.half_before) / max(start.asked - back.half_before, 1e-9),
        "low": (back.parts["low"] - back.parts["high"]) / max(lost, 1e-9),
        "freezing": ends["low"].asked - max(ends["nothing"].asked, ends["high"].asked),
        "learned": min(end.new for end in ends.values()),
    }


def regained(back: Recovery, source: str) -> float:
    """Share of the lost score that a source recovers; the reference recovers all of it."""
    now, most = back.now, max(value for key, value in back.curve.items() if "reference" in key)
    return (back.curve[source] - now) / max(most - now, 1e-9)


def holds(claim: str, n: dict[str, float], plan: Plan) -> bool:
    """Tell if a claim holds for one task and seed."""
    if claim == "collapse":
        return n["collapse"] >= plan.collapsed and n["stated"] >= plan.kept
    if claim in ("few", "irrelevant", "low") and n["collapse"] < plan.collapsed:
        return False  # there is hardly any loss to recover
    if claim == "freezing":
        return n["freezing"] >= plan.held and n["learned"] >= plan.learned
    return n[claim] >= (plan.lower if claim == "low" else plan.regained)


def verdict(claim: str, task: str, runs: Sequence[Run], plan: Plan) -> str:
    """Conclude `replicates` if a claim holds for every seed, `does not replicate` if for none."""
    seeds = sorted({run.seed for run in runs})
    outcomes = [holds(claim, numbers(task, seed, runs, plan), plan) for seed in seeds]
    if all(outcomes):
        return "replicates"
    return (
        f"mixed ({sum(outcomes)} of {len(outcomes)} seeds)"
        if any(outcomes)
        else "does not replicate"
    )
