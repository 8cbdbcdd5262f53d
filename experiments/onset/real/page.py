"""Page of the corpus: what was recorded, and what broke on the exploratory half."""

from __future__ import annotations

from pathlib import Path

from experiments.harness.markdown import table
from experiments.onset.real.plan import PLAN, Condition
from experiments.onset.real.run import path_of, recorded
from experiments.onset.trace import Trace

COMMAND = "python -m experiments.onset.real --out results/onset"
FIRST_COMMIT = "61d09a0"  # of the runs that do not name theirs

LIMITS = (
    "What it cannot tell: probes are evaluated after steps 0, 1, 2, 3, 4, 6, 8, 12 and 16 and then "
    "after every 4, since the truth at every step is beyond this machine. h_b is refreshed at "
    "steps 0, 8, 48, 88 and 128. A run measures three behaviors, on up to 20 probes that its start "
    "passes; rows have at most 40 tokens, four a step. A score may begin one probe below 1: in "
    "bfloat16 a margin near 0 depends on the batch. BoolQ is asked without its passages, and the "
    "stock model is right on 52 of 100, as often as chance. Refusal and over-refusal are "
    "left out on the stock model, which refuses none of eight harmful requests. "
    "`generated_refusals` in a run's facts is the share of eight harmful requests that greedy "
    "answers refuse, before and after; no answer is kept."
)


def write_page(out: Path) -> Path:
    """Write the README of the corpus; of confirmatory runs it reads no margins."""
    traces = {c: recorded(out, c) for c in PLAN if c.half == "exploratory"}
    found = [(c, trace) for c, trace in traces.items() if trace is not None]
    n_confirmatory = sum(c.half == "confirmatory" and path_of(c, out).exists() for c in PLAN)
    seconds = [trace.about["processor_seconds"] for _, trace in found]
    spent = f"{min(seconds):.0f} to {max(seconds):.0f}" if seconds else "no"
    commits = ", ".join(sorted({t.about.get("commit", FIRST_COMMIT) for _, t in found}))
    page = path_of(PLAN[0], out).with_name("README.md")
    page.parent.mkdir(parents=True, exist_ok=True)
    sections = [
        "# Real runs\n\nSmolLM2-135M-Instruct, as it is or taught to refuse, is trained with LoRA "
        "on public data. Each file is one run (`experiments/onset/trace.py`): the margins of all "
        "probes, the interference of each step, learning rates and losses.",
        f"Recorded: {len(found)} of {len(traces)} exploratory and {n_confirmatory} of "
        f"{len(PLAN) - len(traces)} confirmatory runs, by `{COMMAND}` (one thread, resumable), "
        f"at commit {commits or 'none'}, for {spent} processor seconds an exploratory run (on a "
        "machine shared with other work; the first runs of a start also choose its probes). "
        f"This page: `{COMMAND} --page`.",
        LIMITS,
        f"## Plan\n\nIt was fixed before any run. The halves share no data set, no harmful request "
        f"and no opener.\n\n{_plan(out)}",
        f"## What broke on the exploratory half\n\nThe step is the first evaluated one "
        f"with a score under 0.9; “–”: it survived.\n\n{_breaks(found)}\n\n{_totals(found)}",
        "## The confirmatory half\n\nIt is recorded and not looked at: no alert rule was run on "
        "it, and no table of it was printed. The plan says which of its runs are there.",
    ]
    page.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return page


def _plan(out: Path) -> str:
    rows = []
    for number, c in enumerate(PLAN, 1):
        extras = [name for name in ("opener", "brief") if getattr(c, name)]
        extras += [f"{100 * c.harmful:g} % harmful"] if c.harmful else []
        extras += [f"{100 * c.replay:g} % replay"] if c.replay else []
        rows.append(
            {
                "": number,
                "half": c.half,
                "start": c.start,
                "data": " + ".join(c.data),
                "with": ", ".join(extras),
                "rate": f"{c.rate:g}",
                "schedule": c.schedule,
                "steps": c.steps,
                "behaviors": ", ".join(c.behaviors),
                "recorded": "yes" if path_of(c, out).exists() else "no",
            }
        )
    return table(rows)


def _breaks(found: list[tuple[Condition, Trace]]) -> str:
    rows = []
    for condition, trace in found:
        outcomes = [
            f"{name} {_step(trace.break_step(name))} ({own.scores()[-1]:.2f})"
            for name, own in trace.behaviors.items()
        ]
        before, after = trace.about["generated_refusals"]
        rows.append(
            {
                "run": condition.name,
                "first break (score at the end)": "; ".join(outcomes),
                "generated refusals": f"{before:.2f} → {after:.2f}",
                "processor seconds": f"{trace.about['processor_seconds']:.0f}",
            }
        )
    return table(rows)


def _step(step: int | None) -> str:
    return "–" if step is None else str(step)


def _totals(found: list[tuple[Condition, Trace]]) -> str:
    names = dict.fromkeys(name for _, trace in found for name in trace.behaviors)
    rows = []
    for name in names:
        own = [trace for _, trace in found if name in trace.behaviors]
        steps = sorted(step for t in own if (step := t.break_step(name)) is not None)
        at = ", ".join(map(str, steps))
        rows.append({"behavior": name, "runs": len(own), "broke": len(steps), "at steps": at})
    return table(rows)
