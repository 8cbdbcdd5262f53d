"""Wrong objects as arguments are refused in one sentence that says what would be right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from loops import task, train
from riprap import Behavior, Monitor
from riprap.errors import ConfigError
from riprap.monitor import keep_passing
from tiny import make_llama


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"behaviors": ["refusal"]},
            r"'refusal' is none; .*probe_sets\.load\('refusal', tok",
        ),
        ({"behaviors": "refusal"}, "give a list of behaviors, not a str"),
        ({"behaviors": None}, "give a list of behaviors, not a NoneType"),
        ({"behaviors": [Behavior]}, "the class Behavior is none"),
        ({"policy": "default"}, r"policy='default' is no alert policy: give AlertPolicy\.named"),
        ({"policy": 3}, "policy=3 is no alert policy: give a riprap.AlertPolicy"),
        ({"probe_every": 0.5}, r"probe_every=0\.5\): give a whole number"),
        ({"probe_every": True}, r"probe_every=True\): give a whole number"),
        ({"probe_every": "20"}, r"probe_every='20'\): give a whole number"),
        ({"signals": "norms"}, "signals: 'norms' is no signal; give a list"),
        ({"signals": ["norms"]}, "signals: 'norms' is no signal; give a list"),
        ({"stop_on": "severe"}, "stop_on='severe': choose one of watch, warning, critical"),
        ({"on_alert": "print"}, "on_alert='print' cannot be called: give a function"),
        ({"modules": "layers.1"}, r"modules='layers.1': give a list of names"),
    ],
)
def test_wrong_arguments(memory: Behavior, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text) as refused:
        Monitor(**({"behaviors": [memory]} | options))
    assert "\n" not in str(refused.value)


def test_one_behavior_instead_of_a_list(memory: Behavior) -> None:
    with pytest.raises(ConfigError, match=r"give a list of behaviors, as in Monitor\(\[memory\]\)"):
        Monitor(memory)  # type: ignore[arg-type]


@pytest.mark.parametrize("guard", ["keeper", nn.Module, 3])
def test_what_is_no_guard(learned: nn.Module, memory: Behavior, guard: Any) -> None:
    monitor = Monitor([memory])
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    with pytest.raises(ConfigError, match=r"guard=.* is no guard: give an object of "):
        monitor.begin(learned, optimizer, guard)


def test_model_and_optimizer_swapped(learned: nn.Module, memory: Behavior) -> None:
    monitor = Monitor([memory])
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    with pytest.raises(ConfigError, match=r"give the model first, then the optimizer"):
        monitor.begin(optimizer, learned)  # type: ignore[arg-type]


def test_a_model_that_is_none(memory: Behavior, learned: nn.Module) -> None:
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    with pytest.raises(ConfigError, match=r"cannot watch a str: give the torch\.nn\.Module"):
        Monitor([memory]).begin("gpt2", optimizer)  # type: ignore[arg-type]


def words(model: nn.Module) -> Behavior:
    """Half of the probes pass: those whose target is the model's own answer."""
    rows = torch.randint(3, 40, (8, 5))
    with torch.no_grad():
        answers = model(rows).logits[:, -1].argmax(-1)
    answers[::2] = (answers[::2] + 1) % 40
    return Behavior.next_token("words", rows.tolist(), answers.tolist(), floor=0.9)


def test_a_behavior_is_reduced_to_what_passes() -> None:
    model = make_llama().eval()
    behavior = words(model)
    monitor = Monitor([behavior], keep_passing=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    with monitor.watch(model, optimizer):
        model(torch.randint(3, 40, (4, 6))).logits.sum().backward()
        optimizer.step()
    margins = monitor.behavior_histories["words"].margins
    assert len(margins[0]) == 4
    assert (margins[0] > 0).all()
    assert len(behavior.probes) == 8  # the user's own is as it was
    assert len(keep_passing(behavior, model).probes) == 4
    with pytest.warns(UserWarning, match=r"starts below its floor: 0\.50 < 0\.90"):
        whole = Monitor([behavior])
        whole.begin(model, optimizer)
    whole.end()


def test_a_behavior_without_any_passing_probe_is_refused() -> None:
    model = make_llama().eval()
    rows = torch.randint(3, 40, (8, 5))
    with torch.no_grad():
        answers = (model(rows).logits[:, -1].argmax(-1) + 1) % 40
    behavior = Behavior.next_token("words", rows.tolist(), answers.tolist())
    monitor = Monitor([behavior], keep_passing=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with pytest.raises(ConfigError, match="the model passes none of its probes before training"):
        monitor.begin(model, optimizer)


def test_a_resumed_run_keeps_the_same_probes() -> None:
    model = make_llama().eval()
    behavior = words(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-1)

    def step() -> None:
        optimizer.zero_grad()
        model(torch.arange(3, 27).reshape(4, 6)).logits.square().mean().backward()
        optimizer.step()

    monitor = Monitor([behavior], keep_passing=True, probe_every=1)
    with monitor.watch(model, optimizer):
        for _ in range(3):
            step()
        state = monitor.state_dict()
    resumed = Monitor([behavior], keep_passing=True, probe_every=1)
    resumed.load_state_dict(state)
    with resumed.watch(model, optimizer):
        step()
    old, new = (one.behavior_histories["words"] for one in (monitor, resumed))
    assert new.steps == [*old.steps, 4]
    assert new.margins[-1].shape == (4,)
    assert [b.probes.input_ids.tolist() for b in resumed.behaviors] == [
        b.probes.input_ids.tolist() for b in monitor.behaviors
    ]


def test_a_rank_alone_writes_its_record(
    learned: nn.Module, memory: Behavior, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monitor = Monitor([memory], run_dir=tmp_path / "run")
    optimizer = torch.optim.SGD(learned.parameters(), lr=1e-2)
    with monitor.watch(learned, optimizer):
        train(learned, optimizer, task(2))
    assert (tmp_path / "run" / "record.sqlite").is_file()
    monkeypatch.setenv("WORLD_SIZE", "2")
    Monitor([memory], run_dir=tmp_path / "other")
    assert not (tmp_path / "other").exists()
