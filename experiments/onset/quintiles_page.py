"""Page of the quintiles: what training on each fifth of the rows did to the behaviors."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from experiments.harness.markdown import NOTHING, number, table
from experiments.onset.quintiles import (
    DATA_SETS,
    FOLDER,
    QUINTILES,
    RATE,
    ROWS,
    STEPS,
    Run,
    folder_of,
    plan,
)
from experiments.onset.real.rows import BATCH

COMMAND = "python -m experiments.onset.quintiles"
Facts = list[dict[str, str]]
SCORES = ("harm", "normalized_harm", "sqsd_like", "length", "loss", "gradient_norm", "random")


@dataclass(frozen=True)
class Ranking:
    """One ranking of the rows of a data set, and what training on each fifth did to a behavior.

    Attributes:
        losses: lost share of the mean margin, averaged over seeds; a row for each fifth, a column
            for each evaluation.
        passing: score of each fifth at the end.
        predicted: loss at the end, as the harm of the fifth's rows says.
        sources: of the rows of each fifth.
    """

    data: str
    score: str
    behavior: str
    seeds: int
    losses: np.ndarray
    passing: np.ndarray
    predicted: np.ndarray
    sources: list[Counter[str]]

    @property
    def correlations(self) -> list[float]:
        """Spearman's correlation of the fifth and its loss, at each evaluation."""
        return [_spearman(range(QUINTILES), column) for column in self.losses.T]

    @property
    def last(self) -> np.ndarray:
        """Loss of each fifth at the end."""
        return self.losses[:, -1]

    @property
    def monotone(self) -> bool:
        """Return whether each fifth lost more than the one before."""
        return bool((np.diff(self.last) > 0).all())


@dataclass(frozen=True)
class Recorded:
    """All that is recorded of a data set: the scores of its rows, and its finished runs."""

    data: str
    scored: dict[str, Any]
    runs: dict[Run, dict[str, Any]]

    def loss(self, run: Run, behavior: str) -> np.ndarray:
        """Return the lost share of the mean margin after each evaluation of a run."""
        means = np.array(self.runs[run]["margins"][behavior]).mean(axis=1)
        lost: np.ndarray = 1 - means[1:] / means[0]
        return lost

    def score(self, run: Run, behavior: str) -> float:
        """Return the share of the probes that pass at the end of a run."""
        return float((np.array(self.runs[run]["margins"][behavior][-1]) > 0).mean())

    def mean_score(self, run: Run, behavior: str, score: str) -> float:
        """Return the mean of a score over the rows of a run, by the tokens that they teach."""
        scores = self.scored["scores"][behavior]
        rows = self.runs[run]["rows"]
        weights = None if score == "length" else np.array(scores["length"])[rows]
        return float(np.average(np.array(scores[score])[rows], weights=weights))

    def predicted(self, run: Run, behavior: str) -> float:
        """Return the loss at the end that the harm of a run's rows predicts, to first order."""
        return STEPS * self.mean_score(run, behavior, "harm") / self.scored["start"][behavior]

    def ranking(self, score: str, of: str | None, behavior: str) -> Ranking | None:
        """Return a ranking, over the seeds of which all fifths are there; None: there is none."""
        seeds = sorted({run.seed for run in self.runs})
        every = [
            [Run(self.data, score, of, fifth, seed) for fifth in range(QUINTILES)] for seed in seeds
        ]
        whole = [own for own in every if all(run in self.runs for run in own)]
        if not whole:
            return None
        losses = [[self.loss(run, behavior) for run in own] for own in whole]
        return Ranking(
            self.data,
            score,
            behavior,
            len(whole),
            np.mean(losses, axis=0),
            np.mean([[self.score(run, behavior) for run in own] for own in whole], axis=0),
            np.array([self.predicted(run, behavior) for run in whole[0]]),
            [Counter(self.scored["sources"][at] for at in self.runs[r]["rows"]) for r in whole[0]],
        )


def read(out: Path) -> list[Recorded]:
    """Read what is recorded of each data set."""
    found = []
    for data in DATA_SETS:
        scored = folder_of(data, out) / "rows.json"
        if scored.exists():
            paths = {run: run.path(out) for run in plan() if run.data == data}
            runs = {run: json.loads(p.read_text()) for run, p in paths.items() if p.exists()}
            found.append(Recorded(data, json.loads(scored.read_text()), runs))
    return found


def rankings(recorded: Iterable[Recorded]) -> list[Ranking]:
    """Return the finished rankings, each for the behaviors by whose harm the rows are sorted."""
    found = [
        one.ranking(score, behavior if score == "harm" else None, behavior)
        for one in recorded
        for behavior in DATA_SETS[one.data][1]
        for score in ("harm", "length", "random")
    ]
    return [one for one in found if one is not None]


