"""Does a behavior that is held more deeply leave more time? On all recorded runs.

`python -m experiments.onset.depth --runs runs/onset/unlike runs/onset/held_out results/onset/real
--page results/onset/depth.md`. Nothing is chosen here, so both halves of each corpus are read.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from experiments.harness import markdown
from experiments.onset.replay import judge_by, replay
from experiments.onset.trace import Trace, load_corpus
from riprap.detectors import AlertPolicy, threshold_margin
from riprap.types import Level

REPLICATES = 2000
Array = np.ndarray


@dataclass(frozen=True)
class Held:
    """A behavior at the start of a run, and how long it lasted.

    Attributes:
        norm: ‖h_b‖ at the start, the norm of the gradient of the mean margin.
        margin, threshold: mean margin and threshold margin at the start.
        steps, summed: steps and summed rate until the break, or until the end of the run.
        broke: whether it broke; if not, it is known only to have lasted longer.
        lead: steps from the first `warning` of the default policy to the break; NaN: no break, or
            no warning before it.
    """

    run: str
    world: str
    norm: float
    margin: float
    threshold: float
    steps: int
    summed: float
    broke: bool
    lead: float


DEPTHS: dict[str, Callable[[Held], float]] = {
    "‖h_b‖, less is deeper": lambda own: -own.norm,
    "mean margin": lambda own: own.margin,
    "threshold margin": lambda own: own.threshold,
    "mean margin / ‖h_b‖": lambda own: own.margin / own.norm,
    "threshold margin / ‖h_b‖": lambda own: own.threshold / own.norm,
}


def held(traces: Sequence[Trace]) -> list[Held]:
    """Return the behaviors that start healthy and whose gradient is known."""
    found, policy = [], AlertPolicy.default()
    for trace in traces:
        about = trace.about
        scale = float(about.get("share", about.get("rate", 1.0)))  # comparable between optimizers
        sums = scale * np.concatenate([[0.0], np.cumsum(trace.rates)])
        for outcome in replay(trace, judge_by(policy)):
            own = trace.behaviors[outcome.behavior]
            norm = float(own.gradient_norms[0])
            if not norm > 0:
                continue
            steps = trace.n_steps if outcome.broke is None else outcome.broke
            lead = outcome.lead(Level.WARNING)
            start = own.margins[0]
            found.append(
                Held(
                    trace.name,
                    str(about.get("world", trace.corpus)),
                    norm,
                    float(start.mean()),
                    threshold_margin(start, own.floor),
                    steps,
                    float(sums[steps]),
                    outcome.broke is not None,
                    float(lead) if lead is not None and lead > 0 else math.nan,
                )
            )
    return found


def correlation(found: Sequence[Held], depth: Array, times: Array) -> str:
    """Return Spearman's correlation within worlds, with its 95 % interval over runs.

    Ranks are taken within each world, because margins and rates of worlds have other units.
    """
    known = np.isfinite(times)
    runs = np.array([own.run for own in found])[known]
    worlds = np.array([own.world for own in found])[known]
    depth, times = depth[known], times[known]

    def of(at: Array) -> float:
        pairs = [np.empty((0, 2))]
        for world in np.unique(worlds[at]):
            inside = at[worlds[at] == world]
            ranks = np.stack([rankdata(depth[inside]), rankdata(times[inside])], axis=1)
            pairs.append((ranks - ranks.mean(axis=0)) / len(inside))
        x, y = np.concatenate(pairs).T
        size = math.sqrt(float((x @ x) * (y @ y)))
        return float(x @ y) / size if size > 0 else math.nan

    return f"{interval(runs, of)} of {len(runs)}"


def interval(runs: Array, of: Callable[[Array], float]) -> str:
    """Format a statistic of cases with its 95 % interval, by a bootstrap over runs."""
    if len(np.unique(runs)) < 3:
        return markdown.NOTHING
    by_run = [np.flatnonzero(runs == run) for run in np.unique(runs)]
    rng = np.random.default_rng(0)
    draws = [
        of(np.concatenate([by_run[at] for at in rng.integers(len(by_run), size=len(by_run))]))
        for _ in range(REPLICATES)
    ]
    ends = np.nanquantile(draws, (0.025, 0.975)) if np.isfinite(draws).any() else (math.nan,) * 2
    low, high = (markdown.number(end, 2) for end in ends)
    return f"{markdown.number(of(np.arange(len(runs))), 2)} [{low}, {high}]"


def concordance(found: Sequence[Held], depth: Array, within: str) -> str:
    """Return the concordance index of depth and time, with its 95 % interval over runs.

    Of the pairs in which one is known to have lasted longer: the share in which the deeper one did.
    The first of a pair must have broken; the other broke later, or was still held at that time.
    Only pairs of one world, or of one run, are compared.

    Args:
        within: "world": time is the summed rate; "run": the same training, so steps do as well.
    """
    times = np.array([own.summed for own in found])
    broke = np.array([own.broke for own in found])
    strata = np.array([getattr(own, within) for own in found])
    runs, place = np.unique([own.run for own in found], return_inverse=True)
    earlier = broke[:, None] & (times[:, None] < times[None, :])
    earlier |= broke[:, None] & ~broke[None, :] & (times[:, None] == times[None, :])
    earlier &= strata[:, None] == strata[None, :]
    right = earlier * (np.sign(depth[None, :] - depth[:, None]) + 1) / 2
    members = np.eye(len(runs))[place]  # (cases, runs)
    all_of, right_of = (members.T @ pairs @ members for pairs in (earlier.astype(float), right))
    if not all_of.sum():
        return markdown.NOTHING
    rng, draws = np.random.default_rng(0), []
    for _ in range(REPLICATES):
        times_drawn = rng.multinomial(len(runs), np.full(len(runs), 1 / len(runs)))
        weights = np.outer(times_drawn, times_drawn).astype(float)
        np.fill_diagonal(weights, times_drawn)
        total = float((weights * all_of).sum())
        draws.append(float((weights * right_of).sum()) / total if total else math.nan)
    low, high = (markdown.number(end, 2) for end in np.nanquantile(draws, (0.025, 0.975)))
    share = markdown.number(right.sum() / earlier.sum(), 2)
    return f"{share} [{low}, {high}] of {int(earlier.sum()):,} pairs"


def rows(found: Sequence[Held]) -> list[dict[str, str]]:
    """Return one line for each measure of depth."""
    broke = np.array([own.broke for own in found])
    times = {
        "time to break, Σ rate": np.array([own.summed for own in found]),
        "time to break, steps": np.array([own.steps for own in found], dtype=float),
        "lead of the first warning": np.array([own.lead for own in found]),
    }
    lines = []
    for name, measure in DEPTHS.items():
        depth = np.array([measure(own) for own in found])
        row = {"depth at the start": name}
        for time, values in times.items():
            row[time] = correlation(found, depth, np.where(broke, values, np.nan))
        row["concordance within worlds"] = concordance(found, depth, "world")
        row["concordance within runs"] = concordance(found, depth, "run")
        lines.append(row)
    return lines


HEAD = """# Depth: does a behavior that is held more deeply leave more time?

