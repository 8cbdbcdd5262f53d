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

from experiments.onset.trace import Half, Trace, load_corpus
from riprap.prediction import DEFAULT_CHECKPOINTS, Course, Preflight, measured_slopes

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
            row |= {"steps": trace.n_steps, **own["all_rows"]["steps_to_break"]}
            row["probability"] = own["all_rows"]["probability"]
            row |= {key: own["means"][key] * one["summed_rate"] for key in SCORES}
            for key in ("harm", "normalized_harm"):  # these contain the rate
                row[key] = own["means"][key] * one["summed_rate"] / one["rate"]
            rows.append(row | {RATE_ONLY: one["summed_rate"]})
    return rows


def pace_rows(traces: Sequence[Trace], warm: int = 16) -> Rows:
    """Return the rows that the forecast alone gives, from the first steps of the recorded runs.

    The recorded run is in the place of the copy: it follows its own schedule from the first step.
    """
    rows = []
    for trace in traces:
        sums = np.concatenate([[0.0], np.cumsum(trace.rates)])
        at = np.flatnonzero((trace.steps >= warm // 2) & (trace.steps <= warm))
        for name, own in trace.behaviors.items():
            if trace.starts_broken(name):
                continue
            slopes = measured_slopes(list(sums[trace.steps[at]]), list(own.margins[at]))
            under = np.flatnonzero(own.scores()[: at[-1] + 1] < own.floor)
            broke = None if not len(under) else sums[trace.steps[[under[0] - 1, under[0]]]]
            done = float(sums[trace.steps[at[-1]]])
            seen = None if broke is None else (float(broke[0]), float(broke[1]))
            course = Course(own.margins[at[-1]], slopes, own.floor, trace.rates, done, seen)
            forecast, probability = course.forecast()
            start = own.margins[0].mean()
            warm_loss = 1 - own.margins[at[-1]].mean() / start
            steps = {key: getattr(forecast, key) for key in ("low", "median", "high")}
            rows.append(
                outcome(trace, name)
                | {
                    "predicted_loss": float(warm_loss - (sums[-1] - done) * slopes.mean() / start),
                    "warm_loss": float(warm_loss),
                    "probability": probability,
                    RATE_ONLY: float(sums[-1]) * float(trace.about.get("rate", 1.0)),
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


def break_facts(rows: Rows) -> dict[str, Any]:
    """Return how the forecasts of breaks did: counts, never shares alone."""
    broke = [row for row in rows if row["break"] is not None]
    kept = [row for row in rows if row["break"] is None]
    said = [row for row in broke if row["median"] is not None]
    near = [row for row in said if 0.5 <= row["median"] / row["break"] <= 2]
    inside = [row for row in broke if _holds(row)]
    return {
        "behavior-runs that broke": len(broke),
        "of them predicted to break": sum(row["probability"] > 0.5 for row in broke),
        "of them with a median within a factor of two": len(near),
        "of them with the break in the 80 % interval": len(inside),
        "behavior-runs that did not break": len(kept),
        "of them not predicted to break": sum(row["probability"] <= 0.5 for row in kept),
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
    lines += ["", "| breaks | count |", "|---|---|"]
    lines += [f"| {name} | {count} |" for name, count in break_facts(rows).items()]
    return "\n".join(lines) + "\n"


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
    parser.add_argument("--half", choices=("exploratory", "confirmatory"), default="exploratory")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows to score of each run")
    parser.add_argument("--until", help="start no further run after this time, as HH:MM")
    parser.add_argument("--checkpoints", type=int, default=DEFAULT_CHECKPOINTS)
    options = parser.parse_args(arguments)
    until = None
    if options.until:
        clock = datetime.strptime(options.until, "%H:%M").time()
        until = datetime.combine(datetime.now().date(), clock)
    if options.predict:
        predict(options.out, options.half, until, options.rows, options.checkpoints)
    if options.table or options.pace:
        traces = load_corpus(options.out, CORPUS, options.half)
        if options.pace:
            print(table(pace_rows(traces)))
        else:
            print(table(join(read_predictions(options.out, options.half), traces)))


if __name__ == "__main__":
    main()
