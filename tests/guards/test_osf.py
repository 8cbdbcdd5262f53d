"""PEFT's OSF (2504.07097) beside the guards: watched, unchanged by it, and guarded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from guards.cases import monitor_of
from riprap import Behavior, guards

peft = pytest.importorskip("peft")
if not hasattr(peft, "OSFConfig"):
    pytest.skip("this version of PEFT has no OSF", allow_module_level=True)


def adapted() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=20, num_attention_heads=2, **sizes))
    config = peft.OSFConfig(target_modules=["q_proj", "down_proj"], effective_rank=8)
    model: nn.Module = peft.get_peft_model(base, config)
    return model


def train(
    model: nn.Module, guard: guards.Guard | None = None, watched: bool = True
) -> list[Tensor]:
    """Train as a Trainer does: zero_grad, backward, clip, step."""
    ids = torch.randint(0, 20, (8, 6), generator=torch.Generator().manual_seed(1))
    behavior = Behavior.next_token("old", ids, model(ids).logits[:, -1].argmax(-1))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    monitor = monitor_of([behavior], probe_every=2)
    if watched:
        monitor.begin(model, optimizer, guard)
    for seed in range(6):
        batch = torch.randint(0, 20, (4, 6), generator=torch.Generator().manual_seed(10 + seed))
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    if watched:
        monitor.end()
        history = monitor.history()
        assert "ERROR" not in set(history.state)
        assert history.step.max() == 6
        if guard is not None:
            assert any(action.applied for action in monitor.actions)
    return [p.detach().clone() for p in trained]


def test_watching_changes_nothing() -> None:
    plain, watched = train(adapted(), watched=False), train(adapted())
    assert all(map(torch.equal, plain, watched))


@pytest.mark.parametrize("make", [guards.KL, guards.AGEM, guards.LwF, guards.SafeAnchor])
def test_guards_work_on_it(make) -> None:  # type: ignore[no-untyped-def]
    plain, guarded = train(adapted()), train(adapted(), make())
    assert not all(map(torch.equal, plain, guarded))
