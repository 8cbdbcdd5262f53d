"""Models to train under a monitor: the toy world, wider ones of its kind, SmolLM2 with LoRA."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.worlds import ToyWorld, first_probe_sets
from riprap.behaviors import Behavior
from riprap.commands.watch import load_model
from riprap.integrations.smollm2 import REFUSING
from riprap.monitor import keep_passing
from riprap.toy import ToyConfig

PROBE_SETS = {"refusal": 24, "over_refusal": 24, "arithmetic": 12, "general_knowledge": 12}


@dataclass
class Case:
    """A model to train: `fresh(seed)` gives model, optimizer, batches; `loss(model, batch)`."""

    fresh: Callable[[int], tuple[nn.Module, torch.optim.Optimizer, Iterator[Any]]]
    loss: Callable[[nn.Module, Any], torch.Tensor]
    behaviors: Callable[[nn.Module], list[Behavior]]

    def stepper(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[Any]
    ) -> Callable[[], None]:
        """Return a function that takes one training step."""

        def step() -> None:
            self.loss(model, next(batches)).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step


def toy(task: str = "null", **changes: Any) -> Case:
    """Return the toy world; with `changes` to its configuration, an untrained model."""
    world = ToyWorld(ToyConfig(**changes)) if changes else ToyWorld()

    def fresh(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, Iterator[Any]]:
        model = world.untrained(seed) if changes else world.start(seed)
        return model, world.optimizer(model), world.batches(task, seed=seed)

    return Case(fresh, world.loss, lambda _model: world.behaviors())


def smollm2(
    data: Path, n_probes: Mapping[str, int] | None = None, rows: int = 16, width: int = 96
) -> Case:
    """Return SmolLM2 trained to refuse, with LoRA of rank 32, on `rows` × `width` tokens a step.

    Args:
        n_probes: probe set → number of probes.
    """
    from peft import LoraConfig, get_peft_model

    tokenizer = load_model(str(REFUSING))[1]

    def batches() -> Iterator[torch.Tensor]:
        texts = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
        joined = [text["question"] + "\n" + text["answer"] for text in texts]
        ids = [i for text in joined for i in tokenizer(text).input_ids]
        for start in range(0, len(ids) - rows * width, rows * width):
            yield torch.tensor(ids[start : start + rows * width]).view(rows, width)

    def fresh(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, Iterator[Any]]:
        torch.manual_seed(seed)
        plain = load_model(str(REFUSING))[0]
        config = LoraConfig(r=32, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(plain, config)
        trained = [p for p in model.parameters() if p.requires_grad]
        return model, torch.optim.AdamW(trained, lr=2e-4), batches()

    def behaviors(model: nn.Module) -> list[Behavior]:
        counts = (n_probes or PROBE_SETS).items()
        behaviors = [first_probe_sets.load(k, tokenizer, n, prefixes=["Sorry"]) for k, n in counts]
        return [keep_passing(behavior, model) for behavior in behaviors]

    return Case(fresh, lambda model, ids: model(input_ids=ids, labels=ids).loss, behaviors)
