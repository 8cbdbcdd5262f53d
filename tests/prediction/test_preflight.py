"""`riprap.preflight`: planted rows come first, products are true, and nothing of the user moves."""

from __future__ import annotations

import copy
import io
import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import riprap
from riprap.behaviors import Behavior
from riprap.commands.preflight._run import print_preflight
from riprap.errors import ConfigError
from riprap.prediction import Outlook, Preflight
from riprap.report import write_preflight
from riprap.types import Forecast
from tiny import Classifier, PlainLM

OLD, NEW = range(10, 20), range(20, 40)  # tokens of the behavior's prompts, and of new rows
ANSWER, WRONG = 5, 6
PLANTED = range(40, 50)  # rows that teach another answer to the behavior's prompts


def behavior(floor: float = 0.9) -> Behavior:
    prompts = torch.tensor([[2, first, 3, second] for first in OLD for second in (7, 8)])
    return Behavior.next_token("old", prompts, torch.full((len(prompts),), ANSWER), floor=floor)


def taught(seed: int = 0) -> PlainLM:
    """A model that has the behavior, in float64."""
    torch.manual_seed(seed)
    model = PlainLM().double()
    old = behavior()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(60):
        loss = nn.functional.cross_entropy(
            model(old.probes.input_ids)[:, -1], torch.full((len(old),), ANSWER)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


def rows() -> tuple[Tensor, Tensor]:
    """100 rows of which ten teach a wrong answer to old prompts; the others have new prompts."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(20, 40, (100, 4), generator=generator)
    inputs[:, 0], inputs[:, 2] = 2, 3
    targets = torch.randint(20, 40, (100,), generator=generator)
    for place, row in enumerate(PLANTED):
        inputs[row] = torch.tensor([2, OLD[place], 3, 7 + place % 2])
        targets[row] = WRONG
    return inputs, targets


def batches(size: int = 10, keep: Any = slice(None)) -> list[dict[str, Tensor]]:
    inputs, targets = rows()
    inputs, targets = inputs[keep], targets[keep]
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(2))
    parts = order.split(size)
    return [{"tokens": inputs[part], "targets": targets[part], "row": part} for part in parts]


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    logits = model(batch["tokens"])[:, -1]
    return nn.functional.cross_entropy(logits, batch["targets"], reduction="none")


def predict(model: nn.Module, data: Any = None, **options: Any) -> Preflight:
    defaults: dict[str, Any] = {"loss": loss, "steps": 60, "n_rows": None}
    if options.get("optimizer") is None:
        options["optimizer"] = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0)
    data = batches() if data is None else data
    behaviors = options.pop("behaviors", [behavior()])
    return riprap.preflight(model, data, behaviors, **defaults | options)


def numbers(data: list[dict[str, Tensor]]) -> np.ndarray:
    """Number in `rows` of each row of the batches."""
    return torch.cat([batch["row"] for batch in data]).numpy()


def test_planted_rows_are_ranked_worst_and_do_most_of_it() -> None:
    found = predict(taught()).behaviors["old"]
    ranked = numbers(batches())[found.ranking]
    assert set(ranked[:10].tolist()) == set(PLANTED)
    planted = np.isin(numbers(batches()), PLANTED)
    assert found.harm[planted].min() > 3 * found.harm[~planted].mean() > 0
    assert found.rows_for_half is not None and found.rows_for_half < 50
    assert found.explained and found.without_worst is not None
    assert found.drift < found.without_worst.drift
    for baseline in ("normalized_harm", "sqsd_like"):
        ranked = numbers(batches())[np.argsort(-getattr(found, baseline))]
        assert len(set(ranked[:10].tolist()) & set(PLANTED)) >= 8


@pytest.mark.parametrize("warm_steps", [1, 5])
def test_harm_is_the_fall_after_one_small_step_on_the_row(warm_steps: int) -> None:
    """By hand, in float64: the warm start, then a step of plain descent on each of some rows."""
    model, rate = taught(), 1e-5
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    data = batches()
    options = {"warm_steps": warm_steps, "checkpoints": 1}
    found = predict(model, optimizer=optimizer, **options).behaviors["old"]
    ramp = min(4, warm_steps)
    for step in range(warm_steps):
        _descend(model, data[step], rate * min(1.0, (step + 1) / ramp))
    before = _mean_margin(model)
    places = [0, 3, 11, 47, int(found.ranking[0]), int(found.ranking[-1])]
    for place in places:
        batch, row = divmod(place, 10)
        one = {name: part[row : row + 1] for name, part in data[batch].items()}
        moved = copy.deepcopy(model)
        _descend(moved, one, rate)
        assert found.harm[place] == pytest.approx(before - _mean_margin(moved), rel=2e-3, abs=1e-12)
    moved = copy.deepcopy(model)
    everything = {name: torch.cat([b[name] for b in data]) for name in data[0]}
    _descend(moved, everything, rate)
    assert found.outlook.drift == pytest.approx(_mean_margin(moved) - before, rel=2e-3)


def _descend(model: nn.Module, batch: dict[str, Tensor], rate: float) -> None:
    gradients = torch.autograd.grad(loss(model, batch).mean(), list(model.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter -= rate * gradient


def _margins(model: nn.Module) -> Tensor:
    """Logit of the answer less the largest other one, written out."""
    with torch.no_grad():
        logits = model(behavior().probes.input_ids)[:, -1].double()
    right = logits[:, ANSWER].clone()
    logits[:, ANSWER] = -math.inf
    return right - logits.max(1).values


def _mean_margin(model: nn.Module) -> float:
    return float(_margins(model).mean())


def test_harm_goes_through_adams_scales() -> None:
    """One more step on a row alone moves the weights by the rate times √v̂, as Adam's state has."""
    model, rate, data = taught(), 1e-4, batches()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    found = predict(model, optimizer=optimizer, warm_steps=8, checkpoints=1).behaviors["old"]
    twin = copy.deepcopy(model)
    own = torch.optim.Adam(twin.parameters(), lr=rate)
    for step in range(8):
        own.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 4)
        own.zero_grad()
        loss(twin, data[step]).mean().backward()
        own.step()
    parameters = list(twin.parameters())
    margins = behavior().margins(twin, behavior().probes)
    values = margins if isinstance(margins, Tensor) else margins.values
    protected = torch.autograd.grad(values.mean(), parameters)
    for place in (0, 25, int(found.ranking[0])):
        batch, row = divmod(place, 10)
        one = {name: part[row : row + 1] for name, part in data[batch].items()}
        gradients = torch.autograd.grad(loss(twin, one).mean(), parameters)
        fall = 0.0
        for h, g, p in zip(protected, gradients, parameters, strict=True):
            v = own.state[p]["exp_avg_sq"] / (1 - 0.999**8)
            scale = torch.where(v.sqrt() > 1e-8, rate / (v.sqrt() + 1e-8), 0.0)
            fall += float((h * scale * g).sum())
        assert found.harm[place] == pytest.approx(fall, rel=1e-4)


