"""Run a configuration: TRL's GRPOTrainer with a population, under a monitor."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from riprap._text import first_line
from riprap.commands._data import Row, read_rows
from riprap.commands._live import CommandTable, summarize_run
from riprap.commands._models import SHOWN, load_model
from riprap.commands.fastslow._config import FastSlowConfig
from riprap.commands.fastslow._reward import Reward, check_answer, load_reward
from riprap.commands.watch import MODEL_FOLDER, TRAINER_FOLDER, lora_config, on_cpu
from riprap.detectors import AlertPolicy
from riprap.errors import ConfigError
from riprap.fastslow import EditGrammar, FastSlow, LanguageModel, Proposer, check_arguments
from riprap.integrations.config import build_behaviors, build_monitor, check_monitor_config
from riprap.integrations.hf import MonitorCallback
from riprap.record import require_vacant

POPULATION_FILE = "population.json"  # inside the folder of the run
_KEYS = {"role", "content"}  # of a turn


class _MonitorCallback(MonitorCallback):
    """Callback that leaves summary and report to `summarize_run`."""

    def _conclude(self) -> None:
        pass


def run_fast_slow(config: FastSlowConfig, quiet: bool = False) -> dict[str, Any]:
    """Run a configuration under a live table; save model and population, and return a summary.

    Args:
        quiet: draw the table on standard error.
    """
    require_vacant(config.run_dir)
    policy, reward, proposer, arguments = check_config(config)
    rows, summary = read_rows(config.data)
    problems = [_problem(row) for row in rows]
    for row, problem in zip(rows, problems, strict=True):
        check_answer(config.reward, problem["answer"], f"row {row.number}")
    model, tokenizer = load_model(config.model)
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError("the model's tokenizer has no chat template: give an instruct model")
    behaviors = build_behaviors(config, model, tokenizer)
    try:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=arguments,
            train_dataset=Dataset.from_list(problems),
            processing_class=tokenizer,
            peft_config=lora_config(config.lora),
        )
    except (TypeError, ValueError, ImportError) as error:
        first = first_line(error, type(error).__name__)[:SHOWN]
        raise ConfigError(f"TRL refuses this training: {first}") from error
    trainer.remove_callback(PrinterCallback)
    fast = FastSlow(trainer, config.fastslow.population, proposer=proposer, **_options(config))
    # The record begins where nothing is refused any more.
    metadata = {"task": config.title, "config": config.model_dump(mode="json")}
    metadata |= {"rows": summary.digest, "data": summary.lines()}
    monitor, guard, _ = build_monitor(config, behaviors, policy, config.run_dir, metadata)
    trainer.add_callback(_MonitorCallback(monitor, guard))
    fast.monitor = monitor
    console = Console(file=sys.stderr) if quiet else Console()
    console.print(*summary.lines(), sep="\n", markup=False, highlight=False)
    monitor.add_tracker(CommandTable(quiet))
    trainer.train()
    folder = Path(config.run_dir) / MODEL_FOLDER
    trainer.save_model(str(folder))
    file = Path(config.run_dir) / POPULATION_FILE
    file.write_text(json.dumps(fast.state_dict(), indent=1, ensure_ascii=False), encoding="utf-8")
    found = {"model": str(folder), "population": fast.population, "rollouts": fast.rollouts}
    return summarize_run(monitor, config.run_dir) | found


def check_config(
    config: FastSlowConfig,
) -> tuple[AlertPolicy, Reward, Proposer | None, GRPOConfig]:
    """Check what needs neither rows nor a model, and return what was made of it.

    Raises:
        RiprapError: a name or a value that the run would refuse.
    """
    policy = check_monitor_config(config)
    reward, arguments = load_reward(config.reward), _grpo_config(config)
    lora_config(config.lora)
    if config.data.response_prefix:
        raise ConfigError("`data.response_prefix` would stand in the answers: remove it")
    own = config.fastslow
    proposer: Proposer | None = EditGrammar(own.sentences) if own.sentences else LanguageModel()
    if own.every is None:
        proposer = None
    options = _options(config)
    del options["seed"]
    check_arguments(config.training.num_generations, own.population, proposer=proposer, **options)
    return policy, reward, proposer, arguments


def _options(config: FastSlowConfig) -> dict[str, Any]:
    return config.fastslow.model_dump(exclude={"population", "sentences"})


def _problem(row: Row) -> dict[str, Any]:
    """Return the turns of a row before its answer, and this answer."""
    first = row.first_learned
    if not 0 < first < len(row):
        raise ConfigError(f"row {row.number} is no problem with an answer: give both")
    if first < len(row) - 1:
        raise ConfigError(
            f"row {row.number} goes on after its first answer: give one answer, the last turn, and "
            "weight 0 to those before it"
        )
    if row.tools or row.template_kwargs or any(turn.keys() - _KEYS for turn in row.turns):
        raise ConfigError(
            f"row {row.number} has tools, arguments of the chat template, or turns with more than "
            "a role and a content: fast–slow training has texts only"
        )
    return {"prompt": list(row.turns[:first]), "answer": row.turns[first]["content"]}


def _grpo_config(config: FastSlowConfig) -> GRPOConfig:
    """Make TRL's arguments: the keys of the configuration, and what Riprap sets."""
    training = config.training
    own = {name: getattr(training, name) for name in type(training).model_fields}
    passed = training.passed_on()
    defaults: dict[str, Any] = {
        "report_to": "none",
        "use_cpu": on_cpu(),
        "lr_scheduler_type": "constant",
        "chat_template_kwargs": config.data.chat_template_kwargs,
    }
    defaults["save_strategy"] = "steps" if "save_steps" in passed else "no"
    folder = str(Path(config.run_dir) / TRAINER_FOLDER)
    try:
        return GRPOConfig(**defaults | own | passed, output_dir=folder, disable_tqdm=True)
    except (TypeError, ValueError, ImportError) as error:
        first = first_line(error, type(error).__name__)[:SHOWN]
        raise ConfigError(f"training: {first}") from error
