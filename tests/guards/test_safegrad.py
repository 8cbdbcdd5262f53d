"""SafeGrad: the gradient of the KL, its use, and the special case of an unchanged model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from guards.cases import OLD, Run, last, lessons, monitor_of, start
from riprap import Behavior, Monitor, guards
from riprap import evaluation as probing
from riprap.errors import ConfigError
from riprap.guards.projection._safegrad import kl_with_gradient
from tiny import PROMPTS, make_llama, make_tokenizer, token


def flat(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.double().flatten() for part in parts])


def kl_gradient(reference: nn.Module, model: nn.Module) -> Tensor:
    """∇ of the mean over both behaviors of KL(p_θ₀ ‖ p_θ), by autograd through the KL, float64."""
    reference, model = reference.double(), model.double()
    total = torch.zeros((), dtype=torch.float64)
    for rows in (slice(0, 12), slice(12, 24)):
        with torch.no_grad():
            was = last(reference, OLD[rows]).log_softmax(-1)
        now = last(model, OLD[rows]).log_softmax(-1)
        total = total + 0.5 * functional.kl_div(now, was, log_target=True, reduction="batchmean")
    return flat(list(torch.autograd.grad(total, list(model.parameters()))))


def copied(model: nn.Module) -> nn.Module:
    other = start()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("strength", [1.0, 0.0, 4.0])
def test_the_step_is_that_of_the_paper(strength: float) -> None:
    """g′ + ρ g_b, written out in float64 on the gradients of each step."""
    run, tested, conflicts = Run(guards.SafeGrad(strength=strength, refresh=1)), 0, 0
    given: list[Tensor] = []
    taken: list[Tensor] = []

    def note(into: list[Tensor]) -> object:
        return lambda *_: into.append(flat([p.grad for p in run.model.parameters()]))  # type: ignore[misc]

    run.optimizer.register_step_pre_hook(note(given))  # type: ignore[arg-type]
    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        run.optimizer.register_step_pre_hook(note(taken))  # type: ignore[arg-type]
        for ids, targets in lessons(6):
            pull = kl_gradient(start(), copied(run.model))
            run.step(ids, targets)
            gradient, product = given[-1], float(given[-1] @ pull)
            if len(given) > 1:
                if product < 0:
                    gradient = gradient - product / float(pull @ pull) * pull
                    conflicts += 1
                expected = gradient + strength * pull
                torch.testing.assert_close(taken[-1], expected, atol=1e-5, rtol=1e-3)
                if strength or product < 0:
                    assert float((taken[-1] - given[-1]).norm()) > 1e-4
                tested += 1
    assert tested == 5
    assert conflicts


def test_the_surrogates_gradient_is_that_of_the_kl() -> None:
    made = torch.Generator().manual_seed(1)
    was = torch.randn(6, 9, generator=made, dtype=torch.float64)
    now = torch.randn(6, 9, generator=made, dtype=torch.float64).requires_grad_()
    value, shift, surrogate = kl_with_gradient(was, now)
    true = functional.kl_div(
        now.log_softmax(-1), was.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    ours, theirs = (torch.autograd.grad(one, now)[0] for one in (surrogate, true))
    torch.testing.assert_close(ours, theirs)
    assert value == pytest.approx(float(true))
    far = (was.softmax(-1) - now.softmax(-1)).abs().sum(-1).mean() / 2
    assert shift == pytest.approx(float(far))


def test_at_the_start_the_step_passes_bit_for_bit() -> None:
    plain, guarded = Run(None).go(lessons(1)), Run(guards.SafeGrad()).go(lessons(1))
    assert all(map(torch.equal, plain.weights(), guarded.weights()))
    (action,) = guarded.monitor.actions
    assert (action.applied, action.before["kl"]) == (False, 0.0)
    assert action.detail == "nothing to do: the answers are still the initial ones"


def adapted() -> tuple[nn.Module, torch.optim.Optimizer]:
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(make_llama(), config)
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, torch.optim.SGD(trained, lr=0.5)


def test_a_fresh_adapter_gets_its_own_first_step_and_is_guarded_after_it() -> None:
    found = []
    for guard in (None, guards.SafeGrad(refresh=1)):
        model, optimizer = adapted()
        targets = [token("sorry")] * len(PROMPTS)
        rows = make_tokenizer()(PROMPTS).input_ids  # of different lengths: padded
        monitor = monitor_of([Behavior.next_token("words", rows, targets, floor=0.01)])
        ids = torch.randint(6, 40, (4, 9), generator=torch.Generator().manual_seed(1))
        states = []
        with monitor.watch(model, optimizer, guard=guard):
            for _ in range(2):
                optimizer.zero_grad()
                model(input_ids=ids, labels=ids).loss.backward()
                optimizer.step()
                states.append([p.detach().clone() for p in model.parameters()])
        found.append((states, monitor))
    (plain, _), (guarded, monitor) = found
    assert all(map(torch.equal, plain[0], guarded[0]))
    assert not all(map(torch.equal, plain[1], guarded[1]))
    assert [action.applied for action in monitor.actions] == [False, True]


def test_g_b_is_recomputed_at_the_refresh() -> None:
    run = Run(guards.SafeGrad(refresh=3))
    seen = []
    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        for ids, targets in lessons(9):
            run.step(ids, targets)
            seen.append(run.guard.refreshed_at)  # type: ignore[union-attr]
    assert seen == [1, 2, 2, 2, 5, 5, 5, 8, 8]  # at the first there is nothing yet to take


def test_half_precision_products_do_not_overflow() -> None:
    """‖g_b‖² above 65504, the largest half."""
    model = nn.Linear(2, 2, bias=False).half()
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    probe = torch.tensor([[300.0, 0.0]]).half()
    behavior = Behavior("one", probe, lambda model, probes: model(probes)[:, 0].float())
    guard = guards.SafeGrad(refresh=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    monitor = Monitor([behavior], policy=monitor_of().policy)
    with monitor.watch(model, optimizer, guard=guard):
        with torch.no_grad():
            model.weight[0, 0] = 0.0
        model.weight.grad = torch.tensor([[600.0, 1.0], [0.0, 1.0]]).half()
        optimizer.step()
    (action,) = monitor.actions
    assert action.applied
    assert action.before["product"] < -65504
    assert torch.isfinite(model.weight).all()


@pytest.mark.parametrize("kind", ["next_token", "choice"])
def test_answers_do_not_count_padding(kind: str) -> None:
    """The same as probe by probe, where nothing needs padding."""
    model, tokenizer = make_llama().eval(), make_tokenizer()
    if kind == "next_token":
        rows = tokenizer(PROMPTS).input_ids
        every = Behavior.next_token("words", rows, [token("red")] * len(PROMPTS))
    else:
        options = [["red", "one two three"]] * 3 + [["yes", "no no"]]
        every = Behavior.multiple_choice("words", tokenizer, PROMPTS, options, [1, 0, 1, 0])
    with torch.no_grad():
        together = probing.answer_logits(every, model)
        apart = torch.cat(
            [probing.answer_logits(every.subset([i]), model) for i in range(len(PROMPTS))]
        )
    assert len(together) == (4 if kind == "next_token" else 3 + 1 + 3 + 1)
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)


def test_answers_of_continuations_are_where_their_tokens_are_predicted() -> None:
    model, tokenizer = make_llama().eval(), make_tokenizer()
    one = Behavior.multiple_choice("words", tokenizer, PROMPTS[:1], [["red", "one two three"]], [1])
    row = one.probes.batch.rows()[1]
    with torch.no_grad():
        expected = model(torch.tensor([row])).logits[0, -4:-1]
        torch.testing.assert_close(
            probing.answer_logits(one, model), expected, atol=1e-4, rtol=1e-4
        )


def test_invalid_arguments_are_refused() -> None:
    for options in ({"strength": -1.0}, {"refresh": 0}, {"refresh": None}):
        with pytest.raises(ConfigError, match="at least"):
            guards.SafeGrad(**options)  # type: ignore[arg-type]
    silent = Behavior("mute", OLD, lambda model, ids: model.embed(ids).sum((1, 2)) ** 2)
    run = Run(guards.SafeGrad())
    run.monitor = monitor_of([silent])
    with pytest.raises(
        ConfigError, match="guard safegrad: behavior 'mute': no logits were captured"
    ):
        run.go(lessons(1))
