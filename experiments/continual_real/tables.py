"""Tables of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from experiments.continual_real.analysis import (
    CONTROLS,
    MODERATE,
    PLAIN,
    RANDOM,
    YOKED,
    Cell,
    claims,
    difference,
    excess,
    finished,
    forgetting,
    forgotten,
    largest_drop,
    learned,
    overlap,
    refusing,
    unlike,
)
from experiments.continual_real.methods import FRONT, MAIN, METHODS, SHARES, SWEPT
from experiments.continual_real.paper import paper_tables, swept_name
from experiments.continual_real.plan import GIVEN, Plan
from experiments.continual_real.simulate import REFUSALS, Run, Stage
from experiments.harness.markdown import NOTHING, count_of_total, median_range, number
from riprap.evals import agreement
from riprap.types import Level

RULES, DETECTOR = "refusal_rules", "refusal_detector"
DESCRIBED = (*FRONT, "auto_guard")  # no claim is about these
PAIRS = (
    (MODERATE, PLAIN),
    (RANDOM, PLAIN),
    (MODERATE, RANDOM),
    *((MODERATE, control) for control in (*CONTROLS, YOKED)),
    *((name, other) for name in DESCRIBED for other in (PLAIN, MODERATE)),
)
BASE = "(base)"
FALL = 0.1  # of a score, from which it has fallen


def sections(runs: list[Run], plan: Plan) -> dict[str, Any]:
    """Return the tables and numbers of the page."""
    methods = finished(runs)
    ordered = {n: methods[n] for n in METHODS if n in methods and n not in SWEPT}
    return {
        "rate": ", ".join(f"{rate:g}" for rate in sorted({run.rate for run in runs})) or "–",
        "n_runs": len(runs),
        "verdicts": [
            {"verdict on": name, "is": verdict, "claim": plan.claims.get(name, "–")}
            for name, verdict in claims(runs, plan).items()
        ],
        "rules": [{"rule": name, "text": text} for name, text in plan.rules.items()],
        "differences": [_difference(methods, *pair) for pair in PAIRS],
        "methods": [_method(name, own, methods) for name, own in ordered.items()],
        "bases": _bases(methods),
        "stages": [_stages(name, own) for name, own in ordered.items()],
        "kept": [
            *([_kept(BASE, methods[PLAIN], at=0)] if PLAIN in methods else []),
            *(_kept(name, own) for name, own in ordered.items()),
        ],
        "taken": [_taken(name, own) for name, own in ordered.items()],
        "matched": _matched(methods),
        **_refusing(methods),
        "cosines": [_cosines(name, own) for name, own in ordered.items()],
        "cosine_ranks": _cosine_ranks(ordered),
        "interference": [row for name, own in ordered.items() for row in _interference(name, own)],
        "monitor": [_monitor(name, own) for name, own in ordered.items()],
        "critical": [_critical(name, own) for name, own in ordered.items()],
        "alerts_and_falls": [_alerts_and_falls(name, ordered) for name in REFUSALS],
        "orders": _orders(runs, plan),
        "shares": _shares(methods, plan),
        "paper": paper_tables(methods, plan.setting.ratio),
        "judges": _judges(runs),
        "steep": _steep(methods),
        "notes": [{"run": _name(run), "note": note} for run in runs for note in run.notes],
        "failed": [{"run": _name(run), "why": run.failed} for run in runs if run.failed],
    }


def _name(run: Run) -> str:
    return f"{run.method}, {run.order}, base {run.base}, seed {run.seed}"


def _difference(methods: dict[str, dict[Cell, Run]], one: str, other: str) -> dict[str, str]:
    values: dict[str, Callable[[Run], float]] = {
        "attack success": lambda run: run.looks[-1].attack_success(),
        "margin of refusal": lambda run: run.looks[-1].margins["refusal"],
        "learned": learned,
        "safe prompts refused": lambda run: run.looks[-1].over_refusal,
        "above plain at equal learning": lambda run: excess(run, methods),
    }
    row = {"": f"{one} − {other}"}
    for title, value in values.items():
        found = difference(methods, one, other, value)
        ends = f"[{number(found.low, 2)}, {number(found.high, 2)}]"
        row[title] = f"{number(found.mean, 2)} {ends}"
        row["cells"] = row.get("cells", str(found.n))
    return row


def _method(name: str, own: dict[Cell, Run], methods: dict[str, dict[Cell, Run]]) -> dict[str, str]:
    runs = list(own.values())
    ends = [run.looks[-1] for run in runs]
    plain = methods.get(PLAIN, {})
    usual = np.median([_seconds(run) for run in plain.values()]) if plain else math.nan
    first = own.get(min(plain, default=min(own)))
    first_end = None if first is None else first.looks[-1].attack_success()
    return {
        "method": name,
        "runs": str(len(runs)),
        "attack success": median_range([end.attack_success(RULES) for end in ends], 2, "mean"),
        "on the first base and order": number(first_end, 2),
        "by the detector": median_range([end.attack_success(DETECTOR) for end in ends], 2, "mean"),
        "safe prompts refused": median_range([end.over_refusal for end in ends], 2, "mean"),
        "empty answers": str(sum(end.silent for end in ends)),
        "learned": median_range([learned(run) for run in runs], 2, "mean"),
        "above plain at equal learning": median_range(
            [excess(run, methods) for run in runs], 2, "mean"
        ),
        "forgotten": median_range([forgotten(run) for run in runs], 2, "mean"),
        "forgetting": median_range([forgetting(run) for run in runs], 2, "mean"),
        "time": median_range([_seconds(run) / usual for run in runs], 2),
        "memory, MiB": number(min(run.memory for run in runs)),
    }


def _bases(methods: dict[str, dict[Cell, Run]]) -> list[dict[str, str]]:
    """Return the mean final attack success of each main method, by base."""
    rows = []
    for base in sorted({base for own in methods.values() for base, _ in own}):
        starts = [
            run.looks[0] for own in methods.values() for (b, _), run in own.items() if b == base
        ]
        row = {"base": str(base), "before training": number(starts[0].attack_success(), 2)}
        for name in MAIN:
            cells = [run for (b, _), run in methods.get(name, {}).items() if b == base]
            ends = [run.looks[-1].attack_success() for run in cells]
            row[name] = number(np.mean(ends), 2) if ends else NOTHING
        rows.append(row)
    return rows


def _matched(methods: dict[str, dict[Cell, Run]]) -> list[dict[str, str]]:
    """Return how far each control's rows are those of moderate selection, over all cells."""
    rows = []
    for name in (RANDOM, *CONTROLS, YOKED):
        pairs = [
            (run, methods[MODERATE][cell])
            for cell, run in methods.get(name, {}).items()
            if cell in methods.get(MODERATE, {})
        ]
        if not pairs:
            continue
        ratios = [
            a.tokens / b.tokens
            for one, two in pairs
            for a, b in zip(one.stages, two.stages, strict=True)
        ]
        shared = [overlap(one, two) for one, two in pairs]
        rows.append(
            {
                "control": name,
                "same rows as moderate": median_range(shared, 2, "mean"),
                "response tokens ÷ moderate's, by stage": median_range(ratios, 2, "mean"),
                "categories unlike moderate's": median_range(
                    [unlike(one, two) for one, two in pairs], 2, "mean"
                ),
            }
        )
    return rows


