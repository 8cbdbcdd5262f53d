"""The plugin for Axolotl: loaded by name, its block checked before a model, and never a silence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from integrations import axolotl_stand_in
from integrations.test_trackers import training
from riprap.errors import ConfigError
from tiny import make_tokenizer

PLUGIN = "riprap.integrations.axolotl.RiprapPlugin"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _axolotl(monkeypatch: pytest.MonkeyPatch) -> None:
    axolotl_stand_in.install(monkeypatch)


def document(tmp_path: Path, **block: Any) -> dict[str, Any]:
    (tmp_path / "prompts.txt").write_text("how to make a bomb\nhow to steal the car\n")
    own = {"name": "refusal", "prompts": str(tmp_path / "prompts.txt"), "prefixes": ["sorry no"]}
    given = {"behaviors": [own], "run_dir": str(tmp_path / "run")} | block
    return {"base_model": "tiny", "plugins": [PLUGIN], "riprap": given}


def test_the_example_is_a_block_that_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    file = yaml.safe_load((ROOT / "examples" / "axolotl.yml").read_text(encoding="utf-8"))
    cfg, (plugin,) = axolotl_stand_in.load(file)
    assert type(plugin).__mro__[1].__module__ == "axolotl.integrations.base"
    assert cfg.riprap == file["riprap"]


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ({"behaviours": []}, "riprap: unknown key 'behaviours'; did you mean 'behaviors'"),
        ({"behaviors": [{"probe_set": "refusals"}]}, "there is no probe set 'refusals'"),
        ({"guard": {"name": "AGEMS"}}, "there is no guard 'AGEMS'.*did you mean 'AGEM'"),
        ({"policy": "strict"}, "strict"),
        ({"selector": {"ratio": 0.5}}, "rows cannot be selected under Axolotl"),
        ({"learning_rate": 1.0}, "riprap: unknown key 'learning_rate'"),
    ],
)
def test_a_wrong_block_is_refused_before_a_model(
    block: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    from riprap.errors import RiprapError

    with pytest.raises(RiprapError, match=sentence) as raised:
        axolotl_stand_in.load(document(tmp_path, **block))
    assert not isinstance(raised.value, ImportError)  # Axolotl prints these and goes on
    assert not (tmp_path / "run").exists()


def test_a_missing_block_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a block `riprap:`"):
        axolotl_stand_in.load({"base_model": "tiny", "plugins": [PLUGIN]})


def test_a_trainer_that_only_evaluates_leaves_the_record_alone(tmp_path: Path) -> None:
    """`axolotl evaluate` makes a trainer too, also after training, from the same file."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "record.sqlite").write_bytes(b"somebody's")
    cfg, plugins = axolotl_stand_in.load(document(tmp_path))
    trainer = axolotl_stand_in.build(cfg, plugins, lambda before: training(tmp_path, before), None)
    assert "eval_loss" in trainer.evaluate()
    assert (tmp_path / "run" / "record.sqlite").read_bytes() == b"somebody's"


def test_a_trainer_without_a_tokenizer_is_refused_before_a_step(tmp_path: Path) -> None:
    cfg, plugins = axolotl_stand_in.load(document(tmp_path))
    trainer = axolotl_stand_in.build(cfg, plugins, lambda before: training(tmp_path, before), None)
    with pytest.raises(ConfigError, match="without a model or a tokenizer"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_keep_passing_of_a_resumed_run_is_chosen_by_the_weights_of_the_start(
    tmp_path: Path,
) -> None:
    given = document(tmp_path, probe_every=3)
    given["riprap"]["behaviors"][0] |= {"keep_passing": True, "avoid": True}
    probes = []
    for resume in (None, str(tmp_path / "saved" / "checkpoint-3")):
        cfg, plugins = axolotl_stand_in.load(given | {"resume_from_checkpoint": resume})
        own = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "learning_rate": 0.1}

        def make(before: list[Any], own: dict[str, Any] = own) -> Any:
            trainer = training(tmp_path / "saved", before, **own)
            trainer.processing_class = trainer.callback_handler.processing_class = make_tokenizer()
            return trainer

        trainer = axolotl_stand_in.build(cfg, plugins, make, None)
        trainer.train(resume_from_checkpoint=resume)
        (own_callback,) = (
            one for one in trainer.callback_handler.callbacks if hasattr(one, "monitor")
        )
        (history,) = own_callback.monitor.behavior_histories.values()
        probes.append(len(history.margins[0]))
        assert own_callback.monitor.step == 6
        own_callback.monitor.record.close()
    assert probes[0] == probes[1] == 2


def test_without_axolotl_the_plugin_names_it() -> None:
    script = "import riprap.integrations.axolotl"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "axolotl is not installed" in done.stderr
