"""Check `riprap.preflight` on the real corpus: predictions before training, beside what came.

`python -m experiments.onset.preflight_check --predict` predicts each run of the plan, one file a
run, and does not read what came; `--table` joins the predictions with the recorded runs; `--pace`
makes the table of the forecast alone, from the first steps of the recorded runs. All read the
exploratory half unless `--half confirmatory` is given.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from experiments.harness import markdown
from experiments.harness.preregistration import Preregistration
from experiments.onset import pace
from experiments.onset.pace import Case
from experiments.onset.tables import share
from experiments.onset.trace import Half, Trace, load_corpus
from riprap.prediction import DEFAULT_CHECKPOINTS, Preflight

CORPUS, FOLDER = "real", "preflight"
ROWS, REPLICATES = 96, 2000
SCORES = ("harm", "normalized_harm", "sqsd_like", "length", "loss", "gradient_norm", "random")
PREDICTED = ("predicted_loss", "first_order_loss", "warm_loss")
# Rules that need no gradients of behaviors are as good as the rate they are multiplied with.
RATE_ONLY = "summed rate"
Rows = list[dict[str, Any]]


def predict_run(
    condition: Any, rows: int = ROWS, checkpoints: int = DEFAULT_CHECKPOINTS
) -> Preflight:
    """Predict one run of the real corpus, from its rows, its rate and its schedule."""
    from peft import LoraConfig, get_peft_model

    from experiments.onset.real.probes import measure
    from experiments.onset.real.recorder import share_of_rate
    from experiments.onset.real.rows import make_batches, make_rows
    from experiments.onset.real.run import RANK, load
    from riprap import preflight

    model, tokenizer = load(condition.start)
    measured = measure(condition.start, condition.behaviors, model, tokenizer)
    torch.manual_seed(condition.seed)
    adapter = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    trained = get_peft_model(model, adapter)
    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    return preflight(
        trained,
        list(make_batches(tokenizer, make_rows(condition))),
        [own.behavior for own in measured],
        optimizer=torch.optim.AdamW(parameters, lr=condition.rate, weight_decay=0.0),
        steps=condition.steps,
        schedule=lambda step: share_of_rate(condition.schedule, step, condition.steps),
        max_grad_norm=1.0,
        checkpoints=checkpoints,
        n_rows=rows,
    )


def facts_of(found: Preflight, rates: np.ndarray, rate: float) -> dict[str, Any]:
    """Return what is stored of a prediction: the scores of rows, and the sums of the run.

    `predicted_loss` is the fall of the mean margin over the whole run as a share of its start: what
    the warm start took, and its pace over the rest of the schedule. `first_order_loss` is the drift
    of the rows over the whole schedule, without what the warm start measured.
    """
    stored = found.to_dict()
    done = sum(min(1.0, (step + 1) / 4) for step in range(found.warm_steps))
    for name, one in found.behaviors.items():
        own = stored["behaviors"][name]
        start = float(one.start_margins.mean())
        warm = start - float(one.margins.mean())
        rest = max(0.0, float(rates.sum()) - done)
        own["predicted_loss"] = (warm - rest * one.pace) / start
        own["first_order_loss"] = -float(rates.sum()) * one.drift / start
        own["warm_loss"] = warm / start
        weights = found.weights / found.weights.sum()
        own["means"] = {
            key: float(weights @ values) if key != "length" else float(values.mean())
            for key, values in found.scores(name).items()
        }
    return stored | {"summed_rate": rate * float(rates.sum()), "rate": rate}


def predict(
    out: Path,
    half: Half,
    until: datetime | None = None,
    rows: int = ROWS,
    checkpoints: int = DEFAULT_CHECKPOINTS,
) -> None:
    """Predict the runs of a half that are not predicted yet, in the order of the plan."""
    from experiments.onset.real.plan import PLAN
    from experiments.onset.real.recorder import share_of_rate

    torch.set_num_threads(1)
    for condition in PLAN:
        path = out / FOLDER / f"{condition.name}.json"
        if condition.half != half or path.exists():
            continue
        if until is not None and datetime.now() >= until:
            print("stopped: the time is over", flush=True)
            return
        began = time.process_time()
        found = predict_run(condition, rows, checkpoints)
        steps = range(condition.steps)
        rates = np.array([share_of_rate(condition.schedule, s, condition.steps) for s in steps])
        stored = facts_of(found, rates, condition.rate)
        stored |= {"name": condition.name, "half": half, "about": condition.about}
        stored["processor_seconds"] = round(time.process_time() - began, 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(stored, indent=1, allow_nan=False))
        partial.rename(path)
        print(f"{condition.name}: {stored['processor_seconds']} s: {found.verdict}", flush=True)


def outcome(trace: Trace, name: str) -> dict[str, Any]:
    """Return what came: the break, and the loss of margin at the end and where it was largest."""
    means = trace.behaviors[name].margins.mean(axis=1)
    losses = 1 - means / means[0]
    row = {"run": trace.name, "behavior": name, "break": trace.break_step(name)}
    return row | {"realized_loss": float(losses[-1]), "largest_loss": float(losses.max())}


def join(predictions: Sequence[Mapping[str, Any]], traces: Sequence[Trace]) -> Rows:
    """Return a row for each behavior of each run that is both predicted and recorded."""
    by_name = {trace.name: trace for trace in traces}
    rows = []
    for one in predictions:
        trace = by_name.get(one["name"])
        if trace is None:
            continue
        for name, own in one["behaviors"].items():
            row = outcome(trace, name)
            row |= {key: own[key] for key in PREDICTED}
            row |= {
                "steps": trace.n_steps,
                "warm_steps": one["warm_steps"],
                **own["all_rows"]["steps_to_break"],
            }
            seen = own.get("broke_in_warm_start") is not None  # then nothing is forecast
            row["probability"] = 1.0 if seen else own["all_rows"]["probability"]
            row |= {key: own["means"][key] * one["summed_rate"] for key in SCORES}
            for key in ("harm", "normalized_harm"):  # these contain the rate
                row[key] = own["means"][key] * one["summed_rate"] / one["rate"]
            rows.append(row | {RATE_ONLY: one["summed_rate"]})
    return rows


def pace_rows(found: Sequence[Case]) -> Rows:
    """Return the rows that the forecast alone gives, from the first steps of the recorded runs."""
    rows = []
    for case in found:
        course = case.course()
        forecast, probability = course.forecast()
        start = case.start.mean()
        warm_loss = 1 - case.margins[-1].mean() / start
        steps = {key: getattr(forecast, key) for key in ("low", "median", "high")}
        summed = float(case.trace.rates.sum()) * float(case.trace.about.get("rate", 1.0))
        rows.append(
            outcome(case.trace, case.behavior)
            | {
                "predicted_loss": float(warm_loss - case.left * course.slopes.mean() / start),
                "warm_loss": float(warm_loss),
                "probability": probability,
                RATE_ONLY: summed,
            }
            | {key: value if math.isfinite(value) else None for key, value in steps.items()}
        )
    return rows


def correlation(
    rows: Rows, score: str, realized: str = "realized_loss"
) -> tuple[float, float, float]:
    """Return Spearman's correlation with its 95 % interval, by a bootstrap over runs."""
    names = sorted({row["run"] for row in rows})
    by_run = {name: [row for row in rows if row["run"] == name] for name in names}
    rng = np.random.default_rng(0)

    def of(drawn: Sequence[str]) -> float:
        pairs = [(row[score], row[realized]) for name in drawn for row in by_run[name]]
        if len({one for one, _ in pairs}) < 2 or len({two for _, two in pairs}) < 2:
            return math.nan
        return float(spearmanr(*zip(*pairs, strict=True)).statistic)

    draws = [of(rng.choice(names, len(names)).tolist()) for _ in range(REPLICATES)]
    low, high = np.nanquantile(draws, (0.025, 0.975)) if len(names) > 1 else (math.nan, math.nan)
    return of(names), float(low), float(high)


