"""Fast–slow training: TRL's own GRPO, with rollouts over a population that evolves."""

from __future__ import annotations

import copy
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from fastslow.small import (
    CHAT,
    GRAMMAR,
    PROBLEMS,
    SENTENCES,
    TOKENIZER,
    make_trainer,
    plain,
    reward,
    weights,
)
from invariants.test_no_trace import same
from riprap import Behavior, Monitor
from riprap.fastslow import Candidate, EditGrammar, FastSlow, Request
from riprap.integrations.hf import MonitorCallback
from riprap.record import Reader, instructions_of
from tiny import PROMPTS, make_llama

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL: dict[str, Any] = {"proposer": GRAMMAR, "every": 2, "problems": 6, "minibatch": 2}


def trained(trainer: Any) -> list[Any]:
    torch.manual_seed(7)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses and any(losses)
    return [weights(trainer), losses, torch.get_rng_state()]


@pytest.mark.parametrize("rows", [PROBLEMS, CHAT], ids=["text", "chat"])
@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}])
def test_one_empty_instruction_is_plain_grpo(
    rows: list[dict[str, Any]], options: dict[str, Any], tmp_path: Path
) -> None:
    ends = []
    for attached in (False, True):
        trainer = make_trainer(tmp_path, rows, **options)
        if attached:
            fast = FastSlow(trainer, [""], every=None)
        ends.append(trained(trainer))
    assert same(*ends)
    assert fast.rollouts == fast.training_rollouts == 4 * 8


def test_one_instruction_is_grpo_on_problems_that_begin_with_it(tmp_path: Path) -> None:
    longer = [{**row, "prompt": "paint the car\n" + row["prompt"]} for row in PROBLEMS]
    plain_trainer, trainer = make_trainer(tmp_path, longer), make_trainer(tmp_path)
    FastSlow(trainer, ["paint the car"], every=None)
    ends = [trained(plain_trainer), trained(trainer)]
    assert same(*ends)
    other = make_trainer(tmp_path)
    FastSlow(other, ["sure here"], every=None)
    assert not same(ends[0][0], trained(other)[0])


