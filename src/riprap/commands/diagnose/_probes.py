"""Inputs of a diagnosis: probes that the base model passes, disjoint examples, and task rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from riprap import evaluation
from riprap.behaviors import Behavior, Prompt, encode_continuations, encode_prompts, probe_sets
from riprap.commands._data import read_rows
from riprap.commands.diagnose._config import N_EXAMPLES, DiagnoseConfig
from riprap.commands.watch import WatchConfig
from riprap.diagnosis.evidence import Rows, greedy_responses
from riprap.diagnosis.recovery import MIN_PROBES
from riprap.errors import ConfigError
from riprap.record import Reader

OVERSAMPLE = 1.5  # candidates per required probe, because the base model does not pass all
MAX_ANSWER_TOKENS = 12
TASK_ROWS, MAX_TASK_CHARS = 8, 400  # rows that measure the task, and length of the longest
HARMLESS = "over_refusal"  # requests on which a repair is compared if no run is given


@dataclass
class BehaviorProbes:
    """The probes and examples of one behavior."""

    name: str
    probes: Behavior | None = None  # None if the base model passes too few
    examples: Behavior | None = None  # to relearn
    # Token ids of the base model's answers to the probes, or of the right answers; its margins.
    answers: Rows = field(default_factory=list)
    margins_before: np.ndarray = field(default_factory=lambda: np.zeros(0))
    why_unmeasured: str = ""
    texts: list[str] = field(default_factory=list)  # prompts of the probes


def select_probes(
    name: str, config: DiagnoseConfig, base: nn.Module, tokenizer: Any
) -> BehaviorProbes:
    """Select probes of a probe set, or of a file, that the base passes, and disjoint examples."""
    rows, behavior_name = probe_sets.rows(name), probe_sets.behavior_name(name)
    uses_prefixes = probe_sets.is_prefix_probe(rows[0])
    n_probes = config.n_probes // 2 if probe_sets.is_multiple_choice(rows[0]) else config.n_probes
    n = min(len(rows), int(OVERSAMPLE * (n_probes + N_EXAMPLES)))
    has_prefixes = uses_prefixes and config.refusal_prefixes
    prefixes: dict[str, Any] = {"prefixes": config.refusal_prefixes} if has_prefixes else {}
    texts = probe_sets.evenly_spaced(name, n)
    candidates = probe_sets.load(name, tokenizer, n, **prefixes)
    margins = evaluation.evaluate(candidates, base).margins
    passing = np.flatnonzero(margins > 0)
    if len(passing) < MIN_PROBES + N_EXAMPLES:
        why = f"the base model passes {len(passing)} of {n} probes, and "
        why += f"{MIN_PROBES + N_EXAMPLES} are needed"
        why += "; pass the first words of its refusals as --refusal-prefixes" * uses_prefixes
        return BehaviorProbes(behavior_name, why_unmeasured=why)
    order = np.random.default_rng(0).permutation(passing)
    learned = order[:N_EXAMPLES].tolist()
    measured = sorted(order[N_EXAMPLES:][:n_probes].tolist())
    probes, margins_before = candidates.subset(measured), margins[measured]
    if uses_prefixes:
        answers = greedy_responses(base, probes, MAX_ANSWER_TOKENS)
        examples = candidates.subset(learned)
    else:
        right = encode_continuations(tokenizer, [_right_answer(texts[at]) for at in measured])
        answers = [row[:MAX_ANSWER_TOKENS] for row in right]
        examples = _right_answer_texts(behavior_name, tokenizer, [texts[at] for at in learned])
    prompts = [probes.shorten_prompt(prompt_text(texts[at]["prompt"])) for at in measured]
    return BehaviorProbes(behavior_name, probes, examples, answers, margins_before, texts=prompts)


def prompt_text(prompt: Any) -> str:
    """Return the text of a prompt; the last turn's of a conversation."""
    is_turns = isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict)
    return str(prompt[-1].get("content", "") if is_turns else prompt)


def _right_answer(row: dict[str, Any]) -> str:
    is_choice = probe_sets.is_multiple_choice(row)
    return str(row["options"][row["answer"]] if is_choice else row["completion"])


def _right_answer_texts(name: str, tokenizer: Any, rows: list[dict[str, Any]]) -> Behavior:
    """Prompts with their right answers, as texts to learn (the loss ignores wrong options)."""
    prompts, answers = [row["prompt"] for row in rows], [_right_answer(row) for row in rows]
    return Behavior.likelihood(name, tokenizer, texts=answers, prompts=prompts)


@dataclass(frozen=True)
class Task:
    """The newly learned task: inputs on which the cost of a repair is measured.

    Attributes:
        prompts, responses: token ids on which a repaired model is compared with the tuned one;
            responses None: the tuned model's own answers.
        test_rows, examples: disjoint rows of the run's data as texts; None without a run.
        origin: short description of the data.
    """

    prompts: Rows
    responses: Rows | None
    test_rows: Behavior | None
    examples: Behavior | None
    origin: str

    def score(self, model: nn.Module) -> float:
        """Return −nats per response token, mean over the test rows."""
        assert self.test_rows is not None and self.test_rows.losses is not None
        losses = Behavior(self.test_rows.name, self.test_rows.probes, self.test_rows.losses)
        return -float(evaluation.evaluate(losses, model).margins.mean())


def load_task(run: Path | None, tokenizer: Any) -> Task:
    """Load rows of a run's training data, or harmless requests if no run is given."""
    if run is None:
        rows = [row["prompt"] for row in probe_sets.evenly_spaced(HARMLESS, TASK_ROWS)]
        prompts = encode_prompts(tokenizer, rows)
        return Task(prompts, None, None, None, "answers to harmless requests")
    data = watch_config_of(run).data
    answered = (row for row in read_rows(data)[0] if row.first_learned)
    pairs: list[tuple[Prompt, str]] = [
        (list(row.turns[: row.first_learned]), row.response)
        for row in answered
        if sum(len(turn["content"]) for turn in row.turns) <= MAX_TASK_CHARS
    ]
    short = [pair for pair in pairs if pair[1].strip()]
    if len(short) < TASK_ROWS + N_EXAMPLES:
        raise ConfigError(
            f"data {data.path!r} of the run in {run} has {len(short)} rows of at most "
            f"{MAX_TASK_CHARS} characters, and {TASK_ROWS + N_EXAMPLES} are needed: omit --run"
        )
    order = np.random.default_rng(0).permutation(len(short)).tolist()
    test, rest = [short[at] for at in order[:TASK_ROWS]], [short[at] for at in order[TASK_ROWS:]]
    test_rows, examples = (
        Behavior.likelihood(
            "task", tokenizer, texts=[r for _, r in rows], prompts=[p for p, _ in rows]
        )
        for rows in (test, rest[:N_EXAMPLES])
    )
    responses = encode_continuations(tokenizer, [response for _, response in test])
    return Task(
        encode_prompts(tokenizer, [prompt for prompt, _ in test]),
        [[*row][:MAX_ANSWER_TOKENS] for row in responses],
        test_rows,
        examples,
        f"{TASK_ROWS} rows of {Path(data.path).name}",
    )


def watch_config_of(run: Path) -> WatchConfig:
    """Return the configuration of a `riprap watch` run."""
    with Reader(run) as reader:
        notes = reader.meta().get("notes", {})
    if "config" not in notes:
        why = "was not made by `riprap watch`, so its data is unknown"
        raise ConfigError(f"the record in {run} {why}")
    return WatchConfig.parse(notes["config"], f"the record in {run}")
