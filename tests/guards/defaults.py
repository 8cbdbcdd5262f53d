"""All guards at their defaults, and the small tasks on which they do no harm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from riprap import AlertPolicy, Behavior, Monitor, guards
from riprap.behaviors import logits_of
from riprap.guards import Guard
from tiny import PlainLM, make_llama

QUIET = AlertPolicy.parse({"name": "quiet", "detectors": [{"kind": "forecast"}]}, "here")
VOCABULARY, WIDTH, OLD_STEPS, NEW_STEPS = 20, 24, 80, 150
Rows = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """What is old, what is new, and how the new is trained.

    Attributes:
        old, new: rows of five tokens, and the answer to each.
        adam: Adam with rate 5e-3, otherwise SGD with `rate`.
        model, optimizer: of the tasks that confirm, in place of all that follows `new`.
        old_steps: steps at which the old is learned.
    """

    old: Rows
    new: Rows
    adam: bool = True
    rate: float = 0.3
    momentum: float = 0.0
    decay: float = 0.0
    batch: int = 16
    depth: int = 2
    model: Callable[[], nn.Module] | None = None
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None
    old_steps: int = OLD_STEPS

    def make_model(self) -> nn.Module:
        if self.model is not None:
            return self.model()
        return PlainLM(size=VOCABULARY, width=WIDTH, depth=self.depth)

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        if self.optimizer is not None:
            return self.optimizer(model.parameters())
        if self.adam:
            kind = torch.optim.AdamW if self.decay else torch.optim.Adam
            return kind(model.parameters(), lr=5e-3, weight_decay=self.decay)
        return torch.optim.SGD(model.parameters(), lr=self.rate, momentum=self.momentum)


def table(seed: int, rows: int = 32, vocabulary: int = VOCABULARY) -> Rows:
    """Random answers to random rows."""
    made = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (rows, 5), generator=made)
    return ids, torch.randint(0, vocabulary, (rows,), generator=made)


def rule(seed: int, function: Callable[[Tensor], Tensor]) -> Rows:
    """The answers of a rule to random rows."""
    ids = table(seed, 64)[0]
    return ids, function(ids) % VOCABULARY


def near_the_old(seed: int) -> Rows:
    """Other answers to rows that differ from old ones in the first token only."""
    ids, answers = table(seed)
    ids[:, 0] = (ids[:, 0] + 1) % VOCABULARY
    return ids[:16], (answers[:16] + 7) % VOCABULARY


def tasks(seed: int) -> dict[str, Task]:
    """Ten tasks; other seeds give other rows."""
    old, new = table(2 * seed), table(2 * seed + 1)
    copies = rule(2 * seed, lambda ids: ids[:, -1])
    return {
        "adam": Task(old, new),
        "sgd": Task(old, new, adam=False),
        "momentum": Task(old, new, adam=False, rate=0.05, momentum=0.9),
        "decay": Task(old, new, decay=0.1),
        "deep": Task(old, new, depth=4),
        "tiny batches": Task(old, new, batch=4),
        "few answers": Task(old, table(2 * seed + 1, vocabulary=3)),
        "rule after table": Task(old, rule(2 * seed + 1, lambda ids: ids[:, 0])),
        "rule after rule": Task(copies, rule(2 * seed + 1, lambda ids: ids[:, -1] + 1)),
        "near the old": Task(old, near_the_old(2 * seed)),
    }


class Dense(nn.Module):
    """Reads tokens as numbers, and answers as a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 64), nn.Linear(64, 64)
        self.head = nn.Linear(64, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = functional.gelu(self.first(input_ids.float() / 10 - 1))
        return self.head(functional.gelu(self.second(hidden)))


class Recurrent(nn.Module):
    """A language model with a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, 24), nn.Linear(32, VOCABULARY)
        self.cells = nn.GRU(24, 32, batch_first=True)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.cells(self.embed(input_ids))[0])


class Convolution(nn.Module):
    """Two convolutions over the tokens, and a linear head on all positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 24)
        self.first, self.second = nn.Conv1d(24, 48, 2), nn.Conv1d(48, 48, 2)
        self.head = nn.Linear(3 * 48, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.first(self.embed(input_ids).transpose(1, 2)).relu()
        return self.head(self.second(hidden).relu().flatten(1))


def fresh(seed: int) -> dict[str, Task]:
    """Four tasks that confirm: other models and optimizers; no guard was changed after them."""
    old, new = table(100 + 2 * seed), table(101 + 2 * seed)
    sums = rule(101 + 2 * seed, lambda ids: ids[:, 1] // 4)
    copies = rule(100 + 2 * seed, lambda ids: ids[:, 2])
    return {
        "dense": Task(
            old, new, model=Dense, optimizer=partial(torch.optim.RMSprop, lr=2e-3), old_steps=400
        ),
        "recurrent": Task(
            copies, sums, model=Recurrent, optimizer=partial(torch.optim.AdamW, lr=5e-3)
        ),
        "convolution": Task(
            old,
            near_the_old(100 + 2 * seed),
            model=Convolution,
            optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True),
        ),
        "llama": Task(
            old,
            sums,
            model=partial(make_llama, seed=seed, scale=5.0),
            optimizer=partial(torch.optim.NAdam, lr=5e-3),
            old_steps=160,
        ),
    }


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    found = logits_of(model(ids))
    return found if found.dim() == 2 else found[:, -1]


def loss(model: nn.Module, rows: Rows) -> Tensor:
    return functional.cross_entropy(logits(model, rows[0]), rows[1])


def replayed(task: Task) -> Rows:
    """Half of the old rows: the others are the monitored probes."""
    return task.old[0][1::2], task.old[1][1::2]


def buffer(task: Task) -> guards.SelfDistillationBuffer:
    ids, answers = replayed(task)
    return guards.SelfDistillationBuffer([Behavior.next_token("old", ids, answers)])


DEFAULTS: dict[str, Callable[[Task], Guard]] = {
    "AGEM": lambda task: guards.AGEM(),
    "GEM": lambda task: guards.GEM(),
    "PCGrad": lambda task: guards.PCGrad(),
    "UPGrad": lambda task: guards.UPGrad(),
    "UpdateProjection": lambda task: guards.UpdateProjection(),
    "OGD": lambda task: guards.OGD(),
    "GPM": lambda task: guards.GPM(),
    "TwoSidedGPM": lambda task: guards.TwoSidedGPM(),
    "SafeAnchor": lambda task: guards.SafeAnchor(replay=buffer(task)),
    "SafeGrad": lambda task: guards.SafeGrad(),
    "L2SP": lambda task: guards.L2SP(),
    "EWC": lambda task: guards.EWC(),
    "OnlineEWC": lambda task: guards.OnlineEWC(),
    "SI": lambda task: guards.SI(),
    "MAS": lambda task: guards.MAS(),
    "MarginAnchor": lambda task: guards.MarginAnchor(),
    "KL": lambda task: guards.KL(),
    "DERpp": lambda task: guards.DERpp([replayed(task)]),
    "LwF": lambda task: guards.LwF(),
    "ConstrainedTokens": lambda task: guards.ConstrainedTokens([responses(task)]),
    "FeatureAnchor": lambda task: guards.FeatureAnchor(),
    "Replay": lambda task: guards.Replay([replayed(task)], loss=loss),
    "Replay of a buffer": lambda task: guards.Replay(buffer(task)),
    "AdaptiveReplay": lambda task: guards.AdaptiveReplay(buffer(task)),
    "AutoGuard": lambda task: guards.AutoGuard(replay=buffer(task)),
    "Lisa": lambda task: guards.Lisa([replayed(task)], loss=loss),
    "Rollback": lambda task: guards.Rollback(),
    "EMA": lambda task: guards.EMA(),
    "Clip": lambda task: guards.Clip(),
}
# Without defaults that could do harm: parts to freeze, earlier adapters, and other guards.
LEFT_OUT = {"Freeze", "OLoRA", "Chain", "OnAlert", "Scheduled", "Guard"}


def responses(task: Task) -> Rows:
    """The replayed rows with their answers as sixth tokens, the only ones that are learned."""
    ids, answers = replayed(task)
    labels = torch.full((len(ids), 6), -100)
    labels[:, -1] = answers
    return torch.cat([ids, answers[:, None]], 1), labels


def accuracy(model: nn.Module, rows: Rows) -> float:
    with torch.no_grad():
        return float((logits(model, rows[0]).argmax(-1) == rows[1]).float().mean())


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, rows: Rows, task: Task, steps: int
) -> None:
    made = torch.Generator().manual_seed(steps)
    for _ in range(steps):
        chosen = torch.randint(0, len(rows[0]), (task.batch,), generator=made)
        optimizer.zero_grad()
        loss(model, (rows[0][chosen], rows[1][chosen])).backward()
        optimizer.step()


