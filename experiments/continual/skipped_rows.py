"""Stage of the experiment: which rows does moderate selection skip?

It is not preregistered and uses the exploratory seeds: it explains the measurements.
"""

from __future__ import annotations

import torch

from experiments.continual.plan import MODERATE, Plan
from experiments.harness import markdown
from experiments.harness.study import Study
from experiments.worlds.continual import CATEGORIES, TASKS, ContinualWorld
from experiments.worlds.continual_model import adapted, exact
from experiments.worlds.continual_rows import Rows
from riprap.selection import Selector

THIRDS = 3
Line = dict[str, str | int]


def selected_shares(task: str, seed: int, ratio: float) -> list[Line]:
    """Measure how often a task's own rows are selected, by whether they are learned in the end.

    Returns:
        one line for each third of the stage, which starts at the aligned model.
    """
    torch.set_num_threads(1)
    world = ContinualWorld()
    config = world.config
    model = adapted(world.aligned(seed), config.rank, config.scale, seed).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.rate, weight_decay=0.0)
    selector, batches, drawn = Selector(MODERATE, ratio, seed=seed), world.batches(task, seed), []
    with selector.attach(model, optimizer):
        for _ in range(config.steps):
            drawn.append(next(batches))
            model(**drawn[-1].batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    rows = Rows.join(drawn)
    selected = torch.zeros(len(drawn), config.batch)
    for at, record in enumerate(selector.history):
        selected[at, torch.tensor(record.rows)] = 1.0
    own, right = rows.category == CATEGORIES.index("own"), exact(model.eval(), rows)
    third = torch.arange(len(rows)) * THIRDS // len(rows)
    shares = selected.reshape(-1)
    lines: list[Line] = []
    for at in range(THIRDS):
        here = own & (third == at)
        lines.append(
            {
                "task": task,
                "third of the stage": at + 1,
                "own rows learned in the end": _percent(right[here].float()),
                "of those chosen": _percent(shares[here & right]),
                "of the others chosen": _percent(shares[here & ~right]),
            }
        )
    return lines


def _percent(values: torch.Tensor) -> str:
    """Format the mean in percent; a dash without values."""
    if not len(values):
        return markdown.NOTHING
    return f"{markdown.number(100 * float(values.mean()), 1)} %"


SKIPPED_ROWS: Study[Plan, list[list[Line]]] = Study(
    name="continual",
    template="skipped_rows.md",
    page="SKIPPED_ROWS.md",
    exploratory=True,
    plan=Plan,
    jobs=lambda s: [(task, seed, s.plan.ratio) for seed in s.seeds for task in TASKS],
    simulate=selected_shares,
    sections=lambda lines, _: {"lines": [line for own in lines for line in own]},
)
