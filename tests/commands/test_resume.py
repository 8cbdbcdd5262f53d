"""An interrupted run continues as if it had not been interrupted, or one sentence refuses it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback
from typer.testing import CliRunner

from launching import config, tree, write_config
from riprap.cli._app import app
from riprap.commands.watch import prepare
from riprap.commands.watch._resume import newest_checkpoint
from riprap.record import Reader, Writer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SAVING = {"save_steps": 3}
STOP = 7


class StoppedError(Exception):
    """Somebody pulled the plug."""


class Plug(TrainerCallback):
    def __init__(self, kill: bool = False) -> None:
        self.kill = kill

    def on_step_begin(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        if state.global_step == STOP:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise StoppedError


def watch(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["watch", *map(str, arguments)])


def error(result: Any) -> str:
    assert result.exit_code == 1, result.output
    return result.stderr[result.stderr.index("error: ") :]


def broken(folder: Path, **changes: Any) -> Path:
    """The configuration of a run that was cut off at step 7, after the checkpoint of step 6."""
    changes["training"] = SAVING | changes.get("training", {})
    run = prepare(config(folder, **changes))
    with pytest.raises(StoppedError):
        run.train([Plug()])
    run.monitor.record.close()
    return folder / "watch.yaml"


def content(folder: Path) -> dict[str, Any]:
    """All that stands in the record of a run, and its final weights."""
    with Reader(folder / "run") as reader:
        margins = {step: m.tobytes() for step, m in reader.margins("never sorry").items()}
        read = {"readings": reader.readings(), "alerts": reader.alerts(), "margins": margins}
        read["answers"] = reader.answers()
        assert {0, max(margins)} <= read["answers"]["never sorry"].keys()
    last = newest_checkpoint(folder / "run")
    assert last is not None
    (weights,) = last.folder.glob("*model*.safetensors")
    found = {name: tensor.numpy().tobytes() for name, tensor in load_file(weights).items()}
    return read | {"step": last.step, "weights": found}


@pytest.mark.parametrize("lora", [{"rank": 2, "alpha": 4}, None], ids=["adapter", "all"])
def test_a_resumed_run_is_the_unbroken_one(lora: Any, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert watch(write_config(whole, training=SAVING, lora=lora)).exit_code != 1
    file = broken(tmp_path / "broken", lora=lora)
    result = watch(file, "--resume", "--json")
    assert result.exit_code != 1, result.output
    assert json.loads(result.stdout)["steps"] == 9
    assert content(tmp_path / "broken") == content(whole)
    with Reader(tmp_path / "broken" / "run") as reader:
        events = [(event["kind"], event["step"]) for event in reader.events()]
    others = ("cleared", "checkpoint", "training", "probe_answers")
    told = [event for event in events if event[0] not in others]
    assert told == [("plan", 0), ("resumed", 6), ("plan", 6), ("cost", 9), ("ended", 9)]


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from commands.test_resume import Plug, config, prepare, SAVING
from pathlib import Path
import torch
torch.set_num_threads(1)
prepare(config(Path(sys.argv[2]), training=SAVING, budget=None)).train([Plug(kill=True)])
"""


