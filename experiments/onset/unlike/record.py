"""Pretraining of the models, and the recording of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from experiments.onset.trace import BehaviorTrace, Trace
from experiments.onset.unlike.base import Rows, World, join, loss, margins
from experiments.onset.unlike.plan import OLD, WORLDS, Run
from experiments.onset.unlike.updates import factors, optimizers

CORPUS = "unlike"
REFRESH_FIRST, REFRESH_EVERY = 8, 40  # steps
FEWEST_PROBES = 24
LENGTHS = (1.0, 0.6, 0.35)  # of the first training of models 0, 1 and 2, as a share of the world's


def pretrained(world: World, number: int, folder: Path) -> nn.Module:
    """Return a model of the world after its first training, from its file where there is one."""
    path = folder / "unlike-models" / f"{world.name}-{number}.safetensors"
    torch.manual_seed(number)
    model = world.build()
    if path.exists():
        model.load_state_dict(load_file(path))
        return model
    longest, batch, rate = world.pretraining
    steps = round(LENGTHS[number] * longest)
    generator = torch.Generator().manual_seed(number)
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 100) * (
            0.5 + 0.5 * math.cos(math.pi * step / steps)
        )  # fmt: skip
        _step(model, [optimizer], world.old(generator, batch))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    save_file(model.state_dict(), unfinished)
    unfinished.replace(path)
    return model


def _step(model: nn.Module, updaters: list[torch.optim.Optimizer], rows: Rows) -> float:
    """Train on the rows once; return their loss."""
    model.zero_grad()
    value = loss(model(rows.inputs), rows.targets)
    value.backward()
    for updater in updaters:
        updater.step()
    return float(value.detach())


def passing_probes(world: World, model: nn.Module, seed: int) -> dict[str, Rows]:
    """Return probes of each behavior that the model passes, no two of them alike."""
    generator = torch.Generator().manual_seed(1000 + seed)
    chosen = {}
    for name, draw in world.probes.items():
        rows = draw(generator, 2 * world.n_probes[name])
        first = {tuple(row): place for place, row in enumerate(rows.inputs.tolist())}
        rows = rows[torch.tensor(sorted(first.values()))]
        with torch.no_grad():
            passed = margins(model(rows.inputs), rows.targets) > 0
        chosen[name] = rows[passed][: world.n_probes[name]]
        if len(chosen[name]) < min(FEWEST_PROBES, world.n_probes[name]):
            raise ValueError(
                f"{world.name}: the model passes only {len(chosen[name])} probes of {name}; "
                f"{FEWEST_PROBES} are needed: train it longer"
            )
    return chosen


def flat(model: nn.Module) -> Tensor:
    """Return a copy of all parameters, shape (parameters,), in double precision."""
    return torch.cat([own.detach().double().flatten() for own in model.parameters()])


def protected_gradients(model: nn.Module, probes: Mapping[str, Rows]) -> Tensor:
    """Return h_b of each behavior in the model's current state, shape (behaviors, parameters)."""
    parameters = list(model.parameters())
    rows = []
    for own in probes.values():
        mean = margins(model(own.inputs), own.targets).mean()
        parts = torch.autograd.grad(mean, parameters, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([part.double().flatten() for part in parts]))
    return torch.stack(rows)


def record(run: Run, model: nn.Module) -> Trace:
    """Train the model as planned, and return what its behaviors did."""
    world = WORLDS[run.world]
    probes = passing_probes(world, model, run.model)
    every = join(list(probes.values()))
    seed = int(np.random.SeedSequence(run.seed).generate_state(1)[0])
    generator = torch.Generator().manual_seed(seed)
    updaters = optimizers(run.optimizer, model, run.rate)
    highest = [[group["lr"] for group in updater.param_groups] for updater in updaters]
    shares = factors(run.schedule, run.steps)
    refreshed, norms, losses, interference = [], [], [], []
    seen = [_all_margins(model, every)]
    for step in range(run.steps):
        if step == REFRESH_FIRST or step % REFRESH_EVERY == 0:
            gradients = protected_gradients(model, probes)
            refreshed.append(step)
            norms.append(gradients.norm(dim=1).numpy())
        for updater, rates in zip(updaters, highest, strict=True):
            for group, rate in zip(updater.param_groups, rates, strict=True):
                group["lr"] = rate * shares[step]
        before = flat(model)
        losses.append(_step(model, updaters, _batch(world, run, step, generator)))
        interference.append((gradients @ (flat(model) - before)).numpy())
        seen.append(_all_margins(model, every))
    ends = np.cumsum([len(own) for own in probes.values()])[:-1]
    parts = zip(probes.items(), np.split(np.array(seen), ends, axis=1), strict=True)
    behaviors = {
        name: BehaviorTrace(
            own_margins, own.groups.numpy(), np.array(interference)[:, place],
            np.array(norms)[:, place],
        )
        for place, ((name, own), own_margins) in enumerate(parts)
    }  # fmt: skip
    return Trace(
        CORPUS, run.name, "exploratory", run.about(), np.arange(run.steps + 1), np.array(shares),
        np.array(losses), np.array(refreshed), behaviors,
    )  # fmt: skip


def _all_margins(model: nn.Module, probes: Rows) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = margins(model(probes.inputs), probes.targets).numpy()
    return found


def _batch(world: World, run: Run, step: int, generator: torch.Generator) -> Rows:
    """Draw the rows of a step: of the present task, with old rows as planned."""
    n_old = round(run.replay * world.batch)
    name = run.tasks[0] if step < run.change else run.tasks[1]
    draw = world.old if name == OLD else {**world.related, **world.new}[name]
    rows = draw(generator, world.batch - n_old)
    return join([rows, world.old(generator, n_old)]) if n_old else rows


def pretrain_once(world: str, number: int, folder: Path) -> None:
    """Train and store a model, unless it is stored already."""
    torch.set_num_threads(1)
    pretrained(WORLDS[world], number, folder)


def record_once(run: Run, folder: Path) -> Path:
    """Record a run and store it; a run that is stored already stays as it is."""
    path = folder / CORPUS / f"{run.name}.npz"
    if not path.exists():
        torch.set_num_threads(1)
        record(run, pretrained(WORLDS[run.world], run.model, folder)).save(folder)
    return path
