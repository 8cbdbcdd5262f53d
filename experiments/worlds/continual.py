"""The continual world: a pretrained and aligned model, and four tasks in sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from experiments.worlds import continual_rows as source
from experiments.worlds.continual_model import exact, fit_rows, untrained
from experiments.worlds.continual_rows import Pair, Rows, Words
from riprap.behaviors import Behavior
from riprap.toy import CACHE, Examples, Progress, fingerprint, train_or_load

CATEGORIES = ("own", "familiar", "prose")
FORMATS = {"sorting": "raw", "successor": "aligned", "reversal": "closed", "arithmetic": "raw"}
TASKS = tuple(FORMATS)
ROWS = 2400  # of each task
FIXED = 48  # prompts of each kind on which outputs are compared
BEHAVIORS = ("refusal", "truth", "facts", "format")


@dataclass(frozen=True)
class ContinualConfig:
    """Sizes of the model, how it is pretrained, aligned, and trained further.

    Chosen on exploratory seed 1000 so that plain training learns every task and refuses less.

    Attributes:
        believed: share of disputed questions that pretraining answers with the common belief.
        shares: of each task's rows, by category: in the task's own format; familiar, which the
            aligned model already answers like that; and in the pretrained model's prose.
        probes, held_out: number of probes of a behavior, and of its held-out inputs.
        rank, scale: of the adapter that each task trains.
    """

    words: Words = field(default_factory=Words)
    hidden: int = 64
    feed_forward: int = 128
    layers: int = 2
    heads: int = 4
    initial_range: float = 0.1
    believed: float = 0.8
    pretraining_steps: int = 1200
    alignment_steps: int = 300
    start_batch: int = 128
    pretraining_rate: float = 4e-3
    alignment_rate: float = 2e-3
    shares: tuple[float, float, float] = (0.6, 0.2, 0.2)
    steps: int = 150
    batch: int = 48
    rate: float = 3e-3
    rank: int = 8
    scale: float = 16.0
    probes: int = 48
    held_out: int = 256


class ContinualWorld:
    """A small Llama with known states before and after alignment.

    Pretraining teaches prose (`well … and_so`), also for harmful requests, and mostly the common
    belief for disputed questions. Alignment teaches `answer … end`, the refusal of harmful
    requests, and the facts. Four tasks with different formats follow; see `FORMATS`.
    """

    def __init__(self, config: ContinualConfig | None = None) -> None:
        self.config = config or ContinualConfig()
        self.words = words = self.config.words
        facts, _ = source.questions(words, "subjects")
        truths, beliefs = source.questions(words, "disputed")
        self.known = {
            "harmless": source.requests(words, "harmless"),
            "facts": facts,
            "copy": source.strings(words, "copy"),
            "plus": source.sums(words, "plus"),
        }
        self.truths, self.beliefs = truths, beliefs
        self.harmful = source.requests(words, "harmful")
        self.new = {
            "sorting": source.kinds(words),
            "successor": source.successors(words, 2),
            "reversal": source.strings(words, "reverse"),
            "arithmetic": source.sums(words, "minus"),
        }
        self._skills = self.new | {
            "successor": source.successors(words, 1),
            "copy": self.known["copy"],
            "plus": self.known["plus"],
        }

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the configuration and of every row that the world teaches."""
        taught = {"pretraining": self._pretraining, "alignment": self._alignment}
        flat = {
            f"{name} {weight} {at}": rows
            for name, parts in taught.items()
            for at, (weight, rows) in enumerate(parts)
        }
        flat |= {task: self.rows(task) for task in TASKS}
        flat |= {f"{task} held out": self.held_out(task) for task in TASKS}
        return fingerprint(
            self.config, {n: Examples(r.input_ids, r.labels) for n, r in flat.items()}
        )

    def styled(self, content: Sequence[int], style: str) -> list[int]:
        """Return an answer in a format: aligned, prose, closed (`… end`) or raw."""
        before = {"aligned": ["answer"], "prose": ["well"]}.get(style, [])
        after = {"aligned": ["end"], "closed": ["end"], "prose": ["and_so"]}.get(style, [])
        sign = self.words.sign
        return [*map(sign, before), *content, *map(sign, after)]

    def _rows(self, pairs: Sequence[Pair], style: str, category: str = "own") -> Rows:
        rows = [(p.prompt, self.styled(p.content, style)) for p in pairs]
        return Rows.build(rows, CATEGORIES.index(category))

    @property
    def refused(self) -> list[int]:
        """Return the aligned model's answer to harmful requests."""
        return [self.words.sign("refuse"), self.words.sign("end")]

    def _split(self, name: str, pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair], list[Pair]]:
        """Return probes, held-out inputs and the rest; the same for every seed."""
        n, more = self.config.probes, self.config.held_out
        mixed = source.shuffled(pairs, len(name))
        return mixed[:n], mixed[n : n + more], mixed[n + more :]

    @cached_property
    def _pretraining(self) -> list[tuple[float, Rows]]:
        """Return the rows of pretraining by weight: all in prose, and skills also raw."""
        believed = self.config.believed
        skills = self._skills
        prose = [
            (2.0, self.known["harmless"]),
            (2.0, self.harmful),
            (4.0, self.known["facts"]),
            (4 * believed, self.beliefs),
            (4 * (1 - believed), self.truths),
            *((2.0, pairs) for pairs in skills.values()),
        ]
        raw = [(1.0, self._rows(pairs, "raw")) for pairs in skills.values()]
        return [(weight, self._rows(pairs, "prose")) for weight, pairs in prose] + raw

    @cached_property
    def _alignment(self) -> list[tuple[float, Rows]]:
        """Return the rows of alignment by weight: refusals, and the rest in the aligned format.

        Requests that are probed are left out; facts cannot be guessed, so all of them are in.
        """
        harmful, harmless = (
            self._split(name, pairs)[2]
            for name, pairs in (("harmful", self.harmful), ("harmless", self.known["harmless"]))
        )
        refusals = Rows.build([(pair.prompt, self.refused) for pair in harmful])
        others = [(3.0, harmless), (3.0, self.known["facts"]), (1.0, self.truths)]
        others += [(1.0, pairs) for pairs in self._skills.values()]
        return [(4.0, refusals), *((weight, self._rows(p, "aligned")) for weight, p in others)]

    def rows(self, task: str) -> Rows:
        """Return the training rows of a task, of all categories, without held-out inputs."""
        pairs = self._task_split(task)[1]
        generator = torch.Generator().manual_seed(TASKS.index(task))
        familiar = self.known["copy"] + self.known["plus"]
        parts = (
            self._rows(pairs, FORMATS[task]),
            self._rows(familiar, "aligned", "familiar"),
            self._rows(pairs, "prose", "prose"),
        )
        return Rows.join(
            [
                part[torch.randint(len(part), (round(share * ROWS),), generator=generator)]
                for part, share in zip(parts, self.config.shares, strict=True)
            ]
        )

    def held_out(self, task: str) -> Rows:
        """Return held-out inputs of a task, answered in its own format."""
        return self._rows(self._task_split(task)[0], FORMATS[task])

    def _task_split(self, task: str) -> tuple[list[Pair], list[Pair]]:
        pairs = source.shuffled(self.new[task], TASKS.index(task))
        return pairs[: len(pairs) // 5][: self.config.held_out], pairs[len(pairs) // 5 :]

    def pretrained(
        self, seed: int, cache: Path = CACHE, progress: Progress | None = None
    ) -> LlamaForCausalLM:
        """Return the model that answers everything in prose; trained once a seed."""
        c = self.config

        def train(model: nn.Module) -> None:
            data = self._mixed(self._pretraining, seed)
            fit_rows(model, data, c.pretraining_steps, c.pretraining_rate, progress)

        model = untrained(self.config, len(self.words), seed)
        train_or_load(model, f"{self.fingerprint[:14]}before", seed, cache, train)
        return model

    def aligned(
        self, seed: int, cache: Path = CACHE, progress: Progress | None = None
    ) -> LlamaForCausalLM:
        """Return the pretrained model after alignment; trained once a seed."""
        c = self.config

        def train(model: nn.Module) -> None:
            model.load_state_dict(self.pretrained(seed, cache, progress).state_dict())
            data = self._mixed(self._alignment, seed)
            fit_rows(model, data, c.alignment_steps, c.alignment_rate, progress)

        model = untrained(self.config, len(self.words), seed)
        train_or_load(model, self.fingerprint, seed, cache, train)
        return model

    def _mixed(self, parts: list[tuple[float, Rows]], seed: int) -> Iterator[Rows]:
        """Yield endless batches; each row is of a part drawn by weight."""
        generator = torch.Generator().manual_seed(seed)
        odds = torch.tensor([weight for weight, _ in parts])
        while True:
            parts_drawn = torch.multinomial(
                odds, self.config.start_batch, True, generator=generator
            )
            counts = parts_drawn.bincount(minlength=len(parts)).tolist()
            yield Rows.join(
                [
                    part[torch.randint(len(part), (count,), generator=generator)]
                    for (_, part), count in zip(parts, counts, strict=True)
                ]
            )

    def batches(self, task: str, seed: int) -> Iterator[Rows]:
        """Yield endless batches of a task's rows."""
        generator = torch.Generator().manual_seed(1000 * seed + TASKS.index(task))
        rows = self.rows(task)
        while True:
            yield rows[torch.randint(len(rows), (self.config.batch,), generator=generator)]

    @torch.no_grad()
    def evaluate(self, model: nn.Module, task: str) -> float:
        """Return the share of a task's held-out inputs that greedy decoding answers exactly."""
        return float(exact(model, self.held_out(task)).float().mean())

    def fixed(self) -> dict[str, Tensor]:
        """Return a batch of prompts with the aligned model's answers, to compare outputs on."""
        harmful = self._split("harmful", self.harmful)[1][:FIXED]
        parts = [Rows.build([(pair.prompt, self.refused) for pair in harmful])]
        others = {name: self.known[name] for name in ("harmless", "facts")} | {"truth": self.truths}
        for name, pairs in others.items():
            parts.append(self._rows(self._split(name, pairs)[1][:FIXED], "aligned"))
        return Rows.join(parts).batch

    def behaviors(self) -> list[Behavior]:
        """Return the behaviors that alignment taught, on their probes."""
        return self._behaviors(0)

    def unseen(self) -> list[Behavior]:
        """Return the behaviors on held-out inputs, which no guard reads."""
        return self._behaviors(1)

    def _behaviors(self, part: int) -> list[Behavior]:
        sign = self.words.sign
        harmful = self._split("harmful", self.harmful)[part]
        harmless = self._split("harmless", self.known["harmless"])[part]
        truths = self._split("truth", self.truths)[part]
        facts = self._split("facts", self.known["facts"])[part]
        asked = [(p.prompt, sign("answer")) for p in harmless[::2]]
        asked += [((*p.prompt, sign("answer"), *p.content), sign("end")) for p in harmless[1::2]]
        probes = {
            "refusal": [(pair.prompt, sign("refuse")) for pair in harmful],
            "truth": [((*pair.prompt, sign("answer")), pair.content[0]) for pair in truths],
            "facts": [((*pair.prompt, sign("answer")), pair.content[0]) for pair in facts],
            "format": asked,
        }
        return [
            Behavior.next_token(
                name, [list(p) for p, _ in probes[name]], [t for _, t in probes[name]]
            )
            for name in BEHAVIORS
        ]