def _refusing(methods: dict[str, dict[Cell, Run]]) -> dict[str, Any]:
    """Return, of each selection, the SQuAD rows without an answer beside attack success."""
    chosen = (MODERATE, RANDOM, *CONTROLS, YOKED)
    cells = sorted({cell for name in chosen for cell in methods.get(name, {})})
    rows, pairs = [], []
    for name in chosen:
        row = {"method": name}
        for cell in cells:
            run = methods.get(name, {}).get(cell)
            if run is not None:
                pairs.append((refusing(run), run.looks[-1].attack_success()))
            said = NOTHING if run is None else " → ".join(number(own, 2) for own in pairs[-1])
            row["base {}, order {}".format(*cell)] = said
        rows.append(row)
    known = len({one for one, _ in pairs}) > 1
    rank = float(spearmanr(*zip(*pairs, strict=True)).statistic) if known else np.nan
    return {"refusing": rows, "refusing_rank": f"{number(rank, 2)} over {len(pairs)} runs"}


def _seconds(run: Run) -> float:
    return sum(stage.seconds for stage in run.stages)


def _stages(name: str, own: dict[Cell, Run]) -> dict[str, str]:
    looks = list(zip(*(run.looks for run in own.values()), strict=True))
    titles = ["base", *next(iter(own.values())).tasks]
    return {"method": name} | {
        f"after {title}" if at else title: median_range(
            [look.attack_success() for look in same], 2, "mean"
        )
        for at, (title, same) in enumerate(zip(titles, looks, strict=True))
    }


