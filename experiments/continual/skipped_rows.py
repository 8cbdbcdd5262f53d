"""Which rows do moderate gradients leave out? `python -m experiments.continual.skipped_rows`.

Beside the protocol, on the exploratory seeds: to explain what the study measured, not to judge it.
"""

from __future__ import annotations

from typing import Any

import torch

from experiments.continual.plan import MODERATE, Plan
from experiments.harness import markdown
from experiments.harness.preregistration import Preregistration
from experiments.worlds.continual import CATEGORIES, TASKS, ContinualWorld
from experiments.worlds.continual_model import adapted, exact
from experiments.worlds.continual_rows import Rows
from riprap.selection import Selector

THIRDS = 3


def chosen_shares(
    world: ContinualWorld, task: str, seed: int, ratio: float
) -> list[dict[str, Any]]:
    """How often a task's own rows were chosen, by whether they were learned in the end.

    Returns:
        one line for each third of the stage, which begins at the aligned model.
    """
    model = adapted(world.aligned(seed), world.config, seed).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=world.config.rate, weight_decay=0.0)
    selector, batches, seen = Selector(MODERATE, ratio, seed=seed), world.batches(task, seed), []
    with selector.attach(model, optimizer):
        for _ in range(world.config.steps):
            seen.append(next(batches))
            model(**seen[-1].batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    rows = Rows.join(seen)
    taken = torch.zeros(len(seen), world.config.batch)
    for at, one in enumerate(selector.history):
        taken[at, torch.tensor(one.rows)] = 1.0
    own, right = rows.category == CATEGORIES.index("own"), exact(model.eval(), rows)
    third = torch.arange(len(rows)) * THIRDS // len(rows)
    shares = taken.reshape(-1)
    lines = []
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
    """Mean in percent; a dash where there is nothing to take it of."""
    if not len(values):
        return markdown.NOTHING
    return f"{markdown.number(100 * float(values.mean()), 1)} %"


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    plan, world = Plan.of(Preregistration.named("continual")), ContinualWorld()
    lines = [
        line
        for seed in plan.exploratory
        for task in TASKS
        for line in chosen_shares(world, task, seed, plan.ratio)
    ]
    print("# Rows that moderate gradients leave out\n")
    print(
        "Made by `python -m experiments.continual.skipped_rows`, on the exploratory seeds "
        f"{', '.join(map(str, plan.exploratory))}; each task from the aligned model. Own rows: "
        "those in the task's format, a row as often as it came up.\n"
    )
    print(markdown.table(lines))


if __name__ == "__main__":
    main()
