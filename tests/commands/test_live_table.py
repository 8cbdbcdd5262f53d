"""The live table limits redraws; without a terminal it prints few plain lines."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from riprap.integrations.terminal import BehaviorRow, LiveTable
from riprap.types import Level


def console(terminal: bool, width: int = 100) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=width, color_system=None, height=30
    )


def written(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


def test_without_a_terminal_a_run_is_a_few_lines() -> None:
    out = console(terminal=False)
    with LiveTable(["refusal"], 1000, out) as table:
        for step in range(1, 1001):
            table.update(step, [BehaviorRow("refusal", 1.0, 5.0)])
    lines = written(out).splitlines()
    assert 10 <= len(lines) <= 12
    assert lines[0].startswith("step 1/1000: refusal score 1.00")
    assert lines[-1].startswith("step 1000/1000")
    assert "\x1b" not in written(out)


def test_without_a_terminal_news_is_printed_at_once() -> None:
    out = console(terminal=False)
    with LiveTable(["refusal", "adding"], 1000, out) as table:
        table.update(1, [BehaviorRow("refusal", 1.0), BehaviorRow("adding", 1.0)])
        table.update(2, [BehaviorRow("refusal", 1.0, forecast="in 8 steps", level=Level.CRITICAL)])
        table.update(3, [BehaviorRow("refusal", 1.0, forecast="in 7 steps", level=Level.CRITICAL)])
        table.update(4, [BehaviorRow("refusal", 0.5, level=Level.CRITICAL, broken_at=4)])
        table.update(5, [BehaviorRow("refusal", 0.4, level=Level.CRITICAL, broken_at=4)])
    lines = written(out).splitlines()
    assert [line.split(":")[0] for line in lines] == [f"step {n}/1000" for n in (1, 2, 4, 5)]
    assert "critical, forecast in 8 steps" in lines[1]
    assert "broke at step 4" in lines[2]
    assert "adding score 1.00" in lines[2]


def test_without_a_terminal_the_last_state_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    out = console(terminal=False)
    with LiveTable(["refusal"], 1000, out) as table:
        table.update(1, [BehaviorRow("refusal", 1.0)])
        table.update(7, [BehaviorRow("refusal", 0.97)])
    assert written(out).splitlines()[-1].startswith("step 7/1000: refusal score 0.97")


def test_a_terminal_is_redrawn_at_most_eight_times_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr("riprap.integrations.terminal._table.time.monotonic", lambda: clock[0])
    out = console(terminal=True)
    with LiveTable(["refusal"], 1000, out) as table:
        start = written(out).count("forecast break")
        for step in range(1, 1001):
            clock[0] += 0.002
            table.update(step, [BehaviorRow("refusal", 1.0, 5.0 - step / 1000)])
        drawn = written(out).count("forecast break") - start
    assert 12 <= drawn <= 17  # two seconds of steps
    assert "1000/1000" in written(out)
    assert "4.00" in written(out).rsplit("forecast break", 1)[1]


def test_drawing_takes_a_small_share_of_the_time_but_news_is_drawn_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, drawing = [0.0], [0.0]

    class SlowScreen(io.StringIO):
        def write(self, text: str) -> int:
            clock[0] += 0.01
            drawing[0] += 0.01
            return super().write(text)

    monkeypatch.setattr("riprap.integrations.terminal._table.time.monotonic", lambda: clock[0])
    out = Console(file=SlowScreen(), force_terminal=True, width=100, color_system=None, height=30)
    with LiveTable(["refusal"], 1000, out) as table:
        for step in range(1, 1001):
            clock[0] += 0.2
            table.update(step, [BehaviorRow("refusal", 1.0)])
        assert 0 < drawing[0] < 0.002 * clock[0]
        table.update(1001, [BehaviorRow("refusal", 1.0, level=Level.CRITICAL)])
        assert "critical" in written(out)
        table.update(1002, [BehaviorRow("refusal", 0.5, level=Level.CRITICAL, broken_at=1002)])
        assert "step 1002" in written(out)
        table.update(1003, [BehaviorRow("refusal", 0.25, level=Level.CRITICAL, broken_at=1002)])
        assert "0.25" not in written(out)
    assert "0.25" in written(out)  # the last state stays


def test_a_terminal_shows_all_columns_in_eighty_characters() -> None:
    out = console(terminal=True, width=80)
    row = BehaviorRow("refusal", 0.5, -1.25, -0.125, "not within the horizon", Level.CRITICAL, 1234)
    with LiveTable(["refusal"], 10, out) as table:
        table.update(3, [row])
    last = written(out).rsplit("forecast break", 1)[1]
    for text in ("0.50", "-1.25", "-0.125", "not within the horizon", "critical", "step 1234"):
        assert text in last


def test_a_long_name_leaves_room_for_the_alert() -> None:
    out, name = console(terminal=True, width=80), "an_uncommonly_long_name_日本語"
    with LiveTable([name], 10, out) as table:
        table.update(3, [BehaviorRow(name, 0.5, level=Level.CRITICAL, broken_at=3)])
    line = written(out).rsplit("an_uncom", 1)[1].splitlines()[0]
    assert "critical" in line and "step 3" in line


def test_it_says_of_which_step_a_score_is() -> None:
    plain, drawn = console(terminal=False), console(terminal=True)
    for out in (plain, drawn):
        with LiveTable(["refusal"], 1000, out) as table:
            table.update(100, [BehaviorRow("refusal", 0.96, read_at=100)])
            table.update(150, [BehaviorRow("refusal", 0.96, read_at=100)])
    first, last = written(plain).splitlines()
    assert first == "step 100/1000: refusal score 0.96"
    assert last == "step 150/1000: refusal score 0.96 (read at step 100)"
    row = written(drawn).rsplit("forecast break", 1)[1]
    assert "150/1000" in row and row.index("100") < row.index("0.96")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_name_with_brackets_is_no_markup(terminal: bool) -> None:
    out = console(terminal)
    with LiveTable(["[bold]x[/nonsense]"], 10, out) as table:
        table.update(1, [BehaviorRow("[bold]x[/nonsense]", 1.0)])
    assert "[bold]x[/nonsense]" in written(out)


@pytest.mark.parametrize("terminal", [True, False])
def test_an_error_in_training_passes_through_and_frees_the_terminal(terminal: bool) -> None:
    out = console(terminal)
    with pytest.raises(RuntimeError, match="out of memory"), LiveTable(["a"], 10, out) as table:
        table.update(1, [BehaviorRow("a", 1.0)])
        raise RuntimeError("out of memory")
    if terminal:
        assert written(out).rstrip().endswith("\x1b[?25h")  # the cursor is shown again
