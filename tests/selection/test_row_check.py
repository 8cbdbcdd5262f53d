"""Layers whose rows only look like those of the batch, and models that mix rows, are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from riprap import selection
from riprap.errors import ConfigError
from riprap.selection import Selector
from riprap.selection._row_check import RowChecker
from selection.cases import LENGTH, WIDTH, Net, batch, make, trained
from selection.test_loops import close, flat, plain, rows_of, sgd, training


class PositionsFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.inner(hidden.transpose(0, 1)).transpose(0, 1)


class FlatPositions(nn.Module):
    """Positions without a dimension for the rows, as in nanoGPT."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(LENGTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.table(torch.arange(hidden.shape[1]))


class Expert(nn.Module):
    """An expert that is given one token of each row, or every token above a threshold."""

    def __init__(self, threshold: float | None = None) -> None:
        super().__init__()
        self.expert, self.threshold = nn.Linear(WIDTH, WIDTH), threshold

    def forward(self, hidden: Tensor) -> Tensor:
        score = hidden[..., 0]
        if self.threshold is None:
            chosen = nn.functional.one_hot(score.argmax(1), score.shape[1]).bool()
        else:
            chosen = score > self.threshold
        out = torch.zeros_like(hidden)
        out[chosen] = self.expert(hidden[chosen])
        return out


def distinct(rows: int) -> dict:
    """A batch in which no token comes twice."""
    torch.manual_seed(1)
    ids = (torch.randperm(44)[: rows * LENGTH] + 3).view(rows, LENGTH)
    return {"input_ids": ids, "labels": ids}


def threshold_for(model: Any, given: dict, tokens: int) -> float:
    """The threshold above which there are so many tokens, and not one of each row."""
    score = model.embed(given["input_ids"])[..., 0].detach()
    found = float(score.flatten().sort(descending=True).values[tokens - 1 : tokens + 1].mean())
    counts = (score > found).sum(1)
    assert counts.sum() == tokens
    assert counts.max() > 1
    return found


class Centered(nn.Module):
    """Batch statistics, outside of every class that is known for them."""

    def __init__(self, only_in_training: bool = False) -> None:
        super().__init__()
        self.inner, self.only_in_training = nn.Linear(WIDTH, WIDTH), only_in_training

    def forward(self, hidden: Tensor) -> Tensor:
        mixes = self.training or not self.only_in_training
        return self.inner(hidden - hidden.mean(0, keepdim=True) if mixes else hidden)


class AcrossRows(nn.Module):
    """Attention of each position over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        across = hidden.transpose(0, 1)
        mixed = torch.softmax(across @ across.transpose(1, 2), -1) @ across
        return self.inner(mixed.transpose(0, 1))


class Rolled(nn.Module):
    """Each row is given the next one's hidden states, after the only trained layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.inner(hidden).roll(1, 0)


class Labelled(Net):
    """A model that gives its own loss."""

    def forward(self, input_ids: Tensor, attention_mask: Any = None, labels: Any = None) -> Any:
        logits = super().forward(input_ids)["logits"]
        if labels is None:
            return {"logits": logits}
        targets = labels[:, 1:].flatten()
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets)
        return {"loss": loss, "logits": logits}


KINDS = [
    (PositionsFirst, LENGTH, r"layers\.0\.inner runs on 7 rows .*, and on 7 for row 0 alone"),
    (FlatPositions, LENGTH, r"layers\.0\.table runs on 7 rows of a batch of 7"),
    (Centered, 5, r"rows of a batch are mixed before layers\.0\.inner"),
    (AcrossRows, 5, r"rows of a batch are mixed before layers\.0\.inner"),
    (Rolled, 5, r"mixed after layers\.0\.inner"),
]


@pytest.mark.parametrize(("layer", "rows", "says"), KINDS)
def test_a_loop_is_refused_before_a_gradient_is_written(layer: Any, rows: int, says: str) -> None:
    torch.manual_seed(0)
    model = Labelled(layer()).train()
    with (
        Selector("moderate", 0.4).attach(model, sgd(model)),
        pytest.raises(ConfigError, match=says),
    ):
        model(**batch(rows))["loss"].backward()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("layer", "rows", "says"), KINDS)
def test_scores_outside_of_training_are_refused(layer: Any, rows: int, says: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ConfigError, match=says):
        selection.gradient_norms(Net(layer()), batch(rows))


def test_as_many_positions_as_rows_may_come_later() -> None:
    """A model that keeps rows first stays exact when T = B."""
    model = training("llama")
    optimizer, selector = sgd(model), Selector("moderate", 0.3)
    for rows in (5, LENGTH):
        given = batch(rows, seed=rows)
        with selector.attach(model, optimizer):
            model(**given).loss.backward()
            got = flat(model)
        assert close(got, plain(model, rows_of(given, selector.history[-1].rows)))


def test_what_only_training_mode_mixes_is_seen() -> None:
    model = Labelled(Centered(only_in_training=True), nn.Dropout(0.5)).train()
    with (
        Selector("moderate", 0.4).attach(model, sgd(model)),
        pytest.raises(ConfigError, match="mixed before"),
    ):
        model(**batch())["loss"].backward()


