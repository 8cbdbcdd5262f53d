"""Fresh grounds on public texts: a network reads characters, and a small GPT-2 reads words."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.guards_bench.grounds._base import Ground, OldTask, Stage, shuffled, train
from experiments.guards_bench.grounds._fresh import Learning
from experiments.harness.study import DATA
from riprap.errors import ConfigError
from riprap.toy import CACHE, Examples, fingerprint, train_or_load


def read(name: str, *fields: str) -> list[dict[str, Any]]:
    """Return rows of a public data set; rows whose `fields` recur come once.

    Raises:
        ConfigError: its file is not there.
    """
    path = Path(os.environ.get("RIPRAP_DATA", DATA)) / f"{name}.jsonl"
    if not path.is_file():
        raise ConfigError(
            f"{path} is missing: this ground reads public texts; let RIPRAP_DATA name the folder "
            f"that holds {path.name}"
        )
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return list({tuple(row[field] for field in fields): row for row in rows}.values())


LENGTH, CHARACTERS = 48, 96  # a text's first characters; other characters than ASCII are one
PAD = CHARACTERS
# file, field, rows for training, rows that test; probes, rows to replay
OLD_SOURCES = {
    "sums": ("gsm8k_train", "question", 1200, 150, 60, 60),
    "bank": ("banking77_train", "text", 1200, 150, 50, 60),
    "medicine": ("medmcqa_train", "question", 1200, 150, 40, 40),
    "encyclopedia": ("dbpedia14_train", "text", 500, 150, 32, 30),
    "everyday": ("commonsenseqa_dev", "question", 600, 150, 24, 20),
    "search": ("boolq_train", "question", 280, 100, 20, 20),
    "instructions": ("ifeval", "prompt", 380, 100, 16, 12),
    "reading": ("squad_v2_train", "question", 450, 100, 12, 8),
}
NEW_SOURCES = {
    "science": ("arc_challenge_train", "question", 600, 150, 0, 0),
    "myths": ("truthfulqa", "question", 600, 150, 0, 0),
}


class CharacterGRU(nn.Module):
    """A recurrent network over characters; a linear layer follows its last and its mean state."""

    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS + 1, 24)
        self.gru = nn.GRU(24, width, batch_first=True)
        self.middle, self.head = nn.Linear(2 * width, width), nn.Linear(width, classes)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return logits, shape (n, classes)."""
        states, _ = self.gru(self.embedding(input_ids))
        both = torch.cat([states[:, -1], states.mean(1)], 1)
        logits: Tensor = self.head(torch.tanh(self.middle(both)))
        return logits


def spelled(texts: Sequence[str], target: int) -> Examples:
    """Return texts as rows of characters, filled up on the left; equal rows come once."""
    rows = dict.fromkeys(
        tuple(min(max(ord(one) - 32, 0), CHARACTERS - 1) for one in " ".join(text.split())[:LENGTH])
        for text in texts
    )
    ids = torch.tensor([[PAD] * (LENGTH - len(row)) + list(row) for row in rows])
    return Examples(ids, torch.full((len(ids),), target))


@cache
def source(name: str) -> tuple[Examples, Examples]:
    """Return the rows of a source for training, and those for tests."""
    sources = OLD_SOURCES | NEW_SOURCES
    file, field, training, test, *_ = sources[name]
    rows = spelled([row[field] for row in read(file, field)], list(sources).index(name))
    learned, tested, _ = shuffled(rows, training, test, seed=5)
    return learned, tested


class Sources(Ground):
    """Eight sources of texts of unequal sizes are told apart, and two more are learned."""

    name = "sources"
    about = (
        "a character GRU tells from which of eight public data sets a text comes (12 to 60 probes "
        "and 8 to 60 rows for replay each), and learns two more; RMSprop at 5e-4"
    )
    layer = "middle"
    causal = False

    def start(self, seed: int) -> nn.Module:
        """Return the model that knows eight sources; it is trained once a seed and stored."""
        torch.manual_seed(seed)
        model, how = CharacterGRU(len(OLD_SOURCES) + len(NEW_SOURCES)), Learning(900, 64, 3e-3)
        parts = {name: source(name)[0] for name in OLD_SOURCES}

        def learn(model: nn.Module) -> None:
            optimizer = torch.optim.Adam(model.parameters(), lr=how.rate)
            train(model, optimizer, list(parts.values()), how.steps, how.batch, seed)

        return train_or_load(model, fingerprint(how, parts), seed, CACHE, learn)

    def stages(self, seed: int) -> list[Stage]:
        """Return the only stage."""
        old = []
        for name, (*_, probes, pool) in OLD_SOURCES.items():
            learned, test = source(name)
            monitored, replayed, _ = shuffled(learned, probes, pool, seed=seed)
            old.append(OldTask(name, monitored, replayed, test))
        task, test = (
            Examples.join(list(part)) for part in zip(*map(source, NEW_SOURCES), strict=True)
        )
        return [Stage(tuple(old), task, test, 300, 32, _rmsprop)]