def test_dropping_the_worst_rows_raises_the_forecast_and_replay_does_too() -> None:
    model = taught()
    found = predict(model, steps=400).behaviors["old"]
    assert found.outlook.predicts_break and found.without_worst is not None
    assert found.without_worst.forecast.median > found.outlook.forecast.median
    assert found.without_worst.probability <= found.outlook.probability
    drifts = [found.outlook.drift, found.replay[0.1].drift, found.replay[0.25].drift]
    assert drifts == sorted(drifts)
    kept = [row for row in range(100) if row not in PLANTED]
    harmless = predict(model, batches(keep=kept), steps=400).behaviors["old"]
    assert harmless.outlook.forecast.median > found.outlook.forecast.median
    assert found.without_worst.drift == pytest.approx(harmless.outlook.drift, rel=0.3)


def test_the_break_comes_about_when_it_is_forecast() -> None:
    model, data = taught(), batches()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0)
    found = predict(model, optimizer=optimizer, steps=400).behaviors["old"]
    broke = None
    for step in range(400):
        optimizer.zero_grad()
        loss(model, data[step % len(data)]).mean().backward()
        optimizer.step()
        with torch.no_grad():
            margins = behavior().margins(model, behavior().probes)
        if (
            float(
                ((margins if isinstance(margins, Tensor) else margins.values) > 0).double().mean()
            )
            < 0.9
        ):
            broke = step + 1
            break
    assert broke is not None and found.outlook.predicts_break
    assert broke / 3 <= found.outlook.forecast.median <= broke * 3


