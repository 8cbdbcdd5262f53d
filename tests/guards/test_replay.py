"""Replay: the mixed gradient, its sources, and its effect."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from guards.cases import ANSWERS, OLD, Run, behaviors, lessons, monitor_of, old_loss
from riprap import Behavior, Monitor, guards
from riprap import evaluation as probing
from riprap.behaviors import LastLogitsMargin, ProbeSet
from riprap.detectors import BehaviorHistory
from riprap.errors import ConfigError
from riprap.evaluation import ProtectedGradients
from riprap.guards import GuardView
from riprap.guards.replay._self_distillation_buffer import (
    KEPT_LOGITS,
    answer_distance,
    answer_targets,
    margin_distance,
)
from riprap.types import Forecast
from tiny import make_llama

BATCHES = [(OLD[:12], ANSWERS[:12]), (OLD[12:], ANSWERS[12:])]


def kept(run: Run) -> float:
    with torch.no_grad():
        return float((run.model(OLD)[:, -1].argmax(-1) == ANSWERS).float().mean())


def test_the_gradient_is_that_of_a_batch_with_old_rows_in_it() -> None:
    """A quarter of 16 rows being old is what f = 0.25 stands for."""
    new_ids, new_answers = lessons(1, rows=36)[0]
    old_ids, old_answers = BATCHES[0]
    run = Run(guards.Replay(BATCHES, loss=old_loss, fraction=0.25))
    expected = torch.autograd.grad(
        functional.cross_entropy(
            run.model(torch.cat([new_ids, old_ids]))[:, -1],
            torch.cat([new_answers, old_answers]),
        ),
        list(run.model.parameters()),
    )
    found: list[Tensor] = []
    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        run.optimizer.register_step_pre_hook(
            lambda *_: found.extend(p.grad.clone() for p in run.model.parameters())
        )
        run.step(new_ids, new_answers)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_batches_come_in_their_order_and_again() -> None:
    seen = []

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        seen.append(int(batch[1][0]))
        return old_loss(model, batch)

    Run(guards.Replay(BATCHES, loss=loss)).go(lessons(5))
    first, second = int(ANSWERS[0]), int(ANSWERS[12])
    assert seen.pop(0) == first  # a look at the start, whether there is a gradient at all
    assert seen == [first, second, first, second, first]


def test_a_larger_share_preserves_more() -> None:
    scores = [kept(Run(None).go(lessons(40)))]
    for fraction in (0.2, 0.5):
        guard = guards.Replay(BATCHES, loss=old_loss, fraction=fraction)
        scores.append(kept(Run(guard).go(lessons(40))))
    assert scores[0] < scores[1] <= scores[2]
    assert scores[2] >= 0.95


# --- pools: old examples without labels, on a model that reads tokens ----------------------------

MADE = torch.Generator().manual_seed(5)
PROMPTS = torch.randint(3, 47, (60, 5), generator=MADE)


class Words:
    """A small Llama, and what it says after some prompts as a behavior to keep."""

    def __init__(self, guard: guards.Guard | None, rate: float = 0.02) -> None:
        self.model = make_llama().train()
        with torch.no_grad():
            self.said = self.model(PROMPTS).logits[:, -1].argmax(-1)
        self.behavior = self.of("words", slice(0, 20))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=rate, momentum=0.9)
        self.monitor, self.guard = monitor_of([self.behavior]), guard

    def of(self, name: str, rows: slice) -> Behavior:
        return Behavior.next_token(name, PROMPTS[rows], self.said[rows])

    def go(self, steps: int = 30) -> Words:
        made = torch.Generator().manual_seed(9)
        with self.monitor.watch(self.model, self.optimizer, guard=self.guard):
            for _ in range(steps):
                ids = torch.randint(3, 47, (8, 6), generator=made)
                self.optimizer.zero_grad()
                self.model(ids, labels=ids).loss.backward()
                self.optimizer.step()
        return self

    def score(self) -> float:
        return self.monitor.metrics()["riprap/words/score"]


def pool() -> guards.SelfDistillationBuffer:
    return guards.SelfDistillationBuffer([Words(None).of("words", slice(20, 60))], batch_size=16)


def test_a_buffer_protects_probes_that_it_does_not_contain() -> None:
    """The score is measured on other probes than those that are learned again."""
    plain = Words(None).go()
    replayed = Words(guards.Replay(pool(), fraction=0.5)).go()
    assert replayed.score() > plain.score() + 0.15


def test_a_buffer_with_monitored_probes_is_refused() -> None:
    words = Words(None)
    guard = guards.Replay(guards.SelfDistillationBuffer([words.of("words", slice(10, 30))]))
    with pytest.raises(ConfigError, match="contains 10 evaluation probes of"):
        Words(guard).go(1)


def test_probes_of_which_no_part_can_be_taken_are_refused_at_once() -> None:
    custom = Behavior("mine", [1, 2, 3], lambda model, probes: torch.ones(3))
    with pytest.raises(
        ConfigError, match=r"'mine': its probes are of type list; derive .*ProbeSet"
    ):
        guards.SelfDistillationBuffer([custom])


def test_each_pass_draws_every_example_once() -> None:
    source = pool()
    drawn = [source._next_rows("words", 16) for _ in range(5)]
    every = [index for one in drawn for index in one]
    first, second = every[:40], every[40:]
    assert sorted(first) == list(range(40))
    assert len(set(second)) == 40
    assert first != second


class Lead(LastLogitsMargin):
    """The lead of the most likely token: nobody says which token is right."""

    def from_logits(self, logits: Tensor) -> Tensor:
        first, second = logits.topk(2).values.unbind(-1)
        return first - second

    def select(self, indices: Sequence[int]) -> Lead:
        return self


def test_at_the_start_there_is_nothing_to_learn_again() -> None:
    """The target is the start's own output, so the first gradient is 0 without right answers."""
    for known in (False, True):
        source, words = pool(), Words(None)
        assert source.targets == {}
        if not known:
            source.behaviors["words"] = Behavior("words", source.behaviors["words"].probes, Lead())
        words.guard = guards.Replay(source, fraction=0.5)
        words.go(1)
        first = words.monitor.actions[0]
        assert first.before["loss"] == pytest.approx(0.0, abs=1e-5)
        still = pytest.approx(0.5 * first.before["norm"], rel=1e-3)
        assert (first.after["norm"] == still) is not known  # a known answer is learned further


