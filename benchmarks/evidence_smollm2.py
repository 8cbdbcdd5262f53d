"""Evidence on a real model: the change of SmolLM2 by teaching it to refuse.

    python benchmarks/evidence_smollm2.py

Compares the model that was taught to refuse with the instruct model it was made from. Writes
results/evidence: README.md, evidence.json and divergence.png. One thread, about four minutes, one
model in memory; the weights of both are read from their folders. `python -m experiments smollm2
--prepare` makes the refusing model.
"""

from __future__ import annotations

import json
import resource
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.harness.markdown import commit, number, table
from experiments.smollm2.teaching import REFUSAL_PREFIX
from experiments.worlds import first_probe_sets
from riprap.behaviors import is_refusal
from riprap.diagnosis import Estimate, SafetensorsFolder
from riprap.diagnosis.evidence import (
    Decodability,
    Divergence,
    LinearPath,
    PrefixForcing,
    divergence,
    greedy_responses,
    linear_decodability,
    linear_path,
    prefix_forcing,
)
from riprap.integrations.smollm2 import BASE, REFUSING
from riprap.report import divergence_figure, save_figure

PROBES, TOKENS, POINTS = 24, 12, 11
PARTS = ("divergence", "own_answers", "path", "decode", "force")
OUT = Path(__file__).parents[1] / "results" / "evidence"
TIED = {"lm_head.weight": "model.embed_tokens.weight"}


def evidence(report: Any) -> dict[str, Any]:
    """Run all four on the refusing model, with the instruct model as reference."""
    tokenizer = AutoTokenizer.from_pretrained(REFUSING)
    model = AutoModelForCausalLM.from_pretrained(REFUSING, dtype=torch.float32).eval()
    own, base = SafetensorsFolder(REFUSING, TIED), SafetensorsFolder(BASE, TIED)
    refusal, over = (
        first_probe_sets.load(name, tokenizer, PROBES, prefixes=[REFUSAL_PREFIX])
        for name in ("refusal", "over_refusal")
    )
    answers = greedy_responses(model, refusal, TOKENS)
    said = texts(tokenizer, answers)
    refused = [index for index, text in enumerate(said) if is_refusal(text)]
    asked, refusals = refusal.subset(refused), [answers[index] for index in refused]
    found: dict[str, Any] = {"refused": len(refused), "answers": said}
    report("divergence")
    options = {"weights_on_disk": own, "progress": report.progress}
    found["divergence"] = divergence(model, base, asked, responses=refusals, **options)
    report("divergence on the instruct model's answers")
    found["own_answers"] = divergence(
        model, base, asked, max_new_tokens=TOKENS, layers=(), **options
    )
    report("path")
    found["path"] = linear_path(model, base, [refusal, over], points=POINTS, **options)
    report("decode")
    found["decode"] = linear_decodability(model, refusal, contrast=over, reference=base, **options)
    report("force")
    found["force"] = prefix_forcing(model, asked, refusals, reference=base, weights_on_disk=own)
    return found


def texts(tokenizer: Any, rows: list[list[int]]) -> list[str]:
    """Decode answers."""
    return [tokenizer.decode(row, skip_special_tokens=True) for row in rows]


def sections(found: dict[str, Any]) -> list[str]:
    """Return the sections of the page, one per examination."""
    apart: Divergence = found["divergence"]
    return [
        "## Divergence\n",
        "![KL by token and change by layer](divergence.png)\n",
        by_token(apart, found["own_answers"]),
        "\nBy layer, from the refusing model back to the instruct model, one layer at a time:\n",
        by_layer(apart),
        "\n## Linear path\n",
        along(found["path"]),
        "\n## Prefix forcing\n",
        forced(found["force"]),
        "\n## Linear decodability\n",
        decoded(found["decode"]),
    ]


def by_token(refusals: Divergence, answers: Divergence) -> str:
    """Return the table of KL in both directions, for both kinds of responses."""
    rows = []
    for at in range(TOKENS):
        row: dict[str, object] = {"token": at + 1}
        for name, one in (("refusals", refusals), ("instruct model's answers", answers)):
            for way, values in (
                ("base ‖ refusing", one.forward_at),
                ("refusing ‖ base", one.backward_at),
            ):
                row[f"{name}: {way}"] = interval(values[at]) if at < len(values) else "–"
        rows.append(row)
    return table(rows)


def by_layer(apart: Divergence) -> str:
    """Return a table with one row per layer."""
    return table(
        [
            {
                "layer": layer.layer.removeprefix("model."),
                "parameters": f"{layer.parameters / 1e6:.2f} M",
                "‖θ−θ₀‖/‖θ₀‖": number(layer.relative_change, 5),
                "share of ‖θ−θ₀‖²": number(layer.share_of_change, 3),
                **{f"top {r}": number(layer.low_rank.get(r), 3) for r in (1, 4, 16)},
                "‖a−a₀‖/‖a₀‖": interval(layer.activation_change),
                "restored": number(layer.restored_share, 3),
            }
            for layer in apart.layers
        ]
    )


