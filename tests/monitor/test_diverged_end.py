"""A model whose weights are no numbers: nothing says that it recovered, or was changed outside."""

from __future__ import annotations

import warnings

import pytest
import torch

from guards.cases import Run, lessons


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverged_model_has_not_recovered_and_was_not_changed_outside(bad: float) -> None:
    run = Run(None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with run.monitor.watch(run.model, run.optimizer):
            for at, (ids, targets) in enumerate(lessons(12)):
                run.step(ids, targets)
                if at == 5:
                    for group in run.optimizer.param_groups:
                        group["lr"] = bad
    text = run.monitor.summary()
    assert "broke at step" in text
    assert "above its floor again" not in text
    assert "outside of the watched steps" not in text
    assert not [one for one in caught if "outside of the watched steps" in str(one.message)]
    assert not torch.isfinite(next(run.model.parameters())).all()
