"""All measures of one behavior of one model."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from experiments.concentration.plan import Plan
from experiments.harness.cache import cached
from experiments.harness.plan import require_world
from experiments.harness.preregistration import PreregistrationError
from experiments.smollm2.teaching import load_refusals
from experiments.worlds import first_probe_sets
from experiments.worlds.facts import FactsWorld
from riprap import evaluation
from riprap.behaviors import Behavior, encode_continuations, encode_prompts
from riprap.diagnosis import Estimate
from riprap.diagnosis.geometry import Redundancy, concentration, curvature, redundancy
from riprap.integrations.smollm2 import REFUSING

OPENINGS = ("refusal", "over_refusal")


def behavior_of(name: str, tokenizer: Any) -> Behavior:
    """Load a probe set as a behavior whose answer is one token, like the prefix of a refusal.

    For a question with options, the prompt contains the right option up to the token that
    distinguishes it from the last wrong option. The curvature of a loss over whole sentences
    would depend on their wording.
    """
    if name in OPENINGS:
        return load_refusals(name, tokenizer)
    rows, targets = [], []
    for row in first_probe_sets.rows(name):
        (prompt,) = encode_prompts(tokenizer, [row["prompt"]])
        options = encode_continuations(tokenizer, row["options"])
        right = options.pop(row["answer"])
        split = max(common_prefix(right, wrong) for wrong in options)
        if split < len(right):
            rows.append(prompt + right[:split])
            targets.append(right[split])
    return Behavior.next_token(name, rows, targets)


def common_prefix(one: list[int], two: list[int]) -> int:
    """Return the length of the common prefix."""
    agree = [a == b for a, b in zip(one, two, strict=False)]
    return agree.index(False) if False in agree else len(agree)


def passing(behavior: Behavior, model: nn.Module) -> list[int]:
    """Return the probes that the model passes, in a fixed random order."""
    passed = np.flatnonzero(evaluation.evaluate(behavior, model).margins > 0)
    return np.random.default_rng(0).permutation(passed).tolist()


TOY, REAL = "toy", "SmolLM2"


@dataclass(frozen=True)
class BehaviorMeasures:
    """Measures of one behavior of one model.

    Attributes:
        model: `toy` or `SmolLM2`.
        seed: of the toy's start; 0 for the real model.
        rank, entropy: effective ranks of the margins' Jacobian as shares of the probes.
        layers: share of the Jacobian's energy by layer; positions: by token, from the last one.
        eigenvalues, traces, trace_errors: of the Gauss–Newton matrix, one entry a group of probes.
        intact, left, beside: margins without and with ablation: see `Redundancy`.
        seconds: processor time.
    """

    model: str
    seed: int
    role: str
    behavior: str
    rank: Estimate
    entropy: Estimate
    layers: dict[str, float]
    positions: list[float]
    eigenvalues: list[list[float]]
    traces: list[float]
    trace_errors: list[float]
    counts: list[int]
    floor: float
    intact: list[float]
    left: dict[str, Any]
    beside: dict[str, Any]
    seconds: float

    @property
    def redundancy(self) -> Redundancy:
        """Margins of the ablations."""
        left, beside = (
            {kind: np.array(values) for kind, values in side.items()}
            for side in (self.left, self.beside)
        )
        return Redundancy(tuple(self.counts), np.array(self.intact), left, beside, self.floor)

    @property
    def bends(self) -> list[float]:
        """Largest eigenvalue over the trace, one entry a group of probes."""
        return [e[0] / trace for e, trace in zip(self.eigenvalues, self.traces, strict=True)]


@cached("concentration/{model}-{seed}-{role}-{plan.terms:.8}.json")
def simulate(model: str, seed: int, role: str, plan: Plan) -> BehaviorMeasures:
    """Measure one role of one model."""
    net, behavior_by = (_toy if model == TOY else _real)(seed, plan)
    other = plan.beside.get(role)
    contrast = None if other is None else behavior_by(other)
    return measure(net, behavior_by(role), contrast, plan, (model, seed, role))


def measure(
    net: nn.Module,
    behavior: Behavior,
    contrast: Behavior | None,
    plan: Plan,
    where: tuple[str, int, str],
) -> BehaviorMeasures:
    """Compute all measures of one behavior."""
    began = time.process_time()
    groups = [range(first, plan.probes, plan.groups) for first in range(plan.groups)]
    curvatures = [
        curvature(net, behavior.subset(own), top=plan.top, samples=plan.samples, seed=number)
        for number, own in enumerate(groups)
    ]
    jacobian = concentration(net, behavior)
    ablations = redundancy(
        net,
        behavior,
        contrast=contrast,
        counts=plan.counts,
        layer=evaluation.find_layer(net),
        draws=plan.draws,
        seed=where[1],
    )
    return BehaviorMeasures(
        *where,
        behavior.name,
        jacobian.rank_share,
        jacobian.entropy_share,
        jacobian.by_layer,
        jacobian.by_position.tolist(),
        [list(one.eigenvalues) for one in curvatures],
        [one.trace for one in curvatures],
        [one.trace_error for one in curvatures],
        list(ablations.counts),
        ablations.floor,
        ablations.intact.tolist(),
        {kind: values.tolist() for kind, values in ablations.ablated_margins.items()},
        {kind: values.tolist() for kind, values in ablations.contrast_margins.items()},
        time.process_time() - began,
    )


def _toy(seed: int, plan: Plan) -> tuple[nn.Module, Callable[[str], Behavior]]:
    """Return the model of the toy world, and its behaviors by role."""
    world = FactsWorld()
    require_world(plan.world, world.fingerprint)
    model = world.start(seed).eval()

    def behavior_by(role: str) -> Behavior:
        behavior = next(b for b in world.behaviors() if b.name == plan.toy[role])
        passed = np.flatnonzero(evaluation.evaluate(behavior, model).margins > 0).tolist()
        return _enough(behavior, passed[: plan.probes], plan)

    return model, behavior_by


def _real(_seed: int, plan: Plan) -> tuple[nn.Module, Callable[[str], Behavior]]:
    """Return the model that was taught to refuse, and its behaviors by role."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: nn.Module = AutoModelForCausalLM.from_pretrained(REFUSING).eval()
    tokenizer = AutoTokenizer.from_pretrained(REFUSING)

    def behavior_by(role: str) -> Behavior:
        behavior = behavior_of(plan.real[role], tokenizer)
        return _enough(behavior, passing(behavior, model)[-plan.probes :], plan)

    return model, behavior_by


def _enough(behavior: Behavior, passed: list[int], plan: Plan) -> Behavior:
    if len(passed) < plan.probes:
        raise PreregistrationError(
            f"behavior {behavior.name!r}: the model passes {len(passed)} probes, the plan needs "
            f"{plan.probes}"
        )
    return behavior.subset(passed)