def _spearman(one: Iterable[float], two: Iterable[float]) -> float:
    first, second = list(one), list(two)
    if len(set(first)) < 2 or len(set(second)) < 2:
        return math.nan
    return float(spearmanr(first, second).statistic)


def losses_table(found: Sequence[Ranking]) -> Facts:
    """Return a row for each ranking: the loss by fifth, and whether it is monotone."""
    return [
        {
            "data set": one.data,
            "behavior": one.behavior,
            "sorted by": one.score,
            **{f"fifth {at + 1}": number(loss, 2) for at, loss in enumerate(one.last)},
            "Spearman on the way, at the end": ", ".join(number(r, 1) for r in one.correlations),
            "monotone": "yes" if one.monotone else "no",
            "scores at the end": ", ".join(number(score, 2) for score in one.passing),
        }
        for one in found
    ]


def summary_table(found: Sequence[Ranking]) -> Facts:
    """Return a row for each score: how its rankings did."""
    rows = []
    for score in dict.fromkeys(one.score for one in found):
        own = [one for one in found if one.score == score]
        n = len(own)
        rows.append(
            {
                "sorted by": score,
                "monotone": f"{sum(one.monotone for one in own)} of {n}",
                "Spearman above 0": f"{sum(one.correlations[-1] > 0 for one in own)} of {n}",
                "mean Spearman": number(np.mean([one.correlations[-1] for one in own]), 2),
                "fifth 5 lost most": f"{sum(int(one.last.argmax()) == 4 for one in own)} of {n}",
                "fifth 1 lost least": f"{sum(int(one.last.argmin()) == 0 for one in own)} of {n}",
                "fifth 5 − fifth 1": number(
                    np.mean([one.last[-1] - one.last[0] for one in own]), 2
                ),
                "largest − smallest": number(np.mean([np.ptp(one.last) for one in own]), 2),
            }
        )
    return rows


def predicted_table(found: Sequence[Ranking]) -> Facts:
    """Return a row for each sorting by harm: what the first order predicts, and what came."""
    rows: Facts = []
    for one in found:
        if one.score == "harm":
            pairs = zip(one.predicted, one.last, strict=True)
            rows.append(
                {"data set": one.data, "behavior": one.behavior}
                | {
                    f"fifth {at + 1}": f"{number(said, 2)} / {number(came, 2)}"
                    for at, (said, came) in enumerate(pairs)
                }
            )
    return rows


def groups_table(recorded: Sequence[Recorded]) -> Facts:
    """Return, for all trained fifths together, the correlation of mean score and loss."""
    rows: Facts = []
    for one in recorded:
        runs = list(one.runs)
        for behavior in one.scored["scores"]:
            came = [float(one.loss(run, behavior)[-1]) for run in runs]
            found = {s: [one.mean_score(run, behavior, s) for run in runs] for s in SCORES}
            rows.append(
                {"data set": one.data, "behavior": behavior, "runs": str(len(runs))}
                | {s.replace("_", " "): number(_spearman(own, came), 2) for s, own in found.items()}
            )
    return rows


def sources_table(found: Sequence[Ranking]) -> Facts:
    """Return where the rows of each fifth come from, where there are several sources."""
    return [
        {"data set": one.data, "harm to": one.behavior}
        | {
            f"fifth {at + 1}": ", ".join(f"{n} {name}" for name, n in sorted(own.items()))
            for at, own in enumerate(one.sources)
        }
        for one in found
        if one.score == "harm" and len(sum(one.sources, Counter())) > 1
    ]


def failures(found: Sequence[Ranking]) -> list[str]:
    """Return a sentence for each sorting by harm that fails, or that a control equals."""
    harm = [one for one in found if one.score == "harm"]
    rises = sum(int(((one.predicted < 0) & (one.last > 0)).sum()) for one in harm)
    falls = sum(int(((one.predicted > 0) & (one.last < 0)).sum()) for one in harm)
    n = QUINTILES * len(harm)
    lines = [
        f"The sign of the first order: {count} of {n} fifths were predicted to {said}."
        for count, said in (
            (rises, "gain margin, and lost it"),
            (falls, "lose margin, and gained it"),
        )
        if count
    ]
    late = sum(bool(one.last[0] > one.last[1]) for one in harm)
    if late:
        lines.append(
            f"The low end: in {late} of {len(harm)} rankings by harm the fifth that was predicted "
            "to do the least harm lost more than the next one."
        )
    by = {(one.data, one.behavior, one.score): one for one in found}
    for (data, behavior, score), one in by.items():
        if score != "harm":
            continue
        rho, where = one.correlations[-1], f"{data}, {behavior}"
        if not one.monotone:
            lines.append(f"{where}: not monotone; Spearman is {number(rho, 1)}.")
        for control in ("length", "random"):
            other = by.get((data, behavior, control))
            if other is not None and not other.correlations[-1] < rho:
                lines.append(
                    f"{where}: sorting by {control} is as good "
                    f"(Spearman {number(other.correlations[-1], 1)} against {number(rho, 1)})."
                )
            if other is not None and np.ptp(other.last) >= np.ptp(one.last):
                lines.append(
                    f"{where}: the fifths by {control} are as far apart "
                    f"({number(np.ptp(other.last), 2)} against {number(np.ptp(one.last), 2)})."
                )
    return lines