def test_the_pace_is_a_line_through_the_last_evaluations() -> None:
    """By hand: Adam's first 16 steps, margins after 8, 12 and 16, a line for each probe."""
    model, rate, data = taught(), 2e-3, batches()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    found = predict(model, optimizer=optimizer).behaviors["old"]
    own, done, sums, margins = torch.optim.Adam(model.parameters(), lr=rate), 0.0, [], []
    for step in range(16):
        own.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 4)
        own.zero_grad()
        loss(model, data[step % 10]).mean().backward()
        own.step()
        done += min(1.0, (step + 1) / 4)
        if step + 1 in (8, 12, 16):
            sums.append(done)
            margins.append(_margins(model).numpy())
    slopes = np.polyfit(sums, np.array(margins), 1)[0]
    assert found.pace == pytest.approx(slopes.mean(), rel=1e-6)
    assert found.slopes == pytest.approx(slopes / 4 + slopes.mean() * 3 / 4, rel=1e-6)
    assert found.margins == pytest.approx(margins[-1], rel=1e-6)


def test_a_break_in_the_warm_start_is_said_as_it_was_seen() -> None:
    model = taught()
    fast = torch.optim.AdamW(model.parameters(), lr=5e-2, weight_decay=0)
    found = predict(model, optimizer=fast, steps=400).behaviors["old"]
    assert found.without_worst is None and not found.replay
    outlook = found.outlook
    assert outlook.probability == 1 and outlook.forecast.high <= 16
    assert outlook.forecast.low < outlook.forecast.high
    assert found.broke_at is not None and found.broke_at % 4 == 0 and found.broke_at <= 16
    assert "probability of a break seen, broke within the warm start, at step" in repr(found)


def test_a_break_that_was_seen_is_told_apart_from_a_forecast(tmp_path: Path) -> None:
    model = taught()
    fast = torch.optim.AdamW(model.parameters(), lr=5e-2, weight_decay=0)
    sturdy = Behavior("sturdy", torch.ones(9), lambda model, x: x + 0 * model.head.weight.sum())
    found = predict(model, optimizer=fast, steps=400, behaviors=[behavior(), sturdy])
    step = found.behaviors["old"].broke_at
    assert found.verdict.startswith(
        f"old broke within the warm start, at step {step} of 16: in the"
    )
    assert "No break of another behavior is predicted" in found.verdict
    assert "predicted to break" not in found.verdict and found.broken == ["old"]
    stored = found.to_dict()["behaviors"]
    assert stored["old"]["broke_in_warm_start"] == step
    assert stored["old"]["all_rows"]["probability"] is None
    assert stored["sturdy"]["broke_in_warm_start"] is None
    assert stored["sturdy"]["all_rows"]["probability"] == 0.0
    page = write_preflight(found, "rows", {}, {}, tmp_path / "page.html").read_text("utf-8")
    page = re.sub("<[^>]+>", "", page)  # explained words are marked
    assert f"It broke within the warm start, at step {step} of 16: that was seen" in page
    assert page.count("A break within 400 steps has a probability of 0.00") == 1  # of sturdy
    printed = Console(file=io.StringIO(), width=200)
    print_preflight(found, printed)
    assert isinstance(printed.file, io.StringIO)
    (row,) = (line for line in printed.file.getvalue().splitlines() if "old" in line)
    assert f"broke within the warm start, at step {step}" in row and "seen" in row
    assert "1.00" not in row and "probability of 1.00" not in page


