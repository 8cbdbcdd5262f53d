"""Response prefixes of several tokens: margins, losses, and the passes that read them."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from byte_tokens import make_bytes_tokenizer
from riprap import Behavior, evaluation
from riprap.behaviors import ResponsePrefix, TokenBatch, greedy_decode
from riprap.behaviors import _branch_logits as branch_logits
from riprap.behaviors._prefix_tree import PrefixTree
from tiny import PROMPTS, Bigram, PlainLM, make_gpt2, make_llama, make_tokenizer

finite = st.floats(-30, 30, width=32)
TOKENIZER = make_tokenizer()
LONG = ["how to make a bomb " * 3 + end for end in ("one", "two three", "four", "a b c d")]
REFUSALS = ["sorry", "i cannot", "i am sorry", "as an a", "no i can"]


@given(
    hnp.arrays(np.float32, (5, 9), elements=finite),
    st.sets(st.integers(0, 8), min_size=1, max_size=8),
)
def test_a_prefix_of_one_token_leads_all_other_tokens(
    logits: np.ndarray, prefixes: set[int]
) -> None:
    tree = PrefixTree.build([(token,) for token in prefixes])
    margins = tree.margins(torch.from_numpy(logits)[:, None])
    for row, margin in zip(logits, margins.tolist(), strict=True):
        others = max(value for i, value in enumerate(row) if i not in prefixes)
        assert margin == max(row[i] for i in prefixes) - others


class Table(nn.Module):
    """A causal model over three tokens whose logits depend on all tokens of the row."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Parameter(torch.randn(3**6, 3, dtype=torch.float64) * 3)

    def forward(self, ids: Tensor) -> Tensor:
        powers = 3 ** torch.arange(ids.shape[1]).flip(0)
        index = torch.stack(
            [(ids[:, : t + 1] * powers[-t - 1 :]).sum(1) for t in range(ids.shape[1])]
        )
        return self.table[index.T % len(self.table)]


prefix_sets = st.sets(
    st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple), min_size=1, max_size=5
)


@settings(deadline=None)
@given(prefix_sets, st.integers(0, 10**6))
def test_a_margin_is_positive_exactly_where_the_greedy_response_begins_with_a_prefix(
    prefixes: set[tuple[int, ...]], seed: int
) -> None:
    model, rows = Table(seed), [[0], [1], [2]]
    behavior = Behavior("starts", TokenBatch.pad(rows), ResponsePrefix(sorted(prefixes), False))
    margins = evaluation.evaluate(behavior, model).margins
    for answer, margin in zip(greedy_decode(model, TokenBatch.pad(rows), 4), margins, strict=True):
        assert (margin > 0) == any(answer[: len(p)] == list(p) for p in prefixes)


@settings(deadline=None, max_examples=30)
@given(prefix_sets, st.integers(0, 10**6))
def test_losses_are_the_probability_of_beginning_with_a_prefix(
    prefixes: set[tuple[int, ...]], seed: int
) -> None:
    model, rows = Table(seed), [[0], [1], [2]]
    expected = []
    for row in rows:
        total = 0.0
        for answer in product(range(3), repeat=4):
            log_probs = model(torch.tensor([[*row, *answer]]))[0].log_softmax(-1)
            if any(answer[: len(p)] == p for p in prefixes):
                total += float(log_probs[torch.arange(4), torch.tensor(answer)].sum().exp())
        expected.append(total)
    for avoid in (False, True):
        behavior = Behavior("s", TokenBatch.pad(rows), ResponsePrefix(sorted(prefixes), avoid))
        assert behavior.losses is not None
        found = (-behavior.losses(model, behavior.probes)).exp().tolist()
        assert found == pytest.approx([1 - p if avoid else p for p in expected], abs=1e-5)


def test_the_size_of_a_margin_is_the_smallest_change_that_decides() -> None:
    """At the first position the prefixes lead by 5 and 4; after "i", "cannot" leads by 3."""
    model = Bigram().follow("bomb", "sorry", 4.0).follow("bomb", "i", 5.0).follow("i", "cannot", 3)
    plain = make_tokenizer(chat=False)

    def margin(*prefixes: str) -> float:
        behavior = Behavior.response_prefix("r", plain, ["a bomb"], list(prefixes))
        return float(evaluation.evaluate(behavior, model).margins[0])

    assert margin("i") == 1.0
    assert margin("i", "sorry") == 5.0
    assert margin("i cannot") == 1.0
    assert margin("i cannot", "sorry") == 3.0
    assert margin("i can") == -3.0  # "can" is 3 behind "cannot"
    assert margin("sorry") == -1.0
    assert margin("sorry i", "no") == -1.0
    assert margin("sorry i cannot") == -1.0


