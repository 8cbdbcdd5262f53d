"""What is installed and supported here, and whether a monitor works: a self-test in seconds."""

from __future__ import annotations

import importlib.util
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from riprap.behaviors import Behavior
from riprap.detectors import AlertPolicy
from riprap.monitor import Monitor, versions
from riprap.record import Reader
from riprap.types import Level

OPTIONAL = ("trl", "peft", "accelerate", "lightning")
ROWS, WORDS, STEPS = 48, 12, 60


@dataclass(frozen=True)
class Check:
    """One thing that was tried.

    Attributes:
        detail: what was seen; where it failed also what to do.
    """

    name: str
    passed: bool
    detail: str


def examine() -> dict[str, Any]:
    """Versions, what is supported here, and the checks of the self-test."""
    return {
        "versions": versions(),
        "support": support(),
        "checks": [asdict(check) for check in self_test()],
    }


def support() -> dict[str, str]:
    """Devices, threads, trainers and backends, by name."""
    accelerator = torch.accelerator.current_accelerator() if _has_accelerator() else None
    backends = {
        "gloo": dist.is_available() and dist.is_gloo_available(),
        "nccl": dist.is_available() and dist.is_nccl_available(),
    }
    trainers = [name for name in OPTIONAL if importlib.util.find_spec(name)]
    missing = [name for name in OPTIONAL if name not in trainers]
    return {
        "device": str(accelerator or "cpu"),
        "threads": str(torch.get_num_threads()),
        "installed": ", ".join(["transformers", *trainers]),
        "not installed": ", ".join(missing) or "nothing that Riprap works with",
        "several ranks": ", ".join(name for name, there in backends.items() if there) or "no",
    }


def _has_accelerator() -> bool:
    return hasattr(torch, "accelerator") and torch.accelerator.is_available()


def self_test() -> list[Check]:
    """A monitor on a tiny model that is made to forget: alert, record, and no trace."""
    started = time.monotonic()
    found: dict[str, Any] = {}
    checks = []
    steps: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("a decline is announced", _announces),
        ("the record can be read back", _records),
        ("training is left as it is, bit for bit", _no_trace),
    ]
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        found["folder"] = Path(folder) / "run"
        for name, step in steps:
            try:
                checks.append(Check(name, True, step(found)))
            except Exception as error:  # noqa: BLE001 a self-test reports whatever goes wrong
                checks.append(Check(name, False, f"{type(error).__name__}: {error}"))
    checks.append(Check("time", True, f"{time.monotonic() - started:.1f} s"))
    return checks


class _Tiny(nn.Module):
    """One word in, logits of the next word out."""

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


def _forget(run: Path | None, watched: bool) -> tuple[_Tiny, torch.optim.Optimizer, Monitor | None]:
    """Learn "the next word", then "the word after that"; the first is watched."""
    torch.manual_seed(0)
    model = _Tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    _train(model, optimizer, 1, 150)
    ids = torch.arange(ROWS)[:, None] % WORDS
    behavior = Behavior.next_token("next word", ids, (ids[:, 0] + 1) % WORDS)
    if not watched:
        _train(model, optimizer, 2, STEPS)
        return model, optimizer, None
    monitor = Monitor([behavior], policy=AlertPolicy.default(), probe_every=10, run_dir=run)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an observer that fails says so by a warning
        with monitor.watch(model, optimizer):
            _train(model, optimizer, 2, STEPS)
    return model, optimizer, monitor


def _announces(found: dict[str, Any]) -> str:
    found["model"], found["optimizer"], monitor = _forget(found["folder"], watched=True)
    assert monitor is not None
    found["monitor"] = monitor
    broke = monitor.broken()["next word"]
    alerts = [a.step for a in monitor.alerts if a.level.rank >= Level.WARNING.rank]
    if broke is None or not alerts or min(alerts) >= broke:
        raise RuntimeError(
            f"broke at {broke}, alerts at {alerts}: a planted decline was not announced; please "
            "report this with the versions above"
        )
    return f"alert at step {min(alerts)}, break at step {broke}"


def _records(found: dict[str, Any]) -> str:
    with Reader(found["folder"]) as reader:
        kept = reader.readings()
    if len(kept) != len(found["monitor"].history()):
        raise RuntimeError("the record does not hold what was read; is the disk full?")
    return f"{len(kept)} readings"


def _no_trace(found: dict[str, Any]) -> str:
    model, optimizer, _ = _forget(None, watched=False)
    same = all(
        torch.equal(one, two)
        for one, two in zip(model.parameters(), found["model"].parameters(), strict=True)
    )
    kept = [list(o.state.values()) for o in (optimizer, found["optimizer"])]
    same = same and all(
        torch.equal(one[key], two[key]) for one, two in zip(*kept, strict=True) for key in one
    )
    if not same:
        raise RuntimeError(
            "the weights differ from those of training without a monitor: is torch set to "
            "algorithms that are not deterministic on this device?"
        )
    return f"{STEPS} steps, weights and optimizer state identical"
