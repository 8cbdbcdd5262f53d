"""Accuracy on ARC-Challenge by Riprap, by lm-eval on the live model, and by lm-eval alone.

It needs lm_eval (0.4.13 was measured). The table is in results/evals/README.md.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from riprap.behaviors.probe_sets import data_folder
from riprap.evals import evaluate

FILE = "arc_challenge_test.jsonl"


def arc_task(file: Path) -> Any:
    """Return lm-eval's task ARC-Challenge on the rows of a file."""
    from lm_eval.api.task import ConfigurableTask

    return ConfigurableTask(
        config={
            "task": "arc_own",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_target": "answer",
            "doc_to_choice": "choices",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }
    )


def scores_by_lm_eval(model: Any, file: Path) -> tuple[float, float]:
    """Return what lm-eval finds for a model of its own kind: accuracy, plain and by length."""
    from lm_eval.evaluator import simple_evaluate

    found = simple_evaluate(model=model, tasks=[arc_task(file)], bootstrap_iters=0)
    scores = found["results"]["arc_own"]
    return scores["acc,none"], scores["acc_norm,none"]


def main() -> None:
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from riprap.integrations.lm_eval import LiveModel

    parser = argparse.ArgumentParser(description=__doc__)
    default = Path.home() / ".cache" / "riprap" / "smollm2-refusing"
    parser.add_argument("--model", type=Path, default=default)
    parser.add_argument("--data", type=Path, default=data_folder())
    parser.add_argument("--rows", type=int, default=24)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    lines = (options.data / FILE).read_text(encoding="utf-8").splitlines()
    rows = [lines[at * len(lines) // options.rows] for at in range(options.rows)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / FILE
        file.write_text("\n".join(rows) + "\n", encoding="utf-8")
        own = evaluate(model, tokenizer, ["arc_challenge"], data=folder)["arc_challenge"].scores
        found = [("riprap.evals", own["accuracy"].value, own["accuracy_norm"].value)]
        live = LiveModel(model, tokenizer)
        alone = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, device="cpu")
        for name, theirs in (("lm-eval, LiveModel", live), ("lm-eval, HFLM", alone)):
            found.append((name, *scores_by_lm_eval(theirs, file)))
    for name, plain, by_length in found:
        print(f"{name}: acc {plain:.4f}, acc_norm {by_length:.4f}")


if __name__ == "__main__":
    main()
