"""Choice of the world: the part that needs text and weights must need both of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from experiments.fast_slow.measure import mean
from experiments.fast_slow.plan import Plan
from experiments.fast_slow.premise import (
    NEEDS_BOTH,
    TEXT,
    TOGETHER,
    WEIGHTS,
    Premise,
    premise_of,
    rewards_table,
)
from experiments.harness import markdown
from experiments.harness.cache import cached
from experiments.harness.jobs import Job
from experiments.harness.plan import require_world
from experiments.harness.study import Session, Study
from experiments.worlds.verifiable import VerifiableConfig, VerifiableWorld

CANDIDATES = {
    "1000 steps": VerifiableConfig(steps=1000),
    "2000 steps": VerifiableConfig(steps=2000),
    "3000 steps": VerifiableConfig(steps=3000),
}
"""Worlds in the order in which they are preferred: steps of the pretraining."""
FOUND_BY_CHANCE = 0.1  # largest reward of weights alone on the part that needs text as well
FLOOR = 0.9  # least score of an old behavior of a base


@dataclass
class Tried:
    """The premise of one candidate on one base."""

    name: str
    premise: Premise


def world_of(name: str) -> VerifiableWorld:
    """Return the world of a candidate."""
    return VerifiableWorld(CANDIDATES[name])


@cached("fast_slow/search/{world:.12}-{plan.setting.training}/{name}-{seed}.json")
def measure_candidate(name: str, world: str, seed: int, plan: Plan) -> Tried:
    """Measure the premise of a candidate, of a world with a fingerprint, on one base."""
    own = world_of(name)
    require_world(world, own.fingerprint)
    return Tried(name, premise_of(own, seed, plan.setting))


def conditions(found: Premise, plan: Plan) -> dict[str, bool]:
    """Return what the rule asks of a base."""
    on = {name: own[NEEDS_BOTH] for name, own in found.rewards.items()}
    return {
        "weights alone do not find it": on[WEIGHTS] <= FOUND_BY_CHANCE,
        "text alone does not solve it": on[TEXT] <= plan.little,
        "together they solve it": on[TOGETHER] >= plan.enough,
        "weights alone reach the target": mean(list(found.rewards[WEIGHTS].values())) > plan.target,
        "text alone stays under it": mean(list(found.rewards[TEXT].values()))
        <= plan.target - plan.least,
        "old behaviors are there": min(found.scores.values()) >= FLOOR,
    }


def claims(found: list[Tried], plan: Plan) -> dict[str, str]:
    """Return the choice: the candidate with the most bases on which all conditions hold.

    Of several, the first. So none is measured after one that holds on all bases.
    """
    good = dict.fromkeys(CANDIDATES, 0)
    for own in found:
        good[own.name] += all(conditions(own.premise, plan).values())
    chosen = max(good, key=lambda name: good[name])
    n = len({own.premise.seed for own in found})
    return {"chosen": f"{chosen}: all conditions hold on {good[chosen]} of {n} bases"}


def sections(found: list[Tried], plan: Plan) -> dict[str, Any]:
    """Return the tables of the page."""
    return {
        "candidates": "; ".join(CANDIDATES),
        "chosen": claims(found, plan)["chosen"],
        "bases": [
            {"candidate": own.name, "seed": own.premise.seed}
            | {
                name: markdown.number(own.premise.rewards[name][NEEDS_BOTH], 2)
                for name in (TEXT, WEIGHTS, TOGETHER)
            }
            | {
                name: "yes" if held else "no"
                for name, held in conditions(own.premise, plan).items()
            }
            for own in found
        ],
        "rewards": [
            {"candidate": name} | row
            for name in dict.fromkeys(own.name for own in found)
            for row in rewards_table([o.premise.rewards for o in found if o.name == name])
        ],
    }


def jobs(session: Session[Plan]) -> list[Job]:
    """Measure the candidates in their order, up to one that is right; return their jobs."""
    done: list[Job] = []
    for name in CANDIDATES:
        world = world_of(name).fingerprint
        own = [(name, world, seed, session.plan) for seed in session.seeds]
        done += own
        tried: list[Tried] = session.run_jobs(measure_candidate, own)
        if all(all(conditions(one.premise, session.plan).values()) for one in tried):
            break
    return done


SEARCH = Study(
    name="fast_slow",
    template="search.md",
    page="SEARCH.md",
    plan=Plan,
    exploratory=True,
    jobs=jobs,
    simulate=measure_candidate,
    claims=claims,
    sections=sections,
)
