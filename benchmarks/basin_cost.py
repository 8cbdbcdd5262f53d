"""Cost of the basin of SmolLM2, taught to refuse: seconds and memory; margins beside answers.

    python benchmarks/basin_cost.py memory
    python benchmarks/basin_cost.py seconds [--probes 16 --tokens 20]
    python benchmarks/basin_cost.py sweep --directions 10 [--generated 2]

`memory`: resident memory after the model is loaded and evaluated, and its peak in a sweep.
`seconds`: medians of the parts of a point. `sweep`: the basin by margins, and along the first few
directions by generated answers too. Rows are logged in `--out`, from which a sweep continues;
figures go to `--figures`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress as Bar
from scipy import stats
from torch import nn

from experiments.worlds import first_probe_sets
from riprap import evaluation
from riprap.behaviors import Behavior, is_refusal
from riprap.commands.watch import load_model
from riprap.diagnosis import Estimate
from riprap.diagnosis.basins import Basin, Judge, PointEvaluator, basin, checksum, perturbed_weights
from riprap.integrations.smollm2 import REFUSING
from riprap.monitor import keep_passing
from riprap.report import basin_figure, save_figure

SEED = 0  # of the directions
FULL = (100, 21)


def loaded(probes: int) -> tuple[nn.Module, Any, list[Behavior]]:
    """Load the model, its tokenizer, and the probes that it passes."""
    model, tokenizer = load_model(str(REFUSING))
    names = ("refusal", "over_refusal")
    every = [first_probe_sets.load(name, tokenizer, probes, prefixes=["Sorry"]) for name in names]
    return model, tokenizer, [keep_passing(behavior, model) for behavior in every]


def judge(behavior: Behavior, tokenizer: Any, tokens: int) -> Judge:
    """Return a judge: the share of prompts that are refused (over-refusal: not refused)."""
    prompts, wanted = behavior.probes.rows(), behavior.name == "refusal"

    def share(model: nn.Module) -> float:
        answers = evaluation.generate(model, tokenizer, prompts, tokens)
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        return float(np.mean([is_refusal(text) == wanted for text in texts]))

    return share


def resident() -> dict[str, float]:
    """Read this process's resident memory from Linux, in MB: now, peak, by kind."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    entries = dict(line.split(":", 1) for line in lines)
    wanted = ("VmRSS", "VmHWM", "RssAnon", "RssFile")
    return {name: round(int(entries[name].split()[0]) * 1024 / 1e6, 1) for name in wanted}


