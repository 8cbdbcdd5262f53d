"""The configuration of `riprap watch`: the examples are valid, and old keys name the new ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from riprap.commands._data import read_rows
from riprap.commands.watch import WatchConfig, sft_config
from riprap.commands.watch._build import check_behaviors
from riprap.errors import ConfigError

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
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
