"""Wrong objects in place of a monitor, a guard or a selector: one sentence each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from integrations.test_trackers import training, watching
from riprap import Behavior, Monitor, guards
from riprap.errors import ConfigError
from riprap.integrations.hf import MonitorCallback, SelectionCallback
from riprap.integrations.lightning import MonitorCallback as LightningCallback
from riprap.selection import Selector

pytestmark = pytest.mark.filterwarnings("ignore:riprap. behavior")


def wrong_monitors() -> list[tuple[Any, str]]:
    behavior = watching().behaviors[0]
    return [
        ([behavior], "needs a Monitor, and got a list"),
        ([], "got a list"),
        (behavior, "got a Behavior"),
        (Behavior, "got the class Behavior"),
        (Monitor, "got the class Monitor, not an instance"),
        (None, "got nothing"),
        ("runs/first", "got the text 'runs/first'"),
        (guards.AGEM(), "got a AGEM"),
    ]


@pytest.mark.parametrize("kind", [MonitorCallback, LightningCallback])
def test_something_other_than_a_monitor_is_refused(kind: Any) -> None:
    for wrong, text in wrong_monitors():
        with pytest.raises(ConfigError, match=text) as caught:
            kind(wrong)
        assert "MonitorCallback(Monitor([...]))" in str(caught.value)


@pytest.mark.parametrize("kind", [MonitorCallback, LightningCallback])
@pytest.mark.parametrize("wrong", ["keeper", guards.AGEM, [guards.AGEM()], 3, Selector("moderate")])
def test_something_other_than_a_guard_is_refused(kind: Any, wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"as guard: give a guard, such as guard=riprap.guards"):
        kind(watching(), wrong)


def test_something_other_than_a_submodule_is_refused() -> None:
    wrong: Any = 3
    with pytest.raises(ConfigError, match="got a int as submodule"):
        LightningCallback(watching(), submodule=wrong)


@pytest.mark.parametrize("wrong", ["moderate", Selector, None, 0.25])
def test_something_other_than_a_selector_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"SelectionCallback needs a Selector, and got"):
        SelectionCallback(wrong)
    with pytest.raises(ConfigError, match="as losses: give a function"):
        wrong_losses: Any = "losses"
        SelectionCallback(Selector("moderate"), wrong_losses)


class WithoutOptimizer(Trainer):
    """A trainer of somebody's own: its callbacks see no optimizer."""

    def _inner_training_loop(self, *given: Any, **options: Any) -> Any:
        self.callback_handler.optimizer = None
        self.callback_handler.on_train_begin(self.args, self.state, self.control)


@pytest.mark.parametrize("kind", ["monitor", "selection"])
def test_a_trainer_that_passes_no_optimizer_is_refused(tmp_path: Path, kind: str) -> None:
    monitor = watching()
    callback = (
        MonitorCallback(monitor) if kind == "monitor" else SelectionCallback(Selector("moderate"))
    )
    made = training(tmp_path, [callback])
    made.__class__ = WithoutOptimizer
    with pytest.raises(ConfigError, match="without a model or an optimizer"):
        made.train()
    assert monitor.step == 0
