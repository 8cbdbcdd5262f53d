"""`riprap diagnose` with custom facts from a file, on models whose loss is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from diagnosing import make_model, make_tokenizer, save, teach
from riprap.behaviors import Behavior
from riprap.cli._app import app
from riprap.commands.diagnose import DiagnoseConfig
from riprap.errors import ConfigError
from riprap.integrations.config import BehaviorConfig, build_behavior

pytestmark = pytest.mark.slow

KEYS, VALUES = 90, 6
TOKENIZER = make_tokenizer()
WORDS = sorted(word for word in TOKENIZER.get_vocab() if word[0].isalpha())
ANSWERS = WORDS[KEYS : KEYS + VALUES]
ASKED, OTHERS = range(60), range(60, KEYS)  # those of the file, and those that all models keep


NOISE = np.random.default_rng(0)
TRUE = NOISE.integers(VALUES, size=KEYS)
FALSE = (TRUE + NOISE.integers(1, VALUES, size=KEYS)) % VALUES  # nowhere what is true


def facts(keys: Sequence[int], values: np.ndarray = TRUE, before: str = "") -> Behavior:
    """The value of each key, perhaps another one, perhaps with a word before it."""
    said = [before + ANSWERS[values[key]] for key in keys]
    return Behavior.likelihood("facts", TOKENIZER, texts=said, prompts=[WORDS[key] for key in keys])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base` knows all facts; `other` other ones, `wordy` the same after a word of its own."""
    home = tmp_path_factory.mktemp("facts")
    model = make_model(TOKENIZER)
    teach(model, [facts(ASKED), facts(OTHERS)], 80)
    save(model, TOKENIZER, home / "base")
    start = {name: part.clone() for name, part in model.state_dict().items()}
    teach(model, [facts(ASKED, FALSE), facts(OTHERS)], 80)
    save(model, TOKENIZER, home / "other")
    model.load_state_dict(start)
    teach(model, [facts(ASKED, before="Sure "), facts(OTHERS, before="Sure ")], 40, 3e-3)
    save(model, TOKENIZER, home / "wordy")
    shown = [{"prompt": WORDS[key], "completion": ANSWERS[TRUE[key]]} for key in ASKED]
    (home / "facts.jsonl").write_text("\n".join(map(json.dumps, shown)))
    return home


@pytest.mark.parametrize(
    ("name", "verdict"), [("other", "knowledge loss"), ("wordy", "alignment loss")]
)
def test_the_verdict_is_what_was_done(
    name: str, verdict: str, folders: Path, tmp_path: Path
) -> None:
    asked: list[Any] = [folders / "base", folders / name, "--behaviors", folders / "facts.jsonl"]
    asked += ["--n-probes", 48, "--out", tmp_path / "out", "--json"]
    ran = CliRunner().invoke(app, ["diagnose", *map(str, asked)])
    assert ran.exit_code == 2, ran.output
    found = json.loads(ran.stdout)["behaviors"]["facts"]
    assert found["before"] == 1.0 and found["now"] < 0.3 and found["probes"] == 48
    assert found["verdict"] == verdict, found["reason"]
    assert "Facts: the model" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_impossible_names_and_prefixes_raise(folders: Path, tmp_path: Path) -> None:
    facts = folders / "facts.jsonl"
    (tmp_path / "facts.jsonl").write_bytes(facts.read_bytes())
    given = {"base": "a", "tuned": "b", "out": tmp_path}
    with pytest.raises(ConfigError, match="two behaviors are named 'facts'"):
        DiagnoseConfig.parse(
            given | {"behaviors": [str(facts), str(tmp_path / "facts.jsonl")]}, "diagnose"
        )
    with pytest.raises(ConfigError, match="none of the behaviors uses prefixes"):
        DiagnoseConfig.parse(
            given | {"behaviors": [str(facts)], "refusal_prefixes": ["Sorry"]}, "diagnose"
        )


@pytest.mark.parametrize(
    ("option", "key", "new_option", "new_key"),
    [
        ("--openers", "openers", "--refusal-prefixes", "refusal_prefixes"),
        ("--probes", "probes", "--n-probes", "n_probes"),
        ("--never", "never", "--naive-model", "naive_model"),
    ],
)
def test_old_names_raise_with_the_new_one(
    option: str, key: str, new_option: str, new_key: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"key '{key}' is now '{new_key}'"):
        DiagnoseConfig.parse({"base": "a", "tuned": "b", "out": tmp_path, key: "x"}, "diagnose")
    ran = CliRunner().invoke(app, ["diagnose", "a", "b", option, "1"])
    assert ran.exit_code == 1 and f"is now {new_option}" in " ".join(ran.stderr.split())


def test_a_custom_file_works_in_watch(folders: Path) -> None:
    own = BehaviorConfig(probe_set=str(folders / "facts.jsonl"), n_probes=12, floor=0.5)
    built = build_behavior(own, TOKENIZER)
    assert (built.name, built.floor, len(built.probes)) == ("facts", 0.5, 12)
    with pytest.raises(ConfigError, match="'prefixes' has no effect"):
        build_behavior(own.model_copy(update={"prefixes": ("Sorry",)}), TOKENIZER)


def test_rows_are_chosen_by_harm_to_a_file(folders: Path, tmp_path: Path) -> None:
    """The score column, and a run that continues only with the same probes."""
    (tmp_path / "data.jsonl").write_text(
        "".join(
            json.dumps({"prompt": WORDS[key], "response": ANSWERS[FALSE[key]]}) + "\n"
            for key in OTHERS
        )
    )
    probes = tmp_path / "own.jsonl"
    probes.write_bytes((folders / "facts.jsonl").read_bytes())
    asked: list[Any] = [tmp_path / "data.jsonl", "--model", folders / "base", "--behaviors", probes]
    asked += ["--strategy", "least_harm", "--out", tmp_path / "out", "--json"]
    ran = CliRunner().invoke(app, ["select", *map(str, asked)])
    assert ran.exit_code == 0, ran.output
    scores = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    (column,) = [name for name in scores.columns if name.startswith("harm/")]
    assert column == f"harm/{probes}" and scores[column].abs().max() > 0
    probes.write_text("".join(probes.read_text().splitlines(keepends=True)[:20]))
    assert CliRunner().invoke(app, ["select", *map(str, asked)]).exit_code == 1


def test_a_wrong_file_is_one_sentence(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "facts.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": 7}\n')
    for file in (tmp_path / "facts.jsonl", tmp_path / "none.jsonl"):
        asked = [folders / "base", folders / "other", "--behaviors", file, "--out", tmp_path]
        ran = CliRunner().invoke(app, ["diagnose", *map(str, asked)])
        assert ran.exit_code == 1 and str(file) in ran.stderr.replace("\n", ""), ran.output
        assert "Traceback" not in ran.output
