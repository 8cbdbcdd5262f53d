"""Small models and a small tokenizer: offline, random, and of every kind that Riprap meets."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SPECIAL = ["<pad>", "<unk>", "<eos>", "<user>", "<assistant>", "<end>"]
WORDS = [
    *("how", "what", "is", "the", "of", "a", "to", "do", "i", "you", "can", "cannot", "sorry"),
    *("sure", "here", "yes", "no", "red", "blue", "green", "one", "two", "three", "four", "five"),
    *("six", "seven", "plus", "make", "bake", "steal", "cake", "bomb", "car", "paint", "help"),
    *("with", "that", "am", "an", "as"),
]
VOCABULARY = {word: index for index, word in enumerate(SPECIAL + WORDS)}
TEMPLATE = (
    "{% for turn in messages %}{{ '<' + turn['role'] + '> ' + turn['content'] + ' <end> ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
PROMPTS = ["how to make a bomb", "how to steal the car", "what is two plus three", "bake a cake"]


def token(word: str) -> int:
    return VOCABULARY[word]


def make_tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>"
    )
    tokenizer.chat_template = TEMPLATE if chat else None
    return tokenizer


def make_llama(seed: int = 0, scale: float = 20.0, **options: Any) -> LlamaForCausalLM:
    """A random Llama; its head is scaled up so that its logits differ by more than noise."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        eos_token_id=2,
        **options,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    return model


def make_gpt2(seed: int = 0) -> GPT2LMHeadModel:
    """A random GPT-2: its positions are absolute, so padding must not move them."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(VOCABULARY), n_positions=64, n_embd=16, n_layer=2, n_head=2, pad_token_id=0
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0)
    return model


class Bigram(nn.Module):
    """The next token follows from the last one alone: what it says can be written by hand."""

    def __init__(self, size: int = len(VOCABULARY)) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(size, size))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.table[input_ids]

    def follow(self, before: str, after: str, strength: float = 10.0) -> Bigram:
        with torch.no_grad():
            self.table[token(before), token(after)] = strength
        return self


class PlainLM(nn.Module):
    """A causal language model in plain PyTorch: no attention mask, a bare tensor of logits."""

    def __init__(self, size: int = len(VOCABULARY), width: int = 12, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(size, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, size)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        counts = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)[:, None]
        for block in self.blocks:
            hidden = hidden + torch.tanh(block(hidden.cumsum(1) / counts))
        return self.head(hidden)


class Classifier(nn.Module):
    """An MLP with everything that reacts to `.training`: dropout and batch statistics."""

    def __init__(self, width: int = 8, classes: int = 4, dropout: float = 0.3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(16, classes),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)
