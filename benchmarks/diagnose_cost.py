"""Cost and verdicts of a diagnosis: the short way of `recover` against the full one.

    python benchmarks/diagnose_cost.py toy                    # the checkpoints of the study
    python benchmarks/diagnose_pairs.py                       # makes the pairs of SmolLM2
    python benchmarks/diagnose_cost.py smollm2 runs/diagnose_pairs/*

`toy` diagnoses each checkpoint of `loss_classification` both ways, with its draws of ten examples,
and compares the verdicts with each other and with that of the study. `smollm2` runs `riprap
diagnose` on each pair with three probe sets, and `recover(full=True)` on the same probes. Results
are added to `--out` one by one, and an interrupted run continues; the tables are written at the
end. Times are processor seconds of one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from experiments.harness import markdown
from experiments.loss_classification.checkpoints import CASES, make
from riprap import diagnosis
from riprap.commands.diagnose import DiagnoseConfig, diagnose, load_pair, select_probes
from riprap.diagnosis import Recovery
from riprap.integrations.smollm2 import REFUSING

STUDY = Path("results/loss_classification/confirmatory.json")
TERMS = Path("experiments/preregistrations/loss_classification.yaml")
PROBE_SETS = ("refusal", "over_refusal", "arithmetic")
CONTRAST = {"refusal": "over_refusal", "over_refusal": "refusal"}
UNRELATED = {"refusal": "arithmetic", "over_refusal": "arithmetic", "arithmetic": "refusal"}
COUNT, DRAWS = 10, 2  # examples, and draws of them, as in the command


class Timed:
    """A call's result, its processor seconds and its optimizer steps."""

    def __init__(self, call: Callable[..., Recovery], *given: Any, **options: Any) -> None:
        self.steps, began = 0, time.process_time()
        self.found = call(*given, **options, progress=self._count)
        self.seconds = time.process_time() - began

    def _count(self, done: int, _total: int) -> None:
        self.steps = done

    def row(self) -> dict[str, Any]:
        evidence = self.found.evidence
        return {
            "verdict": str(self.found.verdict),
            "retained": [evidence.retained, evidence.retained_low, evidence.retained_high],
            "draws": max((point.score.n for point in self.found.curve), default=0),
            "steps": self.steps,
            "seconds": self.seconds,
        }


def both_ways(*given: Any, **options: Any) -> dict[str, Any]:
    """Run the short way and the full one."""
    return {
        way: Timed(diagnosis.recover, *given, **options, shot_counts=(COUNT,), full=full).row()
        for way, full in (("short", False), ("full", True))
    }


