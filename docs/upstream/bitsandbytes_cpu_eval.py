# ruff: noqa: D102, D103
"""One evaluation pass of `Linear4bit` on a CPU ends QLoRA training, without an error.

    python docs/upstream/bitsandbytes_cpu_eval.py

Needs torch and bitsandbytes only. Exit code: 1 if it was reproduced, 0 if not, 2 if this machine
cannot show it (the packing needs a CPU with AVX512-BF16).
"""

from __future__ import annotations

import sys

import bitsandbytes as bnb
import torch
from torch import Tensor, nn

WIDTH, RANK = 64, 4


class Adapted(nn.Module):
    """A frozen 4-bit layer with a LoRA adapter beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = bnb.nn.Linear4bit(
            WIDTH, WIDTH, bias=False, compute_dtype=torch.float32, quant_type="nf4"
        )
        self.lora_a = nn.Linear(WIDTH, RANK, bias=False)
        self.lora_b = nn.Linear(RANK, WIDTH, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.base(inputs) + self.lora_b(self.lora_a(inputs))


def build() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(*(Adapted() for _ in range(4)))
    return model.to("cpu")  # quantizes the weights


def gradients(model: nn.Module, inputs: Tensor) -> dict[str, float | None]:
    """Run one training pass; return the norm of each adapter's gradient, None if it has none."""
    model.train()
    model.zero_grad()
    model(inputs).square().mean().backward()
    adapters = {name: p for name, p in model.named_parameters() if "lora" in name}
    return {name: None if p.grad is None else float(p.grad.norm()) for name, p in adapters.items()}


def main() -> int:
    print(f"torch {torch.__version__}, bitsandbytes {bnb.__version__}")
    if not bnb.functional.has_avx512bf16():
        print("not on this machine: its CPU has no AVX512-BF16")
        return 2
    inputs = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1))
    model = build()
    before = gradients(model, inputs)
    weight = model[0].base.weight.detach().clone()
    model.eval()
    with torch.no_grad():
        model(inputs)
    after = gradients(model, inputs)
    now = model[0].base.weight.detach()
    changed = now.shape != weight.shape or not torch.equal(now, weight)
    print("weight repacked by the evaluation pass, and still after model.train():", changed)
    print(f"{'adapter':12} {'gradient before':>18} {'after one evaluation pass':>28}")
    for name, value in before.items():
        print(f"{name:12} {value!s:>18.18} {after[name]!s:>28.18}")
    lost = [n for n in before if before[n] and (after[n] is None or after[n] != before[n])]
    print(f"{len(lost)} of {len(before)} adapters have lost their gradient or have another one")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
