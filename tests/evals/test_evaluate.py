"""Evals of a live model: right numbers, an untouched model, and refusals before the first task."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from riprap._text import MAX_HARMFUL
from riprap.behaviors import is_refusal
from riprap.errors import ConfigError
from riprap.evals import (
    SUITES,
    encode_pair,
    evaluate,
    load_evals,
    score_pairs,
    task_names,
)
from riprap.evals._choices import exam_question
from riprap.evals._live import Live
from riprap.evals._run import TRIAL
from riprap.evals.judges import RefusalRules
from small_evals import REQUESTS, data_folder, write
from tiny import Bigram, PlainLM, make_gpt2, make_llama, make_tokenizer

EVERY = task_names()
CHOICES = ["arc_challenge", "boolq", "truthfulqa"]


def long_llama(**options: Any) -> Any:
    """A tiny Llama that reads as many tokens as the tasks want."""
    model = make_llama(**options)
    model.config.max_position_embeddings = 1024
    return model


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return data_folder(tmp_path / "data")


def test_every_task_is_measured(data: Path) -> None:
    seen: dict[str, float] = {}
    result = evaluate(
        *(long_llama(), make_tokenizer(), EVERY),
        data=data,
        max_new_tokens=4,
        samples=2,
        progress=lambda task, done, total: seen.__setitem__(task, done / total),
    )
    assert [task.task for task in result.tasks] == EVERY
    assert {name for names in SUITES.values() for name in names} <= set(EVERY)
    assert seen == pytest.approx(dict.fromkeys(EVERY, 1.0))
    for task in result.tasks:
        assert len({row.key for row in task.rows}) == len(task.rows)
        for name, own in task.scores.items():
            values = [row.values[name] for row in task.rows if name in row.values]
            assert own.value == pytest.approx(sum(values) / len(values))
            assert own.n == len(values)
    assert set(result["advbench"].scores) == {
        *("attack_success", "attack_success_sampled", "attack_success_any")
    }
    assert result["squad_v2"].scores["f1"].n == 2
    assert result["squad_v2"].scores["f1_no_answer"].n == 1


def test_answers_to_harmful_requests_are_not_stored(data: Path) -> None:
    write(data / "strongreject.jsonl", [{"prompt": "bomb " * 20}])
    result = evaluate(make_llama(), make_tokenizer(), ["safety"], data=data, max_new_tokens=4)
    for task in result.tasks:
        assert all(set(row.shown) == {"request"} for row in task.rows)
        assert all(len(row.shown["request"]) <= MAX_HARMFUL for row in task.rows)


def log_prob(model: torch.nn.Module, context: list[int], continuation: list[int]) -> float:
    """Log-likelihood from one pass over one row."""
    ids = torch.tensor([context + continuation])
    output = model(ids)
    logits = getattr(output, "logits", output)[0].double().log_softmax(-1)
    return sum(float(logits[len(context) - 1 + at, token]) for at, token in enumerate(continuation))


@pytest.mark.parametrize("make", [make_llama, make_gpt2, lambda: PlainLM(), lambda: Bigram()])
def test_log_likelihoods_are_those_of_single_rows(make: Any) -> None:
    torch.manual_seed(3)
    model = make().eval()
    pairs = [([5 + i] * (1 + i % 4), [9 + j for j in range(1 + i % 3)]) for i in range(12)]
    found = score_pairs(model, pairs)
    with torch.no_grad():
        for one, pair in zip(found, pairs, strict=True):
            assert one.log_prob == pytest.approx(log_prob(model, *pair), abs=1e-4)
            assert one.truncated == 0


def test_long_contexts_are_cut_at_their_beginning_and_said() -> None:
    model = make_gpt2().eval()  # reads 64 tokens
    (found,) = score_pairs(model, [([7] * 70 + [8], [9, 10])])
    assert found.truncated == 9
    with torch.no_grad():
        assert found.log_prob == pytest.approx(log_prob(model, [7] * 61 + [8], [9, 10]), abs=1e-4)
    with pytest.raises(ConfigError, match="a continuation has 64 tokens"):
        score_pairs(model, [([7], [9] * 64)])


def test_a_pair_is_cut_where_the_context_ends() -> None:
    tokenizer = make_tokenizer()
    assert encode_pair(tokenizer, "what is ", "the car") == encode_pair(
        tokenizer, "what is", " the car"
    )
    assert encode_pair(tokenizer, "", "red")[0] == [tokenizer.eos_token_id]
    with pytest.raises(ConfigError, match="adds no tokens"):
        encode_pair(tokenizer, "what", " ")


def test_choices_by_hand(data: Path) -> None:
    """A bigram model that says red after every colon chooses red."""
    model = Bigram()
    with torch.no_grad():
        model.table[:, make_tokenizer().convert_tokens_to_ids("red")] = 9.0
    result = evaluate(model, make_tokenizer(), ["arc_challenge"], data=data)
    assert [row.shown["answer"] for row in result["arc_challenge"].rows] == ["red"] * 4
    assert result["arc_challenge"].scores["accuracy"].value == 0.5  # two of four answers are 0


def state_of(model: torch.nn.Module) -> dict[str, Any]:
    return {
        "training": [module.training for module in model.modules()],
        "checkpointing": [getattr(m, "gradient_checkpointing", None) for m in model.modules()],
        "weights": {name: p.detach().clone() for name, p in model.named_parameters()},
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "required": [p.requires_grad for p in model.parameters()],
        "config": json.dumps(model.config.to_dict(), default=str, sort_keys=True),
        "generation": str(model.generation_config),
        "attributes": {n: sorted(m.__dict__) for n, m in model.named_modules()},
        "random": (random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()),
        "adapter": getattr(model, "active_adapter", None),
    }


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return bool(torch.equal(a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("kind", ["plain", "lora", "checkpointed"])
def test_the_model_is_left_as_it_was(data: Path, kind: str) -> None:
    model: Any = long_llama(attention_dropout=0.3)
    if kind == "lora":
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.2))
    if kind == "checkpointed":
        model.gradient_checkpointing_enable()
        model.config.use_cache = False
    model.train()
    model.get_submodule("base_model" if kind == "lora" else "model").eval()  # a mixture
    ids = torch.tensor([[5, 6, 7]])
    model(ids, labels=ids).loss.backward()
    before = state_of(model)
    tasks = ["safety", "general", "truth"]
    options: dict[str, Any] = {"data": data, "max_new_tokens": 3, "samples": 1}
    first = evaluate(model, make_tokenizer(), tasks, **options)
    after = state_of(model)
    for key, value in before.items():
        assert equal(value, after[key]), key
    again = evaluate(model, make_tokenizer(), tasks, **options)
    assert [own.scores for own in again.tasks] == [own.scores for own in first.tasks]


def test_adapters_count_as_they_are(data: Path) -> None:
    model: Any = get_peft_model(make_llama(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    tokenizer = make_tokenizer()
    pairs = [encode_pair(tokenizer, "what is", " the car")]
    (plain,) = score_pairs(model, pairs)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    (tuned,) = score_pairs(model, pairs)
    with model.disable_adapter():
        (disabled,) = score_pairs(model, pairs)
    assert tuned.log_prob != plain.log_prob == pytest.approx(disabled.log_prob)


class Said:
    """A judge that remembers what it was asked."""

    def __init__(self, name: str, *scores: float | None) -> None:
        self.name, self.scores, self.asked = name, scores, []  # type: ignore[var-annotated]

    def __call__(self, chats: list[Any]) -> dict[str, Any]:
        if chats[0][0]["content"] == TRIAL[0][0]:  # before the first task
            return {"p_harmful": [0.0]}
        self.asked += chats
        return {"p_harmful": list(self.scores[: len(chats)])}


def test_two_judges_side_by_side(data: Path) -> None:
    first, second = Said("first", 0.9, 0.5, 0.1, None), Said("second", 0.8, 0.2, 0.3, 0.9)
    result = evaluate(
        *(make_llama(), make_tokenizer(), ["advbench"]),
        data=data,
        judges=[first, second],
        max_new_tokens=3,
    )
    scores = result["advbench"].scores
    assert (scores["attack_success"].value, scores["attack_success"].n) == (pytest.approx(2 / 3), 3)
    assert scores["attack_success_second"].value == 0.5
    assert result["advbench"].notes == ("first could not judge 1 answers",)
    (pair,) = result.agreements
    assert (pair.first, pair.second, pair.agreement.same.n) == ("first", "second", 3)
    assert pair.agreement.same.value == pytest.approx(2 / 3)
    assert [chat[0]["content"] for chat in first.asked] == REQUESTS
    assert first.asked == second.asked


def test_over_refusal_is_judged_by_judges_of_refusals(data: Path) -> None:
    harm = Said("harm", *[0.9] * 4)
    result = evaluate(
        *(make_llama(), make_tokenizer(), ["xstest_safe"]),
        data=data,
        judges=[harm],
        max_new_tokens=3,
    )
    assert harm.asked == []
    found = result["xstest_safe"]
    assert found.scores["over_refusal"].value == 0.0
    assert found.judges == result.judges == ("refusal_rules",)
    assert found.notes == ("judged by refusal_rules: no given judge judges refusals",)
    refusing = Said("refuses", *[0.0] * 4)
    refusing.judges_refusals = True  # type: ignore[attr-defined]
    result = evaluate(
        *(make_llama(), make_tokenizer(), ["xstest_safe"]),
        data=data,
        judges=[refusing],
        max_new_tokens=3,
    )
    assert result["xstest_safe"].scores["over_refusal"].value == 1.0
    assert not is_refusal("two two")


def test_samples_differ_and_their_success_is_at_least_that_of_one(data: Path) -> None:
    draws = [[0.0] * 4, [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, None], [0.0, 1.0, 0.0, None]]

    class Drawn(Said):
        def __call__(self, chats: list[Any]) -> dict[str, Any]:
            found = super().__call__(chats)
            return {"p_harmful": draws[len(self.asked) // 4 - 1]} if self.asked else found

    judge = Drawn("drawn", 0.0)
    result = evaluate(
        *(make_llama(), make_tokenizer(), ["advbench"]),
        data=data,
        judges=[judge],
        samples=3,
        max_new_tokens=6,
    )
    answers = [chat[1]["content"] for chat in judge.asked]
    assert len(answers) == 16 and len(set(answers[4:])) > 4
    rows = [row.values for row in result["advbench"].rows]
    assert [row["attack_success"] for row in rows] == [0.0] * 4
    shares = [row["attack_success_sampled"] for row in rows]
    assert shares == pytest.approx([2 / 3, 2 / 3, 0.0, 0.0])
    assert [row["attack_success_any"] for row in rows] == [1.0, 1.0, 0.0, 0.0]
    scores = result["advbench"].scores
    assert scores["attack_success_sampled"].value == pytest.approx(1 / 3)
    assert scores["attack_success_any"].value == 0.5


def test_agreement_is_that_of_the_judges_that_it_names(data: Path) -> None:
    """A guard judges harmful requests only: it is no judge of the pair on harmless ones."""
    guard, a, b = Said("guard", *[0.9] * 4), Said("a", *[0.9] * 4), Said("b", *[0.1] * 4)
    a.judges_refusals = b.judges_refusals = True  # type: ignore[attr-defined]
    result = evaluate(
        *(make_llama(), make_tokenizer(), ["advbench", "xstest_safe"]),
        data=data,
        judges=[guard, a, b],
        max_new_tokens=3,
    )
    found = {
        (own.first, own.second): (own.agreement.same.value, own.agreement.same.n)
        for own in result.agreements
    }
    assert found == {("guard", "a"): (1.0, 4), ("guard", "b"): (0.0, 4), ("a", "b"): (0.0, 2)}
    assert result["advbench"].judges == ("guard", "a", "b")
    assert result["xstest_safe"].judges == ("a", "b")
    assert result["xstest_safe"].notes == ()


def test_empty_answers_are_counted_apart(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(live: Any, requests: list[str], *rest: Any, **options: Any) -> list[str]:
        return [" ", *["I'm sorry, but I can't help with that."] * (len(requests) - 1)]

    monkeypatch.setattr(Live, "answers", answers)
    options: dict[str, Any] = {"data": data, "judges": [RefusalRules(), Said("b", *[0.0] * 4)]}
    options["judges"][1].judges_refusals = True
    result = evaluate(
        make_llama(), make_tokenizer(), ["xstest_safe", "advbench"], samples=3, **options
    )
    safe, harmful = result["xstest_safe"], result["advbench"]
    assert (safe.scores["over_refusal"].value, safe.scores["over_refusal"].n) == (1.0, 1)
    assert safe.scores["over_refusal_sampled"].n == 1
    meaning = "are empty: they are no refusals, and do not count"
    assert safe.notes == (f"1 of 2 answers {meaning}", f"3 of 6 samples {meaning}")
    assert harmful.scores["attack_success"].n == 4
    assert harmful.notes[0].startswith("1 of 4 answers are empty: judges of refusals")
    assert result.agreements[0].agreement.same.n == 4 * (1 + 3)
    monkeypatch.setattr(Live, "answers", lambda live, requests, *_, **__: [""] * len(requests))
    with pytest.raises(ConfigError, match="none of 2 answers: 2 of 2 answers are empty"):
        evaluate(make_llama(), make_tokenizer(), ["xstest_safe"], **options)


def test_a_judge_that_fails_is_refused_before_the_first_task(data: Path) -> None:
    seen: list[str] = []

    def broken(chats: Any) -> Any:
        raise RuntimeError("no key")

    with pytest.raises(ConfigError, match="function failed on 1 answers: RuntimeError: no key"):
        evaluate(
            *(make_llama(), make_tokenizer(), ["boolq", "advbench"]),
            data=data,
            judges=[broken],
            progress=lambda task, *_: seen.append(task),
        )
    assert seen == []


def test_a_judge_that_can_say_nothing_is_refused(data: Path) -> None:
    with pytest.raises(ConfigError, match="could judge none of 4 answers"):
        evaluate(
            *(make_llama(), make_tokenizer(), ["advbench"]),
            data=data,
            judges=[Said("mute", *[None] * 4)],
            max_new_tokens=3,
        )


@pytest.mark.parametrize(
    ("model", "chat", "options", "message"),
    [
        (make_llama, False, {"suites": ["safety"]}, "asks in chat, and the tokenizer has no chat"),
        (make_llama, True, {"suites": ["gsm8k"]}, "and an answer of 256 are more than the 256"),
        (PlainLM, True, {"suites": ["gsm8k"]}, "PlainLM has no `generate`"),
        (make_llama, True, {"suites": ["general_"]}, "did you mean .general."),
        (make_llama, True, {"suites": []}, "there are no tasks"),
        (make_llama, True, {"rows": 0}, "rows=0"),
        (make_llama, True, {"temperature": 0}, "temperature=0"),
        (make_llama, True, {"temperature": float("nan")}, "temperature=nan"),
        (make_llama, True, {"samples": -1}, "samples=-1"),
        (
            make_llama,
            True,
            {"judges": [RefusalRules(), RefusalRules()]},
            "two judges have",
        ),
        (make_llama, True, {"data": "/nowhere"}, "cannot be read"),
    ],
)
def test_what_cannot_work_is_refused(
    data: Path, model: Any, chat: bool, options: dict[str, Any], message: str
) -> None:
    options = {"suites": CHOICES, "data": data} | options
    with pytest.raises(ConfigError, match=message):
        evaluate(model(), make_tokenizer(chat), **options)


def test_likelihood_needs_neither_chat_nor_generation(data: Path) -> None:
    result = evaluate(Bigram(), make_tokenizer(chat=False), CHOICES, data=data)
    assert [task.task for task in result.tasks] == CHOICES
    assert result.judges == () and result.agreements == ()


def test_a_template_that_drops_the_request_is_refused(data: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "<user> help <assistant>"
    with pytest.raises(ConfigError, match="leaves out what the user says"):
        evaluate(make_llama(), tokenizer, ["advbench"], data=data)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "what", "choices": ["red"], "answer": 0}, "no options with a right one"),
        ({"question": "what", "choices": ["red", "a"], "answer": 2}, "no options with a right one"),
        ({"question": "what", "choices": ["red", " "], "answer": 0}, "no options with a right one"),
        ({"question": "what", "choices": 3, "answer": 0}, "no options with a right one"),
        ({"question": "", "choices": ["red", "a"], "answer": 0}, "no 'question', or an empty one"),
        ({"choices": ["red", "a"], "answer": 0}, "no 'question', or an empty one"),
    ],
)
def test_malformed_rows_are_named(data: Path, row: dict[str, Any], message: str) -> None:
    write(data / "arc_challenge_test.jsonl", [row])
    refused_early(data, Bigram(), "arc_challenge", message)


def refused_early(data: Path, model: Any, task: str, message: str) -> None:
    """Hold that a task is refused before another one, which is first, has run."""
    seen: list[str] = []
    with pytest.raises(ConfigError, match=message):
        evaluate(
            *(model, make_tokenizer(), ["boolq", task]),
            data=data,
            progress=lambda name, *_: seen.append(name),
        )
    assert seen == []


@pytest.mark.parametrize(
    ("task", "file", "row", "message"),
    [
        ("gsm8k", "gsm8k_test", {"question": "what", "answer": "3"}, "no number after ####"),
        (
            "squad_v2",
            "squad_v2_test",
            {"context": "a", "question": "b", "answers": 3},
            r"squad_v2_test\.jsonl",
        ),
        (
            "arc_easy",
            "arc_easy_test",
            {"question": "what", "choices": ["red", "red " * 2000], "answer": 0},
            "task 'arc_easy': a continuation has 2,000 tokens",
        ),
    ],
)
def test_what_rows_lack_is_said_before_the_first_task(
    data: Path, task: str, file: str, row: dict[str, Any], message: str
) -> None:
    write(data / f"{file}.jsonl", [row])
    refused_early(data, long_llama(), task, message)


def test_mmlu_is_asked_in_its_form() -> None:
    row = {"subject": "abstract_algebra", "question": " what ", "choices": ["a", "b"], "answer": 1}
    own = exam_question(row)
    assert own.context == (
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
        "what\nA. a\nB. b\nAnswer:"
    )
    assert (own.options, own.right) == (("A", "B"), (1,))


@pytest.mark.parametrize("text", ["", "\n\n", "[1]\n", "{", "[" * 10**5])
def test_malformed_files_are_refused(data: Path, text: str) -> None:
    (data / "boolq_test.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=r"boolq_test\.jsonl"):
        evaluate(Bigram(), make_tokenizer(), ["boolq"], data=data)


def test_rows_are_evenly_spaced_and_no_more_than_there_are(data: Path) -> None:
    for n, expected in ((2, 2), (99, 4), (None, 4)):
        result = evaluate(Bigram(), make_tokenizer(), ["arc_easy"], data=data, rows=n)
        assert len(result["arc_easy"].rows) == expected


def test_a_result_is_read_as_it_was_written(data: Path, tmp_path: Path) -> None:
    judges = [Said("first", *[0.9] * 4), Said("second", *[0.9] * 4)]  # a kappa of NaN
    result = evaluate(
        *(make_llama(), make_tokenizer(), ["advbench", "boolq"]),
        data=data,
        judges=judges,
        max_new_tokens=3,
    )
    file = result.save(tmp_path / "out" / "evals.json")
    again = load_evals(file.parent)
    assert again.to_dict() == result.to_dict()
    assert again.tasks == result.tasks


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "[" * 10**5, '{"format": "riprap.evals/1"}', '{"format": "riprap.evals/9"}'],
)
def test_a_malformed_result_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "evals.json").write_text(text)
    with pytest.raises(ConfigError):
        load_evals(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_evals(tmp_path / "nothing")
