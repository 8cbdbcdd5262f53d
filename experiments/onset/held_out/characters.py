"""A character model: a pyramid of convolutions predicts the next character of Dolly's texts."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from experiments.onset.held_out.texts import fields
from experiments.onset.held_out.world import OLD, Behavior, World, gap

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
WINDOW = 27
TAIL = 3
CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Pyramid(nn.Module):
    """Three convolutions of width 3 and stride 3: 27 characters become one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(ALPHABET), 32)
        widths = (32, 64, 128, 192)
        self.layers = nn.ModuleList(
            nn.Linear(3 * below, above) for below, above in pairwise(widths)
        )
        self.mix = nn.Linear(192, 192)
        self.head = nn.Linear(192, len(ALPHABET))

    def forward(self, windows: Tensor) -> Tensor:
        """Return logits of the next character, shape (..., 96); windows: (..., 27)."""
        hidden = self.embedding(windows)
        for layer in self.layers:
            hidden = gelu(layer(hidden.unflatten(-2, (-1, 3)).flatten(-2)))
        hidden = hidden.squeeze(-2)
        return self.head(hidden + gelu(self.mix(hidden)))


class Characters(World):
    """Next characters: spelling, capitals after a sentence, years, what follows a bracket."""

    name = "characters"
    near = ("encyclopedia", "articles", "medicine")
    far = ("sums", "upper case", "lower case", "code", "backwards")
    sizes = {"spelling": 48, "capitals": 36, "years": 24, "words": 60}  # noqa: RUF012
    batch_size = 96
    pretraining = (8000, 3e-3)

    def __init__(self, data: Path) -> None:
        dolly = fields("dolly_sample", ("instruction", "response"), data)
        cut = len(dolly) * 4 // 5
        self.unseen = "\n".join(dolly[cut:])
        old = dolly[:cut]
        texts = {
            OLD: old,
            "encyclopedia": fields("squad_v2_train", ("context",), data),
            "articles": fields("dbpedia14_train", ("text",), data),
            "medicine": fields("medmcqa_train", ("question",), data),
            "sums": fields("gsm8k_train", ("question", "answer"), data),
            "upper case": [text.upper() for text in old],
            "lower case": [text.lower() for text in old],
            "code": _code(np.random.default_rng(5)),
            "backwards": [text[::-1] for text in old],
        }
        self.texts = {name: encode("\n".join(parts)) for name, parts in texts.items()}

    def new_model(self) -> nn.Module:
        """Return an untrained pyramid."""
        return Pyramid()

    def batch(self, task: str, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw windows of a text, and the characters that follow them."""
        text = self.texts[task]
        rows = _windows(text, rng.integers(WINDOW, len(text), size))
        return torch.from_numpy(rows[:, :-1]), torch.from_numpy(rows[:, -1])

    def margins(self, model: nn.Module, probes: Behavior) -> Tensor:
        """Return the least margin of the characters that a probe asks for."""
        return gap(model(probes.inputs), probes.right).amin(-1)

    def candidates(self) -> dict[str, Behavior]:
        """Return probes in texts of Dolly that were not trained on."""
        text = self.unseen
        frequent = Counter(re.findall(r"\b[a-z]{6,}\b", text))
        words = [word for word, count in frequent.most_common(60) if count > 3]
        rng = np.random.default_rng(11)
        spelled, ended, capitals, years = [], [], [], []
        for found in re.finditer(r"\b[a-z]{6,}\b", text):
            if found[0] in words:
                places = range(found.start() + 3, found.start() + 3 + TAIL)
                spelled.append(([(at, text[at]) for at in places], words.index(found[0])))
        short = [word for word, _ in Counter(re.findall(r"\b[a-z]{2,5}\b", text)).most_common(30)]
        for found in re.finditer(r"\b[a-z]{2,5} ", text):
            if found[0][:-1] in short:
                ended.append(([(found.end() - 1, " ")], short.index(found[0][:-1])))
        for found in re.finditer(r"[.?!][ \n][A-Z]", text):
            capitals.append(([(found.start() + 2, CAPITALS)], ".?!".index(found[0][0])))
        for found in re.finditer(r"\b(1[89]|20)\d\d\b", text):
            for known in (2, 3):
                years.append(([(found.start() + known, "0123456789")], known))
        asked = {"spelling": spelled, "capitals": capitals, "years": years, "words": ended}
        return {name: self._probes(asks, rng) for name, asks in asked.items()}

    def _probes(
        self, asks: list[tuple[list[tuple[int, str]], int]], rng: np.random.Generator
    ) -> Behavior:
        """Return a behavior from what it asks: places in the text and the characters right there.

        Where there are many groups, at most 8 probes come from each.
        """
        text = encode(self.unseen)
        most = max(8, 120 // len({group for _, group in asks}))
        kept: list[int] = []
        taken: Counter[int] = Counter()
        for place in rng.permutation(len(asks)):
            group = asks[place][1]
            if asks[place][0][0][0] >= WINDOW and taken[group] < most:
                taken[group] += 1
                kept.append(int(place))
        inputs = [_windows(text, np.array([at for at, _ in asks[i][0]]))[:, :-1] for i in kept]
        right = [
            [[letter in rights for letter in ALPHABET] for _, rights in asks[i][0]] for i in kept
        ]
        return Behavior(
            torch.from_numpy(np.stack(inputs)),
            torch.tensor(right),
            np.array([asks[i][1] for i in kept]),
        )


def encode(text: str) -> np.ndarray:
    """Return the numbers of a text's characters; each other character becomes a space."""
    numbers = {letter: number for number, letter in enumerate(ALPHABET)}
    return np.array([numbers.get(letter, numbers[" "]) for letter in text])


def _windows(text: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the 27 characters before each end, and the one there."""
    return text[ends[:, None] + np.arange(-WINDOW, 1)]


def _code(rng: np.random.Generator) -> list[str]:
    """Return small functions, generated."""
    names = ("count", "total", "items", "left", "right", "value", "index", "node", "key", "size")
    marks = ("+", "-", "*", "//", "%", "<", ">=", "==")
    functions = []
    for _ in range(1500):
        first, second, third = rng.choice(names, 3, replace=False)
        mark, other = rng.choice(marks, 2)
        number = rng.integers(100)
        functions.append(
            f"def {first}_{second}({second}, {third}={number}):\n"
            f"    for {first} in range(len({second})):\n"
            f"        if {second}[{first}] {mark} {third}:\n"
            f"            {third} = ({third} {other} {number}) or {first}\n"
            f"    return {third}\n"
        )
    return functions