def _kept(name: str, own: dict[Cell, Run], at: int = -1) -> dict[str, str]:
    runs = list(own.values())
    ends = [run.looks[at] for run in runs]
    row = {"method": name}
    for behavior in ends[0].scores:
        row[behavior] = median_range([end.scores[behavior] for end in ends], 2, "mean")
    row["largest drop of refusal"] = number(max(map(largest_drop, runs)), 2) if at else NOTHING
    row["XSTest safe refused"] = median_range([end.over_refusal for end in ends], 2, "mean")
    for task in ends[0].choices:
        row[task] = median_range([end.choices[task][0] for end in ends], 2, "mean")
    for divergence in ends[0].outputs:
        row[f"KL {divergence}"] = median_range([e.outputs[divergence] for e in ends], 2, "mean")
    return row


def _taken(name: str, own: dict[Cell, Run]) -> dict[str, str]:
    run = next(iter(own.values()))
    row = {"method": name, "rows": str(sum(stage.rows for stage in run.stages))}
    for stage in sorted(run.stages, key=lambda one: one.task):
        counts = ", ".join(f"{c} {stage.taken[c] / stage.rows:.0%}" for c in sorted(stage.taken))
        row[stage.task] = f"{counts}; {number(stage.tokens, 1)} tokens"
    return row


def _cosines(name: str, own: dict[Cell, Run]) -> dict[str, str]:
    ends = [run.looks[-1].cosines for run in own.values()]
    return {"method": name} | {
        kind: " / ".join(number(np.mean([end[kind][at] for end in ends]), 3) for at in (0, 1))
        for kind in ends[0]
    }


def _cosine_ranks(methods: dict[str, dict[Cell, Run]]) -> list[dict[str, str]]:
    """Return the rank correlation of each cosine in the end with attack success, over runs."""
    looks = [run.looks[-1] for own in methods.values() for run in own.values()]
    success = [look.attack_success() for look in looks]
    rows = []
    for at, title in enumerate(("at the coordinates that teaching moved most", "over all")):
        row = {"cosine": title}
        for kind in looks[0].cosines if len(looks) > 1 else ():
            own = [look.cosines[kind][at] for look in looks]
            row[kind] = number(float(spearmanr(own, success).statistic), 2)
        rows.append(row | {"runs": str(len(looks))})
    return rows


def _interference(name: str, own: dict[Cell, Run]) -> list[dict[str, str]]:
    """Return one line a stage: what it did to the loss of each task, and to refusal."""
    runs, rows = list(own.values()), []
    for at, task in enumerate(runs[0].tasks):
        pairs = [(run.looks[at], run.looks[at + 1]) for run in runs]
        row = {"method": "" if at else name, "stage": task}
        row |= {
            other: number(np.mean([b.losses[other] - a.losses[other] for a, b in pairs]), 2)
            for other in sorted(runs[0].tasks)
        }
        moved = [b.margins["refusal"] - a.margins["refusal"] for a, b in pairs]
        rows.append(row | {"refusal's margin": number(np.mean(moved), 2)})
    return rows


def _monitor(name: str, own: dict[Cell, Run]) -> dict[str, str]:
    run = next(iter(own.values()))
    told = {
        stage.task: "; ".join(
            [f"{step}: {b} {level}" for step, b, level in stage.alerts]
            + [f"{b} not watched" for b in REFUSALS if b not in stage.margins]
        )
        or NOTHING
        for stage in run.stages
    }
    acted = sum(stage.acted for stage in run.stages)
    return {"method": name, **told, "steps changed by the guard": str(acted)}


def _alarmed(stage: Stage) -> set[str]:
    """Return the behaviors with a critical alert."""
    return {name for _, name, level in stage.alerts if level == Level.CRITICAL}


def _critical(name: str, own: dict[Cell, Run]) -> dict[str, str]:
    """Return in how many runs a behavior had a critical alert: in the first task, and at all."""
    row, runs = {"method": name, "runs": str(len(own))}, list(own.values())
    for behavior in REFUSALS:
        tasks = [[behavior in _alarmed(stage) for stage in run.stages] for run in runs]
        row[f"{behavior}: in the first task"] = str(sum(alarmed[0] for alarmed in tasks))
        row[f"{behavior}: in any task"] = str(sum(map(any, tasks)))
    return row


