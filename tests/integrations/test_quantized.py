"""QLoRA on a CPU: a monitor neither ends training nor loses its gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from invariants.test_no_trace import same, state
from riprap import Behavior, Monitor, evaluation, guards
from riprap.errors import ConfigError

bnb = pytest.importorskip("bitsandbytes")
IDS = torch.randint(3, 47, (32, 9), generator=torch.Generator().manual_seed(2))
pytestmark = pytest.mark.filterwarnings("ignore:behavior .* before training")
KINDS = ("nf4", "nf4 double", "int8")


def build(kind: str, folder: Any) -> Any:
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
        made = LlamaConfig(vocab_size=48, num_hidden_layers=2, pad_token_id=0, **sizes)
        LlamaForCausalLM(made).save_pretrained(folder)
    config = BitsAndBytesConfig(
        load_in_8bit=kind == "int8",
        load_in_4bit=kind != "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_use_double_quant=kind == "nf4 double",
    )
    loading = {"quantization_config": config, "device_map": {"": "cpu"}, "dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(folder, **loading)
    model = prepare_model_for_kbit_training(
        model,
        use_gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    torch.manual_seed(1)
    return get_peft_model(
        model, LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1, task_type="CAUSAL_LM")
    )


def words(model: Any) -> Behavior:
    """The model's own next tokens."""
    with torch.no_grad(), evaluation.preserve_training_state(model):
        targets = model(IDS[:8, :5]).logits[:, -1].argmax(-1)
    return Behavior.next_token("words", input_ids=IDS[:8, :5], targets=targets, floor=0.01)


def train(model: Any, optimizer: Any, steps: int = 6) -> list[int]:
    """Train; return at each step the number of trained tensors with a gradient that is not 0."""
    model.train()
    alive = []
    for i in range(steps):
        optimizer.zero_grad()
        rows = IDS[4 * i : 4 * i + 4]
        model(input_ids=rows, labels=rows).loss.backward()
        grads = [p.grad for p in model.parameters() if p.requires_grad]
        alive.append(sum(grad is not None and bool(grad.any()) for grad in grads))
        optimizer.step()
    return alive


def adapters(model: Any, rate: float = 1e-2) -> Any:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)


@pytest.mark.parametrize("kind", KINDS)
def test_qlora_training_is_the_same_and_alive(kind: str, tmp_path: Any) -> None:
    ends, alive = [], []
    for watched in (False, True):
        model = build(kind, tmp_path)
        optimizer = adapters(model)
        torch.manual_seed(5)
        if watched:
            monitor = Monitor([words(model)], probe_every=1)
            with monitor.watch(model, optimizer):
                alive.append(train(model, optimizer))
            history = monitor.history()
            assert "ERROR" not in set(history.state)
            assert (history[history.signal == "interference"].value.abs() > 0).all()
        else:
            alive.append(train(model, optimizer))
        ends.append(state(model, optimizer))
    n_trained = sum(p.requires_grad for p in model.parameters())
    assert alive[0] == alive[1]
    assert alive[1][1:] == [n_trained] * 5  # at the first step lora_A has no gradient: B is 0
    assert same(*ends)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_interference_predicts_the_change_of_a_4_bit_model(kind: str, tmp_path: Any) -> None:
    model = build(kind, tmp_path)
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.02 * torch.randn_like(parameter))
    monitor = Monitor([words(model)], probe_every=1)
    optimizer = torch.optim.SGD(trained, lr=1e-3)
    with monitor.watch(model, optimizer):
        train(model, optimizer)
    history = monitor.history()
    predicted = history[history.signal == "interference"].value.to_numpy()
    margins = np.array([m.mean() for m in monitor.behavior_histories["words"].margins])
    np.testing.assert_allclose(predicted, np.diff(margins), rtol=0.1, atol=1e-6)


@pytest.mark.parametrize(
    "guard",
    [guards.AGEM, lambda: guards.L2SP(0.01), lambda: guards.Rollback(every=2, keep_learning=False)],
)
def test_guards_leave_a_4_bit_model_alive(guard: Any, tmp_path: Any) -> None:
    model = build("nf4", tmp_path)
    optimizer = adapters(model)
    with Monitor([words(model)], probe_every=1).watch(model, optimizer, guard=guard()):
        assert min(train(model, optimizer)[1:]) == sum(p.requires_grad for p in model.parameters())


def test_generated_answers_leave_a_4_bit_model_alive(tmp_path: Any) -> None:
    class Tokenizer:
        pad_token_id, eos_token_id = 0, 2

    model = build("nf4", tmp_path)
    evaluation.generate(model, Tokenizer(), [[3, 4, 5]], 4)
    evaluation.set_evaluation_mode(model)
    kinds = {type(m).__name__ for m in model.modules() if m.training}
    assert kinds == {"Linear4bit"}
    optimizer = adapters(model)
    assert train(model, optimizer, 3)[-1] == sum(p.requires_grad for p in model.parameters())


@pytest.mark.skipif(not bnb.functional.has_avx512bf16(), reason="this CPU packs no weights")
def test_a_model_that_cannot_train_any_more_is_refused(tmp_path: Any) -> None:
    model = build("nf4", tmp_path).eval()
    with torch.no_grad():
        model(IDS[:2])
    with pytest.raises(ConfigError, match="has packed the 4-bit weight"):
        Monitor([words(model)]).begin(model, adapters(model))


def test_a_layer_without_a_compute_type_takes_that_of_training() -> None:
    """The first pass would otherwise choose float32 for good; training runs in bf16."""
    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4").to("cpu")
    model = nn.Sequential(nn.Linear(8, 64), layer, nn.Linear(64, 4))
    inputs = torch.randn(6, 8)
    evaluation.evaluate(Behavior("b", inputs, lambda m, x: m(x)[:, 0]), model)
    assert not layer.compute_type_is_set
    assert layer.compute_dtype is None


@pytest.mark.skipif(not bnb.functional.has_avx512bf16(), reason="this CPU packs no weights")
def test_the_upstream_report_still_holds() -> None:
    """When this fails, bitsandbytes was mended: see docs/upstream/bitsandbytes-cpu-eval.md."""
    import subprocess
    import sys
    from pathlib import Path

    script = Path(__file__).parents[2] / "docs" / "upstream" / "bitsandbytes_cpu_eval.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
