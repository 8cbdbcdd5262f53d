"""All guards as the shared tests create them; add a new guard to `CASES` to test it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from riprap import AlertPolicy, Behavior, Monitor, guards
from riprap.behaviors._margin_formulas import token_margin
from riprap.guards import Guard
from tiny import PlainLM

MADE = torch.Generator().manual_seed(3)
OLD = torch.randint(0, 20, (24, 5), generator=MADE)
ANSWERS = torch.randint(0, 20, (24,), generator=MADE)
A_BEFORE = torch.randn(4, 16, generator=MADE) / 4
SILENT = {"name": "silent", "detectors": [{"kind": "forecast"}]}

Case = Callable[[], Guard]
CASES: dict[str, Case] = {
    "agem": lambda: guards.AGEM(refresh=1),
    "agem_of_losses": lambda: guards.AGEM(of="loss", refresh=1),
    "gem": lambda: guards.GEM(refresh=1),
    "pcgrad": lambda: guards.PCGrad(refresh=1),
    "upgrad": lambda: guards.UPGrad(refresh=1),
    "ogd": lambda: guards.OGD(directions=8),
    "safegrad": lambda: guards.SafeGrad(refresh=2),
    "gpm": lambda: guards.GPM(energy=0.9),
    "two_sided_gpm": lambda: guards.TwoSidedGPM(energy=0.7),
    "update_projection": lambda: guards.UpdateProjection(refresh=1),
    "safe_anchor": lambda: guards.SafeAnchor(strictness=1.0),
    "l2_sp": lambda: guards.L2SP(0.5),
    "replay": lambda: guards.Replay([(OLD, ANSWERS)], loss=old_loss),
    "adaptive_replay": lambda: guards.AdaptiveReplay([(OLD, ANSWERS)], loss=old_loss, every=1),
    "auto_guard": lambda: guards.AutoGuard(
        replay=guards.Replay([(OLD, ANSWERS)], loss=old_loss), rollback=False
    ),
    "replay_of_buffer": lambda: guards.Replay(
        guards.SelfDistillationBuffer(replayable(), batch_size=8), fraction=0.5
    ),
    "auto_guard_of_buffer": lambda: guards.AutoGuard(
        replay=guards.SelfDistillationBuffer(replayable(), batch_size=8)
    ),
    "chain": lambda: guards.Chain(guards.AGEM(["first"]), guards.AGEM(["second"])),
    "ewc": lambda: guards.EWC(strength=30.0),
    "ewc_of_margins": lambda: guards.EWC(of="margin", strength=0.1),
    "margin_anchor": lambda: guards.MarginAnchor(),
    "online_ewc": lambda: guards.OnlineEWC(strength=30.0, every=3),
    "si": lambda: guards.SI(strength=1.0, refresh=1),
    "mas": lambda: guards.MAS(strength=1e-4),
    "kl": lambda: guards.KL(strength=1.0),
    "kl_on_batches": lambda: guards.KL(batches=[{"tokens": OLD[i::3]} for i in range(3)]),
    "der_pp": lambda: guards.DERpp(halves(), strength=0.5),
    "lwf": lambda: guards.LwF(strength=0.5),
    "constrained_tokens": lambda: guards.ConstrainedTokens(responses(3), strength=0.5),
    "feature_anchor": lambda: guards.FeatureAnchor(
        strength=0.1, layer="blocks.1", reselect_every=3
    ),
    "feature_anchor_of_drift": lambda: guards.FeatureAnchor(
        strength=0.1,
        layer="blocks.1",
        n_features=4,
        drifted_model=wandered(),
        both_sides=True,
        reselect_every=3,
    ),
    "o_lora": lambda: guards.OLoRA(earlier=[{"blocks.1.weight": A_BEFORE}]),
    "lisa": lambda: guards.Lisa(halves(), old_loss, task_steps=2, protected_steps=1, rho=0.5),
    "freeze": lambda: guards.Freeze(["blocks.1"], embeddings=True),
    "clip": lambda: guards.Clip(0.1),
    "ema": lambda: guards.EMA(decay=0.7, every=2),
    "penalty_then_clip": lambda: guards.Chain(guards.L2SP(0.5), guards.Clip(0.5)),
    "scheduled": lambda: guards.Scheduled(guards.AGEM(refresh=1), first=2, every=2),
    "rollback": lambda: guards.Rollback(every=2, keep_learning=False),
}


def last(model: nn.Module, ids: Tensor) -> Tensor:
    return model(ids)[:, -1]


def behavior(name: str, rows: slice) -> Behavior:
    """Some of the old answers, to be kept."""
    return Behavior(
        name,
        (OLD[rows], ANSWERS[rows]),
        margins=lambda model, probes: token_margin(last(model, probes[0]), probes[1]),
        losses=lambda model, probes: functional.cross_entropy(
            last(model, probes[0]), probes[1], reduction="none"
        ),
    )


def behaviors() -> list[Behavior]:
    return [behavior("first", slice(0, 12)), behavior("second", slice(12, 24))]


def replayable() -> list[Behavior]:
    """Other inputs of the same behaviors, without labels that matter."""
    made = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 20, (24, 5), generator=made)
    return [
        Behavior.next_token(name, ids[rows], ANSWERS[rows])
        for name, rows in (("first", slice(0, 12)), ("second", slice(12, 24)))
    ]


def old_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(last(model, batch[0]), batch[1])


def halves() -> list[tuple[Tensor, Tensor]]:
    """The old answers as two protected batches."""
    return [(OLD[rows], ANSWERS[rows]) for rows in (slice(0, 12), slice(12, 24))]


def responses(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    """Protected batches: the last three tokens are the response to those before."""
    labels = OLD.clone()
    labels[:, :2] = -100
    return list(zip(OLD.chunk(count), labels.chunk(count), strict=True))


def start() -> nn.Module:
    """A plain causal model that has learned the old answers."""
    model = PlainLM(size=20, width=16, depth=2)
    model.load_state_dict(_learned())
    return model


def wandered() -> nn.Module:
    """The same model after weights moved at random, not all alike."""
    made, model = torch.Generator().manual_seed(7), start()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=made), alpha=0.1)
    return model


@functools.cache
def _learned() -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = PlainLM(size=20, width=16, depth=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(120):
        optimizer.zero_grad()
        old_loss(model, (OLD, ANSWERS)).backward()
        optimizer.step()
    return model.state_dict()


def lessons(count: int, rows: int = 16) -> list[tuple[Tensor, Tensor]]:
    """Batches of a new task, which interferes with the old answers."""
    made = torch.Generator().manual_seed(11)
    return [
        (
            torch.randint(0, 20, (rows, 5), generator=made),
            torch.randint(0, 20, (rows,), generator=made),
        )
        for _ in range(count)
    ]


def monitor_of(watched: list[Behavior] | None = None, **options: Any) -> Monitor:
    policy = AlertPolicy.parse(SILENT, "here")
    options = {"budget": None, "probe_every": 5} | options
    return Monitor(watched or behaviors(), policy=policy, **options)


class Run:
    """Training under a guard, from the same start each time."""

    def __init__(self, guard: Guard | None, model: nn.Module | None = None, rate: float = 0.1):
        self.model = start() if model is None else model
        # SGD: Adam would turn the rounding of small gradients into signs.
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=rate, momentum=0.9)
        self.monitor, self.guard = monitor_of(), guard

    def go(self, batches: list[tuple[Tensor, Tensor]], parts: int = 1) -> Run:
        with self.monitor.watch(self.model, self.optimizer, guard=self.guard):
            for ids, targets in batches:
                self.step(ids, targets, parts)
        return self

    def step(self, ids: Tensor, targets: Tensor, parts: int = 1) -> None:
        self.optimizer.zero_grad()
        for one, two in zip(ids.chunk(parts), targets.chunk(parts), strict=True):
            (old_loss(self.model, (one, two)) / parts).backward()
        self.optimizer.step()

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]
