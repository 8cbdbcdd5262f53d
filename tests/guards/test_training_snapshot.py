"""TrainingSnapshot: everything is restored, and a lower learning rate is permanent."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from guards.test_rollback import same
from riprap.guards.weights._training_snapshot import TrainingSnapshot
from riprap.record import load_state, save_state
from tiny import Classifier


def test_running_statistics_and_the_gradient_scaler_come_back() -> None:
    model = Classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(()))
    training = TrainingSnapshot(model, optimizer, grad_scaler=scaler)
    kept, before = training.capture(), copy.deepcopy(model.state_dict())
    model.train()(torch.randn(9, 8)).sum().backward()
    optimizer.step()
    scaler.update(1.0)
    assert not same(dict(before), dict(model.state_dict()))
    training.restore(kept)
    assert same(dict(before), dict(model.state_dict()))
    assert scaler.get_scale() == 4.0


SCHEDULES = {
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 30),
    "steps": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 9]),
    "one_cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.3, total_steps=40),
    "sequence": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.ConstantLR(o, 0.5, 3),
            torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        ],
        [4],
    ),
}


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "files"])
def test_the_cut_lasts_under_a_schedule(kind: str, on_disk: bool, tmp_path: Path) -> None:
    """After going back from step 8 to step 5 with cut ½: the rates from there, halved."""
    plain, cut = ([nn.Parameter(torch.ones(3))] for _ in range(2))
    rates = []
    for parameters in (plain, cut):
        optimizer = torch.optim.SGD(parameters, lr=0.3)
        schedule = SCHEDULES[kind](optimizer)
        training = TrainingSnapshot(nn.Module(), optimizer, schedule)
        found = []
        for step in range(1, 21):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if parameters is cut and step == 5:
                kept = training.capture()
                if on_disk:
                    save_state(tmp_path / "one.safetensors", kept)
                    kept = load_state(tmp_path / "one.safetensors")
            if parameters is cut and step == 8:
                training.restore(kept)
                training.scale_lr(0.5)
            schedule.step()
        rates.append(found)
    assert rates[1][:8] == rates[0][:8]
    assert rates[1][8:] == pytest.approx([rate / 2 for rate in rates[0][5:17]])
