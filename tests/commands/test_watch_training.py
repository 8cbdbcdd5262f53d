"""`riprap watch` as a trainer: keys of other libraries, loss, saved model, guard, selector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from launching import config, write_config
from riprap import guards
from riprap.cli._app import app
from riprap.commands.watch import WatchConfig, prepare, run_watch
from riprap.commands.watch._run import planned_steps, sft_config
from riprap.errors import ConfigError
from riprap.integrations.config import guard_names
from riprap.record import Reader
from tiny import VOCABULARY, make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")
TURNS = [
    {"role": "user", "content": "what is one plus two"},
    {"role": "assistant", "content": "sure three"},
    {"role": "user", "content": "red"},
    {"role": "assistant", "content": "blue"},
]


def conversations(folder: Path, name: str = "messages.jsonl", n: int = 12) -> dict[str, str]:
    file = folder / name
    file.write_text("".join(json.dumps({"messages": TURNS}) + "\n" for _ in range(n)))
    return {"path": str(file)}


def refusal_of(document: dict[str, Any], tmp_path: Path) -> str:
    with pytest.raises(ConfigError) as raised:
        WatchConfig.load(write_config(tmp_path, **document))
    assert "\n" not in str(raised.value)
    return str(raised.value).partition("watch.yaml: ")[2]


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({"training": {"weight_decays": 0.1}}, "did you mean 'weight_decay'?"),
        ({"training": {"epochs": 2}}, "key 'training.epochs' is now 'num_train_epochs'"),
        ({"training": {"warmup_steps": "many"}}, "key 'training.warmup_steps': Input should be"),
        ({"training": {"output_dir": "x"}}, "`run_dir` is the folder of the run"),
        ({"training": {"hub_token": "x"}}, "would stand in the record"),
        ({"training": {"assistant_only_loss": False}}, "the loss is on the turns of the assistant"),
        ({"training": {"num_train_epochs": 1}}, "both set the length: remove one"),
        ({"training": {"eval_strategy": "steps"}}, "needs `eval_data`, the rows to evaluate"),
        ({"lora": {"r": 4}}, "key 'lora.r' is now 'rank'"),
        ({"lora": {"use_doras": True}}, "did you mean 'use_dora'?"),
        ({"quantization": {"load_in_4bits": True}}, "did you mean 'load_in_4bit'?"),
        ({"quantization": {"bnb_4bit_quant_type": "nf4"}}, "set one of load_in_4bit and load_in"),
        ({"quantization": {"load_in_4bit": True}, "lora": None}, "cannot be trained: keep `lora`"),
        ({"gard": {"name": "AGEM"}}, "did you mean 'guard'?"),
    ],
)
def test_a_wrong_key_is_one_sentence(
    document: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    assert sentence in refusal_of(document, tmp_path)


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({"behaviors": [{"probe_set": "refusals"}]}, "there is no probe set 'refusals'"),
        ({"behaviors": [{"probe_set": "refusal", "n_probes": 9999}]}, "is not among 1"),
        ({"behaviors": [{"probe_set": "refusal"}] * 2}, "two behaviors are named 'refusal'"),
        ({"guard": {"name": "AGME"}}, "did you mean 'AGEM'?"),
        ({"guard": {"name": "AGEM", "refreshs": 1}}, "did you mean 'refresh'?"),
        ({"guard": {"name": "AGEM", "behaviors": ["never sory"]}}, "did you mean 'never sorry'?"),
        ({"guard": {"name": "Lisa"}}, "there is no guard 'Lisa' for a configuration"),
        ({"selector": {"strategy": "moderat"}}, "did you mean 'moderate'?"),
        ({"selector": {"strategy": "taylor"}}, "needs directions"),
        ({"training": {"lr_scheduler_type": "cosin"}}, "training: cosin is not a valid"),
    ],
)
def test_a_wrong_name_is_refused_before_the_model_is_loaded(
    document: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("riprap.commands.watch._run.load_model", lambda *_: pytest.fail("loaded"))
    made = config(tmp_path, **document)
    with pytest.raises(Exception, match="") as raised:
        prepare(made)
    assert sentence in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_keys_of_trl_reach_its_arguments(tmp_path: Path) -> None:
    """YAML reads `1e-2` as a text and `no` as false."""
    keys = {"weight_decay": "1e-2", "warmup_steps": 3, "optim": "sgd", "packing": True}
    keys |= {"max_grad_norm": 0.5, "logging_steps": 4, "report_to": "tensorboard"}
    keys |= {"lr_scheduler_type": "cosine", "bf16": True, "gradient_checkpointing": True}
    args = sft_config(config(tmp_path, training=keys | {"eval_strategy": False}))
    assert (args.weight_decay, args.warmup_steps, args.optim, args.packing) == (
        0.01,
        3,
        "sgd",
        True,
    )
    assert (args.max_grad_norm, args.logging_steps, args.report_to) == (0.5, 4, ["tensorboard"])
    assert (args.lr_scheduler_type, args.bf16) == ("cosine", True)
    assert args.gradient_checkpointing and args.eval_strategy == "no"
    plain = sft_config(config(tmp_path))
    assert (plain.bf16, plain.gradient_checkpointing, plain.report_to) == (False, False, [])


def test_the_length_is_epochs_or_steps(tmp_path: Path) -> None:
    """12 rows, 2 in a batch, 2 batches a step: 3 steps an epoch."""
    keys = {"max_steps": None, "num_train_epochs": 1.5}
    run = prepare(config(tmp_path, data=conversations(tmp_path), training=keys))
    assert planned_steps(run.make_trainer()) == 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"guard": {"name": "AGEM", "behaviors": []}},
        {"selector": {"strategy": "moderate", "ratio": 0.0}},
    ],
)
def test_a_corrected_run_takes_the_folder_of_a_refused_one(
    wrong: dict[str, Any], tmp_path: Path
) -> None:
    """In one process: the refused run holds no lock on the record."""
    keys = {"max_steps": 1, "gradient_accumulation_steps": 1}
    with pytest.raises(ConfigError) as refused:  # its traceback is kept
        run_watch(config(tmp_path, training=keys, **wrong), quiet=True)
    assert "ratio" in str(refused.value) or "protects nothing" in str(refused.value)
    run_watch(config(tmp_path, training=keys), quiet=True)
    with Reader(tmp_path / "run") as reader:
        assert max(own.step for own in reader.readings()) == 1


@pytest.mark.slow
def test_a_run_of_conversations(tmp_path: Path) -> None:
    """The loss of both sets is in the record, and the saved adapter is the trained one."""
    keys = {"max_steps": None, "num_train_epochs": 2, "logging_steps": 1, "eval_strategy": "epoch"}
    file = write_config(
        tmp_path,
        data=conversations(tmp_path),
        eval_data=conversations(tmp_path, "eval.jsonl", 3),
        training=keys,
        guard={"name": "AGEM", "behaviors": ["never sorry"]},
        selector={"strategy": "moderate", "ratio": 0.5},
    )
    result = CliRunner().invoke(app, ["watch", str(file)])
    assert result.exit_code in (0, 2), result.output
    assert "12 rows, read as messages ('messages')" in result.output
    assert "<assistant>[[sure three <end>]]" in result.output
    assert f"trained model: {tmp_path}/run/model" in result.output.replace("\n", "")
    with Reader(tmp_path / "run") as reader:
        events = reader.events()
    logged = [event["facts"] for event in events if event["kind"] == "training"]
    losses = [facts["loss"] for facts in logged if "loss" in facts]
    evaluated = [facts["eval_loss"] for facts in logged if "eval_loss" in facts]
    assert (len(losses), len(evaluated)) == (6, 2)
    assert losses[-1] < losses[0] and evaluated[1] < evaluated[0]
    assert sum(event["kind"] == "selection" for event in events) == 6
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="float32")
    trained = PeftModel.from_pretrained(base, str(tmp_path / "run" / "model"))
    loaded = [p for n, p in trained.named_parameters() if "lora_B" in n]
    assert loaded and all(p.abs().sum() > 0 for p in loaded)


@pytest.mark.slow
def test_a_fully_trained_model_is_saved(tmp_path: Path) -> None:
    made = config(tmp_path, data=conversations(tmp_path), lora=None, training={"max_steps": 2})
    folder = Path(run_watch(made, quiet=True)["model"])
    before = load_file(tmp_path / "model" / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before if "proj" in name)
    assert (folder / "tokenizer.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("texts", [True, False])
def test_the_record_has_texts_unless_the_file_says_otherwise(tmp_path: Path, texts: bool) -> None:
    changes = {} if texts else {"texts": False}
    data = conversations(tmp_path)
    run_watch(config(tmp_path, data=data, training={"max_steps": 2}, **changes), quiet=True)
    with Reader(tmp_path / "run") as reader:
        (behavior,), answers = reader.behaviors(), reader.answers()
    assert ("texts" in behavior) == texts
    assert [sorted(own) for own in answers.values()] == ([[0, 2]] if texts else [])


@pytest.mark.slow
def test_the_live_table_shows_the_loss_and_leaves_the_summary_to_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"max_steps": 2, "logging_steps": 1}
    made = config(tmp_path, data=conversations(tmp_path), training=keys)
    summary = run_watch(made)["summary"]
    out = capsys.readouterr().out
    assert "step 2/2, loss " in out and "never sorry score" in out
    assert "2 steps watched" in summary and "steps watched" not in out


def test_every_guard_of_a_file_can_be_built(tmp_path: Path) -> None:
    assert {"AGEM", "AutoGuard", "KL", "Rollback", "EMA"} <= set(guard_names())
    assert not {"Lisa", "Chain", "OnAlert", "ConstrainedTokens"} & set(guard_names())
    made = config(tmp_path, data=conversations(tmp_path), guard={"name": "AutoGuard"})
    run = prepare(made)
    assert isinstance(run.guard, guards.AutoGuard)
    (measured,) = run.monitor.behaviors
    assert len(measured.probes) == 2  # of four; the other two are replayed
    run.monitor.record.close()


def test_packed_rows_are_not_cut(tmp_path: Path) -> None:
    keys = {"max_length": 30, "packing": True}
    run = prepare(config(tmp_path, data=conversations(tmp_path), training=keys))
    packed = run.make_trainer().train_dataset
    learned = sum(label != -100 for row in packed for label in row["labels"])
    assert learned == 12 * (3 + 2)  # "sure three <end>", "blue <end>"
    run.monitor.record.close()


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_weights_are_trained_under_an_adapter(bits: int, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    file = write_config(
        tmp_path,
        data=conversations(tmp_path),
        quantization={f"load_in_{bits}bit": True},
        training={"max_steps": 3},
    )
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2}
    shape = LlamaConfig(vocab_size=len(VOCABULARY), num_hidden_layers=2, pad_token_id=0, **sizes)
    LlamaForCausalLM(shape).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    run_watch(WatchConfig.load(file), quiet=True)
    weights = load_file(tmp_path / "run" / "model" / "adapter_model.safetensors")
    moved = [name for name, value in weights.items() if "lora_B" in name and value.abs().sum() > 0]
    assert len(moved) == 14


def test_an_evaluation_of_quantized_weights_on_a_cpu_is_refused(tmp_path: Path) -> None:
    if torch.accelerator.is_available():
        pytest.skip("needs a machine without an accelerator")
    made = config(
        tmp_path,
        data=conversations(tmp_path),
        eval_data=conversations(tmp_path, "eval.jsonl", 3),
        quantization={"load_in_4bit": True},
    )
    with pytest.raises(ConfigError, match="remove `eval_data`"):
        prepare(made)


@pytest.mark.slow
def test_a_run_says_its_summary_and_writes_its_report_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def write(record: Any, page: Path) -> Path:
        written.append(Path(page))
        return Path(page)

    monkeypatch.setattr("riprap.report.write_report", write)
    file = write_config(
        tmp_path, run_dir=str(tmp_path / "x-{time}"), training={"max_steps": 2, "save_steps": 1}
    )
    result = CliRunner().invoke(app, ["watch", str(file)])
    assert result.exit_code in (0, 2), result.output
    assert result.output.count("steps watched") == 1
    assert not [text for text in caplog.messages if "steps watched" in text]
    (folder,) = tmp_path.glob("x-*")
    assert written == [folder / "report.html"]
    assert {"record.sqlite", "model", "trainer"} <= {path.name for path in folder.iterdir()}
