"""One evolution of the population: `gepa.optimize` with the weights as they are as its task model.

GEPA starts from one candidate. The others of the population come first from the proposer, and are
accepted whatever they score. Each instruction meets each problem once in a cycle: the weights stand
still, so GEPA's evaluations of the same pair share one rollout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Literal

import gepa
from gepa.core.adapter import EvaluationBatch

from riprap._text import error_text
from riprap._warnings import warn
from riprap.errors import ConfigError
from riprap.fastslow._population import (
    Candidate,
    Cycle,
    Population,
    choose_at_random,
    choose_front,
    front,
)
from riprap.fastslow._proposers import Example, Proposer, Request
from riprap.fastslow._rollouts import Rollouts

PART = "instruction"  # GEPA's candidates have named parts; ours have one
_UNSCORED = -1e300  # to GEPA, whose fronts need finite scores
Select = Literal["pareto", "random"]


class _Task:
    """GEPA's adapter: scores instructions on problems, and lets the proposer write new ones.

    Args:
        rows: problems of the cycle by their position in the training data.
    """

    propose_new_texts = None  # the proposer is passed to `gepa.optimize`

    def __init__(
        self,
        rollouts: Rollouts,
        rows: Mapping[int, dict[str, Any]],
        population: Population,
        proposer: Proposer,
        rng: Random,
        batch_size: int,
    ) -> None:
        self._rollouts, self._rows, self._batch_size = rollouts, rows, batch_size
        self._population, self._proposer, self._rng = population, proposer, rng
        self._returning = population.texts[1:]
        self.seen: dict[tuple[str, int], Example] = {}
        self.generated = self.proposals = self.failures = 0
        self.error = ""

    def evaluate(
        self, batch: list[int], candidate: dict[str, str], capture_traces: bool = False
    ) -> EvaluationBatch[Example, str]:
        """Score an instruction on problems; new pairs cost a rollout each."""
        text = candidate[PART]
        new = [at for at in dict.fromkeys(batch) if (text, at) not in self.seen]
        if new:
            rows = [self._rows[at] for at in new]
            examples = self._rollouts.score(text, rows, self._batch_size)
            self.seen |= {(text, at): own for at, own in zip(new, examples, strict=True)}
            self.generated += len(new)
        found = [self.seen[text, at] for at in batch]
        return EvaluationBatch(
            outputs=[example.completion for example in found],
            scores=[_to_gepa(example.reward) for example in found],
            trajectories=found if capture_traces else None,
        )

    def make_reflective_dataset(
        self,
        candidate: dict[str, str],
        eval_batch: EvaluationBatch[Example, str],
        components_to_update: list[str],
    ) -> dict[str, list[dict[str, Any]]]:
        """Pass the examples on to `propose`."""
        return {PART: [{"example": example} for example in eval_batch.trajectories or ()]}

    def propose(
        self,
        candidate: dict[str, str],
        reflective_dataset: Mapping[str, Sequence[Mapping[str, Any]]],
        components_to_update: list[str],
    ) -> dict[str, str]:
        """Return the next instruction of the population, then those of the proposer.

        A proposer that raises proposes nothing this time: GEPA would swallow the error.
        """
        if self._returning:
            return {PART: self._returning.pop(0)}
        self.proposals += 1
        examples = [entry["example"] for entry in reflective_dataset[PART]]
        parent = candidate[PART]
        request = Request(parent, examples, self._population.texts, self._rng, self._generate)
        try:
            text = self._proposer(request)
        except Exception as error:  # noqa: BLE001 a language model that is away ends no training
            return self._fail(error_text(error))
        if not isinstance(text, str):
            return self._fail(f"the proposer returned {type(text).__name__}, not a text")
        self._population.add(text, parent)
        return {PART: text}

    def _fail(self, why: str) -> dict[str, str]:
        self.failures += 1
        self.error = self.error or why
        return {}

    def _generate(self, text: str, max_new_tokens: int) -> str:
        self.generated += 1
        return self._rollouts.answer(text, max_new_tokens)


def _to_gepa(reward: float) -> float:
    """Return a reward as GEPA compares it: nothing is best where it was not scored."""
    return _UNSCORED if math.isnan(reward) else reward


def _from_gepa(score: float) -> float | None:
    return None if score == _UNSCORED else score


class _Accept:
    """GEPA's criterion: the population always, a known text never, a new one if it improved.

    Args:
        improved: a new text must beat its parent on those problems of the minibatch on which both
            were scored.
    """

    def __init__(self, population: Sequence[str], improved: bool) -> None:
        self._population, self._improved = set(population), improved

    def should_accept(self, proposal: Any, state: Any) -> bool:
        """Return whether GEPA evaluates a proposal on all problems."""
        if proposal.candidate in state.program_candidates:
            return False
        if proposal.candidate[PART] in self._population or not self._improved:
            return True
        before, after = proposal.subsample_scores_before, proposal.subsample_scores_after
        both = [pair for pair in zip(before, after, strict=True) if _UNSCORED not in pair]
        return sum(new for _, new in both) > sum(old for old, _ in both)


class _AnyParent:
    """GEPA's selector of parents for a random population."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def select_candidate_idx(self, state: Any) -> int:
        """Return any candidate."""
        return self._rng.randrange(len(state.program_candidates))


