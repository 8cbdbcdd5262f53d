"""All measures of one behaviour of one model."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.concentration.plan import Plan
from experiments.concentration.probes import behavior_of, passing
from experiments.harness.preregistration import PreregistrationError
from experiments.worlds.facts import FactsWorld
from riprap import evaluation as probing
from riprap.behaviors import Behavior
from riprap.diagnosis import Estimate
from riprap.diagnosis.geometry import Redundancy, concentration, curvature, redundancy
from riprap.integrations.smollm2 import REFUSING

RUNS = Path("runs/concentrated")
TOY, REAL = "toy", "SmolLM2"


@dataclass(frozen=True)
class Measured:
    """One behaviour of one model.

    Attributes:
        model: `toy` or `SmolLM2`; seed: of the toy's start, 0 for the real model.
        rank, entropy: effective ranks of the margins' Jacobian as shares of the probes.
        layers: share of the Jacobian's energy by layer; positions: by token, from the last one.
        eigenvalues, traces, trace_errors: of the Gauss–Newton matrix, one entry a group of probes.
        intact, left, beside: margins as they are, and with directions ablated: see `Redundancy`.
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

    @classmethod
    def load(cls, file: Path) -> Measured:
        """From the JSON that `simulate` wrote."""
        found = json.loads(file.read_text())
        for key in ("rank", "entropy"):
            found[key] = Estimate(**found[key])
        return cls(**found)

    @property
    def redundancy(self) -> Redundancy:
        """The margins of the ablations."""
        left, beside = (
            {kind: np.array(values) for kind, values in side.items()}
            for side in (self.left, self.beside)
        )
        return Redundancy(tuple(self.counts), np.array(self.intact), left, beside, self.floor)

    @property
    def bends(self) -> list[float]:
        """The largest eigenvalue over the trace, one entry a group of probes."""
        return [e[0] / trace for e, trace in zip(self.eigenvalues, self.traces, strict=True)]


def simulate(model: str, seed: int, role: str, plan: Plan) -> Measured:
    """Measure, or read what was measured before.

    Raises:
        ProtocolError: the plan was made for another world, or the model passes too few probes.
    """
    terms = hashlib.sha256(plan.model_dump_json().encode()).hexdigest()[:8]
    file = RUNS / f"{model}-{seed}-{role}-{terms}.json"
    if file.exists():
        return Measured.load(file)
    torch.set_num_threads(1)
    file.parent.mkdir(parents=True, exist_ok=True)
    net, behavior_by = (_toy if model == TOY else _real)(seed, plan)
    other = plan.beside.get(role)
    contrast = None if other is None else behavior_by(other)
    found = measure(net, behavior_by(role), contrast, plan, (model, seed, role))
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(found)))
    partial.rename(file)
    return found


def measure(
    net: nn.Module,
    behavior: Behavior,
    contrast: Behavior | None,
    plan: Plan,
    where: tuple[str, int, str],
) -> Measured:
    """All measures of one behaviour."""
    began = time.process_time()
    groups = [range(first, plan.probes, plan.groups) for first in range(plan.groups)]
    bent = [
        curvature(net, behavior.subset(own), top=plan.top, samples=plan.samples, seed=number)
        for number, own in enumerate(groups)
    ]
    spread = concentration(net, behavior)
    lean = redundancy(
        net,
        behavior,
        contrast=contrast,
        counts=plan.counts,
        layer=probing.find_layer(net),
        draws=plan.draws,
        seed=where[1],
    )
    return Measured(
        *where,
        behavior.name,
        spread.rank_share,
        spread.entropy_share,
        spread.by_layer,
        spread.by_position.tolist(),
        [list(one.eigenvalues) for one in bent],
        [one.trace for one in bent],
        [one.trace_error for one in bent],
        list(lean.counts),
        lean.floor,
        lean.intact.tolist(),
        {kind: values.tolist() for kind, values in lean.left.items()},
        {kind: values.tolist() for kind, values in lean.beside.items()},
        time.process_time() - began,
    )


def _toy(seed: int, plan: Plan) -> tuple[nn.Module, Callable[[str], Behavior]]:
    """The toy world's model, and its behaviours by role."""
    world = FactsWorld()
    if world.fingerprint != plan.world:
        raise PreregistrationError("the plan was made for another toy world: amend it")
    model = world.start(seed).eval()

    def behavior_by(role: str) -> Behavior:
        behavior = next(b for b in world.behaviors() if b.name == plan.toy[role])
        passed = np.flatnonzero(probing.look(behavior, model).margins > 0).tolist()
        return _enough(behavior, passed[: plan.probes], plan)

    return model, behavior_by


def _real(_seed: int, plan: Plan) -> tuple[nn.Module, Callable[[str], Behavior]]:
    """The model that was taught to refuse, and its behaviours by role."""
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
            f"behaviour {behavior.name!r}: the model passes {len(passed)} probes, and the plan "
            f"asks for {plan.probes}"
        )
    return behavior.subset(passed)
