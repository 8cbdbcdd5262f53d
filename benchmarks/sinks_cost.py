"""What the faces of a monitored training cost it: record, trackers, live table, losses and texts.

`python benchmarks/sinks_cost.py --out results/cost` trains a small Llama, whose step takes less
than 0.2 s, in pairs: with a monitor alone, and with all of its sinks besides: its record in a file,
texts of the probes, the loss every 10 steps, a CSV file, TensorBoard, and the live table on a
terminal of which nobody reads. Both evaluate the probes at the same steps. Processor seconds of one
thread.

Table and record rest by the clock. Here their clock is the processor's, as on a machine that does
nothing else: on a shared one the same rest would be less training.

The ratio of whole runs has the noise of whole runs. So all calls of the sinks are timed from inside
as well, and told apart; a call within another one counts as the outer one.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cases import LlamaSize, llama
from rich.console import Console
from suite import machine

from riprap import Behavior, Monitor
from riprap.integrations.terminal import Terminal
from riprap.integrations.trackers import CSV, TensorBoard
from riprap.monitor import Tracker

SIZE = LlamaSize(160, 320, layers=4, rows=8, checkpointing=False, probe_width=12)
SEED, PROBE_EVERY, LOSS_EVERY = 1000, 50, 10
AIM = 0.005
TRACKED = ("begin", "step", "train", "log", "alert", "flush", "end")
RECORDED = (
    *("begin", "add_readings", "add_failure", "add_margins", "add_alert", "add_actions"),
    *("add_event", "commit", "end"),
)
WRITTEN = ("add_prompts", "note", "write", "write_longer")  # of the texts


class Words:
    """A tokenizer as far as texts need one."""

    def decode(self, ids: Any, **_: Any) -> str:
        return " ".join(f"w{int(token)}" for token in torch.as_tensor(ids).flatten())


class Clock:
    """Processor seconds inside of some calls, by part; a call within another one counts once."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._depth = 0

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            began = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds[part] += time.process_time() - began

        return wrapped

    def time_calls(self, part: str, owner: Any, names: tuple[str, ...]) -> None:
        """Time calls of an object's methods."""
        for name in names:
            setattr(owner, name, self.timed(part, getattr(owner, name)))


@dataclass(frozen=True)
class Run:
    """Processor seconds of a whole run, and inside of its sinks by part; its evaluations."""

    total: float
    parts: dict[str, float]
    evaluations: int

    @property
    def sinks(self) -> float:
        """Seconds inside of all sinks."""
        return sum(self.parts.values())


def sinks(folder: Path, clock: Clock) -> list[Tracker]:
    console = Console(file=open(os.devnull, "w"), force_terminal=True, width=100)  # noqa: PTH123, SIM115
    found = [CSV(folder / "numbers.csv"), TensorBoard(folder / "tb"), Terminal(console)]
    for own in found:
        clock.time_calls(type(own).__name__, own, TRACKED)
    return found


@contextlib.contextmanager
def timed_answers(clock: Clock, behaviors: list[Behavior]) -> Iterator[None]:
    """Time how the answers are read from the logits of a pass over the probes."""
    (kind,) = {type(own.margins) for own in behaviors}
    kind.answers = clock.timed("texts: answers of each pass", kind.answers)
    try:
        yield
    finally:
        del kind.answers  # inherited


@contextlib.contextmanager
def clock_of_processor() -> Iterator[None]:
    """Let the clock run only while this process does."""
    usual = time.monotonic
    time.monotonic = time.process_time
    try:
        yield
    finally:
        time.monotonic = usual


