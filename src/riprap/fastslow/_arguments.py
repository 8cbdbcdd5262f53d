"""Checks of the trainer and of the arguments that `FastSlow` is given."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, get_args

from datasets import Dataset
from torch import nn
from trl import GRPOTrainer

from riprap._checks import check_count, shown
from riprap.errors import ConfigError
from riprap.fastslow._cycle import Select


def check_trainer(trainer: Any) -> None:
    """Refuse a trainer that fast–slow training cannot work with.

    Raises:
        ConfigError: says what the trainer has, and what would be right.
    """
    if not isinstance(trainer, GRPOTrainer):
        raise ConfigError(f"FastSlow got {shown(trainer)} as trainer: give a trl.GRPOTrainer")
    if trainer.accelerator.num_processes > 1:
        raise ConfigError("FastSlow runs in one process: start training without a launcher")
    if trainer.use_vllm or getattr(trainer, "use_transformers_continuous_batching", False):
        raise ConfigError(
            "FastSlow generates with transformers' generate: leave use_vllm and "
            "use_transformers_continuous_batching False"
        )
    if getattr(trainer, "tools", None) or getattr(trainer, "environment_factories", None):
        raise ConfigError(
            "FastSlow has rollouts of one turn: give a trainer without tools and environments"
        )
    if getattr(trainer, "_is_vlm", False):
        raise ConfigError("FastSlow works on texts: give a tokenizer, and no processor of images")
    for function in trainer.reward_funcs:
        if isinstance(function, nn.Module) or _is_async(function):
            raise ConfigError(
                f"FastSlow calls rewards itself, and {shown(function)} is no plain function: wrap "
                "it in a function as TRL describes for reward_funcs"
            )
    if not isinstance(trainer.train_dataset, Dataset):
        raise ConfigError(
            f"FastSlow draws problems from the training data, and {shown(trainer.train_dataset)} "
            "has no rows by number: give a datasets.Dataset"
        )
    _check_problems(trainer)
    if (
        len(trainer.reward_funcs) > 1
        and trainer.multi_objective_aggregation != "sum_then_normalize"
    ):
        raise ConfigError(
            "a cycle sums rewards as they are, and training would not: leave "
            'multi_objective_aggregation="sum_then_normalize"'
        )
    if trainer.pad_to_multiple_of is not None:
        raise ConfigError("FastSlow pads prompts to the longest: leave pad_to_multiple_of None")
    ends = trainer.generation_config.eos_token_id
    if {*(ends if isinstance(ends, list) else [ends])} != {*trainer.eos_token_ids}:
        raise ConfigError(
            "generation_kwargs has other end tokens than TRL looks for in the rollouts: set "
            "eos_token_id in the model's generation_config"
        )


def _check_problems(trainer: Any) -> None:
    """Refuse training data that a cycle would read otherwise than training."""
    data = trainer.train_dataset
    if not {"image", "images"}.isdisjoint(data.column_names):
        raise ConfigError("FastSlow works on texts: give a data set without images")
    if "instruction" in data.column_names:
        raise ConfigError(
            "rewards get the instruction of each rollout as `instruction`, and the data set has a "
            "column of this name: rename the column"
        )
    if "prompt" not in data.column_names or len(data) == 0:
        raise ConfigError("the training data has no rows with a `prompt`: give problems")
    problem = data[0]["prompt"]
    if isinstance(problem, str):
        return
    if not all(isinstance(turn["content"], str) for turn in problem):
        raise ConfigError(
            "FastSlow works on texts, and the turns of the prompts have parts: give each turn a "
            "text as content"
        )
    tokenizer = trainer.processing_class
    for name in ("response_template", "response_schema"):
        if getattr(tokenizer, name, None) is not None:
            raise ConfigError(
                f"the tokenizer has a {name}, by which TRL cuts completions before it rewards them "
                f"and a cycle would not: set tokenizer.{name} = None"
            )


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )


def check_arguments(
    group: int,
    population: Any,
    *,
    proposer: Any,
    every: Any,
    keep: Any,
    select: Any,
    problems: Any,
    budget: Any,
    minibatch: Any,
) -> None:
    """Refuse arguments of `FastSlow` that do not fit each other; a trainer is not needed.

    Args:
        group: rollouts of a problem, `num_generations` of TRL.

    Raises:
        ConfigError: one that `FastSlow` would refuse.
    """
    _check_population(population)
    if every is not None:
        check_count("every", every, otherwise=", or None for a population that stays")
    if not callable(proposer) and not (proposer is None and every is None):
        raise ConfigError(
            f"FastSlow got {shown(proposer)} as proposer: give a function of a "
            "riprap.fastslow.Request, or every=None for a population that stays"
        )
    check_count("keep", keep)
    if select not in get_args(Select):
        raise ConfigError(f'select={shown(select)}: choose "pareto" or "random"')
    check_count("problems", problems)
    check_count("minibatch", minibatch)
    if budget is not None:
        check_count("budget", budget)
    if proposer is None:  # no cycles, for which the others are
        _check_group(group, len(population))
        return
    if len(population) > keep:
        raise ConfigError(
            f"the population has {len(population)} instructions, and keep={keep}: give fewer, or "
            "a larger keep"
        )
    _check_group(group, keep)
    if budget is not None and budget < keep * problems:
        raise ConfigError(
            f"budget={budget}, and keep={keep} instructions on problems={problems} cost "
            f"{keep * problems} rollouts: give a larger budget"
        )
    if minibatch > problems:
        raise ConfigError(
            f"minibatch={minibatch}, and a cycle has problems={problems}: give a smaller minibatch"
        )


def _check_population(population: Any) -> None:
    if isinstance(population, str) or not isinstance(population, Sequence) or not population:
        raise ConfigError(
            f"population={shown(population)}: give a list of instructions, one text or more"
        )
    for text in population:
        if not isinstance(text, str):
            raise ConfigError(f"the population has {shown(text)}: give texts")
    if len(set(population)) < len(population):
        twice = next(text for text in population if list(population).count(text) > 1)
        raise ConfigError(f"the population has {shown(twice)} twice: give each instruction once")


def _check_group(group: int, keep: int) -> None:
    if group % keep != 0:
        raise ConfigError(
            f"num_generations={group} rollouts of a problem cannot be shared equally by {keep} "
            "instructions: choose a multiple"
        )
