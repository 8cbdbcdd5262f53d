"""One evolution of the population: `gepa.optimize` with the weights as they are as its task model.

GEPA starts from one candidate. The others of the population come first from the proposer, and are
accepted whatever they score. Each instruction meets each problem once in a cycle: the weights stand
still, so GEPA's evaluations of the same pair share one rollout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
    Rejected,
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
        progress: called with the rollouts of the cycle after some of them.
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
        progress: Callable[[int], None],
    ) -> None:
        self._rollouts, self._rows, self._batch_size = rollouts, rows, batch_size
        self._progress, self._before = progress, rollouts.generated
        self._population, self._proposer, self._rng = population, proposer, rng
        self._returning = population.texts[1:]
        self.seen: dict[tuple[str, int], Example] = {}
        self.proposals = self.failures = 0
        self.error = ""

    @property
    def generated(self) -> int:
        """Return the rollouts of the cycle so far."""
        return self._rollouts.generated - self._before

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
            self._progress(self.generated)
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
        return {PART: text}

    def _fail(self, why: str) -> dict[str, str]:
        self.failures += 1
        self.error = self.error or why
        return {}

    def _generate(self, text: str, max_new_tokens: int) -> str:
        answer = self._rollouts.answer(text, max_new_tokens)
        self._progress(self.generated)
        return answer


def _to_gepa(reward: float) -> float:
    """Return a reward as GEPA compares it: nothing is best where it was not scored."""
    return _UNSCORED if math.isnan(reward) else reward


def _from_gepa(score: float) -> float | None:
    return None if score == _UNSCORED else score


class _Accept:
    """GEPA's criterion: the population always, a known text never, a new one if it improved.

    Args:
        problems: those of the cycle, by their position in the training data.
        improved: a new text must beat its parent on those problems of the minibatch on which both
            were scored.

    Attributes:
        rejected: new texts that were not accepted.
    """

    def __init__(self, population: Population, problems: Sequence[int], improved: bool) -> None:
        self._population, self._problems, self._improved = population, problems, improved
        self._returning = set(population.texts)
        self.rejected: list[Rejected] = []

    def should_accept(self, proposal: Any, state: Any) -> bool:
        """Return whether GEPA evaluates a proposal on all problems, and note where it is from."""
        text = proposal.candidate[PART]
        if proposal.candidate in state.program_candidates:
            return False
        if text in self._returning:
            return True
        parent = state.program_candidates[proposal.parent_program_ids[0]][PART]
        before, after = proposal.subsample_scores_before, proposal.subsample_scores_after
        both = [pair for pair in zip(before, after, strict=True) if _UNSCORED not in pair]
        if not self._improved or sum(new for _, new in both) > sum(old for old, _ in both):
            self._population.add(text, parent)
            return True
        own = Rejected(
            text,
            self._population.lineage(parent)[0],
            [self._problems[at] for at in proposal.subsample_indices],
            [*map(_from_gepa, after)],
            [*map(_from_gepa, before)],
        )
        self.rejected.append(own)
        return False


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
    progress: Callable[[int], None],
) -> Cycle:
    """Evolve the population by one cycle; training is left as it is.

    Args:
        rows: problems by their position in the training data.
        step: optimizer steps so far.
        budget: rollouts after which nothing is proposed any more.
        minibatch: problems on which a new instruction is compared with its parent.
        batch_size: prompts generated together.
        rng: generator for everything in the cycle.
        progress: called with the rollouts so far after some of them.
    """
    own = Random(rng.getrandbits(32))
    task = _Task(rollouts, rows, population, proposer, own, batch_size, progress)
    adapter: Any = task  # GEPA's type wants what its own adapters inherit
    pareto, problems = select == "pareto", list(rows)
    criterion = _Accept(population, problems, improved=pareto)
    # A proposer without new ideas costs no rollouts, and would go on for ever.
    most = len(population.texts) + budget // minibatch
    with rollouts.isolated(rng.getrandbits(32)):
        result: gepa.GEPAResult[str, int] = gepa.optimize(
            seed_candidate={PART: population.texts[0]},
            trainset=problems,
            valset=problems,
            adapter=adapter,
            custom_candidate_proposer=task.propose,
            candidate_selection_strategy="pareto" if pareto else _AnyParent(rng),
            frontier_type="instance",
            acceptance_criterion=criterion,
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
    scores = [[_from_gepa(each[at]) for at in range(len(rows))] for each in result.val_subscores]
    if any(text not in texts for text in population.texts):
        raise ConfigError("GEPA left out a part of the population: use gepa 0.1.4")
    kept = choose_front(scores, keep) if pareto else choose_at_random(len(texts), keep, rng)
    wins = front(scores)
    on_front = [bool(won) or not any(wins) for won in wins]  # all, where nothing tells them apart
    order = [*kept, *(at for at in range(len(texts)) if at not in kept)]
    candidates = []
    for at in order:
        number, parent = population.lineage(texts[at])
        entry = Candidate(number, texts[at], parent, scores[at], on_front[at], at in kept)
        candidates.append(entry)
    population.texts = [texts[at] for at in kept]
    return Cycle(
        step,
        problems,
        candidates,
        task.generated,
        task.proposals,
        task.failures,
        task.error,
        criterion.rejected,
    )
