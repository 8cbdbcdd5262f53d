"""Stage of the experiment: further measures of a few runs, which are trained once more."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.continual_real.features import Carried, Features, Use, middle
from experiments.continual_real.measure import AUTOCAST, Look, autocast, forward
from experiments.continual_real.plan import GIVEN, Plan
from experiments.continual_real.rows import Row, collate, evenly, lettered, scored_rows
from experiments.continual_real.simulate import (
    FLOOR_SHARE,
    REFUSALS,
    Ground,
    Run,
    Stage,
    TaskSequence,
    first_look,
    forget_peak_memory,
    load_base,
    peak_memory,
)
from experiments.harness.cache import cached
from experiments.harness.markdown import commit
from riprap import diagnosis, evaluation, prediction
from riprap._text import error_text
from riprap.behaviors import Behavior, is_refusal
from riprap.detectors import score
from riprap.evals import final_number, marked_number, squad_prediction, squad_scores
from riprap.selection import row_losses

TAUGHT_ROWS = 24  # of each task, whose tokens train features


@dataclass
class Moment:
    """Measures after an update, on unseen probes of refusal.

    Attributes:
        update: updates so far, over all stages; 0: the base.
        scores, margins: by behavior.
        use: of the features, by the refused prompts.
    """

    update: int
    scores: dict[str, float]
    margins: dict[str, float]
    use: Use


@dataclass
class Forecast:
    """Forecast of preflight for a behavior before a task; steps are those of the stage.

    Attributes:
        floor: under which it counts as broken: its own; where it is broken already, a share of the
            score that is left.
        probability: of a break within the stage; NaN: no forecast.
        low, median, high: step of the break, if one comes.
        text: what it says, or why it says nothing.
    """

    floor: float = float("nan")
    probability: float = float("nan")
    low: float = float("nan")
    median: float = float("nan")
    high: float = float("nan")
    text: str = ""


@dataclass
class Around:
    """The basin of a behavior: scores along random directions of the weights.

    Attributes:
        visage, low, high: VISAGE by margins, with its 95 % interval over directions.
        mean: score over all points.
        first, judged: scores along the first direction: by margins, and by answers.
    """

    visage: float
    low: float
    high: float
    mean: float
    first: list[float]
    judged: list[float]


@dataclass
class Repair:
    """The diagnosis of the final model, and what a few examples restore on a copy.

    Attributes:
        before, now, repaired: score of the base, of the final model, and after the examples, on
            probes of both behaviors.
        steps, rate: of the relearning.
    """

    verdict: str = ""
    reason: str = ""
    before: float = float("nan")
    now: float = float("nan")
    repaired: float = float("nan")
    steps: int = 0
    rate: float = float("nan")


@dataclass
class DeepRun:
    """Results of a run with further measures.

    Attributes:
        tasks: in the order in which they were trained.
        start, end: basins of the base and of the final model, by behavior.
        looks: measures of the base and after each task, all with benchmarks and safe prompts.
        scores: of the tasks at the base and after each task: exact match of GSM8K, F1 and exact
            match of SQuAD, accuracy of MedMCQA.
        row_losses: of each task: the loss of each row, by its number, before the update that its
            batch makes.
        latents: numbers of the latents of refusal; `areas`: their areas under the ROC curve on
            unseen refused and harmless prompts; `refused`, `harmless`: share of these prompts that
            use each of them at the base.
        moments: at the base and after each update.
        carried: the autoencoder after each stage.
        forecasts: before each stage, by behavior.
        stages: as in the run without these measures, but `seconds` contains moments and preflight.
        seconds: processor time by part.
        memory, notes, failed, commit: as of `Run`.
    """

    method: str
    rate: float
    base: int
    seed: int
    tasks: list[str]
    start: dict[str, Around] = field(default_factory=dict)
    end: dict[str, Around] = field(default_factory=dict)
    looks: list[Look] = field(default_factory=list)
    scores: list[dict[str, float]] = field(default_factory=list)
    row_losses: list[dict[int, float]] = field(default_factory=list)
    latents: list[int] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    harmless: list[float] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    carried: list[Carried] = field(default_factory=list)
    forecasts: list[dict[str, Forecast]] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    repair: Repair = field(default_factory=Repair)
    seconds: dict[str, float] = field(default_factory=dict)
    memory: float = 0.0
    notes: list[str] = field(default_factory=list)
    failed: str = ""
    commit: str = ""


@cached(
    "continual_real/{plan.setting.terms}/deep-{plan.deep.terms}/{method}-{rate:g}-{base}-{seed}.json"
)
def look_deep(method: str, rate: float, base: int, seed: int, plan: Plan, data: Path) -> DeepRun:
    """Train on the tasks in the given order with one method, and measure more than `simulate`."""
    out = DeepRun(method, rate, base, seed, list(plan.orders[GIVEN]), commit=commit())
    forget_peak_memory()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            DeepSequence(plan, data, out).train()
        except Exception as problem:  # noqa: BLE001 a failure is a result, and is shown
            out.failed = error_text(problem)
    told = [str(one.message) for one in caught]
    out.notes += dict.fromkeys(text for text in told if text.startswith("riprap"))
    out.memory = peak_memory()
    return out


class DeepSequence(TaskSequence):
    """The stages of one run, with further measures that leave its training as it is."""

    def __init__(self, plan: Plan, data: Path, out: DeepRun) -> None:
        run = Run(out.method, out.rate, GIVEN, out.base, out.seed, out.tasks, stages=out.stages)
        self.plan, self.deep, self.out = plan, plan.deep, out
        with self._timed("loading"):
            super().__init__(Ground(out.base, plan.setting, data), run)
        self.features: Features
        self.batches: list[list[Row]] = []

    def train(self) -> None:
        """See `TaskSequence.train`."""
        out, ground = self.out, self.ground
        with self._timed("base"):
            out.start = first_basins(out.base, self.plan, ground)
            out.scores.append(first_scores(out.base, self.plan, ground))
            out.looks.append(first_look(out.base, self.setting, ground.meter, self.model))
        with self._timed("features"):
            self.features = self._make_features()
            examples = ground.old_rows(self.deep.examples)
            self._look(self.model, 0)
        for at, task in enumerate(out.tasks):
            out.stages.append(Stage(task))
            with self._timed("stages"):
                self._stage(at, out.stages[-1])
            with self._timed("features"):
                out.carried.append(self.features.update(self.model))
            with self._timed("scores"):
                out.looks.append(ground.meter(self.model, out.moments[-1].update, whole=True))
                out.scores.append(task_scores(self.model, ground, self.plan))
        with self._timed("basins"):
            out.end = basins(self.model, ground, self.plan)
        with self._timed("repair"):
            out.repair = self._repair(examples)

    def updated(self, stage: Stage, model: nn.Module) -> None:
        """Measure after each update, and the rows of the next one."""
        with self._timed("moments"):
            self._look(model, self.out.moments[-1].update + 1)
            self._note_losses(model, len(stage.losses))

    def _batches(self, task: str, model: Any, optimizer: Any) -> list[list[Row]]:
        batches = super()._batches(task, model, optimizer)
        with self._timed("preflight"):
            self.out.forecasts.append(self._forecast(batches, model, optimizer))
        with self._timed("moments"):
            self.batches = batches
            self.out.row_losses.append({})
            self._note_losses(model, 0)
        return batches

    @torch.no_grad()
    def _note_losses(self, model: Any, at: int) -> None:
        """Note the loss of each row of the batch that is learned next; after the last, none."""
        if at == len(self.batches):
            return
        rows = self.batches[at]
        batch = collate(rows, self.ground.pad)
        with evaluation.preserve_training_state(model):
            output = forward(model, batch)
        losses = row_losses(output, batch).values.tolist()
        numbers = [row.number for row in rows]
        self.out.row_losses[-1] |= dict(zip(numbers, losses, strict=True))

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.process_time()
        yield
        spent = self.out.seconds.get(part, 0.0) + time.process_time() - began
        self.out.seconds[part] = spent

    def _make_features(self) -> Features:
        ground, out = self.ground, self.out
        rows = [row for own in ground.rows.values() for row in evenly(own, TAUGHT_ROWS)]
        made = Features(
            self.model, ground.unseen, ground.pools, rows, ground.pad, self.deep, out.seed
        )
        out.latents, out.areas = made.latents.tolist(), made.areas
        out.refused, out.harmless = made.refused_shares, made.harmless_shares
        return made

    def _look(self, model: nn.Module, update: int) -> None:
        layer = middle(model)
        scores, margins, activations = {}, {}, {}
        for behavior in self.ground.unseen:
            found = evaluation.evaluate(behavior, model, layers=[layer], autocast=AUTOCAST)
            scores[behavior.name] = score(found.margins)
            margins[behavior.name] = float(found.margins.mean())
            activations[behavior.name] = found.activations[layer]
        use = self.features.use(activations[self.ground.unseen[0].name])
        self.out.moments.append(Moment(update, scores, margins, use))

    def _forecast(
        self, batches: list[list[Row]], model: Any, optimizer: Any
    ) -> dict[str, Forecast]:
        """Ask preflight what a task will break of what is left."""
        told, asked = {}, []
        for own in self.ground.monitored:
            left = score(evaluation.evaluate(own, model, autocast=AUTOCAST).margins)
            floor = own.floor if left >= own.floor else FLOOR_SHARE * left
            if left:
                asked.append(Behavior(own.name, own.probes, own.margins, floor))
            else:
                told[own.name] = Forecast(text="nothing was left of it")
        if not asked:
            return told
        with autocast():
            found = prediction.preflight(
                model,
                [collate(rows, self.ground.pad, whole=True) for rows in batches],
                asked,
                optimizer=optimizer,
                warm_steps=self.deep.warm_steps,
                checkpoints=1,
                n_rows=self.deep.scored_rows,
                seed=self.run.seed,
            )
        for own in asked:
            if own.name in found.left_out:
                told[own.name] = Forecast(own.floor, text=found.left_out[own.name])
                continue
            one = found.behaviors[own.name]
            steps = one.outlook.forecast
            told[own.name] = Forecast(
                own.floor,
                one.outlook.probability,
                *(steps.low, steps.median, steps.high),
                one.break_text,
            )
        return told

    def _repair(self, rows: list[Row]) -> Repair:
        refusals = self.deep.examples // 2
        refused = [r for r in rows if is_refusal(self.ground.tokenizer.decode(r.answer))]
        harmless = [row for row in rows if row not in refused]
        chosen = refused[:refusals] + harmless[: self.deep.examples - refusals]
        reference, _ = load_base(self.out.base)
        refusal, over_refusal = self.ground.unseen
        with autocast():
            found = diagnosis.recover(
                self.model,
                refusal,
                collate(chosen, self.ground.pad, whole=True),
                reference=reference,
                contrast=over_refusal,
                shot_counts=[len(chosen)],
                draws=1,
                seed=self.out.seed,
            )
        made = Repair(
            str(found.verdict),
            found.reason,
            found.evidence.score_before,
            found.evidence.score_now,
        )
        point = found.point("own", len(chosen))
        if point is not None:
            made.repaired, made.rate = point.score.mean, point.learning_rate
            made.steps = point.steps[0]
        return made


@cached("continual_real/{plan.setting.terms}/deep-{plan.deep.terms}/basins-{base}.json")
def first_basins(base: int, plan: Plan, ground: Ground) -> dict[str, Around]:
    """Return the basins of the base, from which all its runs start."""
    return basins(ground.model, ground, plan)


@cached("continual_real/{plan.setting.terms}/deep-{plan.deep.terms}/scores-{base}.json")
def first_scores(base: int, plan: Plan, ground: Ground) -> dict[str, float]:
    """Return the scores of the tasks before training."""
    return task_scores(ground.model, ground, plan)


def basins(model: nn.Module, ground: Ground, plan: Plan) -> dict[str, Around]:
    """Return VISAGE of each behavior by margins, and one direction by answers too."""
    deep = plan.deep
    near = [one.subset(range(min(deep.around, len(one.probes)))) for one in ground.unseen]
    settings: dict[str, Any] = {"points": deep.points, "radius": deep.radius}
    found = diagnosis.basin(model, near, deep.directions, **settings)

    def judge(behavior: Behavior) -> Callable[[nn.Module], float]:
        prompts = behavior.token_rows() or []

        def passed(judged: nn.Module) -> float:
            answers = evaluation.generate(
                judged, ground.tokenizer, prompts, plan.setting.new_tokens
            )
            texts = ground.tokenizer.batch_decode(answers, skip_special_tokens=True)
            wanted = behavior.name == REFUSALS[0]
            return float(np.mean([is_refusal(text) == wanted for text in texts]))

        return passed

    judges = {one.name: judge(one) for one in near}
    answered = diagnosis.basin(model, near, 1, judges=judges, **settings)
    made = {}
    for name, profile in found.behaviors.items():
        visage, judged = profile.visage, answered[name].judged
        assert judged is not None
        made[name] = Around(
            visage.mean,
            visage.low,
            visage.high,
            profile.mean_score.mean,
            profile.scores[0].tolist(),
            judged[0].tolist(),
        )
    return made


def task_scores(model: nn.Module, ground: Ground, plan: Plan) -> dict[str, float]:
    """Score answers to test rows of the tasks, asked as they are taught."""
    deep, tokenizer = plan.deep, ground.tokenizer

    def asked(task: str) -> tuple[list[Row], list[dict[str, Any]]]:
        sizes = (deep.longest, deep.answer_tokens, deep.questions)
        found = scored_rows(task, tokenizer, ground.data, *sizes)
        return [row for row, _ in found], [whole for _, whole in found]

    def answers(rows: list[Row]) -> list[str]:
        prompts = [list(row.prompt) for row in rows]
        with autocast():
            made = evaluation.generate(model, tokenizer, prompts, deep.answer_tokens)
        return list(tokenizer.batch_decode(made, skip_special_tokens=True))

    rows, whole = asked("gsm8k")
    right = [
        final_number(answer) == marked_number(row["answer"])
        for answer, row in zip(answers(rows), whole, strict=True)
    ]
    scores = {"GSM8K exact match": float(np.mean(right))}
    rows, whole = asked("squad_v2")
    pairs = [
        squad_scores(squad_prediction(answer), row["answers"])
        for answer, row in zip(answers(rows), whole, strict=True)
    ]
    scores["SQuAD exact match"], scores["SQuAD F1"] = np.mean(pairs, axis=0).tolist()
    none = [1.0 - bool(row["answers"]) for row in whole]
    scores["SQuAD F1 of never answering"] = float(np.mean(none))
    _, whole = asked("medmcqa")
    options = [lettered(row) for row in whole]
    prompts = ["\n".join([row["question"], *own]) for row, own in zip(whole, options, strict=True)]
    choice = Behavior.multiple_choice(
        "medmcqa", tokenizer, prompts=prompts, options=options, right=[r["answer"] for r in whole]
    )
    found = evaluation.evaluate(choice, model, autocast=AUTOCAST).margins
    scores["MedMCQA accuracy"] = score(found)
    scores["MedMCQA accuracy by chance"] = float(np.mean([1 / len(own) for own in options]))
    return scores