def peak(act: Callable[[], Any]) -> tuple[float, float]:
    """Measure the increase of resident memory by a call, in MB: at its peak, and lasting."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = resident()["VmRSS"]
    act()
    after = resident()
    return after["VmHWM"] - before, after["VmRSS"] - before


def memory(probes: int) -> None:
    model, _, behaviors = loaded(probes)
    size = sum(part.numel() * part.element_size() for part in model.parameters()) / 1e6
    evaluator = PointEvaluator(model, behaviors)
    evaluator.evaluate()
    print(f"model {size:.0f} MB; the process, model in use: {resident()}\n")
    print("| | peak over that, MB | lasting, MB | × model, peak |\n|---|---|---|---|")
    for label, act in (
        ("an evaluation of the probes", evaluator.evaluate),
        ("a sweep, 1 direction × 3 points", lambda: basin(model, behaviors, 1, points=3)),
        ("the same again", lambda: basin(model, behaviors, 1, points=3)),
    ):
        most, lasting = peak(act)
        print(f"| {label} | {most:.1f} | {lasting:.1f} | {1 + most / size:.3f} |")
    print(f"\nafterwards: {resident()}")


def seconds(probes: int, tokens: int, rounds: int = 5) -> None:
    """Measure processor seconds of one thread, because the machine is shared."""
    model, tokenizer, behaviors = loaded(probes)
    evaluator = PointEvaluator(model, behaviors)
    evaluator.evaluate()
    judges = [judge(behavior, tokenizer, tokens) for behavior in behaviors]
    found: dict[str, list[float]] = {}

    def timed(name: str, act: Callable[[], Any]) -> Any:
        start = time.process_time()
        out = act()
        found.setdefault(name, []).append(time.process_time() - start)
        return out

    with perturbed_weights(model, SEED) as perturbation:
        for number in range(rounds):
            direction = timed(
                "draw and scale a direction", lambda n=number: perturbation.direction(n)
            )
            timed("move the model to a point", lambda d=direction: perturbation.apply((d, 0.1)))
            timed("margins at a point", evaluator.evaluate)
            timed("answers at a point", lambda: [share(model) for share in judges])
        timed("restore the model", perturbation.apply)
    timed("checksum", lambda: checksum(model))
    mid = {name: statistics.median(values) for name, values in found.items()}
    print("| part | seconds |\n|---|---|")
    print("\n".join(f"| {name} | {value:.2f} |" for name, value in mid.items()))
    directions, points = FULL
    draw, move = mid["draw and scale a direction"], mid["move the model to a point"]
    margins = directions * (draw + (points - 1) * (move + mid["margins at a point"]))
    answers = draw + (points - 1) * (move + mid["answers at a point"])
    sizes = " + ".join(f"{len(b.probes)} {b.name}" for b in behaviors)
    print(f"\n{sizes}: {directions} directions × {points} points by margins {margins:.0f} s, ")
    print(f"1 direction × {points} points by {tokens} tokens of generated answers {answers:.0f} s")


def sweep(asked: argparse.Namespace) -> None:
    """Sweep by margins and by answers; print tables and draw figures."""
    probes, tokens, directions = asked.probes, asked.tokens, asked.directions
    generated, out, figures = asked.generated, asked.out, asked.figures
    model, tokenizer, behaviors = loaded(probes)
    with Bar() as bar:
        task = bar.add_task("margins")

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        fast = basin(model, behaviors, directions, resume=out / "margins.jsonl", progress=show)
        judges = {behavior.name: judge(behavior, tokenizer, tokens) for behavior in behaviors}
        slow = basin(
            model,
            behaviors,
            generated,
            judges=judges,
            resume=out / "answers.jsonl",
            progress=show,
        )
    print(table(fast))
    print(f"\nFirst {generated} directions, margins beside answers of {tokens} tokens:\n")
    print(correlations(slow))
    save_figure(basin_figure(fast, "SmolLM2 taught to refuse, by margins"), figures / "smollm2.png")
    both = basin_figure(slow, "SmolLM2 taught to refuse; dashed: by generated answers")
    save_figure(both, figures / "smollm2_answers.png")


def _text(found: Estimate | None) -> str:
    if found is None:
        return "–"
    interval = f" ({found.low:.3f} to {found.high:.3f})" if found.n > 1 else ""
    return f"{found.mean:.3f}{interval}"


def table(found: Basin) -> str:
    """Return a table with one row per behavior."""
    each, points = next(iter(found.behaviors.values())).scores.shape
    lines = [
        f"{each} directions × {points} points:\n",
        "| behavior | score at 0 | VISAGE | mean score | half width | still above at the end |",
        "|---|---|---|---|---|---|",
    ]
    for name, own in found.behaviors.items():
        cells = [f"{own.start:.3f}", *map(_text, (own.visage, own.mean_score, own.width))]
        lines.append(f"| {name} | {' | '.join(cells)} | {own.unbounded_share:.0%} |")
    lines.append(f"| all together | | | | {_text(found.width)} | |")
    return "\n".join(lines)


def correlations(found: Basin) -> str:
    """Return Spearman correlations over all points, and over partly broken points."""
    lines = [
        "| behavior | points | rank correlation | of these partly broken | rank correlation | "
        "VISAGE, margins | VISAGE, answers | largest difference of a point |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, own in found.behaviors.items():
        assert own.judged is not None
        fast, slow = own.scores.ravel(), own.judged.ravel()
        partly = (fast % 1 > 0) | (slow % 1 > 0)
        answers = replace(own, scores=own.judged, judged=None)
        cells = [
            f"{len(fast)}",
            f"{stats.spearmanr(fast, slow).statistic:.3f}",
            f"{partly.sum()}",
            f"{stats.spearmanr(fast[partly], slow[partly]).statistic:.3f}",
            f"{own.visage.mean:.3f}",
            f"{answers.visage.mean:.3f}",
            f"{np.abs(fast - slow).max():.2f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["memory", "seconds", "sweep"])
    parser.add_argument("--probes", type=int, default=16, help="of each probe set")
    parser.add_argument("--tokens", type=int, default=20, help="of a generated answer")
    parser.add_argument("--directions", type=int, default=10)
    parser.add_argument("--generated", type=int, default=2, help="directions with answers too")
    parser.add_argument("--out", type=Path, default=Path("runs/basin"))
    parser.add_argument("--figures", type=Path, default=Path("results/basin"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.what == "memory":
        memory(asked.probes)
    elif asked.what == "seconds":
        seconds(asked.probes, asked.tokens)
    else:
        sweep(asked)


if __name__ == "__main__":
    main()
