"""Cost and memory of selection, as ratios to a plain step in the same process.

    python benchmarks/selection_cost.py smollm2 --rounds 5 --memory --errors
    python benchmarks/selection_cost.py full --rounds 3 --memory
    python benchmarks/selection_cost.py small --rows 16 --width 96 --memory --errors
    python benchmarks/selection_cost.py growth --rounds 3

One thread. Times are processor seconds, on which other jobs have less influence: those of the
program only, and with the system's part, which varies by half on a busy machine. Every method
trains a twin of the model, which shares the frozen weights, and is timed in interleaved rounds,
each beside a plain step of its own; the table shows medians of the ratios and their range. A step
is forward, backward and the optimizer's step; "norms alone" trains nothing. The first step of a
selector, which checks the rows, is timed apart.

Peak memory is that of two steps in a separate process, the first one with its row check, above
the memory of model and optimizer: of the process (Linux only), and of torch's tensors, by torch's
profiler. Errors are those of the norms, relative, against one backward pass per row in float64.

`small` is a Llama of 1.8 M parameters; `growth` plots its ratios by size of the batch. dattri-llm
and Opacus are optional: `pip install --no-deps dattri-llm==0.1.0 opacus`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import re
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import selection_growth
import torch
from rich.progress import track
from selection_methods import METHODS, Step, missing_package, trained
from torch import Tensor

from riprap.commands.watch import load_model

SEED = 1000
DATA = Path("../shared/data/gsm8k_train.jsonl")
FULL = ("moderate (exact)", "proxy", "norms alone", "dattri-llm")
Seconds = tuple[float, float]  # of the processor: in the program, and with the system's part


@dataclass
class Row:
    """One line of the table; ratios are to a plain step.

    Attributes:
        ratios: processor time of each round, of the program only, and with the system's part.
        first: the same of the first step after attaching, with its row check.
        memory: peak memory of the process, and of torch's tensors.
        error: largest relative error of a norm.
        skipped: reason why the method did not run.
    """

    method: str
    ratios: list[Seconds] = field(default_factory=list)
    first: float = math.nan
    memory: tuple[float, float] = (math.nan, math.nan)
    error: float = math.nan
    skipped: str = ""


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


def optimizer_of(model: Any) -> Any:
    """Return an optimizer of the trainable parameters."""
    return torch.optim.AdamW(trained(model), lr=1e-5)


def twin_of(model: Any) -> Any:
    """Copy a model; the frozen weights are shared."""
    frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, frozen)


def seconds(step: Step, batch: Any) -> Seconds:
    """Run a step and return its processor seconds."""
    begun = resource.getrusage(resource.RUSAGE_SELF)  # os.times() counts hundredths
    step(batch)
    ended = resource.getrusage(resource.RUSAGE_SELF)
    user = ended.ru_utime - begun.ru_utime
    return user, user + ended.ru_stime - begun.ru_stime


def time_methods(model: Any, given: list[Any], names: Sequence[str], rounds: int) -> list[Row]:
    """Time the methods, each beside a plain step; those whose package is missing are skipped."""
    found = []
    with ExitStack() as stack:

        def begin(name: str) -> Step:
            own = twin_of(model)
            return stack.enter_context(METHODS[name](own, optimizer_of(own)))

        plain = begin("plain")
        seconds(plain, given[0])
        steps: dict[str, Step] = {}
        for name in names:
            package = missing_package(name)
            found.append(Row(name, skipped=f"{package} is not installed" if package else ""))
            if not package:
                steps[name] = begin(name)
                first = seconds(steps[name], given[0])
                found[-1].first = first[0] / max(seconds(plain, given[0])[0], 1e-9)
        for turn in track(range(rounds), description="rounds", transient=True):
            batch = given[(turn + 1) % len(given)]
            for row in found:
                if row.skipped:
                    continue
                pair = [steps[row.method], plain]
                times = [seconds(step, batch) for step in (pair if turn % 2 else pair[::-1])]
                own, base = times if turn % 2 else times[::-1]
                row.ratios.append((own[0] / max(base[0], 1e-9), own[1] / max(base[1], 1e-9)))
    return found


def ratios(model: Any, given: list[Any], names: list[str], rounds: int) -> dict[str, list[Seconds]]:
    """Return, for each method, its seconds divided by those of the plain step beside it."""
    return {row.method: row.ratios for row in time_methods(model, given, names, rounds)}


def peak(asked: argparse.Namespace, method: str) -> tuple[float, float]:
    """Measure peak bytes above those of the model, of process and tensors, in a new process."""
    command = [sys.executable, __file__, asked.case, "--peak", method, "--rows", str(asked.rows)]
    command += ["--width", str(asked.width), "--data", str(asked.data)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    process, tensors = json.loads(done.stdout.strip().splitlines()[-1])
    return process, tensors


def print_peak(model: Any, batch: Any, method: str) -> None:
    """Measure after a first small step has created the optimizer's state."""
    optimizer = optimizer_of(model)
    small = {key: value[:1, :8] for key, value in batch.items()}
    with METHODS["plain"](model, optimizer) as step:
        step(small)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak, from here
    with METHODS[method](model, optimizer) as step:
        for _ in range(2):
            step(batch)
        process = status("VmHWM") - before
        print(json.dumps([process, tensor_peak(step, batch)]))


