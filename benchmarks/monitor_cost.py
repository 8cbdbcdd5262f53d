"""What a monitor costs, as ratios to a plain step in the same process.

    python benchmarks/monitor_cost.py toy [--steps 1000 --pairs 5]
    python benchmarks/monitor_cost.py smollm2 --data ../shared/data/gsm8k_train.jsonl [--steps 20]

Interleaved pairs, one with and one without a monitor at its default cadence; the medians are shown.
Start (the visit before training) is timed apart from the steps and counted in the whole.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from riprap.behaviors import Behavior, packs
from riprap.integrations.smollm2 import REFUSING
from riprap.launch.build import keep_passing, load_model
from riprap.monitor import Monitor
from riprap.studies.worlds import ToyWorld


@dataclass
class Case:
    """A model to train: `fresh()` gives model, optimizer, batches; `loss(model, batch)`."""

    fresh: Callable[[], tuple[nn.Module, torch.optim.Optimizer, Iterator[Any]]]
    loss: Callable[[nn.Module, Any], torch.Tensor]
    behaviors: Callable[[nn.Module], list[Behavior]]


def toy(task: str) -> Case:
    world = ToyWorld()

    def fresh() -> tuple[nn.Module, torch.optim.Optimizer, Iterator[Any]]:
        model = world.start(1000)
        return model, world.optimizer(model), world.batches(task, seed=1000)

    return Case(fresh, world.loss, lambda _model: world.behaviors())


def smollm2(data: Path, rows: int = 8, width: int = 192) -> Case:
    from peft import LoraConfig, get_peft_model

    tokenizer = load_model(str(REFUSING))[1]

    def batches() -> Iterator[torch.Tensor]:
        texts = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
        joined = [text["question"] + "\n" + text["answer"] for text in texts]
        ids = [i for text in joined for i in tokenizer(text).input_ids]
        for start in range(0, len(ids) - rows * width, rows * width):
            yield torch.tensor(ids[start : start + rows * width]).view(rows, width)

    def fresh() -> tuple[nn.Module, torch.optim.Optimizer, Iterator[Any]]:
        torch.manual_seed(0)
        plain = load_model(str(REFUSING))[0]
        config = LoraConfig(r=32, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(plain, config)
        trained = [p for p in model.parameters() if p.requires_grad]
        return model, torch.optim.AdamW(trained, lr=2e-4), batches()

    def behaviors(model: nn.Module) -> list[Behavior]:
        chosen = {"refusal": 24, "over_refusal": 24, "arithmetic": 12, "general_knowledge": 12}
        every = [packs.load(k, tokenizer, n, openers=["Sorry"]) for k, n in chosen.items()]
        return [keep_passing(behavior, model) for behavior in every]

    return Case(fresh, lambda model, ids: model(input_ids=ids, labels=ids).loss, behaviors)


def once(case: Case, steps: int, monitored: bool) -> tuple[float, list[float], Monitor | None]:
    """Seconds before the first step, seconds of each step, and the monitor."""
    model, optimizer, batches = case.fresh()
    model.train()
    monitor = Monitor(case.behaviors(model)) if monitored else None
    begun = time.perf_counter()
    if monitor is not None:
        monitor.begin(model, optimizer)
    start = time.perf_counter() - begun
    seconds = []
    for _ in range(steps):
        batch = next(batches)
        before = time.perf_counter()
        case.loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - before)
    if monitor is not None:
        monitor.end()
    return start, seconds, monitor


def compare(case: Case, steps: int, pairs: int) -> dict[str, float]:
    """Medians over pairs, all but the counts in units of a plain step."""
    found: list[dict[str, float]] = []
    for _ in range(pairs):
        _, plain, _ = once(case, steps, monitored=False)
        start, watched, monitor = once(case, steps, monitored=True)
        assert monitor is not None
        step = statistics.median(plain)
        track = next(iter(monitor.tracks.values()))
        history = monitor.history()
        fresh = set(history[history.signal == "norm_margin_gradient"].step)
        visited = set(track.steps) - {0}
        calm = [s for i, s in enumerate(watched, 1) if i not in visited]
        forward = [s for i, s in enumerate(watched, 1) if i in visited - fresh]
        both = [s for i, s in enumerate(watched, 1) if i in visited & fresh]
        late = steps // 2
        found.append(
            {
                "plain step, ms": 1e3 * step,
                "whole run": (start + sum(watched)) / sum(plain),
                "second half": sum(watched[late:]) / sum(plain[late:]),
                "step without a visit": statistics.median(calm) / step if calm else float("nan"),
                "forward visit": statistics.median(forward) / step - 1 if forward else float("nan"),
                "visit with gradients": statistics.median(both) / step - 1,
                "start": start / step,
                "visits": float(len(visited)),
                "with gradients": float(len(visited & fresh)),
            }
        )
    return {key: statistics.median(row[key] for row in found) for key in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=["toy", "smollm2"])
    parser.add_argument("--task", default="null", help="toy: null, C, C_disjoint or C_context")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/gsm8k_train.jsonl"))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    case = toy(asked.task) if asked.case == "toy" else smollm2(asked.data)
    steps = asked.steps or (1000 if asked.case == "toy" else 20)
    pairs = asked.pairs or (5 if asked.case == "toy" else 1)
    for key, value in compare(case, steps, pairs).items():
        print(f"{key:24} {value:8.3f}")


if __name__ == "__main__":
    main()