def write_page(out: Path) -> Path:
    """Write the page, of the runs that are there."""
    recorded = read(out)
    found = rankings(recorded)
    runs = [run for one in recorded for run in one.runs.values()]
    planned = [run for run in plan() if run.seed in {other["seed"] for other in runs}]
    seconds = sum(run["processor_seconds"] for run in runs)
    seconds += sum(one.scored["processor_seconds"] for one in recorded)
    commits = ", ".join(sorted({one["commit"] for one in [*runs, *(o.scored for o in recorded)]}))
    done = {run for one in recorded for run in one.runs}
    missing = dict.fromkeys(
        " ".join(filter(None, (run.data, "by", run.score, run.behavior and f"to {run.behavior}")))
        for run in plan([0])
        if run not in done
    )
    absent = f" Not recorded to the end: {'; '.join(missing)}." if missing else ""
    seeds = ", ".join(map(str, sorted({one.seeds for one in found}))) or NOTHING
    failed = "\n".join(f"- {line}" for line in failures(found)) or "- Nothing in these tables."
    left_out = [
        f"{one.data}: {one.scored['left_out']}" for one in recorded if one.scored["left_out"]
    ]
    parts = [
        "# Harm by fifth of the rows",
        f"`riprap.preflight` scores {ROWS} rows of a data set before training, by their harm to a "
        "behavior: `harm`, not normalized by module, the predicted fall of the mean margin by one "
        "step on the row (preflight's own list of the worst rows multiplies it by their tokens). "
        f"The rows are sorted by it and cut into {QUINTILES} fifths, from the least harm "
        f"to the most. One LoRA run is trained on each, from the same weights, for {STEPS} steps "
        f"of {BATCH} rows at a constant {RATE:g}. The start is SmolLM2-135M-Instruct, taught to "
        "refuse. The loss is the share of the mean margin that is gone at the end; above 1, the "
        "mean margin is negative. `random` and `length` (tokens of the response, the longest "
        "last) are controls. `monotone`: each fifth lost more than the one before it, which one "
        "order in 120 does by chance; Spearman's correlation over five has a standard deviation "
        "of 0.5 by chance.",
        f"Recorded: {len(runs)} of {len(planned)} runs, by `{COMMAND}` at {commits}, in "
        f"{seconds:.0f} processor seconds.{absent} Seeds for each ranking: {seeds}. The data "
        f"sets are those of the exploratory half. This page: `{COMMAND}_page`.",
        f"## In short\n\n{table(summary_table(found))}",
        f"## What fails\n\n{failed}",
        f"## Loss by fifth\n\n{table(losses_table(found))}",
        "## How much was predicted\n\nPredicted / what came, sorted by harm. The prediction is of "
        f"the first order: the mean harm of the fifth's rows, times {STEPS} steps.\n\n"
        f"{table(predicted_table(found))}",
        "## All runs together\n\nSpearman's correlation of the mean score of a run's rows with its "
        "loss, over all runs of a data set, whichever way its rows were sorted. The runs share "
        "rows, and each ranking spreads its own score most: the harm's columns are favored."
        f"\n\n{table(groups_table(recorded))}",
        f"## Where the rows come from\n\n{table(sources_table(found))}",
        "## What it cannot tell\n\nResponses have at most 20 tokens, so many rows are equally "
        "long. Each behavior has at most 20 probes. A fifth has 40 rows, each trained on twice: "
        f"the harm of more rows, or of longer training, is not measured. {'; '.join(left_out)}",
    ]
    page = out / f"{FOLDER}.md"
    page.write_text("\n\n".join(part.strip() for part in parts) + "\n", encoding="utf-8")
    return page


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/onset"))
    print(write_page(parser.parse_args(arguments).out))


if __name__ == "__main__":
    main()
