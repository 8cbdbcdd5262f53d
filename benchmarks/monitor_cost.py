"""Rows `monitor` and `memory` of `run.py`: what a monitor adds to training.

Short runs are run whole, with and without a monitor, in interleaved pairs. A run of 1,000 steps of
15 seconds is not: its parts are measured (`riprap.monitor.measure_cost`), and the monitor's own
schedule says how often each of them happens in a calm run. A row with both ways, on the toy, shows
how far to trust that. The hooks are timed from inside of the step: they are far below the noise
between two steps.

A floor counts nothing but passes over the probes' tokens, on the monitor's own schedule: a forward
pass takes a third of what a training token takes (with adapters a half), a gradient all of it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cases import Case, LlamaSize, llama, smollm2, toy, world
from suite import Asked, Row, in_new_process, peak_bytes, processor_seconds, ratios
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from riprap.monitor import Cost, Monitor, measure_cost

SEED = 1000
BUDGET = 0.03  # the default of `Monitor`
SMALL_LLAMA = LlamaSize()  # 6 M parameters under LoRA, 12 × 96 tokens
PEAK_LLAMA = LlamaSize(
    hidden=128, feed_forward=352, layers=12, rank=None, rows=8, n_behaviors=5, probes=48,
    probe_width=64,
)  # fmt: skip
PROCESSES: dict[str, tuple[LlamaSize, int]] = {  # in fresh processes, with their steps
    "small": (SMALL_LLAMA, 150),
    "peak": (PEAK_LLAMA, 3),
}


class HookClock:
    """Time that passes between the optimizer's first and last hooks, before and after its step.

    Register it before the monitor begins, and call `last` before each step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.seconds, self.handles = optimizer, 0.0, []
        self.steps: list[float] = []
        optimizer.register_step_pre_hook(self._begin)
        optimizer.register_step_post_hook(self._begin)

    def last(self) -> None:
        """Put the closing hooks behind those that others have registered, and start a step."""
        for handle in self.handles:
            handle.remove()
        self.handles = [
            self.optimizer.register_step_pre_hook(self._end),
            register_optimizer_step_post_hook(self._end),
        ]
        self.seconds = 0.0

    def _begin(self, *_: Any) -> None:
        self.begun = time.process_time()

    def _end(self, *_: Any) -> None:
        self.seconds += time.process_time() - self.begun


@dataclass
class Parts:
    """Measured parts of a monitor on one case.

    Attributes:
        costs: one entry each time the parts were measured anew.
        hooks: seconds inside of the hooks, of all steps without an evaluation.
        step_tokens, probe_tokens: tokens that go through the embedding in a training step, and in
            a probe evaluation by forward passes.
    """

    costs: list[Cost] = field(default_factory=list)
    hooks: list[float] = field(default_factory=list)
    step_tokens: int = 0
    probe_tokens: int = 0