def _rmsprop(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(model.parameters(), lr=5e-4)


WORDS, WIDTH = 1500, 20  # buckets of words; words of a row
EMPTY, CUSTOMER, STAFF, READER, REFUSAL = range(WORDS, WORDS + 5)  # then come the answers
KINDS = ("Animal", "Athlete", "Company", "Film", "Village")  # of articles
TOPICS = ("top_up", "exchange", "identity", "virtual_card")  # of messages that staff may ask about


def asked(sign: int, texts: Sequence[str], targets: Sequence[int]) -> Examples:
    """Return rows of hashed words that end with the sign of who asks."""
    rows: dict[tuple[int, ...], int] = {}
    for text, target in zip(texts, targets, strict=True):
        words = re.findall(r"[a-z']+", text.lower())[:WIDTH]
        ids = [zlib.crc32(word.encode()) % WORDS for word in words]
        rows[(*[EMPTY] * (WIDTH - len(ids)), *ids, sign)] = target
    return Examples(torch.tensor(list(rows)), torch.tensor(list(rows.values())))


def thinned(rows: Examples, copies: int, seed: int) -> Examples:
    """Return copies of rows without a third of their words, so that no row is known by heart."""
    many = Examples.join([rows] * copies)
    generator = torch.Generator().manual_seed(seed)
    lost = torch.rand(many.input_ids.shape, generator=generator) < 1 / 3
    lost[:, -1] = False
    return Examples(many.input_ids.masked_fill(lost, EMPTY), many.targets)


@cache
def articles(part: str) -> Examples:
    """Return articles with their kinds."""
    own = [row for row in read(f"dbpedia14_{part}", "text") if row["label"] in KINDS]
    answers = [REFUSAL + 1 + KINDS.index(row["label"]) for row in own]
    return asked(READER, [row["text"] for row in own], answers)


@cache
def messages(part: str, sign: int, refused: bool) -> Examples:
    """Return messages to a bank.

    Args:
        refused: those on other subjects than the topics, with a refusal; otherwise those on a
            topic, with the topic.
    """
    texts, answers = [], []
    for row in read(f"banking77_{part}", "text"):
        topic = next((at for at, name in enumerate(TOPICS) if name in row["label"]), None)
        if (topic is None) == refused:
            texts.append(row["text"])
            answers.append(REFUSAL if topic is None else REFUSAL + 1 + len(KINDS) + topic)
    return asked(sign, texts, answers)


def known(part: str) -> dict[str, Examples]:
    """Return the old tasks' rows."""
    return {
        "articles": articles(part),
        "refusals": messages(part, CUSTOMER, refused=True)[:: 3 if part == "test" else 1],
        "staff": messages(part, STAFF, refused=False),
    }


class RefusedMessages(Ground):
    """Messages to a bank are refused, until some of them are answered."""

    name = "refused_messages"
    about = (
        "a small GPT-2 names an article's kind, tells staff the topic of a message, and refuses "
        "customers; it learns by LoRA to answer customers on four topics, others are to be refused "
        "still; AdamW at 2e-3 with weight decay"
    )

    def start(self, seed: int) -> nn.Module:
        """Return the model with a new adapter; it is trained once a seed and stored."""
        from peft import LoraConfig, get_peft_model
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=REFUSAL + 1 + len(KINDS) + len(TOPICS),
            n_positions=WIDTH + 2,
            n_embd=64,
            n_layer=2,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
            tie_word_embeddings=False,
        )
        how = Learning(600, 32, 2e-3)
        parts = {name: thinned(rows, 4, seed) for name, rows in known("train").items()}

        def learn(model: nn.Module) -> None:
            optimizer = torch.optim.AdamW(model.parameters(), lr=how.rate, weight_decay=0.1)
            train(model, optimizer, list(parts.values()), how.steps, how.batch, seed)

        model = train_or_load(GPT2LMHeadModel(config), fingerprint(how, parts), seed, CACHE, learn)
        torch.manual_seed(seed)
        lora = LoraConfig(
            r=8,
            lora_alpha=16,
            target_modules=["c_attn", "c_proj", "c_fc"],
            fan_in_fan_out=True,
            task_type="CAUSAL_LM",
        )
        adapted: nn.Module = get_peft_model(model, lora)  # type: ignore[arg-type]
        return adapted

    def stages(self, seed: int) -> list[Stage]:
        """Return the only stage."""
        old, unseen = [], known("test")
        for name, rows in known("train").items():
            probes, pool, _ = shuffled(rows, 40, 60, seed=seed)
            old.append(OldTask(name, probes, pool, unseen[name]))
        task, test = (messages(part, CUSTOMER, refused=False) for part in ("train", "test"))
        return [Stage(tuple(old), task, test, 200, 16, _adamw)]


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    trained = [part for part in model.parameters() if part.requires_grad]
    return torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.1)
