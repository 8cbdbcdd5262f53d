"""What cannot be taken sample by sample is refused by name, and nothing is left behind."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from riprap import Behavior, selection
from riprap.errors import ConfigError
from riprap.selection import Selector
from selection.cases import WIDTH, Net, batch, lora, make, trained
from selection.test_loops import sgd, training
from tiny import Classifier, make_llama


class Odd(nn.Module):
    """A parameter of its own, in a layer that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(WIDTH))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * self.gain


class Scaled(nn.Linear):
    """A Linear that is none."""

    def forward(self, hidden: Tensor) -> Tensor:
        return 2 * super().forward(hidden)


class Bypassed(nn.Module):
    """A layer whose weight is used without it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden @ self.inner.weight


class Routed(nn.Module):
    """An expert that is given some tokens of all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.expert = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        tokens = hidden.reshape(-1, WIDTH)
        return self.expert(tokens).view_as(hidden)


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (Odd, r"layers\.0\.gain"),
        (lambda: Scaled(WIDTH, WIDTH), r"layers\.0\.weight"),
        (lambda: nn.BatchNorm1d(7), r"layers\.0 is a BatchNorm1d"),
        (Bypassed, r"layers\.0\.inner\.weight received a gradient from outside"),
        (Routed, r"layers\.0\.expert was given 35 rows of a batch of 5"),
        (lambda: nn.MultiheadAttention(WIDTH, 1), r"layers\.0\.in_proj_weight"),
    ],
)
def test_what_is_not_covered_is_named(layer: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        selection.gradient_norms(Net(layer()), batch())


def test_frozen_parameters_may_be_anything() -> None:
    net = Net(Odd(), nn.Linear(WIDTH, WIDTH))
    net.layers[0].gain.requires_grad_(False)
    assert selection.gradient_norms(net, batch()).min() > 0
    assert net.layers[0].gain.grad is None


@pytest.mark.parametrize(
    "packed",
    [
        {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3]]).expand(5, -1)},
        {"cu_seq_lens_q": torch.tensor([0, 3, 7])},
    ],
)
def test_packed_batches_are_refused(packed: dict) -> None:
    with pytest.raises(ConfigError, match="packed"):
        selection.gradient_norms(make("llama"), batch(padded=False) | packed)


def test_a_column_of_row_ids_that_is_not_there_is_named() -> None:
    """Trainer takes out what the model does not know; numbers that start again name no row."""
    model = training("lora")
    with (
        Selector("random", row_id="id").attach(model, sgd(model)),
        pytest.raises(ConfigError, match="remove_unused_columns=False"),
    ):
        model(**batch())
    assert torch.is_grad_enabled()


def test_a_behavior_that_is_gone_at_the_start_is_said() -> None:
    model = training("lora")
    gone = Behavior("gone", probes=[0], margins=lambda m, _: -m.lm_head.weight.square().sum()[None])
    with pytest.warns(UserWarning, match="'gone' has a mean margin of -"):
        Selector("adaptive", behaviors=[gone]).begin(model, sgd(model))


