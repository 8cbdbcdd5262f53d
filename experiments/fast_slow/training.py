"""GRPO on a task of the verifiable world."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from datasets import Dataset
from torch import nn
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from experiments.fast_slow.measure import NEW_TOKENS
from experiments.fast_slow.plan import Setting
from experiments.harness.cache import RUNS
from experiments.worlds.verifiable import VerifiableWorld, proxy_reward, reward
from experiments.worlds.verifiable_text import joined

BASES = RUNS / "fast_slow" / "bases"


def problem_rows(world: VerifiableWorld, task: str, instruction: str = "") -> Dataset:
    """Return the problems of a task as TRL takes them, an instruction before each."""
    rows = [asdict(problem) for problem in world.problems(task)]
    for row in rows:
        row["prompt"] = joined(instruction, row.pop("question"))
    return Dataset.from_list(rows)


def make_trainer(
    world: VerifiableWorld,
    model: nn.Module,
    task: str,
    setting: Setting,
    seed: int,
    updates: int,
    folder: str,
    callbacks: Sequence[TrainerCallback] = (),
    instruction: str = "",
) -> GRPOTrainer:
    """Return TRL's GRPO with the CISPO loss on a task, without a KL term.

    Args:
        instruction: before every problem.
    """
    arguments = GRPOConfig(
        output_dir=folder,
        max_steps=updates,
        per_device_train_batch_size=setting.rollouts,
        num_generations=setting.group,
        max_completion_length=NEW_TOKENS,
        min_p=setting.min_p,
        learning_rate=setting.rate,
        lr_scheduler_type="constant",
        loss_type="cispo",
        epsilon_high=setting.clip,
        beta=0.0,
        seed=seed,
        gradient_checkpointing=False,
        logging_steps=1,  # TRL's own curve of the reward
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
    )
    trainer = GRPOTrainer(
        model=model,  # type: ignore[arg-type]
        args=arguments,
        train_dataset=problem_rows(world, task, instruction),
        processing_class=world.tokenizer,
        reward_funcs=[proxy_reward if task == "proxy" else reward],  # type: ignore[list-item]
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)  # it prints the log of every update
    return trainer
