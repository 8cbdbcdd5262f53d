"""Probes of other lengths do not change a margin: padding is on the side that the model wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from peft import (
    CPTConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch import Tensor, nn

from riprap import Behavior, evaluation
from tiny import PlainLM, make_gpt2, make_llama

BASE = {
    "vocab_size": 47,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
torch.manual_seed(7)
ROWS = [torch.randint(3, 47, (n,)).tolist() for n in (3, 9, 5, 12, 7)]
SHARED = [[*range(5, 15), *row] for row in ROWS]
TARGETS = [5, 6, 7, 8, 9]


def build(family: str, kind: str = "ForCausalLM", **options: Any) -> nn.Module:
    """Make a small model with logits that differ by more than noise."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**options)
    model = getattr(transformers, f"{family}{kind}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(4)
    return model


class Encoder(nn.Module):
    """Every position sees all tokens; there is no mask, and padding would be seen on both sides."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(47, 8)
        self.head = nn.Linear(8, 47)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids) + self.embed(ids).sum(1, keepdim=True))


def tuned(config: Any, base: Any = None) -> nn.Module:
    torch.manual_seed(1)
    return get_peft_model(base or make_llama(), config).eval()


SOFT: dict[str, Any] = {"num_virtual_tokens": 4, "task_type": "CAUSAL_LM"}
CPT: dict[str, Any] = {"cpt_token_ids": [4, 5, 6], "cpt_mask": [1, 1, 1]}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: make_llama().eval(),
    "gpt2": lambda: make_gpt2().eval(),
    "no mask": lambda: PlainLM().eval(),
    "no mask, not causal": lambda: Encoder().eval(),
    "rwkv": lambda: build("Rwkv", **BASE | {"attention_hidden_size": 32}),
    "mamba": lambda: build("Mamba", **BASE | {"state_size": 8}),
    "prompt tuning": lambda: tuned(PromptTuningConfig(**SOFT)),
    "prompt tuning, learned positions": lambda: tuned(PromptTuningConfig(**SOFT), make_gpt2()),
    "p-tuning": lambda: tuned(PromptEncoderConfig(**SOFT, encoder_hidden_size=16)),
    "prefix tuning": lambda: tuned(PrefixTuningConfig(**SOFT)),
    "cpt": lambda: tuned(CPTConfig(**CPT, cpt_tokens_type_mask=[1, 2, 3], task_type="CAUSAL_LM")),
    "modernbert": lambda: build(
        "ModernBert", "ForSequenceClassification", **BASE, num_labels=10, local_attention=4
    ),
    "deberta": lambda: build(
        "DebertaV2", "ForSequenceClassification", **BASE, num_labels=10, relative_attention=True,
        pos_att_type=["p2c", "c2p"], type_vocab_size=0,
    ),
    "bert": lambda: build("Bert", "ForSequenceClassification", **BASE, num_labels=10),
    "bert, words": lambda: build("Bert", "ForMaskedLM", **BASE),
}  # fmt: skip


def margin_alone(model: nn.Module, row: list[int], target: int) -> float:
    with torch.no_grad():
        output = model(torch.tensor([row]))
    logits = getattr(output, "logits", output)[0]
    logits = logits[-1] if logits.dim() == 2 else logits
    others = torch.cat([logits[:target], logits[target + 1 :]])
    return float(logits[target] - others.max())


@pytest.mark.parametrize("rows", [ROWS, SHARED], ids=["ragged", "with a common beginning"])
@pytest.mark.parametrize("name", MODELS)
def test_a_margin_is_that_of_its_probe_alone(name: str, rows: list[list[int]]) -> None:
    model = MODELS[name]()
    behavior = Behavior.next_token("b", rows, TARGETS)
    expected = [margin_alone(model, row, t) for row, t in zip(rows, TARGETS, strict=True)]
    for _ in range(2):
        margins = evaluation.evaluate(behavior, model).margins
        assert margins == pytest.approx(expected, abs=1e-3, rel=1e-3)


@pytest.mark.parametrize("name", ["llama", "no mask", "rwkv", "modernbert", "prompt tuning"])
def test_features_and_gradients_are_those_of_the_last_tokens(name: str) -> None:
    model = MODELS[name]()
    behavior = Behavior.next_token("b", ROWS, TARGETS)
    parameters = [p for p in model.parameters() if p.requires_grad]
    layer = str(evaluation.find_layer(model))
    together = evaluation.evaluate(behavior, model, parameters, [layer])
    singles = [
        evaluation.evaluate(behavior.subset([i]), model, parameters, [layer]) for i in range(5)
    ]
    rows = torch.cat([single.activations[layer] for single in singles])
    torch.testing.assert_close(together.activations[layer], rows, atol=1e-4, rtol=1e-3)
    logits = torch.cat([s.logits for s in singles if s.logits is not None])
    torch.testing.assert_close(together.logits, logits, atol=1e-3, rtol=1e-3)
    assert together.gradient is not None
    for index, part in enumerate(together.gradient):
        mean = torch.stack([s.gradient[index] for s in singles if s.gradient is not None]).mean(0)
        scale = float(mean.abs().max())
        torch.testing.assert_close(part, mean, atol=1e-3 * scale + 1e-6, rtol=1e-2)


@pytest.mark.parametrize("name", ["rwkv", "no mask", "no mask, not causal", "prompt tuning"])
def test_options_of_different_lengths_are_scored_as_alone(name: str) -> None:
    from riprap.behaviors import Choice, Continuations, score_continuations

    model = MODELS[name]()
    options = [[[5, 6, 7], [8]], [[9], [10, 11]]]
    correct = torch.tensor([[True, False], [False, True]])
    probes = Continuations.build([[3, 4, 5, 6], [7, 8]], options, correct)
    behavior = Behavior("choice", probes, Choice())
    with torch.no_grad():
        together = score_continuations(model, probes)[0]
        for index in range(2):
            alone = score_continuations(model, probes.select([index]))[0]
            torch.testing.assert_close(together[index : index + 1], alone, atol=2e-3, rtol=1e-3)
    assert evaluation.evaluate(behavior, model).margins.shape == (2,)


def test_the_side_is_not_kept_while_logits_show_nothing() -> None:
    """A new classification head of zeros agrees with any padding."""
    model: Any = MODELS["modernbert"]()
    weight = model.classifier.weight.detach().clone()
    behavior = Behavior.next_token("b", ROWS, TARGETS)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.zero_()
    evaluation.evaluate(behavior, model)
    with torch.no_grad():
        model.classifier.weight.copy_(weight)
    expected = [margin_alone(model, row, t) for row, t in zip(ROWS, TARGETS, strict=True)]
    assert evaluation.evaluate(behavior, model).margins == pytest.approx(expected, abs=1e-3)


def test_a_model_without_parameters_reads_probes_of_different_lengths() -> None:
    class Fixed(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return nn.functional.one_hot(ids + 1, 47).float()

    behavior = Behavior.next_token("b", [[1, 2], [4]], [3, 6])
    assert evaluation.evaluate(behavior, Fixed().eval()).margins.tolist() == [1.0, -1.0]


HYBRID: dict[str, dict[str, Any]] = {
    "Jamba": {"mamba_d_state": 8, "attn_layer_period": 2, "attn_layer_offset": 1,
              "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 2,
              "use_mamba_kernels": False, "num_hidden_layers": 4},
    "Bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_expand": 2,
              "mamba_n_groups": 1, "mamba_chunk_size": 4, "attn_layer_indices": [1]},
    "Lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "Qwen3Next": {"head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
                  "linear_key_head_dim": 8, "linear_value_head_dim": 8,
                  "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
                  "num_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 4},
    "Qwen3_5": {"head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
                "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_hidden_layers": 4},
    "Zamba2": {"mamba_d_state": 8, "n_mamba_heads": 8, "mamba_headdim": 8, "mamba_expand": 2,
               "mamba_ngroups": 1, "chunk_size": 4, "num_mem_blocks": 1,
               "layers_block_type": ["mamba", "hybrid"], "use_mem_rope": True},
    "NemotronH": {"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1,
                  "chunk_size": 4, "head_dim": 8, "hybrid_override_pattern": "M*"},
    "FalconH1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8,
                 "mamba_n_groups": 1, "mamba_chunk_size": 4},
    "RecurrentGemma": {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8,
                       "head_dim": 8, "num_key_value_heads": 1},
}  # fmt: skip


@pytest.mark.parametrize("family", HYBRID)
def test_models_with_hybrid_caches_compute_whole_rows(family: str) -> None:
    options = BASE | {"num_key_value_heads": 2} | HYBRID[family]
    if not hasattr(transformers, f"{family}ForCausalLM"):
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    if family == "Qwen3_5":
        config = transformers.Qwen3_5TextConfig(**options)
        torch.manual_seed(0)
        model: Any = transformers.Qwen3_5ForCausalLM(config).eval()
    else:
        model = build(family, **options)
    for rows in (ROWS, SHARED):
        behavior = Behavior.next_token("b", rows, TARGETS)
        expected = [margin_alone(model, row, t) for row, t in zip(rows, TARGETS, strict=True)]
        result = evaluation.evaluate(behavior, model, list(model.parameters()))
        assert result.margins == pytest.approx(expected, abs=2e-3, rel=2e-3)
        assert result.gradient is not None
    probes = [[5, 6, 7, 8], [9, 10, 11]]
    from riprap.behaviors import ResponsePrefix, TokenBatch

    prefixes = ResponsePrefix([(3, 4), (3, 5, 6)], avoid=False)
    behavior = Behavior("starts", TokenBatch.pad(probes), prefixes)
    together = evaluation.evaluate(behavior, model, list(model.parameters())).margins
    for index in range(2):
        alone = evaluation.evaluate(behavior.subset([index]), model).margins[0]
        assert alone == pytest.approx(together[index], abs=2e-3, rel=2e-3)
