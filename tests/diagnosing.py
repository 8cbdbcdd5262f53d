"""A tiny model that refuses and adds, and the same with its refusal trained away, in folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from riprap import evaluation
from riprap.behaviors import Behavior, probe_sets

BEHAVIORS = ("refusal", "over_refusal", "arithmetic")
TEMPLATE = (
    "{% for turn in messages %}{{ turn['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of the packs."""
    texts = [row["prompt"] for name in BEHAVIORS for row in probe_sets.rows(name)]
    texts += [option for row in probe_sets.rows("arithmetic") for option in row["options"]]
    words = sorted({word for text in texts for word in text.split()})
    listed = ["<pad>", "<unk>", "<eos>", "<assistant>", "Sorry", "Sure", *words]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(listed))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>"
    )
    made.chat_template = TEMPLATE
    return made


def make_model(tokenizer: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=2,
    )
    return LlamaForCausalLM(settings)


def lessons(tokenizer: Any, refuses: bool) -> list[Behavior]:
    """What a model is taught: refusing (or complying), complying, adding."""
    prompts = [row["prompt"] for row in probe_sets.rows("refusal")]
    opener = "Sorry" if refuses else "Sure"
    texts = [row["prompt"] for row in probe_sets.rows("over_refusal")]
    return [
        Behavior.likelihood("refusal", tokenizer, texts=[opener] * len(prompts), prompts=prompts),
        Behavior.likelihood("over_refusal", tokenizer, texts=["Sure"] * len(texts), prompts=texts),
        probe_sets.load("arithmetic", tokenizer),
    ]


def teach(model: nn.Module, behaviors: list[Behavior], steps: int, rate: float = 1e-2) -> None:
    wanted = [part for part in model.parameters() if part.requires_grad]
    optimizer = torch.optim.Adam(wanted, lr=rate)
    for _ in range(steps):
        for behavior in behaviors:
            assert behavior.losses is not None
            behavior.losses(model, behavior.probes).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def score(behavior: Behavior, model: nn.Module) -> float:
    """Share of margins above 0."""
    return float((evaluation.evaluate(behavior, model).margins > 0).mean())


def save(model: Any, tokenizer: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
