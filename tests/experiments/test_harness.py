"""The harness: cached runs, jobs, pages, the overlap of seeds, and the command line."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.__main__ import main
from experiments.harness import jobs as module
from experiments.harness import study as study_module
from experiments.harness.cache import CachedRun, cached
from experiments.harness.jobs import JobError, job_name, run_jobs
from experiments.harness.markdown import fill
from experiments.harness.plan import StudyPlan, require_world
from experiments.harness.preregistration import Preregistration, PreregistrationError
from experiments.harness.study import load_study, ranges, run_study, study_names
from experiments.steep_directions.plan import Plan
from experiments.steep_directions.simulate import simulate
from riprap.errors import MissingExtraError

SMALL = {"steps": 2, "every": 1, "k": 2, "most": 3, "draws": 1, "conditions": ["null", "C"]}
SMALL |= {"confirmatory": [7, 8, 9], "exploratory": [1000]}


def small_terms() -> Preregistration:
    terms = Preregistration.named("steep_directions")
    study = (terms.study or {}) | SMALL
    return terms.model_copy(update={"study": study, "hash": None}).freeze()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and as many threads afterwards as before."""
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    yield tmp_path  # type: ignore[misc]
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Part:
    value: float


@dataclass
class Result:
    name: str
    parts: list[Part]
    pair: tuple[int, Part]
    by_step: dict[int, float]
    nothing: float | None = None
    tags: list[str] = field(default_factory=list)


CALLS: list[Any] = []


@cached("study/{name}-{plan.terms:.4}/{value:g}.json")
def make(name: str, value: float, plan: Any) -> Result:
    CALLS.append(name)
    return Result(name, [Part(value), Part(np.pi)], (3, Part(1e-300)), {5: float("nan"), 0: 1.0})


@cached("folder/{seed}/result.npz", own_folder=True)
def fill_folder(seed: int) -> dict[str, np.ndarray]:
    folder = fill_folder.path(seed).parent
    assert not folder.exists()  # what an interrupted run left is removed
    folder.mkdir(parents=True)
    (folder / "record").write_text(str(seed))
    return {"own": np.arange(seed), "other": np.ones((2, 3), dtype=np.float32)}


def test_a_dataclass_is_written_once_and_read_back_exactly(here: Path) -> None:
    plan = Plan.of(small_terms())
    CALLS.clear()
    first = make("a, b c", 0.25, plan)
    again = make("a, b c", 0.25, plan=plan)
    assert CALLS == ["a, b c"]
    assert repr(first) == repr(again)
    assert isinstance(again.parts[1], Part) and again.pair == (3, Part(1e-300))
    assert list(again.by_step) == [5, 0]
    assert make.path("a, b c", 0.25, plan) == Path(f"runs/study/a_b_c-{plan.terms[:4]}/0.25.json")
    assert [file.name for file in here.rglob("*.*")] == ["0.25.json"]


def test_arrays_and_a_folder_of_their_own(here: Path) -> None:
    left_over = here / "runs/folder/4/record"
    left_over.parent.mkdir(parents=True)
    left_over.write_text("half")
    arrays = fill_folder(4)
    assert arrays["own"].tolist() == [0, 1, 2, 3] and arrays["other"].dtype == np.float32
    assert left_over.read_text() == "4"
    fill_folder(4)  # else it would find its folder
    data = fill_folder.pack(4)
    fill_folder.unpack(data, 5)
    assert fill_folder(5)["own"].tolist() == [0, 1, 2, 3]
    assert (here / "runs/folder/5/record").read_text() == "4"


def test_a_result_travels_as_one_file(here: Path) -> None:
    plan = Plan.of(small_terms())
    make("one", 1, plan)
    make.unpack(make.pack("one", 1, plan), "two", 1, plan)
    assert make("two", 1, plan).name == "one"


def test_a_job_is_named_by_its_arguments_without_plans() -> None:
    terms = small_terms()
    assert job_name(simulate, ("C", 7, terms)) == "steep_directions: simulate(C, 7)"
    condition = (
        load_study("shared_circuits")
        .plan.of(Preregistration.named("shared_circuits"))
        .conditions()[-1]
    )
    assert "C_disjoint, " in job_name(simulate, (condition, 1, terms))


@pytest.mark.slow
def test_a_failing_job_is_reported_with_its_name(here: Path) -> None:
    jobs = [("no such task", 7, small_terms())]
    with pytest.raises(JobError, match=r"simulate\(no such task, 7\) failed: KeyError"):
        run_jobs(simulate, jobs, workers=1)