def tensor_peak(step: Step, batch: Any) -> int:
    """Measure the most bytes that torch has allocated during a step, above those before it."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        step(batch)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        highest = max(highest, total)
    return highest


def status(name: str) -> int:
    """Return a memory figure of this process, in bytes."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.M)
    assert found is not None
    return 1024 * int(found[1])


def reference_norms(model: Any, batch: Any) -> Tensor:
    """Compute the norms by one backward pass per row, in float64."""
    own = copy.deepcopy(model).double()
    norms = []
    for row in range(len(batch["input_ids"])):
        own(**{key: value[row : row + 1] for key, value in batch.items()}).loss.backward()
        norms.append(torch.stack([p.grad.norm() for p in trained(own)]).norm())
        own.zero_grad()
    return torch.stack(norms)


def add_errors(rows: list[Row], model: Any, batch: Any) -> None:
    """Compare each method's norms with the reference, all at the same weights."""
    with torch.no_grad():  # a new adapter's B is 0, and so is every gradient of A
        for parameter in trained(model):
            parameter.add_(0.01 * torch.randn_like(parameter))
    expected = reference_norms(model, batch)
    for row in rows:
        if row.skipped:
            continue
        own = twin_of(model)
        with METHODS[row.method](own, optimizer_of(own)) as step:
            norms = step(batch)
        if norms is not None:
            known = norms.isfinite()  # `moderate` leaves out rows that it cannot select
            errors = (norms.double() - expected).abs() / expected
            row.error = float(errors[known].max())


def spearman(model: Any, given: list[Any]) -> list[float]:
    """Compute the rank correlation of the proxy with the exact norm, batch by batch."""
    from scipy.stats import spearmanr

    from riprap.selection import score

    exact = [score(model, batch, needs={"norm", "proxy"}) for batch in given]
    return [float(spearmanr(one.norm, one.proxy).statistic) for one in exact]


def table(rows: list[Row]) -> str:
    """Return the rows as a table in Markdown."""
    titles = ["method", "÷ plain", "with system", "first step", "memory", "tensors", "error"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for row in rows:
        user, whole = zip(*row.ratios, strict=True) if row.ratios else ((), ())
        span = f"{statistics.median(user):.3f} ({min(user):.3f} to {max(user):.3f})" if user else ""
        system = f"{statistics.median(whole):.3f}" if whole else ""
        others = ["" if math.isnan(n) else f"{n:.2f}" for n in (row.first, *row.memory)]
        error = "" if math.isnan(row.error) else f"{row.error:.0e}"
        cells = [row.method, row.skipped or span, system, *others, error]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def load(asked: argparse.Namespace) -> tuple[Any, list[dict[str, Tensor]]]:
    """Return the case's model and batches."""
    if asked.case == "small":
        return selection_growth.small(), selection_growth.random_batches(asked.rows, asked.width)
    given = batches(asked.data, asked.rows, asked.width)
    return smollm2(asked.case != "full"), given


def measure(asked: argparse.Namespace) -> list[Row]:
    """Measure the methods of one case."""
    model, given = load(asked)
    default = [n for n in METHODS if n != "plain" and (asked.case != "full" or n in FULL)]
    rows = time_methods(model, given, asked.methods or default, asked.rounds)
    if asked.memory:
        base = peak(asked, "plain")
        for row in rows:
            if not row.skipped:
                own = peak(asked, row.method)
                row.memory = (own[0] / base[0], own[1] / base[1])
    if asked.errors:
        add_errors(rows, model, given[0])
    return rows


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; `parse(["smollm2"])` has the defaults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=["smollm2", "full", "small", "growth"])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--methods", nargs="*", default=None)
    parser.add_argument("--memory", action="store_true", help="peak memory too")
    parser.add_argument("--errors", action="store_true", help="errors of the norms too")
    parser.add_argument("--spearman", type=int, default=0, help="of the proxy, on so many batches")
    parser.add_argument("--peak", default=None, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    """Print what the command line asks for."""
    asked = parse()
    torch.set_num_threads(1)
    if asked.case == "growth":
        selection_growth.report(
            ratios, asked.methods or ["moderate (exact)", "proxy"], asked.rounds
        )
        return
    if asked.peak:
        model, given = load(asked)
        print_peak(model, given[0], asked.peak)
        return
    print(table(measure(asked)), flush=True)
    if asked.spearman:
        model, given = load(asked)
        ranks = [f"{value:.3f}" for value in spearman(model, given[: asked.spearman])]
        print("Spearman of the proxy with the exact norm:", ", ".join(ranks))


if __name__ == "__main__":
    main()
