"""`riprap diagnose` on a tiny model whose refusal was trained away, from files to page."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from diagnosing import BEHAVIORS, lessons, make_model, make_tokenizer, save, score, teach
from evals.test_compare import evals, task
from riprap._formatting import format_score
from riprap.behaviors import probe_sets
from riprap.cli._app import app
from riprap.commands.diagnose._loading import load_pair
from riprap.commands.diagnose._run import how_repaired
from riprap.conclusion import conclude
from riprap.diagnosis import Repair
from riprap.diagnosis._weight_sources import SafetensorsFolder
from riprap.errors import ConfigError
from riprap.record import Writer, state_of_weights
from riprap.types import Reading

pytestmark = pytest.mark.slow

ASKED = [part for name in BEHAVIORS[:2] for part in ("--behaviors", name)]
ASKED += ["--refusal-prefixes", "Sorry", "--n-probes", "12"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base` refuses, `tuned` does not, `adapter` makes it so, `never` was never taught to."""
    home = tmp_path_factory.mktemp("models")
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    save(model, tokenizer, home / "never")
    teach(model, lessons(tokenizer, refuses=True)[:2], 45)
    save(model, tokenizer, home / "base")
    settings = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    wrapped: Any = get_peft_model(model, settings)
    teach(wrapped, lessons(tokenizer, refuses=False)[:1], 12, 1e-2)
    wrapped.save_pretrained(home / "adapter")
    save(wrapped.merge_and_unload(), tokenizer, home / "tuned")
    return home


def run(*given: Any) -> Any:
    return CliRunner().invoke(app, ["diagnose", *map(str, given)])


@pytest.fixture(scope="module")
def result(folders: Path) -> dict[str, Any]:
    """Result for the adapter, with a naive model and a saved repair."""
    ran = run(
        *(folders / "base", folders / "adapter", *ASKED, "--out", folders / "out"),
        *("--naive-model", folders / "never", "--repairs", "--save-repair", folders / "repaired"),
        *("--full", "--json"),
    )
    assert ran.exit_code == 2, ran.output  # a finding: the refusal is under its floor
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_reports_losses_and_repairs(result: dict[str, Any], folders: Path) -> None:
    assert result["broken"] == result["lost"] == ["refusal"]
    assert result["behaviors"]["refusal"]["now"] < 0.5
    assert result["behaviors"]["refusal"]["verdict"] is not None
    assert result["behaviors"]["over_refusal"]["verdict"] is None
    assert result["cheapest"] is not None and "GiB" in result["peak"]
    data = json.loads((folders / "out" / "diagnosis.json").read_text())
    refusal = data["behaviors"][0]
    assert {point["source"] for point in refusal["recovery"]["curve"]} >= {"own", "naive_model"}
    assert refusal["linear_path"]["scores"][0] == refusal["score_now"]
    assert refusal["linear_path"]["scores"][-1] == refusal["score_before"] == 1.0
    assert max(len(own["text"]) for own in refusal["broken"]) == 40  # prompts may be harmful
    assert max(len(own["now"]) for own in refusal["broken"]) <= 30
    assert data["divergence"]["forward"]["mean"] > 0
    assert [one["kind"] for one in data["repairs"]][:2] == ["no repair", "few-shot"]


def test_the_page_is_whole(result: dict[str, Any]) -> None:
    text = Path(result["report"]).read_text(encoding="utf-8")
    assert result["behaviors"]["refusal"]["summary"].split(":")[0] in text
    assert "http:" not in text and "https:" not in text and "<script" not in text
    for word in ("recovery", "naive model", "prefix forcing", "linear decodability", "linear path"):
        assert word.lower() in text
    assert "NOT_RUN" in text and "cheapest" in text and "peak memory" in text
    assert text.index("Refusal: ") < text.index("What to do about it") < text.index("the evidence")


def test_the_saved_repair_is_the_model_that_was_measured(
    result: dict[str, Any], folders: Path
) -> None:
    repaired = AutoModelForCausalLM.from_pretrained(folders / "repaired")
    tuned = AutoModelForCausalLM.from_pretrained(folders / "tuned")
    behaviors = [probe_sets.load(n, make_tokenizer(), prefixes=["Sorry"]) for n in BEHAVIORS[:2]]
    before, after = ([score(b, model) for b in behaviors] for model in (tuned, repaired))
    assert before[0] < 0.5
    assert min(after) >= 0.65  # on all 210 probes; the floor of 0.9 was passed on eight of them


def evals_file(model: Path, home: Path, refused: int) -> Path:
    """Write results of evals, in which the model refused some of 40 safe requests."""
    rows = [1.0] * refused + [0.0] * (40 - refused)
    own = evals(task("xstest_safe", rows, True, "refusal_rules"), model=str(model))
    return replace(own, weights=state_of_weights(model)).save(home / f"{model.name}.json")


