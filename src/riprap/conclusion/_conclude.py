"""The conclusion of a run, read from its record: one sentence first, and what stands behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from riprap._text import escape_control_chars, html_table, html_text
from riprap.conclusion._advice import advice
from riprap.conclusion._facts import RunFacts
from riprap.conclusion._outcome import BehaviorOutcome
from riprap.conclusion._restored import Restored
from riprap.conclusion._rows import Blame
from riprap.conclusion._sentences import about_weights, first_line, numbers, unseen
from riprap.record import Reader, Writer

OTHERS = (
    "It is about these behaviors and their probes only: what no behavior measures may have changed "
    "as well."
)
FIRST_TOKENS = "A margin is of the first tokens of an answer, not of a whole answer."


@dataclass(frozen=True, repr=False)
class Conclusion:
    """What a run came to.

    Attributes:
        line: the answer, in one to three short sentences.
        numbers: up to three numbers as text, by what they are.
        advice: one change of the configuration that would help, or that none is needed.
        limits: what the record does not tell; where nothing broke, first which loss the probes
            would have missed.
        outcomes: of the behaviors, in their order.
        keep: last step at which the latest evaluation found no behavior broken; None: none.
        checkpoint: folder of the last recorded checkpoint with healthy evaluations before and after
            it that is still there; None: there is none.
        finished: whether the end of the run is recorded.
        blames: rows that did most of it, by name of a behavior that broke.
        restored: what brings a behavior back, by its name, as a diagnosis of a checkpoint of the
            run has measured it.
        weights: what is known of the checkpoint that the line names, or why it names none; empty:
            there is nothing to say. Before it, who ended a run before its plan did.
        ended_early: whether the run ended before the last step of its plan.
    """

    line: str
    numbers: dict[str, str]
    advice: str
    limits: str
    outcomes: tuple[BehaviorOutcome, ...]
    keep: int | None
    checkpoint: str | None
    finished: bool
    blames: Mapping[str, Blame] = field(default_factory=dict)
    restored: Mapping[str, Restored] = field(default_factory=dict)
    weights: str = ""
    ended_early: bool = False

    def __repr__(self) -> str:
        """Return the first line."""
        return f"<Conclusion: {self.line}>"

    def _repr_html_(self) -> str:
        rows = [[own.name, str(own.state), own.first, own.last] for own in self.outcomes]
        table = html_table(["behavior", "state", "score at the start", "last score"], rows)
        advice = html_text(f"What would help: {self.advice}") if self.advice else ""
        return html_text(self.line, "strong") + table + advice + html_text(self.limits)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, for JSON."""
        return {
            "line": self.line,
            "weights": self.weights,
            "numbers": self.numbers,
            "advice": self.advice,
            "limits": self.limits,
            "keep_step": self.keep,
            "checkpoint": self.checkpoint,
            "finished": self.finished,
            "ended_early": self.ended_early,
            "behaviors": {
                own.name: {
                    "state": str(own.state),
                    "floor": own.floor,
                    "score_at_start": own.first,
                    "score": own.last,
                    "probes": own.n_probes,
                    "interval": own.interval,
                    "broke": own.broke,
                    "announced": None if own.announced is None else own.announced.step,
                    "sentences": own.sentences,
                    "rows_to_blame": _or_none(self.blames.get(own.name)),
                    "restored": _or_none(self.restored.get(own.name)),
                }
                for own in self.outcomes
            },
        }


def conclude(source: str | Path | Writer | Reader) -> Conclusion:
    """Read the conclusion of a run, finished or in progress, from its record.

    Args:
        source: folder of a run, its record file, the record that this process writes, or a reader.

    Raises:
        RecordError: there is no readable record at `source`.
    """
    if not isinstance(source, Reader):
        with Reader(source) as reader:
            return conclude(reader)
    facts = RunFacts.read(source)
    keep = facts.keep_step()
    kept = [own for own in facts.healthy_checkpoints() if own.is_kept]
    checkpoint = max(kept, key=lambda own: own.step, default=None)
    line = first_line(facts, keep, checkpoint)
    is_named = checkpoint is not None and line.startswith(f"Keep {checkpoint.name}.")
    is_idle = facts.idle is not None and facts.unchanged
    limits = [unseen(facts), "" if is_idle else OTHERS, FIRST_TOKENS]
    limits += facts.unused
    return Conclusion(
        escape_control_chars(line),
        numbers(facts),
        advice(facts),
        " ".join(text for text in limits if text),
        facts.outcomes,
        keep,
        None if checkpoint is None else checkpoint.name,
        facts.finished,
        facts.blames,
        facts.restored,
        escape_control_chars(about_weights(facts, checkpoint if is_named else None)),
        facts.ended_early,
    )


def _or_none(own: Blame | Restored | None) -> dict[str, Any] | None:
    return None if own is None else asdict(own)
