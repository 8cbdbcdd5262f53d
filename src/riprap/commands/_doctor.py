"""`riprap doctor`: versions, supported features, and a self-test of a few seconds."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from riprap._extras import EXTRAS, is_installed, require
from riprap.behaviors import Behavior
from riprap.detectors import AlertPolicy
from riprap.monitor import Monitor, ProbeSchedule, versions
from riprap.record import Reader
from riprap.types import Level

ROWS, WORDS, STEPS = 48, 12, 60


@dataclass(frozen=True)
class Check:
    """Result of one check; `detail` of a failed one is the cause, and what to do."""

    name: str
    passed: bool
    detail: str


def examine(subject: str | None = None) -> dict[str, Any]:
    """Collect versions and supported features, and run the self-test.

    Args:
        subject: a model, or a configuration of `riprap watch` (`.yaml`): say what it would train,
            instead.
    """
    if subject is not None:
        require("hf", *EXTRAS["hf"])
        from riprap.commands._trained_parts import examine_config, examine_model

        is_config = subject.endswith((".yaml", ".yml"))
        found = examine_config(Path(subject)) if is_config else examine_model(subject)
        return {
            "trains": [asdict(parts) for parts in found],
            "lines": [line for parts in found for line in parts.lines()],
        }
    return {
        "versions": versions(),
        "support": support(),
        "checks": [asdict(check) for check in self_test()],
    }


def support() -> dict[str, str]:
    """List devices, threads, extras and communication backends."""
    has_device = torch.accelerator.is_available()
    backends = ("gloo", "nccl") if dist.is_available() else ()
    complete, incomplete = [], []
    for extra, modules in EXTRAS.items():
        if missing := [module for module in modules if not is_installed(module)]:
            incomplete.append(f"riprap[{extra}] ({', '.join(missing)})")
        else:
            complete.append(f"riprap[{extra}]")
    return {
        "device": str(torch.accelerator.current_accelerator() if has_device else "cpu"),
        "threads": str(torch.get_num_threads()),
        "extras installed": ", ".join(complete) or "none",
        "extras not installed": ", ".join(incomplete) or "none",
        "several ranks": ", ".join(filter(dist.is_backend_available, backends)) or "no",
    }


def self_test() -> list[Check]:
    """Monitor a tiny model that forgets; check the alert, the record and the weights."""
    started = time.monotonic()
    results: dict[str, Any] = {}
    checks = []
    steps: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("an alert comes before the break", _check_alert),
        ("the record can be read", _check_record),
        ("training is unchanged, bit for bit", _check_isolation),
    ]
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        results["folder"] = Path(folder) / "run"
        for name, step in steps:
            try:
                checks.append(Check(name, True, step(results)))
            except Exception as error:  # noqa: BLE001 a self-test reports every failure
                checks.append(Check(name, False, f"{type(error).__name__}: {error}"))
    checks.append(Check("time", True, f"{time.monotonic() - started:.1f} s"))
    return checks


class _Tiny(nn.Module):
    """Predicts the logits of the next word from one word."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 16)
        self.head = nn.Linear(16, WORDS)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(ids[:, -1])))


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, shift: int, steps: int) -> None:
    ids = torch.arange(WORDS)[:, None]
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(ids), (ids[:, 0] + shift) % WORDS).backward()
        optimizer.step()


def _train_and_forget(
    run_dir: Path | None, monitored: bool
) -> tuple[_Tiny, torch.optim.Optimizer, Monitor | None]:
    """Train on "the next word", then on "the word after that", with or without a monitor."""
    torch.manual_seed(0)
    model = _Tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    _train(model, optimizer, 1, 150)
    ids = torch.arange(ROWS)[:, None] % WORDS
    behavior = Behavior.next_token("next word", ids, (ids[:, 0] + 1) % WORDS)
    if not monitored:
        _train(model, optimizer, 2, STEPS)
        return model, optimizer, None
    monitor = Monitor(
        [behavior], AlertPolicy.default(), probe_every=10, run_dir=run_dir, budget=None
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a failing monitor only warns
        with monitor.watch(model, optimizer):
            _train(model, optimizer, 2, STEPS)
    return model, optimizer, monitor


def _check_alert(results: dict[str, Any]) -> str:
    model, optimizer, monitor = _train_and_forget(results["folder"], monitored=True)
    assert monitor is not None
    results |= {"model": model, "optimizer": optimizer, "monitor": monitor}
    broke = monitor.broken()["next word"]
    alerts = [a.step for a in monitor.alerts if a.level.rank >= Level.WARNING.rank]
    if broke is None or not alerts or min(alerts) >= broke:
        raise RuntimeError(
            f"break at {broke}, alerts at {alerts}: the planted decline caused no alert in time; "
            "please report this with the versions above"
        )
    return f"alert at step {min(alerts)}, break at step {broke}"


def _check_record(results: dict[str, Any]) -> str:
    with Reader(results["folder"]) as reader:
        readings, alerts = reader.readings(), reader.alerts()
    steps = {reading.step for reading in readings if reading.signal == "interference"}
    gaps = [after - before for before, after in pairwise(sorted(steps | {0, STEPS + 1}))]
    if max(gaps) > ProbeSchedule.read_every or alerts != results["monitor"].alerts:
        raise RuntimeError("the record lacks readings or alerts; is the disk full?")
    return f"{len(readings)} readings"


def _check_isolation(results: dict[str, Any]) -> str:
    model, optimizer, _ = _train_and_forget(None, monitored=False)
    same = all(map(torch.equal, model.parameters(), results["model"].parameters()))
    states = [list(o.state.values()) for o in (optimizer, results["optimizer"])]
    same = same and all(
        torch.equal(plain[key], monitored[key])
        for plain, monitored in zip(*states, strict=True)
        for key in plain
    )
    if not same:
        raise RuntimeError(
            "the weights differ from those of training without a monitor: does torch use "
            "nondeterministic algorithms on this device?"
        )
    return f"{STEPS} steps, weights and optimizer state identical"
