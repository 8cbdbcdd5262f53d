"""The bench of guards: grounds, methods, runs, and what is concluded from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.guards_bench import analysis, command
from experiments.guards_bench.grounds import FRESH, GROUNDS, Ground, Stage, accuracy, loss
from experiments.guards_bench.methods import AUTO, METHODS, MIXING, NONE, Memory, Method
from experiments.guards_bench.page import _summary, write_page
from experiments.guards_bench.plan import Plan
from experiments.guards_bench.simulate import Look, Meter, Run, plain_seconds, run
from experiments.guards_bench.store import Store
from experiments.harness.preregistration import Preregistration
from experiments.transfer.pareto_front import hypervolume
from riprap import guards
from riprap.errors import ConfigError
from riprap.guards import Guard
from riprap.toy import batches

STORED = ("facts", "lists")  # their first training takes long
NEW = [ground.name for ground in FRESH]
QUICK = [name for name in GROUNDS if name not in (*STORED, *NEW, "smollm2")]
PLAN = Plan.of(Preregistration.named("guards_bench"))


class Short(Ground):
    """A ground of the bench, cut to a few steps."""

    def __init__(self, name: str, steps: int) -> None:
        self.whole, self.steps = GROUNDS[name], steps
        self.name = name  # type: ignore[misc]

    def start(self, seed: int) -> torch.nn.Module:
        return self.whole.start(seed)

    def stages(self, seed: int) -> list[Stage]:
        return [replace(stage, steps=self.steps) for stage in self.whole.stages(seed)]


@pytest.fixture(scope="module")
def short() -> Ground:
    return Short("small_buffer", 40)


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in STORED)]
)
def test_a_plain_run_learns_the_new_task_and_forgets_an_old_one(name: str) -> None:
    found = run(GROUNDS[name], NONE, METHODS[NONE], 0.0, 5)
    assert not found.failed
    first, last = found.looks[0], found.looks[-1]
    assert last.new > 0.85 and first.new < 0.3
    known = GROUNDS[name].start(5)
    oldest = GROUNDS[name].stages(5)[0].old
    assert min(last.old.values()) < min(accuracy(known, own.test) for own in oldest) - 0.15
    assert found.work == 1.0 == last.work
    assert found.replayed == found.acted == 0


@pytest.mark.parametrize("name", QUICK)
def test_what_is_tested_is_neither_monitored_nor_replayed(name: str) -> None:
    for stage in GROUNDS[name].stages(3):
        for own in stage.old:
            probes, pool, test = (
                {tuple(row) for row in rows.input_ids.tolist()}
                for rows in (own.probes, own.pool, own.test)
            )
            assert probes and pool and test
            assert not probes & pool and not test & pool and not test & probes


@pytest.mark.parametrize("name", QUICK)
def test_old_tasks_are_known_when_they_are_said_to_be(name: str) -> None:
    ground = GROUNDS[name]
    model = ground.start(4)
    for own in ground.stages(4)[0].old:
        assert accuracy(model, own.probes) >= 0.85
        assert accuracy(model, own.test) >= 0.75


def test_the_rows_of_the_wrong_buffer_are_unknown() -> None:
    ground = GROUNDS["wrong_buffer"]
    model = ground.start(4)
    assert all(accuracy(model, own.pool) < 0.4 for own in ground.stages(4)[0].old)


def test_no_task_can_keep_what_it_contradicts() -> None:
    (stage,) = GROUNDS["contradicting"].stages(0)
    assert torch.equal(stage.test.input_ids, stage.old[0].test.input_ids)
    assert not (stage.test.targets == stage.old[0].test.targets).any()


def test_a_guard_that_only_records_ends_where_the_plain_run_does(short: Ground) -> None:
    """So nothing of the bench itself, and nothing of the monitor, changes training."""
    shadow = Method(make=lambda m, v: guards.Replay(m.batches, loss=loss, shadow=True))
    plain, watched = run(short, NONE, METHODS[NONE], 0.0, 1), run(short, "shadow", shadow, 0.0, 1)
    assert not watched.failed and watched.acted == 0
    assert [(one.old, one.new) for one in watched.looks] == [
        (one.old, one.new) for one in plain.looks
    ]
    assert watched.work > 1.4  # the recorded guard did compute


def test_mixing_replaces_its_share_of_each_batch_at_no_more_work(short: Ground) -> None:
    found = run(short, "mixing_25", METHODS["mixing_25"], 0.25, 1)
    assert found.replayed == 40 * 16 and found.work == 1.0
    plain = run(short, NONE, METHODS[NONE], 0.0, 1)
    assert min(found.looks[-1].old.values()) > min(plain.looks[-1].old.values())


@pytest.mark.parametrize("name", ["replay", "replay_of_outputs", AUTO])
def test_replayed_rows_are_counted(name: str, short: Ground) -> None:
    drawn: list[int] = []

    def make(memory: Memory, value: float) -> Guard:
        made = METHODS[name].make
        assert made is not None
        guard = made(memory, value)
        leaf = next(part for part in guard.flatten() if isinstance(part, guards.Replay))
        gradient = leaf.examples.gradient

        def counted(*args: Any) -> Any:
            before = memory.replayed
            result = gradient(*args)
            drawn.append(memory.replayed - before)
            return result

        leaf.examples.gradient = counted  # type: ignore[method-assign]
        return guard

    found = run(short, name, replace(METHODS[name], make=make), METHODS[name].values[0], 1)
    assert not found.failed
    assert found.replayed == sum(drawn) > 0
    assert all(abs(count - 32) <= 1 for count in drawn)


def test_the_meter_weighs_backward_passes_and_skips_pauses() -> None:
    model = GROUNDS["small_buffer"].start(0)
    (stage,) = GROUNDS["small_buffer"].stages(0)
    batch = next(batches([stage.task], [10], 0))
    meter = Meter(model)
    loss(model, batch).backward()
    assert meter.work == 3 * 10 * 64
    accuracy(model, batch)
    assert meter.work == 4 * 10 * 64
    with meter.paused():
        before = meter.seconds
        loss(model, batch).backward()
        assert meter.seconds == before
    assert meter.work == 4 * 10 * 64
    meter.remove()
    loss(model, batch)
    assert meter.work == 4 * 10 * 64


def test_timing_leaves_the_model_alone() -> None:
    model = GROUNDS["small_buffer"].start(0)
    (stage,) = GROUNDS["small_buffer"].stages(0)
    before = [part.clone() for part in model.parameters()]
    assert plain_seconds(model, stage, 5) > 0
    assert all(map(torch.equal, before, model.parameters()))


def test_a_failure_is_a_result_that_says_why(short: Ground, tmp_path: Path) -> None:
    def refuse(memory: Memory, value: float) -> Guard:
        raise ConfigError("it needs an adapter")

    found = run(short, "kl", Method(make=refuse), 1.0, 0)
    assert found.failed == "ConfigError: it needs an adapter"
    plain = run(short, NONE, METHODS[NONE], 0.0, 0)
    page = write_page([plain, found], PLAN, "exploratory", tmp_path, "command")
    assert "- kl: ConfigError: it needs an adapter" in page.read_text()


def test_a_guard_that_cannot_hold_a_floor_says_so_in_the_run() -> None:
    found = run(Short("contradicting", 260), AUTO, METHODS[AUTO], METHODS[AUTO].values[0], 0)
    assert any("do not hold the score" in text for text in found.reasons)
    assert len(found.reasons) == len(set(found.reasons))


def test_every_guard_of_the_library_is_in_the_table() -> None:
    """But for what composes others, what needs adapters, and Freeze, which has no main number."""
    old = GROUNDS["small_buffer"].stages(0)[0].old
    made = {
        type(method.make(Memory(old, 0, "second"), method.values[0])).__name__
        for method in METHODS.values()
        if method.make is not None
    }
    every = {
        name
        for name in guards.__all__
        if isinstance(getattr(guards, name), type) and issubclass(getattr(guards, name), Guard)
    }
    assert every - made == {"Guard", "Chain", "OnAlert", "Scheduled", "OLoRA", "Freeze"}


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.make and n != AUTO])
def test_the_first_value_is_the_default_of_the_guard(name: str) -> None:
    method = METHODS[name]
    assert method.make is not None and len(set(method.values)) == 3
    old = GROUNDS["small_buffer"].stages(0)[0].old
    guard = method.make(Memory(old, 0, "second"), method.values[0])
    defaults = {own.name: own.default for own in fields(guard)}  # type: ignore[arg-type]
    default = defaults[method.knob]
    assert getattr(guard, method.knob) == method.values[0]
    assert default == method.values[0] or (
        default is None and method.knob in ("refresh", "directions")
    )


def points_of(rng: np.random.Generator, count: int) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in rng.random((count, 2)) * 1.1]


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_hypervolume_agrees_with_counting_cells(count: int) -> None:
    rng = np.random.default_rng(count)
    points = points_of(rng, count)
    size = 800
    middle = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(middle, middle)
    covered = np.zeros_like(x, dtype=bool)
    for kept, learned in points:
        covered |= (x <= kept) & (y <= learned)
    assert hypervolume(points) == pytest.approx(covered.mean(), abs=4 / size)


def a_run(
    method: str,
    worst: float,
    new: float,
    seed: int = 0,
    value: float | None = None,
    ground: str = "small_buffer",
    reasons: tuple[str, ...] = (),
) -> Run:
    """A run of two looks: the first has learned nothing and lost nothing."""
    first = Look(0, 0.0, 0.0, {"a": 1.0, "b": 1.0}, 0.0)
    seconds = 1.1 if method == NONE else 2.2
    last = Look(10, 1.0, seconds, {"a": worst, "b": 0.9}, new)
    own = METHODS[method].values[0] if value is None else value
    return Run(ground, method, own, seed, [first, last], 1.0, seconds, 10, reasons=list(reasons))


def test_rows_compare_with_the_plain_run_of_the_same_seed() -> None:
    runs = [a_run(NONE, 0.2, 0.8), a_run("kl", 0.6, 0.4), a_run("kl", 0.9, 0.4, value=3.0)]
    plain, kl, strong = analysis.rows(runs, PLAN)
    assert (plain.end[0].worst, plain.end[0].new) == (0.2, 1.0)
    assert kl.end[0].new == 0.5 and kl.area() == pytest.approx(0.3)
    assert kl.time == [2.0] and plain.time == [1.0]
    assert kl.at_time[0].area == 0  # its end lies beyond the budget of time
    assert plain.at_time[0].area == 0.2
    together = analysis.fronts([plain, kl, strong])
    assert together["small_buffer", "kl"] == pytest.approx(0.45)
    assert strong.label == "kl (3)"


def test_harm_is_called_beyond_noise_only() -> None:
    def below(gaps: list[float]) -> list[str]:
        runs = [a_run(NONE, 0.5, 1.0, seed) for seed in range(len(gaps))]
        runs += [a_run("kl", 0.5 + gap, 1.0, seed) for seed, gap in enumerate(gaps)]
        return next(row for row in analysis.rows(runs, PLAN) if row.method == "kl").below

    assert below([-0.3]) == ["worst", "mean"] and not below([-0.04])
    assert below([-0.10, -0.11, -0.12]) and not below([-0.3, 0.1, 0.0])
    assert not below([-0.01, -0.01, -0.01]) and not below([0.2, 0.2, 0.2])


def test_less_learning_is_harm_too() -> None:
    runs = [a_run(NONE, 0.5, 0.9), a_run("kl", 0.9, 0.6)]
    assert analysis.rows(runs, PLAN)[1].below == ["new"]


def test_auto_guard_is_ranked_and_set_beside_each_share() -> None:
    runs = [
        a_run(NONE, 0.1, 1.0),
        a_run(AUTO, 0.5, 0.9, reasons=("old examples do not hold it",)),
        a_run("kl", 0.85, 1.0),
        *(a_run(name, 0.2 * at, 1.0) for at, name in enumerate(MIXING, 1)),
    ]
    (one,) = analysis.standings(analysis.rows(runs, PLAN))
    assert one.rank == 4 and one.ahead == ["kl", "mixing_50", "mixing_25"]
    assert list(one.over.values()) == [True, True, False, False]
    assert one.learned == pytest.approx(0.9) and "do not hold" in one.reason


def test_only_methods_that_ran_everywhere_are_ranked() -> None:
    grounds = ("high_rate", "small_buffer")
    runs = [a_run(NONE, 0.1, 1.0, ground=ground) for ground in grounds]
    runs += [a_run("kl", 0.6, 1.0, ground=ground) for ground in grounds]
    runs += [a_run("gem", 0.8, 1.0, ground="high_rate")]
    found = _summary(analysis.rows(runs, PLAN), grounds)
    assert [(row["method"], row["mean rank"]) for row in found] == [
        ("kl", "1.0"),
        (NONE, "2.0"),
        ("gem", "–"),
    ]


def test_the_search_takes_the_best_value_over_grounds() -> None:
    areas = {1.0: (0.2, 0.5), 0.3: (0.9, 0.1), 3.0: (0.6, 0.6)}
    runs = [a_run(NONE, 0.1, 1.0, ground=ground) for ground in ("high_rate", "small_buffer")]
    for value, (first, second) in areas.items():
        runs.append(a_run("kl", first, 1.0, value=value, ground="high_rate"))
        runs.append(a_run("kl", second, 1.0, value=value, ground="small_buffer"))
    assert analysis.best_values(analysis.rows(runs, PLAN)) == {"kl": 3.0}
    del runs[-1]  # then only the first ground has every value
    assert analysis.best_values(analysis.rows(runs, PLAN)) == {"kl": 0.3}


def test_parts_are_apart() -> None:
    explored = {(ground, seed) for ground, _, _, seed in PLAN.jobs("exploratory")}
    kept_back = {(ground, seed) for ground, _, _, seed in PLAN.jobs("confirmatory")}
    assert not explored & kept_back
    named = set(PLAN.explored) | set(PLAN.kept_back)
    assert set(PLAN.fresh) == set(NEW)
    assert {ground for ground, _ in kept_back} == named
    assert {ground for ground, _ in explored} == set(PLAN.explored)
    assert set(GROUNDS) == named | set(NEW)


def test_every_knob_is_searched_equally() -> None:
    jobs = PLAN.jobs("exploratory", search=True)
    for name, method in METHODS.items():
        tried = {value for _, own, value, _ in jobs if own == name}
        searched = method.make or method.adapt
        assert tried == set(method.values) and len(tried) == (3 if searched else 1)
    assert len({seed for *_, seed in jobs}) == 1


def test_a_store_forgets_a_line_that_was_cut_off(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs.jsonl")
    first, second = a_run(NONE, 0.1, 1.0), a_run("kl", 0.5, 1.0)
    store.add(first)
    with store.path.open("a") as file:
        file.write(json.dumps(second.document())[:50])
    assert store.load() == {first.key: first}
    store.add(second)
    assert store.load() == {first.key: first, second.key: second}
    again = replace(first, work=3.0)
    store.add(again)
    assert store.load()[first.key] == again


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Spare the start of processes."""
    monkeypatch.setattr(
        command, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers)
    )
    yield


