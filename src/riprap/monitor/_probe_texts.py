"""Texts for the record: the prompts of the probes, and how the model begins to answer them.

The probes may be harmful requests. So texts are short, and those of a harmful behavior shorter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from riprap._text import shorten
from riprap.behaviors import Behavior, ProbeSet
from riprap.detectors import BehaviorHistory
from riprap.evaluation import ProbeResult
from riprap.monitor._resilient_record import ResilientRecord
from riprap.record import ANSWERS

MAX_TOKENS = 12  # of an answer
MAX_LONGER = 4  # broken probes of a behavior whose answers are generated after the last step


@dataclass
class UnwrittenAnswers:
    """Beginnings of a behavior's answers at one evaluation, as token ids."""

    behavior: Behavior
    rows: list[list[int]]
    finite: list[bool]  # whether the probe's margin is a number

    def texts(self) -> dict[str, str]:
        """Return the answers as texts, by number of the probe."""
        if self.behavior.tokenizer is None:
            return {}
        pairs = zip(self.rows, self.finite, strict=True)
        return {str(i): _decode(self.behavior, row) for i, (row, ok) in enumerate(pairs) if ok}


@dataclass
class ProbeTexts:
    """Prompts and answers of a run, written into its record; a failure is told once, and ends them.

    Attributes:
        wanted: whether texts are read at all.
        record: the run's record.
    """

    record: ResilientRecord
    wanted: bool = True
    _step: int = 0  # of the last evaluation, and its answers that are not written yet
    _unwritten: dict[str, UnwrittenAnswers] = field(default_factory=dict)

    def fail(self, step: int, error: Exception) -> None:
        """Record and tell that texts cannot be read; none will be read from now on."""
        self.wanted, self._unwritten = False, {}
        self.record.add_failure(step, "texts", error)

    def add_prompts(
        self, facts: Iterable[dict[str, Any]], behaviors: Iterable[Behavior]
    ) -> Exception | None:
        """Add the shortened prompts, as `texts`, to what the record tells of the behaviors.

        Either those of all behaviors, or none; then return why, for `fail` once the record begins.
        """
        try:
            texts = [
                prompts_of(behavior) if self.wanted and behavior.texts is not None else None
                for behavior in behaviors
            ]
        except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
            return error
        for own, found in zip(facts, texts, strict=True):
            own |= {} if found is None else {"texts": found}
        return None

    def note(
        self, step: int, results: Mapping[str, ProbeResult], behaviors: Iterable[Behavior]
    ) -> None:
        """Keep the answers of the last evaluation, until it is known whether they are needed."""
        self._step, self._unwritten = step, {}
        for behavior in behaviors if self.wanted else ():
            result = results.get(behavior.name)
            if result is not None and result.answers_error:
                self.fail(step, RuntimeError(result.answers_error))
                return
            if result is not None and result.answers is not None:
                finite = np.isfinite(result.margins).tolist()
                self._unwritten[behavior.name] = UnwrittenAnswers(behavior, result.answers, finite)

    def write(self, names: Iterable[str] | None = None) -> None:
        """Write the answers of the last evaluation, unless they are written.

        Args:
            names: of behaviors; None: all.
        """
        chosen = list(self._unwritten) if names is None else list(names)
        found = [(name, self._unwritten.pop(name)) for name in chosen if name in self._unwritten]
        try:
            self._add({name: own.texts() for name, own in found})
        except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
            self.fail(self._step, error)

    def write_longer(
        self,
        step: int,
        model: nn.Module,
        behaviors: Iterable[Behavior],
        histories: Mapping[str, BehaviorHistory],
    ) -> None:
        """Generate and write longer answers to some probes that passed at the start and fail now.

        Not where a probe asks for one token, nor if the last evaluation was before this step.
        """
        try:
            for behavior in behaviors if self.wanted and step == self._step else ():
                broken = _broken(histories[behavior.name])[:MAX_LONGER]
                if broken and behavior.tokenizer is not None and behavior.margins.targets is None:
                    self._add({behavior.name: _generated(model, behavior, broken)})
        except Exception as error:  # noqa: BLE001 an observer's failure never ends a run
            self.fail(self._step, error)

    def _add(self, answers: dict[str, dict[str, str]]) -> None:
        said = {name: own for name, own in answers.items() if own}
        if said:
            self.record.add_event(self._step, ANSWERS, {"answers": said})


def prompts_of(behavior: Behavior) -> list[str]:
    """Return the prompts, or the labels that the user gave the probes, shortened.

    Raises:
        ValueError: they are no list with a text for each probe.
    """
    texts = behavior.texts
    if not isinstance(texts, list | tuple):
        raise ValueError(f"behavior {shorten(behavior.name)!r}: `texts` is no list of texts")
    if isinstance(behavior.probes, ProbeSet) and len(texts) != len(behavior):
        raise ValueError(
            f"behavior {shorten(behavior.name)!r} has {len(texts)} texts of {len(behavior)} probes"
        )
    return [behavior.shorten_prompt(str(text)) for text in texts]


def _decode(behavior: Behavior, tokens: list[int]) -> str:
    return behavior.shorten_answer(behavior.tokenizer.decode(tokens[:MAX_TOKENS]))


def _broken(history: BehaviorHistory) -> list[int]:
    margins = history.margins
    if len(margins) < 2 or len(margins[0]) != len(margins[-1]):
        return []
    return [int(at) for at in np.flatnonzero((margins[0] > 0) & ~(margins[-1] > 0))]


def _generated(model: nn.Module, behavior: Behavior, probes: list[int]) -> dict[str, str]:
    from riprap.diagnosis.evidence import greedy_responses  # loads scipy.stats

    rows = behavior.token_rows()
    if rows is None:
        return {}
    answers = greedy_responses(model, [rows[index] for index in probes], MAX_TOKENS)
    return {str(i): _decode(behavior, own) for i, own in zip(probes, answers, strict=True)}
