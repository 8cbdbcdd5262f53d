"""Recovery of a model with LoRA adapters: the reference has them disabled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from diagnosing import score
from riprap.diagnosis import Verdict, recover
from riprap.diagnosis.recovery._examples import Examples
from riprap.diagnosis.recovery._relearn import train_steps, trainable_copy
from riprap.errors import ConfigError
from riprap.toy._world import ToyWorld

WORLD = ToyWorld()
_, REFUSING, HARMLESS = WORLD.behaviors()
POOL = WORLD.pools()[1]


@pytest.fixture(params=["linear", "embedding"])
def tuned(request: pytest.FixtureRequest) -> Any:
    """A model that no longer refuses, by its adapters alone."""
    return without_refusals("all-linear" if request.param == "linear" else r".*(embed_tokens|proj)")


def without_refusals(where: Any, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=where, **settings)
    model: Any = get_peft_model(WORLD.start(1000), config)  # type: ignore[arg-type]
    batch = WORLD.tasks["B"][torch.arange(0, 13248, 64)]
    comply = WORLD.tasks["over_refusal"].targets[:1].expand(len(batch))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(40):
        logits = model(batch.input_ids).logits[:, -1]
        torch.nn.functional.cross_entropy(logits, comply).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert score(REFUSING, model) < 0.2
    return model


def test_switched_off_adapters_learn_from_the_base(tuned: Any) -> None:
    ids = WORLD.tasks["B"].input_ids[:4]
    before = {name: part.detach().clone() for name, part in tuned.named_parameters()}
    wanted = [part.requires_grad for part in tuned.parameters()]
    with torch.no_grad():
        now = tuned(ids).logits
    with tuned.disable_adapter():
        with torch.no_grad():
            base = tuned(ids).logits
        with trainable_copy(tuned) as (parameters, adapters):
            assert adapters
            with torch.no_grad():
                assert torch.equal(tuned(ids).logits, base)
            list(train_steps(tuned, parameters, adapters, Examples(POOL), range(10), 3e-3))
            with torch.no_grad():
                assert not torch.equal(tuned(ids).logits, base)
        with torch.no_grad():
            assert torch.equal(tuned(ids).logits, base)
    with torch.no_grad():
        assert torch.equal(tuned(ids).logits, now)
    assert all(torch.equal(part, before[name]) for name, part in tuned.named_parameters())
    assert [part.requires_grad for part in tuned.parameters()] == wanted


def test_a_disposition_is_recovered_without_another_model(tuned: Any) -> None:
    found = recover(tuned, REFUSING, POOL, contrast=HARMLESS, shot_counts=(10,), draws=1)
    assert found.evidence.score_before == 1.0 and found.evidence.score_now == 0.5
    assert found.verdict is Verdict.ALIGNMENT, found.reason


def test_a_dora_adapter_that_is_switched_off_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"DoRA .* as reference="):
        recover(without_refusals("all-linear", use_dora=True), REFUSING, POOL, contrast=HARMLESS)