def masked(kind: str = "BertForMaskedLM") -> Any:
    sizes = {"vocab_size": 47, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    return getattr(transformers, kind)(transformers.BertConfig(num_hidden_layers=1, **sizes))


def test_labels_that_are_not_of_next_tokens_are_refused() -> None:
    """Read as if they were, every norm would be wrong; in a loop the model's own loss tells."""
    model = masked()
    model.cls.requires_grad_(False)
    for ask in (selection.gradient_norms, selection.score):
        with pytest.raises(ConfigError, match="BertForMaskedLM are not those of next tokens"):
            ask(model, batch())
    with (
        Selector("random").attach(model.train(), sgd(model)),
        pytest.raises(ConfigError, match="weighted mean"),
    ):
        model(**batch()).loss.backward()


def test_a_regression_is_asked_for_its_losses() -> None:
    model = masked("BertForSequenceClassification")
    given = batch() | {"labels": torch.rand(5)}
    with pytest.raises(ConfigError, match=r"do not belong to labels of shape \(5,\)"):
        selection.gradient_norms(model, given)


def test_compiled_models_are_refused() -> None:
    model = training("lora")
    with pytest.raises(ConfigError, match="compiled"):
        Selector().begin(torch.compile(model), sgd(model))


def test_lora_of_an_embedding_is_refused_by_name() -> None:
    model = lora(make_llama, ["embed_tokens"])
    with pytest.raises(ConfigError, match="lora_embedding_A"):
        Selector().begin(model, sgd(model))


@pytest.mark.parametrize("made", ["prompt", "p-tuning", "cpt", "prefix"])
def test_virtual_tokens_of_all_rows_are_refused(made: str) -> None:
    """PEFT computes them once for a batch; those of prefix tuning belong to a row each."""
    kind: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    kinds = {
        "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=4, **kind),
        "p-tuning": lambda: peft.PromptEncoderConfig(
            num_virtual_tokens=4, encoder_hidden_size=8, **kind
        ),
        "cpt": lambda: peft.CPTConfig(
            cpt_token_ids=[4, 5], cpt_mask=[1, 1], cpt_tokens_type_mask=[1, 2], **kind
        ),
        "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=4, **kind),
    }
    model = peft.get_peft_model(make_llama(), kinds[made]())
    ids = torch.randint(3, 20, (4, 6))
    if made == "prefix":
        assert len(selection.gradient_norms(model, {"input_ids": ids, "labels": ids})) == 4
        return
    with pytest.raises(ConfigError, match="virtual tokens are computed once for all rows"):
        Selector("moderate", 0.5).attach(model, sgd(model)).__enter__()


def test_a_penalty_on_weights_is_refused_not_lost() -> None:
    model = training("lora")
    weight = next(iter(trained(model).values()))
    with (
        Selector("high").attach(model, sgd(model)),
        pytest.raises(ConfigError, match="outside of its own layer"),
    ):
        (model(**batch()).loss + weight.square().sum()).backward()


def test_a_step_without_a_pass_is_refused() -> None:
    model = training("lora").eval()
    optimizer = sgd(model)
    with Selector("random").attach(model, optimizer):
        with pytest.raises(ConfigError, match="outside of its own layer"):
            model(**batch()).loss.backward()
        with pytest.raises(ConfigError, match=r"call model\.train\(\)"):
            optimizer.step()


def test_a_graph_gone_through_twice_is_refused() -> None:
    model = training("lora")
    with Selector("high").attach(model, sgd(model)):
        loss = model(**batch()).loss
        loss.backward(retain_graph=True)
        with pytest.raises(ConfigError, match="twice"):
            loss.backward()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"strategy": "median"}, "no strategy 'median'"),
        ({"ratio": 0.0}, "ratio=0.0"),
        ({"strategy": "least_harm"}, "needs behaviors"),
        ({"strategy": "adaptive"}, "needs behaviors"),
        ({"strategy": "risk"}, "needs directions"),
        ({"probe_every": 0}, "probe_every=0"),
    ],
)
def test_settings_that_cannot_work(options: dict, says: str) -> None:
    model = training("lora")
    with pytest.raises(ConfigError, match=says):
        Selector(**options).begin(model, sgd(model))


@pytest.mark.parametrize("strategy", ["moderate", "proxy"])
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(strategy: str, fails: bool) -> None:
    model, given = training("lora"), batch()
    optimizer = sgd(model)

    def state() -> Any:
        hooks = [
            (len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in m.__dict__)
            for m in model.modules()
        ]
        asked = [p.requires_grad for p in model.parameters()]
        own = [len(p._post_accumulate_grad_hooks or ()) for p in model.parameters()]
        steps = (
            len(optimizer._optimizer_step_pre_hooks),
            len(optimizer._optimizer_step_post_hooks),
        )
        return hooks, asked, own, steps, torch.is_grad_enabled()

    frozen = [p.clone() for p in model.parameters() if not p.requires_grad]
    before = state()
    with Selector(strategy).attach(model, optimizer):
        model(**given).loss.backward()
        optimizer.step()
        if fails:
            with pytest.raises(IndexError):
                model(**given | {"input_ids": given["input_ids"] + 1000})
    assert state() == before
    optimizer.zero_grad()
    after = [p for p in model.parameters() if not p.requires_grad]
    assert all(torch.equal(a, b) for a, b in zip(frozen, after, strict=True))
    assert all(p.grad is None for p in model.parameters())
    model(**given).loss.backward()
    assert all(p.grad is not None for p in trained(model).values())


@pytest.mark.parametrize("strategy", ["moderate", "proxy"])
def test_an_interrupt_leaves_nothing_behind(strategy: str) -> None:
    """Ctrl-C in the middle of a layer: hooks that are called for errors are not called for it."""
    model = training("lora")
    names, layer = [*trained(model)], model.get_submodule("base_model.model.model.layers.1")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    inner = next(m for n, m in layer.named_modules() if n.endswith("lora_A.default"))
    with pytest.raises(KeyboardInterrupt), Selector(strategy).attach(model, sgd(model)):
        handle = inner.register_forward_hook(interrupt)
        model(**batch())
    handle.remove()
    assert torch.is_grad_enabled()
    assert [*trained(model)] == names


def test_batch_statistics_are_refused() -> None:
    with pytest.raises(ConfigError, match="BatchNorm1d"):
        selection.gradient_norms(Classifier(), torch.randn(4, 8), lambda m, x: m(x)[:, 0])


def test_deepspeed_is_refused() -> None:
    model = training("lora")
    kind = type("ZeroOptimizer", (), {"__module__": "deepspeed.runtime.zero.stage3"})
    engine = kind()
    engine.optimizer = sgd(model)
    with pytest.raises(ConfigError, match="DeepSpeed"):
        Selector().begin(model, engine)
