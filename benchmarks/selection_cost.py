"""Cost of selection, as ratios to a plain step in the same process.

    python benchmarks/selection_cost.py smollm2 --rounds 5 --memory --spearman 10
    python benchmarks/selection_cost.py full --rounds 3
    python benchmarks/selection_cost.py small --memory
    python benchmarks/selection_cost.py growth --rounds 3

One thread. Times are processor seconds, on which other jobs have less influence: those of the
program only, and with the system's part, which varies by half on a busy machine. Every method is
timed in interleaved rounds, each beside a plain step of its own; the table shows medians of the
ratios. A step is forward, backward and the optimizer's step; "norms alone" trains nothing. Peak
memory is that of a few steps in a separate process, above the memory of model and optimizer (Linux
only). `small` is a Llama of 1.8 M parameters; `growth` plots its ratios by size of the batch.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import selection_growth
import torch
from rich.progress import track
from torch import Tensor

from riprap.commands.watch import load_model
from riprap.selection import Selector, gradient_norms

SEED = 1000
DATA = Path("../shared/data/gsm8k_train.jsonl")
RATIO = 0.2
Step = Callable[[Any, Any, Any], Any]
Seconds = tuple[float, float]  # of the processor: in the program, and with the system's part


def smollm2(adapters: bool) -> Any:
    """SmolLM2-135M-Instruct; LoRA of rank 32 on all linear layers, or every parameter trained."""
    from riprap.integrations.smollm2 import ensure_converted

    torch.manual_seed(SEED)
    model = load_model(str(ensure_converted()))[0].train()
    if not adapters:
        return model
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=32, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config).train()


def batches(data: Path, rows: int, width: int) -> list[dict[str, Tensor]]:
    """Rows of a question and an answer, padded or cut to `width`; only answers are learned."""
    from riprap.integrations.smollm2 import ensure_converted

    tokenizer = load_model(str(ensure_converted()))[1]
    texts = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()[:400]]
    ids = torch.full((len(texts), width), tokenizer.pad_token_id or 0)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, text in enumerate(texts):
        question = tokenizer(text["question"] + "\n").input_ids[: width // 2]
        both = (question + tokenizer(text["answer"]).input_ids)[:width]
        ids[row, : len(both)], mask[row, : len(both)] = torch.tensor(both), 1
        labels[row, len(question) : len(both)] = ids[row, len(question) : len(both)]
    every = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    starts = range(0, len(texts) - rows + 1, rows)
    return [{key: value[at : at + rows] for key, value in every.items()} for at in starts]


def plain_step(model: Any, optimizer: Any, batch: Any) -> None:
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def timed(step: Step) -> Step:
    """Return a step that returns its seconds."""

    def run(model: Any, optimizer: Any, batch: Any) -> Seconds:
        begun = resource.getrusage(resource.RUSAGE_SELF)  # os.times() counts hundredths
        step(model, optimizer, batch)
        ended = resource.getrusage(resource.RUSAGE_SELF)
        user = ended.ru_utime - begun.ru_utime
        return user, user + ended.ru_stime - begun.ru_stime

    return run


def selected_step(strategy: str) -> Step:
    """Return the second step of an attached selector; the first one fills its buffers."""

    def run(model: Any, optimizer: Any, batch: Any) -> Seconds:
        with Selector(strategy, RATIO).attach(model, optimizer):
            plain_step(model, optimizer, batch)
            return timed(plain_step)(model, optimizer, batch)

    return run


def sequential(model: Any, optimizer: Any, batch: Any) -> None:
    """Run one backward pass per sample, and sum the gradients of the selected samples."""
    own = [p for p in model.parameters() if p.requires_grad]
    grads, norms = [], []
    for row in range(len(batch["input_ids"])):
        sample = {key: value[row : row + 1] for key, value in batch.items()}
        model(**sample).loss.backward()
        grads.append([p.grad for p in own])
        norms.append(torch.stack(torch._foreach_norm(grads[-1])).norm())
        for p in own:
            p.grad = None
    order = torch.stack(norms).sub(torch.stack(norms).median()).abs().argsort()
    chosen = [grads[row] for row in order[: int(RATIO * len(grads))].tolist()]
    for p, *parts in zip(own, *chosen, strict=True):
        p.grad = torch.stack(parts).mean(0)
    optimizer.step()
    optimizer.zero_grad()


def opacus_norms(model: Any, _optimizer: Any, batch: Any) -> None:
    """Compute norms of per-sample gradients with Opacus."""
    from opacus import GradSampleModule

    own = [p for p in model.parameters() if p.requires_grad]
    wrapped = GradSampleModule(model, strict=False)
    wrapped(**batch).loss.backward()
    torch.stack([p.grad_sample.flatten(1).norm(dim=1) for p in own]).norm(dim=0)
    wrapped.to_standard_module()
    for p in own:
        p.grad = p.grad_sample = None


def func_norms(model: Any, _optimizer: Any, batch: Any) -> None:
    """Compute norms of per-sample gradients with torch.func and vmap."""
    from torch.func import functional_call, grad, vmap

    own = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(parameters: Any, ids: Tensor, labels: Tensor) -> Tensor:
        given = {"input_ids": ids[None], "labels": labels[None]}
        return functional_call(model, parameters, (), given).loss

    found = vmap(grad(loss), (None, 0, 0), randomness="same")(
        own, batch["input_ids"], batch["labels"]
    )
    torch.stack([part.flatten(1).norm(dim=1) for part in found.values()]).norm(dim=0)


def norms_alone(model: Any, _optimizer: Any, batch: Any) -> None:
    gradient_norms(model, batch)


METHODS: dict[str, Step] = {
    "plain": timed(plain_step),
    "moderate (exact)": selected_step("moderate"),
    "proxy": selected_step("proxy"),
    "random": selected_step("random"),
    "norms alone": timed(norms_alone),
    "one backward per sample": timed(sequential),
    "Opacus, norms alone": timed(opacus_norms),
    "torch.func, norms alone": timed(func_norms),
}
FULL = ("moderate (exact)", "proxy", "norms alone")


def ratios(model: Any, given: list[Any], names: list[str], rounds: int) -> dict[str, list[Seconds]]:
    """Return, for each method, its seconds divided by those of the plain step beside it."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    plain_step(model, optimizer, given[0])
    found: dict[str, list[Seconds]] = {name: [] for name in names}
    for turn in track(range(rounds), description="rounds", transient=True):
        for name in names:
            batch = given[turn % len(given)]
            own = METHODS[name](model, optimizer, batch)
            plain = METHODS["plain"](model, optimizer, batch)
            found[name].append((own[0] / max(plain[0], 1e-9), own[1] / max(plain[1], 1e-9)))
    return found


