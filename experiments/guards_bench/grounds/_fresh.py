"""Fresh grounds on drawn shapes, medical and other tables, and rows of moves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.guards_bench.grounds._base import Ground, OldTask, Stage, shuffled, train
from riprap.toy import CACHE, Examples, batches, fingerprint, fit, train_or_load

SIDE, LEVELS = 12, 10  # pixels of a side; brightness 0 to 9
ANSWERS = {"form": 4, "place": 4, "brightness": 2, "light": 4}  # questions and their answers
PICTURES = 2500


def drawn(rng: np.random.Generator) -> tuple[list[int], dict[str, int]]:
    """Draw a form on a noisy ground that is lit from a side; return pixels, and right answers."""
    right = {question: int(rng.integers(count)) for question, count in ANSWERS.items()}
    down, across = np.mgrid[:5, :5] - 2
    inked = (
        np.maximum(abs(down), abs(across)) == 2,  # a box
        (down == 0) | (across == 0),  # a cross
        down**2 + across**2 <= 5,  # a disc
        down % 2 == 0,  # stripes
    )[right["form"]]
    shade = np.rot90(np.tile(np.arange(SIDE) // 2, (SIDE, 1)), right["light"])
    picture = shade + rng.integers(0, 2, (SIDE, SIDE))
    top, left = rng.integers(0, 2, 2) + 6 * np.array(divmod(right["place"], 2))
    picture[top : top + 5, left : left + 5][inked] = 7 + 2 * right["brightness"]
    return picture.ravel().tolist(), right


@cache
def pictures(question: str) -> tuple[Examples, Examples]:
    """Return questions on drawn pictures, for training and for tests."""
    at = list(ANSWERS).index(question)
    rng = np.random.default_rng(at)
    made = [drawn(rng) for _ in range(PICTURES)]
    ids = torch.tensor([[at, *pixels] for pixels, _ in made])
    rows = Examples(ids, torch.tensor([right[question] for _, right in made]))
    return rows[:-400], rows[-400:]


class Convolutions(nn.Module):
    """Three convolutions, whose channels the question shifts, and two linear layers."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.question = nn.Embedding(len(ANSWERS), channels)
        self.first = nn.Conv2d(1, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.third = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.middle = nn.Linear(channels * (SIDE // 4) ** 2, 48)
        self.head = nn.Linear(48, max(ANSWERS.values()))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return logits, shape (n, answers); a row is a question and the pixels."""
        picture = input_ids[:, 1:].view(-1, 1, SIDE, SIDE).float() / (LEVELS - 1)
        asked = self.question(input_ids[:, 0])[:, :, None, None]
        hidden = torch.relu(self.first(picture) + asked)
        hidden = torch.relu(self.third(torch.relu(self.second(hidden))))
        logits: Tensor = self.head(torch.relu(self.middle(hidden.flatten(1))))
        return logits


@dataclass(frozen=True)
class Learning:
    """Training of a model before the bench; a part of the stored model's name."""

    steps: int
    batch: int
    rate: float


class Shapes(Ground):
    """Three questions on pictures are kept, and a fourth is learned."""

    name = "shapes"
    about = (
        "a convolutional network names a drawn form, its place and its brightness, and learns to "
        "tell where the light comes from; Adamax at 5e-3"
    )
    layer = "middle"
    causal = False

    def start(self, seed: int) -> nn.Module:
        """Return the model that answers three questions; it is trained once a seed and stored."""
        torch.manual_seed(seed)
        model, how = Convolutions(), Learning(800, 64, 2e-3)
        parts = {name: pictures(name)[0] for name in list(ANSWERS)[:3]}

        def learn(model: nn.Module) -> None:
            optimizer = torch.optim.Adam(model.parameters(), lr=how.rate)
            train(model, optimizer, list(parts.values()), how.steps, how.batch, seed)

        return train_or_load(model, fingerprint(how, parts), seed, CACHE, learn)

    def stages(self, seed: int) -> list[Stage]:
        """Return the only stage."""
        old = []
        *known, new = ANSWERS
        for name, pool in zip(known, (60, 30, 15), strict=True):
            learned, test = pictures(name)
            probes, replayed, _ = shuffled(learned, 40, pool, seed=seed)
            old.append(OldTask(name, probes, replayed, test))
        return [Stage(tuple(old), *pictures(new), 450, 32, _adamax)]


def _adamax(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adamax(model.parameters(), lr=5e-3)


TABLES = {"wine": 3, "tumors": 2, "irises": 3}  # tables and their classes
COLUMNS = {"wine": 13, "tumors": 30, "irises": 4}
MEAN, DEVIATION = 30, 10  # a column's mean and deviation as tokens


@cache
def table(name: str) -> tuple[Examples, Examples]:
    """Return the rows of a table for training and for tests; columns of other tables are empty."""
    from sklearn.datasets import load_breast_cancer, load_iris, load_wine

    load = {"wine": load_wine, "tumors": load_breast_cancer, "irises": load_iris}[name]
    values, classes = load(return_X_y=True)
    own = (values - values.mean(0)) / values.std(0)
    at = list(TABLES).index(name)
    sizes = list(COLUMNS.values())
    cells = np.full((len(own), sum(sizes)), MEAN)
    cells[:, sum(sizes[:at]) : sum(sizes[: at + 1])] = np.clip(
        np.round(MEAN + DEVIATION * own), 0, 2 * MEAN
    )
    cells, kept = np.unique(cells, axis=0, return_index=True)
    right = torch.tensor(classes[kept])
    test, learned = shuffled(Examples(torch.tensor(cells), right), len(cells) // 3, seed=2)
    return learned, test


class TableNetwork(nn.Module):
    """Two residual layers with normalization over the cells of a row."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.first = nn.Linear(sum(COLUMNS.values()), width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU()) for _ in range(2)
        )
        self.head = nn.Linear(width, max(TABLES.values()))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return logits, shape (n, classes of all tables)."""
        hidden = self.first((input_ids.float() - MEAN) / DEVIATION)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        logits: Tensor = self.head(hidden)
        return logits


class Tables(Ground):
    """Two tables are known; a third one hardly harms them."""

    name = "tables"
    about = (
        "a network with normalization knows wines and tumors, and learns irises at a low rate, "
        "which harms little; SGD at 0.01 with Nesterov momentum and weight decay"
    )
    layer = "layers.1"
    causal = False

    def start(self, seed: int) -> nn.Module:
        """Return the model that knows two tables."""
        torch.manual_seed(seed)
        model = TableNetwork()
        parts = [table(name)[0] for name in list(TABLES)[:2]]
        train(model, torch.optim.Adam(model.parameters(), lr=1e-3), parts, 400, 32, seed)
        return model

    def stages(self, seed: int) -> list[Stage]:
        """Return the only stage."""
        old = []
        *known, new = TABLES
        for name in known:
            learned, test = table(name)
            probes, pool, _ = shuffled(learned, 30, 40, seed=seed)
            old.append(OldTask(name, probes, pool, test))
        return [Stage(tuple(old), *table(new), 300, 16, _nesterov)]


def _nesterov(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-3
    )


STATES, MOVES = 5, 6  # numbers modulo 5, and how many a row has
SUM, THIRD, CHANGES, RISES = range(STATES, STATES + 4)  # signs that begin a row
ROWS = 4000


@cache
def moves(sign: int) -> tuple[Examples, Examples, Tensor]:
    """Return rows `sign, numbers` for training and tests, and the training rows' running answers.

    A row's answer is the last of its running answers.
    """
    generator = torch.Generator().manual_seed(sign)
    numbers = torch.randint(STATES, (ROWS, MOVES), generator=generator).unique(dim=0)
    numbers = numbers[torch.randperm(len(numbers), generator=generator)]
    changed = (numbers[:, 1:] != numbers[:, :-1]).long()
    risen = (numbers[:, 1:] > numbers[:, :-1]).long()
    running = {
        SUM: numbers.cumsum(1),
        THIRD: numbers[:, [0, 1, *[2] * (MOVES - 2)]],
        CHANGES: torch.cat([torch.zeros(len(numbers), 1).long(), changed.cumsum(1)], 1),
        RISES: torch.cat([torch.zeros(len(numbers), 1).long(), risen.cumsum(1)], 1),
    }[sign] % STATES
    rows = Examples(
        torch.cat([torch.full((len(numbers), 1), sign), numbers], 1), running[:, -1].clone()
    )
    return rows[:-400], rows[-400:], running[:-400]


class MovesLSTM(nn.Module):
    """An LSTM of two layers that gives an answer after each token."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(RISES + 1, 16)
        self.lstm = nn.LSTM(16, width, num_layers=2, batch_first=True)
        self.middle, self.head = nn.Linear(width, width), nn.Linear(width, STATES)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return logits, shape (n, positions, STATES)."""
        states, _ = self.lstm(self.embedding(input_ids))
        logits: Tensor = self.head(torch.relu(self.middle(states)))
        return logits


class Moves(Ground):
    """Three ways to read a row of numbers are kept, and a fourth is learned."""

    name = "moves"
    about = (
        "an LSTM sums a row of numbers modulo 5, counts its changes and recalls its third number, "
        "and learns to count its rises; NAdam at 3e-3"
    )
    layer = "middle"

    def start(self, seed: int) -> nn.Module:
        """Return the model that reads rows in three ways; it is trained once a seed and stored."""
        torch.manual_seed(seed)
        model, how = MovesLSTM(), Learning(1600, 96, 5e-3)
        known = [moves(sign) for sign in (SUM, THIRD, CHANGES)]

        def learn(model: nn.Module) -> None:
            optimizer = torch.optim.Adam(model.parameters(), lr=how.rate)
            parts = [Examples(rows.input_ids, running) for rows, _, running in known]
            data = batches(parts, [how.batch // len(parts)] * len(parts), seed)

            def running_loss() -> Tensor:
                batch = next(data)
                logits = model(batch.input_ids)[:, 1:]
                return functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())

            fit(optimizer, running_loss, how.steps, None)

        parts = {str(at): rows for at, (rows, *_) in enumerate(known)}
        return train_or_load(model, fingerprint(how, parts), seed, CACHE, learn)

    def stages(self, seed: int) -> list[Stage]:
        """Return the only stage."""
        old = []
        for name, sign in (("sum", SUM), ("third", THIRD), ("changes", CHANGES)):
            learned, test, _ = moves(sign)
            probes, pool, _ = shuffled(learned, 50, 80, seed=seed)
            old.append(OldTask(name, probes, pool, test))
        task, test, _ = moves(RISES)
        return [Stage(tuple(old), task, test, 500, 32, _nadam)]


def _nadam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.NAdam(model.parameters(), lr=3e-3)
