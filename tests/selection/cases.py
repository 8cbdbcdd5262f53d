"""Small models of every kind of layer, in float64, and a slow reference of their gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.pytorch_utils import Conv1D

from tiny import make_gpt2, make_llama

ROWS, LENGTH, WIDTH, SIZE = 5, 7, 6, 47


class Net(nn.Module):
    """Tokens in, logits out, and each given layer in between."""

    def __init__(self, *layers: nn.Module, tied: bool = False, embed: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(SIZE, WIDTH, padding_idx=0)
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(WIDTH, SIZE, bias=False)
        self.embed.weight.requires_grad_(embed or tied)
        self.head.weight.requires_grad_(tied)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor, attention_mask: Any = None, labels: Any = None) -> Any:
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        return {"logits": self.head(hidden)}


class Positions(nn.Module):
    """A table that all rows share, looked up once for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(LENGTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.table(torch.arange(hidden.shape[1])[None])


class BarePositions(Positions):
    """The same, without a dimension for the rows, as in nanoGPT."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.table(torch.arange(hidden.shape[1]))


class Twice(nn.Module):
    """One weight, used twice in one pass."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear(torch.tanh(self.linear(hidden)))


class Gemma(nn.Module):
    """A norm whose weight is counted from 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class OffsetRMSNorm(Gemma):
    pass


class Conv(nn.Module):
    """Conv1D, and a second one of another width."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = Conv1D(9, WIDTH), Conv1D(WIDTH, 9)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(hidden)))


def lora(base: Callable[[], Any], modules: Any = "all-linear", **options: Any) -> Any:
    torch.manual_seed(3)
    config = LoraConfig(r=3, lora_alpha=6, target_modules=modules, **options)
    return get_peft_model(base(), config)


CASES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: Net(nn.Linear(WIDTH, WIDTH)),
    "linear, no bias": lambda: Net(nn.Linear(WIDTH, WIDTH, bias=False)),
    "conv1d": lambda: Net(Conv()),
    "embedding": lambda: Net(nn.Linear(WIDTH, WIDTH), embed=True),
    "positions": lambda: Net(Positions()),
    "positions without rows": lambda: Net(BarePositions()),
    "tied head": lambda: Net(nn.Linear(WIDTH, WIDTH), tied=True),
    "layer norm": lambda: Net(nn.LayerNorm(WIDTH)),
    "rms norm": lambda: Net(nn.RMSNorm(WIDTH)),
    "llama's rms norm": lambda: Net(LlamaRMSNorm(WIDTH)),
    "rms norm from 1": lambda: Net(OffsetRMSNorm()),
    "weight used twice": lambda: Net(Twice()),
    "module used twice": lambda: Net(*[nn.Linear(WIDTH, WIDTH)] * 2),
    "lora": lambda: lora(make_llama),
    "rslora": lambda: lora(make_llama, use_rslora=True),
    "dora": lambda: lora(make_llama, use_dora=True),
    "dora of conv1d": lambda: lora(make_gpt2, ["c_attn"], use_dora=True, fan_in_fan_out=True),
    "llama": make_llama,
    "tied llama": lambda: make_llama(scale=1.0, tie_word_embeddings=True),
    "gpt2": make_gpt2,
}


def make(name: str) -> nn.Module:
    """The case's model: float64, no parameter at its special first value, evaluation mode."""
    torch.manual_seed(5)
    model = CASES[name]().double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def batch(rows: int = ROWS, length: int = LENGTH, seed: int = 0, padded: bool = True) -> dict:
    """Rows of different lengths, with response tokens at their ends."""
    made = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, SIZE, (rows, length), generator=made)
    mask, labels = torch.ones_like(ids), ids.clone()
    labels[:, :2] = -100
    if padded:
        for row in range(rows):
            end = length - row % 3
            ids[row, end:], mask[row, end:], labels[row, end:] = 0, 0, -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def reference(model: nn.Module, given: dict) -> Tensor:
    """Each row's gradient by torch.func, flattened, shape (rows, parameters)."""
    own = {name: p.detach() for name, p in trained(model).items()}

    def loss(parameters: dict, ids: Tensor, labels: Tensor) -> Tensor:
        # Padding is on the right, and no model here looks ahead: no mask is needed.
        logits = functional_call(model, parameters, (), {"input_ids": ids[None]}, tie_weights=True)
        each = functional.cross_entropy(
            logits["logits"][0, :-1], labels[1:], reduction="none", ignore_index=-100
        )
        return each.sum() / (labels[1:] != -100).sum()

    pairs = zip(given["input_ids"], given["labels"], strict=True)
    rows = [grad(loss)(own, ids, labels) for ids, labels in pairs]
    return torch.stack([torch.cat([part.flatten() for part in row.values()]) for row in rows])


@dataclass
class Sequential:
    """One backward pass a sample: what the engine must come to."""

    model: Any

    def gradients(self, given: dict) -> Tensor:
        found = []
        for row in range(len(given["input_ids"])):
            one = {key: value[row : row + 1] for key, value in given.items()}
            self.model.zero_grad()
            self.model(**one).loss.backward()
            parts = [p.grad for p in trained(self.model).values()]
            found.append(torch.cat([part.flatten() for part in parts]))
        self.model.zero_grad()
        return torch.stack(found)