def test_no_forecast_is_shown_as_certain() -> None:
    spans = Forecast(1.0, 2.0, 3.0, 9)
    texts = [Outlook(0.0, spans, value).probability_text for value in (1.0, 0.997, 0.99, 0.2, 0.0)]
    assert texts == ["> 0.99", "> 0.99", "0.99", "0.20", "0.00"]


def test_a_break_that_the_plan_does_not_reach_is_said_so() -> None:
    model = taught()
    fast = torch.optim.AdamW(model.parameters(), lr=5e-2, weight_decay=0)
    short = [1.0] + [0.0] * 39
    found = predict(model, optimizer=fast, steps=40, schedule=short)
    assert found.behaviors["old"].broke_at is not None and not found.broken
    assert "the learning rates of the configured 40 steps sum to less" in found.verdict


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"steps": 0}, "steps=0: give a whole number of at least 1"),
        ({"steps": -1}, "steps=-1: give a whole number of at least 1"),
        ({"steps": 2.5}, r"steps=2\.5\): give a whole number or None"),
        ({"warm_steps": 0}, "warm_steps=0: give a whole number of at least 1"),
        ({"checkpoints": -2}, "checkpoints=-2: give a whole number of at least 1"),
        ({"n_rows": 0}, "n_rows=0: give a whole number of at least 1, or None for all rows"),
        ({"max_grad_norm": -1.0}, "max_grad_norm=-1.0: give a number above 0"),
        ({"schedule": "cosine"}, "schedule='cosine': give a function of the step"),
        ({"loss": "ce"}, "loss='ce': give a function"),
        ({"behaviors": "old"}, "give a list of behaviors, not a str"),
    ],
)
def test_wrong_arguments_are_one_sentence(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        predict(taught(), **given)


def test_a_plan_shorter_than_the_warm_start_shortens_it_in_words() -> None:
    found = predict(taught(), steps=3, checkpoints=2)
    assert found.warm_steps == 1 and found.checkpoints == (1,)
    assert found.notes == (
        "the warm start has 1 step, not 16: it takes at most half of the 3 planned ones",
        "the rows are scored once, not 2 times: at most once in each step of the warm start",
    )
    assert found.to_dict()["notes"] == list(found.notes)
    assert not predict(taught(), steps=60).notes


def test_the_schedule_moves_the_break() -> None:
    model = taught()
    constant = predict(model, steps=400).behaviors["old"].outlook
    halved = predict(model, steps=799, schedule=lambda step: 1.0 if step == 798 else 0.5)
    late = halved.behaviors["old"].outlook
    assert late.forecast.median == pytest.approx(2 * constant.forecast.median, abs=2)
    assert late.probability == pytest.approx(constant.probability, abs=0.01)


def two_rates(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    """An optimizer with two groups, of which the second has half of the rate."""
    first, *rest = model.parameters()
    groups = [{"params": [first], "lr": rate}, {"params": rest, "lr": rate / 2}]
    return torch.optim.AdamW(groups, weight_decay=0)


def test_the_full_rate_of_a_group_is_the_largest_that_it_gets() -> None:
    model = taught()
    plain = predict(model, optimizer=two_rates(model, 5e-3)).behaviors["old"]
    given = {"optimizer": two_rates(model, 2.5e-3), "schedule": [2.0] * 60}
    told = predict(model, **given).behaviors["old"]
    assert (told.harm == plain.harm).all() and (told.slopes == plain.slopes).all()
    assert told.outlook == plain.outlook
    other = predict(model, optimizer=two_rates(model, 2.5e-3)).behaviors["old"]
    assert np.abs(other.harm).mean() < 0.8 * np.abs(plain.harm).mean()


def test_factors_are_of_the_rate_with_which_a_scheduler_found_the_optimizer() -> None:
    """The present rate is that of the first step of the warm-up: a tenth of it."""
    model, warm_up = taught(), lambda step: min(1.0, (step + 1) / 10)
    plain = predict(model, optimizer=two_rates(model, 5e-3), schedule=warm_up)
    scheduled = two_rates(model, 5e-3)
    torch.optim.lr_scheduler.LambdaLR(scheduled, warm_up)
    assert scheduled.param_groups[0]["lr"] == pytest.approx(5e-4)
    found = predict(model, optimizer=scheduled, schedule=warm_up)
    assert (found.behaviors["old"].harm == plain.behaviors["old"].harm).all()
    assert found.behaviors["old"].outlook == plain.behaviors["old"].outlook


def test_rates_that_cannot_be_known_are_refused() -> None:
    model = taught()
    scheduled, cycled = two_rates(model, 5e-3), two_rates(model, 5e-3)
    torch.optim.lr_scheduler.CosineAnnealingLR(scheduled, 60)
    with pytest.raises(ConfigError, match=r"has a scheduler.*give schedule="):
        predict(model, optimizer=scheduled)
    predict(model, optimizer=scheduled, schedule=lambda step: 1.0)
    torch.optim.lr_scheduler.OneCycleLR(cycled, 5e-3, 60)
    with pytest.raises(ConfigError, match="OneCycleLR is made on AdamW"):
        predict(model, optimizer=cycled, schedule=lambda step: 1.0)
    with pytest.raises(ConfigError, match=r"0\.005, is the learning rate of AdamW itself"):
        predict(model, schedule=[5e-3] * 60)


def test_the_users_model_optimizer_and_generators_are_untouched() -> None:
    model = taught().train()
    model.blocks[1].eval()
    model.blocks[0].weight.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3)
    loss(model, batches()[0]).mean().backward()
    optimizer.step()
    old = behavior()
    before = _everything(model, optimizer)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    found = predict(model, optimizer=optimizer, behaviors=[old])
    assert found.behaviors
    after = _everything(model, optimizer)
    assert before.keys() == after.keys()
    for name, value in before.items():
        same = (
            torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name]
        )
        assert same, name
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all() and states[2] == random.getstate()
    assert model.head.weight.grad is not None