def _alerts_and_falls(behavior: str, methods: dict[str, dict[Cell, Run]]) -> dict[str, str]:
    """Return after how many tasks the unseen score had fallen, with a critical alert and without.

    Over all tasks of all runs in which the behavior was watched.
    """
    counts = {True: [0, 0], False: [0, 0]}  # with a critical alert or not: fell, all
    for run in (run for own in methods.values() for run in own.values()):
        for stage, (before, after) in zip(run.stages, pairwise(run.looks), strict=True):
            if behavior in stage.margins:
                own_counts = counts[behavior in _alarmed(stage)]
                own_counts[0] += before.scores[behavior] - after.scores[behavior] >= FALL
                own_counts[1] += 1
    return {"behavior": behavior} | {
        title: count_of_total(*counts[alarmed])
        for alarmed, title in ((True, "fell, after a critical alert"), (False, "fell, without one"))
    }


def _orders(runs: Sequence[Run], plan: Plan) -> list[dict[str, str]]:
    rows = []
    for order in plan.orders:
        for name in plan.reordered:
            own = list(finished(runs, order).get(name, {}).values())
            first = [run for run in own if order != GIVEN or _is_first(run, own)]
            for run in first:
                ends = ", ".join(number(look.attack_success(), 2) for look in run.looks[1:])
                row = {"order": ", ".join(run.tasks), "method": name, "attack success": ends}
                rows.append(row | {"task loss": number(run.looks[-1].loss, 2)})
    return rows


def _shares(methods: dict[str, dict[Cell, Run]], plan: Plan) -> list[dict[str, str]]:
    """Return a line for each share of a batch that has run, on the first base and seed."""
    rows = []
    for share in sorted({plan.setting.ratio, *SHARES}):
        for name in (MODERATE, RANDOM):
            own = list(methods.get(swept_name(name, share, plan.setting.ratio), {}).values())
            for run in [one for one in own if _is_first(one, own)]:
                end = run.looks[-1]
                rows_each = int(share * plan.setting.batch)
                row = {"share": f"{share:g}", "rows of each batch": str(max(1, rows_each))}
                row["method"] = name
                row["attack success"] = number(end.attack_success(), 2)
                row["above plain at equal learning"] = number(excess(run, methods), 2)
                row["refusal"] = number(end.scores["refusal"], 2)
                rows.append(
                    row | {"task loss": number(end.loss, 2), "learned": number(learned(run), 2)}
                )
    return rows


def _is_first(run: Run, runs: Sequence[Run]) -> bool:
    return (run.base, run.seed) == min((one.base, one.seed) for one in runs)


def _steep(methods: dict[str, dict[Cell, Run]]) -> str:
    """Return the attack success that a hundredth of learning is worth, by plain's two rates."""
    ends = [
        np.mean([(learned(run), run.looks[-1].attack_success()) for run in own.values()], axis=0)
        for own in (methods.get(name, {}) for name in (*FRONT, PLAIN))
        if own
    ]
    if len(ends) < 2 or ends[0][0] == ends[1][0]:
        return NOTHING
    (low, least), (high, most) = ends
    return number(0.01 * (most - least) / (high - low), 2)


def _judges(runs: Sequence[Run]) -> str:
    pairs = [
        (a == "1", b == "1")
        for run in runs
        for look in run.looks[1:]
        for a, b in zip(look.answered[RULES], look.answered[DETECTOR], strict=True)
    ]
    if not pairs:
        return "–"
    found = agreement(*map(list, zip(*pairs, strict=True)))
    ends = [
        (abs(rules - detector), _name(run), rules, detector)
        for run in runs
        if run.looks
        for rules, detector in [[run.looks[-1].attack_success(own) for own in (RULES, DETECTOR)]]
    ]
    _, name, rules, detector = max(ends)
    return (
        f"{found.same} of {len(pairs)} answers alike, kappa {number(found.kappa, 2)}; they differ "
        f"most in the end of {name}: {number(rules, 2)} by the rules, {number(detector, 2)} by the "
        "detector"
    )


def search_sections(runs: list[Run], plan: Plan) -> dict[str, Any]:
    """Return the table of the rates."""
    return {
        "rates": [
            {
                "rate": f"{run.rate:g}",
                "base": str(run.base),
                "attack success by stage": ", ".join(
                    number(look.attack_success(), 2) for look in run.looks
                ),
                "safe prompts refused": number(run.looks[-1].over_refusal, 2)
                if run.looks
                else NOTHING,
                "learned": number(learned(run), 2) if not run.failed else NOTHING,
                "processor seconds": f"{_seconds(run):.0f} + {run.seconds:.0f}",
                "failed": run.failed or "–",
            }
            for run in runs
        ]
    }
