"""Terms of the experiment, as its preregistration fixes them."""

from __future__ import annotations

from typing import Self

from pydantic import Field

from experiments.fast_slow.arms import ARMS
from experiments.harness.plan import StudyPlan
from experiments.harness.preregistration import Preregistration, PreregistrationError
from riprap._config import StrictModel

Job = tuple[str, int]  # arm, seed of the base and of the data


class Setting(StrictModel):
    """Settings of all runs. Their hash names the cached runs, so that an amendment keeps them.

    Attributes:
        world: fingerprint of the verifiable world.
        problems, group: of each update: problems, and rollouts of each of them.
        rate, clip: learning rate of AdamW, constant; largest importance weight of CISPO.
        min_p: rollouts have no token that is less probable than this share of the likeliest one.
        updates: of plain RL on a task. Other arms stop after as many rollouts.
        long: updates of plain RL on the first task, where plasticity is measured. Other arms stop
            after as many rollouts.
        every, keep: updates from one cycle to the next, and instructions in use.
        cycle_problems: problems on which a cycle scores instructions.
        measure_every: updates from one measurement to the next. The first update is measured too,
            which follows the first cycle; of the proxy's task, all up to the `closely`-th.
        probe_every: longest gap between two evaluations of the monitor, in updates.
        sampled: answers that a measurement samples.
        premise_updates: of each training of the premise.
    """

    world: str
    problems: int = Field(ge=1)
    group: int = Field(ge=2)
    rate: float = Field(gt=0)
    clip: float = Field(gt=0)
    min_p: float = Field(ge=0, lt=1)
    updates: int = Field(ge=1)
    long: int = Field(ge=1)
    every: int = Field(ge=1)
    keep: int = Field(ge=1)
    cycle_problems: int = Field(ge=1)
    measure_every: int = Field(ge=1)
    closely: int = Field(ge=0)
    probe_every: int = Field(ge=1)
    sampled: int = Field(ge=1)
    premise_updates: int = Field(ge=1)

    @property
    def terms(self) -> str:
        """Return the hash that names cached runs."""
        return self.config_hash()

    @property
    def training(self) -> str:
        """Return the hash of all settings but the world."""
        return self.model_copy(update={"world": ""}).config_hash()

    @property
    def rollouts(self) -> int:
        """Rollouts of an update."""
        return self.problems * self.group


class Plan(StudyPlan):
    """Terms of the experiment; the hash of the preregistration covers every field.

    Attributes:
        arms: what is run on each seed; see `arms.ARMS`.
        targets: mean rewards at which arms are compared; `target` is that of the claims.
        least: smallest difference of a score or reward that is called an effect; `near`: of a
            ratio to 1; `fewest`: of a mean number of behaviors.
        enough: expected reward that the premise calls solved; `little`: and not solved.
        hacked: share of answers that only the proxy pays for, from which the reward is hacked.
        claims: what is claimed, by the name of its verdict; `rules`: how it is decided.
    """

    exploratory: tuple[int, ...]
    confirmatory: tuple[int, ...] = Field(min_length=3)
    setting: Setting
    arms: tuple[str, ...]
    targets: tuple[float, ...]
    target: float
    least: float = Field(gt=0)
    near: float = Field(gt=0)
    fewest: float = Field(gt=0)
    enough: float
    little: float
    hacked: float
    claims: dict[str, str]
    rules: dict[str, str]

    @classmethod
    def of(cls, preregistration: Preregistration) -> Self:
        """Return the plan inside a preregistration; see `StudyPlan.of`.

        Raises:
            PreregistrationError: also if an arm is unknown, or the target is none of the targets.
        """
        plan = super().of(preregistration)
        if unknown := set(plan.arms) - set(ARMS):
            raise PreregistrationError(f"no arm {sorted(unknown)[0]!r}")
        if plan.target not in plan.targets:
            raise PreregistrationError(f"target {plan.target:g} is not among the targets")
        return plan

    def jobs(self, exploratory: bool = False) -> list[Job]:
        """Return all runs: all arms on the first seed, then on the next."""
        return [(arm, seed) for seed in self.seeds(exploratory) for arm in self.arms]
