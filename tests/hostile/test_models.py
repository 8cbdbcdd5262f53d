"""Model folders: weights are loaded from safetensors only, and no code beside them is run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from riprap.commands import load_model
from riprap.errors import ConfigError
from tiny import make_llama, make_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_llama().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_of_safetensors_loads(folder: Path) -> None:
    model, tokenizer = load_model(str(folder))
    assert tokenizer.vocab_size == model.config.vocab_size


def marking(marker: Path) -> str:
    return f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Evil: pass\n"


def changed(file: Path, **facts: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))


class Marks:
    """Hostile pickle that leaves a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.marker,))


def test_the_marks_would_show(tmp_path: Path) -> None:
    """Assumption of the tests below: loading and running each leave a file."""
    torch.save({"weights": Marks(tmp_path / "read")}, tmp_path / "weights.bin")
    torch.load(tmp_path / "weights.bin", weights_only=False)
    exec(marking(tmp_path / "ran"))
    assert {"read", "ran"} <= {file.name for file in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pytorch_model.bin", "'pytorch_model.bin', a pickle, .* save the weights as safetensors"),
        ("model.pt", "'model.pt', a pickle"),
        ("model.safetensors", "cannot be loaded: Error while deserializing header"),
    ],
)
def test_a_pickle_of_weights_is_refused_unread(folder: Path, name: str, text: str) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Marks(folder / "read")}, folder / name)
    with pytest.raises(ConfigError, match=text):
        load_model(str(folder))
    assert not (folder / "read").exists()


def test_a_pickled_adapter_is_refused_unread(folder: Path) -> None:
    adapter = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
    named = json.dumps(adapter | {"base_model_name_or_path": str(folder)})
    (folder / "adapter_config.json").write_text(named)
    torch.save({"weights": Marks(folder / "read")}, folder / "adapter_model.bin")
    with pytest.raises(ConfigError, match=r"adapter_model\.safetensors"):
        load_model(str(folder))
    assert not (folder / "read").exists()


@pytest.mark.parametrize("part", ["config", "model", "tokenizer"])
def test_code_beside_the_weights_is_not_run(folder: Path, part: str) -> None:
    (folder / "evil.py").write_text(marking(folder / "ran"))
    named = {"AutoConfig": "evil.Evil"} if part == "config" else {}
    named |= {"AutoModelForCausalLM": "evil.Evil"}
    if part == "tokenizer":
        named = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
        changed(folder / "tokenizer_config.json", auto_map=named, tokenizer_class="Evil")
    else:
        changed(folder / "config.json", auto_map=named, model_type="evil")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_model(str(folder))
    assert not (folder / "ran").exists()


def test_a_known_model_type_uses_the_class_of_transformers(folder: Path) -> None:
    (folder / "evil.py").write_text(marking(folder / "ran"))
    changed(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.Evil"})
    model, _ = load_model(str(folder))
    assert isinstance(model, LlamaForCausalLM)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "{", "{}", '{"model_type": "llama", "vocab_size": "x"}']
)
def test_a_broken_config_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ConfigError, match="cannot be loaded") as raised:
        load_model(str(folder))
    assert "\n" not in str(raised.value)


def test_weights_that_were_cut_off_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_model(str(folder))


def test_weights_that_do_not_fit_or_are_lacking_are_refused(folder: Path) -> None:
    """Transformers would replace them by random numbers."""
    file = folder / "model.safetensors"
    whole = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(whole | {name: torch.zeros(3, 3)}, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_model(str(folder))
    save_file({k: v for k, v in whole.items() if k != name}, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=f"lack 1 of its weights, such as '{name}'"):
        load_model(str(folder))


@pytest.mark.parametrize(
    "name", ["", " ", "a\x00b", "../../nowhere", "/etc", "x" * 5000, "~nobody-here/x"]
)
def test_a_name_without_a_model_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be loaded|no such folder") as raised:
        load_model(name)
    assert len(str(raised.value)) < 1000
