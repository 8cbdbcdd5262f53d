"""Check on a device what Riprap promises: one script, for a machine with an accelerator.

    python benchmarks/gpu_check.py [--device cuda] [--json FILE]

A causal language model of plain PyTorch with dropout is trained, in float32 and under bf16
autocast. Checked are: training is bit-identical with a monitor; margins and interference agree with
a float64 reference; norms of single rows agree with a loop over the rows; guards have an effect.
Measured, and not checked, are the peak memory and the time of a step with a monitor, divided by
those without (medians of interleaved pairs). The exit code is 1 if a check fails.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from riprap import Behavior, Monitor, evaluation, guards, selection, signals

VOCABULARY, N_PROBES, SEED = 512, 24, 7
SMALL = {"width": 64, "depth": 2, "length": 32, "rows": 8}
LARGE = {"width": 1024, "depth": 8, "length": 256, "rows": 16}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.mixed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, hidden: Tensor) -> Tensor:
        rows, length, width = hidden.shape
        parts = self.mixed(self.norms[0](hidden)).view(rows, length, 3, -1, 32).transpose(1, 3)
        query, key, value = parts.unbind(2)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.dropout(self.out(mixed.transpose(1, 2).reshape(rows, length, width)))
        inner = functional.gelu(self.up(self.norms[1](hidden)))
        return hidden + self.dropout(self.down(inner))


class Model(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden))


class Setup:
    """Model, data and loop on one device."""

    def __init__(self, device: str, sizes: dict[str, int], autocast: bool = False) -> None:
        self.device, self.sizes, self.autocast = device, sizes, autocast

    def model(self) -> Model:
        torch.manual_seed(SEED)
        return Model(self.sizes["width"], self.sizes["depth"]).to(self.device).train()

    def optimizer(self, model: nn.Module, rate: float = 1e-3) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=rate)

    def batches(self) -> Iterator[Tensor]:
        made = torch.Generator().manual_seed(SEED)
        shape = (self.sizes["rows"], self.sizes["length"])
        while True:
            yield torch.randint(0, VOCABULARY, shape, generator=made).to(self.device)

    def precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, torch.bfloat16) if self.autocast else nullcontext()

    def loss(self, model: nn.Module, tokens: Tensor) -> Tensor:
        with self.precision():
            logits = model(tokens[:, :-1])
            return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor) -> None:
        optimizer.zero_grad()
        self.loss(model, tokens).backward()
        optimizer.step()

    def behavior(self, model: nn.Module) -> Behavior:
        """The model's own next token on fixed prompts: it passes all probes at the start."""
        made = torch.Generator().manual_seed(SEED + 1)
        ids = torch.randint(0, VOCABULARY, (N_PROBES, 16), generator=made)
        quiet = copy.deepcopy(model).eval()
        with torch.no_grad():
            targets = quiet(ids.to(self.device))[:, -1].argmax(-1).cpu()
        return Behavior.next_token("own", input_ids=ids, targets=targets, floor=0.01)


def check_no_trace(setup: Setup, steps: int = 12) -> dict[str, Any]:
    """Compare weights, optimizer state and generators with and without a monitor, bit by bit."""
    ends = []
    for watched in (False, True):
        model = setup.model()
        optimizer, batches = setup.optimizer(model), setup.batches()
        state = setup.autocast and torch.bfloat16
        monitor = Monitor(
            [setup.behavior(model)], probe_every=4, signals=signals.per_step(), budget=None
        )
        torch.manual_seed(SEED)
        if watched:
            monitor.begin(model, optimizer)
        for _ in range(steps):
            setup.step(model, optimizer, next(batches))
        monitor.end()
        parts = [p.detach() for p in model.parameters()]
        parts += [v for s in optimizer.state.values() for v in s.values()]
        parts += [p.grad for p in model.parameters()]
        parts.append(torch.get_rng_state())
        if setup.device != "cpu":
            parts.append(torch.get_device_module(setup.device).get_rng_state())
        ends.append(parts)
    different = sum(not torch.equal(one, two) for one, two in zip(*ends, strict=True))
    n_read = len(monitor.behavior_histories["own"].steps)
    ok = different == 0 and n_read > 2 and monitor.step == steps
    return {"ok": ok, "tensors": len(ends[0]), "different": different, "autocast": str(state)}