def _everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    found: dict[str, Any] = {n: p.detach().clone() for n, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        found[f"{name}.flag"] = parameter.requires_grad
        found[f"{name}.grad"] = None if parameter.grad is None else parameter.grad.clone()
        for key, value in optimizer.state.get(parameter, {}).items():
            found[f"{name}.{key}"] = value.clone() if isinstance(value, Tensor) else value
    found |= {f"{name}.mode": module.training for name, module in model.named_modules()}
    found["groups"] = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    return found


def test_a_behavior_that_starts_broken_is_named_and_left_out() -> None:
    prompts = torch.tensor([[2, token, 3, 7] for token in OLD])
    lost = Behavior.next_token("lost", prompts, torch.full((len(prompts),), WRONG))
    found = predict(taught(), behaviors=[behavior(), lost])
    assert list(found.behaviors) == ["old"]
    assert found.left_out == {"lost": "starts broken: its score 0.00 is under its floor 0.90"}
    with pytest.raises(ConfigError, match="no behavior can be predicted to break: lost starts"):
        predict(taught(), behaviors=[lost])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: torch.optim.Adafactor(p), "the steps of Adafactor cannot be predicted"),
        (lambda p: torch.optim.RMSprop(p), "the steps of RMSprop cannot be predicted"),
        (lambda p: torch.optim.LBFGS(p), "the steps of LBFGS cannot be predicted"),
        (lambda p: torch.optim.Rprop(p), "the steps of Rprop cannot be predicted"),
    ],
)
def test_an_optimizer_that_cannot_be_read_is_refused(
    make: Callable[[Any], Any], words: str
) -> None:
    model = taught()
    with pytest.raises(ConfigError, match=words):
        predict(model, optimizer=make(model.parameters()))


