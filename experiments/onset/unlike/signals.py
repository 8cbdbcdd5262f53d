"""A mixer (perceptrons over time, then over channels) that answers questions about signals."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from experiments.onset.unlike.base import Draw, Rows, World

LENGTH, PATCH, CHANNELS = 64, 4, 32
QUESTIONS = ("form", "cycles", "envelope", "click", "sign")
FORMS, CYCLES, ENVELOPES, CLICKS = 4, 5, 3, 8
# Each question has answers of its own, in this order.
FIRST = {"form": 0, "cycles": 4, "envelope": 9, "click": 12, "sign": 20}
ANSWERS = 22


class Mixing(nn.Module):
    """A perceptron over time and one over channels, each beside a shortcut."""

    def __init__(self, patches: int, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(channels), nn.LayerNorm(channels)])
        self.over_time = nn.Sequential(
            nn.Linear(patches, 2 * patches), nn.SiLU(), nn.Linear(2 * patches, patches)
        )
        self.over_channels = nn.Sequential(
            nn.Linear(channels, 3 * channels), nn.SiLU(), nn.Linear(3 * channels, channels)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the hidden states after the block, shape (n, patches, channels)."""
        mixed = self.over_time(self.norms[0](hidden).transpose(1, 2)).transpose(1, 2)
        hidden = hidden + mixed
        after: Tensor = hidden + self.over_channels(self.norms[1](hidden))
        return after


class Mixer(nn.Module):
    """Three blocks over patches of the signal; the question is added to each patch."""

    def __init__(self) -> None:
        super().__init__()
        patches = LENGTH // PATCH
        self.patch, self.question = (
            nn.Linear(PATCH, CHANNELS),
            nn.Linear(len(QUESTIONS), CHANNELS, bias=False),
        )
        self.blocks = nn.Sequential(*(Mixing(patches, CHANNELS) for _ in range(3)))
        self.norm, self.head = nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, ANSWERS)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits, shape (n, ANSWERS), for signals followed by one-hot questions."""
        signal, question = inputs[:, :LENGTH], inputs[:, LENGTH:]
        hidden = self.patch(signal.view(len(inputs), -1, PATCH))
        hidden = self.blocks(hidden + self.question(question).unsqueeze(1))
        logits: Tensor = self.head(self.norm(hidden).mean(1))
        return logits


def signals(
    generator: torch.Generator, n: int, noise: float, limit: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return signals, shape (n, LENGTH), and the answers to all questions, each shape (n,)."""
    form, cycles, envelope, click = (
        torch.randint(kinds, (n,), generator=generator)
        for kinds in (FORMS, CYCLES, ENVELOPES, CLICKS)
    )
    time = torch.arange(LENGTH) / LENGTH
    phase = (cycles[:, None] + 1) * time + torch.rand(n, 1, generator=generator)
    saw = 2 * (phase % 1) - 1
    waves = torch.stack([torch.sin(2 * torch.pi * phase), torch.sign(saw), saw, 2 * saw.abs() - 1])
    signal = waves[form, torch.arange(n)]
    shapes = torch.stack([torch.ones(LENGTH), 0.3 + 1.2 * time, 1.5 - 1.2 * time])
    signal = signal * shapes[envelope] * (0.7 + 0.6 * torch.rand(n, 1, generator=generator))
    signal = (signal + noise * torch.randn(n, LENGTH, generator=generator)).clamp(-limit, limit)
    at = click * (LENGTH // CLICKS) + torch.randint(LENGTH // CLICKS, (n,), generator=generator)
    sign = torch.randint(2, (n,), generator=generator)
    signal[torch.arange(n), at] += 3.0 * (2 * sign - 1)
    facts = {"form": form, "cycles": cycles, "envelope": envelope, "click": click, "sign": sign}
    return signal, facts


def task(
    question: str,
    noise: float = 0.1,
    limit: float = 9.0,
    answer: Callable[[Tensor], Tensor] = lambda fact: fact,
) -> Draw:
    """Return a question about signals; the groups are the right answers.

    Args:
        question: what is asked.
        noise: standard deviation of what is added to each value.
        limit: values beyond it are cut.
        answer: the answer that is taught, from the right one.
    """

    def draw(generator: torch.Generator, n: int) -> Rows:
        signal, facts = signals(generator, n, noise, limit)
        asked = torch.zeros(n, len(QUESTIONS))
        asked[:, QUESTIONS.index(question)] = 1
        fact = facts[question]
        return Rows(torch.cat([signal, asked], 1), FIRST[question] + answer(fact), fact)

    return draw


OLD = {name: task(name) for name in ("form", "cycles", "envelope")}
WORLD = World(
    name="signals",
    build=Mixer,
    behaviors=OLD,
    probes=OLD,
    related={
        "noisy_form": task("form", noise=0.3),
        "cut_cycles": task("cycles", limit=0.6),
        "envelope_again": OLD["envelope"],
    },
    new={
        "click": task("click"),
        "sign": task("sign"),
        "one_cycle_more": task("cycles", answer=lambda cycles: (cycles + 1) % CYCLES),
        "other_forms": task("form", answer=lambda form: 3 - form),
    },
    n_probes={"form": 48, "cycles": 40, "envelope": 30},
    pretraining=(3000, 96, 3e-3),
    rates={"sgd": 2e-3, "adamw": 4e-4, "adafactor": 2e-3, "muon": 1e-3},
    batch=24,
)