def test_a_killed_run_is_resumed(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert watch(write_config(whole, training=SAVING, budget=None)).exit_code != 1
    tests = Path(__file__).parents[1]
    script = [sys.executable, "-c", KILLED, str(tests), str(killed)]
    ended = subprocess.run(script, capture_output=True, text=True, timeout=300)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert watch(killed / "watch.yaml", "--resume").exit_code != 1
    assert content(killed) == content(whole)


def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    file = broken(tmp_path)
    half = tmp_path / "run" / "trainer" / "checkpoint-6" / "trainer_state.json"
    half.write_text(half.read_text()[:100])
    found = newest_checkpoint(tmp_path / "run")
    assert found is not None
    assert found.step == 3
    assert watch(file, "--resume").exit_code != 1
    with Reader(tmp_path / "run") as reader:
        assert [e["step"] for e in reader.events() if e["kind"] == "resumed"] == [3]


def test_two_checkpoints_are_kept_and_none_where_none_is_asked_for(tmp_path: Path) -> None:
    watch(write_config(tmp_path / "a", training={"save_steps": 2}))
    kept = {path.name for path in (tmp_path / "a" / "run" / "trainer").glob("checkpoint-*")}
    assert kept == {"checkpoint-8", "checkpoint-9"}
    watch(write_config(tmp_path / "b", training={"max_steps": 2}))
    assert list((tmp_path / "b" / "run" / "trainer").iterdir()) == []


def test_a_longer_run_goes_on_where_the_schedule_allows(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert watch(write_config(whole, training=SAVING | {"max_steps": 12})).exit_code != 1
    short = tmp_path / "short"
    assert watch(write_config(short, training=SAVING)).exit_code != 1
    longer = write_config(short, training=SAVING | {"max_steps": 12})
    assert watch(longer, "--resume").exit_code != 1
    one, other = content(short), content(whole)
    assert (one["step"], one["weights"]) == (other["step"], other["weights"])
    # What is forecast, and so when probes are evaluated, depends on the steps that are planned.
    shared = one["margins"].keys() & other["margins"].keys()
    assert {0, 12} <= shared
    assert all(one["margins"][step] == other["margins"][step] for step in shared)


def test_without_resume_the_record_stands_in_the_way(tmp_path: Path) -> None:
    file = broken(tmp_path)
    before = tree(tmp_path)
    said = error(watch(file))
    assert "already holds a record" in said
    assert "--resume` continues from its checkpoint of step 6" in said
    shutil.rmtree(tmp_path / "run" / "trainer")
    assert "--resume" not in error(watch(file))
    assert before.keys() > tree(tmp_path).keys()


def test_nothing_to_resume(tmp_path: Path) -> None:
    file = write_config(tmp_path)
    assert "nothing to resume" in error(watch(file, "--resume"))
    assert not (tmp_path / "run").exists()
    broken(tmp_path)
    shutil.rmtree(tmp_path / "run" / "trainer")
    assert "no complete checkpoint" in error(watch(file, "--resume"))


def test_a_run_that_is_still_going_is_left_alone(tmp_path: Path) -> None:
    file = broken(tmp_path)
    alive = Writer(tmp_path / "run", resume=True)
    alive.add_event(6, "busy")
    alive.flush()
    before = tree(tmp_path / "run" / "trainer")
    assert "still writes the record" in error(watch(file, "--resume"))
    assert tree(tmp_path / "run" / "trainer") == before
    alive.close()


def test_a_finished_run_has_nothing_left(tmp_path: Path) -> None:
    file = write_config(tmp_path, training=SAVING)
    assert watch(file).exit_code != 1
    assert "no steps are left" in error(watch(file, "--resume"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"probe_every": 4}, "with probe_every: 3, and the configuration now has 4"),
        ({"lora": None}, 'lora: {"rank": 2, "alpha": 4, "dropout": 0.0,'),
        ({"training": {"learning_rate": 1e-3}}, "training.learning_rate: 0.005"),
        ({"training": {"seed": 1}}, "training.seed: 0, and the configuration now has 1"),
        ({"training": {"save_steps": 2}}, "training.save_steps: 3"),
        ({"training": {"max_steps": 8}}, "may be longer, not shorter"),
        ({"behaviors": [{"probe_set": "refusal"}]}, "behaviors.0."),
    ],
)
def test_another_configuration_is_refused(
    changes: dict[str, Any], said: str, tmp_path: Path, cut_off: Path
) -> None:
    shutil.copytree(cut_off, tmp_path / "run")
    named = {"model": str(cut_off.parent / "model")}
    rows = {"data": {"path": str(cut_off.parent / "rows.jsonl")}}
    probes = {"prompts": str(cut_off.parent / "prompts.txt"), "prefixes": ["sorry"], "avoid": True}
    known = named | rows | {"behaviors": [{"name": "never sorry", **probes}]}
    changes = changes | {"training": SAVING | changes.get("training", {})}
    file = write_config(tmp_path, **(known | changes))
    before = tree(tmp_path / "run" / "trainer")
    assert said in error(watch(file, "--resume"))
    assert tree(tmp_path / "run" / "trainer") == before


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was cut off, to be copied."""
    folder = tmp_path_factory.mktemp("cut")
    broken(folder)
    return folder / "run"


def test_a_schedule_that_counts_on_the_steps_allows_no_more(tmp_path: Path) -> None:
    cosine = {"lr_scheduler_type": "cosine"}
    broken(tmp_path, training=cosine)
    file = write_config(tmp_path, training=SAVING | cosine | {"max_steps": 12})
    assert "on which the schedule 'cosine' depends" in error(watch(file, "--resume"))


def test_other_rows_are_refused(tmp_path: Path) -> None:
    file = broken(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text().replace("blue", "red"))
    assert "are not those with which the run" in error(watch(file, "--resume"))