def test_evals_of_both_models_stand_beside_the_probes(folders: Path, tmp_path: Path) -> None:
    base, tuned = folders / "base", folders / "tuned"
    files = [evals_file(base, tmp_path, 0), evals_file(tuned, tmp_path, 16)]
    asked = [base, tuned, "--behaviors", "over_refusal", "--n-probes", "12"]
    ran = run(*asked, "--out", tmp_path / "out", "--evals", *files)
    assert ran.exit_code == 0, ran.output  # the probes pass: evals decide no verdict
    told = " ".join(ran.stdout.split())
    assert "Its probes pass, but its tasks got worse" in told
    assert "0.000 before, 0.400 now" in told
    assert "Of the one task of the evals, 1 got worse: xstest_safe." in told
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Evals of both models" in text and "+0.400 [" in text
    (own,) = json.loads((tmp_path / "out" / "diagnosis.json").read_text())["evals"]
    assert (own["task"], own["outcome"]) == ("xstest_safe", "worse")
    ran = run(*asked, "--out", tmp_path / "swapped", "--evals", *reversed(files))
    assert ran.exit_code == 1
    assert "holds evals of" in " ".join(ran.stderr.split())
    assert not (tmp_path / "swapped").exists()


def test_an_adapter_is_read_as_peft_reads_it(folders: Path) -> None:
    ids = torch.arange(6, 30)[None]
    by_folder, by_adapter = (
        load_pair(str(folders / "base"), str(folders / name)) for name in ("tuned", "adapter")
    )
    with torch.no_grad():
        logits = [pair.model.cpu()(ids).logits for pair in (by_folder, by_adapter)]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)
    for pair in (by_folder, by_adapter):
        for name, part in pair.model.named_parameters():
            assert torch.equal(part.cpu(), pair.tuned[name].cpu())
            assert torch.equal(pair.base[name], SafetensorsFolder(folders / "base")[name])


def test_repairs_and_the_curve_are_tried_on_demand(folders: Path, tmp_path: Path) -> None:
    """By default the verdict alone; what was not run is named everywhere."""
    ran = run(folders / "base", folders / "adapter", *ASKED, "--out", tmp_path / "out")
    assert ran.exit_code == 2, ran.output
    assert "not run: --repairs" in ran.output and "cheapest" not in ran.output
    assert re.search(r"Estimate: \d+ s.*\(refusal: recovery \d+ s", ran.output)
    data = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert data["repairs"] == [] and data["no_repairs"] == "not run: --repairs"
    refusal = data["behaviors"][0]
    assert {point["count"] for point in refusal["recovery"]["curve"]} == {10}
    assert all("--full" in refusal["missing"][part] for part in ("curve", "linear path"))
    assert all(layer["restored_share"] is None for layer in data["divergence"]["layers"])
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "not run: --repairs" in text and "not run: --full" in text
    assert text.index("Refusal: ") < text.index("What to do about it") < text.index("the evidence")


def test_a_diagnosis_of_a_checkpoint_lies_in_its_run_and_stands_in_its_first_line(
    folders: Path, tmp_path: Path
) -> None:
    home = tmp_path / "run"
    writer = Writer(home)
    writer.write_meta(behaviors=[{"name": "refusal", "floor": 0.9}], started="2026-11-30T08:00:00")
    for step, passing in ((0, 20), (20, 20), (40, 3)):
        writer.add_margins(step, "refusal", np.where(np.arange(20) < passing, 1.0, -1.0))
        writer.add_readings([Reading(step, "refusal", "score", passing / 20)])
    writer.add_event(40, "ended", ended="2026-11-30T09:00:00")
    writer.close()
    before = conclude(home).line
    checkpoint = home / "trainer" / "checkpoint-40"
    shutil.copytree(folders / "adapter", checkpoint)
    ran = run(folders / "base", checkpoint, *ASKED, "--json")
    assert ran.exit_code == 2, ran.output
    data = json.loads((home / "diagnosis-checkpoint-40" / "diagnosis.json").read_text())
    assert data["run"]["checkpoint"] == "trainer/checkpoint-40"
    points = data["behaviors"][0]["recovery"]["curve"]
    score = max(point["score"]["mean"] for point in points if point["source"] == "own")
    assert data["restored"] == {
        "refusal": {"how": "training on 10 of its examples", "score": score}
    }
    word = "back" if score >= 0.9 else "only"
    text = f"; training on 10 of its examples brings it {word} to {format_score(score, 0.9)}"
    assert f"{text} (measured on checkpoint-40, with the diagnosis' probes)." in conclude(home).line
    assert "measured on" not in before
    weights = checkpoint / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")  # other weights under the same name
    assert "measured on" not in conclude(home).line


