"""What a person sees on a terminal: lines that are said stay, bars of tqdm end the live table."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

TRAINING = """
import sys, time
import torch
from torch import nn
from tqdm import tqdm
from riprap import Behavior, Monitor
from riprap.integrations.terminal import Terminal
from riprap.monitor import say
from riprap.types import Level

model = nn.Linear(4, 2)
xs = torch.randn(8, 4)
own = Behavior("adding", xs, margins=lambda model, probes: model(probes)[:, 0].abs())
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
monitor = Monitor([own], trackers=[Terminal()], budget=None)

def steps():
    with monitor.watch(model, optimizer, steps=12):
        bar = None
        for step in range(1, 13):
            model(xs).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if step == 4:
                say("first news", Level.WARNING)
                say("second news")
            if BARS and step == 6:
                bar = tqdm(total=6, desc="training", mininterval=0, ascii=True)
            if bar is not None:
                bar.update()
            time.sleep(0.15 if step < 10 else 0)
        if bar is not None:
            bar.close()
    say("the end")

steps()
"""


def screen_after(code: str) -> list[str]:
    """Run code on a terminal; return the lines that it shows at the end."""
    ours, theirs = pty.openpty()
    env = os.environ | {"COLUMNS": "110", "LINES": "60", "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    output = b"".join(received(ours))
    os.close(ours)
    assert process.wait(60) == 0, output.decode()
    return shown(output.decode())


def received(descriptor: int) -> Iterator[bytes]:
    while True:
        try:
            part = os.read(descriptor, 4096)
        except OSError:  # the process has closed its end
            return
        if not part:
            return
        yield part


def shown(text: str) -> list[str]:
    """Do what a terminal does with the few codes that rich and tqdm send."""
    lines, row, column = [""], 0, 0
    for code, count, kind, other in re.findall(r"(\x1b\[\??([\d;]*)([A-Za-z]))|([\s\S])", text):
        if kind == "A":
            row = max(row - int(count or 1), 0)
        elif kind == "K":
            lines[row] = "" if count == "2" else lines[row][:column]
        elif other == "\r":
            column = 0
        elif other == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif not code:
            line = lines[row].ljust(column)
            lines[row] = line[:column] + other + line[column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize("bars", [False, True])
def test_what_is_said_stays_on_the_screen(bars: bool) -> None:
    lines = screen_after(TRAINING.replace("BARS", str(bars)))
    text = "\n".join(lines)
    for news in ("first news", "second news", "the end"):
        assert lines.count(f"riprap: {news}") == 1, text
    assert lines.index("riprap: first news") < lines.index("riprap: the end")
    assert text.count("forecast break") == (0 if bars else 1), text
    assert ("step 12/12: adding" in text) == bars, text
    assert sum("training:" in line for line in lines) <= (2 if bars else 0), text
