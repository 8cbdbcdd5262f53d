"""What Python and notebooks show of the objects that users hold: short, true, and harmless."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from torch import nn

from hostile.test_escaping import NASTY
from loops import task, train
from riprap import Behavior, Monitor
from riprap.conclusion import conclude
from riprap.types import Action, Alert, Forecast, Level

TAGS = {"table", "thead", "tbody", "tr", "th", "td", "p", "ul", "li", "strong"}


class Page(HTMLParser):
    """All tags, attributes and texts of a piece of HTML."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[Any] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[Any]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def shown(name: str, memory: Behavior, model: nn.Module) -> list[Any]:
    behavior = Behavior(name, memory.probes, memory.margins)
    behavior.texts = [name] * 5
    monitor = Monitor([behavior])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    with monitor.watch(model, optimizer):
        train(model, optimizer, task(12))
    alert = Alert(7, name, Level.CRITICAL, name, name, forecast=Forecast(3, 2, 9, 50))
    action = Action(7, name, "gradients", True, name, {name: 1.0})
    return [monitor, behavior, alert, action, conclude(monitor.record)]


@pytest.mark.parametrize("name", NASTY)
def test_hostile_names_stay_texts(name: str, memory: Behavior, learned: nn.Module) -> None:
    for thing in shown(name, memory, learned):
        line = repr(thing)
        assert line.isprintable(), line
        page = Page(thing._repr_html_())
        assert page.tags <= TAGS and not page.attributes, thing
        assert "\x1b" not in page.text and "\u202e" not in page.text


def test_they_are_short_and_say_what_matters(memory: Behavior, learned: nn.Module) -> None:
    monitor, behavior, alert, action, conclusion = shown("facts", memory, learned)
    now = monitor.metrics()["riprap/facts/score"]
    assert repr(monitor).startswith(f"<Monitor: facts {now:.2f}; step 12, ")
    # The probes are a pair of inputs and labels, which is not a count of 2.
    assert repr(behavior) == "Behavior('facts', probes, PlainMargin, floor=0.9)"
    ids, targets = torch.zeros(5, 3, dtype=torch.long), torch.zeros(5, dtype=torch.long)
    counted = Behavior.next_token("facts", ids, targets)
    assert repr(counted) == "Behavior('facts', 5 probes, NextToken, floor=0.9)"
    assert repr(alert) == "<Alert facts: step 7, critical: facts: facts>"
    assert repr(action) == "<Action step 7, facts: facts>"
    assert repr(conclusion) == f"<Conclusion: {conclusion.line}>"
    text = "<Forecast: break in 3 (2 to beyond the horizon) of 50 steps, probability 0.25>"
    assert repr(Forecast(3, 2, float("inf"), 50, 0.25)) == text
    for thing in (monitor, behavior, alert, action):
        assert len(repr(thing)) < 160
    page = Page(monitor._repr_html_())
    assert f"{now:.2f}" in page.text and "step 12" in page.text
    assert Page(behavior._repr_html_()).text.count("facts") == 4  # the name, and three prompts
    assert conclusion.line in Page(conclusion._repr_html_()).text


def test_a_notebook_shows_less_of_prompts_that_may_be_harmful(memory: Behavior) -> None:
    behavior = Behavior("facts", memory.probes, memory.margins)
    behavior.texts = ["x" * 90]
    assert "<ul><li>" + "x" * 90 + "</li></ul>" in behavior._repr_html_()
    behavior.harmful = True
    assert "<ul><li>" + "x" * 39 + "…</li></ul>" in behavior._repr_html_()


def test_before_the_first_watch_there_is_nothing_to_show(memory: Behavior) -> None:
    monitor = Monitor([memory])
    assert repr(monitor) == "<Monitor: memory; step 0, 0 alerts>"
    assert "–" in Page(monitor._repr_html_()).text