def test_momentum_counts_as_often_as_it_repeats_a_gradient() -> None:
    model = taught()
    plain = predict(model, optimizer=torch.optim.SGD(model.parameters(), lr=1e-9), warm_steps=1)
    heavy = torch.optim.SGD(model.parameters(), lr=1e-9, momentum=0.9, nesterov=True)
    found = predict(model, optimizer=heavy, warm_steps=1)
    one, ten = plain.behaviors["old"].harm, found.behaviors["old"].harm
    assert ten == pytest.approx(10 * one, rel=1e-3)


def test_clipping_shortens_the_predicted_steps() -> None:
    model = taught()
    options = {"optimizer": torch.optim.SGD(model.parameters(), lr=1e-9), "warm_steps": 1}
    free = predict(model, **options)
    data = batches()
    gradients = [
        torch.autograd.grad(loss(model, batch).mean(), list(model.parameters())) for batch in data
    ]
    squares = [sum(float((part**2).sum()) for part in gradient) for gradient in gradients]
    typical = math.sqrt(np.mean(squares))
    clipped = predict(model, max_grad_norm=typical / 4, **options)
    assert clipped.clipped == pytest.approx(0.25, rel=0.15)
    expected = clipped.clipped * free.behaviors["old"].harm
    assert clipped.behaviors["old"].harm == pytest.approx(expected, rel=1e-6)


def test_refusals_name_what_would_be_right() -> None:
    model = taught()
    with pytest.raises(ConfigError, match="there are no rows"):
        predict(model, [])
    with pytest.raises(ConfigError, match="there are no behaviors"):
        predict(model, behaviors=[])
    with pytest.raises(ConfigError, match="with `labels`, or loss="):
        predict(model, loss=None)
    with pytest.raises(ConfigError, match="give a list of batches"):
        predict(model, batches()[0])
    with pytest.raises(ConfigError, match="has no rate above 0"):
        predict(model, schedule=lambda step: 0.0)
    frozen = taught().requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable parameter"):
        riprap.preflight(frozen, batches(), [behavior()], loss=loss)


def test_training_that_moves_nothing_or_diverges_is_refused() -> None:
    model = taught()
    with pytest.raises(ConfigError, match="moved no weight"):
        predict(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.0))
    with pytest.raises(ConfigError, match=r"after 16 steps.*would diverge"):
        predict(model, optimizer=torch.optim.SGD(model.parameters(), lr=1e200), checkpoints=1)


def test_a_model_without_gradients_by_row_is_refused_before_training() -> None:
    model, x = Classifier(), torch.randn(12, 8)
    margins = Behavior("b", x, lambda model, x: model(x)[:, 0] - model(x)[:, 1] + 100)
    batch = {"x": x, "y": torch.zeros(12, dtype=torch.long)}

    def own(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")

    with pytest.raises(ConfigError, match=r"BatchNorm1d, which mixes the rows.*under a Monitor"):
        riprap.preflight(model, [batch], [margins], loss=own)


def test_rows_are_sampled_and_the_result_says_how_many() -> None:
    found = predict(taught(), n_rows=35)
    assert len(found.rows) == 40 and found.n_rows == 100
    assert found.scored == "40 of 100 rows"
    data = batches()
    whole = predict(taught(), data)
    same = whole.behaviors["old"].harm[found.rows]
    assert found.behaviors["old"].harm == pytest.approx(same, rel=1e-9)


def test_scores_and_verdict_are_plain_values() -> None:
    found = predict(taught(), steps=400)
    assert set(found.scores("old")) == {
        *("harm", "normalized_harm", "sqsd_like"),
        *("length", "loss", "gradient_norm", "random"),
    }
    assert all(len(values) == 100 for values in found.scores("old").values())
    assert found.verdict.startswith("This data set is predicted to break old after ")
    assert "of the configured 400, and " in found.verdict
    assert "of 100 rows do half of it" in found.verdict
    stored = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert stored["predicted_to_break"] == ["old"]
    model = taught()
    slow = torch.optim.AdamW(model.parameters(), lr=1e-6)
    safe = predict(model, steps=400, optimizer=slow)
    assert safe.verdict.startswith("No break is predicted within")
