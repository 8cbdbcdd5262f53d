"""Trainings of adapters in the upper half of SmolLM2, on rows whose lower half is computed once."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional

from experiments.facts_smollm2.plan import Plan

READ_AT_ONCE = 32  # rows of a pass
LINEAR = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"


class Rows:
    """Prompts with their responses, and their hidden states halfway up the model.

    No training here changes the lower half, so these are the same before and after each.

    Args:
        model: a Llama for causal language modeling, without adapters in its lower half.
        prompts, responses: token ids; a response may be empty.
    """

    def __init__(
        self, model: Any, prompts: Sequence[list[int]], responses: Sequence[list[int]]
    ) -> None:
        rows = [prompt + said for prompt, said in zip(prompts, responses, strict=True)]
        self.starts = torch.tensor([len(prompt) for prompt in prompts])
        self.lengths = torch.tensor([len(row) for row in rows])
        longest = int(self.lengths.max())
        self.ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        blocks = model.model.layers
        self.half = len(blocks) // 2
        with torch.no_grad(), _blocks(model.model, blocks[: self.half], nn.Identity()):
            parts = [_states(model, input_ids=part) for part in self.ids.split(READ_AT_ONCE)]
        self.hidden = torch.cat(parts)

    def __len__(self) -> int:
        return len(self.ids)

    def losses(self, model: Any, chosen: Sequence[int]) -> Tensor:
        """Return the mean loss of each chosen response, nats a token."""
        at = torch.tensor(chosen)
        states = self._upper(model, at)
        place = torch.arange(1, states.shape[1])
        said = (place >= self.starts[at, None]) & (place < self.lengths[at, None])
        logits = model.get_output_embeddings()(states[:, :-1][said])
        targets = self.ids[at, 1 : states.shape[1]][said]
        losses = functional.cross_entropy(logits.float(), targets, reduction="none")
        counts = said.sum(1)
        row = torch.arange(len(at)).repeat_interleave(counts)
        return torch.zeros(len(at)).index_add(0, row, losses) / counts

    @torch.no_grad()
    def first_choices(self, model: Any) -> Tensor:
        """Return the token that the model ranks first after each prompt."""
        states = self._upper(model, torch.arange(len(self)))
        last = states[torch.arange(len(self)), self.starts - 1]
        chosen: Tensor = model.get_output_embeddings()(last).argmax(-1)
        return chosen

    def _upper(self, model: Any, at: Tensor) -> Tensor:
        hidden = self.hidden[at, : int(self.lengths[at].max())]
        with _blocks(model.model, model.model.layers[self.half :]):
            return _states(model, inputs_embeds=hidden)


@contextmanager
def _blocks(inner: Any, blocks: nn.ModuleList, norm: nn.Module | None = None) -> Iterator[None]:
    """Let a model have only some of its blocks, and another last norm."""
    kept = inner.layers, inner.norm
    inner.layers, inner.norm = blocks, norm or inner.norm
    try:
        yield
    finally:
        inner.layers, inner.norm = kept


def _states(model: Any, **inputs: Tensor) -> Tensor:
    """Return the last hidden states; padding stands at the right, where nothing reads it."""
    states: Tensor = model.model(**inputs, use_cache=False).last_hidden_state
    return states


def merged(
    model: nn.Module, plan: Plan, seed: int, folder: Path, train: Callable[[Any], None]
) -> nn.Module:
    """Return a model with a merged adapter: the one that `folder` has, or one trained now.

    Args:
        train: trains the adapter of a model that it is given.
    """
    if not folder.exists():
        wrapped = _adapted(model, plan, seed)
        train(wrapped.get_base_model())
        unfinished = Path(f"{folder}.partial")
        wrapped.save_pretrained(unfinished)
        unfinished.rename(folder)
        model = wrapped.unload()
    found: nn.Module = PeftModel.from_pretrained(model, folder).merge_and_unload()  # type: ignore[arg-type]
    return found.eval()


def _adapted(model: nn.Module, plan: Plan, seed: int) -> Any:
    """Add adapters to the linear layers of the upper half."""
    n_layers: int = model.config.num_hidden_layers  # type: ignore[union-attr, assignment]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=plan.rank,
            lora_alpha=plan.rank,
            target_modules=LINEAR.split(),
            layers_to_transform=list(range(n_layers // 2, n_layers)),
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, config).eval()  # type: ignore[arg-type]


def fit(
    model: Any,
    rows: Rows,
    plan: Plan,
    steps: int,
    seed: int,
    *,
    rate: float,
    done: Callable[[], bool] = lambda: False,
    sign: float = 1.0,
) -> int:
    """Train adapters on rows in random order until it is done; return the number of steps."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    order = random.Random(seed)
    left: list[int] = []
    for step in range(steps):
        if step % plan.every == 0 and done():
            return step
        while len(left) < plan.batch:
            left += order.sample(range(len(rows)), len(rows))
        chosen = [left.pop() for _ in range(plan.batch)]
        (sign * rows.losses(model, chosen).mean()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return steps
