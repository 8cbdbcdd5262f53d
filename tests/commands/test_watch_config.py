"""The configuration of `riprap watch`: the examples are valid, and old keys name the new ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from riprap.commands.watch import WatchConfig
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
def test_the_examples_are_valid(file: Path) -> None:
    config = WatchConfig.load(file)
    assert config.training.max_steps > 1
    assert len(config.behaviors) == 4


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 2


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