def margins64(model: nn.Module, behavior: Behavior) -> tuple[Tensor, list[Tensor]]:
    """Compute margins and the gradient of their mean in float64 on the CPU, by other code."""
    exact = copy.deepcopy(model).cpu().double().eval()
    logits = exact(behavior.probes.input_ids)[:, -1]
    right = torch.nn.functional.one_hot(behavior.margins.targets, VOCABULARY).bool()
    margins = logits[right] - logits.masked_fill(right, float("-inf")).max(-1).values
    return margins.detach(), list(torch.autograd.grad(margins.mean(), list(exact.parameters())))


def check_readings(setup: Setup, steps: int = 5) -> dict[str, Any]:
    """Compare margins and interference with those in float64."""
    model = setup.model()
    optimizer, batches, behavior = setup.optimizer(model), setup.batches(), setup.behavior(model)
    monitor = Monitor([behavior], probe_every=1, signals=signals.per_step(), budget=None)
    expected, margin_errors = [], []
    for _ in range(steps):
        with monitor.watch(model, optimizer):  # refreshes the gradient
            margins, gradient = margins64(model, behavior)
            read = monitor.behavior_histories["own"].margins[-1]
            margin_errors.append(np.abs(read - margins.numpy()).max() / margins.abs().max().item())
            before = [p.detach().double().cpu() for p in model.parameters()]
            setup.step(model, optimizer, next(batches))
            after = [p.detach().double().cpu() for p in model.parameters()]
        moves = [new - old for new, old in zip(after, before, strict=True)]
        expected.append(sum(float((g * m).sum()) for g, m in zip(gradient, moves, strict=True)))
    history = monitor.history()
    read = history[history.signal == "interference"].value.to_numpy()
    error = float(np.abs(read - expected).max() / np.abs(expected).max())
    ok = len(read) == steps and error < 1e-3 and max(margin_errors) < 1e-3
    return {"ok": ok, "interference_error": error, "margin_error": float(max(margin_errors))}


def check_selection(setup: Setup) -> dict[str, Any]:
    """Compare the norms of single rows' gradients with a loop over the rows."""
    model = setup.model().eval()
    tokens = next(setup.batches())

    def row_losses(model: nn.Module, tokens: Tensor) -> Tensor:
        logits = model(tokens)[:, :-1].transpose(1, 2)
        return functional.cross_entropy(logits, tokens[:, 1:], reduction="none").mean(1)

    norms = selection.gradient_norms(model, tokens, row_losses).cpu()
    expected = []
    for row in tokens:
        gradient = torch.autograd.grad(row_losses(model, row[None]).sum(), list(model.parameters()))
        expected.append(sum(float(part.double().square().sum()) for part in gradient) ** 0.5)
    error = float((norms.double() / torch.tensor(expected) - 1).abs().max())
    return {"ok": error < 1e-3, "relative_error": error, "rows": len(norms)}