def arguments(out: Path, *more: str) -> list[str]:
    only = ["--only", "small_buffer", NONE, "mixing_25"]
    return [*only, "--seeds", "1", "--jobs", "1", "--out", str(out), *more]


@pytest.mark.usefixtures("in_threads")
def test_an_interrupted_bench_goes_on_where_it_stopped(tmp_path: Path) -> None:
    assert command.main(arguments(tmp_path)) == 0
    file = tmp_path / "exploratory.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 2 and (tmp_path / "exploratory.png").stat().st_size > 1000
    page = (tmp_path / "exploratory.md").read_text()
    assert "| none |" in page and "| mixing_25 |" in page
    assert command.main(arguments(tmp_path)) == 0
    assert file.read_text().splitlines(keepends=True) == lines  # nothing was run again
    file.write_text(lines[0])
    assert command.main(arguments(tmp_path)) == 0
    resumed = file.read_text().splitlines(keepends=True)
    assert resumed[0] == lines[0] and len(resumed) == 2
    looks = [json.loads(one)["looks"][-1] for one in (lines[1], resumed[1])]
    assert looks[0]["old"] == looks[1]["old"] and looks[0]["new"] == looks[1]["new"]
    assert command.main(arguments(tmp_path, "--again")) == 0
    assert len(file.read_text().splitlines()) == 4


@pytest.mark.usefixtures("in_threads")
def test_the_confirmatory_half_is_recorded_but_not_shown_before_it_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = Preregistration.named("guards_bench")
    assert terms.study is not None

    def use(opened: bool) -> None:
        study = (terms.study or {}) | {"opened": opened}
        own = terms.model_copy(update={"study": study, "hash": None, "amendments": []}).freeze()
        monkeypatch.setattr(command.Preregistration, "named", lambda name: own)

    use(opened=False)
    assert command.main(arguments(tmp_path, "--part", "confirmatory")) == 0
    assert "no page is made" in capsys.readouterr().out
    assert (tmp_path / "confirmatory.jsonl").exists()
    assert not (tmp_path / "confirmatory.md").exists()
    use(opened=True)
    assert command.main(arguments(tmp_path, "--part", "confirmatory")) == 0
    assert (tmp_path / "confirmatory.md").exists()
    with pytest.raises(SystemExit):
        command.main(arguments(tmp_path, "--part", "confirmatory", "--search"))
