"""Each guard holds parameters that join training later, or refuses them in one sentence."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from guards.cases import CASES, Run, lessons, start
from riprap.errors import ConfigError

REFUSES = {
    "ogd",
    "gpm",
    "two_sided_gpm",
    "ewc",
    "ewc_of_margins",
    "online_ewc",
    "mas",
    "o_lora",
    "safe_anchor",
}
ALL_FROM_THE_START = {"feature_anchor_of_drift"}  # its other model has all parameters


def late(model: nn.Module) -> list[nn.Parameter]:
    return list(model.blocks[0].parameters())  # type: ignore[union-attr, index, operator]


@pytest.mark.parametrize("how", ["unfrozen", "added"])
@pytest.mark.parametrize("name", sorted(set(CASES) - ALL_FROM_THE_START))
def test_what_joins_is_held_or_refused(name: str, how: str) -> None:
    model = start()
    for parameter in late(model):
        parameter.requires_grad_(False)
    run = Run(CASES[name](), model)
    if how == "unfrozen":
        run.optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = copy.deepcopy(model.state_dict())

    def train() -> None:
        with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
            for ids, targets in lessons(3):
                run.step(ids, targets)
            for parameter in late(model):
                parameter.requires_grad_(True)
            if how == "added":
                run.optimizer.add_param_group({"params": late(model), "lr": 0.1})
            for ids, targets in lessons(6)[3:]:
                run.step(ids, targets)

    with pytest.warns(UserWarning, match="joined training"):
        if name in REFUSES or (name == "rollback" and how == "added"):
            with pytest.raises(ConfigError, match=r"joined training after step 3|were added to"):
                train()
            return
        train()
    acted = [action.step for action in run.monitor.actions if action.applied]
    assert acted
    own = dict(model.named_parameters())
    moved = any(
        not torch.equal(own[key], before[key])
        for key in own
        if any(own[key] is p for p in late(model))
    )
    assert moved
