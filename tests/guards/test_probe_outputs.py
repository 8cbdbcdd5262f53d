"""Guards that read probes themselves, on a transformer, with every kind of behavior."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from guards.cases import monitor_of
from guards.step_log import near
from riprap import Behavior, guards
from riprap.evaluation import preserve_training_state
from riprap.guards.regularization._probe_outputs import last_positions, run_probes
from tiny import PROMPTS

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def watched(tokenizer: PreTrainedTokenizerFast) -> list[Behavior]:
    options = [["yes", "no i do"], ["one two", "red"], ["six", "to make"], ["cake", "do i"]]
    return [
        Behavior.response_prefix(
            "refusal", tokenizer, prompts=PROMPTS, prefixes=["sorry", "i cannot"]
        ),
        Behavior.multiple_choice("facts", tokenizer, PROMPTS, options, [0, 1, 0, 1]),
        Behavior.likelihood(
            "text", tokenizer, texts=["yes no", "red", "i am", "one two"], prompts=PROMPTS
        ),
    ]


GUARDS = {
    "kl": lambda: guards.KL(),
    "mas": lambda: guards.MAS(strength=1e-6),
    "feature_anchor": lambda: guards.FeatureAnchor(),
    "ewc": lambda: guards.EWC(),
    "ewc_of_margins": lambda: guards.EWC(of="margin"),
    "si": lambda: guards.SI(),
}


@pytest.mark.parametrize("make", GUARDS.values(), ids=GUARDS.keys())
def test_it_works_and_leaves_no_trace(make, llama, watched) -> None:  # type: ignore[no-untyped-def]
    optimizer = torch.optim.SGD(llama.parameters(), lr=0.01)
    ids = torch.randint(3, 40, (4, 7))
    monitor = monitor_of(watched)
    llama.train()
    with monitor.watch(llama, optimizer, guard=make()):
        for _ in range(3):
            optimizer.zero_grad()
            llama(input_ids=ids, labels=ids).loss.backward()
            kept = torch.get_rng_state()
            optimizer.step()
            assert torch.equal(kept, torch.get_rng_state())
    assert llama.training
    assert [action.applied for action in monitor.actions] == [True] * 3
    assert monitor.actions[2].before["penalty"] > 0
    assert not any(module._forward_hooks for module in llama.modules())


def test_a_common_beginning_read_once_gives_the_same_rows(
    llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long prompts are read by way of the cache, which is no answer of any probe."""
    long = [f"{'how to make the red cake with a car ' * 3}{prompt}" for prompt in PROMPTS]
    behavior = Behavior.response_prefix("refusal", tokenizer, prompts=long, prefixes=["sorry"])

    def rows() -> list[torch.Tensor]:
        with preserve_training_state(llama), torch.no_grad():
            found = run_probes("kl", behavior, llama, "model.layers.1")
        return [last_positions(found.logits), last_positions(found.layer_outputs)]

    once = rows()
    monkeypatch.setattr("riprap.behaviors._prefix_cache.MIN_SHARED_TOKENS", 10_000)
    whole = rows()
    assert len(once[0]) == len(whole[0]) == len(PROMPTS)
    assert near(once, whole, 1e-4)
