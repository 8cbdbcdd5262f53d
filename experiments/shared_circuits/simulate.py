"""One run: a new task on the toy world with a part of the model frozen, and its harm to A."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiments.harness.cache import cached
from experiments.harness.plan import require_world
from experiments.harness.preregistration import Preregistration
from experiments.shared_circuits import frozen_parts, shared_units, tasks
from experiments.shared_circuits.frozen_parts import BLOCKS, WORDS, FrozenEntries, is_words
from experiments.shared_circuits.plan import Condition, Plan
from experiments.steep_directions.simulate import steep_directions
from experiments.worlds import ToyWorld
from riprap import evaluation
from riprap.behaviors import TokenBatch, last_logits
from riprap.diagnosis import interpolate_, restore_weights
from riprap.diagnosis.geometry import find_components, parameter_masks
from riprap.linalg import VectorStack, clone, cosine, norm, subtract
from riprap.signals.gradients import alignment
from riprap.toy import Examples, batches

MEASURED = ("A", "B")
Columns = dict[str, list[float]]


@dataclass(frozen=True)
class Run:
    """Results of one run.

    Attributes:
        visits: columns, one number a measurement: `step`; `score/b` on held-out inputs;
            `within`, A's score with only A's own numbers as answers; `task`, accuracy on the new
            task; `margin/b`, mean over probes.
        moves: columns, one number for each step that follows a measurement: by behavior `steep/b`
            (steep alignment of the gradient), `moved/b` (of the update), `cosine/b` and
            `predicted/b`, ⟨h_b, Δθ⟩, with `blocks/b`, the contribution of the blocks to it.
        restored: A's score at the end with `blocks` or `words` restored to the start.
    """

    task: str
    held: str
    seed: int
    visits: Columns
    moves: Columns
    restored: dict[str, float]

    @property
    def condition(self) -> Condition:
        """Return the condition of the run."""
        return Condition(self.task, self.held)


@cached("shared_circuits/{condition.name}-{seed}-{preregistration.terms:.8}.json")
def simulate(condition: Condition, seed: int, preregistration: Preregistration) -> Run:
    """Train a start on a new task, and measure the old behaviors and the steps."""
    plan, world = Plan.of(preregistration), ToyWorld()
    require_world(plan.ground, tasks.tasks_fingerprint(world))
    model = world.start(seed)
    start = {name: part.detach().clone() for name, part in model.named_parameters()}
    frozen = FrozenEntries(model, masks(condition, model, seed, plan, world))
    task = None if condition.task == tasks.NULL else tasks.tasks(world)[condition.task]
    recorder = StepRecorder(model, world, plan, task)
    optimizer = world.optimizer(model)
    size = world.config.batch
    data = world.batches(tasks.NULL, seed) if task is None else batches([task], [size], seed)
    for step in range(plan.steps):
        measured = step < plan.early or step % plan.every == 0
        if measured:
            recorder.before_step(step)
        world.loss(model, next(data)).backward()
        if measured:
            recorder.record_gradient()
        optimizer.step()
        frozen.restore()
        optimizer.zero_grad()
        if measured:
            recorder.after_step()
    recorder.record_scores(plan.steps)
    restored = {}
    for part in (WORDS, BLOCKS):
        names = [name for name in start if is_words(name) == (part == WORDS)]
        with restore_weights(model) as trained:
            interpolate_(model, trained, start, 1.0, names)
            restored[part] = recorder.score("A")
    return Run(*condition, seed, recorder.visits, recorder.moves, restored)


def masks(
    condition: Condition, model: nn.Module, seed: int, plan: Plan, world: ToyWorld
) -> dict[str, Tensor]:
    """Return the entries that the condition freezes, by parameter name."""
    if not condition.held:
        return {}
    if condition.held in frozen_parts.PARTS:
        new = tasks.new_words(world, tasks.tasks(world)[condition.task])
        return frozen_parts.part(model, condition.held, new)
    own = shared_units.importances(condition.task, seed, plan)
    selected = shared_units.select_components(
        condition.held, find_components(model), own["old"], own["new"], plan.share, seed
    )
    return parameter_masks(model, selected)


class StepRecorder:
    """Records scores of behaviors and properties of steps; training is not affected."""

    def __init__(
        self, model: nn.Module, world: ToyWorld, plan: Plan, task: Examples | None
    ) -> None:
        self.model, self.task = model, task
        self.truth = world.truth()
        self.own = torch.tensor(tasks.own_answers(world.config.vocabulary))
        self.behaviors = [b for b in world.behaviors() if b.name in MEASURED]
        self.parameters: list[Tensor] = list(model.parameters())
        self.in_blocks = [not is_words(name) for name, _ in model.named_parameters()]
        self.visits: Columns = {}
        self.moves: Columns = {}
        self._steep = {
            b.name: steep_directions(b, model, self.parameters, plan.most, plan.k)
            for b in self.behaviors
        }
        self._results: dict[str, evaluation.ProbeResult] = {}
        self._start: list[Tensor] = []

    def record_scores(self, step: int) -> None:
        """Append the present scores and margins."""
        self._results = evaluation.evaluate_batch(self.behaviors, self.model, self.parameters)
        row: dict[str, float] = {"step": step}
        row |= {f"score/{name}": self.score(name) for name in self.truth}
        row["within"] = self.score("A", self.own)
        row["task"] = float("nan") if self.task is None else self._accuracy(self.task)
        row |= {f"margin/{n}": float(one.margins.mean()) for n, one in self._results.items()}
        _append(self.visits, row)

    def score(self, name: str, among: Tensor | None = None) -> float:
        """Return the accuracy on held-out inputs of an old task; `among`: only these answers."""
        return self._accuracy(self.truth[name], among)

    @torch.no_grad()
    def _accuracy(self, examples: Examples, among: Tensor | None = None) -> float:
        logits = last_logits(self.model, TokenBatch(examples.input_ids))[:, -1]
        best = logits.argmax(-1) if among is None else among[logits[:, among].argmax(-1)]
        return float((best == examples.targets).float().mean())

    def before_step(self, step: int) -> None:
        """Record scores before a step, and remember the parameters."""
        self.record_scores(step)
        self._start = clone(self.parameters)

    def record_gradient(self) -> None:
        """Record the steep alignment of the gradient in `.grad`."""
        gradient = [p.grad for p in self.parameters if p.grad is not None]
        length = float(norm(gradient))
        steep = {f"steep/{n}": alignment(gradient, length, s) for n, s in self._steep.items()}
        _append(self.moves, steep)

    def after_step(self) -> None:
        """Record the update, after frozen entries were restored."""
        update = subtract(self.parameters, self._start)
        length = float(norm(update))
        inside = [u if own else 0 * u for u, own in zip(update, self.in_blocks, strict=True)]
        row = {}
        for name, result in self._results.items():
            assert result.gradient is not None
            stack = VectorStack({name: result.gradient})
            row[f"moved/{name}"] = alignment(update, length, self._steep[name])
            row[f"cosine/{name}"] = float(cosine(result.gradient, update))
            row[f"predicted/{name}"] = stack.inner_products(update)[name]
            row[f"blocks/{name}"] = stack.inner_products(inside)[name]
        _append(self.moves, row)


def _append(columns: Columns, row: dict[str, float]) -> None:
    for name, value in row.items():
        columns.setdefault(name, []).append(float(value))
