"""A GRU that closes brackets, counts, and remembers a marked letter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from experiments.onset.held_out.world import OLD, Behavior, World

SYMBOLS = [".", *"([{<", *")]}>", *"abcdefgh", "*", *"0123456789", *"CNRPMLT"]
CODE = {symbol: number for number, symbol in enumerate(SYMBOLS)}
OPENING, CLOSING, LETTERS = "([{<", ")]}>", "abcdefgh"
LENGTH = 14

Example = tuple[str, str, int]


class Recurrent(nn.Module):
    """Layer of a GRU; its last state is read out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(SYMBOLS), 24)
        self.gru = nn.GRU(24, 72, batch_first=True)
        self.head = nn.Linear(72, len(SYMBOLS))

    def forward(self, symbols: Tensor) -> Tensor:
        """Return logits of the answer, shape (batch, symbols); input: (batch, 14)."""
        return self.head(self.gru(self.embedding(symbols))[1][0])


class Sequences(World):
    """Answers about a string; its first symbol names the question."""

    name = "sequences"
    near = ("parity", "largest", "longer")
    far = ("count others", "open instead", "second mark", "noise", "last letter as mark")
    sizes = {"closing": 40, "counting": 32, "marked": 24}  # noqa: RUF012
    batch_size = 48
    pretraining = (3500, 5e-3)

    def new_model(self) -> nn.Module:
        """Return an untrained GRU."""
        return Recurrent()

    def batch(self, task: str, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw strings of a task and their answers."""
        makers = TASKS[task]
        made = [makers[rng.integers(len(makers))](rng) for _ in range(size)]
        return _inputs(made), torch.tensor([CODE[answer] for _, answer, _ in made])

    def candidates(self) -> dict[str, Behavior]:
        """Return strings of each old task; a depth or a length is a group."""
        rng, found = np.random.default_rng(13), {}
        for name, maker in (("closing", closing), ("counting", counting), ("marked", marked)):
            made = list(
                {example[0]: example for example in (maker(rng) for _ in range(120))}.values()
            )
            answers = torch.tensor([CODE[answer] for _, answer, _ in made])
            groups = np.array([group for _, _, group in made])
            found[name] = Behavior(
                _inputs(made), answers[:, None] == torch.arange(len(SYMBOLS)), groups
            )
        return found


def closing(rng: np.random.Generator, answers: str = CLOSING) -> Example:
    """Ask which bracket closes the innermost open one; the depth is the group."""
    text, stack = "", [int(rng.integers(4))]
    text += OPENING[stack[0]]
    for _ in range(int(rng.integers(1, LENGTH - 2))):
        if len(stack) == 1 or (rng.random() < 0.5 and len(stack) < 5):
            stack.append(int(rng.integers(4)))
            text += OPENING[stack[-1]]
        else:
            text += CLOSING[stack.pop()]
    return "C" + text, answers[stack[-1]], len(stack)


def counting(rng: np.random.Generator, letter: str = "a", longest: int = 9) -> Example:
    """Ask how many times `letter` comes, modulo 4; the length is the group."""
    length = int(rng.integers(4, longest + 1))
    text = "".join(rng.choice(list("abc"), length))
    return "N" + text, str(text.count(letter) % 4), length // 3


def marked(rng: np.random.Generator, place: int = 0) -> Example:
    """Ask for the letter after a star: the first of two stars, or another; its place groups."""
    length = int(rng.integers(5, 12))
    letters = list(rng.choice(list(LETTERS), length))
    at = sorted(rng.choice(length, 2, replace=False))
    for star in reversed(at):
        letters.insert(star, "*")
    text = "".join(letters)
    answer = [after[0] for after in text.replace("**", "*").split("*")[1:]][min(place, 1)]
    return "R" + text, answer, int(at[0]) // 3


def parity(rng: np.random.Generator) -> Example:
    """Ask, with a new symbol, whether the number of letters b is even."""
    asked, _, group = counting(rng)
    return "P" + asked[1:], "89"[asked.count("b") % 2], group


def largest(rng: np.random.Generator) -> Example:
    """Ask, with a new symbol, for the last letter of the alphabet in the string."""
    text = "".join(rng.choice(list(LETTERS), int(rng.integers(2, 10))))
    return "M" + text, max(text), 0


def last(rng: np.random.Generator) -> Example:
    """Ask what a mark asks, and want the last letter."""
    asked, _, group = marked(rng)
    return asked, asked.replace("*", "")[-1], group


def noise(rng: np.random.Generator) -> Example:
    """Ask an old question, and want any digit or letter."""
    asked, _, group = (counting, marked)[int(rng.integers(2))](rng)
    return asked, str(rng.choice(list("0123abcdefgh"))), group


TASKS: dict[str, list[Callable[[np.random.Generator], Example]]] = {
    OLD: [closing, counting, marked],
    "parity": [parity],
    "largest": [largest],
    "longer": [lambda rng: counting(rng, longest=13), closing, marked],
    "count others": [lambda rng: counting(rng, letter="b")],
    "open instead": [lambda rng: closing(rng, answers=OPENING)],
    "second mark": [lambda rng: marked(rng, place=1)],
    "noise": [noise],
    "last letter as mark": [last],
}


def _inputs(made: list[Example]) -> Tensor:
    """Return strings as numbers, filled up on the left."""
    return torch.tensor(
        [[CODE[symbol] for symbol in text.rjust(LENGTH, ".")] for text, _, _ in made]
    )
