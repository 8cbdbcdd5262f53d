"""What is read does not depend on how a batch is cut into micro-batches."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from riprap import AlertPolicy, Behavior, Monitor, signals
from tiny import PROMPTS, make_llama, make_tokenizer

ROWS = torch.randint(3, 47, (20, 8, 9), generator=torch.Generator().manual_seed(2))


def readings(policy: AlertPolicy, parts: int) -> pd.DataFrame:
    model = make_llama(scale=5.0).train()
    behaviors = [
        Behavior.response_prefix(
            "refusal", make_tokenizer(), PROMPTS, ["sorry", "no"], contrast="words"
        ),
        Behavior.next_token("words", ROWS[0, :4, :5], [9, 11, 30, 12], contrast="refusal"),
    ]
    monitor = Monitor(behaviors, policy=policy, probe_every=5, signals=signals.everything())
    # SGD: Adam would turn the rounding of small gradients into signs.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with monitor.watch(model, optimizer):
        for batch in ROWS:
            optimizer.zero_grad()
            for ids in batch.chunk(parts):
                (model(ids, labels=ids).loss / parts).backward()
            optimizer.step()
    return monitor.history()


@pytest.mark.filterwarnings("ignore:behavior .* before training")
@pytest.mark.parametrize("parts", [2, 8])
def test_many_small_read_as_one_times_eight(parts: int, policy: AlertPolicy) -> None:
    whole, halves = readings(policy, 1), readings(policy, parts)
    assert {"interference", "margin", "cosine_loss", "norm_update"} <= set(whole.signal)
    assert whole.step.max() == len(ROWS)
    assert whole.value[whole.signal == "interference"].abs().max() > 0
    assert whole.drop(columns="value").equals(halves.drop(columns="value"))
    assert "ERROR" not in set(whole.state)
    np.testing.assert_allclose(whole.value, halves.value, rtol=2e-3, atol=1e-4)