def break_facts(rows: Rows) -> dict[str, str]:
    """Return how the forecasts of breaks did: shares with their intervals, and of how many.

    Where no break was predicted, no time counts as right.
    """
    broke = [row for row in rows if row["break"] is not None]
    kept = [row for row in rows if row["break"] is None]
    said = [row for row in broke if row["probability"] > 0.5]
    near = [row for row in said if 0.5 <= (row["median"] or math.inf) / row["break"] <= 2]
    inside = [row for row in said if _holds(row)]
    wrong = [row for row in kept if row["probability"] > 0.5]
    return {
        "breaks that were predicted": share(len(said), len(broke)),
        "of these, with a median within a factor of two": share(len(near), len(said)),
        "of these, with the break in the 80 % interval": share(len(inside), len(said)),
        "predicted to break, and did not": share(len(wrong), len(kept)),
    }


def _holds(row: Mapping[str, Any]) -> bool:
    low = math.inf if row["low"] is None else row["low"]
    high = math.inf if row["high"] is None else row["high"]
    return bool(low <= row["break"] <= high)


def table(rows: Rows) -> str:
    """Return the table of correlations and of breaks, as Markdown."""
    runs = len({row["run"] for row in rows})
    lines = [
        f"{len(rows)} behavior-runs of {runs} runs; 95 % intervals by a bootstrap over runs.",
        "",
    ]
    lines += [
        "| score before training | Spearman with the loss at the end | with the largest loss |"
    ]
    lines += ["|---|---|---|"]
    for score in (*PREDICTED, *SCORES, RATE_ONLY):
        if score not in rows[0]:
            continue
        cells = [correlation(rows, score, kind) for kind in ("realized_loss", "largest_loss")]
        texts = [f"{rho:.2f} ({low:.2f} to {high:.2f})" for rho, low, high in cells]
        lines.append(f"| {score.replace('_', ' ')} | {' | '.join(texts)} |")
    lines += ["", "| breaks | share, 95 % interval |", "|---|---|"]
    lines += [f"| {name} | {count} |" for name, count in break_facts(rows).items()]
    later = [row for row in rows if _is_later(row)]
    if 0 < len(later) < len(rows):
        lines += ["", "| without those that broke within the warm start | share |", "|---|---|"]
        lines += [f"| {name} | {count} |" for name, count in break_facts(later).items()]
    return "\n".join(lines) + "\n"