def test_dropout_is_no_mixing_and_its_numbers_are_left_alone() -> None:
    """The check draws no random number that training would have drawn."""
    draws = []
    for checked in (True, False):
        torch.manual_seed(0)
        model = Labelled(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5)).train()
        selector = Selector("moderate", 1.0)
        with selector.attach(model, sgd(model)) as attachment:
            if not checked:
                attachment._check_rows = lambda _: None
            torch.manual_seed(1)
            model(**batch())["loss"].backward()
            draws.append((torch.rand(3), flat(model)))
            assert model.layers[1].p == 0.5
            assert model.training
    assert torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(draws[0][1], draws[1][1])


def test_each_kind_of_shape_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[Any] = []
    check = RowChecker.check

    def counted(self: RowChecker, accumulator: Any, *args: Any, **named: Any) -> None:
        shapes.append(accumulator.rows)
        check(self, accumulator, *args, **named)

    monkeypatch.setattr(RowChecker, "check", counted)
    model = training("lora")
    optimizer = sgd(model)
    with Selector("moderate", 0.4).attach(model, optimizer):
        for rows in (5, 4, 6, LENGTH, LENGTH, 5, 1):
            model(**batch(rows)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert shapes == [5, LENGTH]


@pytest.mark.parametrize("rows", [4, 5])
def test_an_expert_with_as_many_tokens_as_rows_is_refused(rows: int) -> None:
    torch.manual_seed(0)
    layer = Expert()
    model, given = Labelled(layer).train(), distinct(rows)
    layer.threshold = threshold_for(model, given, rows)
    with (
        Selector("moderate", 0.4).attach(model, sgd(model)),
        pytest.raises(ConfigError, match=r"layers\.0\.expert"),
    ):
        model(**given)["loss"].backward()


def test_an_expert_is_checked_again_though_its_first_rows_were_right() -> None:
    """At the first pass it is given one token of each row, and later as many, of some rows."""
    torch.manual_seed(0)
    layer = Expert()
    model, given = Labelled(layer).train(), distinct(4)
    optimizer = sgd(model)
    with Selector("moderate", 0.5).attach(model, optimizer):
        model(**given)["loss"].backward()
        optimizer.step()
        layer.threshold = threshold_for(model, given, 4)
        with pytest.raises(ConfigError, match=r"layers\.0\.expert"):
            model(**given)["loss"].backward()


class Paired(Labelled):
    def forward(self, input_ids: Tensor, **named: Any) -> Any:
        if len(input_ids) % 2:
            raise RuntimeError("rows come in pairs")
        return super().forward(input_ids, **named)


def test_a_row_that_cannot_be_run_alone_is_said() -> None:
    model = Paired(nn.Linear(WIDTH, WIDTH)).train()
    with (
        Selector("moderate", 0.5).attach(model, sgd(model)),
        pytest.warns(UserWarning, match="rows come in pairs"),
    ):
        model(**batch(4))["loss"].backward()
    assert all(p.grad is not None for p in trained(model).values())


def test_batches_that_do_not_fit_the_model_are_a_sentence() -> None:
    model, given = make("lora"), batch()
    ids, labels = given["input_ids"], given["labels"]
    bare = nn.Sequential(nn.Embedding(47, 8), nn.Linear(8, 47))
    for ask in (selection.gradient_norms, selection.score):
        with pytest.raises(ConfigError, match=r"\(2 tensors\) does not fit Sequential\.forward"):
            ask(bare, (ids, labels))
        with pytest.raises(ConfigError, match="was not given `labels`"):
            ask(bare, ids)
    with pytest.raises(ConfigError, match="does not fit"):
        selection.gradient_norms(bare, {"tokens": ids})
    with (
        Selector("moderate").attach(bare, sgd(bare)),
        pytest.raises(ConfigError, match="give losses="),
    ):
        bare(ids)
    assert selection.gradient_norms(model, given).min() > 0


def test_weights_that_are_computed_from_others_are_refused() -> None:
    for wrap in (
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.orthogonal,
    ):
        model = Net(wrap(nn.Linear(WIDTH, WIDTH)))
        with pytest.raises(ConfigError, match="weight is computed from other parameters"):
            selection.gradient_norms(model, batch())


def test_outputs_that_are_mixed_without_a_gradient_are_seen() -> None:
    class Shifted(Labelled):
        def forward(self, input_ids: Tensor, attention_mask: Any = None, labels: Any = None) -> Any:
            out = super().forward(input_ids, attention_mask, labels)
            return out | {"logits": out["logits"] + out["logits"].mean((0, 1)).detach()}

    model = Shifted(nn.Linear(WIDTH, WIDTH))
    with pytest.raises(ConfigError, match="the output of row 0 in the batch"):
        selection.gradient_norms(model, batch())


@pytest.mark.filterwarnings("error")
def test_a_row_that_cannot_be_run_alone_does_not_end_training_under_w_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Paired(nn.Linear(WIDTH, WIDTH)).train()
    with Selector("moderate", 0.5).attach(model, sgd(model)):
        model(**batch(4))["loss"].backward()
    assert all(p.grad is not None for p in trained(model).values())
    assert "rows come in pairs" in caplog.text
