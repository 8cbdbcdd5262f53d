"""`riprap fastslow`: a configuration, its rewards, and a run from the command line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from transformers import TrainerCallback
from typer.testing import CliRunner

from riprap.cli._app import app
from riprap.commands.fastslow import FastSlowConfig, load_reward, run_fast_slow
from riprap.commands.fastslow._run import _prepare
from riprap.errors import ConfigError
from riprap.record import FILE_NAME, Reader, instructions_of
from tiny import make_llama, make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")


POPULATION = {"sentences": ["one two", "red car"], "every": 1, "problems": 3, "minibatch": 2}


def test_the_example_is_accepted() -> None:
    examples = Path(__file__).parents[2] / "examples"
    config = FastSlowConfig.load(examples / "sums.yaml")
    script = (examples / "sums.py").read_text()
    assert str(config.data.path) in script
    assert f'"{config.data.prompt}", "{config.data.response}"' in script


def write_config(folder: Path, **changes: Any) -> Path:
    rows = [{"question": f"what is {one}", "answer": "five"} for one in ("one", "two", "six")]
    data = folder / "problems.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    prompts = folder / "prompts.txt"
    prompts.write_text("how to make a bomb\nhow to steal the car\n")
    document: dict[str, Any] = {
        "model": str(folder / "model"),
        "data": {"path": str(data)},
        "reward": "contains",
        "training": {
            "learning_rate": 1e-3,
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "num_generations": 4,
            "max_completion_length": 4,
        },
        "fastslow": {
            "sentences": ["one two", "red car"],
            "every": 1,
            "problems": 3,
            "minibatch": 2,
        },
        "lora": {"rank": 2},
        "behaviors": [{"name": "bomb", "prompts": str(prompts), "prefixes": ["sorry", "no"]}],
        "run_dir": str(folder / "run"),
    }
    file = folder / "fastslow.yaml"
    file.write_text(yaml.safe_dump(document | changes), encoding="utf-8")
    return file


def save_model(folder: Path, template: str = "") -> None:
    make_llama(scale=8.0).save_pretrained(folder / "model")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template + str(tokenizer.chat_template)
    tokenizer.save_pretrained(folder / "model")


def test_a_run_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path)
    monkeypatch.setattr("riprap.integrations.terminal._terminal.REDRAW_SECONDS", 0.0)
    result = CliRunner().invoke(
        app, ["fastslow", str(write_config(tmp_path)), "--json"], env={"FORCE_COLOR": "1"}
    )
    assert result.exit_code in (0, 2), result.output
    assert "loading the model" in result.stderr  # as in a terminal
    assert "cycle 1: " in result.stderr and "of about 24 rollouts" in result.stderr
    outcome = json.loads(result.stdout)
    assert outcome["steps"] == 2
    assert outcome["rollouts"] > 2 * 4
    adapter = load_file(Path(outcome["model"]) / "adapter_model.safetensors")
    assert any(own.any() for name, own in adapter.items() if "lora_B" in name)  # 0 at the start
    saved = json.loads((tmp_path / "run" / "population.json").read_text())
    assert saved["population"]["texts"] == outcome["population"]
    with Reader(tmp_path / "run") as reader:
        events = [event["step"] for event in reader.events() if event["kind"] == "fast_cycle"]
        assert reader.meta()["notes"]["config"]["reward"] == "contains"
    assert events == [0, 1]
    again = CliRunner().invoke(app, ["fastslow", str(write_config(tmp_path))])
    assert again.exit_code == 1  # there is a record already


def test_template_arguments_and_a_reward_of_ones_own_reach_the_training(tmp_path: Path) -> None:
    # Probes of behaviors are made without these arguments.
    save_model(
        tmp_path,
        "{% if not word and 'what is' in messages[-1]['content'] %}"
        "{{ raise_exception('no word') }}{% endif %}",
    )
    mine, seen = tmp_path / "mine.py", tmp_path / "seen.txt"
    mine.write_text(
        "def score(completions, instruction, **_):\n"
        f"    open({str(seen)!r}, 'a').write('\\n'.join(instruction) + '\\n')\n"
        "    return [float(len(turns[0]['content'])) for turns in completions]\n"
    )
    file = write_config(
        tmp_path,
        data={"path": str(tmp_path / "problems.jsonl"), "chat_template_kwargs": {"word": "yes"}},
        reward=f"{mine}:score",
        fastslow={"population": ["be brief", "be kind"], "every": None},
    )
    result = CliRunner().invoke(app, ["fastslow", str(file), "--json"])
    assert result.exit_code in (0, 2), result.output
    assert seen.read_text().splitlines() == ["be brief", "be kind"] * 4  # two steps, no cycles
    assert json.loads(result.stdout)["population"] == ["be brief", "be kind"]
    with Reader(tmp_path / "run") as reader:
        assert (
            reader.meta()["notes"]["reward"] == hashlib.sha256(mine.read_bytes()).hexdigest()[:12]
        )
    same = CliRunner().invoke(app, ["fastslow", str(file), "--resume"])
    assert same.exit_code == 1 and "no complete checkpoint" in " ".join(same.stderr.split())
    mine.write_text(mine.read_text() + "# changed\n")
    changed = CliRunner().invoke(app, ["fastslow", str(file), "--resume"])
    assert "the file of the reward is not that with which the run in" in (
        " ".join(changed.stderr.split())
    )


class Plug(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


SAVING = {
    "learning_rate": 1e-2,
    "max_steps": 4,
    "save_steps": 2,
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 4,
}


def end_of(folder: Path) -> dict[str, Any]:
    """What is left of a run: its weights, its population, and the record of its cycles."""
    (weights,) = (folder / "run" / "model").glob("*model*.safetensors")
    with Reader(folder / "run") as reader:
        margins = reader.margins("bomb")
        cycles = instructions_of(reader.events())
    assert cycles is not None and list(cycles.steps.values()) == [0, 2]
    return {
        "weights": {name: own.numpy().tobytes() for name, own in load_file(weights).items()},
        "population": json.loads((folder / "run" / "population.json").read_text()),
        "cycles": cycles,
        "margins": margins,
    }


def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path) -> None:
    changes = {"training": SAVING, "fastslow": POPULATION | {"every": 2}, "probe_every": 1}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    files = {}
    for folder in (whole, cut):
        folder.mkdir()
        save_model(folder)
        files[folder] = write_config(folder, **changes)
    assert run_fast_slow(FastSlowConfig.load(files[whole]), quiet=True)["steps"] == 4
    run = _prepare(FastSlowConfig.load(files[cut]), False, lambda *stage: None)
    run.trainer.add_callback(Plug())
    with pytest.raises(KeyboardInterrupt):
        run.trainer.train()
    run.monitor.record.close()
    started = CliRunner().invoke(app, ["fastslow", str(files[cut])])
    assert "`riprap fastslow CONFIG --resume` continues from its checkpoint of step 2" in (
        " ".join(started.stderr.split())
    )
    result = CliRunner().invoke(app, ["fastslow", str(files[cut]), "--resume", "--json"])
    assert result.exit_code in (0, 2), result.output
    assert json.loads(result.stdout)["steps"] == 4
    ends = end_of(cut), end_of(whole)
    margins, expected = (own.pop("margins") for own in ends)
    assert ends[0] == ends[1]
    assert list(margins) == list(expected) == [0, 1, 2, 3, 4]
    for step, own in expected.items():  # what a processor rounds depends on the memory
        assert margins[step] == pytest.approx(own, abs=1e-5)
    write_config(cut, **changes | {"reward": "exact"})
    other = CliRunner().invoke(app, ["fastslow", str(files[cut]), "--resume"])
    assert other.exit_code == 1 and "reward" in other.stderr


ASK = {"role": "user", "content": "what is one"}
SAY = {"role": "assistant", "content": "five"}


@pytest.mark.parametrize(
    ("row", "data", "text"),
    [
        ({"messages": [ASK, SAY, ASK, SAY]}, {}, "row 1 goes on after its first answer"),
        ({"messages": [ASK, SAY], "tools": [{"name": "add"}]}, {}, "row 1 has tools"),
        ({"messages": [ASK, SAY], "chat_template_kwargs": {"a": 1}}, {}, "arguments of the chat"),
        ({"messages": [{**ASK, "name": "me"}, SAY]}, {}, "turns with more than a role"),
        ({"messages": [SAY]}, {}, "row 1 is no problem with an answer"),
        ({"messages": [ASK, SAY]}, {"response_prefix": "so "}, "`data.response_prefix` would"),
    ],
)
def test_what_a_problem_cannot_have_is_refused_before_the_record(
    row: dict[str, Any], data: dict[str, Any], text: str, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row))
    config = FastSlowConfig.load(write_config(tmp_path, data={"path": str(file), **data}))
    with pytest.raises(ConfigError, match=text) as error:
        run_fast_slow(config)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"fastslow": {"keeps": 4}}, "did you mean 'keep'?"),
        ({"fastslow": {"select": "best"}}, "'fastslow.select': Input should be"),
        ({"training": {"learning_rate": 1, "max_steps": 1, "use_vllm": True}}, "cannot be set"),
        ({"training": {"learning_rate": 1, "max_steps": 1, "betas": 1}}, "did you mean 'beta'?"),
        (
            {"training": {"learning_rate": 1, "max_steps": 1, "chat_template_kwargs": {}}},
            "cannot be set: set `data.chat_template_kwargs`",
        ),
        ({"rewards": "exact"}, "did you mean 'reward'?"),
    ],
)
def test_a_wrong_configuration_is_refused(
    changes: dict[str, Any], text: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        FastSlowConfig.load(write_config(tmp_path, **changes))
    assert text in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "texts", "rewards"),
    [
        ("exact", [" five ", "five six"], [1.0, 0.0]),
        ("contains", ["it is five", "six"], [1.0, 0.0]),
        ("number", ["so 2 and 1,005.0", "1005 or 6"], [1.0, 0.0]),
    ],
)
def test_rewards_by_name(name: str, texts: list[str], rewards: list[float]) -> None:
    answer = "1005" if name == "number" else "five"
    turns = [[{"role": "assistant", "content": text}] for text in texts]
    assert load_reward(name)(completions=turns, answer=[answer] * 2, other=1) == rewards


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("it is 10-5", "5"),
        ("3-4", "4"),
        ("so -3", "-3"),
        ("x=-2", "-2"),
        (".5", "0.5"),
        ("$1,200.", "1200"),
    ],
)
def test_the_last_number_of_a_text(text: str, number: str) -> None:
    turns = [[{"role": "assistant", "content": text}]]
    score = load_reward("number")
    assert score(completions=turns, answer=[number]) == [1.0]
    assert score(completions=turns, answer=[f"{float(number) + 1}"]) == [0.0]


@pytest.mark.parametrize(
    ("name", "answer", "text"),
    [
        ("number", "five", "row 1 has an answer without a number: reward 'number' needs one"),
        ("contains", " ", "row 1 has an answer without a text"),
        ("exact", "", "row 1 has an answer without a text"),
    ],
)
def test_an_answer_that_no_completion_can_miss_or_meet_is_refused(
    name: str, answer: str, text: str, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"question": "what", "answer": answer}))
    config = FastSlowConfig.load(write_config(tmp_path, data={"path": str(file)}, reward=name))
    with pytest.raises(ConfigError, match=text):
        run_fast_slow(config)
    assert not (tmp_path / "run").exists()


TRAINING = {"learning_rate": 1e-3, "max_steps": 2, "num_generations": 4}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"fastslow": {"sentences": ["one"], "keep": 3}}, "num_generations=4 .* by 3 instructions"),
        ({"fastslow": {"sentences": ["one", "one"]}}, "a sentence is given twice"),
        ({"fastslow": {"population": ["a", "a"]}}, "the population has 'a' twice"),
        ({"fastslow": {"population": list("abcde")}}, "has 5 instructions, and keep=4"),
        ({"fastslow": {"population": list("abc"), "every": None}}, "shared equally by 3"),
        ({"fastslow": {"minibatch": 20}}, "minibatch=20, and a cycle has problems=16"),
        ({"fastslow": {"budget": 5}}, "budget=5, and keep=4 instructions on problems=16"),
        ({"training": TRAINING | {"per_device_train_batch_size": 3}}, "training: .*divisible"),
        ({"data": {"path": "rows.jsonl", "response_prefix": "so "}}, "response_prefix"),
    ],
)
def test_what_the_file_alone_tells_is_refused_before_anything_is_loaded(
    changes: dict[str, Any], text: str, tmp_path: Path
) -> None:
    """There are no model and no rows."""
    config = FastSlowConfig.load(write_config(tmp_path, **{"training": TRAINING} | changes))
    (tmp_path / "problems.jsonl").unlink()
    with pytest.raises(ConfigError, match=text) as error:
        run_fast_slow(config)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_trained_leaves_no_record(tmp_path: Path) -> None:
    make_llama(scale=8.0).save_pretrained(tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match="all instructions make the same prompt"):
        run_fast_slow(FastSlowConfig.load(write_config(tmp_path)))
    assert not (tmp_path / "run" / FILE_NAME).exists()  # TRL makes the folder


def test_a_reward_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    head = "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    head += "@dataclass\nclass Found:\n    value: float\n"
    file.write_text(head + "def brief(completions, **_):\n    return [1.0 for _ in completions]\n")
    assert load_reward(f"{file}:brief")(completions=[1, 2]) == [1.0, 1.0]
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    for name, text in (
        ("best", "choose one of exact, contains, number"),
        (f"{file}:long", "has no function 'long'"),
        (f"{tmp_path}/none.py:f", "there is no Python file"),
        (f"{broken}:f", "ZeroDivisionError"),
    ):
        with pytest.raises(ConfigError, match=text):
            load_reward(name)