def test_a_record_that_cannot_be_read_is_told_before_the_work(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "record.sqlite").write_bytes(b"no record" * 999)
    shutil.copytree(folders / "adapter", tmp_path / "checkpoint-40")
    monkeypatch.setattr("riprap.commands.diagnose._run.load_pair", pytest.fail)
    ran = run(folders / "base", tmp_path / "checkpoint-40", *ASKED)
    assert ran.exit_code == 1 and "record.sqlite" in ran.output
    ran = run(folders / "base", folders / "adapter", *ASKED, "--out", tmp_path / "record.sqlite/x")
    assert ran.exit_code == 1 and "no folder in which you may write" in " ".join(ran.output.split())


@pytest.mark.parametrize(
    ("repair", "how"),
    [
        (Repair("checkpoint", "checkpoint-20", 1.0, {}, {}), "going back to checkpoint-20"),
        (
            Repair("interpolation", "α = 1, all weights", 1.0, {}, {}),
            "going back to the base model",
        ),
        (
            Repair("interpolation", "α = 0.4, all weights", 0.4, {}, {}),
            "merging with the base model (α = 0.4, all weights)",
        ),
    ],
)
def test_a_repair_is_named_with_its_setting(repair: Repair, how: str) -> None:
    assert how_repaired(repair) == how


def test_full_adds_the_curve(result: dict[str, Any]) -> None:
    refusal = json.loads(Path(result["data"]).read_text())["behaviors"][0]
    own = {p["count"] for p in refusal["recovery"]["curve"] if p["source"] == "own"}
    assert own == {1, 2, 5, 10} and "curve" not in refusal["missing"]


def test_nothing_lost_is_no_finding(folders: Path, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(folders / "base")
    with torch.no_grad():
        next(model.parameters()).add_(1e-5)
    save(model, tokenizer, tmp_path / "same")
    ran = run(folders / "base", tmp_path / "same", *ASKED, "--out", tmp_path / "out")
    assert ran.exit_code == 0, ran.output
    assert "Refusal: no loss" in ran.output
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "What to do about it" not in text


def changed(folder: Path, to: Path, **settings: Any) -> Path:
    """An adapter's folder with another configuration."""
    shutil.copytree(folder, to)
    file = to / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return to


def test_wrong_input_is_one_sentence(folders: Path, tmp_path: Path) -> None:
    base, tuned, empty = folders / "base", folders / "tuned", tmp_path / "empty"
    empty.mkdir()
    wide = make_model(make_tokenizer())
    wide.resize_token_embeddings(len(make_tokenizer()) + 8)
    save(wide, make_tokenizer(), tmp_path / "wide")
    bare = changed(folders / "adapter", tmp_path / "bare")
    (bare / "adapter_model.safetensors").unlink()
    cut = shutil.copytree(base, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:999])
    (there := tmp_path / "there").mkdir()
    (there / "diagnosis.json").write_text("{}")
    cases = {
        "cannot be read": (base, bare),
        "weights in": (cut, tuned),
        "is it the same model": (base, tuned, "--naive-model", tmp_path / "wide"),
        "nothing changed": (base, base),
        "no such folder": (base, tmp_path / "nowhere"),
        "is it a saved model": (empty, tuned),
        "is not a fine-tuned version of": (base, tmp_path / "wide"),
        "no probe set 'nice'": (base, tuned, "--behaviors", "nice"),
        "two behaviors are named": (
            base,
            tuned,
            "--behaviors",
            "refusal",
            "--behaviors",
            "refusal",
        ),
        "n_probes": (base, tuned, "--n-probes", "3"),
        "already exists": (base, tuned, "--repairs", "--save-repair", empty),
        "add --repairs to --save-repair": (base, tuned, "--save-repair", empty),
        "add --repairs to --run": (base, tuned, "--run", empty),
        "--out": (base, tuned, "--out", base / "config.json"),
        "already holds diagnosis.json, and": (base, tuned, "--out", there),
        "'use_dora'": (base, changed(folders / "adapter", tmp_path / "dora", use_dora=True)),
        "only LoRA": (base, changed(folders / "adapter", tmp_path / "ia3", peft_type="IA3")),
        "no record": (base, tuned, "--repairs", "--run", empty),
        "none of these behaviors": (
            *(base, tuned, "--behaviors", "refusal", "--refusal-prefixes", "Sure"),
        ),
    }
    for said, given in cases.items():
        ran = run(*given, *([] if "--out" in map(str, given) else ["--out", tmp_path / "out"]))
        assert ran.exit_code == 1, (said, ran.output)
        assert said.strip("'") in " ".join((ran.output + ran.stderr).split()), said
    with pytest.raises(ConfigError, match="first, and the one after it second"):
        load_pair(str(base), str(base))
