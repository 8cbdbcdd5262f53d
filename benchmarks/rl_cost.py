"""What a monitor adds to reinforcement learning by TRL: GRPO and RLOO, whole runs in pairs.

`python benchmarks/rl_cost.py --out results/cost` trains the model of the world with verifiable
rewards (`experiments.worlds.verifiable`) with each trainer, with and without a monitor of its five
old behaviors at the default budget. Runs are interleaved pairs with the same seed; the order within
a pair alternates. Processor seconds of one thread, from the first update to the last: what the
monitor does before the first update is inside.

Two further figures come from inside of the watched runs: the seconds before the first update, and
the number of evaluations. Each pair also compares the weights at the end bit by bit.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from suite import machine
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from experiments.fast_slow.measure import NEW_TOKENS
from experiments.fast_slow.training import BASES, problem_rows
from experiments.harness.markdown import table
from experiments.worlds.verifiable import VerifiableWorld, reward
from riprap import Monitor
from riprap.integrations.hf import MonitorCallback

TRAINERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "GRPO (CISPO)": (GRPOTrainer, GRPOConfig, {"loss_type": "cispo", "epsilon_high": 5.0}),
    "RLOO": (RLOOTrainer, RLOOConfig, {}),
}
SEED, TASK = 1000, "first"
ROLLOUTS, GROUP, RATE = 64, 8, 3e-4


@dataclass(frozen=True)
class Run:
    """Processor seconds of a run and of its start, its evaluations, and its last weights."""

    seconds: float
    start: float
    evaluations: int
    weights: dict[str, torch.Tensor]


class Began(TrainerCallback):
    """Notes when the first update begins; it comes after the monitor's callback."""

    at = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the time of the first update."""
        self.at = self.at or time.process_time()


def run(world: VerifiableWorld, name: str, updates: int, watched: bool) -> Run:
    """Train from the base of the seed, under a monitor or not."""
    trainer_type, config_type, options = TRAINERS[name]
    model = world.start(SEED, BASES)
    monitor = Monitor(world.behaviors())
    began = Began()
    with tempfile.TemporaryDirectory() as folder:
        arguments = config_type(
            output_dir=folder,
            max_steps=updates,
            per_device_train_batch_size=ROLLOUTS,
            num_generations=GROUP,
            max_completion_length=NEW_TOKENS,
            learning_rate=RATE,
            beta=0.0,
            seed=SEED,
            gradient_checkpointing=False,
            logging_steps=updates,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            **options,
        )
        trainer = trainer_type(
            model=model,
            args=arguments,
            train_dataset=problem_rows(world, TASK),
            processing_class=world.tokenizer,
            reward_funcs=[reward],
            callbacks=[MonitorCallback(monitor), began] if watched else [began],
        )
        trainer.remove_callback(PrinterCallback)
        started = time.process_time()
        trainer.train()
        seconds = time.process_time() - started
    evaluations = 0
    if watched:
        evaluations = max(len(own.steps) for own in monitor.behavior_histories.values())
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    return Run(seconds, began.at - started, evaluations, weights)


def compare(world: VerifiableWorld, name: str, updates: int, pairs: int) -> dict[str, str]:
    """Return a trainer's row of the table."""
    ratios, shares, plain_seconds, evaluations, equal = [], [], [], [], True
    for pair in range(pairs):
        order = (False, True) if pair % 2 == 0 else (True, False)
        found = {watched: run(world, name, updates, watched) for watched in order}
        plain, own = found[False], found[True]
        ratios.append(own.seconds / plain.seconds)
        shares.append((own.start - plain.start) / plain.seconds)
        plain_seconds.append(plain.seconds / updates)
        evaluations.append(own.evaluations)
        equal &= all(torch.equal(plain.weights[key], own.weights[key]) for key in plain.weights)
        print(f"{name}: pair {pair + 1} of {pairs}: {ratios[-1]:.3f}", flush=True)
    return {
        "trainer": name,
        "watched ÷ plain": f"{statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})",
        "of this, before the first update": f"{statistics.median(shares):.3f}",
        "evaluations": f"{min(evaluations)}–{max(evaluations)}",
        "seconds an update, plain": f"{statistics.median(plain_seconds):.2f}",
        "weights bit-identical": "yes" if equal else "**no**",
    }


def main() -> None:
    """Measure each trainer, print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for rl.md")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    world = VerifiableWorld()
    rows = [compare(world, name, asked.updates, asked.pairs) for name in TRAINERS]
    sizes = f"{asked.updates} updates of {ROLLOUTS} rollouts, {asked.pairs} pairs; median (range)"
    text = f"{sizes}. {machine()}\n\n{table(rows)}\n"
    print("\n" + text)
    if asked.out:
        command = f"python benchmarks/rl_cost.py --updates {asked.updates} --pairs {asked.pairs}"
        head = f"# Cost of a monitor under reinforcement learning\n\n`{command}`: "
        (asked.out / "rl.md").write_text(head + text, encoding="utf-8")


if __name__ == "__main__":
    main()
