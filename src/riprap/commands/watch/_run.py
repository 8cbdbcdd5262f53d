"""Running a configuration: LoRA through TRL's SFTTrainer, watched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig as PeftLora
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from riprap.commands.watch._build import (
    build_behaviors,
    fingerprint,
    load_model,
    load_policy,
    load_rows,
)
from riprap.commands.watch._config import WatchConfig
from riprap.commands.watch._live import live_table, outcome, rows
from riprap.commands.watch._resume import TRAINER, refuse_taken, take_up
from riprap.integrations.hf import MonitorCallback
from riprap.monitor import Monitor

CHECKPOINTS = 2  # the newest, and the one before it, should the newest be cut off while written


@dataclass
class Prepared:
    """A configured run that is ready to train.

    Attributes:
        monitor: it will watch the run.
        model: the base model, before TRL adds the adapter.
        checkpoint: the folder to go on from; None: from the start.
        held_out: rows that the trainer's `evaluate` reads; None: it reads none.
    """

    config: WatchConfig
    monitor: Monitor
    model: Any
    tokenizer: Any
    rows: Any
    checkpoint: Path | None = None
    held_out: Any = None

    def train(self, callbacks: Sequence[TrainerCallback] = ()) -> None:
        """Fine-tune under the monitor, with more callbacks after the monitor's own."""
        watching = MonitorCallback(self.monitor, checkpoint=self.checkpoint)
        trainer = self.trainer([watching, *callbacks])
        trainer.train(None if self.checkpoint is None else str(self.checkpoint))

    def trainer(self, callbacks: Sequence[TrainerCallback] = ()) -> SFTTrainer:
        """TRL's trainer as configured, with the adapter; these callbacks beside its own."""
        trainer = SFTTrainer(
            model=self.model,
            args=arguments(self.config),
            train_dataset=self.rows,
            eval_dataset=self.held_out,
            processing_class=self.tokenizer,
            peft_config=adapter(self.config),
            callbacks=list(callbacks),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer


def prepare(config: WatchConfig, resume: bool = False) -> Prepared:
    """Build everything that a configuration names.

    Args:
        resume: go on with the run in `config.run`, from its newest checkpoint.

    Raises:
        RiprapError: whatever is wrong with the configuration, before training starts.
    """
    if not resume:
        refuse_taken(config.run)
    policy, data = load_policy(config.policy), load_rows(config.data)
    rows_hash = fingerprint(data)
    checkpoint = take_up(config, rows_hash) if resume else None
    model, tokenizer = load_model(config.model)
    monitor = Monitor(
        build_behaviors(config, model, tokenizer),
        policy=policy,
        probe_every=config.every,
        run_dir=config.run,
        feature_layer=config.layer,
        metadata={
            "task": config.title,
            "config": config.model_dump(mode="json"),
            "rows": rows_hash,
        },
        resume=resume,
    )
    return Prepared(config, monitor, model, tokenizer, data, checkpoint)


def adapter(config: WatchConfig) -> PeftLora | None:
    """The LoRA adapter, or None for all parameters."""
    if config.lora is None:
        return None
    return PeftLora(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def arguments(config: WatchConfig) -> SFTConfig:
    """TRL's arguments: checkpoints where asked for, no trackers, the loss on responses only."""
    training = config.training
    return SFTConfig(
        output_dir=str(Path(config.run) / TRAINER),
        max_steps=training.steps,
        per_device_train_batch_size=training.batch,
        gradient_accumulation_steps=training.accumulate,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.schedule,
        max_length=training.max_length,
        seed=training.seed,
        completion_only_loss=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no" if training.save_every is None else "steps",
        save_steps=training.save_every or training.steps,
        save_total_limit=CHECKPOINTS,
        report_to="none",
        logging_steps=10,
        disable_tqdm=True,
        dataloader_num_workers=0,
    )


class Show(TrainerCallback):
    """Draws the live table while the trainer trains."""

    def __init__(self, monitor: Monitor, steps: int, quiet: bool = False) -> None:
        self.monitor = monitor
        self.table = live_table(monitor, steps, quiet)

    def on_train_begin(self, *arguments: Any, **kwargs: Any) -> None:
        """Open the table."""
        self.table.__enter__()

    def on_step_end(self, *arguments: Any, **kwargs: Any) -> None:
        """Show how things stand."""
        self.table.update(self.monitor.step, rows(self.monitor))

    def on_train_end(self, *arguments: Any, **kwargs: Any) -> None:
        """Leave the table as it ended."""
        self.table.__exit__(None, None, None)


def watched_run(config: WatchConfig, quiet: bool = False, resume: bool = False) -> dict[str, Any]:
    """What `riprap watch` does: run a configuration under a live table, and write its report.

    Args:
        resume: go on with the run in `config.run`, from its newest checkpoint.

    Returns:
        what the run ended with; see `launch.show.outcome`.

    Raises:
        RiprapError: whatever is wrong with the configuration, or with the run to go on with.
    """
    run = prepare(config, resume)
    run.train([Show(run.monitor, config.training.steps, quiet)])
    return outcome(run.monitor, config.run)