class _Quiet:
    """GEPA's logger: what it did is in the cycle."""

    def log(self, message: str) -> None:
        """Say nothing."""


def run_cycle(
    rollouts: Rollouts,
    rows: Mapping[int, dict[str, Any]],
    population: Population,
    proposer: Proposer,
    *,
    step: int,
    keep: int,
    select: Select,
    budget: int,
    minibatch: int,
    batch_size: int,
    rng: Random,
) -> Cycle:
    """Evolve the population by one cycle; training is left as it is.

    Args:
        rows: problems by their position in the training data.
        step: optimizer steps so far.
        budget: rollouts after which nothing is proposed any more.
        minibatch: problems on which a new instruction is compared with its parent.
        batch_size: prompts generated together.
        rng: generator for everything in the cycle.
    """
    task = _Task(rollouts, rows, population, proposer, Random(rng.getrandbits(32)), batch_size)
    adapter: Any = task  # GEPA's type wants what its own adapters inherit
    pareto = select == "pareto"
    # A proposer without new ideas costs no rollouts, and would go on for ever.
    most = len(population.texts) + budget // minibatch
    with rollouts.isolated(rng.getrandbits(32)):
        result: gepa.GEPAResult[str, int] = gepa.optimize(
            seed_candidate={PART: population.texts[0]},
            trainset=list(rows),
            valset=list(rows),
            adapter=adapter,
            custom_candidate_proposer=task.propose,
            candidate_selection_strategy="pareto" if pareto else _AnyParent(rng),
            frontier_type="instance",
            acceptance_criterion=_Accept(population.texts, improved=pareto),
            skip_perfect_score=False,  # the best reward is not known
            reflection_minibatch_size=minibatch,
            stop_callbacks=lambda state: task.generated >= budget or state.i + 1 >= most,
            track_best_outputs=False,
            logger=_Quiet(),
            seed=rng.getrandbits(32),
        )
    if task.failures:
        warn(
            f"the proposer failed {task.failures} of {task.proposals} times in the cycle at step "
            f"{step}: {task.error}"
        )
    texts = [candidate[PART] for candidate in result.candidates]
    unscored = sum(math.isnan(example.reward) for example in task.seen.values())
    if unscored:
        warn(
            f"no reward function scored {unscored} of {len(task.seen)} rollouts in the cycle at "
            f"step {step}: their problems do not count in it"
        )
    scores = [[_from_gepa(own[at]) for at in range(len(rows))] for own in result.val_subscores]
    if any(text not in texts for text in population.texts):
        raise ConfigError("GEPA left out a part of the population: use gepa 0.1.4")
    kept = choose_front(scores, keep) if pareto else choose_at_random(len(texts), keep, rng)
    wins = front(scores)
    on_front = [bool(own) or not any(wins) for own in wins]  # all, where nothing tells them apart
    order = [*kept, *(at for at in range(len(texts)) if at not in kept)]
    candidates = []
    for at in order:
        own, parent = population.lineage(texts[at])
        entry = Candidate(own, texts[at], parent, scores[at], on_front[at], at in kept)
        candidates.append(entry)
    population.texts = [texts[at] for at in kept]
    return Cycle(
        step, list(rows), candidates, task.generated, task.proposals, task.failures, task.error
    )