`{command}`, commit {commit}. Both halves of each corpus are read: nothing was chosen on them.

Each line is a measure at the start of the run, oriented so that a positive correlation, or a
concordance above 0.5, says "deeper leaves more time". Spearman's correlations are of the
behavior-runs that broke, with ranks taken within each world; the lead is that of the default policy
without a budget, where there was a warning before the break. The concordance index also uses those
that never broke: of the pairs of which one is known to have lasted longer, the share in which the
deeper one did (right-censored at the end of the run; time is the summed rate). *Within runs*
compares behaviors under the same training. 95 % intervals by a bootstrap over runs. The summed rate
is in shares of the world's high rate for the optimizer (`unlike`, `held_out`), or absolute
(`real`). Curvature is not recorded in these runs, so it is not here.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, and write them to the page."""
    parser = argparse.ArgumentParser(prog="python -m experiments.onset.depth", description=__doc__)
    parser.add_argument(
        "--runs",
        type=Path,
        nargs="+",
        default=[
            Path("runs/onset/unlike"),
            Path("runs/onset/held_out"),
            Path("results/onset/real"),
        ],
        help="folders of corpora",
    )
    parser.add_argument("--page", type=Path)
    options = parser.parse_args(arguments)
    command = f"python -m experiments.onset.depth --runs {' '.join(map(str, options.runs))}"
    text = [HEAD.format(command=command, commit=markdown.commit()).strip()]
    for folder in options.runs:
        traces = [
            trace
            for half in ("exploratory", "confirmatory")
            for trace in load_corpus(folder.parent, folder.name, half)  # type: ignore[arg-type]
        ]
        found = held(traces)
        if not found:
            text.append(f"## {folder.name}\n\nNo runs are there.")
            continue
        counts = (
            f"{len(traces)} runs, {len(found)} behavior-runs, {sum(h.broke for h in found)} breaks"
        )
        text.append(f"## {folder.name}\n\n{counts}.\n\n{markdown.table(rows(found))}")
        print(text[-1], flush=True)
    if options.page:
        options.page.write_text("\n\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
