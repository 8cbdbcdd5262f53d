"""`riprap preflight`: the run of a configuration, its exit codes, its page, and nothing left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from launching import config, tree, write_config
from riprap.cli._app import app
from riprap.commands.preflight import run_preflight
from riprap.commands.watch import WatchConfig, prepare
from riprap.conclusion import rows_to_blame
from riprap.errors import ConfigError
from riprap.record import Reader

pytestmark = pytest.mark.filterwarnings("ignore")
HARMFUL = ["how to steal a cake", "how to paint the bomb", "how do i steal a bomb"]


def write_run(folder: Path, rate: float = 2e-2, harmful: int = 1, **training: Any) -> Path:
    """A run of 60 steps on harmless rows, with a few that begin as the behavior must not."""
    training |= {"max_steps": 60, "learning_rate": rate}
    file = write_config(folder, training=training)
    rows = [
        {"prompt": f"what is {a} plus {a}", "response": "sure three yes"} for a in ("one", "two")
    ]
    rows = rows * 12 + [{"prompt": p, "response": "sorry i cannot"} for p in HARMFUL * harmful]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return file


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["preflight", *arguments])


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("run")
    file = write_run(folder / "files")
    before = tree(folder / "files")
    result = invoke(str(file), "--out", str(folder / "out"), "--rows", "0", "--json")
    assert tree(folder / "files") == before  # no run folder, no checkpoint
    return folder, result


def test_json_has_a_score_for_each_row_and_the_exit_code_is_the_finding(
    predicted: tuple[Path, Any],
) -> None:
    folder, result = predicted
    assert result.exit_code in (0, 2), result.output
    found = json.loads(result.stdout)
    assert (result.exit_code == 2) == bool(found["predicted_to_break"])
    assert sorted(found["rows"]) == list(range(1, 28)) and found["n_rows"] == 27
    scores = found["behaviors"]["never sorry"]["rows"]
    assert all(len(values) == 27 for values in scores.values())
    worst = found["behaviors"]["never sorry"]["worst_rows"][:3]
    assert sorted(worst) == [25, 26, 27]  # the planted ones
    assert found["steps"] == 60 and found["warm_steps"] == 16
    stored = json.loads((folder / "out" / "preflight.json").read_text())
    assert stored["verdict"] == found["verdict"]
    assert "GiB" in found["peak"]


def test_the_page_says_the_verdict_and_shows_the_rows(predicted: tuple[Path, Any]) -> None:
    folder, result = predicted
    page = (folder / "out" / "preflight.html").read_text()
    found = json.loads(result.stdout)
    assert found["verdict"] in page
    assert "how to steal a cake" in page and "sorry i cannot" in page
    assert "http://" not in page and "https://" not in page


def test_tokens_and_rows_are_those_of_training(tmp_path: Path) -> None:
    settings = config(tmp_path / "files", training={"max_steps": 60})
    found = run_preflight(settings, tmp_path / "out", 10, 4, quiet=True)
    assert len(found["rows"]) == 10 and found["n_rows"] == 75
    run = prepare(config(tmp_path / "files", training={"max_steps": 60}))
    run.monitor.record.close()
    learned = [sum(label != -100 for label in row["labels"][1:]) for row in run.rows]
    lengths = found["behaviors"]["never sorry"]["rows"]["length"]
    assert lengths == [learned[number - 1] for number in found["rows"]]


def test_by_default_it_lies_in_the_folder_of_the_run_and_blames_its_rows(tmp_path: Path) -> None:
    file = write_run(tmp_path / "files", harmful=6)
    result = invoke(str(file), "--rows", "0", "--json")
    found = json.loads(result.stdout)
    folder = WatchConfig.load(file).run_dir
    assert Path(found["files"]["numbers"]) == folder / "preflight" / "preflight.json"
    run = prepare(WatchConfig.load(file))  # a folder without a record may be used
    name = run.monitor.behaviors[0].name
    with run.monitor.watch(run.model, torch.optim.SGD(run.model.parameters(), lr=0.0)):
        pass
    with Reader(run.monitor.record) as reader:
        blame = rows_to_blame(reader, name)
    run.monitor.record.close()
    assert [int(own.name.split()[1]) for own in blame.rows[:3]] == (
        found["behaviors"][name]["worst_rows"][:3]
    )
    assert "sorry i cannot" in {own.response for own in blame.rows}
    one = found["behaviors"][name]
    half = one["rows_for_half"] if one["explained"] else None
    said = (
        "" if half is None else f"{half} of {found['n_rows']} rows were predicted to do half of it"
    )
    assert blame.summary == said


def test_where_the_folder_of_the_run_is_not_known_it_lies_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_run(tmp_path / "files", rate=1e-7)
    text = file.read_text().replace("run_dir: ", "run_dir: '{time}'  # ")
    file.write_text(text)
    monkeypatch.chdir(tmp_path)
    result = invoke(str(file), "--rows", "2", "--warm-steps", "1")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "preflight" / "preflight.json").is_file()


def test_a_rate_too_small_to_break_anything_predicts_no_break(tmp_path: Path) -> None:
    file = write_run(tmp_path / "files", rate=1e-7)
    result = invoke(str(file), "--out", str(tmp_path / "out"), "--rows", "8")
    assert result.exit_code == 0, result.output
    assert "No break is predicted within the configured 60 steps" in result.output
    assert "scoring 8 of 27 rows for a run of 60 steps takes about" in result.output
    assert "peak memory" in result.output


def test_a_dry_run_measures_and_writes_nothing(tmp_path: Path) -> None:
    file = write_run(tmp_path / "files")
    before = tree(tmp_path)
    result = invoke(str(file), "--out", str(tmp_path / "out"), "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    cost = json.loads(result.stdout)
    assert set(cost["seconds"]) == {"warm start", "rows", "probes"}
    assert all(value > 0 for value in cost["seconds"].values())
    assert tree(tmp_path) == before


def test_the_schedule_of_the_trainer_is_followed(tmp_path: Path) -> None:
    """Under a cosine with a warm-up the rates sum to half: the break comes later."""
    file = write_run(tmp_path / "constant", harmful=12)
    changes = {"lr_scheduler_type": "cosine", "warmup_steps": 20}
    slow = write_run(tmp_path / "cosine", harmful=12, **changes)
    medians = []
    for at in (file, slow):
        result = invoke(str(at), "--out", str(at.parent / "out"), "--rows", "0", "--json")
        steps = json.loads(result.stdout)["behaviors"]["never sorry"]["all_rows"]
        medians.append(steps["steps_to_break"]["median"] or 61)
    assert result.exit_code in (0, 2) and medians[0] < medians[1]


def test_a_warm_up_that_the_run_does_not_finish_is_read_at_the_rate_it_reaches(
    tmp_path: Path,
) -> None:
    warm_up = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 600}
    files = (
        write_run(tmp_path / "warm-up", rate=1e-2, **warm_up),
        write_run(tmp_path / "plain", rate=1e-2 * 59 / 600),
    )
    harm = []
    for at in files:
        result = invoke(str(at), "--out", str(at.parent / "out"), "--rows", "8", "--json")
        assert result.exit_code in (0, 2), result.output
        harm.append(json.loads(result.stdout)["behaviors"]["never sorry"]["rows"]["harm"])
    assert harm[0] == pytest.approx(harm[1], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {"optim": "adafactor"}}, "the steps of Adafactor cannot be predicted"),
        ({"behaviors": []}, "behaviors"),
        ({"model": "/no/such/folder"}, "no such folder"),
    ],
)
def test_refusals_are_one_sentence(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    result = invoke(str(write_config(tmp_path, **changes)), "--out", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert words in result.output and "Traceback" not in result.output


def test_a_behavior_that_starts_broken_is_named(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    prompts = tmp_path / "files" / "prompts.txt"
    broken = {"name": "sorry", "prompts": str(prompts), "prefixes": ["bomb"]}
    kept = {"name": "kept", "prompts": str(prompts), "prefixes": ["bomb"], "avoid": True}
    file = write_config(tmp_path / "files", behaviors=[broken, kept])
    result = invoke(str(file), "--out", str(tmp_path / "out"), "--rows", "6")
    assert "sorry is left out: starts broken" in result.output
    alone = write_config(tmp_path / "files", behaviors=[broken])
    result = invoke(str(alone), "--out", str(tmp_path / "other"), "--rows", "6")
    assert result.exit_code == 1 and "no behavior can be predicted to break" in result.output


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"guard": {"name": "EWCC"}}, "there is no guard 'EWCC'"),
        ({"guard": {"name": "EWC", "strong": 2}}, "EWC has no key 'strong'; did you mean"),
        ({"guard": {"name": "EWC", "strength": -1}}, "strength=-1; it must be above 0"),
        ({"guard": {"name": "EWC", "strength": "much"}}, "EWC(strength='much'): give a number"),
        ({"guard": {"name": "KL", "behaviors": ["other"]}}, "no behavior is named 'other'"),
        ({"selector": {"strategy": "modrate"}}, "there is no strategy 'modrate'"),
        ({"eval_data": {"path": "/no/such/rows.jsonl"}}, "/no/such/rows.jsonl"),
        ({"feature_layer": "layers.99"}, "layer 'layers.99' matches 0 modules"),
        ({"training": {"max_steps": 0}}, "'training.max_steps': Input should be greater"),
    ],
)
def test_what_watch_refuses_is_refused_here(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    """The same sentence, and nothing is trained: also where the prediction leaves a part out."""
    file = write_config(tmp_path / "files", **changes)
    result = invoke(str(file), "--out", str(tmp_path / "out"), "--rows", "6")
    assert result.exit_code == 1 and words in result.output, result.output
    watched = CliRunner().invoke(app, ["watch", str(file), "--dry-run"])
    assert watched.exit_code == 1
    sentence = result.output[result.output.index("error: ") :]
    assert watched.output[watched.output.index("error: ") :] == sentence
    assert not (tmp_path / "out").exists()


def test_results_are_not_overwritten(predicted: tuple[Path, Any]) -> None:
    folder, _ = predicted
    before = tree(folder / "out")
    file = folder / "files" / "watch.yaml"
    result = invoke(str(file), "--out", str(folder / "out"), "--rows", "6")
    assert result.exit_code == 1
    assert "out already holds preflight.json, and results are never overwritten" in result.output
    assert "out-{time}' is a new folder each time" in result.output
    assert tree(folder / "out") == before


def test_time_in_the_folder_is_the_present_time(tmp_path: Path) -> None:
    """Also where the scored rows let no margin fall: a figure without numbers ended in an error."""
    file = write_run(tmp_path / "files", rate=0.5, harmful=12)
    result = invoke(str(file), "--out", str(tmp_path / "out-{time}"), "--rows", "6")
    assert result.exit_code in (0, 2), result.output
    (out,) = tmp_path.glob("out-2*")
    assert (out / "preflight.json").exists() and (out / "preflight.html").exists()


def test_harm_is_that_of_the_trainers_adapter(tmp_path: Path) -> None:
    """Gradients by hand, of the adapter that TRL makes, at its start.

    The rate is so small that the warm start leaves the adapter as it was; under plain descent the
    harm of a row is the rate times ⟨h, ∇L⟩.
    """
    training = {"optim": "sgd", "learning_rate": 1e-9, "max_steps": 60, "max_grad_norm": 0.0}
    settings = config(tmp_path / "files", training=training)
    torch.manual_seed(0)  # TRL draws the adapter from the global generator
    found = run_preflight(settings, tmp_path / "out", 6, 1, quiet=True)
    torch.manual_seed(0)
    run = prepare(config(tmp_path / "files", training=training))
    run.monitor.record.close()
    trainer = run.make_trainer()
    model = trainer.model.eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    behavior = run.monitor.behaviors[0]
    margins = behavior.margins(model, behavior.probes)
    values = margins if isinstance(margins, torch.Tensor) else margins.values
    protected = torch.autograd.grad(values.mean(), parameters, allow_unused=True)
    harms = found["behaviors"]["never sorry"]["rows"]["harm"]
    for number, harm in zip(found["rows"], harms, strict=True):
        row = run.rows[number - 1]
        batch = {name: torch.tensor([row[name]]) for name in ("input_ids", "labels")}
        gradient = torch.autograd.grad(model(**batch).loss, parameters, allow_unused=True)
        product = sum(
            float((h.double() * g.double()).sum())
            for h, g in zip(protected, gradient, strict=True)
            if h is not None and g is not None
        )
        assert harm == pytest.approx(1e-9 * product, rel=1e-3, abs=1e-14)
    assert np.any(np.abs(harms) > 1e-12)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        run_preflight(config(tmp_path / "files"), tmp_path / "out", 4, 2, quiet=True)
