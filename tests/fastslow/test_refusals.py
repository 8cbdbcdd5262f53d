"""What fast–slow training cannot do is refused in one sentence, before training."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset
from torch import nn
from trl import RLOOConfig, RLOOTrainer, SFTConfig, SFTTrainer

from fastslow.small import CHAT, GRAMMAR, PROBLEMS, TOKENIZER, make_trainer, reward
from riprap import Monitor
from riprap.errors import ConfigError
from riprap.fastslow import EditGrammar, FastSlow, LanguageModel
from tiny import make_llama

pytestmark = pytest.mark.filterwarnings("ignore")
FIXED: dict[str, Any] = {"every": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trainer")


@pytest.mark.parametrize(
    ("population", "options", "text"),
    [
        ([], FIXED, "population=a list: give a list of instructions"),
        ("one", FIXED, "population='one': give a list of instructions"),
        ([1], FIXED, "the population has 1: give texts"),
        (["a", "b", "a"], FIXED, "the population has 'a' twice: give each instruction once"),
        (["a", "b", "c"], FIXED, "num_generations=4 rollouts of a problem .* by 3 instructions"),
        (["a"], {"proposer": GRAMMAR, "keep": 3}, "rollouts of a problem .* by 3 instructions"),
        (["a", "b"], {"proposer": GRAMMAR, "keep": 1}, "has 2 instructions, and keep=1"),
        (["a"], {}, "got None as proposer: give a function of a riprap.fastslow.Request"),
        (["a"], {"proposer": "model"}, "got 'model' as proposer"),
        (["a"], {"proposer": GRAMMAR, "every": 0}, "every=0: give a whole number of at least 1"),
        (["a"], {"proposer": GRAMMAR, "every": 2.5}, "every=2.5: give a whole number"),
        (["a"], {"proposer": GRAMMAR, "keep": 0}, "keep=0: give a whole number"),
        (["a"], FIXED | {"select": "best"}, 'select=\'best\': choose "pareto" or "random"'),
        (["a"], FIXED | {"problems": 0}, "problems=0: give a whole number"),
        (["a"], FIXED | {"minibatch": 0}, "minibatch=0: give a whole number"),
        (["a"], FIXED | {"budget": 0}, "budget=0: give a whole number of at least 1"),
        (["a"], {"proposer": GRAMMAR, "budget": 63}, "problems=16 cost 64 rollouts: give a larger"),
        (["a"], {"proposer": GRAMMAR, "problems": 3}, "minibatch=4, and a cycle has problems=3"),
        (["a"], {"proposer": GRAMMAR, "minibatch": 13}, "the training data has 12 problems"),
        (["a"], FIXED | {"proposer": GRAMMAR, "keep": 3}, "rollouts of a problem .* by 3"),
        (["a"], FIXED | {"proposer": "model"}, "got 'model' as proposer"),
        (["a"], FIXED | {"monitor": "run"}, "got 'run' as monitor: give a riprap.Monitor"),
        (["a"], FIXED | {"combine": None}, "got None as combine: give a function"),
        (["a"], FIXED | {"steps": 6}, "FastSlow: .*'steps'; it takes trainer, population"),
    ],
)
def test_wrong_arguments(population: Any, options: dict[str, Any], text: str, folder: Path) -> None:
    trainer = make_trainer(folder)
    before = len(trainer.callback_handler.callbacks)
    with pytest.raises(ConfigError, match=text) as error:
        FastSlow(trainer, population, **options)
    assert "\n" not in str(error.value)
    assert trainer.rollout_func is None  # and the trainer is as it was
    assert len(trainer.callback_handler.callbacks) == before


class Scores(nn.Module):
    def __call__(self, **_: Any) -> Any:
        raise AssertionError


async def later(**_: Any) -> list[float]:
    return []


def sft(folder: Path) -> Any:
    config = SFTConfig(output_dir=str(folder), use_cpu=True, bf16=False, report_to="none")
    rows = Dataset.from_list([{"text": "what is"}])
    return SFTTrainer(make_llama(), config, train_dataset=rows, processing_class=TOKENIZER)


def rloo(folder: Path) -> Any:
    config = RLOOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, num_generations=4, beta=0.0
    )
    rows = Dataset.from_list(PROBLEMS)
    return RLOOTrainer(make_llama(), reward, config, train_dataset=rows, processing_class=TOKENIZER)


def taken(folder: Path) -> Any:
    trainer = make_trainer(folder)
    FastSlow(trainer, ["a"], every=None)
    return trainer


def streamed(folder: Path) -> Any:
    trainer = make_trainer(folder)
    trainer.train_dataset = IterableDataset.from_generator(lambda: iter(PROBLEMS))
    return trainer


def changed(**attributes: Any) -> Callable[[Path], Any]:
    def build(folder: Path) -> Any:
        trainer = make_trainer(folder)
        for name, value in attributes.items():
            assert hasattr(trainer, name)  # as TRL names it
            setattr(trainer, name, value)
        return trainer

    return build


class Quiz:
    """An environment without tools: only its prompt and its reward."""

    def reset(self, **_: Any) -> str:
        return "what is one"

    def get_reward(self, **_: Any) -> float:
        return 1.0


def with_rows(*rows: dict[str, Any]) -> Callable[[Path], Any]:
    return changed(train_dataset=Dataset.from_list(list(rows)))


def with_tokenizer(rows: list[dict[str, Any]], **attributes: Any) -> Callable[[Path], Any]:
    def build(folder: Path) -> Any:
        trainer = make_trainer(folder, rows)
        for name, value in attributes.items():
            setattr(trainer.processing_class, name, value)
        return trainer

    return build


PARTS = [{"role": "user", "content": [{"type": "text", "text": "what"}]}]


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda folder: make_llama(), "got a LlamaForCausalLM as trainer: give a trl.GRPOTrainer"),
        (sft, "got a SFTTrainer as trainer: give a trl.GRPOTrainer"),
        (rloo, "got a RLOOTrainer as trainer: give a trl.GRPOTrainer"),
        (taken, "the trainer has a rollout_func already"),
        (changed(use_vllm=True), "generates with transformers' generate: leave use_vllm"),
        (changed(tools=[print]), "rollouts of one turn: give a trainer without tools"),
        (changed(environment_factories={None: Quiz}), "without tools and environments"),
        (changed(_is_vlm=True), "works on texts: give a tokenizer"),
        (with_rows({"prompt": "x", "instruction": "y"}), "rename the column"),
        (with_rows({"prompt": PARTS}), "the turns of the prompts have parts"),
        (with_rows({"text": "x"}), "no rows with a `prompt`"),
        (with_tokenizer(CHAT, response_schema={"a": 1}), "has a response_schema, by which TRL"),
        (with_tokenizer(CHAT, chat_template="{{ messages[-1]['content'] }}"), "the same prompt"),
        (with_tokenizer(CHAT, chat_template="{{ raise_exception('no system') }}"), "no system"),
        (lambda folder: make_trainer(folder, pad_to_multiple_of=8), "leave pad_to_multiple_of"),
        (
            lambda folder: make_trainer(folder, generation_kwargs={"eos_token_id": 7}),
            "generation_kwargs has other end tokens",
        ),
        (
            lambda folder: make_trainer(
                folder,
                reward_funcs=[reward, reward],
                multi_objective_aggregation="normalize_then_sum",
            ),
            "a cycle sums rewards as they are",
        ),
        (changed(reward_funcs=[Scores()]), "a Scores is no plain function"),
        (changed(reward_funcs=[later]), "a function is no plain function"),
        (streamed, "draws problems from the training data, and a IterableDataset has no rows"),
    ],
)
def test_wrong_trainers(build: Callable[[Path], Any], text: str, folder: Path) -> None:
    trainer = build(folder)
    with pytest.raises(ConfigError, match=text) as error:
        FastSlow(trainer, ["a"], every=None)
    assert "\n" not in str(error.value)


def test_a_combine_that_leaves_the_instruction_out_is_refused(folder: Path) -> None:
    trainer = make_trainer(folder)
    with pytest.raises(ConfigError, match="all instructions make the same prompt"):
        FastSlow(trainer, [""], proposer=GRAMMAR, combine=lambda instruction, problem: problem)
    assert trainer.rollout_func is None
    FastSlow(trainer, [""], every=None, combine=lambda instruction, problem: problem)


def test_without_cycles_their_arguments_have_no_meaning(folder: Path) -> None:
    fast = FastSlow(make_trainer(folder), ["a", "b"], every=None, keep=1, minibatch=99, budget=1)
    assert fast.population == ["a", "b"]


def test_a_cycle_needs_a_proposer(folder: Path) -> None:
    fast = FastSlow(make_trainer(folder), ["a"], every=None)
    with pytest.raises(ConfigError, match="a cycle needs a proposer: give one to FastSlow"):
        fast.cycle()
    with pytest.raises(ConfigError, match="rollouts=0: give a whole number"):
        fast.evolve(rollouts=0)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: EditGrammar([]), "EditGrammar has no sentences"),
        (lambda: EditGrammar("one two"), "EditGrammar has no sentences"),
        (lambda: EditGrammar(["one", " "]), "' ' is no line of text"),
        (lambda: EditGrammar(["one\ntwo"]), "is no line of text"),
        (lambda: EditGrammar(["one", "one"]), "a sentence is given twice"),
        (lambda: LanguageModel("gpt"), "give a function from text to text as call"),
        (lambda: LanguageModel(template="{instruction}"), "the template has no place {examples}"),
        (lambda: LanguageModel(max_new_tokens=0), "max_new_tokens=0: give a whole number"),
    ],
)
def test_wrong_proposers(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make()


def test_a_monitor_is_taken(folder: Path) -> None:
    from fastslow.test_fast_slow import of_words

    monitor = Monitor([of_words()])
    assert FastSlow(make_trainer(folder), ["a"], every=None, monitor=monitor).monitor is monitor


@pytest.mark.parametrize("missing", ["trl", "gepa"])
def test_a_missing_extra_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    from riprap import fastslow

    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=rf"{missing} is not installed: .*'riprap\[fastslow\]'"):
        importlib.reload(fastslow)
