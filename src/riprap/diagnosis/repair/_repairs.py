"""Repairs: what brings lost behaviours back, and what it costs of what was newly learned."""

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
from riprap.diagnosis.repair._evaluator import AS_IT_IS, RepairEvaluator, Repair
from riprap.diagnosis.repair._strategies import (
    RepairState,
    MixedExamples,
    RepairStrategy,
    checkpoint,
    interpolation,
    few_shot,
    task_vector,
)
from riprap.errors import ConfigError
from riprap.evaluation import Loss

FEW_SHOT, REPLAY = "few-shot", "replay"
WHOLE, LAYERS, VECTOR = "interpolation", "interpolation of layers", "task vector"
CHECKPOINT = "checkpoint"
EXAMPLE_COUNT = 10


def cheapest_repair(repairs: Sequence[Repair], floors: Mapping[str, float]) -> Repair | None:
    """Of the repairs that pass all floors, the one that costs least; None where none passes.

    What it costs is what it takes of the newly learned: the task's score, where all have one, or
    else the divergence from the model; equal ones by their seconds.

    Args:
        floors: least score by behaviour.

    Raises:
        ConfigError: a floor of a behaviour that was not measured.
    """
    unknown = [name for name in floors if repairs and name not in repairs[0].scores]
    if unknown:
        raise ConfigError(f"floor of {unknown[0]!r}: the repairs were not measured on it")
    by_task = all(one.task_score is not None for one in repairs)

    def cost(one: Repair) -> tuple[float, float]:
        lost = -(one.task_score or 0.0) if by_task else (one.divergence or 0.0)
        return lost, one.seconds

    return min((one for one in repairs if one.passes(floors)), key=cost, default=None)


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
    """Measure on a copy what brings lost behaviours back, and what it costs.

    Each kind of repair goes from its gentlest setting on until all behaviours are at their floors
    on every third probe, and is measured on the others; where none of its settings gets there, on
    the best. *Few-shot* learns examples of the lost behaviours, *replay* of all, at the rate that
    was best for few-shot. The ways:
    `riprap.diagnosis.repair._strategies`. In place; bit by bit as before afterwards.

    Args:
        reference: the model as it was before, or its weights; None: with its adapters switched
            off, and no task vector is tried.
        behaviors: those that must be at their floors after a repair.
        examples: by name of a behaviour, or of anything else that is to be replayed, such as the
            task; each a `Behavior` with losses, a list of batches or one batch (see `Examples`).
        loss: loss(model, example) of examples that are batches; None: the model's own.
        lost: names of the behaviours to be learned again; None: those under their floors.
        count: examples of each behaviour.
        task: the score of what was newly learned, of a model; higher is better.
        prompts: token ids, such as of the task, on which the repaired model is compared with the
            model; None: no divergence.
        responses: token ids of what follows them; None: the model's own greedy answers.
        checkpoints: weights by name to go back to, the nearest first.
        home: see `weights.kept`.

    Returns:
        first the model as it is; only that, where nothing is lost.

    Raises:
        ConfigError: too few examples of a behaviour, or two behaviours of one name.
    """
    bench = RepairEvaluator(model, list(behaviors), task, prompts, responses)
    bench.lost = [b.name for b in behaviors if bench.score(b) < b.floor] if lost is None else lost
    found = [bench.measure(AS_IT_IS, RepairState(0.0, "no repair"))]
    if bench.lost:
        tried = _strategies(model, reference, examples, bench.lost, loss, count, checkpoints, weights_on_disk, seed)
        for at, (kind, ways) in enumerate(tried.items()):
            if kind == REPLAY:  # its steps are the dearest of all: at the rate of few-shot
                ways = [
                    ways[rate] for rate, way in enumerate(tried[FEW_SHOT]) if way is found[1].strategy
                ]
            found.append(bench.measure_best(kind, ways))
            if progress is not None:
                progress(at + 1, len(tried))
    return found


@contextmanager
def apply_repair(repair: Repair) -> Iterator[None]:
    """The model that was diagnosed, as a repair makes it; afterwards it is as it was.

    Raises:
        ConfigError: the repair is none.
    """
    if repair.strategy is None:
        raise ConfigError(f"{repair.kind!r} changes nothing: there is no such model to be made")
    with closing(repair.strategy()) as places:
        next(islice(places, repair.setting_index, None))
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
    """By kind of repair, in the order in which they are tried."""
    missing = [name for name in lost if name not in examples]
    if missing:
        raise ConfigError(f"no examples of {missing[0]!r}, which is lost: give some")
    supply = {name: Examples(given, loss) for name, given in examples.items()}
    for name, given in supply.items():
        if len(given) < count:
            raise ConfigError(
                f"repairs: {len(given)} examples of {name!r}, and {count} are to be learned: give "
                "more, or a smaller count"
            )
    own = MixedExamples({name: supply[name] for name in lost}, count, seed)
    ways = {FEW_SHOT: few_shot(model, own, weights_on_disk)}
    if len(supply) > len(lost):
        ways[REPLAY] = few_shot(model, MixedExamples(supply, count, seed), weights_on_disk)
    ways[WHOLE] = interpolation(model, reference, weights_on_disk, most_changed_only=False)
    ways[LAYERS] = interpolation(model, reference, weights_on_disk, most_changed_only=True)
    if reference is not None:
        ways[VECTOR] = task_vector(model, reference, own, weights_on_disk)
    if checkpoints:
        ways[CHECKPOINT] = [checkpoint(model, n, w, weights_on_disk) for n, w in checkpoints.items()]
    return ways
