"""Margins and losses against a slow reference: one probe at a time, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from riprap import Behavior, Margins, evaluation
from tiny import PROMPTS, Bigram, PlainLM, make_gpt2, make_llama, make_tokenizer, token

CHAT = make_tokenizer()
ROWS, TARGETS = [[3, 7, 9, 12], [8, 10], [5, 6, 7, 8, 9]], [9, 11, 30]
OPTIONS = [["two", "three plus one"], ["sorry i cannot", "sure"], ["six", "red"], ["a cake", "no"]]
ANSWERS = [1, 0, 0, 1]
TEXTS = ["sorry i cannot help", "sure", "seven", "here you can"]
KEEP, LOSE = ["sorry i cannot", "no"], ["sure here", "yes you can do that"]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def logits_of(model: nn.Module, ids: list[int]) -> np.ndarray:
    """Return the logits of one unpadded sequence, shape (T, vocabulary), float64."""
    with torch.no_grad():
        output = model(torch.tensor([ids]))
    return getattr(output, "logits", output)[0].double().numpy()


def log_prob(model: nn.Module, prompt: list[int], tail: list[int]) -> float:
    """Return the mean log-probability per token of `tail` after `prompt`."""
    rows = log_softmax(logits_of(model, prompt + tail))
    return float(np.mean([rows[len(prompt) + i - 1][t] for i, t in enumerate(tail)]))


def words(text: str) -> list[int]:
    return [token(word) for word in text.split()]


def asked(prompt: str) -> list[int]:
    return [token("<user>"), *words(prompt), token("<end>"), token("<assistant>")]


def lead_of(token: int, row: np.ndarray) -> float:
    return float(row[token] - np.delete(row, token).max())


def opening_margin(model: nn.Module, i: int) -> float:
    """Return the margin of beginning with "no", "cannot" or "sorry i": case by case."""
    first, sorry = last(model, i), token("sorry")
    then = lead_of(token("i"), logits_of(model, [*asked(PROMPTS[i]), sorry])[-1])
    single = [float(first[token(word)]) for word in ("no", "cannot")]
    others = np.delete(first, [token(word) for word in ("no", "cannot", "sorry")]).max()
    if then > 0:  # failing after "sorry" costs `then` more
        return float(max(*single, first[sorry]) - max(others, first[sorry] - then))
    return float(max(*single, first[sorry] + then) - max(others, first[sorry]))


def opening_probability(model: nn.Module, i: int) -> float:
    first = np.exp(log_softmax(last(model, i)))
    then = np.exp(log_softmax(logits_of(model, [*asked(PROMPTS[i]), token("sorry")])[-1]))
    single = first[token("no")] + first[token("cannot")]
    return float(single + first[token("sorry")] * then[token("i")])


def leading(row: np.ndarray, mine: set[int]) -> float:
    best = {True: -np.inf, False: -np.inf}
    for index, value in enumerate(row):
        best[index in mine] = max(best[index in mine], float(value))
    return best[True] - best[False]


@dataclass
class Case:
    """A behavior, with a margin and a loss computed by hand for each of its probes.

    `margin` is given the model as it is, the probe's index, and the model as it was at the start.
    """

    build: Callable[[], Behavior]
    margin: Callable[[nn.Module, int, nn.Module], float]
    loss: Callable[[nn.Module, int], float]


def last(model: nn.Module, i: int) -> np.ndarray:
    return logits_of(model, asked(PROMPTS[i]))[-1]


def option(model: nn.Module, i: int, text: str) -> float:
    return log_prob(model, asked(PROMPTS[i]), words(text))


def right_against_wrong(model: nn.Module, i: int, _: nn.Module) -> float:
    right, wrong = OPTIONS[i][ANSWERS[i]], OPTIONS[i][1 - ANSWERS[i]]
    return option(model, i, right) - option(model, i, wrong)


REFUSE = ["sorry i", "no", "cannot"]
CASES = {
    "token": Case(
        lambda: Behavior.next_token("token", ROWS, TARGETS),
        lambda m, i, _: leading(logits_of(m, ROWS[i])[-1], {TARGETS[i]}),
        lambda m, i: -log_softmax(logits_of(m, ROWS[i])[-1])[TARGETS[i]],
    ),
    "opening": Case(
        lambda: Behavior.response_prefix("opening", CHAT, PROMPTS, REFUSE),
        lambda m, i, _: opening_margin(m, i),
        lambda m, i: -np.log(opening_probability(m, i)),
    ),
    "avoid": Case(
        lambda: Behavior.response_prefix("avoid", CHAT, PROMPTS, REFUSE, avoid=True),
        lambda m, i, _: -opening_margin(m, i),
        lambda m, i: -np.log(1 - opening_probability(m, i)),
    ),
    "contrast": Case(
        lambda: Behavior.preference("contrast", CHAT, PROMPTS, KEEP, LOSE),
        lambda m, i, _: max(option(m, i, t) for t in KEEP) - max(option(m, i, t) for t in LOSE),
        lambda m, i: -max(option(m, i, text) for text in KEEP),
    ),
    "choice": Case(
        lambda: Behavior.multiple_choice("choice", CHAT, PROMPTS, OPTIONS, ANSWERS),
        right_against_wrong,
        lambda m, i: -option(m, i, OPTIONS[i][ANSWERS[i]]),
    ),
    "likelihood": Case(
        lambda: Behavior.likelihood(
            "likelihood", CHAT, texts=TEXTS, prompts=PROMPTS, tolerance=0.7
        ),
        lambda m, i, start: 0.7 + option(m, i, TEXTS[i]) - option(start, i, TEXTS[i]),
        lambda m, i: -option(m, i, TEXTS[i]),
    ),
}
MODELS = {
    "llama": lambda: make_llama().eval(),
    "gpt2": lambda: make_gpt2().eval(),
    "bigram": Bigram,
}
kinds = pytest.mark.parametrize("kind", CASES)


def moved(model: nn.Module) -> nn.Module:
    """Return a copy of a model with changed weights."""
    made, further = torch.Generator().manual_seed(3), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in further.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=made)
    return further


@kinds
@pytest.mark.parametrize("name", MODELS)
def test_margins_agree_with_the_reference(kind: str, name: str) -> None:
    case, behavior = CASES[kind], CASES[kind].build()
    start = moved(MODELS[name]())
    evaluation.calibrate(behavior, start)
    for model in (start, moved(start)):
        margins = evaluation.evaluate(behavior, model).margins
        assert len(margins) == len(behavior.probes)
        expected = [case.margin(model, i, start) for i in range(len(margins))]
        np.testing.assert_allclose(margins, expected, rtol=1e-4, atol=1e-4)


@kinds
@pytest.mark.parametrize("name", MODELS)
def test_losses_agree_with_the_reference(kind: str, name: str) -> None:
    case, behavior, model = CASES[kind], CASES[kind].build(), moved(MODELS[name]())
    assert behavior.losses is not None
    losses = behavior.losses(model, behavior.probes).detach().double().numpy()
    expected = [case.loss(model, i) for i in range(len(behavior.probes))]
    np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-4)


@kinds
def test_a_margin_is_the_same_alone_and_among_probes_of_other_lengths(kind: str) -> None:
    behavior, start = CASES[kind].build(), MODELS["llama"]()
    evaluation.calibrate(behavior, start)
    together = evaluation.evaluate(behavior, moved(start)).margins
    widths = {width_of(behavior)}
    for index in range(len(together)):
        single = behavior.subset([index])
        evaluation.calibrate(single, start)
        alone = evaluation.evaluate(single, moved(start)).margins
        np.testing.assert_allclose(alone, together[index : index + 1], rtol=1e-4, atol=1e-4)
        widths.add(width_of(single))
    assert len(widths) > 1  # or nothing was padded here


def width_of(behavior: Behavior) -> int:
    return getattr(behavior.probes, "batch", behavior.probes).input_ids.shape[1]


@pytest.mark.parametrize("kind", ["token", "opening", "avoid", "likelihood"])
def test_a_model_without_attention_mask_accepts_probes_of_equal_length(kind: str) -> None:
    case, start = CASES[kind], moved(PlainLM())
    for index in range(len(case.build().probes)):
        behavior = case.build().subset([index])
        evaluation.calibrate(behavior, start)
        margins = evaluation.evaluate(behavior, moved(start)).margins
        expected = case.margin(moved(start), index, start)
        np.testing.assert_allclose(margins, [expected], rtol=1e-4, atol=1e-4)


@kinds
def test_margins_are_attached_to_the_graph(kind: str) -> None:
    model, behavior = MODELS["llama"](), CASES[kind].build()
    evaluation.calibrate(behavior, model)
    result: Any = behavior.margins(model, behavior.probes)
    (result.values if isinstance(result, Margins) else result).sum().backward()
    assert model.lm_head.weight.grad is not None
    assert bool(model.lm_head.weight.grad.any())


@kinds
def test_a_subset_does_not_change_the_whole_behavior(kind: str) -> None:
    behavior, start = CASES[kind].build(), MODELS["llama"]()
    evaluation.calibrate(behavior, start)
    before = evaluation.evaluate(behavior, start).margins
    part = behavior.subset([2, 0])
    evaluation.calibrate(part, moved(start))
    np.testing.assert_allclose(evaluation.evaluate(behavior, start).margins, before)
    if kind != "likelihood":  # whose reference has moved with the part's start
        np.testing.assert_allclose(
            evaluation.evaluate(part, start).margins, before[[2, 0]], rtol=1e-4
        )
