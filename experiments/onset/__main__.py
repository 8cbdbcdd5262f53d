"""`python -m experiments.onset`: what the alert policies say on recorded runs.

python -m experiments.onset.unlike --out runs/onset      # records the runs
python -m experiments.onset exploratory --runs runs/onset/unlike --page results/onset/chosen.md
python -m experiments.onset confirmatory --runs runs/onset/held_out results/onset/real
python -m experiments.onset confirmatory --runs runs/onset/held_out --figure results/onset
python -m experiments.onset confirmatory --runs runs/onset/held_out --intervals
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.harness import markdown
from experiments.harness.preregistration import Preregistration
from experiments.onset.front import write_front
from experiments.onset.intervals import interval_row, interval_rows_by
from experiments.onset.monitored import watch
from experiments.onset.nulls import null_traces
from experiments.onset.tables import Judged, judge, reliability_rows, table
from experiments.onset.trace import Half, Trace, load_corpus
from riprap.detectors import AlertPolicy, BettingTest, ForecastDetector

SETTINGS = "80 % intervals of the default by setting, beside the aim of 0.75 to 0.88:"
POLICIES = ("default", "quiet", "early")
# The default before: the betting test, and a forecast that needs a fifth of the mean margin gone.
BEFORE = AlertPolicy(name="before", detectors=(BettingTest(), ForecastDetector(declined=0.2)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, and write them to the page."""
    parser = argparse.ArgumentParser(prog="python -m experiments.onset", description=__doc__)
    parser.add_argument("half", choices=("exploratory", "confirmatory"))
    parser.add_argument("--runs", type=Path, nargs="*", default=[], help="folders of corpora")
    parser.add_argument("--nulls", type=int, default=0, help="seeds of synthetic nulls")
    parser.add_argument("--intervals", action="store_true", help="only the tables of intervals")
    parser.add_argument("--page", type=Path)
    parser.add_argument(
        "--figure", type=Path, help="folder: write the front of each corpus there, and no tables"
    )
    options = parser.parse_args(arguments)
    terms = Preregistration.load(Path("experiments/preregistrations/onset.yaml"))
    asked = f"--runs {' '.join(map(str, options.runs))}" if options.runs else ""
    asked += f" --nulls {options.nulls}" if options.nulls else ""
    asked += " --intervals" if options.intervals else ""
    if options.figure:
        options.figure.mkdir(parents=True, exist_ok=True)
        for folder in options.runs:
            command = f"python -m experiments.onset {options.half} --runs {folder}"
            command += f" --figure {options.figure}"
            corpus = load_corpus(folder.parent, folder.name, options.half)
            policies = (BEFORE, *map(AlertPolicy.named, POLICIES))
            print(write_front(folder.name, corpus, policies, options.figure, command), flush=True)
        return
    text = [
        f"`python -m experiments.onset {options.half} {asked.strip()}`, commit "
        f"{markdown.commit()}, preregistration `onset` `{terms.hash}`."
    ]
    for folder in options.runs:
        half: Half = options.half
        traces = load_corpus(folder.parent, folder.name, half)
        text.append((interval_section if options.intervals else section)(folder.name, traces))
        print(text[-1], flush=True)
    if options.nulls:
        traces = list(null_traces(range(options.nulls)))
        only = interval_section("nulls", traces) if options.intervals else None
        text.append(only or section("nulls", traces, monitored=False))
        print(text[-1], flush=True)
    if options.page:
        options.page.parent.mkdir(parents=True, exist_ok=True)
        options.page.write_text("\n\n".join(text) + "\n", encoding="utf-8")


def interval_section(name: str, traces: Sequence[Trace]) -> str:
    """Return the table of the default's intervals in one corpus, by setting."""
    if not traces:
        return f"## {name}\n\nNo runs of this half are there."
    rows = interval_rows_by(judge(traces, AlertPolicy.default(), statistics={}))
    return f"## {name}\n\n{SETTINGS}\n\n{markdown.table(rows)}"


def section(name: str, traces: Sequence[Trace], monitored: bool = True) -> str:
    """Return the tables of one corpus.

    Args:
        monitored: run the real monitor along the records too.
    """
    if not traces:
        return f"## {name}\n\nNo runs of this half are there."
    rows, intervals, by_setting, reliability = [], [], [], []
    for policy in (BEFORE, *map(AlertPolicy.named, POLICIES)):
        judged = judge(traces, policy)
        rows += table(policy.name, judged, with_rivals=policy.name == "default")
        if policy.name in ("before", "default"):
            intervals.append(interval_row(policy.name, judged))
        if policy.name == "default":
            by_setting = interval_rows_by(judged)
            reliability = reliability_rows(judged)
    default = AlertPolicy.default()
    for budget, price in ((None, 0.0), (0.03, 0.1), (0.03, 0.9)) if monitored else ():
        outcomes = [o for trace in traces for o in watch(trace, default, budget, price)]
        by = "default, real monitor"
        if budget is not None:
            by += f", budget {budget:.0%}, an evaluation costs {price} steps"
        rows += table(by, [Judged(outcome) for outcome in outcomes], with_rivals=False)
    behaviors = sum(len(trace.behaviors) for trace in traces)
    return (
        f"## {name}\n\n{len(traces)} runs, {behaviors} behavior-runs.\n\n{markdown.table(rows)}\n\n"
        f"{markdown.table(intervals)}\n\n"
        f"{SETTINGS}\n\n{markdown.table(by_setting)}\n\n{markdown.table(reliability)}"
    )


if __name__ == "__main__":
    main()
