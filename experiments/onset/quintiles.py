"""Harm by quintile of rows: does training on the rows with more predicted harm do more of it?

`python -m experiments.onset.quintiles` scores the rows of each data set with `riprap.preflight`,
sorts them by one score at a time, and trains one run on each fifth from the same start. Each result
is a file, written once. `python -m experiments.onset.quintiles_page` makes the page of them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.harness.markdown import commit
from experiments.onset.real.plan import Condition
from experiments.onset.real.rows import BATCH, LOADERS, Row, make_batches, make_rows
from experiments.onset.real.sources import DATA
from riprap import evaluation, preflight
from riprap.behaviors import Behavior
from riprap.linalg import clone
from riprap.prediction import Preflight

FOLDER = "quintiles"
QUINTILES, ROWS = 5, 200
STEPS, EVALUATED = 20, (8, 14, 20)
RATE = 2e-4  # constant
BEHAVIORS = ("refusal", "over_refusal", "arithmetic")
SEEDS = (0, 1)
CHECKPOINTS = 1  # as for the predictions of the corpus: rows are scored once, after the warm start


def _data(data: tuple[str, ...], harmful: float = 0.0) -> Condition:
    steps = ROWS // BATCH  # so that a condition has as many rows as are scored
    return Condition("exploratory", "refusing", data, BEHAVIORS, RATE, steps=steps, harmful=harmful)


# Data sets of the exploratory half; the rows of each are sorted by their harm to two behaviors.
DATA_SETS: dict[str, tuple[Condition, tuple[str, str]]] = {
    "self_instruct, 20 % harmful": (
        _data(("self_instruct",), harmful=0.2),
        ("refusal", "over_refusal"),
    ),
    "dolly": (_data(("dolly",)), ("refusal", "over_refusal")),
    "gsm8k + banking77 + squad": (
        _data(("gsm8k", "banking77", "squad")),
        ("refusal", "arithmetic"),
    ),
}
CONTROLS = ("random", "length")


@dataclass(frozen=True)
class Run:
    """Planned run: the rows of one fifth, 0 with the lowest score.

    Attributes:
        score: name of a score of `Preflight.scores`, by which the rows are sorted.
        behavior: whose harm it is; None for a score that knows no behavior.
        seed: of the order of the rows.
    """

    data: str
    score: str
    behavior: str | None
    quintile: int
    seed: int

    def path(self, out: Path) -> Path:
        """Return the file of the run."""
        sort = "-".join(filter(None, (self.score, self.behavior)))
        return folder_of(self.data, out) / f"{sort}-{self.quintile}-{self.seed}.json"


def folder_of(data: str, out: Path) -> Path:
    """Return the folder of a data set."""
    return out / FOLDER / data.replace(" + ", "-").replace(", ", "-").replace(" % ", "_percent_")


def plan(seeds: Sequence[int] = SEEDS) -> list[Run]:
    """Return all runs: the first behavior and the control of each data set come first."""
    sorts: list[Callable[[str], tuple[str, str | None]]] = [
        lambda data: ("harm", DATA_SETS[data][1][0]),
        lambda data: ("random", None),
        lambda data: ("harm", DATA_SETS[data][1][1]),
        lambda data: ("length", None),
    ]
    return [
        Run(data, *sort(data), quintile, seed)
        for seed in seeds
        for sort in sorts
        for data in DATA_SETS
        for quintile in range(QUINTILES)
    ]


def cut(scores: np.ndarray) -> list[np.ndarray]:
    """Return the indices of the rows of each fifth, the lowest scores first.

    Equal scores stay in the order of the rows, which is random.
    """
    return np.array_split(np.argsort(scores, kind="stable"), QUINTILES)


def in_order(rows: Sequence[Row], seed: int) -> list[Row]:
    """Return the rows of all steps: each once in random order, then each once more, and so on."""
    rng = np.random.default_rng(seed)
    drawn: list[int] = []
    while len(drawn) < STEPS * BATCH:
        drawn += rng.permutation(len(rows)).tolist()
    return [rows[index] for index in drawn[: STEPS * BATCH]]


class World:
    """A model to train, from the same weights each time, and the behaviors that it has."""

    def __init__(self, model: nn.Module, tokenizer: Any, behaviors: Sequence[Behavior]) -> None:
        self.model, self.tokenizer, self.behaviors = model, tokenizer, behaviors
        self.parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self._start = clone(self.parameters)
        self._start_margins = self._margins()

    def _restart(self) -> torch.optim.Optimizer:
        with torch.no_grad():
            for parameter, start in zip(self.parameters, self._start, strict=True):
                parameter.copy_(start)
        return torch.optim.AdamW(self.parameters, lr=RATE, weight_decay=0.0)

    def predict(self, rows: Sequence[Row]) -> Preflight:
        """Predict what training on the rows will do, and score each of them."""
        return preflight(
            self.model,
            list(make_batches(self.tokenizer, rows)),
            self.behaviors,
            optimizer=self._restart(),
            steps=STEPS,
            max_grad_norm=1.0,
            checkpoints=CHECKPOINTS,
            n_rows=None,
        )

    def train(self, rows: Sequence[Row]) -> dict[str, np.ndarray]:
        """Train on the rows, and return the margins of each behavior, shape (evaluations, probes).

        The first evaluation is that of the start.
        """
        optimizer = self._restart()
        seen = [self._start_margins]
        for step, batch in enumerate(make_batches(self.tokenizer, rows), 1):
            self.model.train()
            self.model(**batch).loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step in EVALUATED:
                seen.append(self._margins())
        return {name: np.array([one[name] for one in seen]) for name in seen[0]}

    def _margins(self) -> dict[str, np.ndarray]:
        found = {}
        for group in evaluation.group_by_forward_pass(self.behaviors, self.model):
            for name, result in evaluation.evaluate_batch(group, self.model).items():
                found[name] = result.margins
        return found


def load_world() -> World:
    """Return the start that refuses, with a new adapter, as the real corpus trains it."""
    from peft import LoraConfig, get_peft_model

    from experiments.onset.real.probes import measure
    from experiments.onset.real.run import RANK, load

    model, tokenizer = load("refusing")
    measured = measure("refusing", BEHAVIORS, model, tokenizer)
    torch.manual_seed(0)
    adapter = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return World(get_peft_model(model, adapter), tokenizer, [own.behavior for own in measured])


def sources(rows: Sequence[Row], condition: Condition) -> list[str]:
    """Return where each row comes from: its data set, or "harmful"."""
    known = {row: name for name in condition.data for row in LOADERS[name](DATA)}
    return [known.get(row, "harmful") for row in rows]


def score_rows(world: World, rows: Sequence[Row]) -> dict[str, Any]:
    """Return what is stored of a prediction: all scores of all rows, by behavior."""
    began = time.process_time()
    found = world.predict(rows)
    return {
        "scores": {
            name: {key: values.tolist() for key, values in found.scores(name).items()}
            for name in found.behaviors
        },
        "start": {name: float(own.start_margins.mean()) for name, own in found.behaviors.items()},
        "left_out": found.left_out,
        "warm_steps": found.warm_steps,
        "checkpoints": list(found.checkpoints),
        "processor_seconds": round(time.process_time() - began, 1),
        "commit": commit(),
    }


def record_run(world: World, run: Run, rows: Sequence[Row], scored: dict[str, Any]) -> Any:
    """Train on one fifth of the rows, and return what is stored of it."""
    began = time.process_time()
    scores = scored["scores"][run.behavior or next(iter(scored["scores"]))][run.score]
    own = cut(np.array(scores))[run.quintile]
    margins = world.train(in_order([rows[index] for index in own], run.seed))
    return asdict(run) | {
        "rows": own.tolist(),
        "steps": [0, *EVALUATED],
        "margins": {name: values.round(4).tolist() for name, values in margins.items()},
        "processor_seconds": round(time.process_time() - began, 1),
        "commit": commit(),
    }


def record(world: World, out: Path, seeds: Sequence[int], until: datetime | None = None) -> None:
    """Score the rows and train the runs that are not recorded yet, in the order of the plan."""
    rows = {data: make_rows(condition) for data, (condition, _) in DATA_SETS.items()}
    for run in plan(seeds):
        scored = folder_of(run.data, out) / "rows.json"
        for path in (scored, run.path(out)):
            if path.exists():
                continue
            if until is not None and datetime.now() >= until:
                print("stopped: the time is over", flush=True)
                return
            if path == scored:
                found = score_rows(world, rows[run.data])
                found["sources"] = sources(rows[run.data], DATA_SETS[run.data][0])
            else:
                found = record_run(world, run, rows[run.data], json.loads(scored.read_text()))
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(found, allow_nan=False))
            partial.rename(path)
            print(f"{path}: {found['processor_seconds']} processor seconds", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/onset"))
    parser.add_argument("--seeds", type=int, default=1, choices=range(1, len(SEEDS) + 1))
    parser.add_argument("--until", help="start no further run after this time, as HH:MM")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    until = None
    if options.until:
        clock = datetime.strptime(options.until, "%H:%M").time()
        until = datetime.combine(datetime.now().date(), clock)
    record(load_world(), options.out, SEEDS[: options.seeds], until)


if __name__ == "__main__":
    main()