def along(path: LinearPath) -> str:
    """Return the table of scores and margins by α, and the barriers."""
    some = next(iter(path.behaviors.values()))
    rows = []
    for at, alpha in enumerate(some.alphas):
        row: dict[str, object] = {"α": number(alpha, 1)}
        for name, one in path.behaviors.items():
            row |= {f"{name}: score": number(one.scores[at], 2)}
            row |= {f"{name}: mean margin": number(one.margins[at], 2)}
        rows.append(row)
    barriers = [
        f"{name}: barrier {one.barrier:.2f} in score, {one.margin_barrier:.2f} in margin; under "
        f"the lower end by {one.dip:.2f} and {one.margin_dip:.2f}"
        for name, one in path.behaviors.items()
    ]
    return table(rows) + "\n\n" + "; ".join(barriers) + "."


def forced(found: PrefixForcing) -> str:
    """Return a table of both models by the number of given tokens."""
    assert found.reference is not None
    return table(
        [
            {
                "given": here.count,
                "responses": here.n,
                **{
                    f"{name}: {what}": interval(value, 2)
                    for name, one in (("refusing", here), ("base", there))
                    for what, value in (
                        ("next", one.next_token),
                        ("whole", one.full_response),
                        ("nats a token", one.log_prob),
                    )
                },
            }
            for here, there in zip(found.now, found.reference, strict=True)
        ]
    )


def decoded(found: Decodability) -> str:
    """Return the table of accuracies by layer, and the retained share."""
    rows = [
        {
            "layer": probe.layer.removeprefix("model."),
            "refusing": number(probe.now, 2),
            "base": number(probe.reference, 2),
            "shuffled, mean": number(probe.reference_control, 2),
            "shuffled, 95 %": number(probe.reference_control_high, 2),
        }
        for probe in found.layers
    ]
    said = f"{found.status}. {found.detail}"
    if found.retained is not None:
        said += f"Retained at {found.best}: {interval(found.retained, 2)}; "
        said += f"the base had to beat {found.ceiling:.2f}."
    return f"{said}\n\n{table(rows)}"


def interval(one: Estimate | None, digits: int = 3) -> str:
    """`mean [low, high]`."""
    if one is None:
        return "–"
    return f"{number(one.mean, digits)} [{number(one.low, digits)}, {number(one.high, digits)}]"


def plain(value: Any) -> Any:
    """Convert to JSON types."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


class Report:
    """Progress bars, and seconds by part."""

    def __init__(self, bars: Progress) -> None:
        self.bars, self.task, self.seconds = bars, None, {}
        self.name, self.began = "", time.process_time()

    def __call__(self, name: str) -> None:
        """Start a new part."""
        if self.name:
            self.seconds[self.name] = round(time.process_time() - self.began, 1)
        self.name, self.began = name, time.process_time()
        self.task = self.bars.add_task(name, total=None) if name else None

    def progress(self, done: int, total: int) -> None:
        """Update the progress bar."""
        self.bars.update(self.task, completed=done, total=total)


def main() -> None:
    """Measure, draw and write the page."""
    torch.set_num_threads(1)
    with Progress() as bars:
        report = Report(bars)
        found = evidence(report)
        report("")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    OUT.mkdir(parents=True, exist_ok=True)
    title = "SmolLM2 taught to refuse, from the instruct model it was made of"
    save_figure(divergence_figure(found["divergence"], title), OUT / "divergence.png")
    seconds = ", ".join(f"{name} {value}" for name, value in report.seconds.items())
    head = [
        "# Evidence: SmolLM2 taught to refuse, and the model it was made from\n",
        f"`python benchmarks/evidence_smollm2.py`, commit {commit()}. {PROBES} probes per probe "
        f"set, responses of {TOKENS} tokens at most; intervals are 95 % over probes. Processor "
        f"seconds: {seconds}; peak memory {peak:.2f} GiB, including pages of the two "
        "0.50 GiB weight files. Discussion: [FINDINGS.md](FINDINGS.md).\n",
        f"The refusing model refuses {found['refused']} of the {PROBES} requests; divergence and "
        f"prefix forcing use those. Its first answer: “{found['answers'][0].strip()}”.\n",
    ]
    (OUT / "README.md").write_text("\n".join([*head, *sections(found)]) + "\n", encoding="utf-8")
    rows = {name: asdict(one) for name, one in found.items() if name in PARTS}
    rows |= {"answers": found["answers"], "seconds": report.seconds, "peak_gib": round(peak, 3)}
    (OUT / "evidence.json").write_text(json.dumps(rows, default=plain, indent=1) + "\n")


if __name__ == "__main__":
    main()
