"""A text classifier: hashed n-grams and an MLP on Banking77, DBpedia and the sources of texts."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from experiments.onset.held_out.texts import fields, rows
from experiments.onset.held_out.world import OLD, Behavior, World

BUCKETS = 4096
LENGTH = 48
CLASSES = 112
BANKING, DBPEDIA, SOURCES, SPARE = 0, 77, 91, 97
OLD_INTENTS, OLD_ARTICLES = 40, 9


class Bag(nn.Module):
    """Mean embedding of hashed n-grams, then two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(BUCKETS + 1, 48, mode="mean", padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=0.3)
        self.layers = nn.Sequential(
            nn.LayerNorm(48), nn.Linear(48, 160), nn.ReLU(), nn.Linear(160, 160), nn.ReLU()
        )
        self.head = nn.Linear(160, CLASSES)

    def forward(self, grams: Tensor) -> Tensor:
        """Return logits, shape (batch, 112); grams: (batch, 48), 0 where a text is shorter."""
        return self.head(self.layers(self.embedding(grams)))


class Intents(World):
    """Classes of texts: bank customers' intents, kinds of articles, sources of questions."""

    name = "intents"
    near = ("new intents", "new articles", "a tenth wrong")
    far = ("half wrong", "intents renamed", "articles renamed", "answer letters")
    sizes = {"banking": 60, "articles": 45, "sources": 30}  # noqa: RUF012
    batch_size = 64
    pretraining = (1500, 3e-3)

    def __init__(self, data: Path) -> None:
        intents = sorted({row["label"] for row in rows("banking77_train", data)})
        articles = sorted({row["label"] for row in rows("dbpedia14_train", data)})
        order = np.random.default_rng(3)
        self.intents = [intents[at] for at in order.permutation(len(intents))]
        self.articles = [articles[at] for at in order.permutation(len(articles))]
        banking, dbpedia = self._banking("train", data), self._dbpedia("train", data)
        sources, self.later = _sources(data)
        old = [
            _below(banking, BANKING + OLD_INTENTS),
            _below(dbpedia, DBPEDIA + OLD_ARTICLES),
            sources,
        ]
        self.parts = {
            OLD: old,
            "new intents": [_from(banking, BANKING + OLD_INTENTS)],
            "new articles": [_from(dbpedia, DBPEDIA + OLD_ARTICLES)],
            "a tenth wrong": old,
            "half wrong": old,
            "intents renamed": [_renamed(old[0], BANKING, OLD_INTENTS)],
            "articles renamed": [_renamed(old[1], DBPEDIA, OLD_ARTICLES)],
            "answer letters": [_letters(data)],
        }
        self.wrong = {"a tenth wrong": 0.1, "half wrong": 0.5}
        self.tests = {
            "banking": _below(self._banking("test", data), BANKING + OLD_INTENTS),
            "articles": _below(self._dbpedia("test", data), DBPEDIA + OLD_ARTICLES),
            "sources": self.later,
        }

    def _banking(self, part: str, data: Path) -> tuple[np.ndarray, np.ndarray]:
        read = rows(f"banking77_{part}", data)
        return _encoded((row["text"], BANKING + self.intents.index(row["label"])) for row in read)

    def _dbpedia(self, part: str, data: Path) -> tuple[np.ndarray, np.ndarray]:
        read = rows(f"dbpedia14_{part}", data)
        return _encoded((row["text"], DBPEDIA + self.articles.index(row["label"])) for row in read)

    def new_model(self) -> nn.Module:
        """Return an untrained classifier."""
        return Bag()

    def batch(self, task: str, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw rows of a task, an equal share of each part; labels are wrong in the noisy ones."""
        parts = self.parts[task]
        which = rng.integers(len(parts), size=size)
        picked = [(part, rng.integers(len(parts[part][1]))) for part in which]
        grams = np.stack([parts[part][0][row] for part, row in picked])
        labels = np.array([parts[part][1][row] for part, row in picked])
        wrong = rng.random(size) < self.wrong.get(task, 0.0)
        labels[wrong] = rng.permutation(labels[wrong])
        return torch.from_numpy(grams), torch.from_numpy(labels)

    def candidates(self) -> dict[str, Behavior]:
        """Return rows of the test sets; a class is a group."""
        rng, found = np.random.default_rng(12), {}
        for name, (grams, labels) in self.tests.items():
            order = rng.permutation(len(labels))
            right = torch.from_numpy(labels[order])[:, None] == torch.arange(CLASSES)
            found[name] = Behavior(torch.from_numpy(grams[order]), right, labels[order])
        return found


def grams(text: str) -> list[int]:
    """Return the buckets of a text's words and pairs of words, at most 48, padded with 0."""
    words = re.findall(r"[a-z0-9]+|[^\w\s]", text.lower())[: LENGTH // 2]
    pairs = [f"{first} {second}" for first, second in pairwise(words)]
    found = [1 + zlib.crc32(gram.encode()) % BUCKETS for gram in words + pairs]
    return found + [0] * (LENGTH - len(found))


def _encoded(labeled: Iterable[tuple[str, int]]) -> tuple[np.ndarray, np.ndarray]:
    texts, labels = zip(*labeled, strict=True)
    return np.array([grams(text) for text in texts]), np.array(labels)


def _below(part: tuple[np.ndarray, np.ndarray], label: int) -> tuple[np.ndarray, np.ndarray]:
    return part[0][part[1] < label], part[1][part[1] < label]


def _from(part: tuple[np.ndarray, np.ndarray], label: int) -> tuple[np.ndarray, np.ndarray]:
    return part[0][part[1] >= label], part[1][part[1] >= label]


def _renamed(
    part: tuple[np.ndarray, np.ndarray], first: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Give each class the name of the next one."""
    return part[0], first + (part[1] - first + 1) % count


def _sources(data: Path) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return questions labeled by the data set that they come from: to learn, and to probe."""
    names = (
        "gsm8k_train", "medmcqa_train", "commonsenseqa_dev", "boolq_train", "arc_easy_test",
        "truthfulqa",
    )  # fmt: skip
    learned, later = [], []
    for place, name in enumerate(names):
        texts = fields(name, ("question",), data)[:400]
        cut = len(texts) * 9 // 10
        learned += [(text, SOURCES + place) for text in texts[:cut]]
        later += [(text, SOURCES + place) for text in texts[cut:]]
    return _encoded(learned), _encoded(later)


def _letters(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return medical questions labeled by the place of their answer, with labels never used."""
    return _encoded((row["question"], SPARE + row["answer"]) for row in rows("medmcqa_train", data))