def test_cached_jobs_start_no_process(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_locally", lambda *_: pytest.fail("a process was started"))
    plan = Plan.of(small_terms())
    for name in "abc":
        make(name, 1, plan)
    results = run_jobs(make, [(name, 1, plan) for name in "cab"])
    assert [result.name for result in results] == list("cab")


def test_without_ray_one_sentence_says_what_to_install(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'riprap\[ray\]'"):
        run_jobs(simulate, [("C", 7, small_terms())], ray="auto")


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_bits_as_local_processes(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a local cluster of two workers; files of runs come back to the working directory."""
    pytest.importorskip("ray")
    terms = small_terms()
    jobs = [(condition, seed, terms) for seed in (7, 8) for condition in ("null", "C")]
    results = {}
    for name, ray in (("processes", None), ("cluster", "local")):
        (here / name).mkdir()
        monkeypatch.chdir(here / name)
        results[name] = run_jobs(simulate, jobs, workers=2, ray=ray)
        assert all(simulate.path(*job).exists() for job in jobs)
    for own, other in zip(*results.values(), strict=True):
        assert own.keys() == other.keys()
        assert all(np.array_equal(own[key], other[key], equal_nan=True) for key in own)
        assert all(own[key].tobytes() == other[key].tobytes() for key in own)
    with pytest.raises(JobError, match=r"simulate\(no such task, 7\) failed: KeyError"):
        run_jobs(simulate, [("no such task", 7, terms)], workers=2, ray="local")


def test_seeds_that_overlap_are_refused_for_every_plan() -> None:
    plans = 0
    for name in study_names():
        study = load_study(name)
        if not study.preregistered:
            continue
        terms = Preregistration.named(name)
        plan = study.plan.of(terms)
        assert not set(plan.exploratory) & set(plan.reported_seeds())
        for seed in {plan.confirmatory[0], plan.reported_seeds()[-1]}:
            changed = (terms.study or {}) | {"exploratory": [seed]}
            with pytest.raises(PreregistrationError, match=rf"\[{seed}\] are both"):
                study.plan.of(terms.model_copy(update={"study": changed}))
        plans += 1
    assert plans == 16


def test_every_study_has_its_files() -> None:
    names = study_names()
    assert len(names) == 17
    for name in names:
        study = load_study(name)
        assert study.name == name and issubclass(study.plan, StudyPlan)
        for stage in (study, *study.stages.values()):
            text = (study_module.FOLDER / name / stage.template).read_text(encoding="utf-8")
            assert text.startswith("# ") and "{made}" in text
        assert all(isinstance(s.simulate, CachedRun) for s in (study,))


def test_a_plan_for_another_world_is_refused() -> None:
    require_world("a" * 64, "a" * 64)
    with pytest.raises(PreregistrationError, match="made for world aaaaaaaaaaaa…, this one is b"):
        require_world("a" * 64, "b" * 64)


def test_a_page_is_filled_and_its_paragraphs_unwrapped(tmp_path: Path) -> None:
    template = tmp_path / "page.md"
    template.write_text("# Title\n\ntwo\nlines {plan:.2f}\n- a\n- b\n\n{rows}\n\n| x |\n| --- |\n")
    page = fill(template, plan=0.126, rows=[{"a": 1, "b": "x|y"}])
    assert page == (
        "# Title\n\ntwo lines 0.13\n- a\n- b\n\n| a | b |\n| --- | --- |\n| 1 | x\\|y |\n\n"
        "| x |\n| --- |\n"
    )


def test_consecutive_seeds_are_a_range() -> None:
    assert ranges([7, 3, 1, 2]) == "1 to 3, 7"
    assert ranges([4, 5, 9]) == "4, 5, 9"


@pytest.mark.slow
def test_a_study_from_its_command_to_its_page(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terms = small_terms()
    monkeypatch.setattr(study_module.Preregistration, "named", lambda name: terms)
    arguments = ["steep_directions", "--workers", "1", "--out", "out"]
    assert main([*arguments, "--exploratory", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["out"] == "out" and len(summary["claims"]) == 2
    page = (here / "out/EXPLORED.md").read_text()
    assert "Made by `python -m experiments steep_directions --exploratory` at commit" in page
    assert f"preregistration `steep_directions` `{terms.hash}`, seeds 1000," in page
    assert (here / "out/steep.png").stat().st_size > 1000
    monkeypatch.setattr(module, "_locally", lambda *_: pytest.fail("it was simulated again"))
    assert main([*arguments, "--exploratory"]) == 0
    assert "results" not in capsys.readouterr().out
    changed = terms.model_copy(update={"study": (terms.study or {}) | {"steps": 3}})
    monkeypatch.setattr(study_module.Preregistration, "named", lambda name: changed)
    with pytest.raises(PreregistrationError, match="was changed after it was frozen"):
        run_study(load_study("steep_directions"), here / "out")
    assert main(arguments) == 1
    assert "was changed after it was frozen" in capsys.readouterr().err


def test_the_command_line_lists_and_verifies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in (*study_names(), "guards_bench"))
    assert main(["verify"]) == 0
    assert capsys.readouterr().out.count("verified") == 19
    assert main(["verify", "no_such_study"]) == 1
    assert "no preregistration 'no_such_study'; available: " in capsys.readouterr().err
    for arguments in (["transfer", "--search", "--front"], ["no_such_study"], []):
        with pytest.raises(SystemExit):
            main(arguments)
    capsys.readouterr()


def test_terms_are_frozen_and_amended_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draft = small_terms().model_copy(update={"hash": None})
    monkeypatch.setattr("experiments.__main__.TERMS", tmp_path)
    monkeypatch.setattr(Preregistration, "folder", tmp_path)
    draft.save(tmp_path / "mine.yaml")
    assert main(["verify", "mine"]) == 1
    assert "is not frozen" in capsys.readouterr().err
    assert main(["freeze", "mine"]) == 0
    assert main(["verify", "mine"]) == 0
    changed = draft.model_copy(update={"study": (draft.study or {}) | {"steps": 5}})
    changed.save(tmp_path / "changed.yml")
    options = ["--changed", str(tmp_path / "changed.yml"), "--reason", "longer runs"]
    assert main(["amend", "mine", *options]) == 0
    amended = Preregistration.load(tmp_path / "mine.yaml")
    assert (amended.study or {})["steps"] == 5
    assert amended.amendments[0].reason == "longer runs"
