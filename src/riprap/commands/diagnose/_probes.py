"""What a diagnosis reads: probes that the base model passes, and examples kept apart from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from riprap import evaluation as probing
from riprap.behaviors import Behavior, encode_continuations, encode_prompts
from riprap.behaviors import probe_sets as packs
from riprap.commands.diagnose._config import EXAMPLES, DiagnoseConfig
from riprap.commands.watch import WatchConfig, load_rows
from riprap.diagnosis.evidence import Rows, responses_of
from riprap.diagnosis.recovery import FEWEST
from riprap.errors import ConfigError
from riprap.record import Reader

SPARE = 1.5  # how many more probes are tried, since the base model does not pass all
ANSWER = 12  # tokens of an answer
TASK_ROWS, TASK_TEXT = 8, 400  # rows that measure the task, and characters of the longest
HARMLESS = "over_refusal"  # requests on which a repair is compared, where no run is given


@dataclass
class Subject:
    """A behaviour that is looked at.

    Attributes:
        probes: those that measure; None where the base model passes too few, as `why` says.
        examples: of the same, to be learned again.
        answers: token ids of what the base model answers to the probes, or of the right answers.
        before: margins of the base model on the probes.
    """

    name: str
    probes: Behavior | None = None
    examples: Behavior | None = None
    answers: Rows = field(default_factory=list)
    before: np.ndarray = field(default_factory=lambda: np.zeros(0))
    why: str = ""


def subject(name: str, config: DiagnoseConfig, base: nn.Module, tokenizer: Any) -> Subject:
    """The probes of a pack or file, of which the base model passes all.

    Args:
        name: of a pack, or a file of one's own.
        base: the model as it was before tuning.
    """
    rows, called = packs.rows(name), packs.title(name)
    opens, several = packs.opens(rows[0]), packs.chooses(rows[0])
    wanted = config.probes // 2 if several else config.probes
    n = min(len(rows), int(SPARE * (wanted + EXAMPLES)))
    given = {"openers": config.openers} if opens and config.openers else {}
    texts, pool = packs.spread(name, n), packs.load(name, tokenizer, n, **given)
    margins = probing.look(pool, base).margins
    passing = np.flatnonzero(margins > 0)
    if len(passing) < FEWEST + EXAMPLES:
        return Subject(
            called,
            why=f"the base model passes {len(passing)} of {n} probes, and {FEWEST + EXAMPLES} are "
            "needed: it has too little of this to lose"
            + ("; name what its refusals begin with by --openers" if opens else ""),
        )
    order = np.random.default_rng(0).permutation(passing)
    learned, measured = order[:EXAMPLES].tolist(), sorted(order[EXAMPLES:][:wanted].tolist())
    probes = pool.subset(measured)
    if opens:
        answers = responses_of(base, probes, ANSWER)
        return Subject(called, probes, pool.subset(learned), answers, margins[measured])
    right = encode_continuations(tokenizer, [_right(texts[at]) for at in measured])
    examples = _taught(called, tokenizer, [texts[at] for at in learned])
    return Subject(called, probes, examples, [row[:ANSWER] for row in right], margins[measured])


def _right(row: dict[str, Any]) -> str:
    """The right answer of a row."""
    return str(row["options"][row["answer"]] if packs.chooses(row) else row["completion"])


def _taught(name: str, tokenizer: Any, rows: list[dict[str, Any]]) -> Behavior:
    """The right answers alone, as texts to be learned: the loss is that of the choice."""
    prompts, answers = [row["prompt"] for row in rows], [_right(row) for row in rows]
    return Behavior.likelihood(name, tokenizer, prompts, answers)


@dataclass
class Task:
    """What the model newly learned, as far as it is known.

    Attributes:
        prompts, responses: token ids, on which a repair is compared with the model; no responses:
            the model's own answers are taken.
        measured, examples: rows of the run's data as texts; None without a run.
        origin: what it is, in words.
    """

    prompts: Rows
    responses: Rows | None
    measured: Behavior | None
    examples: Behavior | None
    origin: str

    def score(self, model: nn.Module) -> float:
        """−nats per response token, mean over rows."""
        assert self.measured is not None and self.measured.losses is not None
        losses = self.measured.losses
        return -float(probing.look(_as_margins(self.measured, losses), model).margins.mean())


def _as_margins(behavior: Behavior, losses: Any) -> Behavior:
    return Behavior(behavior.name, behavior.probes, losses)


def task_of(run: Path | None, tokenizer: Any) -> Task:
    """The rows that a run trained on, or harmless requests where no run is given.

    Raises:
        ConfigError: the run's record or its data cannot be read.
    """
    if run is None:
        rows = [row["prompt"] for row in packs.spread(HARMLESS, TASK_ROWS)]
        prompts = encode_prompts(tokenizer, rows)
        return Task(prompts, None, None, None, "answers to harmless requests")
    data = configured(run).data
    pairs = [
        (row["prompt"][0]["content"], row["completion"][0]["content"]) for row in load_rows(data)
    ]
    short = [pair for pair in pairs if sum(map(len, pair)) <= TASK_TEXT and pair[1].strip()]
    if len(short) < TASK_ROWS + EXAMPLES:
        raise ConfigError(
            f"data {data.path!r} of the run in {run} has {len(short)} rows of at most {TASK_TEXT} "
            f"characters, and {TASK_ROWS + EXAMPLES} are needed: leave out --run"
        )
    order = np.random.default_rng(0).permutation(len(short)).tolist()
    parts = [short[at] for at in order[:TASK_ROWS]], [short[at] for at in order[TASK_ROWS:]]
    measured, examples = (
        Behavior.likelihood("task", tokenizer, [p for p, _ in rows], [r for _, r in rows])
        for rows in (parts[0], parts[1][:EXAMPLES])
    )
    asked = [prompt for prompt, _ in parts[0]]
    said = [[*row][:ANSWER] for row in encode_continuations(tokenizer, [r for _, r in parts[0]])]
    prompts = encode_prompts(tokenizer, asked)
    return Task(prompts, said, measured, examples, f"{TASK_ROWS} rows of {Path(data.path).name}")


def configured(run: Path) -> WatchConfig:
    """What a run of `riprap watch` was asked for.

    Raises:
        ConfigError: there is no record of such a run.
    """
    with Reader(run) as reader:
        notes = reader.meta().get("notes", {})
    if "config" not in notes:
        raise ConfigError(
            f"the record in {run} is not one that `riprap watch` made: its data is not known"
        )
    return WatchConfig.parse(notes["config"], f"the record in {run}")
