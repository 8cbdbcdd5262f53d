"""Model folders: weights from safetensors alone, and no code that came with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from riprap.evidence import ConfigError
from riprap.launch.build import load_model
from tiny import make_llama, make_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_llama().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_of_safetensors_loads(folder: Path) -> None:
    model, tokenizer = load_model(str(folder))
    assert tokenizer.vocab_size == model.config.vocab_size


class Marks:
    """What a hostile pickle does when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.marker,))


def test_a_pickle_of_weights_is_refused_unread(folder: Path) -> None:
    marker = folder / "read"
    weights = folder / "model.safetensors"
    torch.save({"weights": Marks(marker)}, folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_model(str(folder))
    assert not marker.exists()


def test_code_beside_the_weights_is_not_run(folder: Path) -> None:
    marker = folder / "ran"
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
    (folder / "evil.py").write_text(code + "class Evil: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "evil"
    config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_model(str(folder))
    assert not marker.exists()
