"""Light overwritings, and damage that is no training, on the toy facts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from experiments.harness.cache import cached
from experiments.harness.markdown import median_range, number
from experiments.harness.plan import StudyPlan
from experiments.harness.study import Study
from experiments.loss_classification.checkpoints import NOTHING
from experiments.worlds import FactsWorld
from riprap import evaluation
from riprap.behaviors import Behavior
from riprap.diagnosis import RecoveryEvidence, Verdict, recover
from riprap.diagnosis.recovery import MIN_SCORE_DROP, UNSAID_SHARE, classify_loss
from riprap.toy import Examples, batches

PROBES = 80  # of the 96 facts; the others are the examples
GROUP = 32  # weights with a common scale
NOISE_START, NOISE_GROWTH = 0.02, 1.15  # relative to each tensor's standard deviation
MAX_STEPS = 400
FRESH = (833, 834, 835)  # seeds that were run after the last change of the rule
K, DAMAGE = Verdict.KNOWLEDGE, Verdict.DAMAGE


@dataclass(frozen=True)
class DamageCase:
    """What is done to a start, until at most a share of the probes pass.

    Attributes:
        steps: (kind, amount) in order. `overwritten`, `noise` and `pruned` go on until a score,
            `bits` quantizes to as many.
    """

    name: str
    steps: tuple[tuple[str, float], ...]
    truth: str


CASES = (
    DamageCase("overwritten to a half", (("overwritten", 0.5),), K),
    DamageCase("overwritten to a fourth", (("overwritten", 0.25),), K),
    DamageCase("overwritten to a tenth", (("overwritten", 0.1),), K),
    DamageCase("noise to a half", (("noise", 0.5),), DAMAGE),
    DamageCase("noise to a fourth", (("noise", 0.25),), DAMAGE),
    DamageCase("pruned to a half", (("pruned", 0.5),), DAMAGE),
    DamageCase("pruned to a fourth", (("pruned", 0.25),), DAMAGE),
    DamageCase("4 bits", (("bits", 4),), DAMAGE),
    DamageCase("3 bits", (("bits", 3),), DAMAGE),
    DamageCase("2 bits", (("bits", 2),), DAMAGE),
    DamageCase("overwritten to a fourth, 4 bits", (("overwritten", 0.25), ("bits", 4)), K),
    DamageCase("overwritten to a half, noise", (("overwritten", 0.5), ("noise", 0.25)), K),
)


class DamagePlan(StudyPlan):
    """Seeds: the damage of the weights was derived on 1000; `both` was amended after 830."""

    exploratory: tuple[int, ...] = (830, 831, 832)
    confirmatory: tuple[int, ...] = ()
    cases: tuple[str, ...] = tuple(case.name for case in CASES)


@dataclass(frozen=True)
class DamagedCheckpoint:
    """The diagnosis of one checkpoint.

    Attributes:
        truth: the right verdict; `NOTHING` if the score did not drop.
    """

    case: str
    seed: int
    truth: str
    verdict: str
    reason: str
    evidence: dict[str, Any]


class LightFacts:
    """The facts of `FactsWorld`, measured in their first wording."""

    def __init__(self) -> None:
        self.world = FactsWorld()
        first, _ = self.world.wordings
        order = torch.randperm(len(first), generator=torch.Generator().manual_seed(21))
        self.probes = self._behavior(first[order[:PROBES]])
        self.examples = self._behavior(first[order[PROBES:]])
        self.unrelated = self.world.pools()[0].subset(range(50))

    @staticmethod
    def _behavior(rows: Examples) -> Behavior:
        return Behavior.next_token("facts", rows.input_ids, rows.targets)

    def score(self, model: nn.Module) -> float:
        """Return the share of passed probes."""
        return float((evaluation.evaluate(self.probes, model).margins > 0).mean())

    def overwritten(self) -> Examples:
        """Return all facts in both wordings with other numbers, the same for every seed."""
        facts, modulus = self.world.tasks["facts"], self.world.config.vocabulary.modulus
        generator = torch.Generator().manual_seed(19)
        shift = torch.randint(1, modulus, (len(facts) // 2,), generator=generator).repeat(2)
        return Examples(facts.input_ids, (facts.targets + shift) % modulus)


def overwrite(facts: LightFacts, model: nn.Module, until: float, seed: int) -> None:
    """Train other numbers until at most this share of the probes pass."""
    world = facts.world
    rows = batches([facts.overwritten()], [world.config.batch], seed)
    optimizer = world.optimizer(model)
    for _ in range(MAX_STEPS):
        if facts.score(model) <= until:
            return
        world.loss(model, next(rows)).backward()
        optimizer.step()
        optimizer.zero_grad()


def matrices(model: nn.Module) -> list[Tensor]:
    """Return the weight matrices, without the embedding."""
    named = model.named_parameters()
    return [weight for name, weight in named if weight.dim() == 2 and "embed" not in name]


@torch.no_grad()
def until_score(
    facts: LightFacts, model: nn.Module, until: float, damage: Callable[[Tensor, int], Tensor]
) -> None:
    """Damage the original matrices more and more, until at most this share of the probes pass."""
    original = [weight.clone() for weight in matrices(model)]
    for level in count():
        for weight, before in zip(matrices(model), original, strict=True):
            weight.copy_(damage(before, level))
        if facts.score(model) <= until:
            return


def noise(seed: int) -> Callable[[Tensor, int], Tensor]:
    """Return a damage: the same Gaussian noise, larger at each level."""

    def damage(weight: Tensor, level: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed + weight.numel())
        size = NOISE_START * NOISE_GROWTH**level * weight.std()
        return weight + size * torch.randn(weight.shape, generator=generator)

    return damage


def prune(weight: Tensor, level: int) -> Tensor:
    """Set the smallest weights to 0, two hundredths more at each level."""
    smallest = max(1, round(min(0.02 * (level + 1), 1.0) * weight.numel()))
    limit = weight.abs().flatten().kthvalue(smallest).values
    return weight.where(weight.abs() > limit, 0.0)


@torch.no_grad()
def quantize(model: nn.Module, bits: int) -> None:
    """Round each group of weights in a row to a grid between its least and largest one."""
    for weight in matrices(model):
        weight.copy_(rounded(weight, bits))


def rounded(weight: Tensor, bits: int) -> Tensor:
    """Return a matrix, rounded in groups of `GROUP` along its rows."""
    groups = weight.reshape(-1, GROUP)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp_min(1e-12)
    return (low + ((groups - low) / step).round() * step).reshape(weight.shape)


def damaged(facts: LightFacts, case: DamageCase, seed: int) -> nn.Module:
    """Make a checkpoint."""
    model = facts.world.start(seed)
    for kind, amount in case.steps:
        if kind == "overwritten":
            overwrite(facts, model, amount, seed)
        elif kind == "noise":
            until_score(facts, model, amount, noise(seed))
        elif kind == "pruned":
            until_score(facts, model, amount, prune)
        else:
            quantize(model, int(amount))
    return model


@cached("loss_classification/damage-{plan.terms}-{name}-{seed}.json")
def simulate(name: str, seed: int, plan: DamagePlan) -> DamagedCheckpoint:
    """Make a checkpoint and diagnose it, as most users do."""
    case = next(case for case in CASES if case.name == name)
    facts = LightFacts()
    model = damaged(facts, case, seed)
    found = recover(
        model,
        facts.probes,
        facts.examples,
        reference=facts.world.start(seed),
        unrelated_examples=facts.unrelated,
        shot_counts=(10,),
    )
    evidence = found.evidence
    is_lost = evidence.score_before - evidence.score_now >= MIN_SCORE_DROP
    truth = str(case.truth) if is_lost else NOTHING
    shown = vars(evidence) | {"lost_disposition": evidence.lost_disposition}
    return DamagedCheckpoint(name, seed, truth, str(found.verdict), found.reason, shown)


def judge(one: DamagedCheckpoint) -> DamagedCheckpoint:
    """Return a stored checkpoint with the verdict that its evidence gets now."""
    numbers = {name: one.evidence[name] for name in RecoveryEvidence.__dataclass_fields__}
    evidence = RecoveryEvidence(**numbers)
    verdict, reason = classify_loss(evidence)
    shown = numbers | {"lost_disposition": evidence.lost_disposition}
    return replace(one, verdict=str(verdict), reason=reason, evidence=shown)


def sections(checkpoints: Sequence[DamagedCheckpoint], _plan: DamagePlan) -> dict[str, Any]:
    """Return the table."""
    rows = []
    for case in CASES:
        own = [one for one in checkpoints if one.case == case.name]
        said = Counter(one.verdict for one in own)
        named = Counter(one.evidence["damage"] for one in own if one.evidence["damage"])
        rows.append(
            {
                "checkpoint": case.name,
                "truth": ", ".join(sorted({one.truth for one in own})),
                "verdicts": ", ".join(f"{n} {verdict}" for verdict, n in said.items()),
                "named": ", ".join(f"{n} {kind}" for kind, n in named.items()),
                "score": median_range([one.evidence["score_now"] for one in own], 2),
                "known, lost probes": median_range([one.evidence["retained"] for one in own], 2),
            }
        )
    light = [one for one in checkpoints if len(_steps(one)) == 1 and one.truth == str(K)]
    no_training = [one for one in checkpoints if one.truth == str(DAMAGE)]
    lost = [one for one in checkpoints if one.truth != NOTHING]
    parts = {"light": light, "damage": no_training, "all": lost}
    fresh = {
        f"fresh_{k}": _right([one for one in own if one.seed in FRESH]) for k, own in parts.items()
    }
    return {
        **{
            key: _right([one for one in own if one.seed not in FRESH]) for key, own in parts.items()
        },
        **fresh,
        "table": rows,
        "with_unrelated": number(
            sum(
                one.evidence["recovered_by_unrelated"] >= UNSAID_SHARE
                for one in light
                if one.seed not in FRESH
            )
        ),
    }


def _steps(one: DamagedCheckpoint) -> tuple[tuple[str, float], ...]:
    return next(case.steps for case in CASES if case.name == one.case)


def _right(checkpoints: Sequence[DamagedCheckpoint]) -> str:
    return f"{number(sum(one.verdict == one.truth for one in checkpoints))} of {len(checkpoints)}"


STAGE: Study[DamagePlan, list[DamagedCheckpoint]] = Study(
    name="loss_classification",
    plan=DamagePlan,
    preregistered=False,
    exploratory=True,
    jobs=lambda s: [(c, seed, s.plan) for seed in (*s.seeds, *FRESH) for c in s.plan.cases],
    seeds=lambda plan: (*plan.exploratory, *FRESH),
    simulate=simulate,
    collect=lambda runs, _: [judge(one) for one in runs],
    sections=sections,
    documents={"damage.json": lambda results, _: results},
    template="damage.md",
    page="DAMAGE.md",
)
