"""The configuration of `riprap watch`: the examples are valid, and old keys name the new ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from riprap.cli._app import app
from riprap.commands._data import read_rows
from riprap.commands.watch import WatchConfig, sft_config
from riprap.errors import ConfigError
from riprap.integrations.config import check_behaviors

FOLDER = Path(__file__).parents[2] / "examples"
OTHERS = {"sums.yaml"}  # examples of `riprap fastslow`
EXAMPLES = sorted(file for file in FOLDER.glob("*.yaml") if file.name not in OTHERS)
VALID: dict[str, Any] = {
    "model": "m",
    "data": {"path": "rows.jsonl"},
    "training": {"max_steps": 1, "learning_rate": 1.0},
    "behaviors": [{"probe_set": "refusal"}],
    "run_dir": "run",
}


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_an_example_needs_nothing_that_a_checkout_lacks(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(EXAMPLES[0].parents[1])
    config = WatchConfig.load(file)
    assert ".." not in Path(config.data.path).parts
    rows, summary = read_rows(config.data)
    assert len(rows) == summary.rows == 60
    assert check_behaviors(config)
    assert sft_config(config).num_train_epochs == 3


def test_there_are_examples() -> None:
    assert EXAMPLES
    for folder in ("experiments/smollm2", "examples"):  # of the published runs, and of users
        for file in (EXAMPLES[0].parents[1] / folder).glob("*.yaml"):
            if file.name not in OTHERS:
                assert WatchConfig.load(file).behaviors


@pytest.mark.parametrize(
    ("section", "old", "new"),
    [
        ("", "every", "probe_every"),
        ("", "layer", "feature_layer"),
        ("", "protocol", "policy"),
        ("", "run", "run_dir"),
        ("training", "steps", "max_steps"),
        ("training", "batch", "per_device_train_batch_size"),
        ("training", "accumulate", "gradient_accumulation_steps"),
        ("training", "schedule", "lr_scheduler_type"),
        ("training", "save_every", "save_steps"),
        ("behaviors.0", "pack", "probe_set"),
        ("behaviors.0", "openers", "prefixes"),
        ("behaviors.0", "n", "n_probes"),
    ],
)
def test_an_old_key_is_refused_with_the_new_one(section: str, old: str, new: str) -> None:
    document = dict(VALID)
    if section == "training":
        document["training"] = VALID["training"] | {old: 1}
    elif section:
        document["behaviors"] = [VALID["behaviors"][0] | {old: 1}]
    else:
        document[old] = 1
    place = f"{section}.{old}" if section else old
    with pytest.raises(ConfigError) as error:
        WatchConfig.parse(document, "x.yaml")
    assert str(error.value) == f"x.yaml: key '{place}' is now '{new}'"


def written(folder: Path, run_dir: str) -> Path:
    file = folder / "watch.yaml"
    file.write_text(json.dumps(VALID | {"run_dir": run_dir}))
    return file


def test_the_time_in_the_name_of_the_folder_is_set_once(tmp_path: Path) -> None:
    """Record, trainer, model and report lie in one folder, because all read this name."""
    config = WatchConfig.load(written(tmp_path, "runs/x-{time}"))
    assert re.fullmatch(r"x-\d{8}-\d{6}", config.run_dir.name)
    assert Path(sft_config(config).output_dir or "").parent == config.run_dir


def test_resuming_needs_the_name_of_the_folder(tmp_path: Path) -> None:
    file = written(tmp_path, "runs/x-{time}")
    result = CliRunner().invoke(app, ["watch", str(file), "--resume"])
    assert result.exit_code == 1
    said = result.stderr[result.stderr.index("error: ") :]
    assert "is a new folder each time, and holds no run to resume: give the folder" in said
    assert "runs/x-20260131-235959" in said
    assert WatchConfig.load(written(tmp_path, "runs/x"), resume=True).run_dir == Path("runs/x")