def test_margins_are_the_targets_without_logits() -> None:
    run = Run(
        guards.Replay(
            guards.SelfDistillationBuffer([custom("memory", PROMPTS[20:60])]), fraction=0.5
        )
    )
    run.model = make_llama().train()
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.02, momentum=0.9)
    run.monitor = monitor_of([custom("memory", PROMPTS[:20])])
    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        for ids in torch.randint(3, 47, (20, 8, 6), generator=torch.Generator().manual_seed(9)):
            run.optimizer.zero_grad()
            run.model(ids, labels=ids).loss.backward()
            run.optimizer.step()
    losses = [action.before["loss"] for action in run.monitor.actions]
    assert losses[0] == 0
    assert max(losses) > 0


class Rows(ProbeSet):
    """Probes of one's own that can be taken apart."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, indices: list[int]) -> Rows:
        return Rows(self.ids[indices])


def custom(name: str, ids: Tensor) -> Behavior:
    return Behavior(name, Rows(ids), lambda model, rows: model(rows.ids).logits[:, -1, 7] + 30)


# --- adaptive replay -----------------------------------------------------------------------------


def test_it_sleeps_while_all_is_calm() -> None:
    guard = guards.AdaptiveReplay(BATCHES, loss=old_loss, every=1)
    run = Run(guard).go([(OLD, ANSWERS)] * 20)
    assert run.monitor.actions == []
    plain = Run(None).go([(OLD, ANSWERS)] * 20)
    assert all(map(torch.equal, plain.weights(), run.weights()))


def test_it_wakes_when_a_margin_is_spent_and_keeps_more() -> None:
    guard = guards.AdaptiveReplay(BATCHES, loss=old_loss, every=1)
    run = Run(guard).go(lessons(40))
    details = [action.detail for action in run.monitor.actions if action.applied]
    assert all("% of the step's length comes from old examples" in detail for detail in details)
    shares = [float(detail.split("%")[0]) / 100 for detail in details]
    assert run.monitor.actions[0].step > 1
    assert all(0 <= share <= 0.5 for share in shares)
    assert len(set(shares)) > 3
    assert kept(run) >= kept(Run(None).go(lessons(40))) + 0.2


@pytest.mark.parametrize(
    "make",
    [
        lambda: guards.Replay(BATCHES, fraction=1.0),
        lambda: guards.Replay(BATCHES, every=0),
        lambda: guards.Replay([], loss=old_loss),
        lambda: guards.SelfDistillationBuffer([]),
        lambda: guards.SelfDistillationBuffer([behaviors()[0], behaviors()[0]]),
    ],
)
def test_invalid_arguments_are_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError):
        make()


def seen(margins: list[float], median: float = float("inf"), failing: int = 0) -> GuardView:
    """What a guard is shown of one behavior with 10 probes that all had these margins.

    Args:
        failing: so many of the probes fail from the start.
    """
    track = BehaviorHistory("only", floor=0.9)
    for step, margin in enumerate(margins):
        track.add_margins(step, np.where(np.arange(10) < failing, -1.0, margin))
    forecast = Forecast(median, median, float("inf"), 50)
    return GuardView(
        step=len(margins),
        model=nn.Linear(1, 1),
        parameters=[],
        behaviors={},
        protected_gradients=ProtectedGradients(),
        optimizer=torch.optim.SGD([torch.zeros(1)]),
        histories={"only": track},
        forecasts={"only": forecast},
    )


@pytest.mark.parametrize(
    ("margins", "median", "wakes"),
    [
        ([1.0, 0.30], float("inf"), False),  # fell to a new level, and is not expected to fall on
        ([1.0, 0.30], 30.0, False),
        ([1.0, 0.30], 10.0, True),  # what is left will not last
        ([1.0, 0.80], 10.0, False),  # nearly nothing is gone yet
        ([1.0, 0.24], float("inf"), True),  # nearly all is gone
    ],
)
def test_it_tells_a_new_level_from_a_fall(margins: list[float], median: float, wakes: bool) -> None:
    guard = guards.AdaptiveReplay(BATCHES, loss=old_loss)
    guard.names = ["only"]
    assert bool(guard.replay_needs(seen(margins, median))) is wakes


def test_a_behavior_that_starts_under_its_floor_is_kept_where_it_is() -> None:
    """Four of ten probes fail before training; the score of 0.6 is what there is to lose."""
    guard = guards.AdaptiveReplay(BATCHES, loss=old_loss)
    guard.names = ["only"]
    assert guard.replay_needs(seen([1.0, 0.9], failing=4)) == {}
    assert guard.replay_needs(seen([1.0, 0.1], failing=4)) == {"only": pytest.approx(0.9)}
    nothing = guards.AdaptiveReplay(BATCHES, loss=old_loss)
    nothing.names = ["only"]
    assert nothing.replay_needs(seen([1.0, -1.0], failing=10)) == {}


def test_who_keeps_more_acts_sooner() -> None:
    """One of ten probes fails: that is no loss of a score to keep of 0.9."""
    view = seen([1.0, 1.0])
    view.histories["only"].margins[-1][0] = -1.0
    for keep, needs in ((0.9, {}), (1.0, {"only": 1.0})):
        guard = guards.AdaptiveReplay(BATCHES, loss=old_loss, keep=keep)
        guard.names = ["only"]
        assert guard.replay_needs(view) == needs


def test_each_step_replays_once_a_score_is_lost() -> None:
    for margin, steps in ((0.2, [2, 4]), (-0.5, [1, 2, 3, 4])):
        run = Run(guards.AdaptiveReplay(BATCHES, loss=old_loss, every=2))
        run.guard.replay_needs = lambda view, m=margin: {"first": min(1 - m, 1.0)}  # type: ignore
        run.go(lessons(4))
        assert [action.step for action in run.monitor.actions if action.applied] == steps


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_what_is_added_to_the_whole_step_is_no_longer_than_it(scale: float) -> None:
    """Old rows whose loss has any scale: the step moves by at most its own length."""
    ids, answers = lessons(1)[0]
    run = Run(
        guards.AdaptiveReplay(BATCHES, loss=lambda m, batch: scale * old_loss(m, batch), every=1)
    )
    run.guard.replay_needs = lambda view: {"first": 1.0}  # type: ignore[attr-defined]
    parameters = list(run.model.parameters())
    task = torch.autograd.grad(functional.cross_entropy(run.model(ids)[:, -1], answers), parameters)
    old = torch.autograd.grad(scale * old_loss(run.model, BATCHES[0]), parameters)
    found: list[Tensor] = []
    with run.monitor.watch(run.model, run.optimizer, guard=run.guard):
        run.optimizer.register_step_pre_hook(
            lambda *_: found.extend(p.grad.clone() for p in parameters)
        )
        run.step(ids, answers)
    length, longest = (float(torch.cat([g.flatten() for g in v]).norm()) for v in (old, task))
    share = min(1.0, longest / length)
    assert (share < 1) is (scale == 1e6)
    for mixed, new, own in zip(found, task, old, strict=True):
        torch.testing.assert_close(mixed, new + share * own, rtol=1e-4, atol=1e-6)
    part = share * length / (longest + share * length)
    assert run.monitor.actions[-1].detail == (
        f"{part:.0%} of the step's length comes from old examples"
    )


def test_replay_fails_where_a_score_stays_lost_and_does_not_rise() -> None:
    """Evaluated every ten steps; replay of the only behavior has run since step 10."""

    def fails(*failing: int, every: int = 10, later: int = 0) -> bool:
        view = seen([1.0, 1.0])
        history, guard = view.histories["only"], guards.AdaptiveReplay(BATCHES, loss=old_loss)
        history.steps = [every * at for at in range(len(failing))]
        history.margins = [np.repeat([-1.0, 1.0], [n, 10 - n]) for n in failing]
        view.step, guard.under_floor_since = history.steps[-1] + later, {"only": every}
        return guard.is_failing(view)

    assert fails(0, 4, 4, 4, 4, 4, 4)
    assert fails(0, 4, 6, 4, 4, 5, 4)
    assert not fails(0, 4, 4, 4, 4, 4)  # 40 steps
    assert not fails(0, 9, 8, 7, 6, 5, 4)  # replay brings it back
    assert fails(0, 4, 3, 2, 3, 4, 4)  # brought back, and lost again
    assert not fails(0, 4, 3, every=60, later=59)  # rare evaluations, each better than the last
    assert not fails(0, 4, every=100, later=99)  # one under replay
    assert fails(0, 4, 4, every=60)


def test_opposed_gradients_contradict_only_where_a_score_is_not_held() -> None:
    """Of classes that come one after the other they are opposed too, and all can be learned."""

    def said(failing: int, cosine: float) -> list[str]:
        view = seen([1.0, 1.0])
        history, guard = view.histories["only"], guards.AdaptiveReplay(BATCHES, loss=old_loss)
        guard.names = guard.awake = ["only"]
        for _ in range(20):
            guard._note_cosine(cosine)
        texts = []
        for step in range(0, 120, 10):
            margins = np.repeat([-1.0, 1.0], [failing, 10 - failing])
            history.steps, history.margins = [0, step], [np.ones(10), margins]
            view.step = step
            proposal = guard.on_probe_evaluation(view)
            texts += [] if proposal is None else proposal.detail.split("; training goes on; ")
        return [text.partition(":")[0] for text in texts]

    assert said(0, -0.9) == []
    assert len(said(5, 0.0)) == 2
    (unheld, both) = said(5, -0.9)
    assert "do not hold" in unheld
    assert both.endswith("the new rows contradict the old examples")


def test_the_distance_of_a_buffer_is_0_at_first_and_its_pull_is_bounded() -> None:
    """Against a reference in float64, by numerical differences."""
    made = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6, 40, generator=made)
    targets = answer_targets(logits)
    assert targets.shape == (6, 2 * KEPT_LOGITS + 3)
    assert float(answer_distance(logits, targets).abs().max()) < 1e-5
    moved = (logits + torch.randn(6, 40, generator=made)).double().requires_grad_()
    distance = answer_distance(moved, targets.double())
    top = logits.double().topk(16).indices
    change = (moved - logits.double()).gather(-1, top).abs()
    mean = torch.where(change < 1, change**2, 2 * change - 1).mean(-1)
    first = top[:, :1]
    before, now = (x.log_softmax(-1).gather(-1, first)[:, 0] for x in (logits.double(), moved))
    torch.testing.assert_close(distance, mean + (before - now).clamp(min=0), atol=1e-5, rtol=1e-5)
    answers = torch.arange(6)
    known = answer_targets(logits, answers)  # then what is known to be right is learned further
    assert float(answer_distance(logits, known).abs().max()) < 1e-5
    before, now = (x.log_softmax(-1)[range(6), answers] for x in (logits.double(), moved))
    assert bool((before < now).any())
    torch.testing.assert_close(
        answer_distance(moved, known.double()), mean + before - now, atol=1e-5, rtol=1e-5
    )
    far = (-1000 * logits).requires_grad_()  # the answers are turned upside down
    answer_distance(far, targets).sum().backward()
    assert far.grad is not None
    assert float(far.grad.abs().max()) <= 2 / KEPT_LOGITS + 1  # of a logit, and of the answer


def test_the_pull_on_margins_is_bounded_too() -> None:
    targets = torch.tensor([5.0, 5.0, 5.0, 5.0], dtype=torch.float64)
    margins = torch.tensor([6.0, 4.5, 4.0, -995.0], dtype=torch.float64, requires_grad=True)
    distance = margin_distance(margins, targets)
    assert distance.tolist() == [0.0, 0.25, 1.0, 2 * 1000 - 1]
    distance.sum().backward()
    assert margins.grad is not None
    assert margins.grad.tolist() == [0.0, -1.0, -2.0, -2.0]


class Numbered(ProbeSet):
    """Rows of a table, by their positions."""

    def __init__(self, at: list[int]) -> None:
        self.at = at

    def __len__(self) -> int:
        return len(self.at)

    def select(self, indices: list[int]) -> Numbered:
        return Numbered([self.at[i] for i in indices])


def test_a_margin_of_ones_own_survives_plain_descent() -> None:
    """Linear layers at a rate at which the square of what is lost would pull without end."""
    torch.manual_seed(0)
    inputs, answers = torch.randn(40, 8), torch.arange(40) % 4
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), answers).backward()
        optimizer.step()

    def margins(model: nn.Module, probes: Numbered) -> Tensor:
        logits = model(inputs[probes.at])
        right = answers[probes.at][:, None]
        return logits.gather(1, right)[:, 0] - logits.scatter(1, right, -1e9).amax(1)

    monitored, old = (
        Behavior("own", Numbered(list(at)), margins) for at in (range(20), range(20, 40))
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    buffer = guards.SelfDistillationBuffer([old])
    with Monitor([monitored], budget=None).watch(
        model, optimizer, guard=guards.AutoGuard(replay=buffer)
    ):
        for _ in range(60):
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs), (answers + 1) % 4)
            loss.backward()
            optimizer.step()
            assert float(loss) < 100  # 311 where the pull has no bound


def test_it_does_not_rest_while_it_would_wake() -> None:
    guard = guards.AdaptiveReplay(BATCHES, loss=old_loss)
    guard.names = ["only"]
    view = seen([1.0, 0.60], 10.0)  # less is gone than what it may rest at, and it will not last
    assert [bool(guard.replay_needs(view)) for _ in range(6)] == [True] * 6
    assert guard.wake_count == {"only": 1}


def test_a_protected_behavior_needs_examples() -> None:
    monitored = [custom("one", PROMPTS[:20]), custom("two", PROMPTS[:20])]
    pool = guards.SelfDistillationBuffer([custom("one", PROMPTS[20:])])
    model = make_llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.raises(ConfigError, match="has no examples of behavior 'two'"):
        monitor_of(monitored).begin(model, optimizer, guards.AdaptiveReplay(pool))
    monitor = monitor_of(monitored)
    monitor.begin(model, optimizer, guards.AdaptiveReplay(pool, behaviors=["one"]))
    monitor.end()


@pytest.mark.parametrize("make", [guards.Replay, guards.AdaptiveReplay, guards.Lisa])
def test_old_examples_without_a_gradient_are_refused_before_training(make) -> None:  # type: ignore[no-untyped-def]
    run = Run(make(BATCHES, loss=lambda model, batch: torch.zeros(())))
    with pytest.raises(ConfigError, match="depends on no trained parameter"):
        run.go(lessons(1))
    assert run.monitor.step == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda loss: guards.Replay(BATCHES, loss=loss),
        lambda loss: guards.Lisa(BATCHES, loss=loss, task_steps=1, protected_steps=1, rho=0.0),
    ],
)
def test_a_replay_gradient_that_is_not_finite_is_not_used(make) -> None:  # type: ignore[no-untyped-def]
    calls = 0

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        return old_loss(model, batch) * (1.0 if calls == 1 else float("nan"))

    run, plain = Run(make(loss)).go(lessons(4)), Run(None).go(lessons(4))
    assert all(map(torch.equal, run.weights(), plain.weights()))
    assert any("not finite" in action.detail for action in run.monitor.actions)
    assert not any(action.applied for action in run.monitor.actions)


def test_a_buffer_of_texts_keeps_its_targets_when_resumed(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """What a likelihood margin fixed at the start belongs to the state."""
    texts = [f"how to make the {word}" for word in ("car", "cake", "bomb", "paint")]
    pool = Behavior.likelihood(
        "text", tokenizer, texts=["yes no", "red", "i am", "one two"], prompts=texts
    )
    source, model, other = guards.SelfDistillationBuffer([pool]), make_llama(), make_llama(seed=5)

    def risen() -> float:
        """By how much the texts have become more surprising to the starting model."""
        with torch.no_grad():
            margins = pool.margins(model, pool.probes)
        return float((margins - pool.margins.tolerance).abs().max())  # type: ignore

    probing.calibrate(pool, model)
    kept = source.state_dict()
    probing.calibrate(pool, other)  # as a resumed run does, with the weights it finds
    assert risen() > 0.1
    source.load_state_dict(kept)
    assert risen() < 1e-5


def test_that_probes_cannot_be_compared_is_said() -> None:
    model = make_llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = monitor_of([custom("memory", PROMPTS[:20])])
    with pytest.warns(UserWarning, match="which are no token ids"):
        monitor.begin(
            model,
            optimizer,
            guards.Replay(guards.SelfDistillationBuffer([custom("memory", PROMPTS)])),
        )
    monitor.end()


def test_it_rests_later_each_time_that_it_rested_too_early() -> None:
    guard = guards.AdaptiveReplay(BATCHES, loss=old_loss)
    guard.names = ["only"]
    rests = []
    for _ in range(4):
        assert guard.replay_needs(seen([1.0, 0.2]))
        for spent in np.arange(0.7, 0.0, -0.01):
            if not guard.replay_needs(seen([1.0, 1.0 - float(spent)])):
                rests.append(float(spent))
                break
    assert rests == pytest.approx([0.5, 0.25, 0.12, 0.1], abs=0.011)
