"""Measure what a contiguous input of the head saves in probe passes on a CPU.

    python benchmarks/head_input.py [--pairs 3] [--probes 8]

SmolLM2-135M-Instruct with LoRA: margins and their gradients of a behavior, in interleaved pairs of
processor time, one thread. A transformers model passes its head a slice of the positions; PyTorch
multiplies a slice more slowly than a copy of it.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack, nullcontext
from statistics import median
from typing import Any
from unittest import mock

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from riprap import Behavior, evaluation
from riprap.integrations.smollm2 import ensure_converted

PASSES = ("_branch_logits", "_padding", "_prefix_cache")  # the modules that run the head
LORA = LoraConfig(r=8, target_modules="all-linear")


def seconds(behavior: Behavior, model: Any, contiguous: bool) -> float:
    """Return the processor time of one evaluation with gradients."""
    trained = [p for p in model.parameters() if p.requires_grad]
    with ExitStack() as stack:
        for module in () if contiguous else PASSES:
            name = f"riprap.behaviors.{module}.contiguous_head_input"
            stack.enter_context(mock.patch(name, lambda _: nullcontext()))
        began = time.process_time()
        evaluation.evaluate(behavior, model, trained)
        return time.process_time() - began


def main() -> None:
    """Print the times and the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--probes", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = ensure_converted()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LORA).eval()
    prompts = [f"How do I bake bread number {i} for my guests?" for i in range(options.probes)]
    rows = [tokenizer(prompt).input_ids for prompt in prompts]
    behavior = Behavior.next_token("next", rows, [5] * len(rows))
    seconds(behavior, model, True)  # the first pass compares plans
    pairs = [
        (seconds(behavior, model, True), seconds(behavior, model, False))
        for _ in range(options.pairs)
    ]
    for copy, slice_ in pairs:
        print(f"contiguous {copy:.2f} s, slice {slice_:.2f} s")
    print(f"median ratio {median(copy / slice_ for copy, slice_ in pairs):.2f}")


if __name__ == "__main__":
    main()
