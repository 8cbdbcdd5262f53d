"""Models to train under a monitor: the toy world, wider ones, plain Llamas, SmolLM2 with LoRA."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.worlds import FactsConfig, FactsWorld, ToyWorld, first_probe_sets
from riprap.behaviors import Behavior
from riprap.commands.watch import load_model
from riprap.integrations.smollm2 import REFUSING
from riprap.monitor import keep_passing
from riprap.toy import ToyConfig

PROBE_SETS = dict.fromkeys(("refusal", "over_refusal", "arithmetic", "general_knowledge"), 24)
RATE = 1e-6  # of plain Llamas: nothing is lost, and the run stays calm


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


def world(hidden: int, layers: int, n_behaviors: int = 5, probes: int = 48) -> Case:
    """Return an untrained world model, all of whose parameters are trained on 64 short rows a step.

    Args:
        n_behaviors: up to five: those of the world with facts, and a task that it has not learned.
    """
    size = {"hidden": hidden, "layers": layers, "feed_forward": 2 * hidden, "heads": 4}
    made = FactsWorld(FactsConfig(probes=probes, **size))

    def fresh(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, Iterator[Any]]:
        model = made.untrained(seed)
        return model, made.optimizer(model), made.batches("null", seed=seed)

    def behaviors(_model: nn.Module) -> list[Behavior]:
        new = made.tasks["C_disjoint"]
        fifth = Behavior.next_token("new", new.input_ids[:probes], new.targets[:probes])
        return [*made.behaviors(), fifth][:n_behaviors]

    return Case(fresh, made.loss, behaviors)


@dataclass(frozen=True)
class LlamaSize:
    """Size of a plain Llama with random weights, of its batches and of its probes.

    Attributes:
        rank: of LoRA on all linear layers, under AdamW; None: all parameters are trained, by SGD.
        checkpointing: gradient checkpointing in training.
    """

    hidden: int = 256
    feed_forward: int = 512
    layers: int = 8
    vocabulary: int = 2048
    rank: int | None = 8
    checkpointing: bool = True
    rows: int = 12
    width: int = 96
    n_behaviors: int = 4
    probes: int = 24
    probe_width: int = 48


def llama(size: LlamaSize) -> Case:
    """Return a plain Llama of transformers, trained on random tokens.

    The probes are random prompts with the answer that the model gives at the start.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    def fresh(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, Iterator[Any]]:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.hidden,
            intermediate_size=size.feed_forward,
            num_hidden_layers=size.layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
        )
        model: Any = LlamaForCausalLM(config)
        if size.checkpointing:
            model.gradient_checkpointing_enable()
        if size.rank is None:
            return model, torch.optim.SGD(model.parameters(), RATE), batches(seed)
        if size.checkpointing:
            model.enable_input_require_grads()
        lora = LoraConfig(
            r=size.rank,
            lora_alpha=2 * size.rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, lora)
        trained = [p for p in model.parameters() if p.requires_grad]
        return model, torch.optim.AdamW(trained, lr=RATE), batches(seed)

    def batches(seed: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield torch.randint(size.vocabulary, (size.rows, size.width), generator=generator)

    def behaviors(model: nn.Module) -> list[Behavior]:
        made, found = torch.Generator().manual_seed(1), []
        for index in range(size.n_behaviors):
            shape = (size.probes, size.probe_width)
            ids = torch.randint(size.vocabulary, shape, generator=made)
            with torch.no_grad():
                answers = model(input_ids=ids).logits[:, -1].argmax(-1)
            found.append(Behavior.next_token(f"b{index}", ids, answers))
        return found

    return Case(fresh, lambda model, ids: model(input_ids=ids, labels=ids).loss, behaviors)


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