def peak(asked: argparse.Namespace, method: str) -> float:
    """Measure the bytes of one step above those of the model, in a separate process."""
    command = [sys.executable, __file__, asked.case, "--peak", method, "--rows", str(asked.rows)]
    command += ["--width", str(asked.width), "--data", str(asked.data)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def print_peak(model: Any, batch: Any, method: str) -> None:
    """Measure after a first step has created the optimizer's state."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    small = {key: value[:1, :8] for key, value in batch.items()}
    plain_step(model, optimizer, small)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak, from here
    for _ in range(2):
        METHODS[method](model, optimizer, batch)
    print(status("VmHWM") - before)


def status(name: str) -> int:
    """Return a memory figure of this process, in bytes."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.M)
    assert found is not None
    return 1024 * int(found[1])


def spearman(model: Any, given: list[Any]) -> list[float]:
    """Compute the rank correlation of the proxy with the exact norm, batch by batch."""
    from scipy.stats import spearmanr

    from riprap.selection import score

    exact = [score(model, batch, needs={"norm", "proxy"}) for batch in given]
    return [float(spearmanr(one.norm, one.proxy).statistic) for one in exact]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=["smollm2", "full", "small", "growth"])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--methods", nargs="*", default=None)
    parser.add_argument("--memory", action="store_true", help="peak memory too")
    parser.add_argument("--spearman", type=int, default=0, help="of the proxy, on so many batches")
    parser.add_argument("--peak", default=None, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.case == "growth":
        selection_growth.report(
            ratios, asked.methods or ["moderate (exact)", "proxy"], asked.rounds
        )
        return
    if asked.case == "small":
        given = selection_growth.random_batches(asked.rows, asked.width)
        model = selection_growth.small()
    else:
        given = batches(asked.data, asked.rows, asked.width)
        model = smollm2(asked.case != "full")
    if asked.peak:
        print_peak(model, given[0], asked.peak)
        return
    names = asked.methods or [
        n for n in METHODS if n != "plain" and (asked.case != "full" or n in FULL)
    ]
    found = ratios(model, given, names, asked.rounds)
    print(
        "| method | ÷ plain, program | ÷ plain, with system | all rounds, program |",
        "|---" * 4 + "|",
        sep="\n",
    )
    for name in names:
        user, whole = zip(*found[name], strict=True)
        every = ", ".join(f"{value:.3f}" for value in user)
        cells = f"{statistics.median(user):.3f} | {statistics.median(whole):.3f}"
        print(f"| {name} | {cells} | {every} |", flush=True)
    if asked.memory:
        base = peak(asked, "plain")
        for name in names:
            print(f"peak memory of {name} ÷ plain: {peak(asked, name) / base:.3f}", flush=True)
    if asked.spearman:
        ranks = [f"{value:.3f}" for value in spearman(model, given[: asked.spearman])]
        print("Spearman of the proxy with the exact norm:", ", ".join(ranks))


if __name__ == "__main__":
    main()
