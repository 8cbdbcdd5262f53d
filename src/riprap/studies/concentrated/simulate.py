"""All measures of one behaviour of one model."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from riprap import probing
from riprap.behaviors import Behavior
from riprap.diagnosis.base import Estimate
from riprap.diagnosis.concentration import concentration
from riprap.diagnosis.curvature import curvature
from riprap.diagnosis.redundancy import Redundancy, redundancy
from riprap.evidence import ProtocolError
from riprap.integrations.smollm2 import REFUSING
from riprap.studies.concentrated.plan import Plan
from riprap.studies.concentrated.probes import behavior_of, passing
from riprap.studies.worlds.facts import FactsWorld

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
        intact, left: margins as they are, and with directions ablated: see `Redundancy`.
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
        left = {kind: np.array(values) for kind, values in self.left.items()}
        return Redundancy(tuple(self.counts), np.array(self.intact), left, self.floor)

    @property
    def bends(self) -> list[float]:
        """The largest eigenvalue over the trace, one entry a group of probes."""
        return [e[0] / trace for e, trace in zip(self.eigenvalues, self.traces, strict=True)]


def simulate(model: str, seed: int, role: str, plan: Plan) -> Measured:
    """Measure, or read what was measured before.

    Raises:
        ProtocolError: the plan was made for another world, or the model passes too few probes.
    """
    file = RUNS / f"{model}-{seed}-{role}.json"
    if file.exists():
        return Measured.load(file)
    torch.set_num_threads(1)
    file.parent.mkdir(parents=True, exist_ok=True)
    net, behavior = (_toy if model == TOY else _real)(seed, role, plan)
    found = measure(net, behavior, plan, (model, seed, role))
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(found)))
    partial.rename(file)
    return found


def measure(
    net: nn.Module, behavior: Behavior, plan: Plan, where: tuple[str, int, str]
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
        time.process_time() - began,
    )


def _toy(seed: int, role: str, plan: Plan) -> tuple[nn.Module, Behavior]:
    world = FactsWorld()
    if world.fingerprint != plan.world:
        raise ProtocolError("the plan was made for another toy world: amend it")
    model = world.start(seed).eval()
    behavior = next(b for b in world.behaviors() if b.name == plan.toy[role])
    margins = probing.look(behavior, model).margins
    return model, _enough(behavior, np.flatnonzero(margins > 0).tolist()[: plan.probes], plan)


def _real(_seed: int, role: str, plan: Plan) -> tuple[nn.Module, Behavior]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: nn.Module = AutoModelForCausalLM.from_pretrained(REFUSING).eval()
    behavior = behavior_of(plan.real[role], AutoTokenizer.from_pretrained(REFUSING))
    return model, _enough(behavior, passing(behavior, model)[-plan.probes :], plan)


def _enough(behavior: Behavior, passed: list[int], plan: Plan) -> Behavior:
    if len(passed) < plan.probes:
        raise ProtocolError(
            f"behaviour {behavior.name!r}: the model passes {len(passed)} probes, and the plan "
            f"asks for {plan.probes}"
        )
    return behavior.subset(passed)
