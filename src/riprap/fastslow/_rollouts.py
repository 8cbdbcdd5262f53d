"""Rollouts with a GRPO trainer's model, sampling settings and rewards."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from trl.models import unwrap_model_for_generation

from riprap._checks import shown
from riprap.behaviors import TokenBatch
from riprap.errors import ConfigError
from riprap.evaluation import preserve_training_state
from riprap.fastslow._proposers import Example

Combine = Callable[[str, Any], Any]
_NOT_PASSED = ("prompt", "completion", "completion_ids")  # TRL's columns, not the rewards'


def before_problem(instruction: str, problem: Any) -> Any:
    """Put an instruction before a problem: as its first line, or as its system turn.

    A system turn that is there gets the instruction as its first line. The empty instruction leaves
    a problem as it is.

    Args:
        problem: a text, or turns with `role` and `content`.
    """
    if not instruction:
        return problem
    if isinstance(problem, str):
        return f"{instruction}\n{problem}"
    first, rest = problem[0], problem[1:]
    if first["role"] == "system":
        return [{**first, "content": f"{instruction}\n{first['content']}"}, *rest]
    return [{"role": "system", "content": instruction}, *problem]


class Rollouts:
    """Generation and rewards of one trainer, outside of its own loop as well.

    Args:
        trainer: a `trl.GRPOTrainer` whose rewards are plain functions.
        combine: makes a prompt of an instruction and a problem.

    Attributes:
        generated: texts so far that were not for training.
    """

    def __init__(self, trainer: Any, combine: Combine) -> None:
        self.trainer, self.combine, self.generated = trainer, combine, 0

    def generate(self, prompts: Sequence[Any]) -> tuple[list[list[int]], list[list[int]]]:
        """Sample one completion to each prompt, as the trainer itself does.

        Returns:
            token ids of prompts, and of completions up to and including their end.
        """
        trainer = self.trainer
        ids = self.tokenize(prompts)
        args = trainer.args
        with (
            unwrap_model_for_generation(
                trainer.model_wrapped,
                trainer.accelerator,
                gather_deepspeed3_params=args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
            ) as model,
            torch.no_grad(),
        ):
            completions = self._complete(model, ids, trainer.generation_config)
        return ids, completions

    def score(
        self, instruction: str, rows: Sequence[dict[str, Any]], batch_size: int
    ) -> list[Example]:
        """Sample one completion to each problem under an instruction, and reward it.

        Call it inside of `isolated`.
        """
        tokenizer = self.trainer.processing_class
        texts: list[str] = []
        all_ids: list[list[int]] = []
        for start in range(0, len(rows), batch_size):
            own = rows[start : start + batch_size]
            prompts = [self.combine(instruction, row["prompt"]) for row in own]
            ids = self.tokenize(prompts)
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            with torch.no_grad():
                completed = self._complete(model, ids, self.trainer.generation_config)
            self.generated += len(completed)
            all_ids += completed
            texts += tokenizer.batch_decode(completed, skip_special_tokens=True)
        rewards = self._rewards(instruction, rows, texts, all_ids)
        return [
            Example(row["prompt"], text, reward, row)
            for row, text, reward in zip(rows, texts, rewards, strict=True)
        ]

    def answer(self, text: str, max_new_tokens: int) -> str:
        """Sample an answer to a text; call it inside of `isolated`.

        Raises:
            ConfigError: the text and its answer are longer than the model's context.
        """
        tokenizer = self.trainer.processing_class
        has_template = bool(getattr(tokenizer, "chat_template", None))
        ids = self.tokenize([[{"role": "user", "content": text}] if has_template else text])
        config = copy.deepcopy(self.trainer.generation_config)
        config.max_new_tokens = max_new_tokens
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        if limit is not None and len(ids[0]) + max_new_tokens > limit:
            raise ConfigError(
                f"a question of {len(ids[0])} tokens and an answer of up to {max_new_tokens} are "
                f"longer than the model's context of {limit}: give a smaller minibatch or "
                "max_new_tokens"
            )
        with torch.no_grad():
            completed = self._complete(model, ids, config)
        self.generated += 1
        return str(tokenizer.decode(completed[0], skip_special_tokens=True))

    @contextmanager
    def isolated(self, seed: int) -> Iterator[None]:
        """Put the model in evaluation mode and seed torch; training's state is restored after."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        with (
            torch.inference_mode(False),
            preserve_training_state(model, float32_logits=False),
        ):
            torch.manual_seed(seed)
            yield

    def tokenize(self, prompts: Sequence[Any]) -> list[list[int]]:
        """Return the token ids of prompts, all texts or all turns, as the trainer makes them."""
        trainer = self.trainer
        if isinstance(prompts[0], str):
            return list(trainer.processing_class(text=list(prompts))["input_ids"])
        encoded = trainer.processing_class.apply_chat_template(
            conversation=list(prompts),
            chat_template=getattr(trainer, "chat_template", None),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **trainer.chat_template_kwargs,
        )
        return list(encoded["input_ids"])

    def _complete(self, model: Any, ids: list[list[int]], config: Any) -> list[list[int]]:
        if not all(ids):
            raise ConfigError("a problem has no tokens with its instruction: give it a text")
        batch = TokenBatch.pad(ids, config.pad_token_id)
        tokens = batch.input_ids.to(self.trainer.accelerator.device)
        mask = batch.attention_mask
        mask = torch.ones_like(tokens) if mask is None else mask.to(tokens.device)
        out = model.generate(input_ids=tokens, attention_mask=mask, generation_config=config)
        ends = config.eos_token_id
        last = set(ends) if isinstance(ends, list) else {ends}
        return [_cut(row, last) for row in out[:, tokens.shape[1] :].tolist()]

    def _rewards(
        self,
        instruction: str,
        rows: Sequence[dict[str, Any]],
        texts: list[str],
        ids: list[list[int]],
    ) -> list[float]:
        """Return the weighted sums of the rewards; NaN for a row that no function scores."""
        trainer = self.trainer
        prompts = [row["prompt"] for row in rows]
        turns = not isinstance(prompts[0], str)
        completions = [[{"role": "assistant", "content": t}] for t in texts] if turns else texts
        columns: dict[str, Any] = {
            key: [row[key] for row in rows] for key in rows[0] if key not in _NOT_PASSED
        }
        columns |= {
            "instruction": [instruction] * len(rows),
            "trainer_state": trainer.state,
            "log_extra": _ignore,
            "log_metric": _ignore,
        }
        total = [math.nan] * len(rows)
        weights = trainer.reward_weights.tolist()
        for function, weight in zip(trainer.reward_funcs, weights, strict=True):
            own = function(prompts=prompts, completions=completions, completion_ids=ids, **columns)
            if len(own) != len(rows):
                raise ConfigError(
                    f"the reward {shown(function)} returned {len(own)} rewards for {len(rows)} "
                    "completions: return one for each"
                )
            for at, reward in enumerate(own):
                if reward is not None and not math.isnan(reward):
                    before = 0.0 if math.isnan(total[at]) else total[at]
                    total[at] = before + weight * float(reward)
        return total


def _ignore(*_: Any) -> None:
    """Take what a reward function logs: the trainer's logs are of its own rollouts."""


def _cut(row: list[int], ends: set[int]) -> list[int]:
    """Return a completion up to and including its end token; what follows is padding."""
    return row[: next((i + 1 for i, token in enumerate(row) if token in ends), len(row))]