def test_the_rollouts_of_each_problem_are_spread_over_the_population(tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []

    def noting(prompts: Any, instruction: Any, **columns: Any) -> list[float]:
        seen.extend(zip(prompts, instruction, strict=True))
        return reward(**columns)

    trainer = make_trainer(tmp_path, reward_funcs=noting)
    FastSlow(trainer, SENTENCES[:2], every=None)
    trainer.train()
    groups = [seen[start : start + 4] for start in range(0, len(seen), 4)]
    assert len(groups) == 8
    for group in groups:
        assert len({problem for problem, _ in group}) == 1
        assert group[0][0] in {row["prompt"] for row in PROBLEMS}  # without an instruction
        assert [own for _, own in group] == SENTENCES[:2] * 2


def test_three_instructions_share_the_rollouts_as_well_as_they_can(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    fast = FastSlow(trainer, SENTENCES[:3], **SMALL)
    trainer.model.train()
    fast._last = 0  # no cycle is due
    used = [fast._roll_out(["what is"] * 8, trainer)["instruction"] for _ in range(3)]
    assert [sum(own.count(text) for own in used) for text in SENTENCES[:3]] == [8, 8, 8]
    assert [own[0] for own in used] == [SENTENCES[0], SENTENCES[2], SENTENCES[1]]


def test_advantages_are_per_problem_over_the_rollouts_of_all_instructions(tmp_path: Path) -> None:
    """One instruction is rewarded: its rollouts are above the mean, the other's below."""

    def by_instruction(instruction: Any, **_: Any) -> list[float]:
        return [float(own == SENTENCES[0]) for own in instruction]

    found = []
    trainer = make_trainer(tmp_path, reward_funcs=by_instruction, scale_rewards="none")
    FastSlow(trainer, SENTENCES[:2], every=None)
    inner = trainer._generate_and_score_completions

    def noting(inputs: Any) -> Any:
        found.append(inner(inputs))
        return found[-1]

    trainer._generate_and_score_completions = noting
    trainer.train()
    assert len(found) == 4
    for batch in found:
        assert batch["advantages"].tolist() == [0.5, -0.5] * 4


def test_every_text_that_the_model_generates_is_counted(tmp_path: Path) -> None:
    def asking(request: Request) -> str:
        request.generate("what is a better one", 3)
        return GRAMMAR(request)

    trainer = make_trainer(tmp_path)
    fast = FastSlow(trainer, ["", "one two"], **SMALL | {"proposer": asking})
    generated = 0
    inner = trainer.model.generate

    def counting(input_ids: Any, **options: Any) -> Any:
        nonlocal generated
        generated += len(input_ids)
        return inner(input_ids=input_ids, **options)

    trainer.model.generate = counting
    trainer.train()
    assert [cycle.step for cycle in fast.cycles] == [0, 2]
    assert fast.training_rollouts == 4 * 8
    assert fast.cycle_rollouts == sum(cycle.rollouts for cycle in fast.cycles)
    assert fast.rollouts == generated
    for cycle in fast.cycles:
        assert cycle.proposals > 0
        assert 48 <= cycle.rollouts <= 48 + 6 + 2  # the last proposal ends


def test_cycles_leave_training_untouched(tmp_path: Path) -> None:
    """With a proposer that has no idea, the population stays, and so must all else."""
    ends = []
    for every in (None, 1):
        trainer = make_trainer(tmp_path, model=make_llama(attention_dropout=0.2))
        fast = FastSlow(
            trainer,
            SENTENCES[:1],
            **SMALL | {"every": every, "proposer": lambda request: request.instruction},
        )
        ends.append(trained(trainer))
    assert len(fast.cycles) == 4
    assert all(cycle.rollouts == 6 for cycle in fast.cycles)
    assert same(*ends)


@pytest.mark.parametrize(
    ("options", "every", "steps"),
    [
        ({"gradient_accumulation_steps": 2}, 2, [0, 2, 4, 6]),
        ({"num_iterations": 2}, 3, [0, 4, 6]),
        (
            {
                "gradient_accumulation_steps": 2,
                "steps_per_generation": 4,
                "num_iterations": 2,
                "per_device_train_batch_size": 4,
            },
            2,
            [0, 4],
        ),
    ],
    ids=["accumulation", "iterations", "all"],
)
def test_a_cycle_runs_just_before_rollouts_that_use_its_population(
    options: dict[str, Any], every: int, steps: list[int], tmp_path: Path
) -> None:
    """TRL generates once in several steps; a cycle in between would be wasted."""
    seen: list[tuple[int, set[str]]] = []
    trainer = make_trainer(tmp_path, max_steps=8, **options)
    fast = FastSlow(trainer, [""], **SMALL | {"every": every})
    inner = fast._rollouts.generate

    def noting(prompts: list[Any]) -> Any:
        seen.append(
            (trainer.state.global_step, {str(prompt).split("\nwhat")[0] for prompt in prompts})
        )
        assert fast.cycles[-1].step <= trainer.state.global_step
        return inner(prompts)

    fast._rollouts.generate = noting  # type: ignore[method-assign]
    trainer.train()
    assert [cycle.step for cycle in fast.cycles] == steps
    generated = dict(seen)
    for cycle in fast.cycles:
        kept = {c.text for c in cycle.candidates if c.kept} - {""}
        assert kept <= generated[cycle.step]
    assert fast.training_rollouts == len(seen) * trainer.args.generation_batch_size


def test_instructions_alone_evolve_with_the_weights_as_they_are(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    fast = FastSlow(trainer, [""], **SMALL)
    before = weights(trainer)
    fast.evolve(rollouts=100)
    assert same(before, weights(trainer))
    assert 100 <= fast.rollouts == fast.cycle_rollouts <= 160
    assert fast.training_rollouts == 0 < len(fast.cycles)
    assert fast.population != [""]


@pytest.mark.parametrize("rows", [PROBLEMS, CHAT], ids=["text", "chat"])
def test_a_cycle_scores_the_weights_as_they_are(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """Almost greedy samples: what a cycle says of an instruction can be generated again."""
    seen: list[Request] = []

    def noting(request: Request) -> str:
        seen.append(request)
        return GRAMMAR(request)

    trainer = make_trainer(tmp_path, rows, temperature=1e-4)
    FastSlow(trainer, ["one two"], **SMALL | {"proposer": noting}).cycle()
    first = {(r.instruction, str(e.problem)): e.completion for r in seen for e in r.examples}
    for request in seen:
        for example in request.examples:
            if isinstance(example.problem, str):
                ids = TOKENIZER(f"{request.instruction}\n{example.problem}", return_tensors="pt")
            else:
                turns = [{"role": "system", "content": request.instruction}, *example.problem]
                turns = example.problem if not request.instruction else turns
                ids = TOKENIZER.apply_chat_template(
                    turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
                )
            out = trainer.model.generate(**ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
            start = ids["input_ids"].shape[1]
            said = TOKENIZER.decode(out[0, start:], skip_special_tokens=True)
            assert example.completion == said
            [right] = reward([said], [example.row["answer"]])
            assert example.reward == pytest.approx(right)
    assert len(first) > 2
    seen.clear()
    with torch.no_grad():
        trainer.model.lm_head.weight.neg_()
    FastSlow(make_trainer(tmp_path, rows), [""], every=None)  # another trainer's rollouts
    trainer.rollout_func = None
    FastSlow(trainer, ["one two"], **SMALL | {"proposer": noting}).cycle()
    again = {(r.instruction, str(e.problem)): e.completion for r in seen for e in r.examples}
    both = first.keys() & again.keys()
    assert both and all(first[key] != again[key] for key in both)


def of_instruction(instruction: list[str], **_: Any) -> list[float]:
    """Rewards that text alone can raise: for two lines, against the four others."""
    good, lines = set(SENTENCES[:2]), [text.split("\n") for text in instruction]
    return [sum(1.0 if line in good else -0.5 for line in own if line) for own in lines]


@pytest.mark.parametrize("seed", range(3))
def test_selection_finds_the_best_instruction_and_chance_does_not(
    seed: int, tmp_path: Path
) -> None:
    means, rollouts = {}, {}
    for select in ("pareto", "random"):
        trainer = make_trainer(tmp_path, reward_funcs=of_instruction)
        fast = FastSlow(trainer, [""], select=select, seed=seed, **SMALL)
        for _ in range(6):
            fast.cycle()
        kept = [c for c in fast.cycles[-1].candidates if c.kept]
        assert [c.text for c in kept] == fast.population
        means[select] = sum(c.score for c in kept) / len(kept)
        rollouts[select] = fast.rollouts
    assert means["pareto"] == 2.0
    assert means["random"] < 1.0
    assert abs(rollouts["random"] - rollouts["pareto"]) <= 6 * 8


def test_the_lineage_of_the_population_goes_back_to_what_was_given(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, reward_funcs=of_instruction)
    fast = FastSlow(trainer, ["", "one two"], **SMALL)
    for _ in range(4):
        fast.cycle()
    known: dict[int, Candidate] = {}
    for cycle in fast.cycles:
        for candidate in cycle.candidates:
            assert known.setdefault(candidate.id, candidate).text == candidate.text
            assert len(candidate.scores) == len(cycle.problems) == 6
            assert candidate.kept <= candidate.on_front
    assert sorted(known) == list(range(len(known)))
    assert len({c.text for c in known.values()}) == len(known) > 3
    assert {c.text for c in known.values() if c.parent is None} == {"", "one two"}
    for candidate in known.values():  # the grammar edits one line
        if candidate.parent in known:
            lines, before = candidate.text.split("\n"), known[candidate.parent].text.split("\n")
            assert abs(len([x for x in lines if x]) - len([x for x in before if x])) <= 1
    drawn = {tuple(cycle.problems) for cycle in fast.cycles}
    assert len(drawn) > 1


def test_what_a_cycle_rejected_is_said_with_the_scores(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, reward_funcs=of_instruction)
    fast = FastSlow(trainer, [""], **SMALL)
    known = {0: ""}
    for _ in range(3):
        cycle = fast.cycle()
        known |= {c.id: c.text for c in cycle.candidates}
        for own in cycle.rejected:
            assert set(own.problems) <= set(cycle.problems) and len(own.problems) == 2
            for text, scores in ((own.text, own.scores), (known[own.parent], own.parent_scores)):
                assert scores == of_instruction([text] * 2)
            assert sum(own.scores) <= sum(own.parent_scores)  # type: ignore[arg-type]
    lost = {own.text for cycle in fast.cycles for own in cycle.rejected} - {*known.values()}
    assert len(lost) > 5
    assert not lost & {*fast.state_dict()["population"]["known"]}
    assert not any(cycle["rejected"] for cycle in fast.state_dict()["cycles"])


def test_the_progress_of_a_cycle_is_shown(tmp_path: Path, capfd: Any) -> None:
    seen: list[tuple[int, int]] = []
    fast = FastSlow(make_trainer(tmp_path, disable_tqdm=False), [""], **SMALL)
    fast.cycle()
    assert "cycle 1:" in capfd.readouterr().err
    fast.progress = lambda done, budget: seen.append((done, budget))
    cycle = fast.cycle()
    assert "cycle 2:" not in capfd.readouterr().err
    done = [own for own, _ in seen]
    assert len(done) > 3 and done == sorted(done) and done[-1] == cycle.rollouts
    assert {budget for _, budget in seen} == {48}

    def closed(done: int, budget: int) -> None:
        raise BrokenPipeError("nobody reads")

    fast.progress = closed
    with pytest.warns(UserWarning, match="not shown any more: BrokenPipeError: nobody reads"):
        assert fast.cycle().rollouts >= 48


def test_a_resumed_training_goes_on_as_if_it_had_not_been_interrupted(tmp_path: Path) -> None:
    def build() -> tuple[Any, FastSlow]:
        trainer = make_trainer(tmp_path, max_steps=6, save_strategy="steps", save_steps=3)
        return trainer, FastSlow(trainer, [""], **SMALL)

    trainer, whole = build()
    end = trained(trainer)
    trainer, resumed = build()
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state_dict() == whole.state_dict()
    assert [cycle.step for cycle in resumed.cycles] == [0, 2, 4]
    assert same(end[0], weights(trainer))


def test_the_population_of_the_best_checkpoint_is_restored_with_its_weights(
    tmp_path: Path,
) -> None:
    """The evaluation likes the first checkpoint, and training another instruction in each cycle."""

    def falling(prompts: Any, instruction: Any, trainer_state: Any, **_: Any) -> list[float]:
        if not trainer.model.training and len(prompts) == 4:
            return [-float(trainer_state.global_step)] * len(prompts)
        return [float(len(own)) for own in instruction]

    trainer = make_trainer(
        tmp_path,
        reward_funcs=falling,
        eval_dataset=Dataset.from_list(PROBLEMS[:4]),
        num_generations_eval=1,
        per_device_eval_batch_size=4,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_reward",
        greater_is_better=True,
    )
    fast = FastSlow(trainer, [""], **SMALL)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    first, last = ([c.text for c in own.candidates if c.kept] for own in fast.cycles)
    assert fast.population == first != last
    assert fast.state_dict()["population"]["texts"] == first
    assert fast.training_rollouts == 4 * 8


def test_a_rollout_func_that_was_taken_away_is_said(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    FastSlow(trainer, [""], **SMALL)
    trainer.rollout_func = None
    with pytest.raises(Exception, match="rollout_func is no longer that of FastSlow"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_checkpoint_without_a_population_is_said(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=2)
    trainer.train()
    trainer = make_trainer(tmp_path)
    fast = FastSlow(trainer, [""], **SMALL)
    with pytest.warns(UserWarning, match="the checkpoint has no population"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [cycle.step for cycle in fast.cycles] == [2]


def test_a_state_survives_json_and_is_refused_elsewhere(tmp_path: Path) -> None:
    fast = FastSlow(make_trainer(tmp_path), [""], **SMALL)
    fast.cycle()
    state = plain(fast.state_dict())
    other = FastSlow(make_trainer(tmp_path), [""], **SMALL)
    other.load_state_dict(copy.deepcopy(state))
    assert other.state_dict() == fast.state_dict()
    assert repr(other) == repr(fast)
    fast.cycle(), other.cycle()
    assert other.state_dict() == fast.state_dict()
    fixed = FastSlow(make_trainer(tmp_path), [""], **SMALL | {"every": 3})
    with pytest.raises(Exception, match="the state is of a run with every=2, and this one has 3"):
        fixed.load_state_dict(state)
    given = FastSlow(make_trainer(tmp_path), ["one two"], **SMALL)
    with pytest.raises(Exception, match=r"a run with population=\[''\], and this one has \['one t"):
        given.load_state_dict(state)
    for wrong in ({}, {**state, "cycles": [{}]}, {**state, "population": {"texts": []}}):
        with pytest.raises(Exception, match="this is no state of FastSlow"):
            other.load_state_dict(wrong)


def of_words() -> Behavior:
    ids = torch.randint(6, 44, (8, 6), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        targets = make_llama(scale=8.0).eval()(ids).logits[:, -1].argmax(-1)
    return Behavior.next_token("words", ids, targets)


@pytest.mark.parametrize("loss_type", ["cispo", "dapo"])
def test_a_monitor_changes_nothing_and_records_the_cycles(loss_type: str, tmp_path: Path) -> None:
    ends, states = [], []
    refusal = Behavior.response_prefix("refusal", TOKENIZER, PROMPTS, ["sorry", "no"])
    monitor = Monitor([of_words(), refusal], probe_every=2, run_dir=tmp_path / "run")
    for own, callbacks in ((None, []), (monitor, [MonitorCallback(monitor)])):
        trainer = make_trainer(tmp_path, callbacks=callbacks, loss_type=loss_type)
        fast = FastSlow(trainer, [""], **SMALL, monitor=own)
        ends.append(trained(trainer))
        states.append(fast.state_dict())
    assert same(*ends)
    assert states[0] == states[1]
    history = monitor.history()
    assert "ERROR" not in set(history.state)
    margins = history[(history.signal == "margin") & (history.behavior == "words")]
    assert sorted(margins.step) == [0, 1, 2, 3, 4]
    assert margins.value.nunique() > 1
    predicted = history[(history.signal == "interference") & (history.value.abs() > 0)]
    assert set(predicted.step) == {1, 2, 3, 4}
    monitor.record.close()
    with Reader(tmp_path / "run") as reader:
        events = [event for event in reader.events() if event["kind"] == "fast_cycle"]
        shown = instructions_of(events)
    assert shown is not None and shown.steps == {1: 0, 2: 2}
    assert [shown.evaluated[own].text for own in shown.population] == fast.population
    assert [event["step"] for event in events] == [0, 2]
    for event, cycle in zip(events, fast.cycles, strict=True):
        facts = event["facts"]
        assert facts["candidates"] == cycle.to_dict()["candidates"]
        assert facts["rejected"] == cycle.to_dict()["rejected"]
        assert facts["rollouts"] == cycle.rollouts
    assert facts["cycle_rollouts"] == fast.cycle_rollouts
    assert facts["training_rollouts"] == 16


def test_an_evaluation_uses_the_best_instruction_and_is_not_counted(tmp_path: Path) -> None:
    used = defaultdict(set)

    def noting(instruction: Any, **columns: Any) -> list[float]:
        used[trainer.model.training].update(instruction)
        return reward(**columns)

    trainer = make_trainer(
        tmp_path,
        reward_funcs=noting,
        num_generations_eval=1,
        per_device_eval_batch_size=4,
        eval_dataset=Dataset.from_list(PROBLEMS),
    )
    fast = FastSlow(trainer, SENTENCES[:4], every=None)
    trainer.evaluate()
    assert used == {False: {SENTENCES[0]}}
    assert fast.rollouts == 0


def test_an_adapter_trains_under_fast_slow(tmp_path: Path) -> None:
    model = get_peft_model(make_llama(), LoraConfig(r=4, target_modules="all-linear"))
    trainer = make_trainer(tmp_path, model=model, gradient_checkpointing=True)
    fast = FastSlow(trainer, [""], **SMALL)
    before = weights(trainer)
    trainer.train()
    moved = {name for name, value in weights(trainer).items() if (value != before[name]).any()}
    assert moved and all("lora_" in name for name in moved)
    assert len(fast.cycles) == 2


def test_a_proposer_that_fails_is_said_and_training_goes_on(tmp_path: Path) -> None:
    calls = 0

    def flaky(request: Request) -> Any:
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise TimeoutError("the server is away")
        return None if calls % 3 == 1 else GRAMMAR(request)

    trainer = make_trainer(tmp_path)
    fast = FastSlow(trainer, [""], **SMALL | {"proposer": flaky})
    with pytest.warns(UserWarning, match=r"the proposer failed \d+ of \d+ times in the cycle"):
        trainer.train()
    cycle = fast.cycles[0]
    assert 0 < cycle.failures < cycle.proposals
    assert cycle.error == "the proposer returned NoneType, not a text"
    assert trainer.state.global_step == 4


def test_a_reward_that_fails_in_a_cycle_ends_the_training(tmp_path: Path) -> None:
    def failing(**_: Any) -> list[float]:
        raise ZeroDivisionError("no reward")

    trainer = make_trainer(tmp_path, reward_funcs=failing)
    fast = FastSlow(trainer, [""], **SMALL)
    with pytest.raises(ZeroDivisionError, match="no reward"):
        trainer.train()
    assert fast.rollouts == fast.cycle_rollouts == 6  # they were generated


def test_cycles_without_a_watch_are_in_the_record_at_once(tmp_path: Path) -> None:
    monitor = Monitor([of_words()], run_dir=tmp_path / "run")
    fast = FastSlow(make_trainer(tmp_path), [""], **SMALL, monitor=monitor)
    fast.evolve(rollouts=60)
    with Reader(tmp_path / "run") as reader:  # as another process would
        events = [event["facts"] for event in reader.events() if event["kind"] == "fast_cycle"]
    assert [facts["cycle"] for facts in events] == [1, 2]


def test_another_population_in_one_record_is_told_from_the_first(tmp_path: Path) -> None:
    monitor = Monitor([of_words()], run_dir=tmp_path / "run")
    for text in SENTENCES[:2]:
        FastSlow(make_trainer(tmp_path), [text], **SMALL, monitor=monitor).cycle()
    with Reader(tmp_path / "run") as reader:
        found = instructions_of(reader.events())
    monitor.record.close()
    assert found is not None and found.restarts == [2]
    given = {own.text: list(own.rewards) for own in found.evaluated.values() if own.parent is None}
    assert given == {SENTENCES[0]: [1], SENTENCES[1]: [2]}


def test_rewards_have_weights_and_none_is_no_reward(tmp_path: Path) -> None:
    def one(completions: Any, **_: Any) -> list[float]:
        return [1.0] * len(completions)

    def sometimes(answer: Any, log_metric: Any, log_extra: Any, **_: Any) -> list[float | None]:
        log_metric("seen", 1.0), log_extra("answer", answer)
        return [None if own == "red" else 2.0 for own in answer]

    trainer = make_trainer(tmp_path, reward_funcs=[one, sometimes], reward_weights=[0.5, 3.0])
    fast = FastSlow(trainer, [""], **SMALL | {"problems": 12, "proposer": EditGrammar(["one"])})
    [first, *_] = fast.cycle().candidates
    answers = [PROBLEMS[at]["answer"] for at in fast.cycles[0].problems]
    assert {"red", "blue"} <= {*answers}
    assert first.scores == [0.5 if own == "red" else 6.5 for own in answers]
    assert not trainer._pending_metrics and not trainer._pending_extra_logs


def test_a_completion_that_no_reward_scores_has_none(tmp_path: Path) -> None:
    """With rewards below zero: a 0 would make what was not scored the best."""

    def partial(answer: Any, **columns: Any) -> list[float | None]:
        scores = of_instruction(**columns)
        return [None if own == "red" else s - 9 for own, s in zip(answer, scores, strict=True)]

    trainer = make_trainer(tmp_path, reward_funcs=partial)
    fast = FastSlow(trainer, [""], **SMALL | {"problems": 12})
    with pytest.warns(UserWarning, match=r"no reward function scored \d+ of \d+ rollouts"):
        for _ in range(6):
            fast.cycle()
    for cycle in fast.cycles:
        red = [PROBLEMS[at]["answer"] == "red" for at in cycle.problems]
        for candidate in cycle.candidates:
            assert [own is None for own in candidate.scores] == red
    kept = [c for c in fast.cycles[-1].candidates if c.kept]
    assert kept[0].score >= 1.0 - 9
    saved = [cycle.to_dict() | {"rejected": []} for cycle in fast.cycles]
    assert plain(fast.state_dict())["cycles"] == saved


def test_where_nothing_is_scored_the_population_stays(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, reward_funcs=lambda completions, **_: [None] * len(completions)
    )
    fast = FastSlow(trainer, ["", "one two"], **SMALL)
    with pytest.warns(UserWarning, match="no reward function scored"):
        cycle = fast.cycle()
    assert fast.population == ["", "one two"]
    assert all(c.on_front for c in cycle.candidates)


@pytest.mark.parametrize("change", [lambda own: own[:-1], lambda own: [*own, 1.0]])
def test_a_wrong_number_of_rewards_is_refused(change: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, reward_funcs=lambda **columns: change(reward(**columns)))
    fast = FastSlow(trainer, [""], **SMALL)
    with pytest.raises(Exception, match=r"returned \d+ rewards for \d+ completions: return one"):
        fast.evolve(10)


def test_rewards_get_the_same_columns_in_cycles_as_in_training(tmp_path: Path) -> None:
    seen: dict[bool, set[str]] = {}

    def noting(completions: Any, **columns: Any) -> list[float]:
        seen[trainer.model.training] = {*columns}
        return reward(completions, columns["answer"])

    rows = [{**row, "completion": "red", "completion_ids": [1]} for row in PROBLEMS]
    trainer = make_trainer(tmp_path, rows, reward_funcs=noting, max_steps=1)
    FastSlow(trainer, [""], **SMALL)
    trainer.train()
    assert seen[True] == seen[False]