def _is_later(row: Mapping[str, Any]) -> bool:
    """True if the behavior did not break, or after as many steps as the warm start took."""
    return row["break"] is None or row["break"] > row.get("warm_steps", 0)


def pace_section(folder: Path, half: Half, terms: Preregistration) -> str:
    """Return the tables of one corpus: the forecast from the first steps of its runs."""
    found = pace.cases(load_corpus(folder.parent, folder.name, half))
    text = f"## {folder.name}, {half}"
    if not found:
        return f"{text}\n\nNo runs of this half are there."
    seen = sum(case.seen for case in found)
    switched = [case for case in found if case.switched and not case.seen]
    kept = pace.to_predict(found)
    text += (
        f"\n\n{len({case.trace.name for case in found})} runs, {len(found)} behavior-runs. {seen} "
        f"broke within the first steps, and are left out. To predict: {len(kept)}."
    )
    text += f"\n\n{markdown.table(pace.rules_table(kept, terms))}"
    times = pace.times_table(kept)
    text += f"\n\nWhere a break came:\n\n{markdown.table(times)}" if times else ""
    text += f"\n\n{table(pace_rows(kept))}"
    if switched:
        facts = [
            {"of": key, "share": value} for key, value in break_facts(pace_rows(switched)).items()
        ]
        text += (
            f"\nThe data change later in the run, which the first steps cannot know "
            f"({len(switched)} behavior-runs):\n\n{markdown.table(facts)}\n"
        )
    return text


def read_predictions(out: Path, half: Half) -> list[dict[str, Any]]:
    """Read the stored predictions of a half."""
    found = [json.loads(path.read_text()) for path in sorted((out / FOLDER).glob("*.json"))]
    return [one for one in found if one["half"] == half]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/onset"))
    parser.add_argument("--predict", action="store_true", help="predict runs, and store each")
    parser.add_argument("--table", action="store_true", help="join with the recorded runs")
    parser.add_argument("--pace", action="store_true", help="the forecast alone, of recorded runs")
    parser.add_argument("--choose", action="store_true", help="choose the law of the pace")
    parser.add_argument("--runs", type=Path, nargs="*", help="folders of corpora, for these two")
    known = ("exploratory", "confirmatory", "both")
    parser.add_argument("--half", choices=known, default="exploratory", help="both: for --table")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows to score of each run")
    parser.add_argument("--until", help="start no further run after this time, as HH:MM")
    parser.add_argument("--checkpoints", type=int, default=DEFAULT_CHECKPOINTS)
    options = parser.parse_args(arguments)
    until = None
    if options.until:
        clock = datetime.strptime(options.until, "%H:%M").time()
        until = datetime.combine(datetime.now().date(), clock)
    if options.half == "both" and (options.predict or options.pace):
        parser.error("--half both is for --table only")
    if options.predict:
        predict(options.out, options.half, until, options.rows, options.checkpoints)
    if options.table:
        both: tuple[Half, ...] = ("exploratory", "confirmatory")
        halves = both if options.half == "both" else (options.half,)
        rows = []
        for half in halves:
            traces = load_corpus(options.out, CORPUS, half)
            rows += join(read_predictions(options.out, half), traces)
        print(table(rows))
    folders = options.runs or [options.out / CORPUS]
    terms = Preregistration.named("preflight")
    if options.choose:
        corpora = [load_corpus(own.parent, own.name, "exploratory") for own in folders]
        found = pace.to_predict(pace.cases([trace for traces in corpora for trace in traces]))
        choice = terms.study["choice"] if terms.study else {}
        print(len(found), pace.choose(found, choice["settings"], choice["within"]))
        print(pace.fit_rivals(found))
    if options.pace:
        for folder in folders:
            print(pace_section(folder, options.half, terms), flush=True)


if __name__ == "__main__":
    main()
