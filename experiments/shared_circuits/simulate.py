"""One run: a new task on the toy world, with a part of the model held, and what became of A."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.harness.preregistration import Preregistration, PreregistrationError
from experiments.shared_circuits import frozen_parts as held
from experiments.shared_circuits import shared_units as sharing
from experiments.shared_circuits import tasks as ground
from experiments.shared_circuits.frozen_parts import Held
from experiments.shared_circuits.plan import Condition, Plan
from experiments.worlds import ToyWorld
from riprap import evaluation as probing
from riprap.behaviors import Behavior
from riprap.diagnosis import interpolate_, restore_weights
from riprap.diagnosis.geometry import find_components, parameter_masks
from riprap.linalg import VectorStack, clone, cosine, norm, subtract
from riprap.signals.gradients import alignment, steep_stack
from riprap.toy import Examples, batches

WATCHED = ("A", "B")
Columns = dict[str, list[float]]


@dataclass(frozen=True)
class Run:
    """What came of one run.

    Attributes:
        visits: columns, one number a visit: `step`; `score/b` on inputs that are no probes;
            `within`, A's score with answers compared among A's own numbers alone; `task`, accuracy
            in the new task; `margin/b`, mean over probes.
        moves: columns, one number a visit but the last, of the step taken there: of each watched
            behaviour `steep/b` (of the gradient), `moved/b` (steep alignment of the update),
            `cosine/b` and `predicted/b`, ⟨h_b, Δθ⟩, with `blocks/b` what the blocks add to it.
        restored: A's score at the end with `blocks` or `words` put back to the start.
    """

    task: str
    held: str
    seed: int
    visits: Columns
    moves: Columns
    restored: dict[str, float]

    @property
    def condition(self) -> Condition:
        """What was run."""
        return Condition(self.task, self.held)


def simulate(condition: Condition, seed: int, preregistration: Preregistration) -> Run:
    """Make a run, or read it where it was made before by the same terms.

    Raises:
        ProtocolError: the protocol was made for another world.
    """
    plan, world = Plan.of(preregistration), ToyWorld()
    if plan.ground != ground.ground(world):
        raise PreregistrationError(
            f"protocol {preregistration.name!r} was made for other tasks: amend it"
        )
    path = _file_of(condition, seed, preregistration)
    if path.exists():
        return Run(**json.loads(path.read_text()))
    torch.set_num_threads(1)  # the world is too small for two cores to help each other
    run = _train(condition, seed, plan, world)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(run)))
    partial.rename(path)
    return run


def _file_of(condition: Condition, seed: int, preregistration: Preregistration) -> Path:
    name = str(condition).replace(", ", "-").replace(" ", "_")
    return sharing.RAW / f"{name}-{seed}-{preregistration.content_hash()[:8]}.json"


def masks(
    condition: Condition, model: nn.Module, seed: int, plan: Plan, world: ToyWorld
) -> dict[str, Tensor]:
    """What the condition holds, by parameter name."""
    if not condition.held:
        return {}
    if condition.held in held.PARTS:
        new = ground.new_words(world, ground.tasks(world)[condition.task])
        return held.part(model, condition.held, new)
    old, new_task = sharing.find(condition.task, seed, plan)
    some = sharing.picked(condition.held, find_components(model), old, new_task, plan.share, seed)
    return parameter_masks(model, some)


def _train(condition: Condition, seed: int, plan: Plan, world: ToyWorld) -> Run:
    model = world.start(seed)
    begin = {name: part.detach().clone() for name, part in model.named_parameters()}
    holding = Held(model, masks(condition, model, seed, plan, world))
    task = None if condition.task == ground.NULL else ground.tasks(world)[condition.task]
    watching = Watching(model, world, plan, task)
    optimizer = world.optimizer(model)
    size = world.config.batch
    data = world.batches(ground.NULL, seed) if task is None else batches([task], [size], seed)
    for step in range(plan.steps):
        visited = step < plan.early or step % plan.every == 0
        if visited:
            watching.before(step)
        world.loss(model, next(data)).backward()
        if visited:
            watching.gradient()
        optimizer.step()
        holding.put_back()
        optimizer.zero_grad()
        if visited:
            watching.after()
    watching.look(plan.steps)
    restored = {}
    for name, wanted in ((held.WORDS, held.is_words), (held.BLOCKS, _is_block)):
        with restore_weights(model) as here:
            interpolate_(model, here, begin, 1.0, [n for n in begin if wanted(n)])
            restored[name] = watching.score("A")
    return Run(*condition, seed, watching.visits, watching.moves, restored)


def _is_block(name: str) -> bool:
    return not held.is_words(name)


class Watching:
    """Looks at behaviours and steps, without a trace on training."""

    def __init__(
        self, model: nn.Module, world: ToyWorld, plan: Plan, task: Examples | None
    ) -> None:
        self.model, self.task = model, task
        self.truth = world.truth()
        self.own = torch.tensor(ground.own_answers(world.config.vocabulary))
        self.behaviors = [b for b in world.behaviors() if b.name in WATCHED]
        self.parameters: list[Tensor] = list(model.parameters())
        self.in_blocks = [_is_block(name) for name, _ in model.named_parameters()]
        self.visits: Columns = {}
        self.moves: Columns = {}
        self._steep = {b.name: self._directions(b, plan) for b in self.behaviors}
        self._looks: dict[str, probing.ProbeResult] = {}
        self._start: list[Tensor] = []

    def _directions(self, behavior: Behavior, plan: Plan) -> VectorStack:
        jacobian = probing.margin_gradients(behavior, self.model, self.parameters, plan.most)
        assert jacobian is not None
        return steep_stack(jacobian, plan.k)

    def look(self, step: int) -> None:
        """Scores and margins as they are."""
        self._looks = probing.evaluate_batch(self.behaviors, self.model, self.parameters)
        found: dict[str, float] = {"step": step}
        found |= {f"score/{name}": self.score(name) for name in self.truth}
        found["within"] = self.score("A", self.own)
        found["task"] = float("nan") if self.task is None else self._right(self.task)
        found |= {f"margin/{n}": float(one.margins.mean()) for n, one in self._looks.items()}
        _append(self.visits, found)

    def score(self, name: str, among: Tensor | None = None) -> float:
        """Share of an old task's unseen inputs that are answered right; `among`: of some tokens."""
        return self._right(self.truth[name], among)

    @torch.no_grad()
    def _right(self, examples: Examples, among: Tensor | None = None) -> float:
        logits = last_logits(self.model, examples)
        best = logits.argmax(-1) if among is None else among[logits[:, among].argmax(-1)]
        return float((best == examples.targets).float().mean())

    def before(self, step: int) -> None:
        """Before a step that is watched."""
        self.look(step)
        self._start = clone(self.parameters)

    def gradient(self) -> None:
        """The step's gradient stands in `.grad`."""
        found = [p.grad for p in self.parameters if p.grad is not None]
        length = float(norm(found))
        _append(
            self.moves,
            {f"steep/{n}": alignment(found, length, own) for n, own in self._steep.items()},
        )

    def after(self) -> None:
        """The step was taken, and what is held put back."""
        update = subtract(self.parameters, self._start)
        length = float(norm(update))
        inside = [u if own else 0 * u for u, own in zip(update, self.in_blocks, strict=True)]
        found = {}
        for name, look in self._looks.items():
            assert look.gradient is not None
            stack = VectorStack({name: look.gradient})
            found[f"moved/{name}"] = alignment(update, length, self._steep[name])
            found[f"cosine/{name}"] = float(cosine(look.gradient, update))
            found[f"predicted/{name}"] = stack.inner_products(update)[name]
            found[f"blocks/{name}"] = stack.inner_products(inside)[name]
        _append(self.moves, found)


def last_logits(model: nn.Module, examples: Examples) -> Tensor:
    """Logits after each prompt, shape (n, vocabulary)."""
    found: Tensor = model(examples.input_ids, use_cache=False, logits_to_keep=1).logits[:, -1]
    return found


def _append(columns: Columns, row: dict[str, float]) -> None:
    for name, value in row.items():
        columns.setdefault(name, []).append(float(value))
