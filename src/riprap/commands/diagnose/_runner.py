"""The examinations of one diagnosis, each reported as a bar and timed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.progress import Progress

from riprap import evaluation as probing
from riprap.commands.diagnose._config import EXAMPLES, DiagnoseConfig
from riprap.commands.diagnose._loading import Pair
from riprap.commands.diagnose._probes import Subject, Task, subject
from riprap.diagnosis import Progress as Report
from riprap.diagnosis import Weights, at_reference
from riprap.diagnosis.evidence import Divergence, decode, divergence, force, path, prompts_of
from riprap.diagnosis.recovery import recover
from riprap.diagnosis.repair import Repair, repairs
from riprap.report import Diagnosed, fell

DRAWS = 2  # of examples, for recovery
POINTS = 6  # on the way back
PROMPTS = 8  # on which divergence is read


@dataclass
class Parts:
    """Bars and seconds by part."""

    bars: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[Report]:
        """One part, with its bar."""
        task, began = self.bars.add_task(name, total=None), time.perf_counter()
        yield lambda done, total: self.bars.update(task, completed=done, total=total)
        self.bars.update(task, completed=1, total=1)
        self.seconds[name] = round(time.perf_counter() - began, 1)


@dataclass
class Examination:
    """Two models, what is looked at, and what was found so far.

    Attributes:
        never: weights of a model that never had the behaviours; None: there is no such control.
    """

    config: DiagnoseConfig
    pair: Pair
    parts: Parts
    never: Weights | None
    subjects: dict[str, Subject] = field(default_factory=dict)
    found: dict[str, Diagnosed] = field(default_factory=dict)

    @property
    def lost(self) -> list[str]:
        """Behaviours that there is a loss to explain of."""
        measured = (one for one in self.found.values() if one.probes)
        return [one.name for one in measured if fell(one.before, one.now, one.floor)]

    def look(self) -> None:
        """Choose the probes by what the base model passes, and score the tuned model on them."""
        pair = self.pair
        with (
            self.parts.part("probes") as report,
            at_reference(pair.model, pair.base, pair.tuned) as base,
        ):
            for at, name in enumerate(self.config.behaviors):
                one = subject(name, self.config, base, pair.tokenizer)
                self.subjects[one.name] = one
                report(at + 1, len(self.config.behaviors))
        with self.parts.part("scores") as report:
            for at, (name, one) in enumerate(self.subjects.items()):
                self.found[name] = self.scored(one)
                report(at + 1, len(self.subjects))

    def scored(self, one: Subject) -> Diagnosed:
        """Before and now, and why the rest is not run where it is not."""
        floor = 0.9 if one.probes is None else one.probes.floor
        if one.probes is None:
            return Diagnosed(one.name, floor, missing={"probes": one.why})
        now = probing.look(one.probes, self.pair.model).margins
        before, after = (float((margins > 0).mean()) for margins in (one.before, now))
        kinds = ("recovery", "forced prefix", "decodability", "path")
        kept = "the score did not fall: there is nothing to explain"
        return Diagnosed(
            one.name,
            floor,
            len(now),
            before,
            after,
            float(one.before.mean()),
            float(now.mean()),
            missing={} if fell(before, after, floor) else dict.fromkeys(kinds, kept),
        )

    def explain(self, name: str) -> None:
        """Recovery, forced prefix and decodability of one lost behaviour."""
        one, found = self.subjects[name], self.found[name]
        assert one.probes is not None and one.examples is not None
        contrast = self.subjects.get(self.beside(name))
        other = None if contrast is None else contrast.probes
        given: dict[str, Any] = {"reference": self.pair.base, "home": self.pair.tuned}
        with self.parts.part(f"{name}: recovery") as report:
            found.recovery = recover(
                self.pair.model,
                one.probes,
                one.examples,
                irrelevant=self.irrelevant(name),
                control=self.never,
                contrast=other,
                counts=(EXAMPLES,),
                draws=DRAWS,
                progress=report,
                **given,
            )
        if self.never is None:
            found.missing["control"] = (
                "no model that never had it is given (--never): recovery is held against guessing"
            )
        with self.parts.part(f"{name}: forced prefix"):
            found.forced = force(self.pair.model, one.probes, one.answers, **given)
        if other is None:
            found.missing["decodability"] = "there is no other side from which it could be told"
            return
        with self.parts.part(f"{name}: decodability") as report:
            found.decoded = decode(
                self.pair.model, one.probes, contrast=other, progress=report, **given
            )

    def beside(self, name: str) -> str:
        """The other side of a behaviour; empty where it has none."""
        probes = self.subjects[name].probes
        return "" if probes is None else probes.contrast or ""

    def irrelevant(self, name: str) -> Any:
        """Examples of another behaviour, not of the other side of this one."""
        others = (
            one.examples
            for other, one in self.subjects.items()
            if other not in (name, self.beside(name)) and one.examples is not None
        )
        return next(others, None)

    def walk(self) -> None:
        """The path back, of the lost behaviours and their other sides."""
        sides = [*self.lost, *(self.beside(name) for name in self.lost)]
        names = [name for name in dict.fromkeys(sides) if name in self.found]
        probes = [p for name in names if (p := self.subjects[name].probes) is not None]
        with self.parts.part("path back") as report:
            way = path(
                self.pair.model,
                self.pair.base,
                probes,
                points=POINTS,
                home=self.pair.tuned,
                progress=report,
            )
        for name, along in way.behaviors.items():
            self.found[name].along = along

    def apart(self) -> Divergence | None:
        """Divergence on the probes of the first lost behaviour, or of the first of all."""
        measured = [name for name, one in self.subjects.items() if one.probes is not None]
        for name in [*self.lost, *measured][:1]:
            one = self.subjects[name]
            assert one.probes is not None
            with self.parts.part("divergence") as report:
                return divergence(
                    self.pair.model,
                    self.pair.base,
                    prompts_of(one.probes)[:PROMPTS],
                    responses=one.answers[:PROMPTS],
                    layers=None if self.lost else (),
                    home=self.pair.tuned,
                    progress=report,
                )
        return None

    def repair(self, task: Task, checkpoints: Mapping[str, Weights]) -> list[Repair]:
        """What brings the lost behaviours back."""
        measured = {name: one for name, one in self.subjects.items() if one.probes is not None}
        examples = {name: one.examples for name, one in measured.items()}
        if task.examples is not None:
            examples["task"] = task.examples
        with self.parts.part("repairs") as report:
            return repairs(
                self.pair.model,
                self.pair.base,
                [one.probes for one in measured.values() if one.probes is not None],
                examples,
                lost=self.lost,
                count=EXAMPLES,
                task=None if task.measured is None else task.score,
                prompts=task.prompts,
                responses=task.responses,
                checkpoints=checkpoints,
                home=self.pair.tuned,
                progress=report,
            )