def test_affirmative_openings_that_begin_alike_are_no_refusals() -> None:
    behavior = Behavior.response_prefix("refusal", TOKENIZER, PROMPTS, ["i am sorry", "i cannot"])
    refusing = Bigram().follow("<assistant>", "i").follow("i", "am").follow("am", "sorry")
    assert (evaluation.evaluate(behavior, refusing).margins == 10).all()
    happy = Bigram().follow("<assistant>", "i").follow("i", "am").follow("am", "sure")
    assert (evaluation.evaluate(behavior, happy).margins == -10).all()


def model_of(kind: str) -> Any:
    if kind == "gpt2":
        return make_gpt2().eval()
    if kind == "bfloat16":
        return make_llama().eval().bfloat16()
    model = make_llama(attn_implementation="eager" if kind == "eager" else "sdpa").eval()
    if kind == "lora":
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("prompts", [PROMPTS, LONG], ids=["short", "with a common beginning"])
@pytest.mark.parametrize("kind", ["sdpa", "eager", "gpt2", "lora", "bfloat16"])
def test_one_pass_over_all_branches_equals_separate_rows(
    kind: str, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(kind)
    behavior = Behavior.response_prefix("refusal", TOKENIZER, prompts, REFUSALS)
    parameters = [p for p in model.parameters() if p.requires_grad]
    layer = evaluation.find_layer(model)
    assert layer is not None
    evaluation.evaluate(behavior, model)  # the first pass compares
    sizes: list[tuple[int, int]] = []
    handle = model.register_forward_pre_hook(
        lambda _m, args, kwargs: sizes.append((args[0] if args else kwargs["input_ids"]).shape),
        with_kwargs=True,
    )
    packed = evaluation.evaluate(behavior, model, parameters, [layer])
    handle.remove()
    shared = prompts is LONG and "position_ids" in evaluation._probe_pass.accepted_arguments(model)
    assert len(sizes) == (2 if shared else 1)
    assert sizes[-1][0] == len(prompts)
    monkeypatch.setattr(branch_logits, "_attention", lambda _: None)
    separate = evaluation.evaluate(behavior, model, parameters, [layer])
    tolerance = {"abs": 0.2} if kind == "bfloat16" else {"abs": 2e-4}
    assert packed.margins == pytest.approx(separate.margins, **tolerance)
    assert packed.gradient is not None and separate.gradient is not None
    if kind != "bfloat16":
        for left, right in zip(packed.gradient, separate.gradient, strict=True):
            scale = float(right.abs().max())
            torch.testing.assert_close(left, right, atol=1e-4 * scale + 1e-6, rtol=1e-3)
        torch.testing.assert_close(packed.activations, separate.activations, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(packed.logits, separate.logits, atol=2e-4, rtol=1e-4)


def test_logits_and_activations_are_those_of_the_first_position() -> None:
    model = make_llama().eval()
    layer = str(evaluation.find_layer(model))
    several = Behavior.response_prefix("several", TOKENIZER, PROMPTS, REFUSALS)
    single = Behavior.response_prefix("single", TOKENIZER, PROMPTS, ["sorry"])
    for _ in range(2):
        left = evaluation.evaluate(several, model, layers=[layer])
        right = evaluation.evaluate(single, model, layers=[layer])
        assert left.logits is not None and right.logits is not None
        torch.testing.assert_close(left.logits, right.logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(left.activations, right.activations, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("build", [PlainLM, Bigram])
def test_models_without_masks_read_several_tokens(build: type) -> None:
    torch.manual_seed(0)
    model, rows = build(), [[3, 7, 9], [8, 10, 4]]
    behavior = Behavior("b", TokenBatch.pad(rows), ResponsePrefix([(5, 6), (7, 8, 9), (10,)], True))
    margins = evaluation.evaluate(behavior, model).margins
    for row, margin in zip(rows, margins, strict=True):
        alone = Behavior("b", TokenBatch.pad([row]), behavior.margins)
        assert evaluation.evaluate(alone, model).margins[0] == pytest.approx(margin, abs=1e-5)


def test_a_model_that_ignores_the_mask_computes_separate_rows() -> None:
    """Its branches would see each other and the padding."""
    behavior = Behavior.response_prefix("refusal", TOKENIZER, PROMPTS[:1], REFUSALS)
    honest = evaluation.evaluate(behavior, make_llama().eval()).margins
    model = make_llama().eval()
    forward = model.forward

    def deaf(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        if attention_mask is not None and attention_mask.dim() == 4:
            attention_mask = None
        return forward(*args, attention_mask=attention_mask, **kwargs)

    deaf.__signature__ = __import__("inspect").signature(forward)  # type: ignore[attr-defined]
    model.forward = deaf
    for _ in range(3):
        found = evaluation.evaluate(behavior, model).margins
        assert found == pytest.approx(honest, abs=1e-4)


def test_behaviors_with_the_same_branches_share_a_pass() -> None:
    model = make_llama().eval()
    behaviors = [
        Behavior.response_prefix("refusal", TOKENIZER, PROMPTS[:2], REFUSALS),
        Behavior.response_prefix("over", TOKENIZER, PROMPTS[2:], REFUSALS, avoid=True),
        Behavior.response_prefix("single", TOKENIZER, PROMPTS[2:], ["sure"]),
        Behavior.next_token("words", [[3, 4]], [5]),
    ]
    groups = evaluation.group_by_forward_pass(behaviors, model)
    names = [[behavior.name for behavior in group] for group in groups]
    assert names == [["refusal", "over"], ["single", "words"]]
    together = evaluation.evaluate_batch(groups[0], model, list(model.parameters()))
    for behavior in groups[0]:
        alone = evaluation.evaluate(behavior, model)
        assert together[behavior.name].margins == pytest.approx(alone.margins, abs=1e-4)
        assert together[behavior.name].gradient is not None


def test_prefixes_of_a_state_are_those_that_were_saved() -> None:
    margins = ResponsePrefix([(5, 6), 7], avoid=False)
    other = ResponsePrefix([], avoid=False)
    other.load_state_dict(margins.state_dict())
    assert other.prefixes == [(5, 6), (7,)] and other.branches == ((5,),)
    other.load_state_dict({"prefixes": [3, 4]})  # of an older record
    assert other.prefixes == [(3,), (4,)] and other.branches == ()
    for wrong in ([], [[]], [["a"]], ["ab"], [1.0]):
        with pytest.raises(ValueError, match="token ids"):
            other.load_state_dict({"prefixes": wrong})


def spellings(prefix: str) -> list[list[str]]:
    behavior = Behavior.response_prefix("r", make_bytes_tokenizer(), ["a"], [prefix])
    return [make_bytes_tokenizer().decode(list(row)) for row in behavior.margins.prefixes]


def test_apostrophes_and_spaces_are_spellings_of_a_prefix() -> None:
    assert set(spellings("I'm")) == {"I'm", "I’m", " I'm", " I’m"}
    assert set(spellings("I’m")) == set(spellings("I'm"))
    assert set(spellings("No")) == {"No", " No"}
    chat = make_bytes_tokenizer()
    chat.chat_template = "{{ messages[0]['content'] }}"
    behavior = Behavior.response_prefix("r", chat, ["a"], ["No"])
    assert [chat.decode(list(row)) for row in behavior.margins.prefixes] == ["No"]


@pytest.mark.parametrize(
    ("prefix", "other"),
    [("抱歉", "我可以"), ("申し訳", "はい"), ("죄송", "네"), ("آسف", "أولا"), ("Извините", "Итак"),
     ("ขอโทษ", "ของ"), ("मन्न", "मह")],
)  # fmt: skip
def test_scripts_of_several_tokens_a_character_are_told_apart(prefix: str, other: str) -> None:
    tokenizer = make_bytes_tokenizer()
    behavior = Behavior.response_prefix("r", tokenizer, ["a", "b"], [prefix])

    class Says(nn.Module):
        """Continues every prompt with one text."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.answer = tokenizer(text)["input_ids"]

        def forward(self, ids: Tensor) -> Tensor:
            logits = torch.zeros(*ids.shape, 256)
            for row in logits:
                for at in range(min(len(row), len(self.answer))):
                    row[at, self.answer[at]] = 9.0
            return logits

    assert (evaluation.evaluate(behavior, Says(prefix + "。")).margins > 0).all()
    assert (evaluation.evaluate(behavior, Says(other)).margins < 0).all()


@pytest.mark.parametrize(
    ("prefix", "says"),
    [("I", "'I', with which \"I'd be happy to help\" begins too"), ("I'm", "glad you asked"),
     ([230], "part of a character"), ("As", "As requested")],
)  # fmt: skip
def test_prefixes_that_cannot_be_told_apart_are_named(prefix: Any, says: str) -> None:
    with pytest.warns(UserWarning, match=says):
        Behavior.response_prefix("r", make_bytes_tokenizer(), ["a"], [prefix])


def test_prefixes_that_can_be_told_apart_are_not_named(recwarn: pytest.WarningsRecorder) -> None:
    told = ["I'm sorry", "I cannot", "Sorry", "Sure", "The", "抱歉", "Unfortunately"]
    Behavior.response_prefix("r", make_bytes_tokenizer(), ["a"], told)
    assert not recwarn.list
