"""The tables of arXiv 2604.17215 by number, each with ours or with why there is none.

What the paper's tables contain is quoted from notes of a reader (the repository
dev4-gpt/blissful-bose), since the paper itself could not be read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.continual_real.methods import METHODS, SHARES
from experiments.continual_real.simulate import Run
from experiments.harness.markdown import NOTHING, number

Methods = Mapping[str, Mapping[Any, Run]]
UNKNOWN = range(11, 17)


def paper_tables(methods: Methods, ratio: float) -> list[dict[str, str]]:
    """Return a row for each table, with attack success of ours where it has such numbers."""
    kept = ", ".join(
        f"{name} {success(methods, name)}"
        for name in ("plain", "random", "kl", "o_lora", "ewc", "clip", "moderate")
    )
    after_one = ", ".join(
        f"{name} {success(methods, name, at=1)}" for name in ("plain", "high", "random", "moderate")
    )
    ratios = sorted({ratio, *SHARES})
    swept = "; ".join(
        f"{name} {', '.join(success(methods, swept_name(name, share, ratio)) for share in ratios)}"
        for name in ("moderate", "random")
    )
    rows = [
        (
            "low against moderate gradients: attack success 8.4 and 10.2, TruthfulQA 50.2 and "
            "42.5, tasks 60.1 and 60.9 (Qwen2.5-7B); two more models",
            f"attack success: low {success(methods, 'low')}, moderate "
            f"{success(methods, 'moderate')}; tasks in nats",
            "Methods, What was kept",
        ),
        (
            "after one task (Dolly), VISAGE as a share of the aligned model's: high 62 to 72 %, "
            "random 73 to 78 %, moderate 83 to 88 %; attack success 2.1 before, 18.4, 12.7 and "
            "5.8 (Qwen2.5-7B)",
            f"attack success after Dolly: {after_one}; VISAGE of the base and after four tasks: "
            "plain, moderate, AutoGuard; not high, random",
            "Methods, DEEP.md",
        ),
        (
            "not in the notes; by the text around it, KL to the pretrained and the aligned model",
            "KL to the stock and to the taught model, both ways",
            "What was kept",
        ),
        (
            "TopK cosine of the gradients of high and moderate rows with the way back: V 0.119 and "
            "0.104, O 0.276 and 0.244 of the last layer, none in the middle",
            "of what training moved, by kind of weight and not by layer; of rows only in the toy "
            "study (results/continual)",
            "The way back",
        ),
        (
            "attack success at ρ = 0.1, 0.2, 0.4, 0.6: 2.7, 6.0, 5.8, 9.4; random 0.2: 11.8; all "
            "rows: 16.6 (Qwen3-4B)",
            f"the same ρ: {swept}; all rows {success(methods, 'plain')}",
            "Shares of a batch",
        ),
        (
            "attack success: plain 36.7, random 31.1, KL 33.5, O-LoRA 16.5, EWC 17.4, clipping "
            "31.2, moderate 10.2 (Qwen2.5-7B); TruthfulQA, ARC-C, BoolQ, HellaSwag, Winogrande",
            f"{kept}; TruthfulQA, ARC (easy), BoolQ, CommonsenseQA in the place of HellaSwag and "
            "Winogrande, which are not among the data here",
            "Methods, What was kept",
        ),
        (
            "mean score over the tasks: plain 59.1, random 58.9, KL 61.0, O-LoRA 55.7, EWC 59.5, "
            "moderate 60.9 (Qwen2.5-7B)",
            "held-out loss of each method; exact match, F1 and accuracy of three methods",
            "Methods, DEEP.md",
        ),
        (
            "backward transfer, forgetting, largest drop: plain −18.5, 18.5, 32.5, moderate −4.3, "
            "4.3, 5.6 (Qwen3-4B; one of the notes has the last two the other way round)",
            "backward transfer and forgetting in nats of loss, as rises; the largest drop is that "
            "of the refusal score by one stage",
            "Methods, What was kept",
        ),
        (
            "HarmBench: plain 27.8, random 17.2, KL 27.7, EWC 31.0, O-LoRA 10.0, moderate 5.0",
            "none: HarmBench is kept for a later trial; half of the requests are StrongREJECT's",
            NOTHING,
        ),
        (
            "audit of 10,000 rows: low, moderate, high gradients have 202, 55 and 12 response "
            "tokens",
            "categories and response tokens of what each choice takes",
            "What each choice takes",
        ),
    ]
    found = [
        {"table": str(at), "the paper": paper, "here": ours, "where": where}
        for at, (paper, ours, where) in enumerate(rows, start=1)
    ]
    unknown = {
        "table": f"{UNKNOWN[0]} to {UNKNOWN[-1]}",
        "the paper": "could not be found; its appendix treats orders of tasks, interference, "
        "clipping and cost (51 % more than plain training, say the notes)",
        "here": "each of these four is measured",
        "where": "Other orders, Interference, Methods",
    }
    return [*found, unknown]


def swept_name(name: str, share: float, ratio: float) -> str:
    """Return the method that learns from a share of each batch."""
    return name if share == ratio else f"{name}_{share * 100:.0f}"


def success(methods: Methods, name: str, at: int = -1) -> str:
    """Return a method's mean attack success after its tasks; a dash where it has not run.

    Args:
        at: number of tasks that were learned; -1: all.
    """
    assert name in METHODS
    runs = methods.get(name, {}).values()
    found = [run.looks[at].attack_success() for run in runs]
    return number(np.mean(found), 2) if found else NOTHING