class TokenCounter:
    """Number of tokens that go through a model's first embedding."""

    def __init__(self, model: nn.Module) -> None:
        self.count = 0
        embedding = next(m for m in model.modules() if isinstance(m, nn.Embedding))
        self.handle = embedding.register_forward_pre_hook(self._add)

    def _add(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.count += inputs[0].numel()

    def of(self, call: Callable[[], object]) -> int:
        """Return the number of tokens in a call."""
        self.count = 0
        call()
        return self.count


def measure(case: Case, times: int, rounds: int, count: int | None = None) -> Parts:
    """Measure the parts of a monitor with the first `count` behaviors."""
    parts = Parts()
    with contextlib.redirect_stderr(io.StringIO()):
        for _ in range(times):
            _measure_once(case, rounds, count, parts)
    return parts


def _measure_once(case: Case, rounds: int, count: int | None, parts: Parts) -> None:
    model, optimizer, batches = case.fresh(SEED)
    model.train()
    behaviors = case.behaviors(model)[:count]
    clock, step = HookClock(optimizer), case.stepper(model, optimizer, batches)
    if not parts.step_tokens:
        counter = TokenCounter(model)
        parts.step_tokens = counter.of(step)
        evaluate_forward(
            behaviors, model
        )  # the first pass learns what the later ones can leave out
        parts.probe_tokens = counter.of(lambda: evaluate_forward(behaviors, model))
        counter.handle.remove()
    seconds: list[float] = []

    def clocked() -> None:
        clock.last()
        step()
        seconds.append(clock.seconds)

    cost = measure_cost(
        Monitor(behaviors), model, optimizer, clocked, rounds, clock=time.process_time
    )
    parts.costs.append(cost)
    # Half of the steps were taken with the hooks, and those take the longest in them.
    parts.hooks.append(statistics.median(sorted(seconds)[len(seconds) // 2 :]))


def evaluate_forward(behaviors: list[Any], model: nn.Module) -> None:
    """Evaluate all probes by forward passes."""
    from riprap.evaluation import evaluate_batch, group_by_forward_pass

    for group in group_by_forward_pass(behaviors, model):
        evaluate_batch(group, model, None, [])


def part_rows(
    label: str, parts: Parts, adapters: bool, runs: dict[int, float | None], hooks: float | None
) -> Iterator[Row]:
    """Yield the rows of the parts, and of whole runs computed from them.

    Args:
        adapters: only adapters are trained.
        runs: steps of a run, with the aim.
        hooks: the aim of a step with its hooks.
    """
    share = parts.probe_tokens / parts.step_tokens
    forward, refresh = share / (2 if adapters else 3), share
    tokens = f"{parts.probe_tokens} probe tokens, {parts.step_tokens} training tokens a step"
    plain = [cost.step_seconds for cost in parts.costs]
    row = partial(Row, "monitor")
    yield row(f"{label}: plain step, s", plain, note=tokens)
    with_hooks = [1 + spent / step for spent, step in zip(parts.hooks, plain, strict=True)]
    yield row(f"{label}: step with hooks", with_hooks, 1.0, hooks)
    kinds = {
        "reading of the interference": ("reading_seconds", None),
        "evaluation, forward": ("forward_seconds", forward),
        "evaluation with gradients": ("refresh_seconds", refresh),
        "start": ("start_seconds", refresh),
    }
    for name, (attribute, floor) in kinds.items():
        values = ratios([getattr(cost, attribute) for cost in parts.costs], plain)
        yield row(f"{label}: {name}", values, floor)
    for steps, aim in runs.items():
        whole = [
            run_ratio(replace(cost, hook_seconds=spent), steps)
            for cost, spent in zip(parts.costs, parts.hooks, strict=True)
        ]
        floors = [
            run_ratio(
                replace(
                    cost,
                    hook_seconds=0.0,
                    forward_seconds=forward * cost.step_seconds,
                    refresh_seconds=refresh * cost.step_seconds,
                    start_seconds=refresh * cost.step_seconds,
                    reading_seconds=0.0,
                ),
                steps,
            )
            for cost in parts.costs
        ]
        floor = statistics.median(floors)
        yield row(f"{label}: {steps} steps", whole, floor, aim, "from the parts")


def run_ratio(cost: Cost, steps: int) -> float:
    """Return the time of a calm run at the monitor's defaults, relative to a plain one."""
    return cost.run_ratio(20, steps, BUDGET)


def whole(case: Case, steps: int, monitored: bool, count: int | None = None) -> float:
    """Measure the processor seconds of a whole run."""
    model, optimizer, batches = case.fresh(SEED)
    model.train()
    monitor = Monitor(case.behaviors(model)[:count]) if monitored else None
    step = case.stepper(model, optimizer, batches)
    step()

    with contextlib.redirect_stderr(io.StringIO()):
        return processor_seconds(lambda: train(monitor, model, optimizer, step, steps))


def pairs(case: Case, steps: int, count: int, asked: Asked) -> list[float]:
    """Measure whole runs in interleaved pairs, with ÷ without."""
    found = []
    for index in range(count):
        asked.progress(f"whole runs of {steps} steps, pair {index + 1} of {count}")
        found.append(whole(case, steps, True) / whole(case, steps, False))
    return found


def toy_rows(asked: Asked) -> Iterator[Row]:
    """Rows of the toy; whole runs, and the same computed from the parts."""
    steps = 300 if asked.quick else 1000
    asked.progress("toy: parts")
    parts = measure(toy(), 1 if asked.quick else 3, 5 if asked.quick else 15)
    yield from part_rows("toy", parts, False, {steps: None}, None)
    measured = pairs(toy(), steps, 2 if asked.quick else 3, asked)
    yield Row("monitor", f"toy: {steps} steps", measured, None, 1.10, "whole runs")


def world_rows(asked: Asked) -> Iterator[Row]:
    """Rows of full fine-tuning of the world model of 25 M parameters."""
    asked.progress("world model of 25 M parameters: parts")
    parts = measure(world(640, 6), 1 if asked.quick else 3, 2 if asked.quick else 4)
    runs = {300: None, 1000: 1.05}
    yield from part_rows("25 M, full fine-tuning, 5 behaviors", parts, False, runs, None)


def smollm2_rows(asked: Asked) -> Iterator[Row]:
    """Rows of SmolLM2 under LoRA."""
    asked.progress("SmolLM2: parts (a step takes some 15 s)")
    parts = measure(smollm2(asked.data), 1 if asked.quick else 2, 1 if asked.quick else 2)
    runs = {300: 1.03, 1000: 1.02}
    yield from part_rows("SmolLM2, LoRA r = 32, 4 behaviors", parts, True, runs, 1.005)


def rows(asked: Asked) -> Iterator[Row]:
    """Yield the rows of the group `monitor`: the cases "toy", "world", "small" and "smollm2"."""
    made = {"toy": toy_rows, "world": world_rows, "small": small_rows, "smollm2": smollm2_rows}
    for name, make in made.items():
        if asked.wants(name):
            yield from make(asked)


def small_rows(asked: Asked) -> Iterator[Row]:
    """Rows of a whole short run of a small Llama under LoRA: time and peak memory."""
    found = fresh_pairs("small", 1 if asked.quick else 2, asked)
    what = "6 M Llama, LoRA, checkpointing, 150 steps"
    seconds = ratios(*([one["seconds"] for one in side] for side in found))
    note = "whole runs in fresh processes"
    yield Row("monitor", what, seconds, None, 1.05, note)
    yield _memory_row(f"{what}: peak", found)


def memory_rows(asked: Asked) -> Iterator[Row]:
    """Yield the rows of the group `memory`; `small` of the group `monitor` has another."""
    found = fresh_pairs("peak", 2 if asked.quick else 3, asked)
    yield _memory_row("12 layers, checkpointing, 5 × 48 probes × 64 tokens: peak", found)


def _memory_row(what: str, found: tuple[list[Any], list[Any]]) -> Row:
    watched, plain = ([one["peak"] / 1e6 for one in side] for side in found)
    note = f"{statistics.median(plain):.0f} → {statistics.median(watched):.0f} MB"
    return Row("memory", what, ratios(watched, plain), None, 1.2, note)


def fresh_pairs(
    name: str, count: int, asked: Asked
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Run watched and plain training in fresh processes, `count` times each."""
    watched, plain = [], []
    for index in range(count):
        asked.progress(f"{name}: pair {index + 1} of {count} in fresh processes")
        plain.append(in_new_process(Path(__file__), name, "plain"))
        watched.append(in_new_process(Path(__file__), name, "watched"))
    return watched, plain


def run_process(name: str, watched: bool) -> dict[str, float]:
    """Train one of `PROCESSES` in this process; return its seconds and its peak memory."""
    size, steps = PROCESSES[name]
    case = llama(size)
    model, optimizer, batches = case.fresh(SEED)
    model.train()
    behaviors = case.behaviors(model) if watched else []
    step = case.stepper(model, optimizer, batches)

    def run() -> None:
        train(Monitor(behaviors) if watched else None, model, optimizer, step, steps)

    return {"seconds": processor_seconds(run), "peak": peak_bytes()}


def train(
    monitor: Monitor | None, model: Any, optimizer: Any, step: Callable[[], None], steps: int
) -> None:
    """Take steps, watched by the monitor if there is one."""
    if monitor is not None:
        monitor.begin(model, optimizer)
    for _ in range(steps):
        step()
    if monitor is not None:
        monitor.end()


def main() -> None:
    """Run one training alone: the worker of `fresh_pairs`."""
    parser = argparse.ArgumentParser(description=run_process.__doc__)
    parser.add_argument("name", choices=PROCESSES)
    parser.add_argument("mode", choices=["plain", "watched"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(run_process(asked.name, asked.mode == "watched")))


if __name__ == "__main__":
    main()
