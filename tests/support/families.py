"""Tiny random models of the families that people fine-tune, built from their configurations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

VOCABULARY = 64
_DENSE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "decoder_sparse_step": 1,
}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
_DELTA_NET = {
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}


def _causal(name: str, **options: Any) -> nn.Module:
    config = getattr(transformers, f"{name}Config")(**_DENSE | options)
    return getattr(transformers, f"{name}ForCausalLM")(config)


def _text(name: str, **options: Any) -> nn.Module:
    """The language model of a family whose full model also sees."""
    config = getattr(transformers, f"{name}TextConfig")(**_DENSE | options)
    return getattr(transformers, f"{name}ForCausalLM")(config)


def _vision_language() -> nn.Module:
    text = {key: value for key, value in _DENSE.items() if key != "head_dim"}
    config = transformers.Qwen2VLConfig(
        text_config=text
        | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        vision_config={"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 32},
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=7,
        vision_end_token_id=8,
    )
    return transformers.Qwen2VLForConditionalGeneration(config)


def _encoder(name: str, **options: Any) -> nn.Module:
    sizes = {key: value for key, value in _DENSE.items() if key not in ("head_dim",)}
    config = getattr(transformers, f"{name}Config")(**sizes | {"num_labels": 5} | options)
    return getattr(transformers, f"{name}ForSequenceClassification")(config)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "Llama": lambda: _causal("Llama"),
    "Gemma 3": lambda: _text("Gemma3"),
    "Qwen3": lambda: _causal("Qwen3"),
    "Qwen3-MoE": lambda: _causal("Qwen3Moe", **_EXPERTS),
    "Mixtral": lambda: _causal("Mixtral", **_EXPERTS),
    "OLMoE": lambda: _causal("Olmoe", **_EXPERTS),
    "gpt-oss": lambda: _causal("GptOss", **_EXPERTS),
    "Mamba": lambda: _causal("Mamba", state_size=8),
    "Falcon-H1": lambda: _causal("FalconH1", mamba_d_ssm=64, **_MAMBA),
    "Qwen3-Next": lambda: _causal("Qwen3Next", **_EXPERTS, **_DELTA_NET),
    "Qwen3.5": lambda: _text("Qwen3_5", **_DELTA_NET),
    "LFM2": lambda: _causal("Lfm2", layer_types=["conv", "full_attention"], block_multiple_of=8),
    "Jamba": lambda: _causal(
        "Jamba",
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=4,
        use_mamba_kernels=False,
        mamba_d_state=8,
        mamba_dt_rank=4,
    ),
    "Bamba": lambda: _causal("Bamba", attn_layer_indices=[1], **_MAMBA),
    "Zamba2": lambda: _causal(
        "Zamba2",
        num_hidden_layers=3,
        hybrid_layer_ids=[1],
        layers_block_type=["mamba", "hybrid", "mamba"],
        mamba_d_state=8,
        mamba_headdim=16,
        n_mamba_heads=4,
        use_mem_rope=False,
        use_mamba_kernels=False,
        attention_head_dim=16,
        attention_hidden_size=64,
    ),
    "Nemotron-H": lambda: _causal(
        "NemotronH",
        layers_block_type=["mamba", "attention"],
        mamba_num_heads=4,
        mamba_head_dim=16,
        ssm_state_size=8,
        n_groups=1,
        use_mamba_kernels=False,
    ),
    "Qwen2-VL": _vision_language,
}
ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "BERT": lambda: _encoder("Bert"),
    "ModernBERT": lambda: _encoder("ModernBert", global_attn_every_n_layers=2),
    "DeBERTa-v2": lambda: _encoder(
        "DebertaV2", relative_attention=True, pos_att_type="p2c|c2p", position_buckets=16
    ),
}


def build(name: str, seed: int = 0) -> nn.Module:
    """A model of a family in training mode; weights scaled so that margins exceed noise."""
    torch.manual_seed(seed)
    model = {**FAMILIES, **ENCODERS}[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(3)
    return model.train()