class Stored:
    """Results by key in a JSON file, written after each one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = json.loads(path.read_text()) if path.exists() else {}

    def add(self, key: str, compute: Callable[[], dict[str, Any]]) -> None:
        if key in self.rows:
            return
        self.rows[key] = compute()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.rows, indent=1) + "\n")
        print(key, self.rows[key], flush=True)


def toy(out: Path) -> str:
    """Diagnose the checkpoints of the study; return the table."""
    terms, stored = yaml.safe_load(TERMS.read_text())["study"], Stored(out / "toy.json")
    told = {(o["world"], o["case"], o["seed"]): o["verdict"] for o in json.loads(STUDY.read_text())}
    for seed in terms["confirmatory"]:
        for case in CASES:

            def compute(case: Any = case, seed: int = seed) -> dict[str, Any]:
                made = make(case, seed)
                study = told[case.world, case.name, seed]
                return {"truth": str(case.truth), "study": study} | both_ways(
                    made.model,
                    made.behavior,
                    made.examples,
                    reference=made.reference,
                    unrelated_examples=made.irrelevant,
                    draws=terms["draws"],
                )

            stored.add(f"{case.label}, {seed}", compute)
    return toy_page(stored.rows)


def toy_page(rows: dict[str, dict[str, Any]]) -> str:
    """Return the text about the toy checkpoints."""
    lost = [row for row in rows.values() if row["full"]["steps"]]
    lines = []
    for way in ("full", "short"):
        seconds = [row[way]["seconds"] for row in rows.values()]
        lines.append(
            {
                "way": way,
                "seconds, all": markdown.number(sum(seconds), 1),
                "seconds, one": markdown.median_range(seconds, 2),
                "steps, one": markdown.median_range([row[way]["steps"] for row in rows.values()]),
                "draws": markdown.number(sum(row[way]["draws"] for row in lost) / len(lost), 2),
            }
        )
    agree, study = (
        markdown.count_of_total(
            sum(row["short"]["verdict"] == verdict(row) for row in rows.values()), len(rows)
        )
        for verdict in (lambda row: row["full"]["verdict"], lambda row: row["study"])
    )
    different = [
        {
            "checkpoint": key,
            "truth": row["truth"],
            "study": row["study"],
            **{way: describe(row[way]) for way in ("full", "short")},
        }
        for key, row in rows.items()
        if not row["study"] == row["full"]["verdict"] == row["short"]["verdict"]
    ]
    text = (
        f"{markdown.table(lines)}\n\nThe short way gives the verdict of the full one on {agree}, "
    )
    text += f"and that of the study on {study} of its checkpoints.\n"
    return text + (f"\nDifferent verdicts:\n\n{markdown.table(different)}\n" if different else "")


def describe(way: dict[str, Any]) -> str:
    """Return a verdict with its retained share."""
    share, low, high = way["retained"]
    return f"{way['verdict']}, {share:.0%} [{low:.0%}, {high:.0%}]"


def smollm2(pairs: list[Path], n_probes: int, out: Path) -> str:
    """Diagnose pairs of SmolLM2; return the table."""
    stored = Stored(out / "smollm2.json")
    for pair in pairs:
        stored.add(f"{pair.name}, {n_probes}", partial(one_pair, pair, n_probes, out))
    rows = []
    for key, row in stored.rows.items():
        for name, found in row["behaviors"].items():
            full = row["full"].get(name)
            rows.append(
                {
                    "pair, --n-probes": key,
                    "behavior": name,
                    "score": markdown.number(found["now"], 2),
                    "`riprap diagnose`": f"{found['verdict']}: {found['reason']}"
                    if found["verdict"]
                    else "no loss",
                    "recover(full=True)": describe(full) if full else markdown.NOTHING,
                    "seconds, full recovery": markdown.number(full["seconds"] if full else None),
                    "seconds, whole command": markdown.number(row["seconds"]),
                }
            )
    return markdown.table(rows) + "\n"


def one_pair(pair: Path, n_probes: int, out: Path) -> dict[str, Any]:
    """Run the command, then the full recovery of what is lost, on the same probes."""
    config = DiagnoseConfig(
        base=str(REFUSING),
        tuned=str(pair),
        out=out / "pages" / f"{pair.name}-{n_probes}",
        behaviors=PROBE_SETS,
        refusal_prefixes=("Sorry",),
        n_probes=n_probes,
    )
    began = time.process_time()
    told = diagnose(config, quiet=True)
    seconds = time.process_time() - began
    models, full = load_pair(config.base, config.tuned), {}
    weights = {"reference": models.base, "weights_on_disk": models.tuned}
    with diagnosis.reference_model(models.model, models.base, models.tuned) as base:
        probes = {name: select_probes(name, config, base, models.tokenizer) for name in PROBE_SETS}
    needed = [n for n in told["lost"] if not told["behaviors"][n]["reason"].startswith("no loss")]
    for name in needed:  # without a loss on the test probes nothing depends on relearning
        contrast = CONTRAST.get(name)
        full[name] = Timed(
            diagnosis.recover,
            models.model,
            probes[name].probes,
            probes[name].examples,
            unrelated_examples=probes[UNRELATED[name]].examples,
            contrast=None if contrast is None else probes[contrast].probes,
            shot_counts=(COUNT,),
            draws=DRAWS,
            full=True,
            **weights,
        ).row()
    kept = ("verdict", "reason", "now")
    behaviors = {k: {key: v[key] for key in kept} for k, v in told["behaviors"].items()}
    return {"seconds": seconds, "stages": told["seconds"], "behaviors": behaviors, "full": full}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("toy", "smollm2"))
    parser.add_argument("pairs", nargs="*", type=Path)
    parser.add_argument("--n-probes", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("results/diagnose_cost"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.what == "toy":
        text = toy(asked.out)
    else:
        text = smollm2(asked.pairs, asked.n_probes, asked.out)
    print(text)
    (asked.out / f"{asked.what}.md").write_text(text)


if __name__ == "__main__":
    main()
