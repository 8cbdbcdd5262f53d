"""`riprap diagnose` reads the files that transformers reads, and adapters as PEFT reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from diagnosing import make_model, make_tokenizer
from riprap.commands.diagnose._loading import load_pair
from riprap.diagnosis import SafetensorsFolder
from riprap.errors import ConfigError


def model_of(seed: int) -> Any:
    model = make_model(make_tokenizer())
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def save(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save(model_of(1), tmp_path / "mo[d]el*")


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    return save(model_of(2), tmp_path / "tuned")


def others(folder: Path, name: str) -> None:
    """Other weights, in a file beside the one that is meant."""
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    save_file({n: torch.zeros_like(p) for n, p in model_of(1).named_parameters()}, file)


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize(
    "beside",
    [
        "a.safetensors",
        "model_ema.safetensors",
        "zz.safetensors",
        "model-00001-of-00099.safetensors",
        "original/model.safetensors",
        "optimizer.safetensors",
        "riprap.safetensors",
    ],
)
def test_files_beside_the_weights_are_not_read(
    base: Path, tuned: Path, beside: str, shards: bool
) -> None:
    if shards:
        (base / "model.safetensors").unlink()
        save(model_of(1), base, max_shard_size="20KB")
        assert len([*base.glob("model-*.safetensors")]) > 1
    others(base, beside)
    pair = load_pair(str(base), str(tuned))
    for name, parameter in model_of(1).named_parameters():
        assert torch.equal(pair.base[name], parameter)


def test_a_folder_that_lacks_its_weights_says_so(base: Path, tuned: Path, tmp_path: Path) -> None:
    shards = save(model_of(3), tmp_path / "shards", max_shard_size="20KB")
    shard = next(shards.glob("model-00002*"))
    shard.unlink()
    with pytest.raises(ConfigError, match=rf"lacks '{shard.name}'"):
        SafetensorsFolder(shards)
    (shards / "model.safetensors.index.json").write_text('{"metadata": {}}')
    with pytest.raises(ConfigError, match=r"index\.json cannot be read"):
        SafetensorsFolder(shards)
    (base / "model.safetensors").rename(base / "model_ema.safetensors")
    with pytest.raises(ConfigError, match=r"neither model\.safetensors nor .*model_ema"):
        SafetensorsFolder(base)
    torch.save({}, base / "pytorch_model.bin")
    torch.save({}, base / "training_args.bin")
    with pytest.raises(ConfigError, match=r"'pytorch_model\.bin', a pickle"):
        load_pair(str(tuned), str(base))


def adapter_of(folder: Path, base: Path, **options: Any) -> Tensor:
    """Train an adapter, save it, and return the logits of the model as PEFT reads it."""
    kind = options.pop("kind", LoraConfig)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    settings = {**(settings if kind is LoraConfig else {}), **options, "task_type": "CAUSAL_LM"}
    torch.manual_seed(0)
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(base), kind(**settings))
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=0.02)
    ids = torch.arange(5, 35).view(2, 15)
    for _ in range(4):
        wrapped(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    wrapped.save_pretrained(folder)
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    with torch.no_grad():
        return again(input_ids=ids).logits


READ = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "Gaussian": {"init_lora_weights": "Gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "random": {"init_lora_weights": False},
    "some layers": {"layers_to_transform": [1]},
}
REFUSED = {
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa'.* changes the base"),
    "pissa niter": ({"init_lora_weights": "pissa_niter_2"}, "'pissa_niter_2'"),
    "olora": ({"init_lora_weights": "olora"}, "'olora'"),
    "dora": ({"use_dora": True}, "use_dora"),
    "bias": ({"bias": "lora_only"}, "bias"),
    "saved module": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "ranks": ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
    "alphas": ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
    "embedding": ({"target_modules": ["q_proj", "embed_tokens"]}, "not a LoRA of a weight"),
    "tokens": ({"trainable_token_indices": [4, 5]}, "not a LoRA of a weight"),
    "layers twice": ({"layer_replication": [[0, 2], [0, 2]]}, "not a LoRA of a weight"),
    "ia3": (
        {
            "kind": peft.IA3Config,
            "target_modules": ["k_proj", "down_proj"],
            "feedforward_modules": ["down_proj"],
        },
        "type 'IA3', and only LoRA",
    ),
    "vera": ({"kind": peft.VeraConfig, "r": 4, "target_modules": ["q_proj"]}, "type 'VERA'"),
    "prompt": ({"kind": peft.PromptTuningConfig, "num_virtual_tokens": 3}, "type 'PROMPT_TUNING'"),
}


@pytest.mark.parametrize("name", READ)
def test_adapters_that_are_read_give_pefts_logits(name: str, base: Path, tmp_path: Path) -> None:
    expected = adapter_of(tmp_path / "adapter", base, **READ[name])
    pair = load_pair(str(base), str(tmp_path / "adapter"))
    with torch.no_grad():
        found = pair.model.cpu()(input_ids=torch.arange(5, 35).view(2, 15)).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_other_adapters_are_refused_in_a_sentence(name: str, base: Path, tmp_path: Path) -> None:
    options, says = REFUSED[name]
    adapter_of(tmp_path / "adapter", base, **options)
    with pytest.raises(ConfigError, match=says) as error:
        load_pair(str(base), str(tmp_path / "adapter"))
    assert "merge_and_unload" in str(error.value)


@pytest.mark.parametrize("init", ["corda", "loftq", "lora_ga", "not_there_yet"])
def test_inits_that_are_not_known_are_refused(init: str, base: Path, tmp_path: Path) -> None:
    """By what the configuration says: these need calibration data or another package."""
    adapter_of(tmp_path / "adapter", base)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": init}))
    with pytest.raises(ConfigError, match=f"init_lora_weights: '{init}'"):
        load_pair(str(base), str(tmp_path / "adapter"))


def test_an_adapter_without_its_file_or_rank_is_a_sentence(base: Path, tmp_path: Path) -> None:
    adapter_of(tmp_path / "adapter", base)
    file = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({key: v for key, v in settings.items() if key != "lora_alpha"}))
    with pytest.raises(ConfigError, match="no 'lora_alpha'"):
        load_pair(str(base), str(tmp_path / "adapter"))
    file.write_text(json.dumps(settings))
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ConfigError, match="contains no adapter_model"):
        load_pair(str(base), str(tmp_path / "adapter"))


def test_quantized_models_are_refused_by_name(base: Path, tuned: Path) -> None:
    file = base / "config.json"
    settings = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    for pair in ((base, tuned), (tuned, base)):
        with pytest.raises(ConfigError, match=r"quantized .bitsandbytes.*dequantize"):
            load_pair(*map(str, pair))
