"""Running a configuration: LoRA through TRL's SFTTrainer, watched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig as PeftLora
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from riprap.evidence import ConfigError
from riprap.integrations.hf import MonitorCallback
from riprap.launch.build import build_behaviors, load_model, load_protocol, load_rows
from riprap.launch.config import WatchConfig
from riprap.monitor import Monitor


def launch(config: WatchConfig, callbacks: Sequence[TrainerCallback] = ()) -> Monitor:
    """Fine-tune as configured, under a monitor.

    Args:
        callbacks: more callbacks for the trainer; one with a `monitor` attribute is given it.

    Returns:
        the monitor, with its record under `config.run`.

    Raises:
        RiprapError: whatever is wrong with the configuration, before training starts.
    """
    protocol, rows = load_protocol(config.protocol), load_rows(config.data)
    model, tokenizer = load_model(config.model)
    monitor = Monitor(
        build_behaviors(config, model, tokenizer),
        protocol=protocol,
        every=config.every,
        run=config.run,
        layer=config.layer,
        notes={"title": config.title, "config": config.model_dump(mode="json")},
    )
    extra = list(callbacks)
    for callback in extra:
        if hasattr(callback, "monitor"):
            callback.monitor = monitor
    trainer = SFTTrainer(
        model=model,
        args=arguments(config),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=adapter(config),
        callbacks=[MonitorCallback(monitor), *extra],
    )
    _check_trainable(trainer.model)
    trainer.train()
    return monitor


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
    """TRL's arguments: no checkpoints, no trackers, the loss on responses only."""
    training = config.training
    return SFTConfig(
        output_dir=str(Path(config.run) / "trainer"),
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
        save_strategy="no",
        report_to="none",
        logging_steps=10,
        disable_tqdm=True,
        dataloader_num_workers=0,
    )


def _check_trainable(model: Any) -> None:
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError("nothing to watch: every parameter of the model is frozen")
