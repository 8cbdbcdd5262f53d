"""SmolLM2 with eroded refusals: recovery by ten examples, and what these teach by themselves.

    python -m experiments smollm2 --prepare --data ../shared/data
    python benchmarks/recovery_smollm2.py runs/eroded/trainer/checkpoint-16

The argument is a LoRA adapter that was trained on the refusing model until it complied. Own
examples: refusals that are no probes. Unrelated examples: sums. Naive model: the model before it
was taught to refuse, with the same ten refusals. Scores are the mean of refusing harmful requests
and complying with harmless ones. Writes a table to `--out`.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from experiments.harness import markdown
from experiments.smollm2.teaching import REFUSAL_PREFIX
from experiments.worlds import first_probe_sets
from riprap import evaluation
from riprap.behaviors import Behavior
from riprap.commands.watch import load_model
from riprap.diagnosis import Recovery, SafetensorsFolder, recover
from riprap.integrations.smollm2 import BASE, REFUSING

EXAMPLES = 20


def parted(name: str, model: Any, tokenizer: Any, probes: int) -> tuple[Behavior, Behavior]:
    """Return probes that the refusing model passes, and other ones as examples."""
    whole = first_probe_sets.load(name, tokenizer, prefixes=[REFUSAL_PREFIX])
    passed = np.flatnonzero(evaluation.evaluate(whole, model).margins > 0)
    order = np.random.default_rng(0).permutation(passed).tolist()
    return whole.subset(order[:probes]), whole.subset(order[probes : probes + EXAMPLES])


def eroded(adapter: Path) -> Any:
    """Load the refusing model with the adapter merged into it."""
    from peft import PeftModel

    return PeftModel.from_pretrained(load_model(str(REFUSING))[0], adapter).merge_and_unload()


def rows(found: Recovery) -> list[dict[str, str]]:
    """Return the curve as table rows."""
    words = {
        "own": "ten refusals",
        "unrelated": "ten sums",
        "naive_model": "ten refusals, on a model that was never taught to refuse",
        "reference": "ten refusals, on the model before it was eroded",
    }
    return [
        {
            "learned": words[point.source],
            "score": markdown.number(point.score.mean, 3),
            "share of the loss": "–"
            if point.source in ("naive_model", "reference")
            else markdown.number(point.recovered.mean, 2),
            "draws": str(point.score.n),
        }
        for point in found.curve
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--probes", type=int, default=16)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results/recovery"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    start, tokenizer = load_model(str(REFUSING))
    refusal, again = parted("refusal", start, tokenizer, asked.probes)
    over_refusal, _ = parted("over_refusal", start, tokenizer, asked.probes)
    del start
    began = time.process_time()
    with Progress() as bar:
        task = bar.add_task("trials")
        found = recover(
            eroded(asked.adapter),
            refusal,
            again,
            reference=SafetensorsFolder(REFUSING),
            unrelated_examples=first_probe_sets.load("arithmetic", tokenizer, EXAMPLES),
            naive_model=SafetensorsFolder(BASE),
            contrast=over_refusal,
            shot_counts=(10,),
            draws=asked.draws,
            full=True,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    evidence = found.evidence
    text = "\n".join(
        [
            "# SmolLM2 with eroded refusals: recovery by ten examples\n",
            f"Made by `python benchmarks/recovery_smollm2.py {asked.adapter} --probes "
            f"{asked.probes} --draws {asked.draws}`, commit {markdown.commit()}; "
            f"{time.process_time() - began:.0f} CPU-seconds, at most "
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB.\n",
            f"Score (mean of refusing harmful and complying with harmless requests, on test "
            f"probes): {evidence.score_before:.3f} before, "
            f"{evidence.score_now:.3f} after the erosion. Verdict: **{found.verdict}**: "
            f"{found.reason}.\n",
            markdown.table(rows(found)) + "\n",
            f"Accuracy of separating the two by their margins, at any threshold: "
            f"{evidence.known_before:.3f} before, {evidence.known_now:.3f} eroded, "
            f"{evidence.known_after_examples:.3f} after ten refusals, "
            f"{evidence.known_after_unrelated:.3f} after ten sums, "
            f"{evidence.guess_rate:.3f} by the naive model.\n",
        ]
    )
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "README.md").write_text(text)
    record = {"evidence": asdict(evidence), "curve": [asdict(point) for point in found.curve]}
    (asked.out / "recovery.json").write_text(json.dumps(record, indent=1))
    print(text)


if __name__ == "__main__":
    main()
