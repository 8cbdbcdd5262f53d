"""Compare repairs: what restores lost behaviors, and what it costs the newly learned task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any

from torch import nn

from riprap.behaviors import Behavior
from riprap.diagnosis._base import Progress
from riprap.diagnosis._weight_sources import Reference, Weights
from riprap.diagnosis.recovery import Examples
from riprap.diagnosis.repair._evaluator import NO_REPAIR, Repair, RepairEvaluator
from riprap.diagnosis.repair._strategies import (
    MixedExamples,
    RepairState,
    RepairStrategy,
    checkpoint,
    few_shot,
    interpolation,
    task_vector,
)
from riprap.errors import ConfigError
from riprap.evaluation import Loss

FEW_SHOT, REPLAY = "few-shot", "replay"
ALL_WEIGHTS, LAYERS, VECTOR = "interpolation", "interpolation of layers", "task vector"
CHECKPOINT = "checkpoint"
EXAMPLE_COUNT = 10


def cheapest_repair(repairs: Sequence[Repair], floors: Mapping[str, float]) -> Repair | None:
    """Return the cheapest repair that passes all floors; None if none does.

    The cost is the loss of task score if all repairs have one, else the divergence; ties are
    decided by seconds.

    Args:
        floors: lowest score by behavior.

    Raises:
        ConfigError: a floor of a behavior that was not measured.
    """
    unknown = [name for name in floors if repairs and name not in repairs[0].scores]
    if unknown:
        raise ConfigError(f"floor of {unknown[0]!r}: the repairs were not measured on it")
    by_task = all(repair.task_score is not None for repair in repairs)

    def cost(repair: Repair) -> tuple[float, float]:
        lost = -(repair.task_score or 0.0) if by_task else (repair.divergence or 0.0)
        return lost, repair.seconds

    return min((repair for repair in repairs if repair.passes(floors)), key=cost, default=None)


def compare_repairs(
    model: nn.Module,
    reference: Reference,
    behaviors: Sequence[Behavior],
    examples: Mapping[str, Any],
    *,
    loss: Loss | None = None,
    lost: Sequence[str] | None = None,
    count: int = EXAMPLE_COUNT,
    task: Callable[[nn.Module], float] | None = None,
    prompts: Sequence[Sequence[int]] | None = None,
    responses: Sequence[Sequence[int]] | None = None,
    checkpoints: Mapping[str, Weights] | None = None,
    weights_on_disk: Weights | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Repair]:
    """Try each kind of repair on a copy; measure what it restores and what it costs.

    A repair starts at its mildest setting and continues until all behaviors are at their floors on
    every third probe; the other probes measure it. If no setting succeeds, the best one is
    measured. *Few-shot* learns examples of the lost behaviors, *replay* of all, at the learning
    rate that was best for few-shot. In place; the model is restored bit by bit.

    Args:
        reference: the model before training, or its weights; None: the model with its adapters
            disabled; then no task vector is tried.
        behaviors: behaviors that must be at their floors after a repair.
        examples: by name of a behavior, or of anything else to replay, such as the task: a
            `Behavior` with losses, a list of batches or one batch (see `Examples`).
        loss: loss(model, example) for examples that are batches; None: the model's own.
        lost: names of the behaviors to relearn; None: those under their floors.
        count: number of examples of each behavior.
        task: function of the model that returns the score of the new task; higher is better.
        prompts: token ids, such as of the task, on which repaired models are compared with the
            model; None: no divergence.
        responses: token ids of their responses; None: the model's own greedy answers.
        checkpoints: weights to go back to, by name, the nearest first.
        weights_on_disk: see `restore_weights`.
        progress: called after each strategy with those tried and their total.

    Returns:
        first the model without a repair, and only that if nothing was lost.

    Raises:
        ConfigError: too few examples of a behavior, or two behaviors of the same name.
    """
    evaluator = RepairEvaluator(model, list(behaviors), task, prompts, responses)
    if lost is None:
        lost = [b.name for b in behaviors if evaluator.score(b) < b.floor]
    evaluator.lost = lost
    repairs = [evaluator.measure(NO_REPAIR, RepairState(0.0, "model unchanged"))]
    if lost:
        by_kind = _strategies(
            model, reference, examples, lost, loss, count, checkpoints, weights_on_disk, seed
        )
        done, total = 0, sum(1 if k == REPLAY else len(own) for k, own in by_kind.items())
        for kind, strategies in by_kind.items():
            if progress is not None:
                progress(done, total)
            if kind == REPLAY:  # its steps are the slowest, so only the rate of few-shot is tried
                strategies = [
                    replay
                    for replay, few in zip(strategies, by_kind[FEW_SHOT], strict=True)
                    if few is repairs[1].strategy
                ]

            def report(tried: int, before: int = done) -> None:
                if progress is not None:
                    progress(before + tried, total)

            repairs.append(evaluator.measure_best(kind, strategies, report))
            done += len(strategies)
            report(len(strategies), done - len(strategies))
    return repairs


@contextmanager
def apply_repair(repair: Repair) -> Iterator[None]:
    """Apply a repair to the diagnosed model until exit.

    Raises:
        ConfigError: it is the model without a repair.
    """
    if repair.strategy is None:
        raise ConfigError(f"{repair.kind!r} changes nothing, so there is no repair to apply")
    with closing(repair.strategy()) as states:
        next(islice(states, repair.setting_index, None))
        yield


def _strategies(
    model: nn.Module,
    reference: Reference,
    examples: Mapping[str, Any],
    lost: Sequence[str],
    loss: Loss | None,
    count: int,
    checkpoints: Mapping[str, Weights] | None,
    weights_on_disk: Weights | None,
    seed: int,
) -> dict[str, list[RepairStrategy]]:
    """Strategies by kind of repair, in the order of their trials."""
    missing = [name for name in lost if name not in examples]
    if missing:
        raise ConfigError(f"{missing[0]!r} is lost and has no examples: pass some")
    pools = {name: Examples(data, loss) for name, data in examples.items()}
    for name, pool in pools.items():
        if len(pool) < count:
            raise ConfigError(
                f"repairs: {len(pool)} examples of {name!r}, and {count} are to be learned: pass "
                "more, or a smaller count"
            )
    own = MixedExamples({name: pools[name] for name in lost}, count, seed)
    strategies = {FEW_SHOT: few_shot(model, own, weights_on_disk)}
    if len(pools) > len(lost):
        everything = MixedExamples(pools, count, seed)
        strategies[REPLAY] = few_shot(model, everything, weights_on_disk)
    strategies[ALL_WEIGHTS] = interpolation(model, reference, weights_on_disk, False)
    strategies[LAYERS] = interpolation(model, reference, weights_on_disk, True)
    if reference is not None:
        strategies[VECTOR] = task_vector(model, reference, own, weights_on_disk)
    if checkpoints:
        named = checkpoints.items()
        strategies[CHECKPOINT] = [checkpoint(model, *pair, weights_on_disk) for pair in named]
    return strategies