def check_guards(setup: Setup, steps: int = 8) -> dict[str, Any]:
    """Train against a behavior, without a guard and with guards that protect it."""
    found: dict[str, Any] = {}
    start = setup.model()
    behavior = setup.behavior(start)
    ids = behavior.probes.input_ids.to(setup.device)
    wrong = (behavior.margins.targets + 1).to(setup.device) % VOCABULARY

    def train(guard: Any) -> tuple[float, float]:
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        monitor = Monitor([behavior], probe_every=1, signals=signals.per_step(), budget=None)
        with monitor.watch(model, optimizer, guard=guard):
            for _ in range(steps):
                optimizer.zero_grad()
                functional.cross_entropy(model(ids)[:, -1], wrong).backward()
                optimizer.step()
        pairs = zip(model.parameters(), start.parameters(), strict=True)
        moved = sum(float((p - q).detach().double().square().sum()) for p, q in pairs) ** 0.5
        return float(evaluation.evaluate(behavior, model).margins.mean()), moved

    found["margin_plain"], found["moved_plain"] = train(None)
    found["margin_agem"], _ = train(guards.AGEM([behavior]))
    _, found["moved_l2sp"] = train(guards.L2SP(5.0, max_pull=None))
    start_margin = float(evaluation.evaluate(behavior, start).margins.mean())
    lost, kept = start_margin - found["margin_plain"], start_margin - found["margin_agem"]
    found["margin_start"] = start_margin
    found["ok"] = lost > 0 and kept < 0.5 * lost and found["moved_l2sp"] < found["moved_plain"]
    return found


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def measure_cost(setup: Setup, pairs: int, steps: int) -> dict[str, Any]:
    """Measure steps with and without a monitor, in interleaved pairs, and the peak memory."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    peaks: dict[bool, int | None] = {False: None, True: None}
    for _ in range(pairs):
        for watched in (False, True):
            model = setup.model()
            optimizer, batches = setup.optimizer(model), setup.batches()
            monitor = Monitor([setup.behavior(model)], signals=signals.per_step(), budget=None)
            setup.step(model, optimizer, next(batches))
            if setup.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            synchronize(setup.device)
            began = time.perf_counter()
            if watched:
                monitor.begin(model, optimizer)
            for _ in range(steps):
                setup.step(model, optimizer, next(batches))
            monitor.end()
            synchronize(setup.device)
            seconds[watched].append((time.perf_counter() - began) / steps)
            if setup.device == "cuda":
                peaks[watched] = torch.cuda.max_memory_allocated()
    ratios = [two / one for one, two in zip(seconds[False], seconds[True], strict=True)]
    memory = None if peaks[False] is None or peaks[True] is None else peaks[True] / peaks[False]
    return {
        "ok": True,
        "steps": steps,
        "plain_step_ms": 1000 * float(np.median(seconds[False])),
        "time_ratio": float(np.median(ratios)),
        "peak_plain_mb": None if peaks[False] is None else peaks[False] / 2**20,
        "memory_ratio": memory,
    }


def default_device() -> str:
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    return "cpu" if accelerator is None else accelerator.type


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default=default_device(), help="cuda, cpu, …")
    parser.add_argument("--json", type=Path, help="file for the numbers; they are printed as well")
    arguments = parser.parse_args()
    device = arguments.device
    sizes = SMALL if device == "cpu" else LARGE
    torch.use_deterministic_algorithms(True)
    plain, mixed = Setup(device, sizes), Setup(device, sizes, autocast=True)
    small = Setup(device, SMALL)  # the reference in float64 runs on the CPU
    checks: dict[str, Callable[[], dict[str, Any]]] = {
        "no trace, float32": lambda: check_no_trace(plain),
        "no trace, bf16 autocast": lambda: check_no_trace(mixed),
        "readings against float64": lambda: check_readings(small),
        "selection against single rows": lambda: check_selection(small),
        "guards have an effect": lambda: check_guards(small),
        "cost, float32": lambda: measure_cost(plain, 5, 40),
        "cost, bf16 autocast": lambda: measure_cost(mixed, 5, 40),
    }
    name = torch.cuda.get_device_name() if device == "cuda" else device
    results: dict[str, Any] = {"device": name, "torch": torch.__version__, "sizes": sizes}
    print(f"{name}, torch {torch.__version__}, {sizes}")
    began = time.perf_counter()
    for title, check in checks.items():
        try:
            found = check()
        except Exception as error:  # noqa: BLE001 the other checks still run
            found = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        results[title] = found
        numbers = ", ".join(
            f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in found.items()
            if key != "ok"
        )
        print(f"{'ok' if found['ok'] else 'FAILED':7} {title:30} {numbers}", flush=True)
    results["seconds"] = time.perf_counter() - began
    print(json.dumps(results, default=lambda number: number.item()))
    if arguments.json is not None:
        arguments.json.write_text(
            json.dumps(results, indent=1, default=lambda number: number.item()) + "\n",
            encoding="utf-8",
        )
    sys.exit(0 if all(results[title]["ok"] for title in checks) else 1)


if __name__ == "__main__":
    main()