def train(steps: int, is_on: bool) -> Run:
    """Train once; `is_on`: with all sinks."""
    case, clock = llama(SIZE), Clock()
    model, optimizer, batches = case.fresh(SEED)
    behaviors = [_with_texts(own) for own in case.behaviors(model.eval())]
    model.train()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stderr(io.StringIO()),
        timed_answers(clock, behaviors),
        clock_of_processor(),
    ):
        monitor = Monitor(
            behaviors,
            probe_every=PROBE_EVERY,
            run_dir=Path(folder) / "run" if is_on else None,
            budget=None,
            texts=is_on,
            trackers=sinks(Path(folder), clock) if is_on else (),
        )
        clock.time_calls("losses", monitor, ("log_training",))
        clock.time_calls("record", monitor._run.record, RECORDED)
        clock.time_calls("texts: prompts and answers", monitor._run.texts, WRITTEN)
        began = time.process_time()
        with monitor.watch(model, optimizer, steps=steps):
            for step in range(1, steps + 1):
                ids = next(batches)
                loss = model(input_ids=ids, labels=ids).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if is_on and step % LOSS_EVERY == 0:
                    monitor.log_training(loss=loss, learning_rate=optimizer.param_groups[0]["lr"])
        total = time.process_time() - began
        evaluations = len(next(iter(monitor.behavior_histories.values())).steps)
        monitor.record.close()
    return Run(total, dict(clock.seconds), evaluations)


def _with_texts(behavior: Behavior) -> Behavior:
    words = Words()
    behavior.texts = [words.decode(row[:8]) for row in behavior.probes.input_ids]
    behavior.tokenizer = words
    return behavior


def main() -> None:
    """Measure pairs, print the table, and write it to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, help="folder of sinks.csv and sinks.md")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    train(3, True)  # what the first run imports and fills is not counted
    pairs = []
    for place in range(asked.pairs):
        first = train(asked.steps, bool(place % 2))
        second = train(asked.steps, not place % 2)
        off, on = (second, first) if place % 2 else (first, second)
        assert off.evaluations == on.evaluations
        pairs.append((off, on))
        print(f"{place}: {off.total:.2f} s, with sinks {on.total:.2f} s", flush=True)
        text = table(pairs, asked.steps)
        if asked.out is not None:  # after each pair, so that a long measurement may be ended
            write(asked.out, pairs, text)
    print(text)


def write(out: Path, pairs: list[tuple[Run, Run]], text: str) -> None:
    """Write the table and the numbers behind it."""
    (out / "sinks.md").write_text(text, encoding="utf-8")
    parts = parts_of(pairs)
    rows = [
        [off.total, on.total, on.evaluations, *(on.parts[part] for part in parts)]
        for off, on in pairs
    ]
    with (out / "sinks.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["off_s", "on_s", "evaluations", *parts], *rows])


def parts_of(pairs: list[tuple[Run, Run]]) -> list[str]:
    """Return the parts of the sinks, the dearest first."""
    runs = [on for _, on in pairs]
    return sorted(runs[0].parts, key=lambda part: -sum(own.parts[part] for own in runs))


def table(pairs: list[tuple[Run, Run]], steps: int) -> str:
    """Return the figures as Markdown."""
    shares = [on.sinks / off.total for off, on in pairs]
    ratios = [on.total / off.total - 1 for off, on in pairs]
    inside = [1e3 * on.sinks / steps for _, on in pairs]
    step = [1e3 * off.total / steps for off, _ in pairs]
    rows = [
        ("inside of all sinks, share of the run", shares, "{:.2%}"),
        ("whole runs, with sinks ÷ without, − 1", ratios, "{:+.2%}"),
        ("inside of all sinks, ms a step", inside, "{:.3f}"),
        ("a step with its share of the monitor, ms", step, "{:.1f}"),
    ]
    for part in parts_of(pairs):
        own = [on.parts[part] / off.total for off, on in pairs]
        rows.append((f"of it: {part}", own, "{:.3%}"))
    lines = [
        "# Record, trackers, table, losses and texts",
        "",
        f"`python benchmarks/sinks_cost.py --pairs {len(pairs)} --steps {steps}`. {machine()}",
        "",
        f"{len(pairs)} interleaved pairs of {steps} steps, {pairs[0][1].evaluations} evaluations "
        f"each; aim: at most {AIM:.1%} of the run.",
        "",
        "| figure | median | range |",
        "|---|---|---|",
    ]
    for name, values, form in rows:
        low, high = form.format(min(values)), form.format(max(values))
        lines.append(f"| {name} | {form.format(statistics.median(values))} | {low} to {high} |")
    met = "met" if statistics.median(shares) <= AIM else "**missed**"
    return "\n".join([*lines, "", f"The aim is {met} from inside.", ""])


if __name__ == "__main__":
    main()
