"""Run the stages of one diagnosis, each with a progress bar and its time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.progress import Progress

from riprap import diagnosis, evaluation
from riprap.behaviors import Behavior
from riprap.commands.diagnose._config import N_EXAMPLES, DiagnoseConfig
from riprap.commands.diagnose._loading import ModelPair
from riprap.commands.diagnose._probes import (
    MAX_ANSWER_TOKENS,
    BehaviorProbes,
    Task,
    select_probes,
)
from riprap.diagnosis import BehaviorDiagnosis, Divergence, Repair, Weights, has_loss
from riprap.diagnosis.evidence import greedy_responses, prompt_rows
from riprap.diagnosis.recovery import (
    SHOT_COUNTS,
    STEPS,
    Examples,
    learning_rates,
    train_steps,
    trainable_copy,
)
from riprap.types import BrokenProbe

DRAWS = 2  # of examples, for recovery
POINTS = 6  # on the linear path
EXPECTED_STEPS = 16  # of one source, without --full
RUN_PASSES = 2.3  # over the probes in one relearning run: five looks at a third, then the rest
OTHER_PASSES = 6  # prefix forcing and linear decodability
PROMPTS = 8  # for the divergence
REPAIR_PASSES = 20  # over all probes: interpolation, task vector, the measurement of each repair
MAX_BROKEN = 4  # probes that are shown with the answers of both models


@dataclass
class StageTimer:
    """Progress bars, and seconds by stage."""

    bars: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[diagnosis.Progress]:
        """Time a stage, and show its progress bar."""
        task, began = self.bars.add_task(name, total=None), time.perf_counter()
        yield lambda done, total: self.bars.update(task, completed=done, total=total)
        self.bars.update(task, completed=1, total=1)
        self.seconds[name] = round(time.perf_counter() - began, 1)


@dataclass
class DiagnosisRunner:
    """The stages of a diagnosis, with their inputs and results by behavior."""

    config: DiagnoseConfig
    pair: ModelPair
    timer: StageTimer
    naive_model: Weights | None  # that never had the behaviors
    probes: dict[str, BehaviorProbes] = field(default_factory=dict)
    results: dict[str, BehaviorDiagnosis] = field(default_factory=dict)
    passes: dict[str, float] = field(default_factory=dict)  # seconds of one over the probes

    @property
    def lost(self) -> list[str]:
        """Names of the behaviors with a loss to explain."""
        measured = [result for result in self.results.values() if result.probes]
        return [r.name for r in measured if has_loss(r.score_before, r.score_now, r.floor)]

    def measure_scores(self) -> None:
        """Select probes that the base model passes, and score the tuned model on them."""
        pair = self.pair
        with (
            self.timer.stage("probes") as report,
            diagnosis.reference_model(pair.model, pair.base, pair.tuned) as base,
        ):
            for at, name in enumerate(self.config.behaviors):
                selected = select_probes(name, self.config, base, pair.tokenizer)
                self.probes[selected.name] = selected
                report(at + 1, len(self.config.behaviors))
        with self.timer.stage("scores") as report:
            for at, (name, selected) in enumerate(self.probes.items()):
                self.results[name] = self.score_behavior(selected)
                report(at + 1, len(self.probes))

    def score_behavior(self, selected: BehaviorProbes) -> BehaviorDiagnosis:
        """Score one behavior before and now; where nothing was lost, say why no more is run."""
        name, probes = selected.name, selected.probes
        if probes is None:
            return BehaviorDiagnosis(name, 0.9, missing={"probes": selected.why_unmeasured})
        began = time.perf_counter()
        margins = evaluation.evaluate(probes, self.pair.model).margins
        self.passes[name] = time.perf_counter() - began
        before, now = (float((m > 0).mean()) for m in (selected.margins_before, margins))
        lost = has_loss(before, now, probes.floor)
        kinds = ("recovery", "prefix forcing", "linear decodability", "linear path")
        why = "the score did not drop, so there is no loss to explain"
        return BehaviorDiagnosis(
            name,
            probes.floor,
            len(margins),
            before,
            now,
            float(selected.margins_before.mean()),
            float(margins.mean()),
            missing={} if lost else dict.fromkeys(kinds, why),
            broken=self.broken_probes(selected, margins) if lost else [],
        )

    def broken_probes(self, selected: BehaviorProbes, margins: np.ndarray) -> list[BrokenProbe]:
        """Return some of the probes that the tuned model fails, with the answers of both models."""
        probes = selected.probes
        assert probes is not None
        failing = np.flatnonzero(~(margins > 0)).tolist()[:MAX_BROKEN]
        rows = probes.token_rows()
        if not failing or rows is None:
            return []
        prompts = [rows[at] for at in failing]
        answers = greedy_responses(self.pair.model, prompts, MAX_ANSWER_TOKENS)
        return [
            BrokenProbe(
                at,
                selected.texts[at],
                now=self._decode(probes, answer),
                before=self._decode(probes, selected.answers[at]),
            )
            for at, answer in zip(failing, answers, strict=True)
        ]

    def _decode(self, probes: Behavior, tokens: list[int]) -> str:
        text = self.pair.tokenizer.decode(tokens, skip_special_tokens=True)
        return probes.shorten_answer(text)

    def estimate_seconds(self, report: diagnosis.Progress) -> dict[str, tuple[float, float]]:
        """Estimate how long each part takes: (expected, at most), in seconds.

        From the passes over the probes so far, and from one relearning step that is measured here;
        steps of other examples are scaled by their tokens.
        """
        report(0, 1)
        token_seconds = self._time_step(self.lost[0]) / self._tokens(self.lost[0])
        report(1, 1)
        rates, most, all_passes = len(learning_rates(True)), max(STEPS), sum(self.passes.values())
        counts = len(SHOT_COUNTS) if self.config.full else 1
        parts: dict[str, tuple[float, float]] = {}
        checks = 0.0
        for name in self.lost:
            passes = self.passes[name] + self.passes.get(self.paired_behavior(name), 0.0)
            own = token_seconds * self._tokens(name)
            unrelated = token_seconds * self._tokens(self.unrelated_behavior(name))
            naive = own if self.naive_model is not None else 0.0
            runs = rates + (counts - 1) * DRAWS
            longest = runs * (most * (2 * own + unrelated + naive) + 4 * RUN_PASSES * passes)
            expected = EXPECTED_STEPS * (own + unrelated + naive) + 3 * RUN_PASSES * passes
            parts[f"{name}: recovery"] = (longest if self.config.full else expected), longest
            checks += (OTHER_PASSES + POINTS * self.config.full) * passes
        parts["other evidence"] = checks, checks
        if self.config.repairs:
            step = token_seconds * sum(map(self._tokens, self.probes))
            trained = (rates + 1) * (most * step + len(STEPS) * all_passes / 2)
            repairs = REPAIR_PASSES * all_passes
            parts["repairs"] = repairs + trained / 2, repairs + trained
        return parts

    def _time_step(self, name: str) -> float:
        """Measure one step on a lost behavior's examples, in seconds."""
        examples, model = Examples(self.probes[name].examples), self.pair.model
        with trainable_copy(model, self.pair.tuned) as (parameters, adapters):
            rate, chosen = learning_rates(adapters)[0], range(N_EXAMPLES)
            began = time.perf_counter()
            next(train_steps(model, parameters, adapters, examples, chosen, rate))
            return time.perf_counter() - began

    def _tokens(self, name: str) -> int:
        """Number of tokens in a behavior's examples; 0 for an unknown name."""
        examples = self.probes[name].examples if name in self.probes else None
        rows = None if examples is None else examples.token_rows()
        return sum(map(len, rows or ()))

    def explain_loss(self, name: str) -> None:
        """Run recovery, prefix forcing and linear decodability on one lost behavior."""
        selected, result, model = self.probes[name], self.results[name], self.pair.model
        assert selected.probes is not None and selected.examples is not None
        paired = self.probes.get(self.paired_behavior(name))
        contrast = None if paired is None else paired.probes
        sources: dict[str, Any] = {"reference": self.pair.base, "weights_on_disk": self.pair.tuned}
        with self.timer.stage(f"{name}: recovery") as report:
            result.recovery = diagnosis.recover(
                model,
                selected.probes,
                selected.examples,
                unrelated_examples=self.unrelated_examples(name),
                naive_model=self.naive_model,
                contrast=contrast,
                shot_counts=None if self.config.full else (N_EXAMPLES,),
                draws=DRAWS,
                full=self.config.full,
                progress=report,
                **sources,
            )
        if not self.config.full:
            result.missing["curve"] = f"one count of examples, {N_EXAMPLES}; not run: --full"
            result.missing["linear path"] = "not run: --full"
        if self.naive_model is None:
            result.missing["naive model"] = (
                "no --naive-model was given: recovery is compared with the chance level"
            )
        with self.timer.stage(f"{name}: prefix forcing"):
            result.prefix_forcing = diagnosis.prefix_forcing(
                model, selected.probes, selected.answers, **sources
            )
        if contrast is None:
            why = "there is no contrasting behavior to distinguish"
            result.missing["linear decodability"] = why
            return
        with self.timer.stage(f"{name}: linear decodability") as report:
            result.decodability = diagnosis.linear_decodability(
                model, selected.probes, contrast=contrast, progress=report, **sources
            )

    def paired_behavior(self, name: str) -> str:
        """Return the name of a behavior's contrast; empty if it has none."""
        probes = self.probes[name].probes
        return "" if probes is None else probes.contrast or ""

    def unrelated_behavior(self, name: str) -> str:
        """Return another behavior with examples that is not the contrast of this one, or ""."""
        others = (
            other
            for other, selected in self.probes.items()
            if other not in (name, self.paired_behavior(name)) and selected.examples is not None
        )
        return next(others, "")

    def unrelated_examples(self, name: str) -> Any:
        """Return the examples of the unrelated behavior; None if there is none."""
        other = self.unrelated_behavior(name)
        return self.probes[other].examples if other else None

    def run_linear_path(self) -> None:
        """Measure the lost behaviors and their contrasts on the linear path to the base."""
        names = [*self.lost, *(self.paired_behavior(name) for name in self.lost)]
        names = [name for name in dict.fromkeys(names) if name in self.results]
        behaviors = [b for name in names if (b := self.probes[name].probes) is not None]
        with self.timer.stage("linear path") as report:
            path = diagnosis.linear_path(
                self.pair.model,
                self.pair.base,
                behaviors,
                points=POINTS,
                weights_on_disk=self.pair.tuned,
                progress=report,
            )
        for name, profile in path.behaviors.items():
            self.results[name].linear_path = profile

    def run_divergence(self) -> Divergence | None:
        """Measure the divergence on probes of the first lost behavior, or of the first measured."""
        measured = [name for name, selected in self.probes.items() if selected.probes is not None]
        for name in [*self.lost, *measured][:1]:
            selected = self.probes[name]
            assert selected.probes is not None
            with self.timer.stage("divergence") as report:
                return diagnosis.divergence(
                    self.pair.model,
                    self.pair.base,
                    prompt_rows(selected.probes)[:PROMPTS],
                    responses=selected.answers[:PROMPTS],
                    layers=None if self.lost and self.config.full else (),
                    weights_on_disk=self.pair.tuned,
                    progress=report,
                )
        return None

    def run_repairs(self, task: Task, checkpoints: Mapping[str, Weights]) -> list[Repair]:
        """Try the repairs of the lost behaviors."""
        measured = {n: selected for n, selected in self.probes.items() if selected.probes}
        examples = {name: selected.examples for name, selected in measured.items()}
        if task.examples is not None:
            examples["task"] = task.examples
        with self.timer.stage("repairs") as report:
            return diagnosis.compare_repairs(
                self.pair.model,
                self.pair.base,
                [selected.probes for selected in measured.values() if selected.probes is not None],
                examples,
                lost=self.lost,
                count=N_EXAMPLES,
                task=None if task.test_rows is None else task.score,
                prompts=task.prompts,
                responses=task.responses,
                checkpoints=checkpoints,
                weights_on_disk=self.pair.tuned,
                progress=report,
            )