@cache
def learned(name: str, seed: int) -> tuple[Task, dict[str, Tensor]]:
    """Return a task, and the weights of a model that has learned what is old in it."""
    task = (tasks(seed) | fresh(seed))[name]
    torch.manual_seed(seed)
    model = task.make_model()
    train(model, torch.optim.Adam(model.parameters(), lr=1e-2), task.old, task, task.old_steps)
    return task, model.state_dict()


def outcome(make: Callable[[Task], Guard] | None, name: str, seed: int) -> tuple[float, float]:
    """Return the accuracy on the old rows and on the new ones after the new ones were learned."""
    task, weights = learned(name, seed)
    model = task.make_model()
    model.load_state_dict(weights)
    optimizer = task.make_optimizer(model)
    if make is None:
        train(model, optimizer, task.new, task, NEW_STEPS)
    else:
        probes = Behavior.next_token("old", task.old[0][::2], task.old[1][::2], floor=0.9)
        monitor = Monitor([probes], policy=QUIET)
        with monitor.watch(model, optimizer, guard=make(task)):
            train(model, optimizer, task.new, task, NEW_STEPS)
    return accuracy(model, task.old), accuracy(model, task.new)


plain = cache(partial(outcome, None))


def noise(values: Sequence[float]) -> float:
    """Twice the standard deviation of differences between two such values."""
    return 2 * 2**0.5 * float(torch.tensor(values).std())
